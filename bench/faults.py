"""
What a life survives: power cuts, full disks, damaged files, mad nights, and whatever can be typed.
Nothing is simulated but the fault: each row runs the real sleep.py as a process and hurts it. What
was killed goes on with --resume and must end in the same R and the same bits as a life left in
peace; what is refused must be refused in one clear line, with nothing moved and nothing lost.

    python bench/faults.py            about 15 minutes of one CPU core -> bench/results/faults.json
    python bench/faults.py --quick    a few of each kind: 3 minutes
    python bench/faults.py --only=kill,typed
Groups of rows that are done are not run again (--work=out-faults holds the lives).
"""
import glob
import json
import multiprocessing
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import dream                                                         # noqa: E402
import seed                                                          # noqa: E402
import sleep                                                         # noqa: E402
from bench import stats                                              # noqa: E402
from data import exam, flags, gate, run, store                       # noqa: E402
from data.flags import SWITCH, TEXT                                  # noqa: E402

SCRIPT = os.path.join(ROOT, "sleep.py")
NEWBORN = ["--n_layer=1", "--n_embd=32", "--pretrain_steps=320", "--days=1", "--people=1",
           "--quizzes=1", "--contrast=0", "--threads=1"]             # seconds; it cannot read yet
TINY = [*NEWBORN, "--pretrain_steps=2"]
READER = ["--n_layer=2", "--n_embd=64", "--pretrain_steps=600", "--threads=1", "--days=1",
          "--people=1", "--method=none"]                             # made once: it can ask itself
NIGHTS = ["--paper", "--days=2", "--people=2", "--quizzes=1", "--seed_steps=16", "--period=2",
          "--contrast=0", "--threads=1"]
MODULES = {m.__name__.split(".")[-1]: m for m in (sleep, seed, dream, store, exam, gate)}
# where to die: at the n-th call of a function, or inside the n-th write to the disk
IN_BIRTH = ["sleep.descend:1", "sleep.descend:299", "sleep.descend:301", "sleep.descend:320",
            "store.write:2:half", "gate.learn_to_listen:1", "store.write:3:between"]
IN_NIGHTS = ["store.write:2:half", "dream.write:1", "seed.screen:2", "seed.look_up:1",
             "seed.open_gate:1", "seed.muon:3", "dream.trials:1", "dream.rest_em:1", "seed.muon:20",
             "seed.look_back:1", "exam.sit:6", "store.write:4:half", "store.write:4:between",
             "dream.write:2", "seed.consolidate:1", "store.write:7:between", "exam.metrics:1"]
FLAGS = {  # name: (default, allowed, what it does), as in data/flags.py
    "only": ("", TEXT, "groups of rows, with commas; nothing: all"),
    "work": ("out-faults", TEXT, "folder of the lives"),
    "quick": (False, SWITCH, "a few of each kind; nothing is written to --result"),
    "base": ("", TEXT, "base of sleep.py for the measure of what keeping costs; none: make one"),
    "result": (os.path.join(stats.RESULTS, "faults.json"), TEXT, "result file"),
}


# --------------------------------------------------------------------------------------------------
# Hurting a run, in a process of its own: python bench/faults.py --die=seed.muon:3 -- FLAGS

def dies_at(where):
    """kill -9 (no cleaning up) at the n-th call of a function, or inside a write."""
    name, n, how = (where + "::").split(":")[:3]
    module, function = MODULES[name.split(".")[0]], name.split(".")[1]
    real, calls = getattr(module, function), [0]

    def mortal(*args, **kw):
        calls[0] += 1
        if calls[0] == int(n):
            if how:                                          # half of it, or all but the last step
                path, data = args[:2]
                with open(path + ".tmp", "wb") as f:
                    f.write(data[:len(data) // 2] if how == "half" else data)
                if how == "between" and os.path.exists(path):
                    os.replace(path, path + ".before")
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kw)
    setattr(module, function, mortal)


def sabotages(how):
    """The second night learns at a thousandfold rate, gets a NaN, ends in noise, or fails."""
    real, nights = seed.night, [0]

    def mad(params, momenta, lr, muon=seed.muon):
        muon(params, momenta, lr * 1000 if how == "rate" else lr)
        if how == "nan":
            params[0].data.flatten()[0] = float("nan")
        if how == "noise":
            for p in params:
                torch.nn.init.normal_(p)

    def bad_night(*args, **kw):
        nights[0] += 1
        if nights[0] == 2 and how == "algebra":
            raise torch.linalg.LinAlgError("a matrix cannot be inverted")
        seed.muon = mad if nights[0] == 2 else sound
        return real(*args, **kw)
    sound, seed.night = seed.muon, bad_night


def hurt(words, argv):
    """This process becomes sleep.py, hurt in the ways of words."""
    for word in words:
        kind, _, value = word.partition("=")
        if kind == "--die":
            dies_at(value)
        elif kind == "--sabotage":
            sabotages(value)
        else:
            resource.setrlimit(resource.RLIMIT_AS, (int(value) << 30, int(value) << 30))
    sys.argv = ["sleep.py", *argv]
    run.guarded(sleep.main)


# --------------------------------------------------------------------------------------------------
# Running it and looking at what is left

def start(words, hurt_by=(), **kw):
    itself = [os.path.abspath(__file__), *hurt_by, "--"] if hurt_by else [SCRIPT]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **kw.pop("env", {})}
    kw = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **kw}
    return subprocess.Popen([sys.executable, *itself, *words], env=env, text=True, **kw)


