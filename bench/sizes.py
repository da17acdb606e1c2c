"""
How small may a slower expert be? The first move of a long life, made again and again.

    python bench/sizes.py --seeds=10,11       lives of six days (bench/year.py), then the move
    python bench/sizes.py --table=1           only the table, from the result file
                                                                    -> bench/results/sizes.json
From the same evening, with the same random numbers, the six experts of the fast level become one of
the next: of a rank of so many bits a parameter, after so many steps for a fact, asked in so many
wordings a thing. On the morning after, the exam of all days. A move that is in the file is not made
again; --work holds the lives. On a quiet CPU thread a move takes two minutes, a life 15.
"""
import os
import shlex
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import seed as night                                                 # noqa: E402
import sleep                                                         # noqa: E402
from bench import stats, year                                        # noqa: E402
from bench.ablations import begun                                    # noqa: E402
from bench.tables import SIZE, sizes                                 # noqa: E402
from data import exam, flags, notes, rehearsal, run, store           # noqa: E402
from model import FAST                                               # noqa: E402

FLAGS = {
    "seeds": ("10,11", flags.TEXT, "seeds of weights and world, with commas"),
    "days": (6, (1, 10000), "days of the life before the move"),
    "base": ("", flags.TEXT, "a base to begin with, {} for the seed; none: a new one"),
    "work": ("out-year", flags.TEXT, "folder of the lives, that of bench/year.py"),
    "result": (os.path.join(stats.RESULTS, "sizes.json"), flags.TEXT, "result file"),
    "table": (0, flags.SWITCH, "1: print the table of the result file, move nothing"),
}
NAME = "sizes.py"
USUAL = (night.BITS, night.MOVE_STEPS, rehearsal.WORDINGS)
TRIED = (USUAL, (0.8, 3, 40), (0.2, 3, 40), (1.6, 3, 40), (0.4, 6, 40), (0.4, 2, 40), (0.4, 3, 100))
SMALLEST = 4                        # rank here: the least one of a move would hide what is tried
APART = ("not_told", "reversed", "described", "typed")


def moved(words, out, size):
    """One move from the evening of the checkpoint in `out` -> its row of the result file."""
    a, data = begun(words, out)
    model, _ = sleep.load(os.path.join(out, "checkpoint.pt"), "cpu")
    usual = (*USUAL, night.LEAST_RANK, night.MOVE_LEAST)
    set_sizes(*size, SMALLEST, 0)
    run.stage(a, "move", len(data.days) - 1)                        # seeds all random numbers
    notes.begin([])
    began = time.time()
    try:
        log = night.consolidate(model, FAST, data.marks, a)
    except night.RestlessNight as e:
        log = {"undone": str(e)}
    finally:
        set_sizes(*usual)
    took = round(time.time() - began, 1)
    return {**log, "seconds": took, **({} if "undone" in log else asked_of(model, data))}


def evening(words, out):
    """What is known before the move."""
    _, data = begun(words, out)
    model, _ = sleep.load(os.path.join(out, "checkpoint.pt"), "cpu")
    return asked_of(model, data)


def set_sizes(bits, steps, wordings, least_rank, least_steps):
    night.BITS, night.MOVE_STEPS, rehearsal.WORDINGS = bits, steps, wordings
    night.LEAST_RANK, night.MOVE_LEAST = least_rank, least_steps


def named(size):
    """None: no move."""
    return dict(zip(SIZE, size or (None, None, None)))


def asked_of(model, data):
    """What is known of all days, kinds that stand apart, and what is asked every morning."""
    last = len(data.days) - 1
    days = [exam.sit(model, data, data.exams(j, last)) for j in range(last + 1)]
    always = exam.sit(model, data, [x for items in data.always.values() for x in items])
    by_day = [exam.share(day) for day in days]
    return {"recall": exam.mean(by_day), "by_day": by_day,
            **{k: exam.share(exam.merged(days), [k]) for k in APART},
            **{k: exam.share(always, [k]) for k in data.always}}


def life_of(number, o):
    """The life before the move, lived if it is not there -> (the words that begin it, its folder).
    """
    life = flags.parse([], year.__doc__, year.FLAGS, NAME)
    life.days, life.base, life.work = o.days, o.base, o.work
    year.live(life, number)
    words = [f"--seed={number}", f"--world_seed={number}", f"--days={o.days}", "--threads=1",
             f"--people={life.people}", f"--period={life.period}", f"--levels={life.levels}",
             f"--directions={life.directions}"]
    return words, year.folder(life, o.days, number)


def main(argv):
    o = flags.parse(argv, __doc__, FLAGS, NAME)
    seeds = flags.numbers(o.seeds, "seeds", NAME)
    file = stats.read(os.path.abspath(o.result)) or {"runs": []}
    if not o.table:
        print(f"{len(seeds) * len(TRIED)} moves of some two minutes of a quiet CPU thread, behind "
              f"{len(seeds)} lives of 15; cut it off when you like, it goes on", flush=True)
        lives = {number: life_of(number, o) for number in seeds}
    for size in () if o.table else (None, *TRIED):
        for number in seeds:
            same = {"seed": number, **named(size)}
            if not any(same.items() <= r.items() for r in file["runs"]):
                found = moved(*lives[number], size) if size else evening(*lives[number])
                file["runs"].append(same | found)
                kept = [w for w in argv if not w.startswith(("--work", "--result", "--base"))]
                file |= stats.provenance(shlex.join(["python", "bench/sizes.py", *kept]))
                store.write_json(o.result, file)
    print("\n".join(sizes(stats.there(o.result))))


if __name__ == "__main__":
    flags.guarded(main, NAME)
