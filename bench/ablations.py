"""
Which ingredient of sleep matters? Lives with one ingredient taken away or changed, lived by the
functions of sleep.py; a constant of a chapter is changed where there is no flag.

    python bench/ablations.py              all lives below x 5 seeds -> bench/results/ablations.json
    python bench/ablations.py --quick      1 seed, 4 lives, small: does everything run?
    python bench/ablations.py --only=sleep the whole night alone
    python bench/ablations.py --only=rivals --search       only find the rates of rivals
    python bench/report.py                 the tables, from the result file

Tables 1 and 3 (lower halves) and the question of Figure 4 of Language Models Need Sleep (arXiv
2606.03979), on the embedded world. All lives of a seed start from the same base and meet the same
people; differences are paired by seed. They are all of the whole night (`--paper`): "sleep" has
every ingredient, "gate+sft" is the default night. Where nothing is seen in a week, the *regimes*
look for it where it should show: short nights, a self that reads badly, 24 dreams a night. (Few
quizzes are none any more: a night asks everything of each thing, however little it has written.)
A life once lived is kept, one that was interrupted goes on.

Rivals with the same arms (bench/rivals.py) are compared with the plain one, `gate+sft`: expert,
gate, quizzes, labels. Their rates are searched over the nights they are used for, on seeds that are
in no table; every try is in the file ("search").
"""
import importlib
import json
import os
import shlex
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout
from functools import reduce
from multiprocessing import get_context
from statistics import mean

import torch
from tqdm import tqdm

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import sleep                                                         # noqa: E402
from bench import rivals, stats, variants                            # noqa: E402
from data import exam, flags, store                                  # noqa: E402
from data.flags import SWITCH, TEXT                                  # noqa: E402

BESIDE = {"rivals": rivals, "variants": variants}   # whose functions may take a chapter's place
LABELS = ["--divergence=sft", "--on_policy=0"]
PARTS = {  # parts of a night that are taken away, in the default life and in every regime
    "SFT instead of KL": LABELS, "no on-policy steps": ["--on_policy=0"],
    "no imitation": ["--imitate=0"], "no curriculum": ["--curriculum=0"],
    "no dreaming": ["--dream=0"],                    # 20 of some 400 steps are dreaming's
}
SHORT = ["--seed_steps=160"]           # about half as many as a night takes: room to be better
REGIMES = {  # name: (flags and constants; "no dreaming" there)
    "short nights": (SHORT, ["--dream=0", "--seed_steps=180"]),
    "poor reader": (["--pretrain_steps=600"], ["--dream=0"]),
}
BUDGET = ["--budget=24"]
SAME, KL = [*LABELS, "--dream=0"], ["--on_policy=0", "--dream=0"]
LORA = ["model.Block.forward=rivals.lora"]
RIVALS = {  # one thing differs from gate+sft: what learns, or what it learns from
    "gate+lora": SAME + LORA, "gate+lora KL": KL + LORA,
    "gate+cartridge": [*KL, "model.Block.forward=rivals.cartridge",
                       "seed.open_gate=rivals.open_cartridge", "seed.descend=rivals.adam"],
    "gate+sdft": [*SAME, "seed.distil=rivals.sdft", "seed.reader=rivals.reader"],
    "sparse": [*SAME, "--expand=0", "--replay=0", "seed.distil=rivals.sparse"]}    # has no gate
RATES = {  # that are searched, of seed.LR; the middle one where nobody has searched
    **dict.fromkeys(["gate+lora", "gate+lora KL"], (0.045, 0.09, 0.18, 0.36)),
    "gate+cartridge": (0.1, 0.3, 1.0), "gate+sdft": (0.09, 0.18, 0.36, 0.72),
    "sparse": (0.002, 0.006, 0.018)}
APART = exam.APART | {"false_unknown"}
WARM = ["seed.LATE=0.3"]            # on-policy steps begin after three tenths of a night


