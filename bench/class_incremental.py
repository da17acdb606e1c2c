"""
New topics every day, on real text: class-incremental learning (Figure 3 of arXiv 2606.03979).
Sleep, and what else one could do.

    python bench/class_incremental.py --data=clinc150 --data_dir=FOLDER
    python bench/class_incremental.py --data=dbpedia --data_dir=FOLDER
    python bench/class_incremental.py --data=banking77 --data_dir=FOLDER
    ... --quick                 2 seeds, 2 small days: does everything run? (numbers mean little)

Every seed has a base and an order of classes of its own. No task id at the exam: any class met so
far may be the answer. Train, validation and test are different rows; learning rates are searched
on the validation rows of a class order that is not among the seeds; the table is made of test
rows. Every method sees a day's text by day only; what it keeps is written in METHODS. R[i, j]:
accuracy on the rows of stage j after night i, all classes of stages 0..i to choose from; stage 0
is the base. A sentence and its class are their own quiz, so what differs from SFT in its quiz
alone (SEAL, GRPO, OPSD: bench/knowledge.py) is not here.
"""
import os
import random
import re
import shlex
import sys
import time
from collections import Counter
from statistics import mean
from types import SimpleNamespace

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import seed
import sleep
from bench import stats
from bench.baselines import fisher
from data import classes, exam, flags, gate, run, store, text
from data.engine import generate
from data.flags import COUNT, RATE, SOME, SWITCH, TEXT
from model import SLOW, clone

NAME = "class_incremental.py"
VALIDATION = 101                                            # class order and base of the search
FEW = 10                                                    # texts of a class that `replay` stores
SAMPLES = 128                                               # documents of a Fisher information
FLAGS = {  # name: (default, allowed, what it does), as in data/flags.py
    "data": ("clinc150", tuple(classes.TABLES), "which set"),
    "data_dir": ("data/clinc150", TEXT, "its folder"),
    "seeds": ("1,2,3", TEXT, "seeds of base, class order and life"),
    "methods": ("", TEXT, "names with commas between them; nothing: all"),
    "work": ("out-classes", TEXT, "folder of the bases"),
    "result": ("", TEXT, "result file; nothing: bench/results/classes-DATA.json"),
    "threads": (1, (1, 4096), "CPU threads"),
    "search": (1, SWITCH, "0: no search, the middle of every grid"),
    "days": (7, SOME, "days of a life at most"),
    "pretrain_steps": (1800, SOME, "training steps of the base, 16 documents each"),
    "steps": (270, SOME, "steps of a rival's day, 32 documents each: as many as sleep takes"),
    "imagined": (30, COUNT, "texts dreamt of each old class, by the rivals that dream of them"),
    "lr": (0.0, RATE, "learning rate of every rival; 0: as the search finds it"),
    "quick": (False, SWITCH, "2 seeds, 2 days, small"),
}
QUICK = {"seeds": "1,2", "days": 2, "pretrain_steps": 60, "steps": 10, "imagined": 4, "search": 0}


def fail(message):
    flags.fail(message, NAME)


def parse(argv):
    o = flags.parse(argv, __doc__, FLAGS, NAME, QUICK)
    o.seeds = flags.numbers(o.seeds, "seeds", NAME)
    o.methods = o.methods.split(",") if o.methods else list(METHODS)
    for m in o.methods:
        if m not in METHODS:
            fail(f"--methods: there is no {m!r}; choose among {', '.join(METHODS)}")
    if VALIDATION in o.seeds:
        fail(f"--seeds: {VALIDATION} is the validation seed of the search; choose others")
    file = f"quick-{o.data}.json" if o.quick else f"classes-{o.data}.json"
    o.result = o.result or os.path.join(o.work if o.quick else stats.RESULTS, file)
    return o


# --------------------------------------------------------------------------------------------------
# What a day does. name(s, model, day, memory, **knobs): changes the model in place.
#
# s: what all lives of a seed share (see `beginning`), and the night. day: data.text.Day.

