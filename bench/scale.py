"""
What a second process is worth (data/team.py): one life by one process, and the same life by two, one thread each.

    python bench/scale.py                         seven minutes of two CPU cores, in bench/results/scale.json
    python bench/scale.py --processes=1,2,4 --rounds=5
CPU seconds of one process, so that other jobs on the machine hardly count: on idle cores that, and the waiting for the slowest,
is the time. A life with a night less the same life without one is the night; with pretraining less without, the pretraining.
"""
import json
import os
import resource
import subprocess
import sys
import time

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from bench.stats import pm
from data import flags
from data.flags import SOME, TEXT
from data.store import write_json


def life(processes, out, *flags):
    """Live it -> (CPU seconds of all its processes, wall seconds of the night, R)."""
    team = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] * (processes > 1)      # torchrun
    cpu = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    before = cpu()
    command = [sys.executable, *team, os.path.join(ROOT, "sleep.py"), "--days=1", "--contrast=0", "--threads=1", *flags]
    subprocess.run([*command, f"--out_dir={out}"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                   env={**os.environ, "OMP_NUM_THREADS": "1"})
    with open(os.path.join(out, "summary.json")) as f:
        s = json.load(f)
    assert s["processes"] == processes
    return cpu() - before, s["seconds"]["seed"] + s["seconds"]["dream"], s["R"]


FLAGS = {  # name: (default, allowed, what it does), as in data/flags.py
    "processes": ("1,2", TEXT, "how many, with commas"), "rounds": (3, SOME, "nights of each"),
    "work": ("out-scale", TEXT, "folder of the lives"),
    "result": (os.path.join(ROOT, "bench", "results", "scale.json"), TEXT, "result file")}


def main(argv):
    o, rows, base = flags.parse(argv, __doc__, FLAGS, "scale.py"), {}, ""
    for n in flags.numbers(o.processes, "processes", "scale.py", 1):
        folder = lambda name: os.path.join(o.work, f"{time.time():.0f}-{name}-{n}")
        out = folder("born")
        born, _, _ = life(n, out, "--method=none")
        base = base or f"--init_from={os.path.join(out, 'base.pt')}"     # the same base for all
        row = rows[n] = {"pretraining": [], "night": [], "night_wall": [], "R": []}
        for i in range(o.rounds):
            none, _, _ = life(n, folder(f"none{i}"), "--method=none", base)
            cpu, wall, R = life(n, folder(f"sleep{i}"), base)
            row["night"].append((cpu - none) / n)
            row["night_wall"].append(wall)
            row["R"].append(R)
        row["pretraining"].append((born - none) / n)
        print(f"{n} processes, CPU seconds of each: pretraining {pm(row['pretraining'], 1)}, a night {pm(row['night'], 1)} "
              f"({pm(row['night_wall'], 1)} by the clock)", flush=True)
    write_json(o.result, {"command": f"python bench/scale.py --processes={o.processes} --rounds={o.rounds}", "processes": rows,
                          "seed": 1, "device": "cpu", "threads": 1, "cores": os.cpu_count(), "load": os.getloadavg()[0],
                          "versions": {"python": sys.version.split()[0], "torch": torch.__version__}})


if __name__ == "__main__":
    main(sys.argv[1:])