def finish(process):
    """(exit code, the last line of stdout, the lines of stderr that are no progress bar)."""
    out, err = process.communicate(timeout=1800)
    lines = (err or "").replace("\r", "\n").splitlines()
    said = [line for line in lines if line.replace("\x1b[A", "").strip() and "%|" not in line]
    return process.returncode, ((out or "").strip().splitlines() or [""])[-1], said


def call(words, hurt_by=(), **kw):
    return finish(start(words, hurt_by, **kw))


def resume(out):
    code, _, said = call(["--resume", f"--out_dir={out}"])
    return code, said


def fresh(work, name):
    folder = os.path.join(work, name)
    for left in [folder] + [os.path.join(work, n) for n in os.listdir(work)
                            if n.startswith(name + ".")]:
        shutil.rmtree(left, ignore_errors=True)
    return folder


def once(work, name, words):
    """A life left in peace, made once: its folder."""
    out = os.path.join(work, name)
    if not os.path.isfile(os.path.join(out, "summary.json")):
        began = time.time()
        code, _, said = call([*words, f"--out_dir={fresh(work, name)}"])
        if code:
            raise ValueError(f"the undisturbed life failed: {said}")
        store.write_json(os.path.join(work, name + ".seconds"), time.time() - began)
    return out


def nights(work):
    """The flags of a life of two nights of a self that can ask itself about its day."""
    return [*NIGHTS, f"--init_from={once(work, 'reader', READER)}/base.pt"]


def weights(folder, name="checkpoint.pt"):
    return store.load(os.path.join(folder, name))[0]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(t, b[k]) for k, t in a.items())


def same(a, b):
    """The same lives: R and every weight, bit for bit."""
    def lives(folder):
        return [d for d in ("", *flags.BESIDE) if os.path.isfile(f"{folder}/{d}/summary.json")]
    pairs = [(weights(f"{a}/{d}"), weights(f"{b}/{d}")) for d in lives(a)]
    return lives(a) == lives(b) and all(x["R"] == y["R"] and equal(x["model"], y["model"])
                                        for x, y in pairs)


