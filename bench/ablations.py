"""
Which ingredient of sleep matters? Lives with one ingredient taken away or changed; each is the real sleep.py.

    python bench/ablations.py              all lives below x 5 seeds -> bench/results/ablations.json; a life once lived is kept
    python bench/ablations.py --quick      2 seeds, 4 lives, small: does everything run? (numbers mean little)
    python bench/ablations.py --table      the tables, from the result file alone
    python bench/ablations.py --only=sleep the default life alone (README, "What to expect")

Tables 1 and 3 (lower halves) and the question of Figure 4 of Language Models Need Sleep (arXiv 2606.03979), on the embedded
world. All lives of a seed start from the same pretrained base and meet the same people; differences are paired by seed.
Where nothing is seen in the default life, the *regimes* look for it where it should show: few quizzes, short nights, a self
that reads badly, answers of 9 tokens, 24 dreams a night. Regimes were set on seed 101, which is not among the seeds.
"""
import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from tqdm import tqdm

from bench import stats
from data import flags, store
from data.flags import SWITCH, TEXT

PARTS = {  # ingredients of a night that are taken away; in a life of their own, and again in every regime
    "SFT instead of KL": ["--divergence=sft", "--on_policy=0"],
    "no on-policy steps": ["--on_policy=0"],
    "no imitation": ["--imitate=0"],
    "no curriculum": ["--curriculum=0"],
}
REWARDS = {"lexical reward only": ["--gamma=0"], "semantic reward only": ["--gamma=1"]}
REGIMES = {  # name: (flags, and "no dreaming" there: as many steps in all)
    "few quizzes": (["--views=2", "--quizzes=1"], ["--dream=0", "--seed_steps=240"]),
    "short nights": (["--seed_steps=35", "--dream_steps=15"], ["--dream=0", "--seed_steps=50"]),
    "poor reader": (["--pretrain_steps=300"], ["--dream=0", "--seed_steps=240"]),
    "longer answers": (["--things=5", "--views=2", "--quizzes=2"], ["--dream=0", "--seed_steps=240"]),
}
BUDGET = ["--budget=24", "--dream_steps=0"]


def lives():
    """{name: (group, nights, flags, the life it is compared with)}: every life of this file."""
    found = {"sleep": ("ingredients", 7, [], None)}

    def add(group, against, nights, rows):
        found.update({name: (group, nights, more, against) for name, more in rows.items()})
    add("ingredients", "sleep", 2, {
        "no expansion": ["--expand=0"], "no gate": ["--gate=0"], "no replay": ["--replay=0"], **PARTS,
        "no dreaming": ["--dream=0", "--seed_steps=240"],
        "reverse KL": ["--divergence=reverse"]})
    add("24 dreams", None, 2, {"24 dreams": BUDGET})
    add("24 dreams", "24 dreams", 2, {
        name + " (24 dreams)": BUDGET + more for name, more in {
            "gradient norm": ["--select=norm", "--truth=0"], "random selection": ["--select=random", "--truth=0"],
            "random expert": ["--random_expert=1"], "no writer": ["--writer=0"]}.items()})
    for regime, (base, dreamless) in REGIMES.items():
        parts = {**PARTS, **(REWARDS if "--views=2" in base else {}), "no dreaming": dreamless}
        add(regime, None, 1, {regime: base})
        add(regime, regime, 1, {f"{name} ({regime})": base + more for name, more in parts.items()})
    add("levels", "sleep", 4, {"every 2 nights": ["--period=2"], "every 4 nights": ["--period=4"]})
    add("more nights", "sleep", 5, {"no replay (more nights)": ["--replay=0"]})
    add("rank", "sleep", 1, {f"rank {r}": [f"--rank={r}"] for r in (4, 64)})
    return found


LIVES = lives()
QUICK_LIVES = ["sleep", "no expansion", "no gate", "no replay"]
GROUPS = list(dict.fromkeys(group for group, *_ in LIVES.values()))
FLAGS = {  # name: (default, allowed, what it does), as in data/flags.py
    "seeds": ("1,2,3,4,5", TEXT, "seeds of model, world and life"),
    "only": ("", TEXT, "names of lives or groups, commas between them; nothing: all"),
    "work": ("out-ablations", TEXT, "folder of the lives"),
    "result": (os.path.join(stats.RESULTS, "ablations.json"), TEXT, "result file"),
    "jobs": (2, (1, 256), "lives at a time, one thread each"),
    "quick": (False, SWITCH, "2 seeds, 4 lives of two short nights, small"),
    "table": (False, SWITCH, "print the tables of the result file and stop"),
}
QUICK = {"seeds": "1,2", "only": ",".join(QUICK_LIVES)}
SMALL = ["--pretrain_steps=500", "--people=4", "--seed_steps=60", "--dream_steps=8", "--replay_dreams=120", "--quizzes=3"]
LEFT_OUT = {"in_context", "params"}                                   # of a night: what the summary says


