"""
The default life, once a seed (of weights and of the world): what every kind of day is worth.

    python bench/week.py --seeds=1,2,3        -> bench/results/week.json and the table of the README
    python bench/week.py --crowd=40           one day of forty people from each of these bases
                                                                            -> crowd.json
    python bench/week.py --arch=gpt2          the week of a plain transformer  -> arch-gpt2.json
    python bench/week.py --moves=1            with the move of the seventh night (--period=7)
                                                                            -> moves.json
    python bench/week.py --table=1            only the table, from the file

A life that is finished is not lived again, one that was interrupted goes on (--work holds them).
"""
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from bench import stats
from bench.tables import span, week
from data import flags
from model import ARCHITECTURES

FLAGS = {
    "seeds": ("1,2,3", flags.TEXT, "seeds of weights and world, with commas"),
    "crowd": (0, flags.COUNT, "people of the one day that each base lives; 0: the week"),
    "arch": ("ours", tuple(ARCHITECTURES), "of the self"),
    "moves": (0, flags.SWITCH, "1: with the move of the seventh night (--period=7)"),
    "steps": (0, flags.COUNT, "of pretraining; 0: as many as by default"),
    "device": ("auto", ("auto", "cpu", "cuda"), "where to live"),
    "at_once": (1, (1, 64), "lives side by side, a thread each"),
    "base": ("", flags.TEXT, "a base to begin with, {} for the seed; none: a new one"),
    "work": ("out-week", flags.TEXT, "folder of the lives"),
    "table": (0, flags.SWITCH, "1: print the table of the result file, live nothing"),
}
ALL = ["ACC", "BWT", "recall", "old_after", "reading_before", "reading_after"]


def live(seed, folder, device, *new):
    """One life as a process of its own, as a person would start it; its summary."""
    summary = os.path.join(folder, "summary.json")
    if not os.path.isfile(summary):
        new = [f"--seed={seed}", f"--world_seed={seed}", "--contrast=0", "--threads=1", *new]
        begun = os.path.isfile(os.path.join(folder, "args.json"))
        command = [sys.executable, os.path.join(ROOT, "sleep.py"), f"--out_dir={folder}"]
        command += ["--resume"] if begun else [*new, f"--device={device}"]
        subprocess.run(command, check=True, cwd=ROOT)
    with open(summary, encoding="utf-8") as f:
        return {k: v for k, v in json.load(f).items() if k != "command"}    # it names a folder


def life_of(o, seed):
    """The summary of a default life, or of one crowded day lived from its base."""
    name = f"seed{seed}" if o.arch == "ours" else f"{o.arch}-seed{seed}"
    name += "-moves" * o.moves
    folder = os.path.abspath(os.path.join(o.work, name))
    week_long = live(seed, folder, o.device, f"--arch={o.arch}", *["--period=7"] * o.moves,
                     *[f"--pretrain_steps={o.steps}"] * bool(o.steps),
                     *[f"--init_from={o.base.replace('{}', str(seed))}"] * bool(o.base))
    if not o.crowd:
        return week_long
    return live(seed, f"{folder}-crowd", o.device, f"--init_from={folder}/base.pt", "--days=1",
                f"--people={o.crowd}")


def main(argv):
    o = flags.parse(argv, __doc__, FLAGS, "week.py")
    if o.crowd and o.arch != "ours":
        flags.fail("--crowd is lived by our architecture alone: leave --arch out", "week.py")
    if o.moves and (o.crowd or o.arch != "ours"):
        flags.fail("--moves=1 is a week of our own architecture: leave the rest out", "week.py")
    plain = "moves.json" if o.moves else None if o.arch == "ours" else f"arch-{o.arch}.json"
    path = os.path.join(stats.RESULTS, plain or ("crowd.json" if o.crowd else "week.json"))
    if not o.table:
        seeds = flags.numbers(o.seeds, "seeds", "week.py")
        with ThreadPoolExecutor(o.at_once) as side_by_side:
            runs = list(side_by_side.map(partial(life_of, o), seeds))
        kept = [word for word in argv if not word.startswith(("--work", "--base"))]
        file = {**stats.provenance(shlex.join(["python", "bench/week.py", *kept])), "runs": runs}
        with open(path, "w", encoding="utf-8") as f:
            json.dump(file, f, indent=1)
    file = stats.read(plain or "week.json")
    if file is None:
        flags.fail(f"no bench/results/{plain or 'week.json'} yet: run without --table", "week.py")
    print("\n".join(week(file, None if plain else stats.read("crowd.json"))))
    for key in ALL:
        print(f"{key}: {span(file['runs'], key)}")


if __name__ == "__main__":
    flags.guarded(main, "week.py")
