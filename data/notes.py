"""
The notebook of a night: what the page of a life (data/page.py) shows of it. Skip it at first.

Chapters and data/ write into it in passing, a line each. A night is the same to the last bit
whether notes are taken or not: nothing here draws a random number, nothing is handed back. What is
noted in the steps of a night stays a tensor until the morning (data/diary.py makes it text), so
that no step waits for a device. What is kept is a sample, evenly spaced. Nobody has begun (a bench
calls seed.night): then every function does nothing. Of a team the first process takes notes. Ours.
"""
import torch
import torch.nn.functional as F

from data import team
from data.quizzes import answers_of, closed_book, take, words_of

KEPT, DROPPED, ASKED = 40, 8, 24    # quizzes kept; dropped, for each reason; questions as asked
EVERY, CANDIDATES = 20, 32          # steps from look to look at one quiz; it is one of these
WATCHED = 3                         # quizzes watched a night (each cycle has its own)

BOOK = None                         # {name: [what was noted, in order]} while notes are taken


def begin(tried):
    """Open the notebook of a night. tried: [(passage, nights it was tried)], see sleep.wake."""
    global BOOK
    BOOK = {"passages": [tried]} if team.RANK == 0 else None


def close():
    """{name: [values]} of the night, and no more notes; {} if none were taken."""
    global BOOK
    book, BOOK = BOOK or {}, None
    return book


def write(name, value):
    if BOOK is not None:
        BOOK.setdefault(name, []).append(value)


def spaced(n, most):
    """Up to `most` of the numbers below n, evenly spaced: no chance in it."""
    few = min(n, most)
    return [i * n // few for i in range(few)]


def rows(z, index):
    """Quizzes at an index (list) as (ids, start, length), tensors on their device."""
    index = torch.tensor(index, dtype=torch.long, device=z.ids.device)
    return z.ids[index], z.start[index], z.length[index]


# --------------------------------------------------------------------------------------------------
# What the self asked itself, and what became of it

def asked(dreamt):
    """What the self wrote: [(passage, question, answer)] as ids."""
    write("asked", (len(dreamt), [dreamt[i] for i in spaced(len(dreamt), ASKED)]))


def dropped(why, z, keep):
    """Quizzes z of which those are dropped, for a reason, where keep (N,) is False."""
    if BOOK is None:
        return
    gone = [i for i, stays in enumerate(torch.as_tensor(keep).tolist()) if not stays]
    write("dropped", (why, len(gone), rows(z, [gone[i] for i in spaced(len(gone), DROPPED)])))


def kept(z, answers):
    """Quizzes z that the night has learnt, and what the new self answers: [(ids, source)]."""
    if BOOK is None:
        return
    index = spaced(len(answers), KEPT)
    recalled = z.recalled[torch.tensor(index, dtype=torch.long, device=z.ids.device)]
    write("kept", (len(answers), rows(z, index), recalled, [answers[i] for i in index]))


# --------------------------------------------------------------------------------------------------
# Distillation

def step(student, z, marks, level, now):
    """A step of seed.distil: its losses `now`, and now and then a look at the watched quiz."""
    if BOOK is None:
        return
    write("losses", now)
    n = len(BOOK["losses"]) - 1
    seen = BOOK.setdefault("watched", [])
    if n % EVERY == 0 or not seen or seen[-1]["of"] is not z.ids:
        look(student, z, marks, level, n, seen)


@torch.no_grad()
def look(student, z, marks, level, n, seen):
    """Note what the student would say at the watched answer token after n steps: (V,) log p.

    Watched is the token of CANDIDATES quizzes at which teacher and student, before the first step
    on z, differ most: KL in nats. All of it stays on the device. A move that learns labels alone
    has no teacher to look at.
    """
    if not z.target.shape[2]:
        return
    if not seen or seen[-1]["of"] is not z.ids:
        if len(seen) == WATCHED:
            return
        some = take(z, torch.tensor(spaced(len(z.ids), CANDIDATES), device=z.ids.device))
        log_s = says(student, some, marks, level)                               # (n, A, V)
        gap = (some.target.exp() * (some.target - log_s)).sum(-1)
        most = gap.masked_fill(~words_of(some), -1.0).flatten().argmax()
        row, at = most // gap.shape[1], most % gap.shape[1]
        seen.append({"of": z.ids, "quiz": take(some, row[None]), "at": at,
                     "teacher": some.target[row, at].clone(), "student": []})
    watched = seen[-1]
    log_s = says(student, watched["quiz"], marks, level)[0, watched["at"]]
    watched["student"].append((n, log_s.clone()))


def says(student, z, marks, level):
    """log p of every word at each answer token, the expert of tonight awake: (N, A, V)."""
    awake = None
    if level is not None:
        newest = torch.full_like(z.since, student.n_experts(level) - 1)
        awake = {level: (newest, z.since)}
    h = student.hidden(closed_book(z, marks), awake=awake)[:, len(marks.bos):]
    return F.log_softmax(student.logits(answers_of(z, h)).float(), -1)


def rollouts(asked_, right, ys, reward):
    """The tries at the first question of an on-policy step, and their rewards (N,)."""
    if BOOK is not None:
        n = len(ys) // len(asked_)
        write("rollouts", (asked_[0], right[0], ys[:n], reward[:n].clone()))


# --------------------------------------------------------------------------------------------------
# Dreams, and what is old

def dreams(z, gain, reward):
    """Dreams z tried on copies: what each gained (N,) in nats a token, and whether (N,) it paid."""
    write("dreams", (z.ids, z.start, z.length, gain, reward))


def old(asked_, before, after):
    """What the self asked itself of old things, and what it said [(ids, source)] then and now."""
    write("old", (asked_, before, after))


def dreamt_again(pairs):
    """What the memories of a level dreamt when they moved: [(expert, question, answer)]."""
    write("again", (len(pairs), [pairs[i] for i in spaced(len(pairs), KEPT)]))


def sat(items, found):
    """An exam of the morning: Items, and what was said, [(text, source)]."""
    write("exams", (items, found))
