"""Another world for the night, without a letter of English: tokens are numbers, templates rules,
marks are elsewhere.

A thing has a name of two tokens and three properties of two tokens each. Only the four marks are
shared with data/world.py, and even they have other ids: what sleeps well here knows nothing of
people, names or birthdays.
"""
import functools
import random
from types import SimpleNamespace

import torch

from data.engine import generate
from data.gate import answer, learn_to_listen
from data.text import Day, Marks, begun, pad_documents
from model import GPT, Config
from sleep import descend, document_loss, optimizers

MARKS = Marks(bos=(3,), ask=(0,), answer=(2,), end=1)
NAME, REST, VALUE, RULE, STOP, UNKNOWN, VOCAB = 10, 40, 70, 160, 9, 8, 180  # where tokens begin
PROPERTIES, STEPS = 3, 260           # STEPS of pretraining, after which it reads


def thing(rng, avoid=()):
    """(name, properties): of a thing that is none of those to avoid."""
    while True:
        name = (rng.randrange(30), rng.randrange(30))
        if name not in avoid:
            return name, [(rng.randrange(15), rng.randrange(15)) for _ in range(PROPERTIES)]


def words(t, k):
    (a, b), v = t[0], t[1][k]
    return [NAME + a, REST + b], [VALUE + 30 * k + v[0], VALUE + 30 * k + 15 + v[1]]


def sentence(t, k):
    name, value = words(t, k)
    return [RULE + k, *name, *value, STOP]


def quiz(t, k, rng, known=True):
    """(question, answer) as ids, in one of two wordings."""
    name, value = words(t, k)
    rule = RULE + 5 + 2 * k + rng.randrange(2)
    return [*MARKS.ask, rule, *name, *MARKS.answer], [*(value if known else [UNKNOWN]), MARKS.end]


def document(old, avoid, rng, share=1.0):
    """Two of three are read, about one or two strangers; the others recall old things, and say of
    strangers that they are unknown. (ids, weights)"""
    ids, weight, asked = [*MARKS.bos], [0.0], []
    if rng.random() < 0.67:
        for t in [thing(rng, avoid) for _ in range(1 + (share > 0.3 and rng.random() < 0.5))]:
            told = rng.sample(range(PROPERTIES), rng.choice([2, 3]))
            for k in told:
                ids, weight = ids + sentence(t, k), weight + [0.1] * 6
            asked += [(t, k, k in told) for k in rng.sample(range(PROPERTIES), PROPERTIES)]
    else:
        asked += [(rng.choice(old), rng.randrange(PROPERTIES), True) for _ in range(5)]
        asked += [(thing(rng, avoid), rng.randrange(PROPERTIES), False) for _ in range(2)]
    for t, k, known in rng.sample(asked, len(asked)):
        q, a = quiz(t, k, rng, known)
        q = q[begun(ids, MARKS):]
        ids, weight = ids + q + a, weight + [0.3] * len(q) + [1.0] * len(a)
    return ids, weight


def make(seed=0, n_old=8, n_new=6):
    rng, things = random.Random(seed), {}
    while len(things) < n_old + n_new:
        name, properties = thing(rng, things)
        things[name] = properties
    things = list(things.items())
    return SimpleNamespace(old=things[:n_old], new=things[n_old:], names={t[0] for t in things})


def base(world, steps=300, seed=0, n_layer=2, n_embd=64):
    """A model that knows the old things, can read about any, and says of others that it does not
    know: some seconds."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = GPT(Config(vocab_size=VOCAB, block_size=256, n_layer=n_layer, n_head=2, n_embd=n_embd,
                       d_ff=4 * n_embd, ranks=(16, 32, 48), hears=1))
    opts = optimizers(model)
    for group in (group for opt in opts for group in opt.param_groups):
        group["peak"] *= 2
    for step in range(steps):
        learn(model, opts, world, rng, step / steps, min(1.0, (step + 1) / 20))
    return listening(model, seed)


def learn(model, opts, world, rng, share, rise):
    """A step of pretraining."""
    docs = [document(world.old, world.names, rng, share) for _ in range(16)]
    loss = document_loss(model, *pad_documents(docs))
    descend(model, opts, loss, min(rise, 2 * (1 - share) + 0.02))


def listening(model, seed=0):
    model.requires_grad_(False).eval()
    random.seed(seed), torch.manual_seed(seed)
    learn_to_listen(model, MARKS)
    return model


def with_other_marks(base, world, steps=120):
    """The same self, used to the MARKS of now, whichever it learnt to read with."""
    model, rng = GPT(base.config), random.Random(0)
    known = base.state_dict()
    weights = {name: known[name] for name, _ in model.named_parameters()}
    model.load_state_dict({**model.state_dict(), **weights})
    opts = optimizers(model)
    for step in range(steps):
        learn(model, opts, world, rng, 0.4 + 0.6 * step / steps, (step + 1) / 10)
    return listening(model)


@functools.cache
def shared_base():
    """The base of the world made by make(), trained once for all tests: clone it."""
    return base(make(), steps=STEPS)


def passages(things, rng):
    """A day: each thing as a list of sentences."""
    return [[sentence(t, k) for k in rng.sample(range(PROPERTIES), PROPERTIES)] for t in things]


def day(things, seed=0):
    return Day(passages(things, random.Random(seed)), [])


def recall(model, things, read=False):
    """Share of facts answered as a whole, with (read) or without the passage in context."""
    rng, texts, asked, right = random.Random(5), [], [], []
    for t in things:
        for k in range(PROPERTIES):
            q, a = quiz(t, k, rng)
            told = [x for j in rng.sample(range(PROPERTIES), PROPERTIES) for x in sentence(t, j)]
            texts.append([*MARKS.bos, *told, *q])
            asked.append(q)
            right.append(a)
    if read:
        said = generate(model, texts, 4, temperature=0, stop=[MARKS.end])
    else:
        said = [y for y, _ in answer(model, MARKS, asked, max_new=4)]
    return sum(y == a for y, a in zip(said, right)) / len(right)
