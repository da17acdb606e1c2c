"""Lab 3: the old loss changes by d . grad L_old."""
import torch


def step_and_predict(opt, params, day_loss, old_loss):
    old = torch.autograd.grad(old_loss(), params)
    before = [p.detach().clone() for p in params]
    opt.zero_grad()
    day_loss().backward()
    opt.step()
    return sum(((p.detach() - b) * g).sum().item() for p, b, g in zip(params, before, old))
