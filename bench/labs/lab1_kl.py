"""
Lab 1: KL by hand, and its directions.

    python bench/labs/lab1_kl.py

QUESTION. At night a student S is taught by the self that holds the day, T. Both are distributions
over the next word. There are two Kullback-Leibler divergences between them. Which of them would
you descend, and what becomes of a student that cannot hold everything?

    forward  D(T || S) = sum_w T(w) (log T(w) - log S(w))
    reverse  D(S || T) = sum_w S(w) (log S(w) - log T(w))         GKD, arXiv 2306.13649, section 2

By hand: T = (1/2, 1/2), S = (9/10, 1/10). Forward is .5108 nats, reverse is .3681. Do it.

WRITE `forward_kl` and `reverse_kl` below, of log-probabilities, two lines each.

THE NUMBER: your largest error on the example and on 2,000 pairs of random distributions, measured
against seed.divergence. Goal: below 0.0001 nats. It takes seconds.

OBSERVE. The lab then descends both of yours with a student that is a single hump, its teacher
having two. One direction makes it cover both and say what the teacher never says; the other makes
it choose one, and forget that there was another. Which is which, and why? A student that must not
invent would like one of them; one that must not miss what was told needs the other. What the nights
of nanoSleep do, and what it costs them to turn round: bench/README.md, "reverse KL".
"""
import os
import sys

import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.abspath(os.path.join(__file__, "..", "..", "..")))
import seed                                                          # noqa: E402
from bench.labs import common                                        # noqa: E402

GOAL = 1e-4                         # nats
HUMPS, WORDS = ((10, 0.55), (30, 0.45)), 41     # of the teacher: (place, share); places in a row
STEPS = 400                         # Adam, for each direction


def forward_kl(log_t, log_s):
    """D(T || S) in nats, (...): of log-probabilities log_t, log_s (..., V)."""
    # --- your code: at most 2 lines ---
    raise NotImplementedError("sum over the words of T (log T - log S), at most 2 lines")


def reverse_kl(log_t, log_s):
    """D(S || T) in nats, (...)."""
    # --- your code: at most 2 lines ---
    raise NotImplementedError("the same with T and S exchanged, at most 2 lines")


def measure(o):
    half, nine = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
    pairs = [(half, nine), (torch.randn(2000, 50).mul(4).log_softmax(-1),
                            torch.randn(2000, 50).mul(4).log_softmax(-1))]
    errors = []
    for kind, yours in (("forward", forward_kl), ("reverse", reverse_kl)):
        for log_t, log_s in pairs:
            d = common.expect(yours.__name__, yours(log_t, log_s), log_t.shape[:-1])
            errors.append((d - seed.divergence(log_t, log_s, kind)).abs().max().item())
    seen = ["a teacher of two humps, at 10 (.55) and at 30 (.45); a student of one:"]
    seen += [fitted(yours, STEPS) for yours in (forward_kl, reverse_kl)]
    return common.Result(max(errors), f"below {GOAL}", max(errors) < GOAL, seen)


def fitted(kl, steps):
    """What becomes of a student of one hump that descends kl: a line."""
    place = torch.arange(WORDS, dtype=torch.float32)
    log_t = torch.stack([hump(place, at, 2.0) + torch.tensor(share).log()
                         for at, share in HUMPS]).logsumexp(0)
    mean, width = torch.tensor(16.0, requires_grad=True), torch.tensor(1.5, requires_grad=True)
    opt = torch.optim.Adam([mean, width], lr=0.1)
    for _ in range(steps):
        opt.zero_grad()
        kl(log_t, hump(place, mean, F.softplus(width))).backward()
        opt.step()
    s = hump(place, mean, F.softplus(width)).exp().detach()
    never = s[log_t.exp() < 0.002].sum()
    return (f"  {kl.__name__:10}  its mean {mean:4.1f}, its width {F.softplus(width):4.1f}; left "
            f"{s[:21].sum():.2f}, right {s[21:].sum():.2f}; says what the teacher never says: "
            f"{never:.2f}")


def hump(place, mean, width):
    """log-probabilities (V,) of a Gaussian on a row of places."""
    return F.log_softmax(-0.5 * ((place - mean) / width) ** 2, -1)


if __name__ == "__main__":
    common.run(measure, __doc__, __file__)
