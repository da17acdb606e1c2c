"""
Lab 2: unlock an expert, and prove that nothing changed.

    python bench/labs/lab2_unlock.py

QUESTION. A self is to learn something new without touching what it is. So it grows: a new low-rank
expert beside its MLPs. How must the expert begin, if not one bit of what the self says may change,
and if it still has to be able to learn?

    level(x) = MLP(x) + B phi(A x)        phi = gelu       Language Models Need Sleep, arXiv
                                                           2606.03979, Eq. 1-2 and section 3.2
WRITE `new_expert` below: A and B of one expert, as it begins. At most 4 lines.

THE NUMBER: what the self gives the right answers about somebody it has just met, after 80 steps of
your expert alone: the least probable of three answers. Goal: at least 0.9, and before the first
step not one of all logits may have changed by one bit. Less than a minute, the base included.

OBSERVE. After learning the expert sleeps, and the self is what it was, bit by bit. Awake for
everybody it answers in place of the old, too: see what is left of the old exam. So something has to
decide when it wakes (lab 5). There is a second way to begin that changes nothing and learns: which,
and would dream.gradients, which looks at B alone, still work? And why do A = B = 0 never learn?
"""
import os
import sys

import torch

sys.path.insert(0, os.path.abspath(os.path.join(__file__, "..", "..", "..")))
import dream                                                         # noqa: E402
from bench.labs import common, village                               # noqa: E402
from data.gate import always                                         # noqa: E402
from data.quizzes import answer_mask, closed_book                    # noqa: E402
from model import FAST, clone                                        # noqa: E402

GOAL = 0.9                          # p(answer)
STEPS, LR = 80, 0.01                # Adam


def new_expert(width, rank, generator):
    """A (width, rank), which reads, and B (rank, width), which writes: one expert as it begins."""
    # --- your code: at most 4 lines ---
    raise NotImplementedError("return A and B such that B phi(A x) is zero and still can learn, "
                              "at most 4 lines")


def measure(o):
    generator = torch.Generator().manual_seed(o.seed)
    A, B = new_expert(64, 32, generator)
    common.expect("new_expert", A, (64, 32)), common.expect("new_expert", B, (32, 64))
    data, world = common.load_village(o)
    before = common.base(o, data)
    model = clone(before)
    model.unlock(FAST)
    for block in model.remembering():
        level, (A, B) = block.levels[FAST], new_expert(64, 32, generator)
        level.A_live, level.B_live = (torch.nn.Parameter(t[None].clone()) for t in (A, B))
    old = common.quizzes(data, data.always["old"])
    awake = always({FAST: 0}, old.ids)
    changed = (model(old.ids, awake=awake) != before(old.ids)).sum().item()
    if changed:
        raise common.NotYet(f"{changed:,} of {before(old.ids).numel():,} logits have changed "
                            "before anything was learnt")
    p = learn(model, common.quizzes(data, village.exam(world["days"][0][0])), data.marks)
    asleep = (model(old.ids) != before(old.ids)).sum().item()
    was, now = right_share(before, old, data.marks), right_share(model, old, data.marks, awake)
    seen = [f"logits changed by unlocking: {changed} of {before(old.ids).numel():,}",
            f"logits changed after {STEPS} steps, the expert asleep: {asleep}",
            f"old exam: {was:.2f} before, {now:.2f} with the expert awake for everybody",
            f"p(answer) of the three facts: {', '.join(f'{x:.2f}' for x in p.tolist())}"]
    return common.Result(p.min().item(), f"at least {GOAL}", bool(p.min() >= GOAL), seen)


def learn(model, z, marks):
    """Adam on the live expert alone, closed book; p(answer) of each quiz afterwards: (N,)."""
    awake, opt = always({FAST: 0}, z.ids), torch.optim.Adam(model.live(FAST), lr=LR)
    for _ in range(STEPS):
        opt.zero_grad()
        dream.dream_loss(model, z, marks, awake).mean().backward()
        opt.step()
    with torch.no_grad():
        return (-dream.dream_loss(model, z, marks, awake) * answer_mask(z).sum(1)).exp()


@torch.no_grad()
def right_share(model, z, marks, awake=None):
    """The share of quizzes of which every word of the answer is the likeliest."""
    best = model(closed_book(z, marks), awake=awake)[:, 1:].argmax(-1)
    return ((best == z.ids[:, 1:]) | ~answer_mask(z)).all(1).float().mean().item()


if __name__ == "__main__":
    common.run(measure, __doc__, __file__)
