"""
Counting, for the tables on topics: two rivals that are incremental by nature and learn no network.

    python bench/counting.py --data=clinc150 --data_dir=FOLDER       -> bench/results/counting.json
    python bench/counting.py --data=dbpedia --data_dir=FOLDER

The protocol is that of bench/topics.py: a seed draws the order of classes, each day's sentences are
read once and only counts are kept, any class met so far may be the answer. Smoothing and terms
(words, or words and pairs of them) are searched on validation rows of an order that is not among
the seeds. When all classes have come, the order they came in makes no difference to counts; seeds
differ by the tokenizer, through which all text goes.
"""
import os
import re
import sys
import time
from collections import Counter
from statistics import mean

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import numpy as np                                                   # noqa: E402

from bench import stats                                              # noqa: E402
from data import classes, flags, store                               # noqa: E402

NAME, VALIDATION = "counting.py", 101
FLAGS = {  # name: (default, allowed, what it does), as in data/flags.py
    "data": ("clinc150", tuple(classes.TABLES), "which set"),
    "data_dir": ("data/clinc150", flags.TEXT, "its folder"),
    "seeds": ("1,2,3", flags.TEXT, "orders of the classes, with commas"),
    "split": ("test", ("test", "sealed"), "which rows are asked (bench/topics.py)"),
    "result": (os.path.join(stats.RESULTS, "counting.json"), flags.TEXT, "result file"),
}


# --------------------------------------------------------------------------------------------------
# Two ways to count. kept: {class: (texts, Counter of its terms)}; df: Counter, texts of each term

def terms(text, longest):
    """The words of a text and, with longest = 2, pairs of neighbours: Counter."""
    words = re.findall(r"[a-z0-9']+", text.lower())
    pairs = [" ".join(pair) for pair in zip(words, words[1:])] if longest > 1 else []
    return Counter(words + pairs)


def read(kept, df, rows, longest):
    """Add a day's [(text, class)] to the counts."""
    for text, name in rows:
        found = terms(text, longest)
        texts, total = kept.setdefault(name, (0, Counter()))
        total.update(found)
        df.update(found.keys())
        kept[name] = texts + 1, total


def naive_bayes(n, texts, df, alpha):
    """Multinomial naive Bayes: log p(class) + sum log p(term | class), additive smoothing.
    n (K, V) counts, texts (K,), df (V,) -> weights (K, V), bias (K,)."""
    p = (n + alpha) / (n + alpha).sum(1, keepdims=True)
    return np.log(p), np.log(texts / texts.sum())


def nearest_mean(n, texts, df, alpha):
    """The class whose mean tf-idf vector has the largest cosine to the text's. As above; idf =
    log((1 + alpha + N) / (alpha + df)) is that of tonight: what was counted is weighted anew."""
    idf = np.log((1 + alpha + texts.sum()) / (alpha + df))
    centre = n * idf
    return centre / np.linalg.norm(centre, axis=1, keepdims=True) * idf, np.zeros(len(n))


METHODS = {"naive Bayes, counts": naive_bayes, "tf-idf nearest mean, counts": nearest_mean}
GRID = [(alpha, longest) for longest in (1, 2) for alpha in (0.003, 0.01, 0.03, 0.1, 0.3)]


def name_all(method, kept, df, docs, alpha):
    """The class of each document (a Counter), of those met so far; terms never met are skipped."""
    column, names = {t: i for i, t in enumerate(df)}, list(kept)
    n = np.zeros((len(names), len(column)))
    for row, (_, total) in zip(n, kept.values()):
        row[[column[t] for t in total]] = list(total.values())
    texts = np.array([count for count, _ in kept.values()], dtype=float)
    weights, bias = method(n, texts, np.array(list(df.values()), dtype=float), alpha)
    found = []
    for doc in docs:
        known = [t for t in doc if t in column]
        score = weights[:, [column[t] for t in known]] @ np.array([doc[t] for t in known] or [])
        found.append(names[int((score + bias).argmax())])
    return found


# --------------------------------------------------------------------------------------------------
# A life

def stages_of(o, seed, split):
    """[(what is read, what is asked)] as [(text, class)], of the base and of every day."""
    a = flags.parse([f"--data={o.data}", f"--data_dir={o.data_dir}", f"--seed={seed}",
                     f"--world_seed={seed}"])
    classes.EXAM, usual = split, classes.EXAM
    data = classes.load(a)
    classes.EXAM = usual
    heard = [data.heard, *(day.heard for day in data.days)]
    exams = [data.always["old"], *(data.exams(j, j) for j in range(len(data.days)))]
    say = data.enc.decode
    return [([(say(q[1:-1]), say(list(name)).strip()) for name, q in day],
             [(x.question, x.answer.strip()) for x in exam]) for day, exam in zip(heard, exams)]


def life(stages, method, alpha, longest):
    """R[i][j], the share of stage j after night i; final and the other measures of topics.json."""
    kept, df, R, began = {}, Counter(), [], time.process_time()
    asked = [[(terms(text, longest), name) for text, name in exam] for _, exam in stages]
    for i, (day, _) in enumerate(stages):
        read(kept, df, day, longest)
        so_far = [doc for exam in asked[:i + 1] for doc, _ in exam]
        said = iter(name_all(METHODS[method], kept, df, so_far, alpha))
        R.append([mean(next(said) == name for _, name in exam) for exam in asked[:i + 1]])
    sizes = [len(exam) for exam in asked]
    curve = [sum(r * n for r, n in zip(row, sizes)) / sum(sizes[:len(row)]) for row in R]
    lost = [max(row[j] for row in R[j:]) - R[-1][j] for j in range(len(R) - 1)]
    return {"method": method, "keeps": "counts", "alpha": alpha, "longest": longest,
            "final": curve[-1], "average_incremental": mean(curve[1:]), "over_nights": curve[1:],
            "base_kept": R[-1][0], "forgetting": mean(lost), "R": R, "terms": len(df),
            "cpu_a_night": round((time.process_time() - began) / len(stages), 2)}


def main(argv):
    o = flags.parse(argv, __doc__, FLAGS, NAME)
    seeds = flags.numbers(o.seeds, "seeds", NAME)
    if VALIDATION in seeds:
        flags.fail(f"--seeds: {VALIDATION} is the order of the search; choose others", NAME)
    name = o.data + " sealed" * (o.split == "sealed")
    valid, search = stages_of(o, VALIDATION, "val"), []
    for method in METHODS:
        for alpha, longest in GRID:
            r = life(valid, method, alpha, longest)
            search.append({k: r[k] for k in ("method", "alpha", "longest", "final")})
    runs = []
    for seed in seeds:
        stages = stages_of(o, seed, o.split)
        for method in METHODS:
            best = max((r for r in search if r["method"] == method), key=lambda r: r["final"])
            r = life(stages, method, best["alpha"], best["longest"])
            runs.append({"data": o.data, "seed": seed, "split": o.split, **r})
            print(f"{o.data} seed {seed} {method:28} {r['final']:.3f}", flush=True)
    command = (f"python bench/counting.py --data={o.data} --data_dir=FOLDER --split={o.split} "
               f"--seeds={o.seeds}")
    rows = {"train": sum(len(d) for d, _ in stages), o.split: sum(len(x) for _, x in stages)}
    file = (stats.read(os.path.abspath(o.result)) or {}) | {name: {
        **stats.provenance(command), "all_rows": rows, "validation_seed": VALIDATION,
        "search": search, "runs": runs}}
    store.write_json(o.result, file)


if __name__ == "__main__":
    flags.guarded(main, NAME)