def contents(folder):
    """{path: bytes} of all files in a folder but the locks."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            if name != "lock":
                with open(path, "rb") as f:
                    found[os.path.relpath(path, folder)] = f.read()
    return found


def row(fault, outcome, survived, said=""):
    survived = bool(survived)
    outcome = outcome if survived else f"LOST: {said}"
    print(f"  {'survived' if survived else 'LOST':9}{fault:50} {outcome}", flush=True)
    return {"fault": fault, "outcome": outcome, "survived": survived}


# --------------------------------------------------------------------------------------------------
# Killed, interrupted, without room. Each group: (work, quick) -> rows

def repeatable(work, quick):
    words = nights(work)
    whole, again = once(work, "whole", words), fresh(work, "again")
    code, _, said = call([*words, f"--out_dir={again}"])
    good = code == 0 and same(whole, again)
    return [row("the same command twice", "the same bits", good, said)]


def kill(work, quick):
    """At every point of the two lists, and at random moments."""
    rows, rng = [], random.Random(0)
    for name, words, points in (("birth", NEWBORN, IN_BIRTH), ("whole", nights(work), IN_NIGHTS)):
        whole = once(work, name, words)
        seconds = stats.read(os.path.join(work, name + ".seconds"))
        chance = [f"{rng.uniform(0.2, 0.7) * seconds:.1f} s" for _ in range(2)]
        for where in points[::6] if quick else points + chance:
            rows.append(killed(work, whole, words, where))
    return rows


def killed(work, whole, words, where):
    out = fresh(work, "killed")
    words = [*words, f"--out_dir={out}"]
    if where.endswith(" s"):
        process = start(words)
        time.sleep(float(where[:-2]))
        process.kill()
        code, _, said = finish(process)
    else:
        code, _, said = call(words, [f"--die={where}"])
    if code != -signal.SIGKILL:
        return row(f"kill -9 at {where}", "", False, f"it never came there: exit {code} {said}")
    begun = os.path.isfile(os.path.join(out, "args.json"))           # else there is nothing yet
    code, said = resume(out) if begun else call(words)[::2]
    good = code == 0 and same(whole, out)
    return row(f"kill -9 at {where}", "went on: same R, same bits", good, (code, said))


def half_lived(work):
    """A life that was killed in its second night."""
    half = os.path.join(work, "half")
    if not os.path.isdir(half):
        call([*nights(work), f"--out_dir={half}"], ["--die=dream.write:2"])
    return half


HURTS = {"truncated": lambda b: b[:-1000], "empty": lambda b: b"",
         "one bit flipped": lambda b: b[:9000] + bytes([b[9000] ^ 1]) + b[9001:],
         "of another program": lambda b: b"PK\x03\x04" + b[4:]}


def damaged(work, quick):
    """The newest checkpoint is damaged: the one before it goes on."""
    rows, whole, half = [], once(work, "whole", nights(work)), half_lived(work)
    for name, hurts in list(HURTS.items())[::3 if quick else 1]:
        out = fresh(work, "damaged")
        shutil.copytree(half, out)
        path = os.path.join(out, "checkpoint.pt")
        with open(path, "rb") as f:
            sound = f.read()
        store.write(path, hurts(sound))
        code, said = resume(out)
        good = code == 0 and same(whole, out) and any("going on from" in line for line in said)
        rows.append(row(f"checkpoint {name}", "said so, went on from the one before: same bits",
                        good, (code, said)))
    out = fresh(work, "damaged")
    shutil.copytree(half, out)
    for name in ("checkpoint.pt", "checkpoint.pt.before"):
        store.write(os.path.join(out, name), b"rubbish")
    return rows + [refused("both checkpoints damaged", ["--resume", f"--out_dir={out}"], out)]


def disk(work, quick):
    """No file may grow beyond a limit: what a full disk does. Then there is room again."""
    rows, words = [], nights(work)
    whole = once(work, "whole", words)
    size = os.path.getsize(os.path.join(whole, "base.pt"))
    limits = (400 * 1024, size + 4096)                       # no base; a base, but no memories
    for limit in limits[:1 if quick else 2]:
        out = fresh(work, "full")

        def little_room(limit=limit):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        code, _, said = call([*words, f"--out_dir={out}"], preexec_fn=little_room)
        clean = not any(name.endswith(".tmp") for name in contents(out))
        again, more = resume(out)
        good = (code, len(said), clean, again) == (2, 1, True, 0) and same(whole, out)
        rows.append(row(f"no room for a file over {limit // 1024} KB",
                        "one line; with room again: same bits", good, (code, said, more)))
    way = os.path.join(fresh(work, "way"), "file")
    os.makedirs(os.path.dirname(way))
    store.write(way, b"a file")
    return rows + [refused("--out_dir cannot be made", [*TINY, f"--out_dir={way}/life"],
                           os.path.dirname(way))]


def two_runs(work, quick):
    whole, out = once(work, "birth", NEWBORN), fresh(work, "shared")
    first = start([*NEWBORN, f"--out_dir={out}"])
    while not os.path.isfile(os.path.join(out, "args.json")):
        time.sleep(0.1)
    others = [call(words) for words in ([*NEWBORN, f"--out_dir={out}"],
                                        ["--resume", f"--out_dir={out}"])]
    code, _, _ = finish(first)
    good = code == 0 and same(whole, out)
    good = good and all(c == 2 and "another run is alive" in said[0] for c, _, said in others)
    rows = [row("a second run in the same --out_dir", "refused in one line; the first: same bits",
                good, others)]
    rounds = 30 if quick else 300
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        both = sum(pool.map(contest, [(fresh(work, "contest"), rounds)] * 2, chunksize=1))
    return rows + [row(f"two runs begin at once, {rounds} rounds", "never both in the folder",
                       both == 0, f"{both} times both")]


def contest(task):
    """Occupy a folder again and again; returns how often somebody else was inside, too."""
    folder, rounds = task
    both, marker = 0, folder + ".inside"
    for _ in range(rounds):
        with suppress(ValueError):
            lock = store.occupy(folder)
            try:
                os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
                os.remove(marker)
            except FileExistsError:
                both += 1
            lock.close()
    return both


def ctrl_c(work, quick):
    words = nights(work)
    whole = once(work, "whole", words)
    seconds, rows = stats.read(os.path.join(work, "whole.seconds")), []
    for share, number in ((0.4, signal.SIGINT), (0.7, signal.SIGTERM))[:1 if quick else 2]:
        out = fresh(work, "stopped")
        process = start([*words, f"--out_dir={out}"])
        time.sleep(share * seconds)
        process.send_signal(number)
        stopped, _, said = finish(process)
        code, more = resume(out)
        told = any("--resume" in line for line in said)
        good = stopped == 2 and told and code == 0 and same(whole, out)
        name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        rows.append(row(f"{name} after {share:.0%} of the run",
                        "saved, said how to go on: same bits", good, (stopped, said, more)))
    said = []
    for wait in (0.3, 0.8, 1.5):                             # while torch loads
        process = start([*TINY, f"--out_dir={fresh(work, 'loads')}"])
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        code, _, lines = finish(process)
        said.append((code, lines))
    good = all(not any("Traceback" in line for line in lines) for _, lines in said)
    return rows + [row("Ctrl-C while torch loads", "no traceback", good, said)]


def bad_night(work, quick):
    """The second night is sabotaged: it is undone, and its day stays in the context."""
    rows, words = [], [w for w in nights(work) if not w.startswith("--period")]
    calm = once(work, "calm", words)
    first = weights(calm, "checkpoint.pt.before")["model"]           # in the first morning
    names = {"nan": "a NaN in the weights", "noise": "weights of noise",
             "algebra": "a matrix that cannot be inverted", "rate": "a rate 1,000 times too high"}
    for how, name in list(names.items())[:2 if quick else 4]:
        out = fresh(work, "sabotaged")
        code, _, said = call([*words, f"--out_dir={out}"], [f"--sabotage={how}"])
        life = weights(out) if code == 0 else {"model": {}, "nights": [{}, {}], "pending": []}
        undone = life["nights"][1].get("undone")
        good = undone and life["pending"] and equal(life["model"], first)
        outcome = "undone, the day kept for tomorrow: the bits of the morning before"
        if code == 0 and how in ("rate", "noise") and not undone:
            good = how == "rate" or life["pending"]
            good = good and all(equal_so_far(first[k], t) for k, t in life["model"].items()
                                if "levels.0." not in k)             # there the writer of dreams is
            outcome = "what was there before is the same, bit for bit; " + (
                "the day kept for tomorrow" if life["pending"] else "it learnt")
        rows.append(row(f"night 2: {name}", outcome, good, (code, undone, said)))
    return rows


def equal_so_far(old, new):
    """Is the tensor of yesterday still there, at the beginning of today's?"""
    return bool(torch.isfinite(new).all()) and torch.equal(old, new[:len(old)] if old.ndim else new)


