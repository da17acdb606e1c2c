"""
Topics on real text, once a seed (of weights, and of the order of the classes): the one night of
sleep.py, its gate and its experts, together and apart.

    python bench/topics.py --data=clinc150 --data_dir=FOLDER         -> bench/results/topics.json
    python bench/topics.py --data=dbpedia --data_dir=FOLDER --seeds=1
    python bench/topics.py --data=clinc150 --data_dir=FOLDER --split=sealed --seeds=4,5,6

A life that is finished is not lived again, one that was interrupted goes on (--work holds them).
Any class met so far may be the answer. The exam is made of the set's test rows, which every edition
of this project has asked and seen the results of; with --split=sealed of a fifth of the training
rows, which no exam had asked before and which are not trained on: the file says which.
"""
import json
import os
import sys
from statistics import mean

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import sleep
from bench import stats
from bench.ablations import begun, quiet
from bench.tables import span
from data import classes, flags, gate

NAME = "topics.py"
FLAGS = {
    "data": ("clinc150", tuple(classes.TABLES), "which set"),
    "data_dir": ("data/clinc150", flags.TEXT, "its folder"),
    "seeds": ("1,2,3", flags.TEXT, "seeds of weights and of the order of classes, with commas"),
    "split": ("test", ("test", "sealed"), "which rows are asked"),
    "work": ("out-topics", flags.TEXT, "folder of the lives"),
}
STEPS = 2800                        # of pretraining
TRUST = {"gate_alone": (1, 0), "experts_alone": (0, 1), "both": gate.TRUST}
SHOWN = ["final", "gate_alone", "experts_alone", "old_before", "old_after", "ACC", "BWT"]


def words_of(o, seed):
    """The flags of sleep.py that make this life."""
    return [f"--data={o.data}", f"--data_dir={os.path.abspath(o.data_dir)}", f"--seed={seed}",
            f"--world_seed={seed}", "--contrast=0", "--threads=1", f"--pretrain_steps={STEPS}"]


def live(o, seed):
    """One life: (its folder, its data). What is finished or begun is gone on with."""
    folder = os.path.join(o.work, f"{o.data}-{o.split}-{seed}")
    with quiet():
        a, data = begun(words_of(o, seed), folder)
        if not os.path.isfile(os.path.join(folder, "summary.json")):
            born = os.path.isfile(os.path.join(folder, "base.pt"))
            model, seconds = sleep.pretrained(a, None if born else sleep.born(a, data), data)
            sleep.live(a, a.method, model, data, folder, seconds)
    a.lock.close()
    return folder, data


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
    folder, data = live(o, seed)
    stages = [data.always["old"], *(data.exams(j, j) for j in range(len(data.days)))]
    with open(os.path.join(folder, "summary.json"), encoding="utf-8") as f:
        summary = json.load(f)
    model, state = sleep.load(os.path.join(folder, "checkpoint.pt"), "cpu")
    nights, items = state["nights"], [x for stage in stages for x in stage]
    rows = [[night["old"], *row] for night, row in zip(nights, summary["R"])]
    curve = [over_all(row, stages) for row in rows]
    apart = {name: share_right(model, data, items, trust) for name, trust in TRUST.items()}
    same = ("seed", "R", "ACC", "BWT", "old_before", "old_after", "seconds", "params_after")
    return {"data": o.data, "split": o.split, **{k: summary[k] for k in same}, "final": curve[-1],
            "over_nights": curve, **apart, "rows": len(items),
            "dreamt": [night.get("dreamt") for night in nights],
            "kept": [night.get("kept") for night in nights],
            "undone": [night.get("undone") for night in nights]}


def main(argv):
    o = flags.parse(argv, __doc__, FLAGS, NAME)
    classes.EXAM, name = o.split, o.data + " sealed" * (o.split == "sealed")
    path = os.path.join(stats.RESULTS, "topics.json")
    runs, seeds = [], flags.numbers(o.seeds, "seeds", NAME)
    print(f"{len(seeds)} lives: expect about {15 * len(seeds)} minutes of a CPU thread", flush=True)
    for seed in seeds:
        runs.append(result(o, seed))
        command = (f"python bench/topics.py --data={o.data} --data_dir=FOLDER --split={o.split} "
                   f"--seeds={o.seeds}")
        file = (stats.read("topics.json") or {}) | {
            name: {**stats.provenance(command), "runs": runs}}
        with open(path, "w", encoding="utf-8") as f:
            json.dump(file, f, indent=1)
    for key in SHOWN:
        print(f"{key}: {span(runs, key)}")


if __name__ == "__main__":
    flags.guarded(main, NAME)
