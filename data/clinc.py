"""CLINC150 (Larson et al. 2019): 150 intents of a voice assistant, real sentences of real people, from a local folder.

The model lives on them class by class: it is trained from scratch on some intents, then meets new ones every day. A
document says the same thing in one of two directions, so that the model can both understand and imagine:

    <|bos|><|ask|>please freeze my card<|answer|>freeze account<|end|>          read a sentence, say what it wants
    <|bos|><|answer|>freeze account<|ask|>please freeze my card<|end|>          think of a wish, say a sentence
"""
import os
import random
import re
from collections import Counter

import numpy as np

SPLITS = ("train", "val", "test")


def read_split(data_dir, split):
    """One file of the data set -> {intent: [texts]}. Raises FileNotFoundError or ValueError with file and line."""
    path = os.path.join(data_dir, f"{split}.tsv")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no CLINC150 at {path}: put train.tsv, val.tsv and test.tsv there (github.com/clinc/oos-eval, "
                                "data/data_full.json, one 'text<TAB>intent' a line under a header line) or change --data_dir")
    intents = {}
    with open(path, encoding="utf-8", newline="\n") as f:
        try:
            for n, line in enumerate(f, 1):
                row = line.rstrip("\r\n").split("\t")
                if n == 1 and row == ["text", "intent"]:
                    continue
                if len(row) != 2 or not row[0].strip() or not row[1].strip():
                    raise ValueError(f"{path}, line {n}: expected 'text<TAB>intent', found {line.strip()[:60]!r}")
                intents.setdefault(row[1].strip(), []).append(row[0].strip())
        except UnicodeDecodeError as e:
            raise ValueError(f"{path}: not UTF-8 text ({e.reason} near byte {e.start})") from None
    if not intents:
        raise ValueError(f"{path}: no rows, expected one 'text<TAB>intent' a line")
    return intents


def load(data_dir, base=45, per_day=15, seed=1):
    """Read the three splits and deal the intents, in a seeded order: `base` of them first, then `per_day` a day.

    Returns (data, stages): data[split][label] is a list of texts; stages[0] the base's labels, stages[d] those of day d.
    """
    data = {split: read_split(data_dir, split) for split in SPLITS}
    labels = sorted(data["train"])
    for split in ("val", "test"):
        odd = sorted(set(labels) ^ set(data[split]))
        if odd:
            raise ValueError(f"{os.path.join(data_dir, split)}.tsv and train.tsv differ in their intents: {', '.join(odd[:5])}")
    if not 0 < base <= len(labels) or per_day < 1:
        raise ValueError(f"cannot deal {len(labels)} intents as {base} for the base and {per_day} a day")
    random.Random(seed).shuffle(labels)
    stages = [labels[:base]] + [labels[i:i + per_day] for i in range(base, len(labels), per_day)]
    data = {split: {label_text(k): texts for k, texts in rows.items()} for split, rows in data.items()}
    return data, [[label_text(k) for k in stage] for stage in stages]


def label_text(intent):
    return intent.replace("_", " ").strip()                          # 'freeze_account' -> 'freeze account'


def rows_of(data, split, labels):
    """-> [(text, label)] in a fixed order."""
    return [(text, label) for label in labels for text in data[split][label]]


def prompt(enc, text=None, label=None):
    """The beginning of a document, up to where the model has to go on: with its label, or with a sentence."""
    bos, ask, answer, _ = specials(enc)
    if label is None:
        return [bos, ask, *enc.encode_ordinary(text), answer]
    return [bos, answer, *enc.encode_ordinary(label), ask]


def document(enc, text, label, label_first, weights=(0.3, 1.0)):
    """(ids, weight of each id in the loss): the sentence weighs 0.3 where it comes first; what comes second weighs 1."""
    end = specials(enc)[3]
    first, second = (prompt(enc, label=label), text) if label_first else (prompt(enc, text), label)
    second = enc.encode_ordinary(second) + [end]
    w = 0.0 if label_first else weights[0]                           # which label comes is not for the model to guess
    return first + second, [0.0, 0.0] + [w] * (len(first) - 2) + [weights[1]] * len(second)


def trie(enc, labels):
    """The labels as a table (states, V) of next states for model.generate: -1 where a token leads to no label."""
    end, rows = specials(enc)[3], [[-1] * enc.n_vocab]
    for label in labels:
        state = 0
        for token in [*enc.encode_ordinary(label), end]:
            if rows[state][token] < 0:
                rows[state][token] = len(rows)
                rows.append([-1] * enc.n_vocab)
            state = rows[state][token]
    return np.array(rows)


def specials(enc):
    return [enc.encode_single_token(s) for s in ("<|bos|>", "<|ask|>", "<|answer|>", "<|end|>")]


# ----------------------------------------------------------------------------------------------------------------------
# A sober reference, without a network

def tfidf_nearest_mean(train, test):
    """Train and test [(text, label)] -> accuracy of the nearest class mean (cosine) over tf-idf of words and word pairs."""
    def terms(text):
        words = re.findall(r"[a-z0-9']+", text.lower())
        return Counter(words + [" ".join(pair) for pair in zip(words, words[1:])])
    docs = [terms(text) for text, _ in train]
    df = Counter(t for doc in docs for t in doc)
    column = {t: i for i, t in enumerate(df)}
    labels = sorted({label for _, label in train})
    row = {label: i for i, label in enumerate(labels)}

    def vector(doc):                                                 # sparse, of length 1
        known = [t for t in doc if t in column]
        w = np.array([(1 + np.log(doc[t])) * np.log(len(docs) / df[t]) for t in known])
        return np.array([column[t] for t in known], dtype=int), w / max(np.linalg.norm(w), 1e-9)

    mean = np.zeros((len(labels), len(column)))
    for doc, (_, label) in zip(docs, train):
        at, w = vector(doc)
        mean[row[label], at] += w
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    right = 0
    for text, label in test:
        at, w = vector(terms(text))
        right += labels[int((mean[:, at] @ w).argmax())] == label
    return right / len(test)
