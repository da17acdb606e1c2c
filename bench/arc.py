"""
Few-shot reasoning by dreaming, on ARC: the self writes how it will learn from a task's few
demonstrations, tries it, and is taught by what worked ([S] = Language Models Need Sleep, arXiv
2606.03979, its few-shot experiment, after SEAL, arXiv 2506.10943).

    python bench/arc.py --data_dir=FOLDER --init_from=WEIGHTS    ARC as SEAL chose it; a card
    python bench/arc.py --data=arc1d --data_dir=FOLDER           1D-ARC, a small self from scratch
    python bench/arc.py --data=arc1d --data_dir=FOLDER --quick   does everything run? a minute
    python bench/arc.py --table                                  a result file again, as a table

A dream is a self-edit (bench/arc_edits.py): which flips, enlargements, repeats and chains of the
demonstrations to learn, with what loss, rate and epochs. It is tried on an isolated copy, a
throw-away low-rank expert that learns them leave-one-out; the reward is 1 if the copy then solves
the task's test. ReST-EM teaches the writer, another expert, the rewarded dreams. At the end
held-out tasks, nothing of whose outputs the self has seen:

    icl         the demonstrations in the context, greedy
    ttt         an expert learns them by a fixed recipe (arc_edits.RECIPE), a.test times
    tuned       by the recipe whose every option was rewarded most in the trials (no writer)
    dream       by a.test dreams of the writer before it was taught
    sleep       by a.test dreams of the writer after it

All learn with the same optimiser, at most --updates steps of --rows documents each. Success is the
share of (task, attempt) whose outputs are right to the last cell, as in SEAL; beside it any of
the attempts, and their majority. A task has to be right in all its tests.

As in SEAL the tasks are filtered (--filter): kept are those that the base does not solve in its
context and that some of four settings, learnt from their demonstrations, does solve. The filter
looks at their outputs: success is that on tasks *known to be learnable*, and icl is 0 by
construction. A task that does not fit the context counts as unsolved.

Of real weights only the path was tried, on small random Llamas and Qwens: for 1B on a card begin
with --dtype=bfloat16 --together=4 --writer_rows=2, and say what it took.

What the papers have and this has not: their weights; 11 tasks and 8 (SEAL's files hold 12 and 10,
which they used is not said); 60 dreams of which 45 are rejected ([S]; here 55 a round).
"""
import json
import os
import random
import sys
from collections import Counter
from functools import partial
from statistics import mean
from types import SimpleNamespace

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from data import run                                                 # noqa: E402  first: see there

import torch                                                         # noqa: E402
from tqdm import tqdm                                                # noqa: E402

import sleep                                                         # noqa: E402
from bench import arc_edits as E                                     # noqa: E402
from bench import arc_grids as G                                     # noqa: E402
from bench import arc_trials as T                                    # noqa: E402
from bench import arc_world, stats                                   # noqa: E402
from bench.arc_table import METHODS, PAPERS, told                    # noqa: E402
from data import flags, store, tokenizer, weights                    # noqa: E402
from data.flags import COUNT, SWITCH, TEXT                           # noqa: E402
from model import TRIAL                                              # noqa: E402

NAME = "arc.py"
SOME = (1, 10 ** 6)
FLAGS = {  # name: (default, allowed, what it does), as in data/flags.py
    "data": ("arc", ("arc", "arc1d"), "SEAL's tasks of ARC-AGI-1, or 1D-ARC"),
    "data_dir": ("data/arc", TEXT, "folder of the files"),
    "init_from": ("scratch", TEXT, "folder of weights with their tokenizer; scratch: a small self"),
    "seeds": ("1,2,3", TEXT, "seeds: of the self from scratch, the choice of tasks, all sampling"),
    "train": (11, SOME, "tasks to learn to dream on, at most"),
    "held": (8, SOME, "held-out tasks, at most"),
    "pool": (8, SOME, "1D-ARC: tasks of each type that the filter looks at"),
    "filter": (1, SWITCH, "0: all tasks, learnable or not"),
    "dreams": (5, SOME, "dreams of each task in a round of ReST-EM"),
    "rounds": (2, (1, 100), "rounds of ReST-EM"),
    "lessons": (6, SOME, "times 16 steps of the writer in a round"),
    "writer_rows": (8, SOME, "dreams in such a step"),
    "test": (5, SOME, "attempts at a held-out task"),
    "updates": (48, SOME, "steps of learning a task, at most"),
    "rows": (2, SOME, "documents in such a step"),
    "together": (16, SOME, "copies that learn side by side: fewer need less memory"),
    "base": (0, COUNT, "from scratch: seed of the small self; 0: each seed has its own"),
    "rank": (16, (1, 1024), "rank of the experts"),
    "layers": (3, (1, 64), "from scratch: blocks"),
    "width": (96, (32, 4096, 32), "from scratch: width"),
    "steps": (1500, COUNT, "from scratch: steps of pretraining"),
    "row": (20, (6, 20), "from scratch: cells of the longest row it is pretrained on"),
    "work": ("out-arc", TEXT, "folder where a run is kept, and goes on"),
    "result": ("", TEXT, "result file (default: bench/results/arc1d.json or arc.json)"),
    "device": ("auto", ("auto", "cpu", "cuda", "mps"), "where to run"),
    "dtype": ("float32", ("float32", "bfloat16"), "of the weights of --init_from"),
    "table": (False, SWITCH, "print the result file and end"),
    "quick": (False, SWITCH, "one seed, a tiny self, few tasks, in --work")}