def fail(message):
    flags.fail(message, "ablations.py")


def parse(argv):
    o = flags.parse(argv, __doc__, FLAGS, "ablations.py", QUICK)
    o.seeds, o.only = flags.numbers(o.seeds, "seeds", "ablations.py"), o.only.split(",") if o.only else list(LIVES)
    for name in o.only:
        if name not in LIVES and name not in GROUPS:
            fail(f"--only: there is no {name!r}; lives: {', '.join(LIVES)}; groups: {', '.join(GROUPS)}")
    o.only = [n for n in LIVES if n in o.only or LIVES[n][0] in o.only]
    needed = {LIVES[n][3] for n in o.only} - {None}                   # a difference needs both sides
    o.only = [n for n in LIVES if n in o.only or n in needed]
    if o.quick and o.result == FLAGS["result"][0]:
        o.result = os.path.join(o.work, "quick.json")
    return o


# ----------------------------------------------------------------------------------------------------------------------
# Lives

def words_of(name, seed, o):
    """The flags of sleep.py for one life."""
    _, nights, more, _ = LIVES[name]
    small = [*SMALL, "--stop=2"] if o.quick else [f"--stop={nights}"]
    beside = [] if name == "sleep" else ["--contrast=0"]              # none and sft are lived once, beside the default life
    return ["--threads=1", f"--seed={seed}", f"--world_seed={seed}", *small, *more, *beside]


def base_of(name, seed, o):
    """The life whose base this one starts from: the first of its seed with the same pretraining."""
    pretraining = lambda name: [w for w in LIVES[name][2] if w.startswith(("--pretrain", "--things"))]
    first = next(n for n in LIVES if pretraining(n) == pretraining(name))
    return None if first == name else os.path.join(folder(first, seed, o), "base.pt")


def folder(name, seed, o):
    return os.path.join(o.work, f"{name.replace(' ', '_').replace('(', '').replace(')', '')}-{seed}{'-quick' * o.quick}")


def live(name, seed, o):
    """One life in a process of its own, unless it has been lived; one that was interrupted goes on."""
    out, base = folder(name, seed, o), base_of(name, seed, o)
    if os.path.isfile(os.path.join(out, "summary.json")):
        return
    words = words_of(name, seed, o)
    if base:
        words.append(f"--init_from={base}")
    if os.path.isfile(os.path.join(out, "args.json")):
        words = ["--resume"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, os.path.join(ROOT, "sleep.py"), *words, f"--out_dir={out}"], env=env,
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if ran.returncode:
        raise ChildProcessError(f"{name}, seed {seed}: " + (ran.stderr.strip().splitlines() or ["no word"])[-1])


def collected(name, seed, out, o):
    """[rows for the result file]: the life, and those lived beside it."""
    rows = []
    for beside in ("", "none", "sft") if name == "sleep" else ("",):
        with open(os.path.join(out, beside, "summary.json")) as f:
            s = json.load(f)
        with open(os.path.join(out, beside, "log.jsonl")) as f:
            nights = [{k: round(v, 5) if isinstance(v, float) else v for k, v in json.loads(line).items() if k not in LEFT_OUT}
                      for line in f]
        rows.append({"life": beside or name, "group": LIVES[name][0], "seed": seed,
                     "command": " ".join(["python sleep.py", *map(shlex.quote, words_of(name, seed, o)), *(["--init_from=BASE"]
                                         if base_of(name, seed, o) else [])]) if not beside else "",
                     **{k: s[k] for k in ("R", "ACC", "BWT", "forgetting", "recall", "old_before", "reading_before",
                                          "params_before", "params_after", "seconds", "device", "versions")}, "nights": nights})
    return rows


