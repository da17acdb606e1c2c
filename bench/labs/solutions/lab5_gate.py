"""Lab 5: up to the geometric mean of the two, and never to the nearest other question."""
import torch


def reach(p, n):
    return torch.minimum((p * n).sqrt(), 0.9 * n)