def both_ways(s, heard):
    """[(name of a class, question)] as ids -> documents [(ids, weights)] like those of a day."""
    marks, docs = s.data.marks, []
    for name, q in heard:
        answered = [*q, *name, marks.end]
        loud = [classes.ASKED[1]] * len(q) + [classes.ASKED[2]] * (len(name) + 1)
        read = [classes.READ[1]] * len(q) + [classes.READ[2]] * (len(name) + 1)
        docs += [([*marks.bos, *answered], [0.0, *loud]),
                 ([*marks.bos, *name, *answered], [0.0] * (1 + len(name)) + read)]
    return docs


def loss_on(model, docs):
    """A function that draws as many documents as a night does, and gives their loss."""
    def loss():
        some = random.sample(docs, min(seed.BATCH, len(docs)))
        return sleep.document_loss(model, *text.pad_documents(some))
    return loss


def learn(s, model, loss_of, lr):
    """All weights down loss_of(), Muon and AdamW as for the base."""
    opts = sleep.optimizers(model.requires_grad_(True))
    for opt, rate in zip(opts, (lr, lr * sleep.LR_ADAM / sleep.LR_MUON)):
        for group in opt.param_groups:
            group["peak"] = rate
    for step in range(s.o.steps):
        share = min(1.0, (step + 1) / 10) * (1 - 0.95 * step / s.o.steps)
        sleep.descend(model, opts, loss_of(), share)
    model.requires_grad_(False)


def none(s, model, day, memory):
    """The base, which has never heard of the new classes."""


def sft(s, model, day, memory, lr):
    """Sequential fine-tuning of all weights on the day's text."""
    learn(s, model, loss_on(model, day.study), lr)


def ewc(s, model, day, memory, lr, weight):
    """Elastic weight consolidation (arXiv 1612.00796; online as in 1805.06370):
    + weight/2 sum_w F_w (w - w*)^2, F the diagonal Fisher information of documents of each stage at
    the end of its own day: the base's too. It stores a number a weight, no text."""
    def information(docs):
        some = random.sample(docs, min(SAMPLES, len(docs)))
        ids, weights = text.pad_documents(some, model.device)
        return fisher(model, ids, (weights > 0).float())
    if not memory:
        memory.update(fisher=information(both_ways(s, s.data.heard)))
    anchor = {k: p.detach().clone() for k, p in model.named_parameters()}
    today = loss_on(model, day.study)

    def loss():
        moved = sum((memory["fisher"][k] * (p - anchor[k]).square()).sum()
                    for k, p in model.named_parameters())
        return today() + 0.5 * weight * moved
    learn(s, model, loss, lr)
    for k, f in information(day.study).items():
        memory["fisher"][k] += f


def kept(model, old, docs):
    """A function that draws documents and gives KL(old self || new self) over their tokens."""
    def loss():
        some = random.sample(docs, min(seed.BATCH, len(docs)))
        ids, weight = text.pad_documents(some, model.device)
        at = weight > 0
        h, was = model.hidden(ids[:, :-1])[at], old.hidden(ids[:, :-1])[at]
        kl = seed.divergence(*(F.log_softmax(m.logits(x).float(), -1)
                               for m, x in ((old, was), (model, h))))
        return (kl * weight[at]).sum() / weight[at].sum()
    return loss


def lwf(s, model, day, memory, lr):
    """Learning without forgetting (arXiv 1606.09282): + KL(old self || new self) on the new day's
    own documents."""
    today, same = loss_on(model, day.study), kept(model, clone(model), day.study)
    learn(s, model, lambda: today() + same(), lr)


