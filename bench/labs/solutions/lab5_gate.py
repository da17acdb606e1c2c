"""Lab 5: whiten what differs although the person is the same."""
import torch


def metric(x, person):
    mean = torch.stack([x[person == k].mean(0) for k in range(int(person.max()) + 1)])
    apart = x - mean[person]
    S = apart.T @ apart / len(x)
    S = 0.99 * S + 0.01 * S.diagonal().mean() * torch.eye(len(S))
    return torch.linalg.inv(torch.linalg.cholesky(S))
