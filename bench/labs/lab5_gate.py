"""
Lab 5: a gate, and its false alarms.

    python bench/labs/lab5_gate.py

QUESTION. An expert must wake when its own people are asked for, and for nobody else, though nothing
of its day is stored. The gate hears a question as a point x, the state of the pretrained self where
the name ends. A person is the mean m of a few such points. Near it, the expert wakes: but near in
which sense? Questions about one person differ by wording, too, and wording is loud.

    wake  if  |W (x - m)|^2 < reach,     W S W^T = 1          data/gate.py: fit_metric, whitening
    S = 1/N sum_i (x_i - m_k(i)) (x_i - m_k(i))^T             k(i): whom question i is about

S is what differs although the person is the same. It is learnt once, of people that nobody will
meet. A direction in which wordings differ much should count little.

WRITE `metric` below: W from such states. At most 10 lines. (A little of the identity times the mean
variance, 1 %, keeps S from being singular.)

THE NUMBER: the share of false alarms, on questions about strangers and namesakes, with the reach
that hears nine in ten of one's own. Goal: at most 0.3. Less than a minute, the base included.

OBSERVE. W = 1 hears everybody: what has been learnt? Whom do the false alarms come from, strangers
or namesakes? Move the reach along the curve that the lab prints: what does hearing all of one's own
cost? data/gate.py gives each person a reach of its own, up to nine tenths of the way to the nearest
question that the self has invented about others: what would that change where names lie close?
"""
import os
import sys

import random

import torch

sys.path.insert(0, os.path.abspath(os.path.join(__file__, "..", "..", "..")))
from bench.labs import common, village                               # noqa: E402
from data.engine import pad_rows                                     # noqa: E402
from data.gate import means, nearest, states                         # noqa: E402

GOAL, HEARD = 0.3, 0.9              # false alarms; own questions heard
PEOPLE, STRANGERS = 40, 400         # met; questions asked in vain
PRACTICE = 200                      # people that nobody will meet: of their questions W is learnt


def metric(x, person):
    """x (N, d): states; person (N,): whom each is about, 0, 1, 2, ... -> W (d, d)."""
    # --- your code: at most 10 lines ---
    raise NotImplementedError("W with W S W^T = 1, S the covariance around each person's mean, "
                              "at most 10 lines")


def measure(o):
    common.expect("metric", metric(torch.randn(40, 4), torch.arange(40) % 8), (4, 4))
    data, world = common.load_village(o)
    model, asked = common.base(o, data), scene(data, world, random.Random(o.seed))
    W = common.expect("metric", metric(places(model, data, *asked["practice"]),
                                       asked["practice"][1]), (64, 64))
    seen = ["reach such that  heard   false alarms (strangers, namesakes)"]
    for name, one in (("W = 1", torch.eye(64)), ("yours", W)):
        for share in (0.5, HEARD, 0.99):
            model.metric = one
            strangers, namesakes = alarms(model, data, asked, share)
            false = (strangers + namesakes) / 2
            seen.append(f"  {name:12} {share:8}   {false:.3f} ({strangers:.3f}, {namesakes:.3f})")
            if name == "yours" and share == HEARD:
                found = false
    return common.Result(found, f"at most {GOAL}", found <= GOAL, seen)


def scene(data, world, rng):
    """Questions as rows of ids: {"practice", "heard", "own": (rows, whose), "strangers",
    "namesakes": rows}. Two wordings are heard of everybody met, four others are asked."""
    taken, people = set(world["names"]), []
    while len(people) < PRACTICE + PEOPLE:
        people.append(village.somebody(rng, taken)[0])
        taken.add(people[-1])
    practice, met = people[:PRACTICE], people[PRACTICE:]

    def ask(name, relation, wording):
        q = " " + village.RELATIONS[relation].asked[wording].format(n=name)
        return [*data.marks.bos, *data.marks.ask, *data.enc.encode_ordinary(q), *data.marks.answer]

    def in_vain(like=False):
        while True:
            name = village.somebody(rng, taken)[0]
            if like:                                    # the first or the last name of somebody met
                (a, b), (c, d) = name.split(), rng.choice(met).split()
                name = f"{a} {d}" if rng.random() < 0.5 else f"{c} {b}"
            if name not in taken:
                return ask(name, rng.choice(list(village.RELATIONS)), rng.randrange(2))
    every = [(k, w) for k in village.RELATIONS for w in (0, 1)]
    parts = {"practice": (practice, every), "heard": (met, every[0:4:2]),
             "own": (met, [x for x in every if x not in every[0:4:2]])}
    asked = {key: ([ask(n, *x) for n in names for x in which],
                   torch.arange(len(names)).repeat_interleave(len(which)))
             for key, (names, which) in parts.items()}
    return {**asked, "strangers": [in_vain() for _ in range(STRANGERS)],
            "namesakes": [in_vain(like=True) for _ in range(STRANGERS)]}


@torch.no_grad()
def places(model, data, rows, person):
    """The state where the name of each question ends, (N, d): the last word that is a name."""
    ids, _ = pad_rows(rows)
    last = {data.enc.encode_ordinary(f" {word}")[0] for word in village.LAST}
    at = torch.tensor([max(i for i, t in enumerate(row) if t in last) for row in rows])
    return states(model, ids)[torch.arange(len(rows)), at]


@torch.no_grad()
def alarms(model, data, asked, heard):
    """Shares of strangers and of namesakes that come within reach of anybody met, the reach being
    such that a share `heard` of own questions is heard. Distances: gate.nearest."""
    rows, person = asked["heard"]
    mean, _ = means(places(model, data, rows, person) @ model.metric.T, person)
    rows, person = asked["own"]
    own = nearest(model, rows, mean)[0][torch.arange(len(rows)), person]
    reach = own.quantile(heard)
    return [(nearest(model, asked[key], mean)[0].amin(1) < reach).float().mean().item()
            for key in ("strangers", "namesakes")]


if __name__ == "__main__":
    common.run(measure, __doc__, __file__)
