"""
Who remembers what after a week? The paper's Table 3 on the embedded world: sleep and every rival of
bench/baselines.py, each living the same life of sleep.py.

    python bench/knowledge.py             7 nights x 5 seeds x 15 methods -> results/knowledge.json
    python bench/knowledge.py --quick     1 seed, 2 short nights, a small base: does everything run?
    python bench/report.py                the tables, from the result file

All methods of a seed start from the same base, read the same passages and sit the same exams.
`sleep` is sleep.py with its default flags. Before that the learning rate of each rival (and the
weight of what ewc and lwf protect) is searched on a validation world and seed that occur nowhere
else, for ACC after two nights. Finished (method, seed)s are not run again.

R[i][j]: exam of day j after night i; recall = mean R[i][i]; ACC = mean R[T][j]; BWT = mean of
R[T][j] - R[j][j]. `ahead` is the exam of the day in the evening before its night: nobody can guess,
so a number far from 0 would mean that a method has seen it.
"""
import difflib
import os
import random
import re
import shlex
import shutil
import sys
import time
from contextlib import contextmanager, redirect_stdout
from functools import partial

import torch
from tqdm import tqdm

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import seed as seeding                                               # noqa: E402
import sleep                                                         # noqa: E402
from bench import baselines as B                                     # noqa: E402
from bench import stats                                              # noqa: E402
from data import exam, flags, gate, store, text                      # noqa: E402
from data.flags import COUNT, SWITCH, TEXT                           # noqa: E402
from model import clone                                              # noqa: E402

VALIDATION = 101                                                     # seed and world of the search
LONGER = ["qa_replay", "ewc", "lwf", "replay"]                       # tried with more tokens, too
FLAGS = {  # name: (default, allowed, what it does), as in data/flags.py
    "seeds": ("1,2,3,4,5", TEXT, "seeds of model, world and life"),
    "methods": (",".join(["sleep", *B.METHODS]), TEXT, "which lives to live"),
    "nights": (7, (1, 28), "days and nights of a life"),
    "tokens": (100_000, (1, 10 ** 9), "tokens that go through a rival in a night of learning"),
    "singles": (1, COUNT, "single passages (n = 1), each learnt alone from the base; 0: none"),
    "work": ("out-knowledge", TEXT, "folder of the bases and lives"),
    "result": (os.path.join(stats.RESULTS, "knowledge.json"), TEXT, "result file"),
    "threads": (1, (1, 4096), "CPU threads"),
    "search": (1, SWITCH, "0: no search, the values of baselines.DEFAULTS"),
    "quick": (False, SWITCH, "1 seed, 2 nights, a small base, no search"),
}
QUICK = {"seeds": "1", "nights": 2, "tokens": 6000, "search": 0}
SMALL = ["--n_layer=2", "--n_embd=64", "--pretrain_steps=600", "--people=2", "--quizzes=1",
         "--seed_steps=20"]


def fail(message):
    flags.fail(message, "knowledge.py")


def parse(argv):
    """The flags, with the lists taken apart; what cannot be is refused in one line."""
    o = flags.parse(argv, __doc__, FLAGS, "knowledge.py", QUICK)
    o.seeds, o.methods = flags.numbers(o.seeds, "seeds", "knowledge.py"), o.methods.split(",")
    known = ["sleep", *B.METHODS]
    for m in o.methods:
        if m not in known:
            near = difflib.get_close_matches(m, known, 1, 0.3)
            hint = f"did you mean {near[0]}?" if near else ", ".join(known)
            fail(f"--methods: there is no {m!r}: {hint}")
    if VALIDATION in o.seeds:
        fail(f"--seeds: {VALIDATION} is the validation seed of the search; choose others")
    if o.quick and o.result == FLAGS["result"][0]:
        o.result = os.path.join(o.work, "quick.json")
    return o


# --------------------------------------------------------------------------------------------------
# What a method may see

def texts_in(thing):
    """Every row of token ids (a list or tuple of whole numbers, or a tensor of them) anywhere in a
    method's memory."""
    if isinstance(thing, dict):
        return [row for v in thing.values() for row in texts_in(v)]
    if isinstance(thing, torch.Tensor):
        whole = not thing.is_floating_point()
        return thing.reshape(-1, (thing.shape or [1])[-1]).tolist() if whole else []
    if isinstance(thing, (list, tuple)):
        if thing and all(isinstance(t, int) for t in thing):
            return [list(thing)]
        return [row for v in thing for row in texts_in(v)]
    return []


