"""
What every data set speaks: four marks, documents with a weight for each token, days, exams.

A data set is a file in data/ with one function `load(a) -> Data` (a: the flags); of your own notes,
a folder with a file a day, data/textfiles.py makes one. A document is
    <bos> passage (<ask> question <answer> answer <end>)*
"""
import re
from collections import namedtuple

import torch
from tqdm import tqdm

from data.bpe import SPECIAL

Data = namedtuple("Data", "name enc marks block_size document days exams always listen heard",
                  defaults=[None])
# document (rng, share) -> (ids, weights): one for pretraining; share in [0, 1): how far it is
# days     [Day];  exams (j, i) -> [Item]: of day j, as it is true after night i, or []
# always   {"old": [Item], "reading": [Item], ...}: asked every morning
# listen   "name": a thing ends where a question becomes specific; "text": a whole text is one thing;
#          "first": a thing is the first that is specific in a question, as the name of a language
# heard    of a text: [(number of its thing, question)] that the base has heard, or None
Day = namedtuple("Day", "passages study heard", defaults=[()])
# passages: texts to read; study: documents, too many to read; heard: their questions, as above
Item = namedtuple("Item", "context question answer kind")
Marks = namedtuple("Marks", "bos ask answer end")


def marks_of(enc):
    return Marks(*(enc.encode_single_token(s) for s in SPECIAL))


def document_ids(enc, marks, text, chain, weights=(0.05, 0.3, 1.0)):
    """A document as ids, and the weight of each id in the loss: passage, question, answer."""
    ids = [marks.bos] + enc.encode_ordinary(text)
    weight = [0.0] + [weights[0]] * (len(ids) - 1)
    for question, answer in chain:
        asked = [marks.ask, *enc.encode_ordinary(question), marks.answer]
        given = [*enc.encode_ordinary(answer), marks.end]
        ids += asked + given
        weight += [weights[1]] * len(asked) + [weights[2]] * len(given)
    return ids, weight


def pad_documents(docs, device="cpu"):
    """[(ids, weights)] -> ids (B, T), weight (B, T-1) of each predicted token. Padding weighs 0."""
    longest = max(len(ids) for ids, _ in docs)
    ids = torch.zeros(len(docs), longest, dtype=torch.long)
    weight = torch.zeros(len(docs), longest)
    for i, (row, w) in enumerate(docs):
        ids[i, :len(row)], weight[i, :len(w)] = torch.tensor(row), torch.tensor(w)
    return ids.to(device), weight[:, 1:].to(device)


def sentences(enc, text):
    """A passage as a list of sentences, each a list of ids."""
    parts = re.split(r"(?<=[.?!])\s|\n", text)              # 3.5 is one number
    return [enc.encode_ordinary(" " + part.strip()) for part in parts if part.strip()]


def fit(day, room):
    """A day whose passages (lists of sentences) all fit `room` tokens.

    A longer passage is split between sentences, a longer sentence cut.
    """
    fitting = []
    for passage in day:
        part = []
        for piece in (s[i:i + room] for s in passage for i in range(0, len(s), room)):
            if part and sum(map(len, part)) + len(piece) > room:
                fitting.append(part)
                part = []
            part.append(piece)
        if part:
            fitting.append(part)
    if len(fitting) > len(day):
        tqdm.write(f"  a passage is longer than {room} tokens: read in parts, between sentences")
    return fitting
