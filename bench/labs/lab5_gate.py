"""
Lab 5: a gate, and its false alarms.

    python bench/labs/lab5_gate.py

QUESTION. An expert must wake when its own people are asked for, and for nobody else. The gate hears
a question as a point, the state of the pretrained self where the name ends. A person k is the mean
m_k of a few such points, W a metric in which one person's points lie within about 1 (data/gate.py).

    wake  if  |W x - m_k|^2 < reach_k               how far should each person reach?

Known of each person: p, how far its own points are thought to lie (1, and more where few were
heard), and n, how near the nearest question comes that the self has invented about somebody else.

WRITE `reach` below: from p and n, a squared distance for each person. At most 4 lines.

THE NUMBER: the share of false alarms, on questions about strangers and namesakes that were never
heard. Goal: at most 0.04, while at least 0.88 of one's own questions are heard. Less than a minute,
the base included.

OBSERVE. The lab prints the curve of one reach for all: it reaches the goal nowhere. Why does a
reach of its own for each person do better? What would Neyman and Pearson ask for that is missing
here (how often is anyone asked for)? Who is heard in place of whom: strangers, or namesakes? The
answer of nanoSleep is three lines of data/gate.py, `reach`; it has a price, too: see "reversed" and
"typed" in README.md.
"""
import os
import sys

import random

import torch

sys.path.insert(0, os.path.abspath(os.path.join(__file__, "..", "..", "..")))
from bench.labs import common, village                               # noqa: E402
from data.engine import pad_rows                                     # noqa: E402
from data.gate import listen, nearest, states                        # noqa: E402
from model import FAST                                               # noqa: E402

GOAL, HEARD = 0.04, 0.88            # false alarms; own questions heard
PEOPLE, HEARD_OF, STRANGERS = 40, 2, 400        # met; questions heard of each; asked for in vain


def reach(p, n):
    """p, n (K,): squared distances, of one's own and of the nearest other question -> (K,)."""
    # --- your code: at most 4 lines ---
    raise NotImplementedError("far enough for p, and not as far as n, at most 4 lines")


def measure(o):
    common.expect("reach", reach(torch.full((5,), 1.5), torch.full((5,), 2.0)), (5,))
    data, world = common.load_village(o)
    model, asked = common.base(o, data), scene(data, world, random.Random(o.seed))
    rows, number = asked["heard"]
    mean = torch.stack([places(model, data, rows, number)[number == k].mean(0)
                        for k in range(PEOPLE)])
    p = torch.full((PEOPLE,), 1 + 1 / HEARD_OF)
    n = nearest(model, invented(model, data, asked["names"]), mean).amin(0)
    yours = common.expect("reach", reach(p, n), (PEOPLE,))
    seen = ["one reach for all:     heard   false alarms (strangers, namesakes)"]
    for one in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0):
        seen.append(f"  {one:<20} {line(alarms(model, mean, torch.full((PEOPLE,), one), asked))}")
    found = alarms(model, mean, yours, asked)
    seen.append(f"  yours                {line(found)}")
    heard, strangers, namesakes = found
    false = (strangers + namesakes) / 2
    return common.Result(false, f"at most {GOAL}, with {HEARD} heard",
                         false <= GOAL and heard >= HEARD, seen)


def scene(data, world, rng):
    """{"names", "heard": (rows, whose), "own": (rows, whose), "strangers", "namesakes": rows}"""
    names, taken = [], set(world["names"])
    while len(names) < PEOPLE:
        names.append(village.somebody(rng, taken)[0])
        taken.add(names[-1])

    def ask(name, relation, wording):
        q = " " + village.RELATIONS[relation].asked[wording].format(n=name)
        return [data.marks.bos, data.marks.ask, *data.enc.encode_ordinary(q), data.marks.answer]

    def in_vain(like=None):
        while True:
            name = village.somebody(rng, taken)[0]
            if like:                                    # the first or the last name of somebody met
                (a, b), (c, d) = name.split(), rng.choice(names).split()
                name = f"{a} {d}" if rng.random() < 0.5 else f"{c} {b}"
            if name not in taken:
                return ask(name, rng.choice(list(village.RELATIONS)), rng.randrange(2))
    every = [(k, w) for k in village.RELATIONS for w in (0, 1)]
    heard, own = every[0:4:2], [x for x in every if x not in every[0:4:2]]
    asked = {key: ([ask(n, *x) for n in names for x in which],
                   torch.arange(PEOPLE).repeat_interleave(len(which)))
             for key, which in (("heard", heard), ("own", own))}
    return {**asked, "names": names, "strangers": [in_vain() for _ in range(STRANGERS)],
            "namesakes": [in_vain(True) for _ in range(STRANGERS)]}


@torch.no_grad()
def places(model, data, rows, number):
    """W x where each question's name ends: (N, r). A last name is the last word that is a name."""
    ids, _ = pad_rows(rows)
    last = {data.enc.encode_ordinary(f" {word}")[0] for word in village.LAST}
    at = torch.tensor([max(i for i, t in enumerate(row) if t in last) for row in rows])
    return states(model, ids)[torch.arange(len(rows)), at] @ model.metric.T


def invented(model, data, names):
    """The questions that the self has made up before its first day, about nobody of these names."""
    rows = [[t for t in row if t >= 0] for row in model.imagined.tolist()]
    about = [data.enc.decode(row) for row in rows]
    return [[data.marks.bos, *row] for row, q in zip(rows, about)
            if not any(name in q for name in names)]


def alarms(model, mean, reached, asked):
    """(own questions heard by their own expert, strangers and namesakes heard by any): shares.
    Every person is given an expert, and gate.listen says who wakes."""
    model = sleeping(model)
    for k in range(PEOPLE):
        model.remember_things(mean[k:k + 1], reached[k:k + 1], FAST, k)
    rows, number = asked["own"]
    woken = listen(model, *pad_rows(rows))[0] >= 0
    heard = woken[torch.arange(len(rows)), number].float().mean().item()
    return [heard, *((listen(model, *pad_rows(asked[key]))[0] >= 0).any(1).float().mean().item()
                     for key in ("strangers", "namesakes"))]


def sleeping(model):
    """The self with a gate that knows nobody."""
    model.reset(FAST)
    return model


def line(found):
    heard, strangers, namesakes = found
    return f"{heard:.3f}   {(strangers + namesakes) / 2:.3f} ({strangers:.3f}, {namesakes:.3f})"


if __name__ == "__main__":
    common.run(measure, __doc__, __file__)
