"""
Asking the self: exams, what they say of a life, and `--ask`.

R[i][j] is the share of what was told on day j that is known in the morning after night i, nothing
in the context. Questions of other kinds (asked the other way round, about strangers, typed
carelessly ...) are counted apart, in `kinds`.
"""
from collections import defaultdict

from data import flags, notes, text
from data.gate import MAX_NEW, answer

APART = {"contradicted_context", "not_told", "never_met", "reversed", "described", "two_hops",
         "typed", "changed_old_value", "word", "in_context"}        # kinds that R does not count
EVERY = 1                           # mornings; a long life (bench/year.py) has fewer exams


def answers(model, data, items):
    """[(text, source)] for Items: what the self says, and where it has it from (gate.answer)."""
    enc, marks = data.enc, data.marks
    asked = [[*marks.ask, *enc.encode_ordinary(x.question), *marks.answer] for x in items]
    read = [enc.encode_ordinary(x.context) for x in items]
    said = answer(model, marks, asked, read, MAX_NEW) if items else []
    return [(text.as_text(enc, marks, y), source) for y, source in said]


def sit(model, data, items):
    """Grade Items: {kind: [right or wrong]}. Known, yet "I do not know": false_unknown."""
    graded = defaultdict(list)
    shrug = text.as_text(data.enc, data.marks, model.unknown.tolist())
    found = answers(model, data, items)
    notes.sat(items, found)
    for (said, _), item in zip(found, items):
        graded[item.kind].append(said == item.answer.strip())
        if shrug and item.kind not in APART and item.answer.strip() != shrug:
            graded["false_unknown"].append(said == shrug)
    return graded


def share(graded, kinds=None):
    """The share of right answers over some kinds; without a list, over those that R counts."""
    kinds = [k for k in graded if k not in APART | {"false_unknown"}] if kinds is None else kinds
    right = [r for k in kinds for r in graded.get(k, [])]
    return sum(right) / len(right) if right else None


def of_all_days(i, n):
    """Is the exam of morning i of n about all days? It is EVERY so many mornings, and on the ones
    before: so what that night cost can be seen. On others it is about the last day alone."""
    return (i + 1) % EVERY in (0, EVERY - 1) or i + 1 == n


def metrics(R):
    """ACC, BWT, forgetting and recall of a lower-triangular R[i][j] (None above the diagonal), over
    the days that have an exam (the others are None); all None where no day has one."""
    T, last = len(R), R[-1]
    if all(r is None for r in last):
        return dict.fromkeys(("ACC", "BWT", "forgetting", "recall"))
    past = [j for j in range(T - 1) if last[j] is not None]
    n = max(1, len(past))
    best = {j: max(there(R[i][j] for i in range(j, T - 1))) for j in past}
    return {"ACC": mean(there(last)),
            "BWT": sum(last[j] - R[j][j] for j in past) / n,
            "forgetting": sum(best[j] - last[j] for j in past) / n,
            "recall": mean(there(R[i][i] for i in range(T)))}


def there(shares):
    """Those that are numbers: a day without an exam has none."""
    return [share for share in shares if share is not None]


def kinds_of(next_morning, end):
    """{kind: {"next_morning": share, "end": share, "n": questions}} from lists of {kind: [right]}:
    each day's exam the morning after, and all days' exams after the last night."""
    first, last = (merged(graded) for graded in (next_morning, end))
    return {k: {"next_morning": mean(first.get(k)), "end": mean(last.get(k)),
                "n": max(len(first.get(k, [])), len(last.get(k, [])))}
            for k in {**first, **last}}


def merged(graded):
    found = defaultdict(list)
    for one in graded:
        for kind, right in one.items():
            found[kind] += right
    return found


def mean(right):
    return sum(right) / len(right) if right else None


# --------------------------------------------------------------------------------------------------
# What a person sees

def column(x, spec="8.3f"):
    """A number in its column of a table; a dash where there is none."""
    return f"{'-':>8}" if x is None else f"{x:{spec}}"


def in_a_line(row, others):
    """A morning: today's day, all days so far, and what is asked every morning."""
    shares = {"morning": row[-1], "all days": mean(there(row)), **others}
    return ", ".join(f"{k} {'-' if share is None else f'{share:.2f}'}"
                     for k, share in shares.items())


def show(R, name, columns=13):
    """R as a person reads it: a row a morning, a column a day, per cent right. Of a long life as
    many days and mornings as a terminal of 80 columns has room for; the page has more."""
    n, few = len(R), min(len(R), columns)
    some = [round(k * (n - 1) / max(1, few - 1)) for k in range(few)]
    print(f"\n{name}: per cent of what was told on a day that is known the morning after")
    print("        day " + "".join(f"{j + 1:>5}" for j in some))
    for i in some:
        cells = ["" if R[i][j] is None else str(round(100 * R[i][j])) for j in some if j <= i]
        print(f"  night {i + 1:>3} " + "".join(f"{cell:>5}" for cell in cells))


def show_kinds(kinds):
    """A line a kind of question: right the morning after, right at the end."""
    print(f"\n{'kind of question':24}{'next morning':>14}{'at the end':>12}{'questions':>11}")
    for kind, row in sorted(kinds.items()):
        cells = ["" if row[k] is None else f"{row[k]:.2f}" for k in ("next_morning", "end")]
        print(f"{kind:24}{cells[0]:>14}{cells[1]:>12}{row['n']:>11}")


def said_by(source):
    """Where an answer comes from, in words. source: see gate.remember."""
    if source is None:
        return "from what it has always known"
    if source == "context":
        return "from the passage"
    return f"from memory {source[1] + 1} of level {source[0]}"


def question(model, data, a):
    """--ask: what the saved self answers, with --context in mind if there is one."""
    room = model.config.block_size - MAX_NEW - len(data.enc.encode_ordinary(a.ask)) \
        - 4 - text.spelt(data.marks)
    if room < 1:
        flags.fail("--ask is too long for the context of this self: ask in fewer words")
    passages = text.fit([text.sentences(data.enc, a.context)], room) if a.context.strip() else [[]]
    for passage in passages:
        context = data.enc.decode([t for s in passage for t in s])
        item = text.Item(context, " " + a.ask.strip(), "", "")
        (said, source), = answers(model, data, [item])
        print(f"{said}    ({said_by(source)})")