def numbers_in(thing):
    """How many floating-point numbers a method's memory holds."""
    if isinstance(thing, torch.Tensor):
        return thing.numel() * thing.is_floating_point()
    parts = thing.values() if isinstance(thing, dict) else thing
    return sum(map(numbers_in, parts)) if isinstance(thing, (dict, list, tuple)) else 0


def blind(sees, passages, memory, examined, ahead):
    """AssertionError if what a night is given breaks its label.

    examined: all exam questions as ids, <ask> before them; ahead: all sentences that are told on a
    later day alone. No exam question is given to anyone. Only a method that sees all days is given
    another day, only "stored text" may keep any text at all.
    """
    def holds(rows, words):
        bags = [f" {' '.join(map(str, row))} " for row in rows]
        return any(f" {' '.join(map(str, w))} " in bag for w in words for bag in bags)
    given = [[t for s in passage for t in s] for passage in passages]
    stored = texts_in(memory)
    pretraining = texts_in(memory.get("pretraining", []))
    leaked = holds(given, [q[1:] for q in examined]) or holds(pretraining, examined)
    assert not leaked, "a night was given a question of the exam"
    if sees != B.ALL:
        assert not holds(given + stored, ahead), "a night was given another day"
    if sees not in (B.ALL, B.STORED):
        assert not stored, "text was stored by a method that may not store any"


def rows_of_day(data, i):
    """The sentences told on day i, as rows of ids."""
    return {tuple(s) for p in data.days[i].passages for s in text.sentences(data.enc, p)}


def forbidden(data, i):
    """What no night up to the i-th may hold: (exam questions, sentences of later days alone)."""
    T = len(data.days)
    examined = {x.question for j in range(T) for x in data.exams(j, T - 1)}
    told = set().union(*(rows_of_day(data, j) for j in range(i + 1)))
    later = set().union(*(rows_of_day(data, j) for j in range(i + 1, T)))
    return [[*data.marks.ask, *data.enc.encode_ordinary(q)] for q in examined], later - told


# --------------------------------------------------------------------------------------------------
# A rival as a night of sleep.py

def night_of(name, data, knobs, tokens, memory):
    """The function that sleep.NIGHTS holds: (a, model, day, marks, i) -> (model, log).

    log["trained"]: tokens that went through the model with gradients on, counted alike for all;
    log["cpu"]: seconds of CPU, which a busy machine does not change.
    """
    learn, sees, _ = B.METHODS.get(name, (None, B.DAY, {}))
    days = []

    def rival(a, model, day, marks, i):
        days.append(day.passages)
        if sees == B.ALL and i + 1 < len(data.days):         # joint training happens once
            return model, {}
        given = days if sees == B.ALL else day.passages
        yesterday = clone(model)
        try:
            return model, learn(model, given, marks, memory, tokens, **knobs)
        except (seeding.RestlessNight, torch.linalg.LinAlgError) as e:
            return yesterday, {"undone": str(e), "lost": list(range(len(day.passages)))}
    spend = sleep.asleep if name == "sleep" else rival

    def night(a, model, day, marks, i):
        ahead, trained = exam.share(exam.sit(model, data, data.exams(i, i))), []
        blind(sees, day.passages, memory, *forbidden(data, i))

        def count(module, args, out):
            trained.append(args[0].numel() * torch.is_grad_enabled())
        handle, cpu = model.wte.register_forward_hook(count), time.process_time()
        new, log = spend(a, model, day, marks, i)
        handle.remove()
        new.wte._forward_hooks.clear()                       # a clone has taken it along
        return new, {**log, "ahead": ahead, "trained": sum(trained),
                     "cpu": round(time.process_time() - cpu, 2)}
    return night


@contextmanager
def answering(name, memory):
    """Inside, the self of InCA looks things up where others remember."""
    usual = gate.remember
    if name == "inca":
        gate.remember = partial(B.look_it_up, memory)
    try:
        yield
    finally:
        gate.remember = usual