def imagine(s, model):
    """What the self says of every class it knew this morning: [(name, question)] (LAMOL)."""
    marks, known = s.data.marks, s.known(s.night - 1)
    prompts = [[*marks.bos, *name, *marks.ask] for name in known]
    rows = generate(model, prompts, classes.LONGEST, n=s.o.imagined, temperature=0.9,
                    stop=[*marks.answer])
    return [(known[i // s.o.imagined], [*marks.ask, *row]) for i, row in enumerate(rows)
            if len(row) > 1 and row[-1] == marks.answer[0]]


def generative_replay(s, model, day, memory, lr):
    """Generative replay (arXiv 1705.08690; LAMOL, 1909.03329): the day, and dreams of the old
    classes with hard labels."""
    docs = both_ways(s, imagine(s, model)) or day.study
    today, old = loss_on(model, day.study), loss_on(model, docs)
    learn(s, model, lambda: today() + old(), lr)


def distilled_replay(s, model, day, memory, lr):
    """The same dreams, but learnt as the old self's distributions: what is left of sleep without
    expansion and gate."""
    docs = both_ways(s, imagine(s, model)) or day.study
    today, old = loss_on(model, day.study), kept(model, clone(model), docs)
    learn(s, model, lambda: today() + old(), lr)


def replay(s, model, day, memory, lr):
    """Experience replay (arXiv 1902.10486). STORES TEXT: ten texts of every class, for ever."""
    if not memory:
        memory["heard"] = few(s.data.heard)
    today, old = loss_on(model, day.study), loss_on(model, both_ways(s, memory["heard"]))
    learn(s, model, lambda: today() + old(), lr)
    memory["heard"] += few(day.heard)


def few(heard):
    """FEW questions of each class, at random."""
    found = {}
    for name, q in random.sample(heard, len(heard)):
        found.setdefault(name, []).append((name, q))
    return [pair for pairs in found.values() for pair in pairs[:FEW]]


def inca(s, model, day, memory):
    """InCA (arXiv 2412.15563), its external learner: a Gaussian for each class on frozen features,
    one covariance for all.

    Features and Gaussians are those of the gate: this is sleep without its experts. InCA's second
    step, the model choosing among the nearest classes by their summaries in context, is left out: a
    base of this size cannot read one. It stores a mean a class and one covariance, no text.
    """
    gate.hear_day(model, s.data.marks, day.heard, SLOW, -1)


def asleep(s, model, day, memory):
    """Sleep: the night of seed.py. The day is heard by day; the night learns from dreams."""
    passages = [text.sentences(s.data.enc, p) for p in day.passages]
    try:
        seed.night(model, day._replace(passages=passages), s.data.marks, s.a)
    except (seed.RestlessNight, torch.linalg.LinAlgError) as e:
        tqdm.write(f"  night {s.night} was not finished: {e}")


def asleep_on_dreams(s, model, day, memory):
    """Sleep whose gate, too, hears new classes in dreams alone."""
    asleep(s, model, day._replace(heard=()), memory)


LRS = [0.003, 0.01, 0.03]
METHODS = {  # name: (what a day does, what it keeps, what is searched)
    "sleep": (asleep, "numbers", {}), "sleep_dreamt_gate": (asleep_on_dreams, "numbers", {}),
    "none": (none, "nothing", {}), "sft": (sft, "nothing", {"lr": LRS}),
    "ewc": (ewc, "numbers", {"lr": LRS, "weight": [10.0, 1000.0]}),
    "lwf": (lwf, "nothing", {"lr": LRS}),
    "generative_replay": (generative_replay, "nothing", {"lr": LRS}),
    "distilled_replay": (distilled_replay, "nothing", {"lr": LRS}),
    "inca": (inca, "numbers", {}), "replay": (replay, "text", {"lr": LRS}),
    "joint": (None, "all text at once", {})}
DEFAULTS = {m: {"lr": 0.01} for m, (_, _, grid) in METHODS.items() if grid}
DEFAULTS["ewc"]["weight"] = 100.0
GATED = {"sleep", "sleep_dreamt_gate", "inca", "none"}


# --------------------------------------------------------------------------------------------------
# Exams

def trie(names, vocab, end):
    """Names as a table (states, vocab) of next states for `generate`; -1: leads to no name."""
    rows = [[-1] * vocab]
    for name in names:
        state = 0
        for token in [*name, end]:
            if rows[state][token] < 0:
                rows[state][token] = len(rows)
                rows.append([-1] * vocab)
            state = rows[state][token]
    return torch.tensor(rows)


def share_right(s, model, items, upto, trust):
    """Share of Items answered right. trust: of gate and experts, or None for a self without gate,
    which decodes greedily over a trie of all names met so far."""
    enc, marks = s.data.enc, s.data.marks
    asked = [[*marks.ask, *enc.encode_ordinary(x.question), *marks.answer] for x in items]
    if trust is None:
        table, said = trie(s.known(upto), enc.n_vocab, marks.end).to(model.device), []
        for i in range(0, len(asked), 512):
            said += generate(model, [[*marks.bos, *q] for q in asked[i:i + 512]], gate.MAX_NEW,
                             temperature=0, stop=[marks.end], trie=table)
    else:
        said = [y for y, _ in gate.judge(model, marks, asked, trust)]
    names = [text.as_text(enc, marks, y) for y in said]
    return mean(name == x.answer.strip() for name, x in zip(names, items))


def examine(s, model, method, upto):
    """A row of R: the items of every stage up to `upto`, each over the classes of all of them."""
    trust = {"inca": (1, 0)}.get(method, gate.TRUST) if method in GATED else None
    return [share_right(s, model, items, upto, trust) if j <= upto else None
            for j, items in enumerate(s.exams)]


def apart(s, model):
    """After the last night: the gate's first proposal alone, and its proposals judged by the
    experts alone."""
    items = [x for stage in s.exams for x in stage]
    return {"gate_alone": share_right(s, model, items, len(s.exams) - 1, (1, 0)),
            "experts_alone": share_right(s, model, items, len(s.exams) - 1, (0, 1))}


def over_all(row, exams):
    """Accuracy over all stages seen so far, each with the weight of its items."""
    seen = [(r, len(e)) for r, e in zip(row, exams) if r is not None]
    return sum(r * n for r, n in seen) / sum(n for _, n in seen)


def metrics(R, exams):
    """final: all classes after the last night; average incremental: its mean over i; ACC, BWT,
    forgetting: over stages."""
    return {"final": over_all(R[-1], exams),
            "average_incremental": mean(over_all(row, exams) for row in R),
            "base_kept": R[-1][0], **exam.metrics(R)}


# --------------------------------------------------------------------------------------------------
# Without a neural network, all text at once

def tfidf_nearest_mean(train, test):
    """[(text, class)] twice -> accuracy of the nearest class mean (cosine) over tf-idf of words and
    word pairs."""
    def terms(words):
        words = re.findall(r"[a-z0-9']+", words.lower())
        return Counter(words + [" ".join(pair) for pair in zip(words, words[1:])])
    docs = [terms(t) for t, _ in train]
    df = Counter(t for doc in docs for t in doc)
    column = {t: i for i, t in enumerate(df)}
    names = sorted({name for _, name in train})
    row = {name: i for i, name in enumerate(names)}

    def vector(doc):                                        # sparse, of length 1
        known = [t for t in doc if t in column]
        w = np.array([(1 + np.log(doc[t])) * np.log(len(docs) / df[t]) for t in known])
        return np.array([column[t] for t in known], dtype=int), w / max(np.linalg.norm(w), 1e-9)
    centre = np.zeros((len(names), len(column)))
    for doc, (_, name) in zip(docs, train):
        at, w = vector(doc)
        centre[row[name], at] += w
    centre /= np.linalg.norm(centre, axis=1, keepdims=True)
    said = [(centre[:, at] @ w).argmax() for at, w in (vector(terms(t)) for t, _ in test)]
    return mean(names[i] == name for i, (_, name) in zip(said, test))


def references(s):
    """tf-idf nearest mean, and a linear SVC if scikit-learn is there: {name: accuracy}."""
    heard = [pair for stage in s.heard for pair in stage]
    train = [(s.data.enc.decode(q[1:-1]), s.data.enc.decode(list(name)).strip())
             for name, q in heard]
    test = [(x.question, x.answer.strip()) for stage in s.exams for x in stage]
    found = {"tf-idf nearest mean": tfidf_nearest_mean(train, test)}
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.svm import LinearSVC
    except ImportError:
        print("  (linear SVC left out: pip install scikit-learn)", flush=True)
        return found
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)).fit([t for t, _ in train])
    svc = LinearSVC(random_state=0).fit(words.transform([t for t, _ in train]),
                                        [name for _, name in train])
    said = svc.predict(words.transform([t for t, _ in test]))
    found["linear SVC on tf-idf"] = mean(x == name for x, (_, name) in zip(said, test))
    return found