QUICK = {"seeds": "1", "steps": 600, "layers": 2, "width": 64, "row": 16, "train": 4, "held": 3,
         "pool": 1, "filter": 0, "updates": 24, "dreams": 4, "rounds": 1, "lessons": 1, "test": 2}
READING, LEARNING = 0.08, 0.4       # seconds of a step and of a learning, at the default sizes
FILTERS = [{**E.RECIPE, "turns": "0", "colours": colours, "rate": rate}
           for colours in "01" for rate in ("0.1", "0.3")]


def main(argv):
    a = parse(argv)
    if a.table:
        return print(told(stats.read(a.result) or flags.fail(f"no {a.result} yet", NAME)))
    pools = pools_of(a)                                     # all that can fail comes first
    chosen = None if a.init_from == "scratch" else weighty(a)
    print(f"{a.data}: {sum(map(len, pools(a.seeds[0])))} tasks, seeds {a.seed_words}, on "
          f"{run.name_of(a.torch_device)}. {expectation(a, pools)} Kept in {a.work}: the same "
          "command goes on after an interruption.", flush=True)
    book = opened(a)
    for seed in a.seeds:
        one_seed(a, book, seed, pools(seed), chosen)
        publish(a, book)
    print(told(stats.read(a.result)))


def expectation(a, pools):
    """How much there is to do, in words."""
    looked = sum(map(len, pools(a.seeds[0])))
    n = looked * len(FILTERS) * a.filter + a.train * a.dreams * a.rounds + 4 * a.held * a.test
    read = f"{a.steps} steps of reading, then " if a.init_from == "scratch" else ""
    took = f" (about {(a.steps * READING + n * LEARNING) / 60:.0f} minutes of a CPU thread)"
    return f"Each seed: {read}at most {n} learnings of a task{took if read else ''}."


def parse(argv):
    a = flags.parse(argv, __doc__, FLAGS, NAME, QUICK)
    a.seed_words, a.seeds = a.seeds, flags.numbers(a.seeds, "seeds", NAME)
    if a.data == "arc" and a.init_from == "scratch":
        flags.fail("--data=arc needs weights that can read grids of two dimensions: give their "
                   "folder with --init_from, or take --data=arc1d", NAME)
    shown = "quick.json" if a.quick else {"arc": "arc.json", "arc1d": "arc1d.json"}[a.data]
    a.result = a.result or os.path.join(a.work if a.quick else stats.RESULTS, shown)
    a.torch_device = run.device_of(a)
    words = {k: "FOLDER" if k in ("data_dir", "init_from") and v != "scratch" else v
            for k, v in flags.given(argv).items() if k not in ("work", "result", "device")}
    a.command = f"python bench/arc.py {flags.pasted(**words)}"
    return a


# --------------------------------------------------------------------------------------------------
# One seed: base, filter, trials and lessons, held-out tasks; each step is kept when it is done

def one_seed(a, book, seed, pools, weights_of):
    me = base_of(a, seed, weights_of)
    kept = book["runs"].setdefault(str(seed), {})
    once = partial(remembered, a, book, kept, seed)
    bar = partial(tqdm, leave=False, unit="task", mininterval=1.0)
    looks = [[(t, once(f"filter {t.kind} {t.name}", look, me, t, a)) for t in bar(pool, desc=what)]
             for pool, what in zip(pools, ("filter", "filter held-out"))]
    train, held = (choose(found, n, a, seed) for found, n in zip(looks, (a.train, a.held)))
    kept["chosen"] = {"train": [f"{t.kind} {t.name}" for t in train],
                      "held": [f"{t.kind} {t.name}" for t in held]}
    if not train or not held:
        tqdm.write(f"  seed {seed}: the filter left {len(train)} tasks to train and {len(held)} "
                   "held out: nothing to learn; look at more with --pool, or read more (--steps)")
        return
    for t in bar(held, desc="before"):                      # the writer is not taught as yet
        once(f"dream {t.kind} {t.name}", by_dreams, me, t, a, False)
    trials = []
    for r in range(a.rounds):
        now = []
        for i, t in enumerate(bar(train, desc=f"dreams, round {r + 1}")):
            found = once(f"trial {r} {t.kind} {t.name}", trial, me, t, a)
            now += [(i, edit, reward) for edit, reward in found]
        trials += now
        path = os.path.join(a.work, f"writer-{seed}-{r}.pt")
        me = taught(me, path, seed, r, partial(T.teach_writer, tasks=train, trials=now, a=a))
    recipe = kept["recipe"] = T.tuned_recipe(trials)
    for t in bar(held, desc="held out"):
        name = f"{t.kind} {t.name}"
        once(f"icl {name}", in_context, me, t)
        once(f"ttt {name}", by_recipe, me, t, a, E.RECIPE)
        once(f"tuned {name}", by_recipe, me, t, a, recipe)
        once(f"sleep {name}", by_dreams, me, t, a, True)


