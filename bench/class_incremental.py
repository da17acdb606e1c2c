"""
New topics every day, on real text: class-incremental learning (Figure 3 of arXiv 2606.03979). Sleep and what else one could do.

    python bench/class_incremental.py --data=clinc150 --data_dir=FOLDER     150 intents: a base of 3 tasks, then 7 of 15
    python bench/class_incremental.py --data=dbpedia --data_dir=FOLDER      70 classes: a base of 2 tasks, then 5 of 10
                        --base_steps=700 --steps=60 --class_steps=80 --class_replay=20    as in the README: it has fewer rows
    python bench/class_incremental.py --data=banking77 --data_dir=FOLDER    77 intents: a base of 2 tasks, then 5 of 11
    ... --quick                 2 seeds, 2 small days: does everything run? (numbers mean little)
    ... --init_from=FOLDER      GPT-2's model.safetensors as base, taught the base's classes first (untried on real weights)
    ... --table                 the tables, from the result file alone

A base is trained from scratch on the classes of the first tasks; each seed has a base and an order of classes of its own. No
task id at the exam: any class seen so far may be the answer. Train, validation and test are different rows; learning rates
are searched on the validation rows of a class order that is not among the seeds; the table is made of test rows.

Every method sees a day's documents by day only. What it keeps is written in METHODS. A sentence and its label are their own
quiz, so what differs from SFT in its quiz alone (SEAL, GRPO, OPSD: bench/knowledge.py) is not here. R[i, j]: accuracy on the
test rows of stage j after night i, all classes of stages 0..i to choose from; stage 0 is the base.
"""
import copy
import os
import random
import sys
import time
import zlib
from statistics import mean
from types import SimpleNamespace

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import torch
from tqdm import tqdm

import sleep
from bench import stats
from bench.baselines import fisher
from bench.clinc150 import (bar_of, batch_of, both_ways, by_length, class_night, exam_all, hear, imagine, mishear, over_all, rate,
                            study_all, text_loss, topic, topic_detectors)
from data import clinc as C
from data import flags, store, topics
from data.bpe import encoding, train_bpe
from data.flags import COUNT, RATE, SOME, SWITCH, TEXT
from model import GPT, Config, chunked_divergence, clone, from_pretrained, pad_rows

LONGEST = 96                                                          # tokens kept of a text
VALIDATION = 101                                                      # class order and base of the search
FLAGS = {  # name: (default, allowed, what it does), as in data/flags.py
    "data": ("clinc150", tuple(topics.SETS), "which set"),
    "data_dir": ("data/clinc150", TEXT, "its folder"),
    "seeds": ("1,2,3", TEXT, "seeds of base, class order and life"),
    "methods": ("", TEXT, "names with commas between them; nothing: all"),
    "work": ("out-classes", TEXT, "folder of the bases"),
    "result": ("", TEXT, "result file; nothing: bench/results/classes-DATA.json"),
    "init_from": ("scratch", TEXT, "scratch, or GPT-2's .safetensors file or its folder"),
    "threads": (1, (1, 4096), "CPU threads"),
    "search": (1, SWITCH, "0: no search, the middle of every grid"),
    "days": (0, COUNT, "days of a life; 0: as many as the set has"),
    "rows": (0, COUNT, "exam rows of a stage at most; 0: all"),
    "base_steps": (1200, SOME, "training steps of the base, 32 documents each"),
    "base_lr": (0.03, RATE, "its peak learning rate (Muon; two thirds of it for AdamW)"),
    "steps": (120, SOME, "steps of sleep's fast level by day, 32 documents each"),
    "class_steps": (150, SOME, "distillation steps of sleep's night; a baseline takes those of day and night together"),
    "class_dreams": (80, SOME, "sentences dreamt for each new class"),
    "class_replay": (30, SOME, "sentences dreamt for each old class, by those who dream of them"),
    "quick": (False, SWITCH, "2 seeds, 2 days, small"),
    "table": (False, SWITCH, "print the tables of the result file and stop"),
}
QUICK = {"seeds": "1,2", "days": 2, "rows": 60, "base_steps": 60, "steps": 10, "class_steps": 10, "class_dreams": 8,
         "class_replay": 4, "search": 0}


