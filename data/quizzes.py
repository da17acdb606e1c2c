"""
Quizzes: questions and answers as rows of token ids, and what is known of each.
"""
from collections import namedtuple

import torch
import torch.nn.functional as F

from data.engine import pad_rows

Quizzes = namedtuple("Quizzes", "ids start length passage begin end wording thing recalled since "
                     "target", defaults=[None] * 7)
# ids (N, T): <ask> question <answer> answer <end>, right-padded; start (N,): tokens up to and
# with <answer>; length (N,): all; passage (N,): in which it was read; begin, end (N,): the ids,
# counted from 1, between which the question becomes specific; wording (N, T): words that name
# nothing; thing (N,): what it is about; recalled (N,): answered from memory; since (N,): where,
# counted from the first id of <bos> as 0, it wakes the new expert; target (N, A, V): the
# teacher's log-probabilities of the A answer tokens


class RestlessNight(ValueError):
    """The night cannot go on: the day was not understood, or what was learnt is no number."""


def pack(pairs, device):
    """[(passage, question ids, answer ids)] -> Quizzes."""
    ids, length = pad_rows([[*q, *a] for _, q, a in pairs], device)
    start = torch.tensor([len(q) for _, q, _ in pairs], dtype=torch.long, device=device)
    passage = torch.tensor([p for p, _, _ in pairs], dtype=torch.long, device=device)
    return Quizzes(ids, start, length, passage)


def unpack(z):
    """The inverse of pack: [(passage, question ids, answer ids)]."""
    rows = zip(z.passage.tolist(), z.ids.tolist(), z.start.tolist(), z.length.tolist())
    return [(p, tuple(ids[:start]), tuple(ids[start:length])) for p, ids, start, length in rows]


def repack(z, pairs):
    """z with other answers: [(passage, question, answer)] of the same questions."""
    new = pack(pairs, z.ids.device)
    wording = F.pad(z.wording, (0, max(0, new.ids.shape[1] - z.wording.shape[1])))
    return new._replace(begin=z.begin, end=z.end, thing=z.thing,
                        wording=wording[:, :new.ids.shape[1]])


def take(z, index):
    """The quizzes at an index: numbers, or True and False."""
    return Quizzes(*(None if t is None else t[index] for t in z))


def shorten(z, width):
    """The quizzes without the padding behind the longest of them, `width` tokens long."""
    return z._replace(ids=z.ids[:, :width], wording=z.wording[:, :width])


def join(a, b):
    """Quizzes a and b, one after the other."""
    width = max(a.ids.shape[1], b.ids.shape[1])
    rows = [[t if t is None or t.dim() != 2 else F.pad(t, (0, width - t.shape[1])) for t in z]
            for z in (a, b)]
    return Quizzes(*(None if x is None else torch.cat([x, y]) for x, y in zip(*rows)))


def split(z):
    """Each question as (before, name, after), a question being wording, thing, wording."""
    rows = zip(unpack(z), z.begin.tolist(), z.end.tolist())
    return [(q[:b - 1], q[b - 1:e], q[e:]) for (_, q, _), b, e in rows]


def question_mask(z, marks):
    """(N, T-1) True where ids[:, 1:] is a word of the question or the first id of <answer>."""
    at = torch.arange(1, z.ids.shape[1], device=z.ids.device)
    return (at >= len(marks.ask)) & (at <= z.start[:, None] - len(marks.answer))


def answer_mask(z):
    """(N, T-1) True where ids[:, 1:] belongs to the answer, <end> included."""
    at = torch.arange(1, z.ids.shape[1], device=z.ids.device)
    return (at >= z.start[:, None]) & (at < z.length[:, None])


def closed_book(z, marks):
    """Quizzes behind <bos> alone, as student input (N, len(<bos>) + T - 1): its states from
    len(<bos>) on predict ids[:, 1:]."""
    return behind_bos(z.ids[:, :-1], marks)


def behind_bos(ids, marks):
    bos = torch.stack([torch.full_like(ids[:, 0], t) for t in marks.bos], 1)
    return torch.cat([bos, ids], 1)


def split_questions(row, marks):
    """The well-formed (<ask> question <answer>, answer <end>) pairs in a row of ids. The <end> of
    one may begin the <ask> of the next."""
    row, pairs, start, given = tuple(row), [], None, None   # given: where the answer begins
    for i, token in enumerate(row):
        if token == marks.end and start is not None and given is not None:
            if given - len(marks.answer) - start > len(marks.ask) and i > given:
                pairs.append((row[start:given], row[given:i + 1]))
            start = None
        if row[i:i + len(marks.ask)] == marks.ask:
            start, given = i, None
        elif row[i:i + len(marks.answer)] == marks.answer and start is not None and given is None:
            given = i + len(marks.answer)
    return pairs


def questions_in(rows, marks):
    """(i, question, answer) of all pairs in rows of ids that went on behind <ask>."""
    for i, row in enumerate(rows):
        for q, y in split_questions([*marks.ask, *row], marks):
            yield i, q, y


def answers_of(z, t, longest=None):
    """The part of t (N, T-1, ...) that belongs to the answers: (N, A, ...). A: the length of the
    targets, else `longest`, else that of the longest answer."""
    known = z.target is not None
    A = z.target.shape[1] if known else longest or int((z.length - z.start).max())
    at = (z.start[:, None] - 1 + torch.arange(A, device=t.device)).clamp(max=t.shape[1] - 1)
    index = at.view(*at.shape, *[1] * (t.ndim - 2)).expand(-1, -1, *t.shape[2:])
    return t.gather(1, index)


def words_of(z):
    """(N, A) True where an answer has a word, <end> included."""
    at = torch.arange(z.target.shape[1], device=z.ids.device)
    return at < (z.length - z.start)[:, None]


def sureness(z):
    """The probability of the least certain token of each answer: (N,)."""
    ids = answers_of(z, z.ids[:, 1:])
    p = z.target.gather(2, ids[..., None])[..., 0].exp()
    return p.masked_fill(~words_of(z), 1.0).min(1)[0]
