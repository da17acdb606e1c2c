"""Real text with classes, from a local folder: CLINC150, DBpedia's 70 classes of level 2, Banking77 (bench/class_incremental.py).

`load` returns the same for all of them: {split: {label: [texts]}} for the splits train, val and test, which share no row. Where
a set has no validation split of its own, every tenth row of a class's training text becomes it, and is trained on by nobody.
"""
import csv
import os
import random
import re

from data import clinc

SETS = {"clinc150": (15, 3, 40), "dbpedia": (10, 2, 24), "banking77": (11, 2, 40)}   # classes a task, the base's tasks, words kept
TABLES = {  # the sets that are tables: (columns, which is the label, delimiter, ending, where they come from)
    "dbpedia": (["text", "l1", "l2", "l3"], "l2", "\t", "tsv", "DBPedia Classes, a table of text, l1, l2, l3 between tabs"),
    "banking77": (["text", "category"], "category", ",", "csv", "github.com/PolyAI-LDN/task-specific-datasets"),
}


def table(path, columns, label, delimiter, where):
    """A table with a header line -> {label: [texts]}. Raises FileNotFoundError or ValueError naming file and line."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no file {path}: put it there ({where}) or change --data_dir")
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    try:
        with open(path, encoding="utf-8", newline="") as f:
            reader = csv.reader(f, delimiter=delimiter, quoting=quoting)
            rows = [(reader.line_num, row) for row in reader if row]
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: not UTF-8 text ({e.reason} near byte {e.start})") from None
    except csv.Error as e:
        raise ValueError(f"{path}: not a table of comma-separated values ({e})") from None
    expected = delimiter.join(columns).replace("\t", "<TAB>")
    if not rows or rows[0][1] != columns:
        raise ValueError(f"{path}, line 1: expected the header {expected!r}, found {(rows[0][1] if rows else 'nothing')!r}")
    for n, row in rows[1:]:
        if len(row) != len(columns) or not all(c.strip() for c in row):
            raise ValueError(f"{path}, line {n}: expected {expected!r}, found {delimiter.join(row)[:60]!r}")
    if len(rows) == 1:
        raise ValueError(f"{path}: no rows under the header {expected!r}")
    found = {}
    for _, row in rows[1:]:
        found.setdefault(spoken(row[columns.index(label)]), []).append(" ".join(row[columns.index("text")].split()))
    return found


def spoken(name):
    """'WinterSportPlayer' -> 'winter sport player', 'card_arrival' -> 'card arrival'."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ").replace("?", "").strip().lower()


def read(name, folder):
    """{split: {label: [texts]}} of one of SETS. Raises FileNotFoundError or ValueError naming file, line and what is expected."""
    *_, words = SETS[name]
    if name == "clinc150":
        data = {s: {clinc.label_text(k): v for k, v in clinc.read_split(folder, s).items()} for s in clinc.SPLITS}
    else:
        columns, label, delimiter, ending, where = TABLES[name]
        data = {s: table(os.path.join(folder, f"{s}.{ending}"), columns, label, delimiter, where) for s in ("train", "test")}
        data["val"] = {k: v[9::10] for k, v in data["train"].items() if len(v) > 9}
        data["train"] = {k: [t for i, t in enumerate(v) if i % 10 != 9] for k, v in data["train"].items()}
    strange = sorted(set(data["test"]) - set(data["train"]))
    if strange:
        path = os.path.join(folder, f"test.{TABLES[name][3] if name in TABLES else 'tsv'}")
        raise ValueError(f"{path}: classes that the training file lacks: {', '.join(strange[:5])}")
    cut = lambda text: " ".join(text.split()[:words])
    data = {s: {k: [cut(t) for t in rows.get(k, [])] for k in data["train"]} for s, rows in data.items()}
    seen = {t for texts in data["train"].values() for t in texts}     # a text that is in train is no test of anything
    for split in ("val", "test"):
        data[split] = {k: [t for t in texts if t not in seen] for k, texts in data[split].items()}
    return data


def load(name, folder, seed):
    """(data, stages): stages[0] the labels of the base's tasks, then those of a task each, in an order drawn from the seed."""
    data, (per_task, base_tasks, _) = read(name, folder), SETS[name]
    labels = sorted(data["train"])
    if len(labels) <= per_task * base_tasks:
        raise ValueError(f"{folder}: {len(labels)} classes are too few, expected more than {per_task * base_tasks}")
    random.Random(seed).shuffle(labels)
    base = per_task * base_tasks
    return data, [labels[:base]] + [labels[i:i + per_task] for i in range(base, len(labels), per_task)]
