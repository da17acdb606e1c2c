"""
Who remembers what after a week? The paper's Table 3 on the embedded world: sleep and every baseline of bench/baselines.py.

    python bench/knowledge.py              7 nights x 5 seeds x 15 methods -> bench/results/knowledge.json
    python bench/knowledge.py --quick      2 seeds, 2 short nights, a small base: does everything run? (numbers mean little)
    python bench/knowledge.py --table      the tables, from the result file alone

All methods of a seed start from the same base, read the same passages and sit the same exams. `sleep` is sleep.night with its
default flags. Before that, the learning rate of each baseline (and the weight of what ewc and lwf protect) is searched on a
validation world and seed that occur nowhere else, for ACC after two nights. Finished (method, seed)s are not run again.

R[i, j]: exam of day j after night i. recall = mean R[i, i]; ACC = mean_j R[T, j]; BWT = mean_j<T R[T, j] - R[j, j];
forgetting (Chaudhry et al. 2018) = mean_j<T max_l<T R[l, j] - R[T, j]; FWT = mean_j>1 R[j-1, j] - b_j, b the base before its
first night. Nobody can guess the facts of tomorrow, so an FWT far from 0 would mean that a method has seen them.
"""
import copy
import difflib
import os
import random
import sys
import time
from statistics import mean
from types import SimpleNamespace

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import torch
from tqdm import tqdm

import seed as seeding
import sleep
from bench import baselines as B
from bench import stats
from bench.stats import pm
from data import flags, store
from data import world as W
from data.flags import COUNT, SWITCH, TEXT

VALIDATION = 101                                                      # seed and world of the search
LONGER = ["qa_replay", "ewc", "lwf", "replay"]
FLAGS = {  # name: (default, allowed, what it does), as in data/flags.py
    "seeds": ("1,2,3,4,5", TEXT, "seeds of model, world and life"),
    "methods": (",".join(["sleep", *B.METHODS]), TEXT, "which lives to live"),
    "nights": (7, (1, 28), "days and nights of a life"),
    "tokens": (100_000, (1, 10 ** 9), "tokens that go through a baseline in a night of learning"),
    "singles": (1, COUNT, "single passages (n = 1), each learnt alone from the base; 0: none"),
    "work": ("out-knowledge", TEXT, "folder of the bases"),
    "result": (os.path.join(ROOT, "bench", "results", "knowledge.json"), TEXT, "result file"),
    "threads": (1, (1, 4096), "CPU threads"),
    "search": (1, SWITCH, "0: no search, the values of baselines.DEFAULTS"),
    "pretrain_steps": (0, COUNT, "of a base; 0: the default of sleep.py"),
    "quick": (False, SWITCH, "2 seeds, 2 nights, a small base, no search"),
    "table": (False, SWITCH, "print the tables of the result file and stop"),
}
QUICK = {"seeds": "1,2", "nights": 2, "tokens": 10_000, "search": 0, "pretrain_steps": 500}


def fail(message):
    flags.fail(message, "knowledge.py")


def parse(argv):
    """The flags, with the lists taken apart; what cannot be is refused in one line."""
    o = flags.parse(argv, __doc__, FLAGS, "knowledge.py", QUICK)
    o.methods, o.seeds = o.methods.split(","), flags.numbers(o.seeds, "seeds", "knowledge.py")
    for m in o.methods:
        if m != "sleep" and m not in B.METHODS:
            near = difflib.get_close_matches(m, ["sleep", *B.METHODS], 1, 0.3)
            fail(f"--methods: there is no {m!r}: " + (f"did you mean {near[0]}?" if near else f"sleep, {', '.join(B.METHODS)}"))
    if VALIDATION in o.seeds:
        fail(f"--seeds: {VALIDATION} is the validation seed of the search; choose others")
    if o.quick and o.result == FLAGS["result"][0]:
        o.result = os.path.join(o.work, "quick.json")
    return o


# ----------------------------------------------------------------------------------------------------------------------
# Metrics

def metrics(R, before=None, ahead=None):
    """The formulas above. R: lower triangular, None elsewhere; before[j] = b_j; ahead[j] = R[j-1, j], ahead[0] unused.

    A row of None (joint training has only its last) makes recall, BWT, forgetting and FWT None.
    """
    T, last = len(R), R[-1]
    m = {"ACC": mean(last), "recall": None, "BWT": None, "forgetting": None, "FWT": None}
    if all(R[j][j] is not None for j in range(T)):
        found = sleep.metrics(R)
        m["recall"] = found["recall"]
        if T > 1:
            m.update(BWT=found["BWT"], forgetting=found["forgetting"])
            if ahead is not None:
                m["FWT"] = mean(ahead[j] - before[j] for j in range(1, T))
    return m