def fail(message):
    flags.fail(message, "class_incremental.py")


def parse(argv):
    o = flags.parse(argv, __doc__, FLAGS, "class_incremental.py", QUICK)
    o.seeds = flags.numbers(o.seeds, "seeds", "class_incremental.py")
    o.methods = o.methods.split(",") if o.methods else list(METHODS)
    for m in o.methods:
        if m not in METHODS:
            fail(f"--methods: there is no {m!r}; choose among {', '.join(METHODS)}")
    if VALIDATION in o.seeds:
        fail(f"--seeds: {VALIDATION} is the validation seed of the search; choose others")
    o.result = o.result or (os.path.join(o.work, f"quick-{o.data}.json") if o.quick else
                            os.path.join(stats.RESULTS, f"classes-{o.data}.json"))
    return o


# ----------------------------------------------------------------------------------------------------------------------
# What a day does. name(s, model, day, memory, **knobs): changes the model in place.
#
# s: what all lives of a seed share, and where this one stands (see `life`). day: the (text, label)s of today's classes alone.

def loss_on(model, docs):
    """A function that draws 32 of the documents and gives their loss."""
    order = by_length(docs)
    return lambda: text_loss(model, *batch_of(docs, order, 32, model.device))


def learn(s, model, loss_of, lr):
    """All weights down loss_of(), Muon and AdamW as for the base; as many steps as sleep takes by day and by night."""
    opts, steps = sleep.optimizers(model.requires_grad_(True), lr, lr * 2 / 3), s.o.steps + s.o.class_steps
    for step in range(steps):
        sleep.descend(model, opts, loss_of(), rate(step, steps))
        s.bar.update(1)
    model.requires_grad_(False)


def none(s, model, day, memory):
    """The base, which has never heard of the new classes."""


def sft(s, model, day, memory, lr):
    """Sequential fine-tuning of all weights on the day's text."""
    learn(s, model, loss_on(model, both_ways(s.enc, day)), lr)


def ewc(s, model, day, memory, lr, weight):
    """Elastic weight consolidation (arXiv 1612.00796, online as in 1805.06370): + weight/2 sum_w F_w (w - w*)^2.

    F: diagonal Fisher, gradients squared sample by sample (bench/baselines.fisher), of 128 documents of each stage at the end of
    its own day: the base's too. Stores a number a weight, no text.
    """
    def information(docs):
        ids, weights = sleep.pad_documents(random.sample(docs, min(128, len(docs))), model.device)
        return fisher(model, ids, (weights > 0).float())
    if not memory:
        memory.update(fisher=information(both_ways(s.enc, s.base_rows)))
    anchor = {k: p.detach().clone() for k, p in model.named_parameters()}
    docs = both_ways(s.enc, day)
    today = loss_on(model, docs)

    def loss():
        drift = sum((memory["fisher"][k] * (p - anchor[k]).square()).sum() for k, p in model.named_parameters())
        return today() + 0.5 * weight * drift
    learn(s, model, loss, lr)
    for k, f in information(docs).items():
        memory["fisher"][k] += f


def divergence_on(model, old, docs):
    """A function that draws 32 documents and gives KL(old self || new self) over their tokens, weighted as in the loss."""
    order = by_length(docs)

    def loss():
        ids, weight = batch_of(docs, order, 32, model.device)
        keep = weight > 0
        with torch.no_grad():
            t = old.hidden(ids[:, :-1])[keep]
        kl = chunked_divergence(model.hidden(mishear(ids, model)[:, :-1])[keep], model.wte.weight, t, teacher_head=old.wte.weight)
        return (kl * weight[keep]).sum() / weight[keep].sum()
    return loss


def lwf(s, model, day, memory, lr):
    """Learning without forgetting (arXiv 1606.09282): + KL(old self || new self) on the new day's own documents."""
    docs, old = both_ways(s.enc, day), clone(model)
    today, kept = loss_on(model, docs), divergence_on(model, old, docs)
    learn(s, model, lambda: today() + kept(), lr)


