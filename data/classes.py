"""
Real text with classes, from a local folder: CLINC150, DBpedia's 70 classes of level 2, Banking77.

The base is trained on some classes, then new ones are met every day: 15 intents of CLINC150 are
1,500 sentences, too many for the context. A passage is the name of a class, a question one of its
texts, the answer the name:
    <bos> freeze account <ask> please freeze my card <answer> freeze account <end> <ask> ...
    <bos> <ask> please freeze my card <answer> freeze account <end>                  closed book
The exam is closed book; any class met so far may be the answer.
"""
import csv
import os
import random
import re
from collections import namedtuple
from functools import partial

from data.bpe import SPECIAL, encoding, train_bpe
from data.text import Data, Day, Item, document_ids, marks_of
from data.tokenizer import of_weights

VOCAB, BLOCK = 2048, 256
LONGEST = 96                            # tokens kept of a text
CHAIN = 24                              # tokens of a document about one class, at least
READINGS = 1                            # times a day goes through the texts of a class, chained
MISHEARD = 0.1                          # share of the words replaced: little text, many steps
READ, ASKED = (0.05, 0.5, 0.1), (0.0, 0.1, 1.0)         # loss weights: passage, question, answer
EXAM = "test"                           # the split that exams ask of; "val" to search on; "sealed":
# every fifth training text of a class, not trained on then: asked once, when all is decided

Table = namedtuple("Table", "columns label delimiter ending splits base day words source")
# base, day: classes the base knows, classes a day; words: kept of a text
TABLES = {
    "clinc150": Table(["text", "intent"], "intent", "\t", "tsv", ("train", "val", "test"), 45, 15,
                      40, "github.com/clinc/oos-eval, data/data_full.json, one 'text<TAB>intent' "
                      "a line"),
    "dbpedia": Table(["text", "l1", "l2", "l3"], "l2", "\t", "tsv", ("train", "test"), 20, 10, 24,
                     "DBPedia Classes, a table of text, l1, l2, l3 between tabs"),
    "banking77": Table(["text", "category"], "category", ",", "csv", ("train", "test"), 22, 11, 40,
                       "github.com/PolyAI-LDN/task-specific-datasets"),
}


# --------------------------------------------------------------------------------------------------
# Files

def lines(path, table):
    """The rows of a table with a header line. Raises FileNotFoundError, or ValueError with the
    line and what is expected there."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no file {path}: put it there ({table.source}) or name its folder "
                                "with --data_dir")
    quoting = csv.QUOTE_NONE if table.delimiter == "\t" else csv.QUOTE_MINIMAL
    try:
        with open(path, encoding="utf-8", newline="") as f:
            reader = csv.reader(f, delimiter=table.delimiter, quoting=quoting)
            rows = [(reader.line_num, row) for row in reader if row]
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: not UTF-8 text ({e.reason} near byte {e.start})") from None
    except csv.Error as e:
        raise ValueError(f"{path}: not a table ({e})") from None
    header = table.delimiter.join(table.columns).replace("\t", "<TAB>")
    if not rows or rows[0][1] != table.columns:
        found = rows[0][1] if rows else "nothing"
        raise ValueError(f"{path}, line 1: expected the header {header!r}, found {found!r}")
    for n, row in rows[1:]:
        if len(row) != len(table.columns) or not all(cell.strip() for cell in row):
            what = table.delimiter.join(row)[:60]
            raise ValueError(f"{path}, line {n}: expected {header!r}, found {what!r}")
    if len(rows) == 1:
        raise ValueError(f"{path}: no rows under the header {header!r}")
    return [row for _, row in rows[1:]]


def spoken(name):
    """'WinterSportPlayer' -> 'winter sport player', 'card_arrival' -> 'card arrival'."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ")
    return re.sub(r"[.?!]", "", apart).strip().lower()


def read(name, folder):
    """{split: {class: [texts]}} for train, val and test, which share no text; for sealed, too, when
    EXAM is that.

    Without a validation file every tenth training text of a class is validation, and is trained on
    by nobody. Raises FileNotFoundError or ValueError, naming file, line and what is expected.
    """
    table, data = TABLES[name], {}
    text, label = (table.columns.index(k) for k in ("text", table.label))
    for split in table.splits:
        found = data[split] = {}
        for row in lines(os.path.join(folder, f"{split}.{table.ending}"), table):
            words = row[text].split()[:table.words]
            found.setdefault(spoken(row[label]), []).append(" ".join(words))
    if "val" not in data:
        data["val"], data["train"] = every(10, data["train"])
    if EXAM == "sealed":
        data["sealed"], data["train"] = every(5, data["train"])
    strange = sorted(set(data["test"]) - set(data["train"]))
    if strange:
        path = os.path.join(folder, f"test.{table.ending}")
        raise ValueError(f"{path}: classes that the training file lacks: {', '.join(strange[:5])}")
    seen = {t for texts in data["train"].values() for t in texts}
    for split in set(data) - {"train"}:
        data[split] = {k: [t for t in data[split].get(k, []) if t not in seen]
                       for k in data["train"]}
    return data