def lives():
    """{name: (group, nights, flags and constants)}: every life of this file. "no imitation (few
    quizzes)" is compared with "few quizzes", all others with "sleep" (bench/stats.py)."""
    found = {"sleep": ("ingredients", 7, []), "none": ("ingredients", 7, ["--method=none"]),
             "sft": ("ingredients", 7, ["--method=sft"])}

    def add(group, nights, rows, regime=None):
        for name, more in rows.items():
            name, base = (name, []) if regime is None else (f"{name} ({regime})", found[regime][2])
            found[name] = (group, nights, base + more)
    add("ingredients", 2, {**PARTS, "no expansion": ["--expand=0"],
                           "reverse KL": ["--divergence=reverse"]})
    add("ingredients", 7, {"gate+sft": SAME})                      # all of it in a plain rival
    add("rivals", 7, {k: v for k, v in RIVALS.items() if k != "gate+sdft"})
    add("rivals", 2, {"gate+sdft": RIVALS["gate+sdft"]})           # its nights take longest
    add("ingredients", 3, {"no gate": ["--gate=0"],                # each alone: gate, new experts
                           "open router": ["seed.open_gate=variants.open_router",
                                           "data.asking.MOVED=1"],
                           "one expert": ["seed.open_gate=variants.one_expert"]})
    add("ingredients", 2, {"chosen dreams learnt": ["dream.learn_to_dream=variants.learn_chosen",
                                                    "seed.DREAM_STEPS=0"]})
    add("warm student", 2, {"warm student": [*SHORT, "--on_policy=0", *WARM]})
    add("warm student", 2, {f"on-policy {share}": [f"--on_policy={share}"]
                            for share in (0.25, 0.5, 1)}, "warm student")
    add("imitation", 2, {"imitation": [*SHORT, "--on_policy=1", *WARM, "seed.ALPHA=1"]})
    add("imitation", 2, {f"alpha {alpha}": [f"seed.ALPHA={alpha}"] for alpha in (0.7, 0.5)},
        "imitation")
    add("imitation", 2, {"alpha 0.7 judge of texts": [
        "seed.ALPHA=0.7", "seed.on_policy_loss=variants.two_texts"]}, "imitation")
    add("no gate", 3, {"no replay": ["--replay=0"]}, "no gate")
    add("24 dreams", 2, {"24 dreams": BUDGET})
    add("24 dreams", 2, {"gradient norm": ["--select=norm"], "no writer": ["--writer=0"],
                         "random selection": ["--select=random"],
                         "chance and truth": ["dream.importance=variants.by_chance"],
                         "random expert": ["--random_expert=1"]}, "24 dreams")
    for regime, (base, dreamless) in REGIMES.items():
        add(regime, 2, {regime: base})
        add(regime, 2, {**PARTS, "no dreaming": dreamless}, regime)
    add("levels", 4, {"every 2 nights": ["--period=2"], "every 4 nights": ["--period=4"]})
    add("rank", 1, {f"rank {r}": [f"--rank={r}"] for r in (4, 64)})
    return found


LIVES = lives()
QUICK_LIVES = ["sleep", "none", "gate+sft", "no gate"]
GROUPS = list(dict.fromkeys(group for group, *_ in LIVES.values()))
FLAGS = {  # name: (default, allowed, what it does), as in data/flags.py
    "seeds": ("1,2,3,4,5", TEXT, "seeds of model, world and life"),
    "only": ("", TEXT, "names of lives or groups, commas between them; nothing: all"),
    "work": ("out-ablations", TEXT, "folder of the lives"),
    "result": (os.path.join(stats.RESULTS, "ablations.json"), TEXT, "result file"),
    "jobs": (2, (1, 256), "lives at a time, one thread each"),
    "search": (False, SWITCH, "live nothing: search the rates of rivals on the validation seeds"),
    "validation": ("31,32", TEXT, "seeds of the search; none of them is in a table"),
    "horizon": (0, flags.COUNT, "nights of a try; 0: as many as the life has"),
    "quick": (False, SWITCH, "1 seed, 4 lives of two short nights, small"),
}
QUICK = {"seeds": "1", "only": ",".join(QUICK_LIVES)}
SMALL = ["--n_layer=2", "--n_embd=64", "--pretrain_steps=600", "--people=2", "--quizzes=1",
         "--seed_steps=30", "--days=2"]


def fail(message):
    flags.fail(message, "ablations.py")


def parse(argv):
    o = flags.parse(argv, __doc__, FLAGS, "ablations.py", QUICK)
    o.seeds, o.validation = (flags.numbers(getattr(o, k), k, "ablations.py")
                             for k in ("seeds", "validation"))
    if set(o.seeds) & set(o.validation):
        fail("--seeds: rates are searched on the seeds of --validation; choose others")
    only = o.only.split(",") if o.only else list(LIVES)
    for name in only:
        if name not in LIVES and name not in GROUPS:
            fail(f"--only: there is no {name!r}; lives: {', '.join(LIVES)}; groups: "
                 f"{', '.join(GROUPS)}")
    asked = {n for n in LIVES if n in only or LIVES[n][0] in only}
    o.only = [n for n in LIVES if n in asked | {against(n) for n in asked}]
    o.rates = {name: rates[1] for name, rates in RATES.items()}
    if o.quick and o.result == FLAGS["result"][0]:
        o.result = os.path.join(o.work, "quick.json")
    return o


