"""
Absorber LLM (arXiv 2604.20915) on five tasks; the method is in bench/absorption.py.

    python bench/absorber.py                map, stream, world and latency, three seeds: 20 minutes
                                            of one CPU core -> bench/results/absorber.json
    python bench/absorber.py --quick        all of it in small, two minutes -> out-absorber/
    python bench/absorber.py --tasks=life   Absorber as the night of a life, three seeds
    python bench/report.py                  the tables, from the result file

map: each document has its own map from 8 classes of words to 8 labels; X shows it 24 times, Y 8
times, then everything is gone and all classes are asked. stream: Algorithm 2, six slides; classes
come and go. world: a passage about a stranger; Y are questions and answers that the model asks
itself about it (all K steps). latency: time and memory against the length of the prefix.
"""
import os
import shlex
import sys
import time

import torch
from tqdm import tqdm

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from bench import stats                                              # noqa: E402
from bench.absorber_tasks import TASKS                               # noqa: E402
from data import flags, store                                        # noqa: E402
from data.flags import SHARE, SOME, SWITCH, TEXT                     # noqa: E402

FLAGS = {  # name: (default, allowed, what it does), as in data/flags.py
    "tasks": ("map,stream,world,latency", TEXT,
              "what to run; also: life (after the others, about 8 minutes)"),
    "seeds": ("1,2,3", TEXT, "one run for each"),
    "quick": (False, SWITCH, "all of it in small"),
    "rank": (8, (1, 64), "rank of the LoRA"),
    "steps": (100, SOME, "K: most steps of one absorption"),
    "threshold": (0.1, SHARE, "a document stops at this share of its first loss"),
    "documents": (16, (1, 4096), "documents of a seed"),
    "n": (24, (1, 40), "pairs in X"),
    "m": (8, (1, 10), "pairs in Y"),
    "train_steps": (250, SOME, "pretraining steps of the small transformer of map and stream"),
    "world_steps": (900, SOME, "pretraining steps of the base of world, if --bases has none"),
    "people": (8, (2, 16), "strangers of a seed in task world"),
    "days": (7, (1, 28), "days of a life"),
    "longest": (8192, (128, 2 ** 20), "longest prefix of task latency, in tokens"),
    "bases": ("out-absorber/base-{}.pt", TEXT, "checkpoints of nanoSleep, {} is the seed"),
    "out": (os.path.join(ROOT, "bench/results/absorber.json"), TEXT,
            "result file; adds what is missing"),
    "threads": (1, (1, 4096), "CPU threads"),
    "device": ("cpu", ("cpu", "cuda"), "where to compute"),
}
QUICK = {"seeds": "1", "steps": 30, "documents": 6, "train_steps": 150, "world_steps": 300,
         "people": 4, "days": 2, "longest": 1024, "bases": "out-absorber/quick-{}.pt",
         "out": "out-absorber/quick.json"}
MINUTES = {"map": 1.6, "stream": 1.5, "world": 3.4, "latency": 0.4, "life": 3.0}     # a seed


def fail(message):
    flags.fail(message, "absorber.py")


def parse(argv):
    """The flags, with the lists taken apart. Anything impossible ends here, in one line."""
    a = flags.parse(argv, __doc__, FLAGS, "absorber.py", QUICK)
    a.tasks = a.tasks.split(",")
    if not set(a.tasks) <= set(MINUTES):
        fail(f"--tasks={','.join(a.tasks)}: choose from {', '.join(MINUTES)}")
    a.seeds = flags.numbers(a.seeds, "seeds", "absorber.py")
    if a.device == "cuda" and not torch.cuda.is_available():
        fail("--device=cuda: there is none on this machine; use --device=cpu")
    return a


def main(argv):
    a = parse(argv)
    torch.set_num_threads(a.threads)
    free = ("tasks", "seeds", "out", "bases", "quick")
    same = {k: getattr(a, k) for k in FLAGS if k not in free}        # other flags: another run
    runs = (stats.read(os.path.abspath(a.out)) or {"runs": []})["runs"]
    done = [(r["task"], r["seed"]) for r in runs if r["flags"] == same]
    todo = [(task, seed) for seed in a.seeds for task in a.tasks if (task, seed) not in done]
    minutes = (0.25 if a.quick else 1.0) * sum(MINUTES[task] for task, _ in todo)
    print(f"{len(todo)} runs; expect about {minutes:.0f} minutes on one quiet CPU core -> "
          f"{os.path.relpath(a.out)}", flush=True)
    command = shlex.join(["python", "bench/absorber.py", *argv])
    for task, seed in todo:
        wall, cpu = time.time(), time.process_time()
        with tqdm(desc=f"{task} {seed}", unit="step", leave=False, mininterval=1.0) as bar:
            result = TASKS[task](a, seed, bar)
        runs.append({"task": task, "seed": seed, "flags": same,
                     "seconds": round(time.time() - wall, 1),
                     "cpu_seconds": round(time.process_time() - cpu, 1), "result": result,
                     "device": a.device, **stats.provenance(command)})
        os.makedirs(os.path.dirname(a.out) or ".", exist_ok=True)
        store.write_json(a.out, {**stats.provenance("python bench/absorber.py"), "runs": runs})
        print(f"{task} seed {seed}: {runs[-1]['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    flags.guarded(main, "absorber.py")