def every(n, rows):
    """({class: every n-th text}, {class: the others})."""
    return ({k: texts[n - 1::n] for k, texts in rows.items()},
            {k: [t for i, t in enumerate(texts) if i % n != n - 1] for k, texts in rows.items()})


def stages_of(labels, table, seed, folder):
    """[[classes of the base], [classes of day 1], ...], in an order drawn from the seed."""
    labels = sorted(labels)
    if len(labels) <= table.base:
        raise ValueError(f"{folder}: {len(labels)} classes are too few, expected more than "
                         f"{table.base}")
    random.Random(seed).shuffle(labels)
    days = [labels[i:i + table.day] for i in range(table.base, len(labels), table.day)]
    return [labels[:table.base], *days]


# --------------------------------------------------------------------------------------------------
# Documents

Speech = namedtuple("Speech", "enc marks")


def short(speech, text):
    """A text of at most LONGEST tokens: rare words have many."""
    return " " + speech.enc.decode(speech.enc.encode_ordinary(" " + text)[:LONGEST]).strip()


def mishear(speech, document, rng):
    """A document with a tenth of the words of its questions replaced by any words; what was
    misheard is not learnt."""
    words = speech.enc.n_vocab - len(SPECIAL)                       # the marks are the last ids
    (ids, weights), asking = (list(x) for x in document), False
    for i, token in enumerate(ids):
        if token >= words:
            asking = token == speech.marks.ask[0]
        elif asking and rng.random() < MISHEARD:
            ids[i], weights[i] = rng.randrange(words), 0.0
    return ids, weights


def closed_book(speech, text, label, rng):
    document = document_ids(speech.enc, speech.marks, "", [(text, " " + label)], ASKED)
    return mishear(speech, document, rng)


def about(speech, texts, label, rng):
    """A document that reads the name of a class and goes on with some of its texts."""
    chain, size = [], 0
    for text in texts:
        chain.append((text, " " + label))
        size += len(speech.enc.encode_ordinary(text)) + 5
        if size > CHAIN:
            break
    document = document_ids(speech.enc, speech.marks, " " + label, chain, READ)
    return len(chain), mishear(speech, document, rng)


def document(speech, rows, rng, share):
    """One pretraining document about the classes {label: [texts]} of the base."""
    label = rng.choice(list(rows))
    if rng.random() < 0.5:
        return closed_book(speech, rng.choice(rows[label]), label, rng)
    return about(speech, rng.sample(rows[label], len(rows[label])), label, rng)[1]


def studies(speech, rows, rng):
    """A day's texts {label: [texts]} as documents of both kinds, two closed book to one that reads
    the name: naming is the harder half, and an answer has few words."""
    found = []
    for label, texts in rows.items():
        found += [closed_book(speech, text, label, rng) for text in texts]
        for _ in range(READINGS):
            left = rng.sample(texts, len(texts))
            while left:
                n, doc = about(speech, left, label, rng)
                found.append(doc)
                left = left[n:]
    return found


def asked(speech, rows):
    """[(name of the class, question)] of texts {label: [texts]}, both as ids."""
    enc, marks = speech.enc, speech.marks
    return [(tuple(enc.encode_ordinary(" " + label)),
             [*marks.ask, *enc.encode_ordinary(text), *marks.answer])
            for label, texts in rows.items() for text in texts]


# --------------------------------------------------------------------------------------------------
# The data set

def items(rows, kind):
    return [Item("", text, " " + label, kind) for label, texts in rows.items() for text in texts]


def exam(rows, j, i):
    """The exam of day j: nothing that was told of a class ever changes."""
    return items(rows[j], "class")


def load(a):
    """One of TABLES as a Data (data/text.py). a: data, data_dir, days, seed, world_seed.

    The world's seed draws the order of the classes.
    """
    data, table = read(a.data, a.data_dir), TABLES[a.data]
    stages = stages_of(data["train"], table, a.world_seed, a.data_dir)[:a.days + 1]
    texts = [" " + t for label in stages[0] for t in data["train"][label]]
    texts += [" " + label for label in stages[0]]
    enc = of_weights(a) or encoding(train_bpe(texts, VOCAB), a.data)
    speech = Speech(enc, marks_of(enc))
    rows = [{k: [short(speech, t) for t in data["train"][k]] for k in stage} for stage in stages]
    exams = [{k: [short(speech, t) for t in data[EXAM][k]] for k in stage} for stage in stages]
    for stage in exams:
        if not any(stage.values()):
            raise ValueError(f"{a.data_dir}: no {EXAM} rows for any of {', '.join(stage)[:60]}: an "
                             "exam needs some")
    rng = random.Random(f"{a.seed} studies")
    days = [Day([" " + k for k in day], studies(speech, day, rng), asked(speech, day))
            for day in rows[1:]]
    return Data(a.data, enc, speech.marks, BLOCK, partial(document, speech, rows[0]), days,
                partial(exam, exams[1:]), {"old": items(exams[0], "old")}, "text",
                asked(speech, rows[0]))
