"""
What a night survives: power cuts, full disks, damaged checkpoints, nights gone mad. Nothing here is simulated but the fault:
each row runs the real sleep.py as a process, hurts it, resumes it, and compares R and every weight with a life left in peace.

    python bench/faults.py            about 20 minutes on one CPU core -> bench/results/faults.json
    python bench/faults.py --quick    fewer kills, no measure of the cost: 3 minutes
    python bench/faults.py --only=kill,ctrl_c
Rows that are done are not run again (--work=out-faults holds the lives).
"""
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import torch

import dream
import seed
import sleep
from data import store

SCRIPT = os.path.join(ROOT, "sleep.py")
LIFE = ["--n_layer=2", "--n_embd=64", "--n_head=2", "--pretrain_steps=240", "--days=3", "--people=3", "--quizzes=4", "--views=2",
        "--replay_dreams=48", "--seed_steps=70", "--dream_steps=10", "--dreams=6", "--dreams_random=2", "--period=2",
        "--slow_steps=70", "--threads=1"]
MODULES = {"sleep": sleep, "seed": seed, "dream": dream, "store": store}
# where to die: at the n-th call of a function (a stage of the life each), or inside the n-th write to the disk
POINTS = ["sleep.descend:1", "sleep.descend:119", "sleep.descend:121", "sleep.descend:240", "store.write:2:half",
          "store.write:4:half", "store.write:5:between", "dream.write_dreams:1", "seed.dream_replay:1", "seed.recognise:1",
          "seed.muon:5", "seed.muon:61", "seed.muon:70", "dream.trials:1", "dream.rest_em:1", "seed.muon:75",
          "store.write:9:half", "store.write:10:between", "sleep.gone_wrong:1", "sleep.metrics:1", "dream.write_dreams:2",
          "seed.muon:100", "seed.write_memories:1", "seed.muon:230", "store.write:16:half", "sleep.fine_tune:2", "sleep.exam:12"]


# ----------------------------------------------------------------------------------------------------------------------
# Hurting a run

