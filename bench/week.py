"""
The default life, once a seed (of weights and of the world): what every kind of day is worth.

    python bench/week.py --seeds=1,2,3        -> bench/results/week.json and the table of the README
    python bench/week.py --table=1            only the table, from the file
    python bench/week.py --crowd=40           one day of 40 people  -> bench/results/crowd.json

A life that is finished is not lived again, one that was interrupted goes on (--work holds them).
A crowd is met by the bases of the weeks that --work holds, which must have been lived before.
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
    "crowd": (0, flags.COUNT, "people of one day that is lived instead of the week; 0: the week"),
}
ALL = ["ACC", "BWT", "recall", "old_after", "reading_before", "reading_after"]


def live(seed, work, crowd=0):
    """One default life as a process of its own, as a person would start it; its summary."""
    folder, new = os.path.join(work, f"seed{seed}"), []
    if crowd:
        base = os.path.abspath(os.path.join(folder, "base.pt"))
        if not os.path.isfile(base):
            flags.fail(f"no {base}: live the weeks first (without --crowd)", "week.py")
        folder = os.path.join(work, f"crowd{seed}")
        new = [f"--init_from={base}", f"--people={crowd}", "--days=1"]
    summary = os.path.join(folder, "summary.json")
    if not os.path.isfile(summary):
        new += [f"--seed={seed}", f"--world_seed={seed}", "--contrast=0", "--threads=1"]
        begun = os.path.isfile(os.path.join(folder, "args.json"))
        command = [sys.executable, os.path.join(ROOT, "sleep.py"), f"--out_dir={folder}"]
        subprocess.run(command + (["--resume"] if begun else new), check=True, cwd=ROOT)
    with open(summary, encoding="utf-8") as f:
        return json.load(f)


def main(argv):
    o = flags.parse(argv, __doc__, FLAGS, "week.py")
    name = "crowd.json" if o.crowd else "week.json"
    path = os.path.join(stats.RESULTS, name)
    if not o.table:
        seeds = flags.numbers(o.seeds, "seeds", "week.py")
        runs = [live(seed, o.work, o.crowd) for seed in seeds]
        runs = [{k: v for k, v in run.items() if k != "command"} for run in runs]
        command = f"python bench/week.py --seeds={o.seeds}" + f" --crowd={o.crowd}" * (o.crowd > 0)
        file = {**stats.provenance(command), "runs": runs}
        with open(path, "w", encoding="utf-8") as f:
            json.dump(file, f, indent=1)
    file = stats.read(name)
    if file is None:
        flags.fail(f"no bench/results/{name} yet: run without --table", "week.py")
    print("\n".join(week(file)))
    for key in ALL:
        print(f"{key}: {span(file['runs'], key)}")


if __name__ == "__main__":
    flags.guarded(main, "week.py")