# --------------------------------------------------------------------------------------------------
# Whatever can be typed or found: one clear line, nothing moved, nothing lost

def refused(fault, words, folder, says="", hurt_by=(), **kw):
    """A row: exit 2, one line (with these words), and every file of the folder as it was."""
    before = contents(folder)
    code, _, said = call(words, hurt_by, **kw)
    good = code == 2 and len(said) == 1 and says in said[0] and contents(folder) == before
    return row(fault, "one line, nothing moved", good, (code, said))


def typed(work, quick):
    life = once(work, "birth", NEWBORN)
    into = f"--out_dir={life}"
    rows = [refused("an empty --ask", [into, "--ask="], life, "--ask is empty"),
            refused("--context without --ask", [into, "--context=Hello."], life, "--ask"),
            refused("--ask with another --data", [into, "--ask=Who?", "--data=clinc150"], life),
            refused("--ask and --resume", [into, "--ask=Who?", "--resume"], life),
            refused("--resume with another flag", [into, "--resume", "--days=9"], life),
            refused("an unknown flag", [into, "--dais=3"], life, "did you mean --days"),
            refused("a folder without a life is asked", [f"--out_dir={work}/nowhere", "--ask=Hi"],
                    work),
            refused("--init_from is missing", [*TINY, into, "--init_from=/nowhere.pt"], life),
            refused("more memory than there is (4 GB)", [*TINY, into, "--n_embd=16384"], life,
                    "out of memory: lower", ["--memory=4"])]
    code, _, said = call(["--people=99999"])
    alone = code == 2 and len(said) == 1 and "--days" not in said[0]
    rows.append(row("a refusal names what was given alone", "--people, not --days", alone, said))
    for path in sorted(glob.glob(os.path.join(ROOT, "bench", "*.py"))):
        with open(path, encoding="utf-8") as f:
            script = '__name__ == "__main__"' in f.read()
        if script:
            ran = subprocess.run([sys.executable, path, "--nonsens"], capture_output=True,
                                 text=True, cwd=work)
            one = ran.returncode == 2 and len(ran.stderr.strip().splitlines()) == 1
            rows.append(row(f"bench/{os.path.basename(path)} --nonsens", "one line", one,
                            ran.stderr[-300:]))
    return rows