def victim(where, flags):
    """In a process of its own: sleep.py, killed -9 (no cleaning up) at the n-th call of a function or inside a write."""
    name, _, rest = where.partition(":")
    n, _, how = rest.partition(":")
    module, function = MODULES[name.split(".")[0]], name.split(".")[1]
    real, calls = getattr(module, function), [0]

    def mortal(*args, **kw):
        calls[0] += 1
        if calls[0] == int(n):
            if how:                                                  # a write: half of it, or all but the last rename
                path, data = args[:2]
                with open(path + ".tmp", "wb") as f:
                    f.write(data[:len(data) // 2] if how == "half" else data)
                if how == "between" and os.path.exists(path):
                    os.replace(path, path + ".before")
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kw)
    setattr(module, function, mortal)
    sleep.main(flags)


def sabotaged(how, flags):
    """In a process of its own: sleep.py, whose second night learns at a thousandfold rate, gets a NaN, or ends in noise."""
    real, nights = sleep.night, [0]

    def bad_night(a, model, *args, **kw):
        nights[0] += 1
        if nights[0] != 2:
            return real(a, model, *args, **kw)
        muon, steps = seed.muon, [0]

        def mad(params, momenta, lr, **kw):
            steps[0] += 1
            muon(params, momenta, lr * 1000 if how == "rate" else lr, **kw)
            if how == "nan" and steps[0] == 40:
                params[0].data.flatten()[0] = float("nan")
            if how == "noise":
                for p in params:
                    torch.nn.init.normal_(p)
        seed.muon = mad
        try:
            return real(a, model, *args, **kw)
        finally:
            seed.muon = muon
    sleep.night = bad_night
    sleep.main(flags)


def start(flags, wrapped=(), **kw):
    command = [sys.executable, *([os.path.abspath(__file__), *wrapped, "--"] if wrapped else [SCRIPT]), *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)


def finish(process):
    out, err = process.communicate(timeout=1200)
    said = [line for line in err.replace("\r", "\n").splitlines() if "sleep.py:" in line or "Error" in line]
    return process.returncode, out, said


def resume(out):
    code, _, said = finish(start(["--resume", f"--out_dir={out}"]))
    return code, said


def result(folder):
    """R of each life in a folder, and every tensor of its last checkpoint."""
    lives = [d for d in ("", "none", "sft") if os.path.isfile(os.path.join(folder, d, "summary.json"))]
    R = {d: json.load(open(os.path.join(folder, d, "summary.json")))["R"] for d in lives}
    return R, {d: store.load(os.path.join(folder, d, "checkpoint.pt"))[0]["model"] for d in lives}


def same(a, b):
    """The same R, and the same weights bit for bit."""
    (Ra, wa), (Rb, wb) = result(a), result(b)
    return Ra == Rb and all(wa[d].keys() == wb[d].keys() and all(torch.equal(wa[d][k], wb[d][k]) for k in wa[d]) for d in wa)


# ----------------------------------------------------------------------------------------------------------------------
# The faults. Each returns [{"fault", "outcome", "survived"}]

def row(fault, outcome, survived):
    print(f"  {'survived' if survived else 'LOST':9} {fault:44} {outcome}", flush=True)
    return {"fault": fault, "outcome": outcome, "survived": bool(survived)}


def repeatable(work, whole, quick):
    again = os.path.join(work, "again")
    code, _, said = finish(start([*LIFE, f"--out_dir={again}"]))
    good = code == 0 and same(whole, again)
    return [row("the same command twice", "the same bits" if good else f"exit {code} {said}", good)]


def kill(work, whole, quick, rows, save):
    """At every point of POINTS, then at five random moments (halved until the life is not over by then)."""
    rng, seconds = random.Random(0), json.load(open(os.path.join(work, "whole.json")))["seconds"]
    random_moments = lambda: sum(r["fault"].endswith(" s") for r in rows)
    points = [p for p in (POINTS[::5] if quick else POINTS) if not any(r["fault"] == f"kill -9 at {p}" for r in rows)]
    while points or random_moments() < (1 if quick else 5):
        where, out = points.pop(0) if points else f"{rng.uniform(3, 0.9 * seconds):.1f} s", os.path.join(work, "killed")
        code, flags = 0, [*LIFE, f"--out_dir={out}"]
        while code != -signal.SIGKILL:
            shutil.rmtree(out, ignore_errors=True)
            process = start(flags) if where.endswith(" s") else start(flags, (f"--die={where}",))
            if where.endswith(" s"):
                time.sleep(float(where[:-2]))
                process.kill()
            code, _, said = finish(process)
            if code != -signal.SIGKILL:
                if not where.endswith(" s"):
                    raise SystemExit(f"faults.py: the life never came to {where} (exit {code}) {said}")
                where = f"{float(where[:-2]) / 2:.1f} s"
        if not os.path.isfile(os.path.join(out, "args.json")):       # killed before there was anything: begin
            code, _, said = finish(start(flags))
        else:
            code, said = resume(out)
        good = code == 0 and same(whole, out)
        rows.append(row(f"kill -9 at {where}", "resumed: same R, same bits" if good else f"exit {code} {said}", good))
        save()
    return rows


def damaged(work, whole, quick):
    """The newest checkpoint of a life that was killed in its second night is damaged: the one before it goes on."""
    rows, half = [], os.path.join(work, "half")
    if not os.path.isdir(half):
        finish(start([*LIFE, f"--out_dir={half}"], ("--die=seed.muon:150",)))
    hurts = {"truncated": lambda b: b[:-1000], "one bit flipped": lambda b: b[:9000] + bytes([b[9000] ^ 1]) + b[9001:],
             "empty": lambda b: b"", "of another program": lambda b: b"PK\x03\x04" + b[4:]}
    for name, hurt in hurts.items():
        out = os.path.join(work, "damaged")
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(half, out)
        path = os.path.join(out, "checkpoint.pt")
        sound = open(path, "rb").read()
        open(path, "wb").write(hurt(sound))
        code, said = resume(out)
        good = code == 0 and same(whole, out) and any("going on from" in line for line in said)
        outcome = "said so, went on from the one before: same bits" if good else f"exit {code} {said}"
        rows.append(row(f"checkpoint {name}", outcome, good))
    shutil.rmtree(out)
    shutil.copytree(half, out)
    for name in ("checkpoint.pt", "checkpoint.pt.before"):
        with open(os.path.join(out, name), "wb") as f:
            f.write(b"rubbish")
    code, said = resume(out)
    good = code == 2 and len(said) == 1 and open(path, "rb").read() == b"rubbish"
    return rows + [row("both checkpoints damaged", "refused in one line, nothing touched" if good else f"exit {code} {said}", good)]


def disk(work, whole, quick):
    """No file may grow beyond a limit: what a full disk does to a write. Then there is room again."""
    rows = []
    for kilobytes in ((400,) if quick else (400, 2600)):
        out = os.path.join(work, "full")
        shutil.rmtree(out, ignore_errors=True)
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, resource.RLIM_INFINITY))
        code, _, said = finish(start([*LIFE, f"--out_dir={out}"], preexec_fn=limit))
        refused = code == 2 and len(said) == 1 and not any(f.endswith(".tmp") for _, _, files in os.walk(out) for f in files)
        code, more = resume(out)
        good = refused and code == 0 and same(whole, out)
        outcome = "one line; with room again: same bits" if good else f"{said} {more}"
        rows.append(row(f"no room for a file over {kilobytes} KB", outcome, good))
    out = os.path.join(work, "in_the_way")
    open(out, "w").write("a file")
    code, _, said = finish(start([*LIFE, f"--out_dir={out}/life"]))
    good = code == 2 and len(said) == 1 and open(out).read() == "a file"
    return rows + [row("out_dir cannot be written", "one line" if good else f"exit {code} {said}", good)]