def remembered(s, model):
    """What the self imagines for every class it knew this morning, as documents (called up class by class: LAMOL, 1909.03329)."""
    known = [label for stage in s.stages[:s.night] for label in stage]
    return both_ways(s.enc, imagine(model, s.enc, known, s.o.class_replay, {}, s.longest))


def generative_replay(s, model, day, memory, lr):
    """Generative replay (arXiv 1705.08690; LAMOL, 1909.03329): the day, and dreams of the old classes with hard labels."""
    today, old = loss_on(model, both_ways(s.enc, day)), loss_on(model, remembered(s, model))
    learn(s, model, lambda: today() + old(), lr)


def distilled_replay(s, model, day, memory, lr):
    """The same dreams, but learnt as the old self's distributions: what is left of sleep without expansion and gate."""
    old = clone(model)
    today, kept = loss_on(model, both_ways(s.enc, day)), divergence_on(model, old, remembered(s, model))
    learn(s, model, lambda: today() + kept(), lr)


def replay(s, model, day, memory, lr):
    """Experience replay (arXiv 1902.10486). STORES TEXT: ten sentences of every class, for ever."""
    if not memory:
        memory["rows"] = few(s.base_rows)
    today, old = loss_on(model, both_ways(s.enc, day)), loss_on(model, both_ways(s.enc, memory["rows"]))
    learn(s, model, lambda: today() + old(), lr)
    memory["rows"] += few(day)


def few(rows, n=10):
    """n rows of each label, at random."""
    found = {}
    for text, label in random.sample(rows, len(rows)):
        found.setdefault(label, []).append((text, label))
    return [row for texts in found.values() for row in texts[:n]]


def inca(s, model, day, memory):
    """InCA (arXiv 2412.15563), its external learner: a Gaussian for each class on frozen features, one covariance for all.

    Features and Gaussians are those of sleep's router: this is sleep without its experts. InCA's second step, the model choosing
    among the k nearest classes by their summaries in context, is left out: a base of this size cannot read one. Stores a mean a
    class and one covariance, no text.
    """
    if not memory:
        hear(model, s.enc, memory, s.base_rows)
    hear(model, s.enc, memory, day)


def asleep(s, model, day, memory, **changes):
    """Sleep: class_night of bench/clinc150.py. The day's text is seen by day, by the fast level and the router; the night learns
    from dreams."""
    a = SimpleNamespace(**{"wake_steps": s.o.steps, "class_steps": s.o.class_steps, "class_dreams": s.o.class_dreams,
                           "class_replay": s.o.class_replay, "class_tokens": s.longest, "dreamt_topics": 0, **changes})
    if not memory.setdefault("heard", {}) and not a.dreamt_topics:
        hear(model, s.enc, memory["heard"], s.base_rows)
    class_night(a, model, s.enc, s.stages[:s.night], s.stages[s.night], day, memory["heard"], s.bar)


def asleep_on_dreams(s, model, day, memory):
    """Sleep whose router, too, learns from dreams alone."""
    asleep(s, model, day, memory, dreamt_topics=1)


LRS = [0.003, 0.01, 0.03]
METHODS = {  # name: (what a day does, what it keeps, what is searched)
    "sleep": (asleep, "numbers", {}), "sleep_dreamt_router": (asleep_on_dreams, "nothing", {}),
    "none": (none, "nothing", {}), "sft": (sft, "nothing", {"lr": LRS}),
    "ewc": (ewc, "numbers", {"lr": LRS, "weight": [10.0, 1000.0]}), "lwf": (lwf, "nothing", {"lr": LRS}),
    "generative_replay": (generative_replay, "nothing", {"lr": LRS}),
    "distilled_replay": (distilled_replay, "nothing", {"lr": LRS}),
    "inca": (inca, "numbers", {}), "replay": (replay, "text", {"lr": LRS}), "joint": (None, "all text at once", {})}
DEFAULTS = {m: {"lr": 0.01} for m, (_, _, grid) in METHODS.items() if grid}
DEFAULTS["ewc"]["weight"] = 100.0


# ----------------------------------------------------------------------------------------------------------------------
# Exams