def kept(work, quick):
    """A new life where an earlier one is: every file of the earlier one is still somewhere."""
    rows, old = [], once(work, "birth", NEWBORN)
    ways = {"--out_dir=life": ".", "--out_dir=life/": ".", "--out_dir=.": "life",
            "--out_dir=link": ".", "--out_dir=life without args.json": "."}
    for flag, where in ways.items():
        place = fresh(work, "kept")
        shutil.copytree(old, os.path.join(place, "life"))
        os.symlink("life", os.path.join(place, "link"))
        before = contents(os.path.join(place, "life"))
        if "without" in flag:
            os.remove(os.path.join(place, "life", "args.json"))
            before.pop("args.json")
        code, _, said = call([*TINY, flag.split(" ")[0]], cwd=os.path.join(place, where))
        everywhere = contents(place)
        lost = [name for name, data in before.items()
                if not any(path.endswith(name) and data == there
                           for path, there in everywhere.items())]
        rows.append(row(f"a second life, {flag}", "the first is whole, in a folder of its own",
                        code == 0 and not lost, (code, said, lost)))
    return rows


def forged(fault, folder, name, content):
    """A row: a self whose checkpoint has this content is asked."""
    store.save(os.path.join(folder, name), content)
    with suppress(FileNotFoundError):
        os.remove(os.path.join(folder, name + ".before"))
    return refused(fault, [f"--out_dir={folder}", "--ask=Who?"], folder)


def files(work, quick):
    """Files from elsewhere: refused in one line, soon, whatever they ask for."""
    out = fresh(work, "forged")
    shutil.copytree(once(work, "birth", NEWBORN), out)
    whole = weights(out)
    mad = {**whole["model"], "wte.weight": whole["model"]["wte.weight"] * float("nan")}
    rows = [forged("NaN among the weights", out, "checkpoint.pt", {**whole, "model": mad})]
    for key, value in (("n_layer", 10 ** 9), ("n_embd", -1), ("ranks", [10 ** 12]), ("act", 3)):
        content = {**whole, "config": {**whole["config"], key: value}}
        rows.append(forged(f"a checkpoint with {key}={value}", out, "checkpoint.pt", content))
    gpt2 = fresh(work, "gpt2")
    os.makedirs(gpt2)
    words = [*TINY, f"--init_from={gpt2}", f"--out_dir={work}/never"]
    for name, header, config in (
            ("tensors named h.999999999", {"h.999999999.ln_1.weight": [1]}, "{}"),
            ("config.json is a list", {"wte.weight": [1]}, "[1, 2]"),
            ("a header that is no table", [], "{}")):
        described = {k: {"dtype": "F32", "shape": v, "data_offsets": [0, 4]}
                     for k, v in dict(header).items()} if header else header
        body = json.dumps(described).encode()
        store.write(f"{gpt2}/model.safetensors", len(body).to_bytes(8, "little") + body + bytes(4))
        store.write(f"{gpt2}/config.json", config.encode())
        rows.append(refused(f"GPT-2: {name}", words, gpt2))
    return rows


