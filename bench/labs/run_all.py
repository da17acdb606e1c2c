"""
Every lab with its solution (bench/labs/solutions): does it still reach its number, and how long
does it take?

    python bench/labs/run_all.py              all eight at full size -> bench/results/labs.json
    python bench/labs/run_all.py --only=5     one of them, printed, nothing written

The base is made anew in --out_dir, so that its minutes are in the file, too.
"""
import importlib
import json
import os
import shlex
import sys
import time

import torch

sys.path.insert(0, os.path.abspath(os.path.join(__file__, "..", "..", "..")))
from bench import stats                                              # noqa: E402
from bench.labs import common                                        # noqa: E402
from data import flags, store                                        # noqa: E402

LABS = {  # file: what the student writes there
    "lab1_kl": ("forward_kl", "reverse_kl"), "lab2_unlock": ("new_expert",),
    "lab3_forgetting": ("step_and_predict",), "lab4_baseline": ("advantages",),
    "lab5_gate": ("metric",), "lab6_dreams": ("choose",), "lab7_matrix": ("bwt", "read_life"),
    "lab8_break_it": ("day",)}
FLAGS = {**common.FLAGS, "out_dir": ("out/labs-solved", flags.TEXT, "where the base is kept"),
         "only": (0, (0, len(LABS)), "number of one lab; 0: all of them")}


def solved(name):
    """The lab as a module, with what stands in bench/labs/solutions in the place of the gaps."""
    lab = importlib.import_module(f"bench.labs.{name}")
    solution = importlib.import_module(f"bench.labs.solutions.{name}")
    for function in LABS[name]:
        setattr(lab, function, getattr(solution, function))
    return lab


def title(lab):
    """"Lab 1: KL by hand, and its directions." -> "KL by hand, and its directions"."""
    return lab.__doc__.strip().splitlines()[0].partition(": ")[2].rstrip(".")


def main(argv):
    o = flags.parse(argv, __doc__, FLAGS, "run_all.py")
    torch.set_num_threads(o.threads or torch.get_num_threads())
    if not o.only:
        store.remove(common.place_of_base(o))
    began, runs = time.time(), []
    common.base(o, common.load_village(o)[0])
    base_seconds = round(time.time() - began, 1)
    for number, name in enumerate(LABS, 1):
        if o.only in (0, number):
            lab, began = solved(name), time.time()
            found = common.fresh(lab.measure, o)
            runs.append({"lab": number, "file": f"bench/labs/{name}.py", "title": title(lab),
                         "number": found.number, "goal": found.goal, "reached": bool(found.reached),
                         "seconds": round(time.time() - began, 1), "seed": o.seed,
                         "seen": found.seen})
            print(f"\n{number}. {title(lab)}: {found.number:.4g} (goal: {found.goal}), "
                  f"{runs[-1]['seconds']} s", *found.seen, sep="\n", flush=True)
    if not all(run["reached"] for run in runs):
        flags.fail("a solution does not reach its goal: nothing was written", "run_all.py")
    if not o.only:
        kept = [word for word in argv if not word.startswith("--out_dir")]
        file = {**stats.provenance(shlex.join(["python", "bench/labs/run_all.py", *kept])),
                "seed": o.seed, "base_seconds": base_seconds, "base_steps": o.steps, "runs": runs}
        with open(os.path.join(stats.RESULTS, "labs.json"), "w", encoding="utf-8") as f:
            json.dump(file, f, indent=1)


if __name__ == "__main__":
    flags.guarded(main, "run_all.py")