# ----------------------------------------------------------------------------------------------------------------------
# What a method may see, and the exam

def texts_in(thing):
    """Every row of token ids (a list or tuple of ints, or a tensor of them) anywhere in a method's memory."""
    if isinstance(thing, dict):
        return [row for v in thing.values() for row in texts_in(v)]
    if isinstance(thing, torch.Tensor):
        return [] if thing.is_floating_point() else [row.tolist() for row in thing.reshape(-1, (thing.shape or [1])[-1])]
    if isinstance(thing, (list, tuple)):
        if thing and all(isinstance(t, int) for t in thing):
            return [list(thing)]
        return [row for v in thing for row in texts_in(v)]
    return []


def blind(sees, day, memory, examined, people):
    """AssertionError if what a night is given breaks its label: day (passages of sentences of ids), memory.

    examined: rows of ids of all exam questions; people: rows of ids, one for each person who is not of this day. No exam question
    is given to anyone. Only a method that sees all days is given another day, only "stored text" may keep any text at all.
    """
    def holds(rows, words):
        bag = [" " + " ".join(map(str, r)) + " " for r in rows]
        return any(" " + " ".join(map(str, w)) + " " in b for w in words for b in bag)
    given = [[t for s in passage for t in s] for passage in day]
    assert not holds(given + texts_in(memory.get("pretraining", [])), examined), "a night was given a question of the exam"
    if sees != B.ALL:
        assert not holds(given, people), "a night was given another day"
    if sees not in (B.ALL, B.STORED):
        assert not texts_in(memory), "text was stored by a method that may not store any"


def score(say, enc, marks, items):
    """Share of answers that match as a whole; say(prompts) -> rows of ids. For a plain model this is sleep.exam."""
    prompts = [[marks.bos, *enc.encode_ordinary(c), marks.ask, *enc.encode_ordinary(q), marks.answer] for c, q, _ in items]
    rows = [row for i in range(0, len(prompts), 512) for row in say(prompts[i:i + 512])]
    given = [enc.decode([t for t in row if t not in marks]) for row in rows]
    return sum(g.strip() == a.strip() for g, (_, _, a) in zip(given, items)) / len(items)


# ----------------------------------------------------------------------------------------------------------------------
# A life

def night_of(name, a, knobs, tokens):
    """(night(model, day, marks, memory, number) -> log, label, say(model, prompts, marks, memory))."""
    if name == "sleep":
        night = lambda model, day, marks, memory, i: sleep.night(a, model, day, marks, i, tqdm(disable=True))[0]
        return night, B.DAY, B.plain_answer
    method, sees, _ = B.METHODS[name]
    say = B.inca_answer if name == "inca" else B.plain_answer
    return lambda model, day, marks, memory, i: method(model, day, marks, memory, tokens, **knobs), sees, say


def pretraining_text(enc, marks, world, number):
    """B.DREAMS documents like those the base was trained on, for the methods whose label says so."""
    rng = random.Random(f"stored {number}")
    return [sleep.document_ids(enc, marks, *W.document(world, rng))[0] for _ in range(B.DREAMS)]


def slept(model, night, day, marks, memory, i):
    """One night, or yesterday's self if there was nothing to learn. Returns (model, log).

    log["trained"]: tokens that went through the model with gradients on, counted in the same way for sleep and all others;
    log["cpu"]: seconds of CPU, which a busy machine does not change.
    """
    start, cpu, yesterday, trained = time.time(), time.process_time(), copy.deepcopy(model), []
    count = lambda module, args, out: trained.append(args[0].numel() * torch.is_grad_enabled())
    handle = model.wte.register_forward_hook(count)
    try:
        log = night(model, day, marks, memory, i) or {}
    except seeding.RestlessNight as e:
        model, log = yesterday, {"restless": str(e)}
    handle.remove()
    return model, {**log, "trained": sum(trained), "seconds": round(time.time() - start, 2),
                   "cpu": round(time.process_time() - cpu, 2)}