def against(name):
    """The life that this one is compared with, as in bench/stats.py; None for the first."""
    found = {n: {0: {"group": group}} for n, (group, *_) in LIVES.items()}
    return stats.against(found, name)


# --------------------------------------------------------------------------------------------------
# One life

def words_of(name, seed, o, rate=None):
    """(flags of sleep.py, constants as module.NAME=number) of one life; its base is apart. rate: of
    a try of the search, which is perhaps shorter."""
    _, nights, more = LIVES[name]
    if name in RATES:
        rate_of = "seed.MLP_LR" if "--expand=0" in more else "seed.LR"
        more = [*more, f"{rate_of}={o.rates[name] if rate is None else rate}"]
    if rate is not None and o.horizon:
        nights = min(nights, o.horizon)
    words = [f"--seed={seed}", f"--world_seed={seed}", "--threads=1", "--paper",
             *(SMALL if o.quick else [f"--days={nights}"]), *more]
    return [w for w in words if w[0] == "-"], [w for w in words if w[0] != "-"]


def folder(name, seed, o):
    name = name.replace(" ", "_").replace("(", "").replace(")", "")
    return os.path.join(o.work, f"{name}-{seed}{'-quick' * o.quick}")


@contextmanager
def constants(words):
    """Inside, constants of chapters have other values, and functions others of bench/ in their
    place: ["seed.STEPS=42", "model.Block.forward=rivals.lora"]."""
    usual = []
    for word in words:
        place, _, value = word.partition("=")
        (chapter, *path), name = place.split(".")[:-1], place.split(".")[-1]
        holder = reduce(getattr, path, importlib.import_module(chapter))
        usual.append((holder, name, getattr(holder, name)))
        if callable(usual[-1][2]):
            file, _, function = value.partition(".")
            setattr(holder, name, getattr(BESIDE[file], function))
        else:
            setattr(holder, name, type(usual[-1][2])(float(value)))
    try:
        yield
    finally:
        for holder, name, value in reversed(usual):
            setattr(holder, name, value)


def begun(words, out):
    """The flags of a life of sleep.py that goes on where it stands, and its data."""
    os.makedirs(out, exist_ok=True)
    a = flags.parse([*words, f"--out_dir={out}"])
    a.lock = store.occupy(out)
    a.resume, a.command, a.torch_device = True, shlex.join(words), torch.device("cpu")
    return a, sleep.DATA[a.data](a)


def base_words(name, seed, o):
    """What makes the base of a life: rank and nights do not count, the rest of the flags is how it
    is pretrained."""
    kept = ("seed", "world_seed", "threads", "n_layer", "n_embd", "people", "pretrain_steps")
    given = flags.given(words_of(name, seed, o)[0])
    return [f"--{k}={given[k]}" for k in kept if k in given]


def base_folder(name, seed, o):
    made_by = [w for w in base_words(name, seed, o) if w.startswith("--pretrain_steps")]
    return folder("-".join(["base", *made_by]).replace("--", "").replace("=", "-"), seed, o)


def born(name, seed, o):
    """The base of a life, in a process of its own: pretrained once, gone on with if cut off."""
    out = base_folder(name, seed, o)
    with quiet():
        a, data = begun(base_words(name, seed, o), out)
        done = os.path.isfile(os.path.join(out, "base.pt"))
        sleep.pretrained(a, None if done else sleep.born(a, data), data)


def live(name, seed, o, rate=None):
    """One life in a process of its own -> its row of the result file, or of the search."""
    words, changed = words_of(name, seed, o, rate)
    where = f"{name} {o.rates[name]}" if name in RATES else name
    out = folder(where if rate is None else f"search {name} {rate} {o.horizon}", seed, o)
    base = os.path.join(base_folder(name, seed, o), "base.pt")
    with quiet(), constants(changed):
        a, data = begun([*words, f"--init_from={base}"], out)
        model, seconds = sleep.pretrained(a, sleep.born(a, data), data)
        s = sleep.live(a, a.method, model, data, a.out_dir, seconds)
        _, state = sleep.load(os.path.join(a.out_dir, "checkpoint.pt"), "cpu")
    for night, graded in zip(state["nights"], state["graded"]):
        night["reversed"] = exam.share(graded, ["reversed"]) or 0.0
        night["both"] = exam.share(graded, {*graded} - APART | {"reversed"})
        night["seconds"] = {"night": s["seconds"]["night"] / s["days"]}      # a mean, each
    command = " ".join(["python sleep.py", shlex.join(words), "--init_from=BASE", *changed])
    if rate is not None:
        return {"life": name, "seed": seed, "rate": rate, "nights": s["days"], "command": command,
                "commit": stats.commit(), **{k: s[k] for k in ("ACC", "recall", "BWT")},
                "old": s["old_after"], "reading": s["reading_after"],
                "seconds": s["seconds"]["total"]}
    keys = ("R", "ACC", "BWT", "forgetting", "recall", "old_before", "reading_before", "kinds",
            "params_before", "params_after", "seconds", "device")
    if name in RATES:
        s["rate"], keys = o.rates[name], ("rate", *keys)
    return {"life": name, "group": LIVES[name][0], "seed": seed, **stats.provenance(command),
            **{k: s[k] for k in keys}, "nights": state["nights"]}