def nearest(s, model, rows, memory):
    """Share of rows that lie nearest to the Gaussian of their own class: sleep's router alone, without its experts."""
    ids, lengths = pad_rows([s.enc.encode_ordinary(t) for t, _ in rows], model.device)
    keys, bias = topic_detectors(memory["means"], memory["cov"])
    with torch.no_grad():
        at = (topic(model, ids, lengths) @ keys.T + bias).argmax(1).tolist()
    return sum(memory["labels"][i] == label for i, (_, label) in zip(at, rows)) / len(rows)


def exam(s, model, memory, upto):
    """A row of R: the rows of every stage up to `upto`, each over the classes of all of them."""
    if "means" in memory:
        return [nearest(s, model, rows, memory) if j <= upto else None for j, rows in enumerate(s.exams)]
    return exam_all(model, s.enc, s.exams, s.stages, upto)


def metrics(R, exams):
    """final: all classes after the last night; average incremental: its mean over i; ACC, BWT, forgetting: over stages."""
    return {"final": over_all(R[-1], exams), "average_incremental": mean(over_all(r, exams) for r in R), "base_kept": R[-1][0],
            **sleep.metrics(R)}


def references(s):
    """No neural network, all text at once: tf-idf nearest mean, and a linear SVC if scikit-learn is there."""
    train, test = s.rows("train", [label for stage in s.stages for label in stage]), [row for e in s.exams for row in e]
    found = {"tf-idf nearest mean": C.tfidf_nearest_mean(train, test)}
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.svm import LinearSVC
    except ImportError:
        print("  (linear SVC left out: pip install scikit-learn)", flush=True)
        return found
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)).fit([t for t, _ in train])
    svc = LinearSVC(random_state=0).fit(words.transform([t for t, _ in train]), [label for _, label in train])
    said = svc.predict(words.transform([t for t, _ in test]))
    found["linear SVC on tf-idf"] = sum(x == label for x, (_, label) in zip(said, test)) / len(test)
    return found


# ----------------------------------------------------------------------------------------------------------------------
# A life

def beginning(o, seed, split):
    """What all lives of a seed share: data, stages, tokenizer, exams, base."""
    data, stages = topics.load(o.data, o.data_dir, seed)
    s = SimpleNamespace(o=o, a=SimpleNamespace(seed=seed), seed=seed, split=split, stages=stages[:1 + (o.days or len(stages))],
                        night=0, bar=None, longest=24 if o.data != "dbpedia" else 48)
    if o.init_from == "scratch":
        s.enc = encoding(train_bpe([t for t, _ in C.rows_of(data, "train", stages[0])] + stages[0], 2048), o.data)
        config = Config(vocab_size=s.enc.n_vocab, block_size=192, n_head=4, n_embd=128, d_ff=512, ranks=(32, 128, 128))
        s.new_model = lambda: GPT(config)
    else:
        s.enc = sleep.tokenizer(SimpleNamespace(init_from=o.init_from))
        s.new_model = lambda: from_pretrained(o.init_from, (32, 128, 128), extra_tokens=4)
    short = lambda text: s.enc.decode(s.enc.encode_ordinary(text)[:LONGEST])           # a text of rare names has many tokens
    s.rows = lambda split, labels: [(short(t), label) for t, label in C.rows_of(data, split, labels)]
    s.exams = [s.rows(split, labels) for labels in s.stages]
    for labels, rows in zip(s.stages, s.exams):
        if not rows:
            raise ValueError(f"{o.data_dir}: no {split} rows for any of {', '.join(labels[:5])}: an exam needs some")
    if o.rows:
        s.exams = [random.Random(seed).sample(e, min(o.rows, len(e))) for e in s.exams]
    s.base_rows = s.rows("train", stages[0])
    made_of = zlib.crc32(repr((s.base_rows, o.init_from, o.base_steps, o.base_lr)).encode())  # another base, another file
    path = os.path.join(o.work, f"{o.data}-{seed}-{made_of:08x}.pt")
    if os.path.isfile(path):
        s.base, _ = sleep.load(path)
    else:
        sleep.reseed(s.a, "weights")
        with bar_of(o.base_steps, f"seed {seed}: base") as b:
            s.base = study_all(s.new_model(), both_ways(s.enc, s.base_rows), o.base_steps, b, o.base_lr, o.base_lr * 2 / 3)
        sleep.save(path, s.base.requires_grad_(False))
    return s


