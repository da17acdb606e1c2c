"""
What the labs share: a self that can read the village, quizzes, and how a lab ends.

A lab is a file with a page at its top, functions to be written (`# --- your code ---`), and
`measure(o) -> Result`. Solved, it prints its number and ends with 0; else with 1.
"""
import os
import random
import sys
import time
import traceback
from collections import namedtuple
from types import SimpleNamespace

import torch
from tqdm import tqdm

import sleep
from bench.labs import village
from data import exam, flags, gate
from data.flags import SEED, SOME, TEXT
from data.quizzes import RestlessNight, pack
from data.text import pad_documents
from model import GPT, Config

HERE = os.path.dirname(os.path.abspath(__file__))
BATCH = 16                          # documents a step of the base
RISE, FASTER = 20, 2                # steps of warm-up; times the peak rates of sleep.py
FLAGS = {  # name: (default, allowed, what it does), as in data/flags.py
    "out_dir": ("out/labs", TEXT, "where the base of the labs is kept"),
    "steps": (400, SOME, "of pretraining, from scratch, the first time"),
    "seed": (1, SEED, "of weights, sampling and village"),
    "threads": (0, (0, 4096), "CPU threads; 0: as many as torch likes"),
}
Result = namedtuple("Result", "number goal reached seen")
# number: what the lab measures, goal: what it should be, in words; seen: lines to think about


class NotYet(ValueError):
    """What was written runs, but is not what was asked for; the message says why, in one line."""


# --------------------------------------------------------------------------------------------------
# How a lab ends

def run(measure, doc, file):
    """A lab from the command line: its number, and exit status 0 if it is reached."""
    script = os.path.basename(file)
    o = flags.parse(sys.argv[1:], doc, FLAGS, script)
    torch.set_num_threads(o.threads or torch.get_num_threads())
    began = time.time()
    try:
        found = fresh(measure, o)
    except NotImplementedError as e:
        raise SystemExit(unwritten(e, script)) from None
    except NotYet as e:
        raise SystemExit(f"{script}: not yet: {e}") from None
    except RestlessNight as e:
        flags.fail(f"{e}: let the base learn for longer, --steps=400", script)
    except KeyboardInterrupt:
        raise SystemExit(f"{script}: interrupted: run it again") from None
    except OSError as e:
        flags.fail(f"{e.filename}: {e.strerror}: name another folder with --out_dir", script)
    print(*found.seen, sep="\n")
    print(f"\nyour number: {found.number:.4g}   the goal: {found.goal}   "
          f"{'reached' if found.reached else 'not yet'}   ({time.time() - began:.0f} s)")
    raise SystemExit(0 if found.reached else 1)


def fresh(measure, o):
    """measure(o), which draws the same numbers whatever ran before it."""
    random.seed(o.seed), torch.manual_seed(o.seed)
    return measure(o)


def unwritten(error, script):
    """The one line for a function that a student has still to write. An error of anyone else
    (torch raises NotImplementedError, too) is raised again."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    path = os.path.abspath(frame.filename)
    if os.path.dirname(path) != HERE:
        raise error
    where = os.path.join("bench", "labs", os.path.basename(path))
    return f"{script}: still to be written: {frame.name} in {where}, line {frame.lineno}: {error}"


def expect(name, found, shape):
    """Raises NotYet unless found is a tensor of this shape, of finite numbers."""
    if not isinstance(found, torch.Tensor):
        raise NotYet(f"{name} gave {type(found).__name__}, expected a tensor {tuple(shape)}")
    if found.shape != torch.Size(shape):
        raise NotYet(f"{name} gave a tensor {tuple(found.shape)}, expected {tuple(shape)}")
    if not found.isfinite().all():
        raise NotYet(f"{name} gave numbers that are not finite")
    return found


# --------------------------------------------------------------------------------------------------
# A self that reads the village

def load_village(o, days=4, people=6):
    """The village of this seed as a Data, and its people (village.make_world)."""
    a = SimpleNamespace(seed=o.seed, world_seed=o.seed, days=days, people=people)
    return village.load(a), village.make_world(o.seed, days, people)


def place_of_base(o):
    return os.path.join(o.out_dir, f"base-{o.seed}-{o.steps}.pt")


def base(o, data):
    """The self before its first day: from --out_dir, or pretrained there (half a minute)."""
    path = place_of_base(o)
    if os.path.isfile(path):
        return sleep.load(path, "cpu")[0]
    model = pretrained(data, o.steps, o.seed)
    os.makedirs(o.out_dir, exist_ok=True)
    sleep.save(path, model)
    return model


def pretrained(data, steps, seed):
    """A model of two blocks that knows the old villagers, reads about any, and says of others that
    nobody knows; and what its gate has to know (gate.learn_to_listen)."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = GPT(Config(vocab_size=data.enc.n_vocab, block_size=data.block_size, n_layer=2, n_head=2,
                       n_embd=64, d_ff=256, ranks=(16, 32, 48), hears=1))
    opts = sleep.optimizers(model)
    for group in (group for opt in opts for group in opt.param_groups):
        group["peak"] *= FASTER
    for step in tqdm(range(steps), desc="a base for the labs", unit="step", leave=False):
        share = step / steps
        docs = [data.document(rng, share) for _ in range(BATCH)]
        loss = sleep.document_loss(model, *pad_documents(docs))
        sleep.descend(model, opts, loss, min(1.0, (step + 1) / RISE, 2 * (1 - share) + 0.02))
    model.requires_grad_(False).eval()
    random.seed(seed), torch.manual_seed(seed)
    gate.learn_to_listen(model, data.marks)
    return model


def night_flags(*words):
    """The flags of a night in the village: as many steps as six people need."""
    return flags.parse(["--paper", "--quizzes=5", "--seed_steps=120", *words])


# --------------------------------------------------------------------------------------------------
# Quizzes and exams

def quizzes(data, items, device="cpu"):
    """Items (data/text.py) as Quizzes, closed book: question and answer as ids."""
    enc, marks = data.enc, data.marks
    return pack([(0, (*marks.ask, *enc.encode_ordinary(x.question), *marks.answer),
                  (*enc.encode_ordinary(x.answer), marks.end)) for x in items], device)


def known(model, data, items):
    """The share of Items that the self answers, by its own gate, nothing in its context."""
    return exam.share(exam.sit(model, data, items))


def in_all_wordings(facts):
    """[Item]: each fact of the village in every wording of its question."""
    return [village.Item("", " " + q.format(n=f.name), " " + f.value, "met")
            for f in facts for q in village.RELATIONS[f.relation].asked]
