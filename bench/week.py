"""
The default life, once a seed (of weights and of the world): what every kind of day is worth.

    python bench/week.py --seeds=1,2,3        -> bench/results/week.json and the table of the README
    python bench/week.py --table=1            only the table, from the file

A life that is finished is not lived again, one that was interrupted goes on (--work holds them).
"""
import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from bench import stats
from bench.tables import span, week
from data import flags

FLAGS = {
    "seeds": ("1,2,3", flags.TEXT, "seeds of weights and world, with commas"),
    "work": ("out-week", flags.TEXT, "folder of the lives"),
    "table": (0, flags.SWITCH, "1: print the table of the result file, live nothing"),
}
ALL = ["ACC", "BWT", "recall", "old_after", "reading_before", "reading_after"]


def live(seed, work):
    """One default life as a process of its own, as a person would start it; its summary."""
    folder = os.path.join(work, f"seed{seed}")
    summary = os.path.join(folder, "summary.json")
    if not os.path.isfile(summary):
        new = [f"--seed={seed}", f"--world_seed={seed}", "--contrast=0", "--threads=1"]
        begun = os.path.isfile(os.path.join(folder, "args.json"))
        command = [sys.executable, os.path.join(ROOT, "sleep.py"), f"--out_dir={folder}"]
        subprocess.run(command + (["--resume"] if begun else new), check=True, cwd=ROOT)
    with open(summary, encoding="utf-8") as f:
        return json.load(f)


def main(argv):
    o = flags.parse(argv, __doc__, FLAGS, "week.py")
    path = os.path.join(stats.RESULTS, "week.json")
    if not o.table:
        seeds = flags.numbers(o.seeds, "seeds", "week.py")
        runs = [live(seed, o.work) for seed in seeds]
        runs = [{k: v for k, v in run.items() if k != "command"} for run in runs]
        file = {**stats.provenance(f"python bench/week.py --seeds={o.seeds}"), "runs": runs}
        with open(path, "w", encoding="utf-8") as f:
            json.dump(file, f, indent=1)
    file = stats.read("week.json")
    if file is None:
        flags.fail("no bench/results/week.json yet: run without --table", "week.py")
    print("\n".join(week(file)))
    for key in ALL:
        print(f"{key}: {span(file['runs'], key)}")


if __name__ == "__main__":
    flags.guarded(main, "week.py")
