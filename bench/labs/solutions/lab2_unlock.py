"""Lab 2: what reads is random, what writes is zero."""
import torch


def new_expert(width, rank, generator):
    A = torch.randn(width, rank, generator=generator) * width ** -0.5
    return A, torch.zeros(rank, width)