def remembered(a, book, kept, seed, key, make, *args):
    """make(*args), once: what it gave is kept in the book. Each is seeded by its key alone, so an
    interrupted run goes on to the same numbers."""
    if key not in kept:
        run.stage(SimpleNamespace(seed=seed), key)
        kept[key] = make(*args)
        store.write_json(os.path.join(a.work, "book.json"), book)
    return kept[key]


def look(me, task, a):
    """What the filter wants to know: {"fits", "icl", "learnt": [is it, with each of FILTERS?]}."""
    if not T.fits(me, task):
        return {"fits": False, "icl": 0, "learnt": []}
    icl = T.right(task, T.answered(me, task)[0])
    if icl or not a.filter:
        return {"fits": True, "icl": icl, "learnt": []}
    tried = T.attempt(me, task, FILTERS, a, random)
    return {"fits": True, "icl": icl, "learnt": [T.right(task, answers) for answers in tried]}


def choose(found, n, a, seed):
    """n of the tasks that the filter leaves, at random; of 1D-ARC of many types: in turn."""
    left = [t for t, seen in found if not a.filter or any(seen["learnt"])]
    random.Random(f"{seed} choose").shuffle(left)
    nth, count = {}, Counter()
    for t in left:
        nth[t.kind, t.name], count[t.kind] = count[t.kind], count[t.kind] + 1
    return sorted(left, key=lambda t: nth[t.kind, t.name] if t.kind else 0)[:n]


def trial(me, task, a):
    """Dreams of this task and their rewards: [[self-edit, reward]]."""
    edits = T.dreams(me, task, a.dreams, True)
    return [[edit, T.right(task, answers)]
            for edit, answers in zip(edits, T.tried(me, task, edits, a))]


def by_dreams(me, task, a, awake):
    edits = T.dreams(me, task, a.test, awake)
    return {"edits": edits, **T.graded(task, T.tried(me, task, edits, a))}


def by_recipe(me, task, a, recipe):
    return T.graded(task, T.tried(me, task, [recipe] * a.test, a))


def in_context(me, task):
    return T.graded(task, T.answered(me, task) if T.fits(me, task) else [[None]])


# --------------------------------------------------------------------------------------------------
# The self, the tasks, and what is kept of a run

def pools_of(a):
    """pools(seed) -> (tasks to train on, tasks held out). 1D-ARC: half of its types each, which
    half is a matter of the seed."""
    if a.data == "arc":
        both = G.seal(a.data_dir, "training"), G.seal(a.data_dir, "evaluation")
        return lambda seed: both
    tasks = G.one_dimensional(a.data_dir)
    kinds = sorted({t.kind for t in tasks})

    def pools(seed):
        rng = random.Random(f"{seed} pools")
        mixed = rng.sample(kinds, len(kinds))
        some = {k: rng.sample(own, min(a.pool, len(own)))
                for k in mixed for own in [[t for t in tasks if t.kind == k]]}
        middle = len(mixed) // 2
        return [[t for k in part for t in some[k]] for part in (mixed[:middle], mixed[middle:])]
    return pools


def weighty(a):
    """The self of --init_from. Raises ValueError or OSError."""
    if not os.path.isdir(a.init_from):
        raise ValueError(f"--init_from={a.init_from}: there is no such folder")
    enc = tokenizer.of_weights(a)
    if enc is None:
        raise ValueError(f"--init_from={a.init_from}: no tokenizer there: put its tokenizer.json "
                         "beside the weights")
    model = weights.from_pretrained(a.init_from, (a.rank,) * 3, extra_tokens=len(E.bpe.SPECIAL),
                                    dtype=getattr(torch, a.dtype))
    if model.config.vocab_size != enc.n_vocab:
        raise ValueError(f"{a.init_from}: weights of {model.config.vocab_size} words with a "
                         f"tokenizer of {enc.n_vocab}: they do not belong together")
    return T.self_of(model.to(a.torch_device), E.own_format(enc))