# --------------------------------------------------------------------------------------------------
# A life

def beginning(o, number, split, days):
    """What all lives of a seed share: flags a, data, base, and by stage (the base is stage 0) what
    is heard and the exams."""
    folder = os.path.join(o.work, f"{o.data}-{number}" + "-quick" * o.quick)
    a = flags.parse([f"--{k}={getattr(o, k)}" for k in ("data", "data_dir", "pretrain_steps")]
                    + [f"--seed={number}", f"--world_seed={number}", f"--days={days}",
                       f"--out_dir={folder}"])
    a.command, a.torch_device = "", torch.device("cpu")
    classes.EXAM, data = split, None
    data = classes.load(a)
    os.makedirs(folder, exist_ok=True)
    a.resume = True                                         # go on with a base that is half done
    done = os.path.isfile(os.path.join(folder, "base.pt"))
    base, _ = sleep.pretrained(a, None if done else sleep.born(a, data), data)
    heard = [data.heard, *(day.heard for day in data.days)]
    exams = [data.always["old"], *(data.exams(j, j) for j in range(len(data.days)))]
    s = SimpleNamespace(o=o, a=a, seed=number, split=split, data=data, base=base, heard=heard,
                        exams=exams, night=0)
    s.known = lambda upto: list(dict.fromkeys(n for day in heard[:upto + 1] for n, _ in day))
    return s