def beginning(a, base, world, enc, marks, nights):
    """What all lives of a seed share: base, world, the exams of sleep.live, and what the base knows before its first night."""
    rng = random.Random(f"exam {a.world_seed}")
    held_out = [W.stranger(world, rng) for _ in range(40)]
    skills = {"old": W.exam(world["old"], rng), "reading": W.exam(held_out, rng, context=True)}
    days = [(W.exam(people, rng), W.exam(people, rng, reverse=True)) for people in world["days"]]
    ask = lambda items: score(lambda prompts: B.plain_answer(base, prompts, marks, {}), enc, marks, items)
    return SimpleNamespace(
        a=a, base=base, world=world, enc=enc, marks=marks, nights=nights, skills=skills, days=days,
        questions=[enc.encode_ordinary(q) for part in days for items in part for _, q, _ in items],
        names=[[enc.encode_ordinary(" " + p["name"]) for p in people] for people in world["days"]],
        before={**{k: ask(items) for k, items in skills.items()}, "days": [ask(days[j][0]) for j in range(nights)]})


def life(name, s, knobs, tokens, singles=0, bar=None):
    """All nights of one method with every exam; then `singles` passages, each learnt alone from the base (n = 1).

    s: from `beginning`. The days, passages and exams are the same for every method, those of sleep.live with the same seeds.
    Returns a JSON-ready dict.
    """
    night, sees, say = night_of(name, s.a, knobs, tokens)
    stored = pretraining_text(s.enc, s.marks, s.world, s.a.world_seed) if name in ("replay", "joint") else None
    fresh = lambda: {"pretraining": stored} if stored else {}
    model, memory, read, R, mornings, ahead = copy.deepcopy(s.base), fresh(), [], [], [], [None] * s.nights
    ask = lambda items: score(lambda prompts: say(model, prompts, s.marks, memory), s.enc, s.marks, items)
    for i in range(s.nights):
        sleep.reseed(s.a, "sleep", i, "day")                          # the same passages for every method
        passages = [W.passage(p, random)[0] for p in s.world["days"][i]]
        read.append([sleep.sentences(s.enc, text) for text in passages])
        if sees == B.ALL and i < s.nights - 1:                        # joint training happens once, with all days
            R.append([None] * s.nights)
            continue
        context = ask([(passages[n // len(W.RELATIONS)], q, an) for n, (_, q, an) in enumerate(s.days[i][0])])
        sleep.reseed(s.a, name, i, "night")
        for day in read if sees == B.ALL else read[-1:]:
            blind(sees, day, memory, s.questions, [n for j, names in enumerate(s.names) for n in names if j != i])
        model, log = slept(model, night, read if sees == B.ALL else read[-1], s.marks, memory, i)
        start = time.process_time()
        R.append([ask(s.days[j][0]) if j <= i else None for j in range(s.nights)])
        if i + 1 < s.nights:
            ahead[i + 1] = ask(s.days[i + 1][0])
        mornings.append({"night": i + 1, "in_context": context, "recall": R[i][i], "reversed": ask(s.days[i][1]),
                         **({k: ask(v) for k, v in s.skills.items()} if i == s.nights - 1 else {}), "params": model.n_params(),
                         **log, "exam_cpu": round(time.process_time() - start, 2)})
        if bar is not None:
            bar.update(1)
    last = mornings[-1]
    result = {"method": name, "seed": s.a.seed, "world_seed": s.a.world_seed, "sees": sees, **knobs, "R": R,
              **metrics(R, s.before["days"], ahead), "untrained": s.before["days"], "ahead": ahead,
              "in_context": mean(m["in_context"] for m in mornings), "reversed": mean(m["reversed"] for m in mornings),
              "old": last["old"], "reading": last["reading"], "old_before": s.before["old"], "reading_before": s.before["reading"],
              "parameters": last["params"], "stored_tokens": sum(map(len, texts_in(memory))),
              "stored_numbers": sum(t.numel() for t in tensors_in(memory) if t.is_floating_point()),
              "seconds": {k: round(sum(m[k] for m in mornings), 1) for k in ("seconds", "cpu", "exam_cpu")}, "nights": mornings}
    if sees != B.ALL and singles:
        result["single"] = [alone(name, i, s, night, say, fresh()) for i in range(singles)]
    return result


def alone(name, i, s, night, say, memory):
    """n = 1: the first person of day i + 1, read and slept on alone. Share of the five facts known in the morning."""
    sleep.reseed(s.a, "single", i)
    day = [sleep.sentences(s.enc, W.passage(s.world["days"][i][0], random)[0])]
    sleep.reseed(s.a, name, "single", i)
    model, log = slept(copy.deepcopy(s.base), night, day, s.marks, memory, 0)
    items = s.days[i][0][:len(W.RELATIONS)]
    known = score(lambda prompts: say(model, prompts, s.marks, memory), s.enc, s.marks, items)
    return {"recall": known, **{k: log[k] for k in ("seconds", "restless") if k in log}}


def tensors_in(thing):
    if isinstance(thing, torch.Tensor):
        return [thing]
    parts = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, (list, tuple)) else []
    return [t for part in parts for t in tensors_in(part)]


# ----------------------------------------------------------------------------------------------------------------------
# Bases, the search, and the file

def base_of(o, number, enc, marks, world):
    """The base of a seed from the work folder, or pretrained and saved there."""
    a = sleep.parse([f"--seed={number}", f"--world_seed={number}"])
    a.pretrain_steps = o.pretrain_steps or a.pretrain_steps
    a.torch_device = torch.device("cpu")
    path = os.path.join(o.work, f"base-{number}-{a.pretrain_steps}.pt")
    if not os.path.isfile(path):
        print(f"seed {number}: pretraining the base", flush=True)
        sleep.save(path, sleep.born(a, enc, marks, world))
    return a, sleep.load(path)[0]


def search(o, file, enc, marks, save):
    """For each method the values of its grid with the best ACC after two nights on the validation world: file["search"].

    First the learning rate, then, at the best of them, the weight of what protects (ewc, lwf). Then the methods that protect
    something try 1.75 times the tokens, as many as a night of sleep: file["longer"] says whether more would have helped them.
    """
    world, wanted = W.make_world(VALIDATION), [m for m in B.METHODS if m in o.methods and B.METHODS[m][2] and m != "joint"]
    start = []                                                       # a base and its exams, once they are needed

    def tried(rows, m, knobs, tokens):
        if any(r["method"] == m and all(r.get(k) == v for k, v in knobs.items()) for r in rows):
            return
        if not start:
            start.append(beginning(*base_of(o, VALIDATION, enc, marks, world), world, enc, marks, 2))
        r = life(m, start[0], knobs, tokens)
        rows.append({"method": m, "seed": VALIDATION, **knobs, "tokens": tokens, "cpu": r["seconds"]["cpu"],
                     **{x: r[x] for x in ("ACC", "recall", "old", "reading")}})
        save()
    for m in tqdm(wanted, desc="search", unit="method", mininterval=1.0):
        for k, values in B.METHODS[m][2].items():
            for v in values:
                tried(file["search"], m, {**B.DEFAULTS[m], **(best(file, m) if k == "weight" else {}), k: v}, o.tokens)
    for m in tqdm([m for m in LONGER if m in wanted], desc="longer nights", unit="method", mininterval=1.0):
        tried(file["longer"], m, best(file, m), 7 * o.tokens // 4)


def best(file, method):
    """What the search chose for a method: {} if it has nothing to choose. joint takes replay's rate."""
    rows = [r for r in file.get("search", []) if r["method"] == ("replay" if method == "joint" else method)]
    if not rows:
        return dict(B.DEFAULTS.get(method, {}))
    top = max(rows, key=lambda r: (r["ACC"], r["recall"], r["old"] + r["reading"]))
    return {k: top[k] for k in ("lr", "weight") if k in top}


def expected_minutes(o, done):
    lives = len(o.seeds) * len(o.methods) - done
    return lives * (0.05 if o.quick else 0.9 * o.nights / 7) + len(o.seeds) * (0.3 if o.quick else 1.5)


def main(argv):
    o = parse(argv)
    stored = stats.read(os.path.abspath(o.result))
    if o.table:
        return tables(stored) if stored else fail(f"no results at {o.result}: run without --table first")
    torch.set_num_threads(o.threads)
    os.makedirs(o.work, exist_ok=True)
    settings = {"nights": o.nights, "tokens": o.tokens, "singles": o.singles, "searched": bool(o.search), "quick": o.quick}
    command = " ".join(["python bench/knowledge.py", *(w for w in argv if not w.startswith(("--work", "--result")))])
    file = {"command": command, **settings, "threads": o.threads, "device": "cpu", "search": [], "longer": [], "runs": [],
            "versions": {"python": sys.version.split()[0], "torch": torch.__version__}}
    if stored:
        file = stored
        other = [f"{k}={file.get(k)}" for k, v in settings.items() if file.get(k) != v]
        if other:
            fail(f"{o.result} holds lives with other settings ({', '.join(other)}): use them, or name another --result")
    save = lambda: store.write_json(o.result, file)
    enc = W.load_tokenizer()
    marks = seeding.Marks(*(enc.encode_single_token(s) for s in sleep.SPECIAL))
    done = {(r["method"], r["seed"]) for r in file["runs"]}
    print(f"{len(o.methods)} methods x {len(o.seeds)} seeds x {o.nights} nights; {len(done)} lives are done. Expect about "
          f"{expected_minutes(o, len(done)):.0f} minutes on one quiet CPU core"
          + (", and 15 for the search." if o.search and not file["search"] else "."), flush=True)
    if o.search:
        search(o, file, enc, marks, save)
    for number in o.seeds:
        world_seed = o.seeds[0] if o.quick else number                # --quick lives both lives from one base
        todo = [m for m in o.methods if (m, number) not in done]
        if not todo:
            continue
        world = W.make_world(world_seed, n_people=4 if o.quick else 8)
        a, base = base_of(o, world_seed, enc, marks, world)
        a.seed = number
        if o.quick:
            a.seed_steps, a.dream_steps, a.replay_dreams, B.DREAMS = 36, 4, 80, 80
        start = beginning(a, base, world, enc, marks, o.nights)
        bar = tqdm(total=len(todo) * o.nights, desc=f"seed {number}", unit="night", leave=False, mininterval=1.0)
        for m in todo:
            r = life(m, start, {} if m == "sleep" else best(file, m), o.tokens, o.singles, bar)
            file["runs"].append(r)
            save()
            bar.write(f"  seed {number} {m:10} ACC {r['ACC']:.3f}  old {r['old']:.3f}  reading {r['reading']:.3f}  "
                      f"{r['seconds']['seconds']:.0f} s of nights")
        bar.close()
    tables(file)


# ----------------------------------------------------------------------------------------------------------------------
# Tables

def tables(file):
    """Markdown: all lives (mean ± standard deviation over seeds), paired differences in ACC to sleep, and the search."""
    lives = {}
    for r in file["runs"]:
        lives.setdefault(r["method"], {})[r["seed"]] = r
    columns = ["in_context", "recall", "ACC", "BWT", "forgetting", "FWT", "old", "reading", "reversed"]
    print(f"\n{file['nights']} nights, {file['threads']} thread(s), {file['device']}; mean ± standard deviation over seeds\n")
    head = ["method", "may see", "seeds", "n = 1", *columns, "CPU s a night", "tokens a night", "parameters", "stored"]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for name, runs in lives.items():
        runs = list(runs.values())
        nights = [n for r in runs for n in r["nights"]]
        single = [mean(s["recall"] for s in r["single"]) if "single" in r else None for r in runs]
        stored = [f"{mean(r['stored_' + unit] for r in runs):,.0f} {unit}" for unit in ("numbers", "tokens")
                  if any(r["stored_" + unit] for r in runs)]
        cells = [name, runs[0]["sees"], len(runs), pm(single), *(pm([r[k] for r in runs]) for k in columns),
                 pm([mean(n["cpu"] for n in r["nights"]) for r in runs], 1), f"{mean(n['trained'] for n in nights):,.0f}",
                 f"{mean(r['parameters'] for r in runs):,.0f}", ", ".join(stored)]
        print("| " + " | ".join(map(str, cells)) + " |")
    print("\n| sleep minus | ACC, paired, with 95 % interval | old | reading |\n|---|---|---|---|")
    for name in lives:
        both = [s for s in lives.get("sleep", {}) if s in lives[name]]
        if name != "sleep" and len(both) > 1:
            cells = [stats.gap([lives["sleep"][s][k] - lives[name][s][k] for s in both]) for k in ("ACC", "old", "reading")]
            print(f"| {name} | " + " | ".join(cells) + " |")
    if file.get("search"):
        print("\nsearch on the validation world, ACC after two nights (old, reading); chosen in bold\n")
        for name in dict.fromkeys(r["method"] for r in file["search"]):
            rows, chosen = [r for r in file["search"] if r["method"] == name], best(file, name)
            knobs = [{k: r[k] for k in chosen} for r in rows]
            cells = [" ".join(f"{k} {v:g}" for k, v in x.items()) + f": {r['ACC']:.3f} ({r['old']:.2f}, {r['reading']:.2f})"
                     for x, r in zip(knobs, rows)]
            print(f"- {name}: " + ", ".join(f"**{c}**" if x == chosen else c for c, x in zip(cells, knobs))
                  + "".join(f"; with {r['tokens']:,} tokens a night {r['ACC']:.3f} ({r['old']:.2f}, {r['reading']:.2f})"
                            for r in file["longer"] if r["method"] == name))


if __name__ == "__main__":
    flags.guarded(main, "knowledge.py")
