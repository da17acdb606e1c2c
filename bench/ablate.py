"""
The life of nanoSleep with one ingredient taken away at a time, on several seeds; `sleep`, `sft` and `none` beside it.

    python bench/ablate.py                        everything below: about two hours of one CPU core, in bench/results/life.json
    python bench/ablate.py --only=sleep --result=bench/results/week.json      the default life alone: 15 minutes
Each run is the real sleep.py; a finished one is not run again. All lives of a seed start from the same pretrained base.
"""
import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VARIANTS = {  # name: (nights, flags). A sleeping life of 7 nights holds the lives of 2 and 3 as its beginning
    "sleep": (7, ["--contrast=1"]),
    "no_expansion": (3, ["--expand=0"]),
    "no_replay": (3, ["--replay=0"]),
    "no_gate": (3, ["--gate=0"]),
    "no_dreaming": (2, ["--dream=0", "--seed_steps=240"]),           # as many steps in all
    "sft_not_kl": (2, ["--divergence=sft", "--on_policy=0"]),
    "no_on_policy": (2, ["--on_policy=0"]),
    "no_imitation": (2, ["--imitate=0"]),
    "no_curriculum": (2, ["--curriculum=0"]),
    "no_writer": (2, ["--writer=0"]),
    "reverse_kl": (2, ["--divergence=reverse"]),
    "jsd": (2, ["--divergence=jsd", "--divergence_on=jsd"]),
    "three_weeks": (21, ["--period=5"]),                             # levels: every five nights fast -> slow
    "three_weeks_one_level": (21, ["--period=0"]),
}


def main(only=",".join(VARIANTS), seeds="1,2,3", work="out-ablate", threads="1",
         result=os.path.join(ROOT, "bench/results/life.json")):
    for name in only.split(","):
        nights, flags = VARIANTS[name]
        for seed in seeds.split(","):
            out, base = os.path.join(work, f"{name}-{seed}"), os.path.join(work, f"sleep-{seed}", "base.pt")
            if not os.path.isfile(os.path.join(out, "summary.json")):
                start = [f"--init_from={base}", "--contrast=0"] if name != "sleep" else []
                command = [f"--days={max(7, nights)}", f"--stop={nights}", f"--seed={seed}", f"--world_seed={seed}",
                           f"--threads={threads}", *flags, *start]
                print(name, "seed", seed, "python sleep.py", *command, flush=True)
                subprocess.run([sys.executable, os.path.join(ROOT, "sleep.py"), *command, f"--out_dir={out}"], check=True,
                               stdout=subprocess.DEVNULL)
    collect(work, result, f"python bench/ablate.py --only={only} --seeds={seeds} --threads={threads}")


def collect(work, result, command):
    """All summaries under `work`, with their nights, in one file."""
    runs = []
    for folder, _, files in sorted(os.walk(work)):
        if "summary.json" in files:
            with open(os.path.join(folder, "summary.json")) as f:
                run = json.load(f)
            with open(os.path.join(folder, "log.jsonl")) as f:
                run["nights"] = [json.loads(line) for line in f]
            parts = os.path.relpath(folder, work).split(os.sep)
            runs.append({"variant": parts[-1] if len(parts) > 1 else parts[0].rpartition("-")[0], **run})
    with open(result, "w") as f:
        json.dump({"command": command, "runs": runs}, f, indent=0)
    print(f"{len(runs)} lives -> {result}")


if __name__ == "__main__":
    main(**dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:]))
