"""
Lab 4: write the leave-one-out baseline.

    python bench/labs/lab4_baseline.py

QUESTION. A student is rewarded for what it says. REINFORCE follows r grad log p(y); where all
rewards are nearly alike (a night's are nearly 1) that is almost only noise. Subtract a baseline:
which one costs nothing, and is still right on average?

    A_i = r_i - 1/(G-1) sum_{j != i} r_j            G rollouts of the same prompt: leave one out
                                                    (Kool et al. 2019; arXiv 2402.14740)
    grad E[r]  =  E[ A_i grad log p(y_i) ]          Language Models Need Sleep, 2606.03979, 3.3

WRITE `advantages` below. At most 4 lines.

THE NUMBER: a policy over 12 words whose true gradient is known, 40,000 groups of 4 rollouts. The
variance of your estimate, in units of that without a baseline. Goal: at most 0.1, with a slope
along the true gradient of 1.00, give or take 0.02. It takes seconds.

OBSERVE. The mean of all four, r_i among them, has little variance, too, but its slope is 3/4: where
r_i is praised, r_i has raised its own bar. At G = 2 it would be half. Why does a baseline that does
not depend on y_i change nothing on average (what is the sum of grad p)? And what is learnt from a
group in which all rewards are equal? In seed.py: leave_one_out, rewards, policy_loss.
"""
import os
import sys

import torch

sys.path.insert(0, os.path.abspath(os.path.join(__file__, "..", "..", "..")))
import seed                                                          # noqa: E402
from bench.labs import common                                        # noqa: E402

GOAL, SLOPE = 0.1, 0.02             # share of the variance; the slope may differ from 1 by
WORDS, GROUP, GROUPS, BATCH = 12, seed.GROUP, 40_000, 100


def advantages(r, group):
    """r (N,): rewards, the first `group` of one prompt, the next of another -> advantages (N,)."""
    # --- your code: at most 4 lines ---
    raise NotImplementedError("each reward minus the mean of the others of its group, "
                              "at most 4 lines")


def measure(o):
    common.expect("advantages", advantages(torch.ones(12), GROUP), (12,))
    logits = torch.randn(WORDS)
    worth = 0.9 + 0.1 * torch.rand(WORDS)                           # nearly alike, nearly 1
    y = torch.multinomial(logits.softmax(-1), GROUPS * GROUP, replacement=True)
    y = y.view(-1, BATCH * GROUP)
    p = logits.softmax(-1)
    true = p * (worth - (p * worth).sum())                          # grad E[r], by hand
    rows = {name: estimates(logits, y, worth, of) for name, of in (
        ("no baseline", no_baseline), ("mean of all", mean_of_all), ("yours", advantages))}
    found = {name: (spread(g) / spread(rows["no baseline"]), slope(g.mean(0), true))
             for name, g in rows.items()}
    seen = [f"{name:12} variance {v:6.4f}   slope {s:+.3f}" for name, (v, s) in found.items()]
    share, along = found["yours"]
    right = abs(along - 1) <= SLOPE
    if not right:
        seen.append(f"your gradient is not the true one on average: its slope is {along:.2f}")
    return common.Result(share, f"at most {GOAL}, and a slope of 1", right and share <= GOAL, seen)


def estimates(logits, y, worth, advantage):
    """The gradient of -policy_loss from each batch of rollouts y (n, B): (n, WORDS)."""
    found = []
    for row in y:
        leaf = logits.clone().requires_grad_(True)
        log_p = leaf.log_softmax(-1)[row][:, None]                  # (B, 1): one word is a rollout
        a = advantage(worth[row], GROUP)
        loss = seed.policy_loss(log_p, torch.ones_like(log_p), a)
        found.append(-torch.autograd.grad(loss, leaf)[0])
    return torch.stack(found)


def no_baseline(r, group):
    return r


def mean_of_all(r, group):
    r = r.view(-1, group)
    return (r - r.mean(1, keepdim=True)).flatten()


def spread(g):
    return g.var(0).sum().item()


def slope(found, true):
    """How long the found gradient is along the true one: 1 if it is right."""
    return (found @ true / (true @ true)).item()


if __name__ == "__main__":
    common.run(measure, __doc__, __file__)