def stored_text(data, number):
    """Documents like those the base was trained on, for the methods whose label says so."""
    rng = random.Random(f"stored {number}")
    return [data.document(rng, 0.999)[0] for _ in range(B.DREAMS)]


def lived(name, a, base, data, knobs, tokens):
    """sleep.live with this method's nights: (summary, its log of nights, what it remembers)."""
    memory = {}
    if name in ("replay", "joint"):
        memory = {"pretraining": stored_text(data, a.world_seed)}
    folder = os.path.join(a.out_dir, name)
    shutil.rmtree(folder, ignore_errors=True)
    usual = sleep.NIGHTS.get(name)
    sleep.NIGHTS[name] = night_of(name, data, knobs, tokens, memory)
    try:
        with answering(name, memory), redirect_stdout(open(os.devnull, "w")):
            summary = sleep.live(a, name, base, data, folder, 0.0)
    finally:
        sleep.NIGHTS[name] = usual
        if usual is None:
            del sleep.NIGHTS[name]
    _, state = sleep.load(os.path.join(folder, "checkpoint.pt"), "cpu")
    shutil.rmtree(folder)
    return summary, state["nights"], memory


def life(name, a, base, data, knobs, tokens, singles=0):
    """All nights of one method with every exam, then `singles` passages, each learnt alone from
    the base (n = 1). Returns a row of the result file."""
    s, nights, memory = lived(name, a, base, data, knobs, tokens)
    sees = B.METHODS.get(name, (None, B.DAY))[1]
    if sees == B.ALL:                                        # it has slept in its last night alone
        s["R"] = [[None] * len(row) for row in s["R"][:-1]] + s["R"][-1:]
        s.update(recall=None, BWT=None, forgetting=None)
        nights = nights[-1:]
    keys = ("seed", "world_seed", "R", "ACC", "recall", "BWT", "forgetting", "old_before",
            "reading_before", "kinds", "seconds")
    row = {"method": name, "sees": sees, **knobs, **{k: s[k] for k in keys},
           "old": s["old_after"], "reading": s["reading_after"],
           "reversed": s["kinds"].get("reversed", {}).get("next_morning"),
           "parameters": s["params_after"], "stored_tokens": sum(map(len, texts_in(memory))),
           "stored_numbers": numbers_in(memory), "nights": nights}
    if sees != B.ALL and singles:
        row["single"] = [{"recall": alone(name, i, a, base, data, knobs, tokens)}
                         for i in range(min(singles, len(data.days)))]
    return row


def alone(name, i, a, base, data, knobs, tokens):
    """n = 1: the first passage of day i, slept on alone. Share of its facts known afterwards."""
    passage = data.days[i].passages[0]
    items = [x for x in data.exams(i, i) if x.kind not in exam.APART and about(x, passage)]

    def exams(j, i):
        return items
    one = data._replace(days=[text.Day([passage], [])], exams=exams,
                        always={"old": data.always["old"][:10]})
    return lived(name, a, base, one, knobs, tokens)[0]["recall"]


def about(item, passage):
    """Is the answer in the passage, and every name of the question?"""
    names = re.findall(r"[A-Z]\w+", item.question)[1:]       # the first word only begins a sentence
    return item.answer.strip() in passage and all(name in passage for name in names)


# --------------------------------------------------------------------------------------------------
# Bases, the search, and the file

def base_of(o, number, nights):
    """(flags, base, data) of a seed; the base is pretrained once and kept in the work folder."""
    small = SMALL if o.quick else []
    a = flags.parse([f"--seed={number}", f"--world_seed={number}", f"--days={nights}", *small,
                     f"--out_dir={os.path.join(o.work, f'seed-{number}' + '-quick' * o.quick)}"])
    a.command, a.torch_device = "", torch.device("cpu")
    data = sleep.DATA[a.data](a)
    os.makedirs(a.out_dir, exist_ok=True)
    a.resume = True                                          # go on with a base that is half done
    start = None
    if not os.path.isfile(os.path.join(a.out_dir, "base.pt")):
        print(f"seed {number}: pretraining the base", flush=True)
        start = sleep.born(a, data)
    base, _ = sleep.pretrained(a, start, data)
    a.resume = False
    return a, base, data