def terminals(work, quick):
    """Closed, full and old terminals; and what the last line says can be pasted into a shell."""
    rows, once_more = [], fresh(work, "it's my life")
    words = [*TINY, f"--out_dir={once_more}"]
    code, last, said = call(words)
    pasted = shlex.split(last)
    good = code == 0 and f"--out_dir={once_more}" in pasted
    rows.append(row("--out_dir with a blank and a quote", "the hint can be pasted", good, last))
    whole = weights(once_more)["model"]
    for name, kw in (("stderr is full", {"stderr": open("/dev/full", "w")}),
                     ("stdout is full", {"stdout": open("/dev/full", "w")}),
                     ("all three are closed", {"preexec_fn": close_all})):
        out = fresh(work, "mute")
        code = call([*TINY, f"--out_dir={out}"], **kw)[0]
        good = code == 0 and equal(weights(out)["model"], whole)
        rows.append(row(name, "the life goes on: same bits", good, code))
    code, _, said = call([f"--out_dir={once_more}", "--ask=Où est Ada?"],
                         env={"PYTHONIOENCODING": "ascii"})
    rows.append(row("a terminal that knows only ASCII", "answered", code == 0, said))
    out = fresh(work, "again")
    first = call([*TINY, f"--out_dir={out}"], ["--die=exam.metrics:1"])[0]
    code, said = resume(out)
    command = (stats.read(os.path.join(out, "summary.json")) or {}).get("command", "")
    good = first == -9 and code == 0 and "--pretrain_steps=2" in command
    return rows + [row("summary.json after --resume", "has the command that began", good, command)]


def close_all():
    for number in (0, 1, 2):
        os.close(number)


GROUPS = {f.__name__: f for f in (repeatable, kill, damaged, disk, two_runs, ctrl_c, bad_night,
                                  typed, kept, files, terminals)}


# --------------------------------------------------------------------------------------------------
# What keeping costs, and all of it

def cost(work, base):
    """Share of the time of two default nights that goes into checkpoints, and into looking back."""
    spent = {"save": 0.0, "look_back": 0.0}

    def timed(module, name):
        real = getattr(module, name)

        def wrapper(*args, **kw):
            began = time.time()
            try:
                return real(*args, **kw)
            finally:
                spent[name] += time.time() - began
        setattr(module, name, wrapper)
    timed(sleep, "save"), timed(seed, "look_back")
    words = ["--days=2", "--contrast=0", "--threads=1", *([f"--init_from={base}"] if base else [])]
    began = time.time()
    sleep.main([*words, f"--out_dir={fresh(work, 'cost')}"])
    seconds = time.time() - began
    return {"command": "python sleep.py --days=2 --contrast=0 --threads=1" + " --init_from=BASE" *
            bool(base), "seconds": round(seconds, 1), "save": round(spent["save"] / seconds, 4),
            "gone_wrong": round(spent["look_back"] / seconds, 4)}


def main(argv):
    o = flags.parse(argv, __doc__, FLAGS, "faults.py")
    only = o.only.split(",") if o.only else list(GROUPS)
    for name in only:
        if name not in GROUPS:
            flags.fail(f"--only: there is no {name!r}: {', '.join(GROUPS)}", "faults.py")
    o.work = os.path.abspath(o.work + "-quick" * o.quick)
    os.makedirs(o.work, exist_ok=True)
    path = os.path.join(o.work, "done.json")
    done = stats.read(path) or {}
    print(f"expect about {3 if o.quick else 15} minutes on one quiet CPU core", flush=True)
    for name in only:
        print(name)
        if name not in done:
            done[name] = GROUPS[name](o.work, o.quick)
            store.write_json(path, done)
    rows = [r for name in GROUPS for r in done.get(name, [])]
    lost = [r["fault"] for r in rows if not r["survived"]]
    print(f"{len(rows)} faults tried, {len(rows) - len(lost)} survived, {len(lost)} lost {lost}")
    if not o.quick and set(GROUPS) <= set(done):
        done["cost"] = done.get("cost") or cost(o.work, o.base)
        store.write_json(path, done)
        store.write_json(o.result, {
            **stats.provenance("python bench/faults.py"), "device": "cpu",
            "life": shlex.join(["python", "sleep.py", *NIGHTS]), "rows": rows,
            "tried": len(rows), "lost": len(lost), "cost": done["cost"]})
    if lost:
        raise SystemExit(1)


if __name__ == "__main__":
    if "--" in sys.argv:
        middle = sys.argv.index("--")
        hurt(sys.argv[1:middle], sys.argv[middle + 1:])
    else:
        flags.guarded(main, "faults.py")
