"""
The morning's diary: what was noted in a night (data/notes.py) and asked in the morning, as words
and numbers, for log.jsonl. The page of a life (data/page.py) is written from that file alone.

    notes.begin(tried)                in the evening
    diary.note(state, model, data)    in the morning: into the life, so that a resumed one has it
    diary.publish(folder, ...)        log.jsonl and life.html

A line of log.jsonl is the log of a night, its row of R, and "notes": a dict whose fields are named
in `told`. Nothing here draws a random number or changes the self. Ours.
"""
import json
import math
import os

import torch

from data import exam, flags, notes, page, store
from data.engine import pad_rows
from data.gate import listen
from data.text import as_text, symbols
from model import FAST

POINTS, TOP, TRIES = 60, 5, 6       # of a curve; words of a distribution; rollouts shown
OPENED, WRONG = 10, 12              # questions whose gates are shown; wrong answers of an exam


def note(state, model, data):
    """Close the notebook of the night and keep it as words in the state of the life."""
    book, found = notes.close(), state.setdefault("notes", [])
    found += [{}] * (len(state["nights"]) - 1 - len(found))         # a life begun without a diary
    found.append(told(book, model, data) if book else {})


def publish(folder, state, method):
    """Write log.jsonl, a line a night, and life.html, the page made of it."""
    lines = [{**night, "method": method, "R": row, "notes": noted} for night, row, noted
             in zip(state["nights"], state["R"], state["notes"])]
    log = "".join(json.dumps(line) + "\n" for line in lines)
    store.write(os.path.join(folder, "log.jsonl"), log.encode())
    store.write(os.path.join(folder, page.NAME), page.written(page.parsed(log)).encode())


def told(book, model, data):
    """The notebook {name: [values]} of a night and its morning as words and numbers (a dict)."""
    found = {"memories": model.n_experts(FAST),
             "passages": [{"text": text_of(data, sum(passage, [])), "tried": tried}
                          for tried_ in book["passages"] for passage, tried in tried_],
             "asked": {"n": sum(n for n, _ in book.get("asked", [])),
                       "some": [[text_of(data, ids) for ids in pair] for _, some in
                                book.get("asked", []) for _, *pair in some][:notes.ASKED]},
             "kept": kept(book.get("kept", []), data),
             "dropped": dropped(book.get("dropped", []), data),
             "losses": curves(book.get("losses", [])),
             "watched": [watched(w, data) for w in book.get("watched", []) if w["student"]],
             "rollouts": rollouts(book.get("rollouts", []), data),
             "dreams": [dream for part in book.get("dreams", []) for dream in dreams(part, data)],
             "old": [old for part in book.get("old", []) for old in olds(part, data)][:notes.KEPT],
             "again": [[f"memory {e + 1}", text_of(data, q), text_of(data, y)]
                       for _, some in book.get("again", []) for e, q, y in some]}
    if book.get("exams"):
        found |= {"exam": [sat(*x) for x in zip(*book["exams"][-2])],
                  "wrong": [wrong(*x) for x in book["exams"][:-1]],
                  "always": always(*book["exams"][-1]),
                  "opens": opens(model, data, chosen(book["exams"]))}
    return found


def text_of(data, ids):
    """Token ids as text, without the marks of the format."""
    return as_text(data.enc, data.marks, [t for t in ids if t >= 0])


def word(data, token):
    return "[end]" if token in symbols(data.marks) else data.enc.decode([token])


def pairs_of(data, ids, start, length):
    """[(question, answer)] of quizzes as ids (N, T)."""
    rows = zip(ids.tolist(), start.tolist(), length.tolist())
    return [(text_of(data, row[:s]), text_of(data, row[s:n])) for row, s, n in rows]


def number(x, digits=4):
    """A number for a log: a few digits, None where it is not finite."""
    x = float(x)
    return float(f"{x:.{digits}g}") if math.isfinite(x) else None


def source_of(source):
    """Where an answer comes from, in a word or two. source: as in gate.answer."""
    if source == "context":
        return "the passage"
    if source is None or source[1] < 0:
        return "base"
    slower = ("", "slow ", "slower ", "slowest ")[min(source[0] - FAST, 3)]
    return f"{slower}memory {source[1] + 1}"


