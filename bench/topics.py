"""
Topics on real text, once a seed (of weights, and of the order of the classes): the one night of
sleep.py, its gate and its experts, together and apart.

    python bench/topics.py --data=clinc150 --data_dir=FOLDER         -> bench/results/topics.json
    python bench/topics.py --data=dbpedia --data_dir=FOLDER --seeds=1

A life that is finished is not lived again, one that was interrupted goes on (--work holds them).
The exam is made of test rows that nothing was tuned on; any class met so far may be the answer.
"""
import json
import os
import subprocess
import sys
from statistics import mean

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import torch

import sleep
from bench import stats
from bench.tables import span
from data import classes, flags, gate

NAME = "topics.py"
FLAGS = {
    "data": ("clinc150", tuple(classes.TABLES), "which set"),
    "data_dir": ("data/clinc150", flags.TEXT, "its folder"),
    "seeds": ("1,2,3", flags.TEXT, "seeds of weights and of the order of classes, with commas"),
    "work": ("out-topics", flags.TEXT, "folder of the lives"),
}
STEPS = 2800                        # of pretraining
TRUST = {"gate_alone": (1, 0), "experts_alone": (0, 1), "both": gate.TRUST}
SHOWN = ["final", "gate_alone", "experts_alone", "old_before", "old_after", "ACC", "BWT"]


def live(o, seed):
    """One life as a process of its own, as a person would start it; its folder."""
    folder = os.path.join(o.work, f"{o.data}-{seed}")
    if not os.path.isfile(os.path.join(folder, "summary.json")):
        new = [f"--data={o.data}", f"--data_dir={os.path.abspath(o.data_dir)}", f"--seed={seed}",
               f"--world_seed={seed}", "--contrast=0", "--threads=1", f"--pretrain_steps={STEPS}"]
        begun = os.path.isfile(os.path.join(folder, "args.json"))
        command = [sys.executable, os.path.join(ROOT, "sleep.py"),
                   f"--out_dir={os.path.abspath(folder)}"]
        subprocess.run(command + (["--resume"] if begun else new), check=True, cwd=ROOT)
    return folder


def stages_of(o, seed):
    """(data, [the exam of the base, of day 1, ...])."""
    a = flags.parse([f"--data={o.data}", f"--data_dir={o.data_dir}", f"--seed={seed}",
                     f"--world_seed={seed}"])
    data = classes.load(a)
    return data, [data.always["old"], *(data.exams(j, j) for j in range(len(data.days)))]


def share_right(model, data, items, trust):
    """The share of Items that are named right, with so much trust in gate and experts."""
    enc, marks = data.enc, data.marks
    asked = [[*marks.ask, *enc.encode_ordinary(x.question), *marks.answer] for x in items]
    said = [enc.decode(y[:-1]).strip() for y, _ in gate.judge(model, marks, asked, trust)]
    return mean(name == x.answer.strip() for name, x in zip(said, items))


def over_all(row, stages):
    """The share of all exams so far, each row of text with the same weight."""
    seen = [(r, len(s)) for r, s in zip(row, stages) if r is not None]
    return sum(r * n for r, n in seen) / sum(n for _, n in seen)


def result(o, seed):
    """What the file says of one life.

    final: all classes, those of the base too, after the last night; over_nights: the same of the
    classes so far. gate_alone, experts_alone, both: the final self again, asked in three ways.
    """
    folder = live(o, seed)
    with open(os.path.join(folder, "summary.json"), encoding="utf-8") as f:
        summary = json.load(f)
    model, state = sleep.load(os.path.join(folder, "checkpoint.pt"), "cpu")
    data, stages = stages_of(o, seed)
    nights, items = state["nights"], [x for stage in stages for x in stage]
    rows = [[night["old"], *row] for night, row in zip(nights, summary["R"])]
    curve = [over_all(row, stages) for row in rows]
    apart = {name: share_right(model, data, items, trust) for name, trust in TRUST.items()}
    same = ("seed", "R", "ACC", "BWT", "old_before", "old_after", "seconds", "params_after")
    return {"data": o.data, **{k: summary[k] for k in same}, "final": curve[-1],
            "over_nights": curve, **apart, "rows": len(items),
            "dreamt": [night.get("dreamt") for night in nights],
            "kept": [night.get("kept") for night in nights],
            "undone": [night.get("undone") for night in nights]}


def main(argv):
    o = flags.parse(argv, __doc__, FLAGS, NAME)
    torch.set_num_threads(1)
    path = os.path.join(stats.RESULTS, "topics.json")
    runs = []
    for seed in flags.numbers(o.seeds, "seeds", NAME):
        runs.append(result(o, seed))
        command = f"python bench/topics.py --data={o.data} --data_dir=FOLDER --seeds={o.seeds}"
        file = (stats.read("topics.json") or {}) | {
            o.data: {**stats.provenance(command), "runs": runs}}
        with open(path, "w", encoding="utf-8") as f:
            json.dump(file, f, indent=1)
    for key in SHOWN:
        print(f"{key}: {span(runs, key)}")


if __name__ == "__main__":
    flags.guarded(main, NAME)
