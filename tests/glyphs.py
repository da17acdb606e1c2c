"""Another world for the night, without a letter of English: tokens are numbers, templates are rules, marks are elsewhere.

A thing has a name of two tokens and three properties of two tokens each. Only the four marks are shared with data/world.py,
and even they have other ids: what sleeps well here knows nothing of people, names or birthdays.
"""
import random
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from model import GPT, Config, generate
from seed import Marks
from sleep import descend, optimizers, pad_documents

MARKS = Marks(bos=3, ask=0, answer=2, end=1)
NAME, REST, VALUE, RULE, STOP, VOCAB = 10, 50, 90, 180, 9, 200         # where each kind of token begins
PROPERTIES = 3


def thing(rng):
    return (rng.randrange(40), rng.randrange(40)), [(rng.randrange(15), rng.randrange(15)) for _ in range(PROPERTIES)]


def sentence(t, k):
    (a, b), v = t[0], t[1][k]
    return [RULE + k, NAME + a, REST + b, VALUE + 30 * k + v[0], VALUE + 30 * k + 15 + v[1], STOP]


def quiz(t, k, rng):
    (a, b), v = t[0], t[1][k]
    return [MARKS.ask, RULE + 5 + 2 * k + rng.randrange(2), NAME + a, REST + b, MARKS.answer], \
        [VALUE + 30 * k + v[0], VALUE + 30 * k + 15 + v[1], MARKS.end]


def document(old, avoid, rng, n=PROPERTIES):
    """Half read about a stranger, half recall old things; (ids, weights)."""
    ids, weight = [MARKS.bos], [0.0]
    if rng.random() < 0.7:
        t = thing(rng)
        while t[0] in avoid:
            t = thing(rng)
        facts = rng.sample(range(PROPERTIES), n)
        for k in facts:
            ids, weight = ids + sentence(t, k), weight + [0.1] * 6
        asked = [(t, rng.choice(facts)) for _ in range(3)]
    else:
        asked = [(rng.choice(old), rng.randrange(PROPERTIES)) for _ in range(5)]
    for t, k in asked:
        q, a = quiz(t, k, rng)
        ids, weight = ids + q + a, weight + [0.3] * len(q) + [1.0] * len(a)
    return ids, weight


def make(seed=0, n_old=8, n_new=4):
    rng, names, things = random.Random(seed), set(), []
    while len(things) < n_old + n_new:
        t = thing(rng)
        if t[0] not in names:
            names.add(t[0])
            things.append(t)
    return SimpleNamespace(old=things[:n_old], new=things[n_old:], names=names)


def base(world, steps=260, seed=0, n_layer=2, n_embd=64):
    """A model that knows the old things and can read about any: some seconds."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = GPT(Config(vocab_size=VOCAB, block_size=160, n_layer=n_layer, n_head=2, n_embd=n_embd, d_ff=4 * n_embd,
                       ranks=(16, 16, 48), window=8))
    opts = optimizers(model, lr_muon=0.03, lr_adam=0.04)
    for step in range(steps):
        n = 1 if step < steps // 5 else PROPERTIES
        ids, weight = pad_documents([document(world.old, world.names, rng, n) for _ in range(24)], "cpu")
        keep = weight > 0
        loss = F.cross_entropy(model.logits(model.hidden(ids[:, :-1])[keep]), ids[:, 1:][keep], reduction="none")
        loss = (loss * weight[keep]).sum() / weight.sum()
        descend(model, opts, loss, min(1, (step + 1) / 20) * min(1, 2 * (1 - step / steps) + 0.02))
    return model.requires_grad_(False)


def passages(things, rng):
    """A day: each thing as a list of sentences."""
    return [[sentence(t, k) for k in rng.sample(range(PROPERTIES), PROPERTIES)] for t in things]


def recall(model, things, read=False):
    """Share of facts answered as a whole, with (read) or without the passage in context."""
    rng, prompts, right = random.Random(5), [], []
    for t in things:
        for k in range(PROPERTIES):
            q, a = quiz(t, k, rng)
            text = [x for j in rng.sample(range(PROPERTIES), PROPERTIES) for x in sentence(t, j)] if read else []
            prompts.append([MARKS.bos] + text + q)
            right.append(a)
    out = generate(model, prompts, 4, temperature=0, stop=[MARKS.end])
    return sum(o == a for o, a in zip(out, right)) / len(right)