def life(s, method, knobs):
    """All nights of one method. Returns a JSON-ready dict."""
    night, keeps, _ = METHODS[method]
    start, T, memory = time.time(), len(s.stages), {}
    with bar_of(None, f"seed {s.seed}: {method}") as s.bar:
        if method == "joint":
            sleep.reseed(s.a, "joint")
            docs = both_ways(s.enc, s.rows("train", [label for stage in s.stages for label in stage]))
            model = study_all(s.new_model(), docs, 2 * s.o.base_steps, s.bar, s.o.base_lr, s.o.base_lr * 2 / 3)
            R = [exam(s, model.requires_grad_(False), memory, T - 1)]
        else:
            model, R, seconds = copy.deepcopy(s.base), [exam(s, s.base, memory, 0)], []
            for s.night in range(1, T):
                sleep.reseed(s.a, method, s.night)
                t = time.process_time()
                night(s, model, s.rows("train", s.stages[s.night]), memory, **knobs)
                seconds.append(round(time.process_time() - t, 1))
                R.append(exam(s, model, memory, s.night))
    curve = [over_all(row, s.exams) for row in R]                     # all classes seen so far, a number a night
    found = metrics(R, s.exams) if method != "joint" else {"final": curve[-1]}
    return {"method": method, "seed": s.seed, "split": s.split, "keeps": keeps, **knobs, **found, "R": R,
            "over_nights": curve, "parameters": model.n_params(), "seconds": round(time.time() - start, 1),
            "cpu_a_night": round(mean(seconds), 1) if method != "joint" else None}


def search(o, save, file):
    """For every method the knobs of its grid with the best accuracy on validation rows after two nights."""
    wanted = [m for m in o.methods if METHODS[m][2]]
    missing = [m for m in wanted if not any(r["method"] == m for r in file["search"])]
    if not missing:
        return
    s = beginning(SimpleNamespace(**{**vars(o), "days": 2}), VALIDATION, "val")
    for m in tqdm(missing, desc="search", unit="method", mininterval=1.0):
        rows = []
        for k, values in METHODS[m][2].items():
            for v in values:
                knobs = {**DEFAULTS[m], **(best(rows, m) if rows else {}), k: v}
                if not any(all(r[x] == y for x, y in knobs.items()) for r in rows):
                    r = life(s, m, knobs)
                    rows.append({"method": m, **knobs, "final": r["final"], "split": r["split"], "seed": VALIDATION})
        file["search"] += rows
        save()


def best(rows, method):
    rows = [r for r in rows if r["method"] == method]
    if not rows:
        return DEFAULTS.get(method, {})
    top = max(rows, key=lambda r: r["final"])
    return {k: top[k] for k in ("lr", "weight") if k in top}