def lived(s, method, knobs):
    """(model, R, CPU seconds of each night)."""
    night, _, _ = METHODS[method]
    model, seconds, memory, T = clone(s.base), [], {}, len(s.exams)
    if night is None:
        run.stage(s.a, "joint")
        docs = [doc for day in s.data.days for doc in day.study] + both_ways(s, s.data.heard)
        longer = SimpleNamespace(o=SimpleNamespace(steps=s.o.pretrain_steps))
        learn(longer, model, loss_on(model, docs), sleep.LR_MUON)
        return model, [examine(s, model, method, T - 1)], []
    R = [examine(s, model, method, 0)]
    for s.night in range(1, T):
        run.stage(s.a, method, s.night)
        began = time.process_time()
        night(s, model, s.data.days[s.night - 1], memory, **knobs)
        seconds.append(round(time.process_time() - began, 1))
        R.append(examine(s, model, method, s.night))
    return model, R, seconds


def life(s, method, knobs):
    """All nights of one method. Returns a JSON-ready dict."""
    began = time.time()
    model, R, seconds = lived(s, method, knobs)
    curve = [over_all(row, s.exams) for row in R]           # all classes seen so far, one a night
    found = metrics(R, s.exams) if seconds else {"final": curve[-1]}
    if method in ("sleep", "sleep_dreamt_gate"):
        found |= apart(s, model)
    return {"method": method, "seed": s.seed, "split": s.split, "keeps": METHODS[method][1],
            **knobs, **found, "R": R, "over_nights": curve, "parameters": model.n_params(),
            "seconds": round(time.time() - began, 1),
            "cpu_a_night": round(mean(seconds), 1) if seconds else None}


