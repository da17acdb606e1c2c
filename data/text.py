"""
What every data set speaks: four marks, documents with a weight for each token, days, exams.

A data set is a file in data/ with one function `load(a) -> Data` (a: the flags); of your own notes,
a folder with a file a day, data/textfiles.py makes one. A document is
    <bos> passage (<ask> question <answer> answer <end>)*

The marks are four new tokens that pretraining teaches (--format=marks); or, in a model's own words
(--format=own), what its makers or its reading have taught it, and nothing has to be learnt: given
no more than the opening of a user's turn behind a passage, an aligned model writes a user's
question about it by itself (Magpie, arXiv 2406.08464). Known by its tokenizer's special tokens:
    Qwen (ChatML)   <|im_start|>system INSTRUCTION Text: passage<|im_end|>
                    <|im_start|>user Question: ...<|im_end|>
                    <|im_start|>assistant Answer: ...<|im_end|>      Qwen 3: its <think> left empty
    Llama 3 instruct                the same, with its header tokens and <|eot_id|>
    any other, as GPT-2             <|endoftext|>Text: passage, Question: ..., Answer: ..., a line
                                    each; for this a line's end must be a token of its own
Three rules (ours) make such marks work like the trained ones. One id, <end>, closes every turn: it
is <end> of an answer and at once the first id of the <ask> or <answer> behind it. The rest of a
mark is never left to the model (`engine.generate`, forms). And a mark ends with a colon, so every
text begins with a space: a name has the same ids in a passage, a question and an answer.
"""
import re
from collections import namedtuple

import torch
from tqdm import tqdm

from data.bpe import SPECIAL
from data.tokenizer import CHATS

Data = namedtuple("Data", "name enc marks block_size document days exams always listen heard",
                  defaults=[None])
# document (rng, share) -> (ids, weights): one for pretraining; share in [0, 1): how far it is
# days     [Day];  exams (j, i) -> [Item]: of day j, as it is true after night i, or []
# always   {"old": [Item], "reading": [Item], ...}: asked every morning
# listen   "name": a thing ends where a question becomes specific; "text": a whole text is one;
#          "first": a thing is the first that is specific in a question, as the name of a language
# heard    of a text: [(number of its thing, question)] that the base has heard, or None
Day = namedtuple("Day", "passages study heard", defaults=[()])
# passages: texts to read; study: documents, too many to read; heard: their questions, as above
Item = namedtuple("Item", "context question answer kind")
Marks = namedtuple("Marks", "bos ask answer end")       # tuples of ids; end: the one that stops

SHORT = ("Answer each question in as few words as you can, in those of the text, without a full "
         "stop. What you have neither read nor known, you answer with: I do not know\n\n")


def marks_of(enc, own=False):
    """The Marks of a tokenizer: the four trained tokens, or (own) its model's own words.
    Raises ValueError where it has none."""
    if not own:
        bos, ask, answer, end = (enc.encode_single_token(s) for s in SPECIAL)
        return Marks((bos,), (ask,), (answer,), end)
    parts = in_own_words(enc.special_tokens_set)
    bos, ask, answer = (tuple(enc.encode(part, allowed_special="all")) for part in parts)
    asked = enc.encode(" Who?" + parts[1], allowed_special="all")
    if ask[0] != answer[0] or tuple(asked[-len(ask):]) != ask:
        raise ValueError("this tokenizer joins a line's end to what stands before it and has no "
                         "chat format known here: learn the marks instead, --format=marks")
    return Marks(bos, ask, answer, ask[0])


def in_own_words(special):
    """What stands before a text, a question and an answer, for a model with these special tokens;
    the first token of the last two is what ends a turn."""
    def there(token):
        return token if token in special else ""
    chat = next((chat for token, chat in CHATS.items() if token in special), None)
    if chat is None:
        return there("<|endoftext|>") + "Text:", "\nQuestion:", "\nAnswer:"
    user, end, assistant = chat
    system = there("<|begin_of_text|>") + user.replace("user", "system", 1)
    thought = "<think>\n\n</think>\n\n" if "<think>" in special else ""
    return f"{system}{SHORT}Text:", f"{end}{user}Question:", f"{end}{assistant}{thought}Answer:"


def spelt(marks):
    """By how many ids the marks of one question are longer than four."""
    return len(marks.bos) + len(marks.ask) + len(marks.answer) - 3


def symbols(marks):
    """The ids that are nothing but marks: <end>, and marks of one id."""
    return {marks.end, *(mark[0] for mark in marks[:3] if len(mark) == 1)}


def as_text(enc, marks, ids):
    """What stands between the marks of a question or an answer (ids), as text."""
    ids, alone = tuple(ids), symbols(marks)
    if ids[:len(marks.ask)] == marks.ask:
        ids = ids[len(marks.ask):]
    if ids[-len(marks.answer):] == marks.answer:
        ids = ids[:-len(marks.answer)]
    return enc.decode([t for t in ids if t not in alone]).strip()


def document_ids(enc, marks, text, chain, weights=(0.05, 0.3, 1.0)):
    """A document as ids, and the weight of each id in the loss: passage, question, answer; nothing
    for what of a mark is spelt out."""
    ids = [*marks.bos, *enc.encode_ordinary(text)]
    weight = [0.0] * len(marks.bos) + [weights[0]] * (len(ids) - len(marks.bos))
    for question, answer in chain:
        words, there = enc.encode_ordinary(question), begun(ids, marks)
        given = [*enc.encode_ordinary(answer), marks.end]
        ids += [*marks.ask[there:], *words, *marks.answer, *given]
        heard = [*said(marks.ask), *[1.0] * len(words), *said(marks.answer)][there:]
        weight += [weights[1] * w for w in heard] + [weights[2]] * len(given)
    return ids, weight


def in_turn(marks, asked=True, n=3):
    """The marks of n questions as they follow <ask>, or (asked False) a passage: the forms of
    engine.generate."""
    return ((marks.answer, marks.ask) if asked else (marks.ask, marks.answer)) * n


def said(mark):
    """1 for the id of a mark that the model says, 0 for the rest."""
    return [1.0] + [0.0] * (len(mark) - 1)


def begun(ids, marks):
    """How much of <ask> stands at the end of a document: 1 where an answer's <end> begins it."""
    return int(ids[-1] == marks.end == marks.ask[0])


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