def base_of(a, seed, given):
    """The self before it learns to dream; from scratch: made once, kept in the folder."""
    seed = a.base or seed
    if given is not None:
        given.model.reset(TRIAL)                            # what an earlier seed has taught it
        return given
    f, path = E.tiny_format(), os.path.join(a.work, f"base-{seed}.pt")
    if os.path.isfile(path):
        return T.self_of(sleep.load(path, a.torch_device)[0], f)
    model = arc_world.pretrained(f, a, seed, os.path.join(a.work, f"reading-{seed}.pt"))
    sleep.save(path, model)
    return T.self_of(model, f)


def taught(me, path, seed, r, teach):
    """The self whose writer was taught in round r; loaded where that was done before."""
    levels = [block.levels[TRIAL] for block in me.model.blocks]
    if os.path.isfile(path):
        for level, (A, B) in zip(levels, store.load(path, me.model.device)[0]["writer"]):
            level.A, level.B = A, B
        return me
    run.stage(SimpleNamespace(seed=seed), "writer", r)
    loss = teach(me)
    store.save(path, {"writer": [(level.A, level.B) for level in levels], "loss": loss})
    return me


def opened(a):
    """What the folder holds of this run, {"args", "runs"}; another run's is refused."""
    try:
        a.lock = store.occupy(a.work)
    except ValueError as e:
        raise ValueError(str(e).replace("out_dir", "work")) from None
    mine = {k: getattr(a, k) for k in FLAGS if k not in
            ("seeds", "data_dir", "work", "result", "table", "device", "together")}
    path = os.path.join(a.work, "book.json")
    book = {"args": mine, "runs": {}}
    if os.path.isfile(path):
        try:
            with open(path, encoding="utf-8") as file:
                book = G.named(path, "the file", json.load(file))
            other = [k for k in mine if book["args"].get(k) != mine[k]]
        except (ValueError, KeyError, AttributeError) as e:
            raise ValueError(f"{path} is damaged ({type(e).__name__}): take the folder away, or "
                             "choose another --work") from None
        if other:
            raise ValueError(f"{a.work} holds a run with --{other[0]}={book['args'].get(other[0])}"
                             ": take it away, choose another --work, or give the same flags")
    return book


# --------------------------------------------------------------------------------------------------
# Numbers

def publish(a, book):
    """The result file: every seed that is finished, with every task's attempts."""
    done = {s: summary(book["runs"].get(str(s), {})) for s in a.seeds}
    store.write_json(a.result, {
        **stats.provenance(a.command), "args": book["args"],
        "device": run.name_of(a.torch_device), "papers": PAPERS,
        "seeds": {str(s): numbers for s, numbers in done.items() if numbers},
        "nothing learnable": [s for s in a.seeds if "chosen" in book["runs"].get(str(s), {})
                              and not done[s]]})


def summary(kept):
    """The numbers of one seed, {} if it is not finished.

    success: share of (task, attempt) that is right; any, vote: share of tasks that any attempt, the
    majority of the attempts solves. looked: of each type what the filter saw. trials: dreams and
    their rewards, a list a round."""
    held = kept.get("chosen", {}).get("held", [])
    if not held or any(f"sleep {name}" not in kept for name in held):
        return {}
    success = {}
    for m in METHODS:
        seen = [kept[f"{m} {name}"] for name in held]
        success[m] = {"success": mean(mean(r["right"]) for r in seen),
                      "any": mean(max(r["right"]) for r in seen),
                      "vote": mean(r["vote"] for r in seen)}
    looked = {key: r for key, r in kept.items() if key.startswith("filter ")}
    rounds = [[t for key, found in kept.items() if key.startswith(f"trial {r} ") for t in found]
              for r in range(100)]
    return {"success": success, "chosen": kept["chosen"], "recipe": kept["recipe"],
            "looked": len(looked), "too long": sum(not r["fits"] for r in looked.values()),
            "icl of all": mean(r["icl"] for r in looked.values()),
            "learnable": sum(any(r["learnt"]) for r in looked.values()),
            "trials": [{"dreams": len(now), "rejected": sum(not r for _, r in now)}
                       for now in rounds if now],
            "tasks": {key: r for key, r in kept.items() if key not in ("chosen", "recipe")}}


def guarded(argv):
    try:
        main(argv)
    except torch.OutOfMemoryError:
        flags.fail("out of memory: lower --together, --rows or --writer_rows and run the same "
                   "command again in another --work", NAME)


if __name__ == "__main__":
    flags.guarded(guarded, NAME)