def memory(work, whole, quick):
    out = os.path.join(work, "big")
    code, _, said = finish(start(["--n_embd=16384", f"--out_dir={out}"], ("--memory",)))
    good = code == 2 and len(said) == 1 and "out of memory: lower" in said[0]
    return [row("more memory than there is (4 GB)", "one line that names the flags to lower" if good else f"exit {code} {said}", good)]


def two_runs(work, whole, quick):
    out = os.path.join(work, "shared")
    shutil.rmtree(out, ignore_errors=True)
    first = start([*LIFE, f"--out_dir={out}"])
    while not os.path.isfile(os.path.join(out, "args.json")):
        time.sleep(0.1)
    refusals = [finish(start(flags)) for flags in ([*LIFE, f"--out_dir={out}"], ["--resume", f"--out_dir={out}"])]
    code, _, _ = finish(first)
    good = code == 0 and same(whole, out) and all(c == 2 and "another run is alive" in said[0] for c, _, said in refusals)
    return [row("a second run in the same out_dir", "refused in one line; the first: same bits" if good else str(refusals), good)]


def ctrl_c(work, whole, quick):
    rows, seconds = [], json.load(open(os.path.join(work, "whole.json")))["seconds"]
    for share, number in ((0.3, signal.SIGINT), (0.6, signal.SIGINT), (0.75, signal.SIGTERM))[:1 if quick else 3]:
        out = os.path.join(work, "stopped")
        shutil.rmtree(out, ignore_errors=True)
        process = start([*LIFE, f"--out_dir={out}"])
        time.sleep(share * seconds)
        process.send_signal(number)
        stopped, _, said = finish(process)
        code, more = resume(out)
        good = stopped == 2 and any("go on with --resume" in line for line in said) and code == 0 and same(whole, out)
        name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        rows.append(row(f"{name} after {share:.0%} of the run", "saved, said how to go on: same bits" if good else f"{said} {more}", good))
    return rows


def bad_night(work, whole, quick):
    """The second night is sabotaged: if it harmed, it must be undone and its day learnt the night after; the past is unmoved."""
    rows = []
    for how, name in (("rate", "learning rate x 1000"), ("nan", "a NaN in the weights"), ("noise", "weights of noise")):
        out = os.path.join(work, f"sabotaged_{how}")
        shutil.rmtree(out, ignore_errors=True)
        code, _, said = finish(start([*LIFE, "--period=0", "--contrast=0", f"--out_dir={out}"], (f"--sabotage={how}",)))
        s = json.load(open(os.path.join(out, "summary.json"))) if code == 0 else {"R": [[0] * 3] * 3}
        undone = [json.loads(line).get("undone") for line in open(os.path.join(out, "log.jsonl"))] if code == 0 else [None] * 3
        R = s["R"]
        good = not undone[0] and not undone[2] and R[1][0] == R[2][0] == R[0][0]
        good = good and (R[2][1] > R[1][1] if undone[1] else how == "rate" and R[1][1] > 0)
        verdict = f"undone ({undone[1]}), learnt a night later" if undone[1] else "not undone: it learnt, only worse"
        rows.append(row(f"night 2: {name}", f"{verdict}; R {[[round(x, 2) for x in r if x is not None] for r in R]}", good))
    return rows


