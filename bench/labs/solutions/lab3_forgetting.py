"""Lab 3: the old loss changes by d . grad L_old."""
import torch


def step_and_predict(params, day_loss, old_loss, lr):
    day = torch.autograd.grad(day_loss(), params)
    old = torch.autograd.grad(old_loss(), params)
    with torch.no_grad():
        for p, g in zip(params, day):
            p -= lr * g
    return -lr * sum((a * b).sum() for a, b in zip(day, old))