@contextmanager
def quiet():
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


# --------------------------------------------------------------------------------------------------
# All of them

def opened(o, argv):
    """The result file to go on with, its provenance renewed. One of an older bench is refused."""
    shown = [w for w in argv if not w.startswith(("--work", "--result", "--jobs"))]
    file = stats.read(os.path.abspath(o.result)) or {"runs": []}
    if any("commit" not in r for r in file["runs"]):
        fail(f"{o.result} holds lives of an older bench: name another --result, or take it away")
    return {**stats.provenance(shlex.join(["python", "bench/ablations.py", *shown])),
            "search": file.get("search", []), "runs": file["runs"]}


def untried(o, file):
    """[(life, seed, rate)] that the search has not tried over these nights yet."""
    def nights(name):
        return 2 if o.quick else min(LIVES[name][1], o.horizon or LIVES[name][1])
    done = {(r["life"], r["seed"], r["rate"], r["nights"]) for r in file["search"]}
    return [(n, s, rate) for n in o.only if n in RATES for s in o.validation for rate in RATES[n]
            if (n, s, rate, nights(n)) not in done]


def best(file, name):
    """The rate of a rival with the best ACC over the validation seeds (then recall, then the
    lowest), of the longest tries there are; the middle of its grid where there are none."""
    rows = [r for r in file["search"] if r["life"] == name]
    rows = [r for r in rows if r["nights"] == max(r["nights"] for r in rows)]

    def found(rate):
        mine = [r for r in rows if r["rate"] == rate]
        return mean(r["ACC"] for r in mine), mean(r["recall"] for r in mine)
    return max(sorted({r["rate"] for r in rows}), key=found) if rows else RATES[name][1]


def leave_with(parent):
    """A worker ends with its parent, even one that was killed, not lives on beside its successor."""
    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


def all_of(o, pool, function, todo, bar):
    """What function(*row, o) returns for each row, in this order, as soon as it is there."""
    waiting = [pool.submit(function, *row[:2], o, *row[2:]) for row in todo]
    for future in waiting:
        yield json.loads(json.dumps(future.result()))
        bar.update()


def main(argv):
    o = parse(argv)
    os.makedirs(o.work, exist_ok=True)
    file = opened(o, argv)
    done = {(r["life"], r["seed"]) for r in file["runs"]}
    todo = [(n, s) for s in o.seeds for n in o.only if (n, s) not in done and not o.search]
    tries = untried(o, file) if o.search else []
    bases = {base_folder(n, s, o): (n, s) for n, s, *_ in reversed(tries + todo)}
    nights = sum(2 if o.quick else LIVES[n][1] for n, *_ in todo + tries)
    minutes = (0.1 * nights + 0.6 * len(bases)) if o.quick else 0.9 * nights + 6.0 * len(bases)
    print(f"{len(tries)} tries, {len(todo)} lives from {len(bases)} bases, {o.jobs} at a time; "
          f"expect about {minutes / o.jobs:.0f} minutes on {o.jobs} quiet cores", flush=True)
    os.environ["TQDM_DISABLE"] = "1"                                 # of the lives; ours stays
    total = len(bases) + len(tries) + len(todo)
    bar = tqdm(total=total, unit="life", mininterval=1.0, disable=False)
    with ProcessPoolExecutor(o.jobs, get_context("spawn"), leave_with, (os.getpid(),)) as pool:
        try:
            for _ in all_of(o, pool, born, list(bases.values()), bar):
                pass
            for rows, asked in (("search", tries), ("runs", todo)):
                o.rates = {name: best(file, name) for name in RATES}
                for row in all_of(o, pool, live, asked, bar):
                    file[rows].append(row)
                    store.write_json(o.result, file)
        except BaseException:
            pool.shutdown(cancel_futures=True)          # what has not begun is not lived
            raise
    bar.close()
    for name in (n for n in o.only if n in RATES or not o.search):
        runs = [r["ACC"] for r in file["runs"] if r["life"] == name]
        rate = f"  rate {best(file, name)}" if name in RATES else ""
        print(f"{name:34} ACC {stats.pm(runs)}{rate}")


if __name__ == "__main__":
    flags.guarded(main, "ablations.py")