FAULTS = {f.__name__: f for f in (repeatable, kill, damaged, disk, memory, two_runs, ctrl_c, bad_night)}


def cost(flags=("--contrast=0",)):
    """Share of the default life's time that goes into checkpoints, and into the look back after each night."""
    spent = {"save": 0.0, "gone_wrong": 0.0}

    def timed(name):
        real = getattr(sleep, name)

        def wrapper(*args, **kw):
            t = time.time()
            try:
                return real(*args, **kw)
            finally:
                spent[name] += time.time() - t
        setattr(sleep, name, wrapper)
    timed("save"), timed("gone_wrong")
    t = time.time()
    out = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"faults-cost-{os.getpid()}")
    sleep.main([*flags, f"--out_dir={out}"])
    shutil.rmtree(out)
    whole = time.time() - t
    return {"command": " ".join(["python sleep.py", *flags]), "seconds": round(whole, 1),
            **{name: round(s / whole, 4) for name, s in spent.items()}}


def main(only=",".join(FAULTS), work="out-faults", quick=False, path=os.path.join(ROOT, "bench/results/faults.json")):
    print("about 20 minutes on one CPU core (--quick: 3)")
    os.makedirs(work, exist_ok=True)
    whole, done_path = os.path.join(work, "whole"), os.path.join(work, "done.json")
    if not os.path.isfile(os.path.join(work, "whole.json")):
        t = time.time()
        code, _, said = finish(start([*LIFE, f"--out_dir={whole}"]))
        if code:
            raise SystemExit(f"faults.py: the undisturbed life failed: {said}")
        store.write_json(os.path.join(work, "whole.json"), {"seconds": time.time() - t})
    done = json.load(open(done_path)) if os.path.isfile(done_path) else {}
    for name in only.split(","):
        if name not in FAULTS:
            raise SystemExit(f"faults.py: unknown fault {name!r}: choose from {', '.join(FAULTS)}")
        print(name)
        if name == "kill":                                           # the long one: row by row
            kill(work, whole, quick, done.setdefault(name, []), lambda: store.write_json(done_path, done))
        elif name not in done:
            done[name] = FAULTS[name](work, whole, quick)
            store.write_json(done_path, done)
    if not quick and "cost" not in done and set(FAULTS) <= set(done):
        done["cost"] = cost()
        store.write_json(done_path, done)
    rows = [r for name in FAULTS for r in done.get(name, [])]
    lost = [r["fault"] for r in rows if not r["survived"]]
    print(f"{len(rows)} faults tried, {len(rows) - len(lost)} survived, {len(lost)} lost {lost or ''}")
    if not quick and set(FAULTS) <= set(done):
        store.write_json(path, {"command": "python bench/faults.py", "life": "python sleep.py " + " ".join(LIFE), "rows": rows,
                                "tried": len(rows), "lost": len(lost), "cost": done["cost"], "device": "cpu", "threads": 1,
                                "versions": {"python": sys.version.split()[0], "torch": torch.__version__}})
    return len(lost)


if __name__ == "__main__":
    words = sys.argv[1:]
    flags = words[words.index("--") + 1:] if "--" in words else []
    named = dict(w.removeprefix("--").partition("=")[::2] for w in words[:words.index("--") if "--" in words else None])
    if "die" in named:
        victim(named["die"], flags)
    elif "sabotage" in named:
        sabotaged(named["sabotage"], flags)
    elif "memory" in named:
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        sleep.guarded(flags)
    else:
        unknown = set(named) - {"only", "work", "quick", "path"}
        if unknown:
            print(f"faults.py: unknown flag --{sorted(unknown)[0]}: only, work, quick, path", file=sys.stderr)
            raise SystemExit(2)
        raise SystemExit(1 if main(**{k: v or True for k, v in named.items()}) else 0)