def search(o, save, file):
    """For every method the knobs of its grid with the best accuracy on validation rows after two
    nights."""
    wanted = [m for m in o.methods if METHODS[m][2]]
    missing = [m for m in wanted if not any(r["method"] == m for r in file["search"])]
    if not missing:
        return
    s = beginning(o, VALIDATION, "val", 2)
    for m in tqdm(missing, desc="search", unit="method", mininterval=1.0):
        rows = []
        for k, values in METHODS[m][2].items():
            for v in values:
                knobs = {**DEFAULTS[m], **(best(rows, m) if rows else {}), k: v}
                if not any(all(r[x] == y for x, y in knobs.items()) for r in rows):
                    r = life(s, m, knobs)
                    rows.append({"method": m, **knobs, "final": r["final"], "split": r["split"],
                                 "seed": VALIDATION})
        file["search"] += rows
        save()


def best(rows, method):
    rows = [r for r in rows if r["method"] == method]
    if not rows:
        return DEFAULTS.get(method, {})
    top = max(rows, key=lambda r: r["final"])
    return {k: top[k] for k in ("lr", "weight") if k in top}


def knobs_of(o, file, method):
    knobs = best(file["search"], method)
    return {**knobs, "lr": o.lr} if o.lr and "lr" in knobs else knobs


def opened(o, argv, data):
    """The result file to go on with. One of other settings, or of an older bench, is refused."""
    settings = {k: getattr(o, k) for k in ("data", "days", "pretrain_steps", "steps", "imagined")}
    hidden = ("--work", "--result", "--data_dir")           # where things lie is nobody's business
    words = [w for w in argv if not w.startswith(hidden)]
    command = shlex.join(["python", "bench/class_incremental.py", *words, "--data_dir=FOLDER"])
    counts = [len(texts) for texts in data["train"].values()]
    file = stats.read(os.path.abspath(o.result))
    if file is None:
        rows = {split: sum(map(len, found.values())) for split, found in data.items()}
        return {**stats.provenance(command), **settings, "device": "cpu", "search": [], "runs": [],
                "references": [], "all_rows": rows, "rows_a_class": [min(counts), max(counts)]}
    other = [f"{k}={file.get(k)}" for k, v in settings.items() if file.get(k) != v]
    if other:
        fail(f"{o.result} holds lives with other settings ({', '.join(other)}): use them, name "
             "another --result, or take the file away")
    return file


def main(argv):
    o = parse(argv)
    data = classes.read(o.data, o.data_dir)                 # what is wrong with the files, now
    torch.set_num_threads(o.threads)
    os.makedirs(o.work, exist_ok=True)
    file = opened(o, argv, data)

    def save():
        store.write_json(o.result, file)
    done = {(r["method"], r["seed"]) for r in file["runs"]}
    todo = [(m, n) for n in o.seeds for m in o.methods if (m, n) not in done]
    print(f"{o.data}: {len(todo)} lives to live. Expect about "
          f"{len(todo) * (0.1 if o.quick else 5):.0f} minutes on one quiet CPU core"
          + (", and 30 for the search." if o.search and not file["search"] else "."), flush=True)
    if o.search and todo:
        search(o, save, file)
    for number in dict.fromkeys(n for _, n in todo):
        s = beginning(o, number, "test", o.days)
        if not any(r["seed"] == number for r in file["references"]):
            file["references"].append({"seed": number, **references(s)})
            save()
        for m in (m for m, n in todo if n == number):
            r = life(s, m, knobs_of(o, file, m))
            file["runs"].append({**r, "commit": stats.commit()})
            save()
            tqdm.write(f"  seed {number} {m:18} all {len(s.known(len(s.exams)))} classes "
                       f"{r['final']:.3f}   ({r['seconds']:.0f} s)")


if __name__ == "__main__":
    flags.guarded(main, NAME)