def search(o, file, save):
    """For each method the values of its grid with the best ACC after two nights of the validation
    world: file["search"].

    First the learning rate, then, at the best of them, the weight of what protects (ewc, lwf). Then
    those that protect something try 1.75 times the tokens: file["longer"] says whether that helps.
    """
    wanted = [m for m in B.METHODS if m in o.methods and B.METHODS[m][2] and m != "joint"]
    start = []                                               # a base, once it is needed

    def tried(rows, m, knobs, tokens):
        if any(r["method"] == m and all(r.get(k) == v for k, v in knobs.items()) for r in rows):
            return
        if not start:
            start.append(base_of(o, VALIDATION, 2))
        r = life(m, *start[0], knobs, tokens)
        rows.append({"method": m, "seed": VALIDATION, **knobs, "tokens": tokens,
                     "cpu": round(sum(n["cpu"] for n in r["nights"]), 1),
                     **{x: r[x] for x in ("ACC", "recall", "old", "reading")}})
        save()
    for m in tqdm(wanted, desc="search", unit="method", mininterval=1.0):
        for k, values in B.METHODS[m][2].items():
            at = {**B.DEFAULTS[m], **(best(file, m) if k == "weight" else {})}
            for v in values:
                tried(file["search"], m, {**at, k: v}, o.tokens)
    for m in [m for m in LONGER if m in wanted]:
        tried(file["longer"], m, best(file, m), 7 * o.tokens // 4)


def best(file, method):
    """What the search chose for a method: {} if it has nothing to choose. joint takes replay's."""
    like = "replay" if method == "joint" else method
    rows = [r for r in file["search"] if r["method"] == like]
    if not rows:
        return dict(B.DEFAULTS.get(method, {}))
    top = max(rows, key=lambda r: (r["ACC"], r["recall"], r["old"] + r["reading"]))
    return {k: top[k] for k in ("lr", "weight") if k in top}


def opened(o, argv):
    """The result file to go on with. One of other settings, or of an older bench, is refused."""
    settings = {"nights": o.nights, "tokens": o.tokens, "singles": o.singles,
                "searched": bool(o.search), "quick": o.quick}
    command = shlex.join(["python", "bench/knowledge.py",
                          *(w for w in argv if not w.startswith(("--work", "--result")))])
    file = stats.read(os.path.abspath(o.result))
    if file is None:
        return {**stats.provenance(command), **settings, "device": "cpu", "search": [],
                "longer": [], "runs": []}
    other = [f"{k}={file.get(k)}" for k, v in settings.items() if file.get(k) != v]
    if any("commit" not in r for r in file["runs"]):
        other = ["an older bench"]
    if other:
        fail(f"{o.result} holds lives of other settings ({', '.join(other)}): use them, name "
             "another --result, or take the file away")
    return file


def main(argv):
    o = parse(argv)
    torch.set_num_threads(o.threads)
    os.makedirs(o.work, exist_ok=True)
    file = opened(o, argv)

    def save():
        store.write_json(o.result, file)
    done = {(r["method"], r["seed"]) for r in file["runs"]}
    todo = [(m, number) for number in o.seeds for m in o.methods if (m, number) not in done]
    minutes = len(todo) * (0.25 if o.quick else 0.3 * o.nights) + (40 if o.search else 0)
    print(f"{len(todo)} lives of {o.nights} nights; expect about {minutes:.0f} minutes on one "
          "quiet CPU core", flush=True)
    if o.search and todo:
        search(o, file, save)
    bases = {}
    for m, number in tqdm(todo, unit="life", mininterval=1.0):
        if number not in bases:
            bases = {number: base_of(o, number, o.nights)}
        knobs = {} if m == "sleep" else best(file, m)
        r = life(m, *bases[number], knobs, o.tokens, o.singles)
        file["runs"].append({**r, "commit": stats.commit()})
        save()
        tqdm.write(f"  seed {number} {m:10} ACC {r['ACC']:.3f}  old {r['old']:.3f}  reading "
                   f"{r['reading']:.3f}  {sum(n['cpu'] for n in r['nights']):.0f} s of nights")


if __name__ == "__main__":
    flags.guarded(main, "knowledge.py")
