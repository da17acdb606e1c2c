"""
A small self for bench/arc.py, where nobody has a card: pretrained here, from scratch, on rows of
colours that change by rules of our own.

No rule here is one of 1D-ARC's eighteen (they move to the right, fill, hollow, denoise, flip,
mirror, copy patterns, recolour by size, scale up to a wall): those stay unseen. A document is three
or four examples of one rule, input and output in turn; after some comes a self-edit with settings
at random, so that the self knows how one is written, and not which is good.
"""
from functools import partial
from types import SimpleNamespace

import sleep
from bench.arc_edits import any_edit, document, edit_ids
from data import run, store
from model import GPT, Config

COLOURS = range(1, 10)
EDITS = 0.1                         # share of the documents with a self-edit behind the examples
READ = 0.05                         # weight of the cells of an input; of an output: 1
BLOCK = 192                         # ids of a context: about half of 1D-ARC fits


# --------------------------------------------------------------------------------------------------
# Rules: a row of colours (0: empty) -> another row of the same length

def blocks(row):
    """[(begin, end)] of the runs of cells that are not empty."""
    edges = [i for i in range(len(row) + 1)
             if (i > 0 and row[i - 1] > 0) != (i < len(row) and row[i] > 0)]
    return list(zip(edges[::2], edges[1::2]))


def painted(row, cells):
    """row with {place: colour} painted where the place is on it."""
    return [cells.get(i, colour) for i, colour in enumerate(row)]


def only(row, block):
    return [c if block[0] <= i < block[1] else 0 for i, c in enumerate(row)]


def recolour(rng):
    colours = [0, *rng.sample(COLOURS, 9)]
    return lambda row: [colours[c] for c in row]


def to_the_left(rng):
    k = rng.randint(1, 4)
    return lambda row: row[k:] + row[:k]


def turned_round(rng):
    return lambda row: row[::-1]


def heads(rng):
    c = rng.choice(COLOURS)
    return lambda row: painted(row, {b: c for b, _ in blocks(row)})


def tails(rng):
    c = rng.choice(COLOURS)
    return lambda row: painted(row, {e - 1: c for _, e in blocks(row)})


def shadows(rng):
    c = rng.choice(COLOURS)
    return lambda row: painted(row, {e: c for _, e in blocks(row)})


def grown(rng):
    return lambda row: painted(row, {b - 1: row[b] for b, _ in blocks(row)})


def shrunk(rng):
    return lambda row: painted(row, {b: 0 for b, _ in blocks(row)})


def background(rng):
    c = rng.choice(COLOURS)
    return lambda row: [c if old == 0 else old for old in row]


def negative(rng):
    c = rng.choice(COLOURS)
    return lambda row: [0 if old else c for old in row]


def first(rng):
    return lambda row: only(row, (blocks(row) or [(0, 0)])[0])


def last(rng):
    return lambda row: only(row, (blocks(row) or [(0, 0)])[-1])


def longest(rng):
    return lambda row: only(row, max(blocks(row) or [(0, 0)], key=lambda b: b[1] - b[0]))


RULES = [recolour, to_the_left, turned_round, heads, tails, shadows, grown, shrunk, background,
         negative, first, last, longest]


def row_of(rng, length, one_colour):
    """A row with some blocks of colour between empty cells."""
    row, i, c = [0] * length, rng.randint(0, length // 3), rng.choice(COLOURS)
    while i < length:
        size = rng.choice((1, 1, 2, 3, 4, 6, 8, 12))
        colour = c if one_colour else rng.choice(COLOURS)
        for j in range(i, min(i + size, length)):
            row[j] = colour
        i += size + rng.randint(1, 6) + (rng.random() < 0.3) * length
    return row


def task(rng, examples=4, longest_row=32):
    """[(input, output)] grids of one rule, or of two one after the other."""
    rules = [rng.choice(RULES)(rng) for _ in range(1 + (rng.random() < 0.25))]
    length, one_colour = rng.randint(6, longest_row), rng.random() < 0.5
    pairs = []
    for _ in range(examples):
        row = out = row_of(rng, length, one_colour)
        for rule in rules:
            out = rule(out)
        pairs.append(([row], [out]))
    return pairs


# --------------------------------------------------------------------------------------------------
# The self

def weighed(f, pairs, asked=(), edit=()):
    """A document as (ids, the weight of each in the loss)."""
    ids, parts = zip(*document(f, pairs, asked))
    weights = [(0.0, READ, 1.0)[part] for part in parts]
    return [*ids, *edit], weights + [1.0] * len(edit)


def lesson(f, longest, rng, share):
    """A document to pretrain on; its rows have `longest` cells at most."""
    pairs = task(rng, longest_row=longest)
    if rng.random() > EDITS:
        return weighed(f, pairs)
    return weighed(f, pairs[:3], f.enc.encode_ordinary(f.asked), edit_ids(f, any_edit(rng)))


def pretrained(f, a, seed, half):
    """A self from scratch that has read a.steps steps of lessons; goes on from the file `half`.

    a: layers, width, rank, row (cells of the longest row), steps, torch_device."""
    config = Config(vocab_size=f.enc.n_vocab, block_size=BLOCK, n_layer=a.layers,
                    n_head=a.width // 32, n_embd=a.width, d_ff=4 * a.width,
                    ranks=(a.rank, a.rank, a.rank), hears=0)
    how = SimpleNamespace(seed=seed, resume=True, pretrain_steps=a.steps,
                          torch_device=a.torch_device)
    run.stage(how, "base")
    model = GPT(config).to(a.torch_device)
    lessons = SimpleNamespace(document=partial(lesson, f, a.row))
    sleep.pretrain(how, model, lessons, half)
    store.remove(half)
    return model