# --------------------------------------------------------------------------------------------------
# The night

def kept(noted, data):
    """How many quizzes were kept, and some: [question, answer, what the new self says, source,
    was the answer recalled from an older memory?]."""
    some = []
    for _, rows, recalled, answers in noted:
        for (q, y), old, (said, source) in zip(pairs_of(data, *rows), recalled.tolist(), answers):
            some.append([q, y, text_of(data, said), source_of(source), old])
    return {"n": sum(n for n, *_ in noted),
            "some": [some[i] for i in notes.spaced(len(some), notes.KEPT)]}


def dropped(noted, data):
    """[{"why", "n", "some": [[question, answer or ""]]}], a reason each, in their order."""
    found = {}
    for why, n, rows in noted:
        row = found.setdefault(why, {"why": why, "n": 0, "some": []})
        row["n"] += n
        row["some"] += [list(pair) for pair in pairs_of(data, *rows)]
    return [{**row, "some": [row["some"][i] for i in notes.spaced(len(row["some"]), notes.DROPPED)]}
            for row in found.values() if row["n"]]


def curves(steps):
    """{name: [[step, mean]]} of the losses noted at each step, at most POINTS points each."""
    series = {}
    for n, now in enumerate(steps):
        for name, value in now.items():
            series.setdefault(name, []).append((n, value))
    found = {}
    for name, points in series.items():
        value = torch.stack([v.detach().float().reshape(()) for _, v in points]).tolist()
        edges = [*notes.spaced(len(points), POINTS), len(points)]
        found[name] = [[points[(a + b) // 2][0], number(sum(value[a:b]) / (b - a))]
                       for a, b in zip(edges, edges[1:])]
    return found


def watched(w, data):
    """One answer token over the steps: the likeliest words, the teacher's p of each, and the
    student's: [[step, p, p, ...]]."""
    (q, y), = pairs_of(data, w["quiz"].ids, w["quiz"].start, w["quiz"].length)
    ids = w["quiz"].ids[0].tolist()
    start, at = int(w["quiz"].start[0]), int(w["at"])
    student = torch.stack([log_p for _, log_p in w["student"]]).float().exp()       # (looks, V)
    teacher = w["teacher"].float().exp()
    best = [*teacher.topk(TOP)[1].tolist(), *student[0].topk(TOP)[1].tolist()]
    best = [t for i, t in enumerate(dict.fromkeys(best)) if i < TOP + 2]
    return {"question": q, "answer": y, "before": text_of(data, ids[start:start + at]),
            "words": [word(data, t) for t in best],
            "teacher": [number(teacher[t], 3) for t in best],
            "student": [[n, *(number(p[t], 3) for t in best)]
                        for (n, _), p in zip(w["student"], student)]}


def rollouts(noted, data):
    """[{"question", "right", "tries": [[text, reward]]}] of TRIES on-policy steps, those whose
    rewards differ most."""
    spread = [float(reward.std()) for *_, reward in noted]
    most = sorted(sorted(range(len(noted)), key=spread.__getitem__, reverse=True)[:TRIES])
    return [{"question": text_of(data, q), "right": text_of(data, right),
             "tries": [[text_of(data, y), number(r, 3)] for y, r in zip(ys, reward.tolist())]}
            for q, right, ys, reward in (noted[i] for i in most)]


def dreams(noted, data):
    """[[question, answer, gain in nats a token, rewarded?]], the best first."""
    ids, start, length, gain, reward = noted
    rows = [[q, y, number(g), bool(r)] for (q, y), g, r
            in zip(pairs_of(data, ids, start, length), gain.tolist(), reward.tolist())]
    return sorted(rows, key=dream_gain, reverse=True)


def dream_gain(row):
    return -math.inf if row[2] is None else row[2]


def olds(noted, data):
    """[[question, what was said before the night, after it, where that comes from]]; what changed
    comes first."""
    rows = [[text_of(data, q), text_of(data, was), text_of(data, now), source_of(source)]
            for q, (was, _), (now, source) in zip(*noted)]
    return [r for r in rows if r[1] != r[2]] + [r for r in rows if r[1] == r[2]]


# --------------------------------------------------------------------------------------------------
# The morning

def sat(item, found):
    """An answer of today's exam: [kind, question, said, truth, source, passage read before it]."""
    said, source = found
    return [item.kind, item.question.strip(), said, item.answer.strip(), source_of(source),
            item.context.strip()]


def wrong(items, found):
    """What R counts of a day's exam: {"n", "wrong", "some": [[question, said, truth, source]]}."""
    rows = [[x.question.strip(), said, x.answer.strip(), source_of(source)]
            for x, (said, source) in zip(items, found) if x.kind not in exam.APART]
    bad = [row for row in rows if row[1] != row[2]]
    return {"n": len(rows), "wrong": len(bad),
            "some": [bad[i] for i in notes.spaced(len(bad), WRONG)]}


def always(items, found):
    """What is asked every morning: {kind: {"n", "wrong", "some"}}, as `wrong`."""
    kinds = {}
    for item, said in zip(items, found):
        kinds.setdefault(item.kind, []).append((item._replace(kind=""), said))
    return {kind: wrong(*zip(*rows)) for kind, rows in kinds.items()}


def chosen(exams):
    """Items, and what was said, whose gates are shown: of today's exam, of each earlier day's one,
    and two that are asked every morning; closed book."""
    closed = [[(x, said) for x, said in zip(*one) if not x.context] for one in exams]
    today, earlier = closed[-2], closed[:-2]
    picked = [today[i] for i in notes.spaced(len(today), OPENED - 4)]
    picked += [one[0] for one in [earlier[i] for i in notes.spaced(len(earlier), 3)] if one]
    return picked + [closed[-1][i] for i in notes.spaced(len(closed[-1]), 2)]


def opens(model, data, picked):
    """Where in each question which memory wakes: [{"tokens", "wakes": [[token, memory]], "said",
    "truth", "source"}]; a memory wakes at its token, or behind the last, and stays awake."""
    if not picked:
        return []
    enc, marks, found = data.enc, data.marks, []
    asked = [enc.encode_ordinary(item.question) for item, _ in picked]
    prompts = [[*marks.bos, *marks.ask, *q, *marks.answer] for q in asked]
    before = len(marks.bos) + len(marks.ask)
    since, owners = listen(model, *pad_rows(prompts, model.device))
    memories = [source_of(tuple(owner)) for owner in owners.tolist()]
    for (item, (said, source)), q, row in zip(picked, asked, since.tolist()):
        wakes = [[min(max(t - before, 0), len(q)), who] for t, who in zip(row, memories) if t >= 0]
        found.append({"tokens": [word(data, t) for t in q], "wakes": sorted(wakes), "said": said,
                      "truth": item.answer.strip(), "source": source_of(source)})
    return found


# --------------------------------------------------------------------------------------------------
# The end of a run

def report(summaries, a, data):
    """What a person wants to see at the end of a run, and a question about the first day."""
    first = summaries[0]
    exam.show(first["R"], first["method"])
    exam.show_kinds(first["kinds"])
    print(f"\n{'':8}{'recall':>8}{'ACC':>8}{'BWT':>8}{'parameters':>12}{'seconds':>9}")
    for s in summaries:
        spent = s["seconds"]["total"] - s["seconds"]["pretrain"]
        shares = exam.column(s["recall"]) + exam.column(s["ACC"]) + exam.column(s["BWT"], "+8.3f")
        print(f"{s['method']:8}{shares}{s['params_after']:12,}{spent:9.1f}")
    told = [x.question.strip() for x in data.exams(0, len(data.days) - 1)
            if not x.context and x.kind not in exam.APART]
    ask = flags.pasted(out_dir=a.out_dir, ask=min(told, key=len, default="..."))
    path, look = (os.path.join(a.out_dir, name) for name in ("summary.json", page.NAME))
    print(f"\n{path} has the numbers. See it in a browser:\n  {look}\nAsk it yourself:\n"
          f"  python sleep.py {ask}")