def main(argv):
    o = parse(argv)
    stored = stats.read(os.path.abspath(o.result))
    if o.table:
        return tables(stored) if stored else fail(f"no results at {o.result}: run without --table first")
    data = topics.read(o.data, o.data_dir)                           # whatever is wrong with the files is said now
    torch.set_num_threads(o.threads)
    os.makedirs(o.work, exist_ok=True)
    settings = {k: getattr(o, k) for k in ("data", "days", "rows", "base_steps", "base_lr", "steps", "class_steps",
                                           "class_dreams", "class_replay")}
    settings["base"] = "scratch" if o.init_from == "scratch" else "gpt2"
    hidden = ("--work", "--result", "--data_dir", "--init_from")     # where things lie on this machine is nobody's business
    command = " ".join(["python bench/class_incremental.py", *(w for w in argv if not w.startswith(hidden)),
                        "--data_dir=FOLDER", *(["--init_from=FOLDER"] if settings["base"] == "gpt2" else [])])
    file = {"command": command, **settings, "threads": o.threads, "device": "cpu", "search": [], "runs": [], "references": [],
            "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
            "all_rows": {s: sum(map(len, rows.values())) for s, rows in data.items()},
            "rows_a_class": [min(map(len, data["train"].values())), max(map(len, data["train"].values()))]}
    if stored:
        file = stored
        other = [f"{k}={file.get(k)}" for k, v in settings.items() if file.get(k) != v]
        if other:
            fail(f"{o.result} holds lives with other settings ({', '.join(other)}): use them, or name another --result")
    save = lambda: store.write_json(o.result, file)
    done = {(r["method"], r["seed"]) for r in file["runs"]}
    todo = [(m, n) for n in o.seeds for m in o.methods if (m, n) not in done]
    minutes = len(todo) * (0.1 if o.quick else 3.5)
    print(f"{o.data}: {len(todo)} lives to live. Expect about {minutes:.0f} minutes on one quiet CPU core"
          + (", and 25 for the search." if o.search and not file["search"] else "."), flush=True)
    if o.search:
        search(o, save, file)
    for number in dict.fromkeys(n for _, n in todo):
        s = beginning(o, number, "test")
        if not any(r["seed"] == number for r in file["references"]):
            file["references"].append({"seed": number, **references(s)})
            save()
        for m in (m for m, n in todo if n == number):
            file["runs"].append(life(s, m, best(file["search"], m)))
            save()
            print(f"  seed {number} {m:18} all {sum(map(len, s.stages))} classes {file['runs'][-1]['final']:.3f}   "
                  f"({file['runs'][-1]['seconds']:.0f} s)", flush=True)
    tables(file)


def tables(file):
    """Markdown: every method, mean ± standard deviation over seeds; paired differences to sleep; the search."""
    lives = {}
    for r in file["runs"]:
        lives.setdefault(r["method"], {})[r["seed"]] = r
    columns = ["final", "average_incremental", "ACC", "base_kept", "BWT", "forgetting"]
    (few, many), rows, seeds = file["rows_a_class"], file["all_rows"], {r["seed"] for r in file["runs"]}
    print(f"\n{file['data']}: {rows['train']:,} rows to learn from, {few} to {many} a class, {rows['test']:,} test rows; "
          f"{len(seeds)} seeds and class orders; mean ± standard deviation\n")
    head = ["method", "keeps", "seeds", "all classes at the end", "average incremental", "ACC", "base kept", "BWT", "forgetting",
            "CPU s a night", "parameters", "sleep minus this, all classes"]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for name in [m for m in METHODS if m in lives]:
        runs = list(lives[name].values())
        both = [n for n in lives.get("sleep", {}) if n in lives[name]]
        gap = [lives["sleep"][n]["final"] - lives[name][n]["final"] for n in both]
        cells = [name, runs[0]["keeps"], len(runs), *(stats.pm([r.get(k) for r in runs]) for k in columns),
                 stats.pm([r["cpu_a_night"] for r in runs], 0), f"{mean(r['parameters'] for r in runs):,.0f}",
                 stats.gap(gap) if name != "sleep" and len(both) > 1 else ""]
        print("| " + " | ".join(map(str, cells)) + " |")
    for name in dict.fromkeys(k for r in file["references"] for k in r if k != "seed"):
        found = [r[name] for r in file["references"] if name in r]
        print(f"| {name} | all text at once, no network | {len(found)} | {stats.pm(found)} |" + " |" * 8)
    if file["search"]:
        print("\nsearch: validation rows, another class order, two nights; accuracy over all classes seen\n")
        for name in dict.fromkeys(r["method"] for r in file["search"]):
            rows, chosen = [r for r in file["search"] if r["method"] == name], best(file["search"], name)
            cells = [" ".join(f"{k} {r[k]:g}" for k in chosen) + f": {r['final']:.3f}" for r in rows]
            cells = [f"**{c}**" if {k: r[k] for k in chosen} == chosen else c for c, r in zip(cells, rows)]
            print(f"- {name}: " + ", ".join(cells))


if __name__ == "__main__":
    flags.guarded(main, "class_incremental.py")