def main(argv):
    o = parse(argv)
    stored = stats.read(os.path.abspath(o.result))
    if o.table:
        return tables(stored) if stored else fail(f"no results at {o.result}: run without --table first")
    os.makedirs(o.work, exist_ok=True)
    shown = [shlex.quote(w) for w in argv if not w.startswith(("--work", "--result"))]
    file = stored or {"command": " ".join(["python bench/ablations.py", *shown]), "runs": []}
    done = {(r["life"], r["seed"]) for r in file["runs"]}
    todo = [(n, s) for n in o.only for s in o.seeds if (n, s) not in done]
    first = [(n, s) for n, s in todo if base_of(n, s, o) is None]     # these make the bases of the others
    nights = sum(2 if o.quick else LIVES[n][1] for n, _ in todo)
    minutes = 0.4 * nights + 1.2 * len(first)
    print(f"{len(todo)} lives to live, {o.jobs} at a time. Expect about {minutes / o.jobs:.0f} minutes on {o.jobs} quiet cores.",
          flush=True)
    start, bar = time.time(), tqdm(total=len(todo), unit="life", mininterval=1.0)
    with ThreadPoolExecutor(o.jobs) as pool:
        for wave in (first, [x for x in todo if x not in first]):
            futures = {pool.submit(live, n, s, o): (n, s) for n, s in wave}
            try:
                for future, (n, s) in futures.items():
                    future.result()
                    file["runs"] += collected(n, s, folder(n, s, o), o)
                    store.write_json(o.result, file)
                    bar.update(1)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    bar.close()
    print(f"{time.time() - start:.0f} s")
    tables(file)


# ----------------------------------------------------------------------------------------------------------------------
# Tables

def after(run, n):
    """A life cut after night n."""
    R, nights = [row[:n] for row in run["R"][:n]], run["nights"][:n]
    took = [sum(x["seconds"].values()) if isinstance(x.get("seconds"), dict) else 0.0 for x in nights]
    return {"recall": stats.mean(R[i][i] for i in range(n)), "ACC": stats.mean(R[-1]),
            "BWT": stats.mean(R[-1][j] - R[j][j] for j in range(n - 1)) if n > 1 else 0.0,
            "old": nights[-1]["old"], "reading": nights[-1]["reading"], "reversed": stats.mean(x["reversed"] for x in nights),
            "undone": sum("undone" in x for x in nights), "s/night": stats.mean(took)}


def by_life(file):
    """{life: {seed: run}}"""
    found = {}
    for r in file["runs"]:
        found.setdefault(r["life"], {})[r["seed"]] = r
    return found


def differences(found, name, n, key):
    """(life - the life it is compared with) in `key` after night n, a number a seed that has lived both."""
    pairs = [(found[name][s], found[LIVES[name][3]][s]) for s in found[name] if s in found.get(LIVES[name][3], {})]
    return [after(a, n)[key] - after(b, n)[key] for a, b in pairs]


def judged(name, differences):
    """The verdict on the ingredient that is missing in "no ..."; in all other lives on the change itself."""
    v = stats.verdict(differences)
    return v if name.startswith("no ") else v.replace("helps:", "worse by").replace("hurts:", "better by")


def row(name, runs, n):
    cut = [after(r, n) for r in runs]
    cells = [stats.pm([c[k] for c in cut], 1 if k == "s/night" else 3) for k in cut[0] if k != "undone"]
    return f"| {name} | {n} | {len(cut)} | " + " | ".join(cells) + " |"


def tables(file):
    """Markdown: the lives of each group, and the paired differences with 95 % intervals and verdicts."""
    found = by_life(file)
    for group in GROUPS:
        names = [n for n in LIVES if n in found and LIVES[n][0] == group]
        if not names:
            continue
        print(f"\n## {group}\n| life | nights | seeds | recall | ACC | BWT | old | reading | reversed | s/night |\n"
              "|---|---|---|---|---|---|---|---|---|---|")
        for name in names + (["none", "sft"] if group == "ingredients" else []):
            runs = list(found.get(name, {}).values())
            if runs:
                print(row(name, runs, min(len(r["R"]) for r in runs)))
        print("\n| life | nights | ACC | old | reading | nights undone | verdict on ACC |\n|---|---|---|---|---|---|---|")
        for name in names:
            n = min(len(r["R"]) for r in found[name].values())
            if LIVES[name][3] in found and differences(found, name, n, "ACC"):
                d = [differences(found, name, n, k) for k in ("ACC", "old", "reading")]
                cells = [stats.gap(x) for x in d]
                undone = sum(after(r, n)["undone"] for r in found[name].values())
                print(f"| {name} | {n} | " + " | ".join(cells) + f" | {undone} | {judged(name, d[0])} |")


if __name__ == "__main__":
    flags.guarded(main, "ablations.py")
