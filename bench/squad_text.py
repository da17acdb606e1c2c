"""
What bench/squad.py reads, how it grades, and its table: passages with questions in SQuAD's shape,
ready-made implications, the embedded world in the same shape; exact match, F1, a judge of one's
own.

Whatever is wrong with a file is one line, which names the file and the line in it.
"""
import hashlib
import json
import os
import re
import shlex
import string
import subprocess
from collections import Counter
from statistics import mean

from bench import stats
from bench.knowledge import about
from data import exam, flags, textfiles, world

NAME = "squad.py"
GRADES = ("em", "f1", "contains", "judge")
PAPER = """
The paper's (arXiv 2606.03979, SQuAD without context, Qwen2.5-7B, per cent), graded by another
language model: to be held against a --judge, not against em.
                           n = 1   n = 200
base                        31.9      31.9
SFT on the passage          33.4      32.0
SEAL                        46.7      43.2
sleep                       48.1      44.3
sleep, four levels          48.9      46.2
sleep without dreaming      35.7      36.2"""
PASSAGE, ASKED = {"context": str, "questions": list}, {"question": str, "answer": str}
EDITS = {"context_sha": str, "completions": list}
KINDS = {str: "a text", list: "a list with something in it"}


# --------------------------------------------------------------------------------------------------
# Files

def lines_of(path, flag, fields):
    """The lines of a .jsonl file, tables that have these fields: [(where it stands, table)].
    Raises FileNotFoundError or ValueError."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no file {path}: name it with --{flag}")
    rows = []
    for number, line in enumerate(textfiles.content(path).split("\n"), 1):
        place = f"{path}, line {number}"
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise ValueError(f"{place}: not JSON: {line[:40]!r}") from None
            rows.append((place, checked(row, fields, place)))
    if not rows:
        raise ValueError(f"{path}: it is empty, expected {' and '.join(fields)} in each line")
    return rows


def checked(row, fields, place):
    """A row, if it is a table with these fields: {name: str or list}. Raises ValueError."""
    for name, kind in fields.items():
        value = row.get(name) if isinstance(row, dict) else None
        if not isinstance(value, kind) or not (value.strip() if kind is str else value):
            raise ValueError(f"{place}: expected a table in which {name} is {KINDS[kind]}")
    return row


def passages_in(path, limit=0):
    """[{"context", "questions", maybe "title"}], the first `limit` of a .jsonl file, each once.
    Raises as `lines_of` does: for a passage without questions, too."""
    found = {}
    for place, row in lines_of(path, "passages", PASSAGE):
        for one in row["questions"]:
            checked(one, ASKED, f"{place}, questions")
        checked({"title": "-", **row}, {"title": str}, place)
        if row["context"] in found:
            raise ValueError(f"{place}: this passage has been there before")
        found[row["context"]] = row
    return list(found.values())[:limit or None]


def edits_in(path, passages):
    """{context: its ready-made lists of implications}; a file names a passage by the first twelve
    digits of its sha256. Raises ValueError where a passage has none."""
    lists = {row["context_sha"]: list(map(str, row["completions"]))
             for _, row in lines_of(path, "edits", EDITS)}
    found = {p["context"]: lists.get(sha(p["context"])) for p in passages}
    lacking = [context for context, some in found.items() if not some]
    if lacking:
        raise ValueError(f"{path}: no implications for {len(lacking)} of {len(found)} passages, "
                         f"first of {lacking[0][:40]!r} (its context_sha is {sha(lacking[0])})")
    return found


def from_world(a, limit=0):
    """The embedded world in the same shape: what is told on its days, and of what is asked the next
    morning all that the passage itself answers. a: the flags of sleep.py."""
    data, found = world.load(a), []
    for j, day in enumerate(data.days):
        items = [x for x in data.exams(j, j) if x.kind not in exam.APART]
        for passage in day.passages:
            mine = [{"question": x.question.strip(), "answer": x.answer.strip()}
                    for x in items if about(x, passage)]
            found += [{"context": passage.strip(), "questions": mine}] * bool(mine)
    return found[:limit or None]


def sha(words):
    return hashlib.sha256(words.encode()).hexdigest()[:12]


def text_of(passage):
    """A passage as it is read: under its title, if it has one."""
    title = passage.get("title", "").strip()
    return f" {title}: {passage['context']}" if title else f" {passage['context']}"


# --------------------------------------------------------------------------------------------------
# Grades

def words_in(said):
    """An answer as the official script of SQuAD v1.1 compares it: small letters, no punctuation, no
    articles; a list of words."""
    plain = "".join(c for c in said.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def grade(said, gold):
    """{"em", "f1", "contains"} of an answer, each from 0 to 1; said None: it was not asked."""
    if said is None:
        return {"em": 0, "f1": 0.0, "contains": 0}
    said, gold = words_in(said), words_in(gold)
    both = sum((Counter(said) & Counter(gold)).values())
    return {"em": int(said == gold), "f1": 2 * both / (len(said) + len(gold)) if both else 0.0,
            "contains": int(f" {' '.join(gold)} " in f" {' '.join(said)} ")}


def judged(command, rows):
    """[1 or 0] that a program prints for rows {"question", "gold", "answer"}, a line each. One line
    and the end where it cannot be started, fails, or prints anything else."""
    shown = flags.typed("judge", command)
    try:
        ran = subprocess.run(shlex.split(command), capture_output=True, encoding="utf-8",
                             errors="replace", input="".join(json.dumps(r) + "\n" for r in rows))
    except (OSError, ValueError, IndexError) as e:
        flags.fail(f"{shown} cannot be started: {e}", NAME)
    if ran.returncode:
        last = (ran.stderr.strip() or "it says nothing").splitlines()[-1]
        flags.fail(f"{shown} ended with status {ran.returncode}: {last[:200]}", NAME)
    lines = [line.strip() for line in ran.stdout.splitlines()]
    for number, line in enumerate(lines, 1):
        if line not in ("0", "1"):
            flags.fail(f"{shown} printed {line[:60]!r} in line {number}, expected 1 or 0", NAME)
    if len(lines) != len(rows):
        flags.fail(f"{shown} printed {len(lines)} lines, expected one for each of {len(rows)} "
                   "answers", NAME)
    return [int(line) for line in lines]


def judge(command, runs, passages):
    """The judge's 1 or 0 beside all answers; what was not asked is 0."""
    rows = [row for units in runs.values() for unit in units for key in ("asked", "next")
            for row in unit[key]]
    given = [row for row in rows if row["said"] is not None]
    found = [passages[row["passage"]]["questions"][row["question"]] for row in given]
    right = judged(command, [{"question": x["question"], "gold": x["answer"], "answer": row["said"]}
                             for row, x in zip(given, found)])
    for row in rows:
        row["judge"] = 0
    for row, one in zip(given, right):
        row["judge"] = one


def by_passage(units, key, when="asked"):
    """{passage: share of its questions that are right} over the selves of a method."""
    found = {}
    for row in (row for unit in units for row in unit[when]):
        found.setdefault(row["passage"], []).append(row.get(key, 0))
    return {p: mean(right) for p, right in found.items()}


def table(n, runs, order):
    """The lines of a table: shares of all questions, and how far sleep is ahead, paired by passage
    (mean and 95 % interval). runs: {method: [what a self said]}; order: of the methods."""
    some = [row for units in runs.values() for unit in units for row in unit["asked"]]
    keys = [k for k in GRADES if any(k in row for row in some)]
    lines = [f"\n{f'n = {n}':14}" + "".join(f"{k:>10}" for k in keys) + f"{'the morning after':>20}"
             f"{'sleep ahead by':>20}{'too long':>10}"]
    for m in (m for m in order if runs.get(m)):
        rows = [row for unit in runs[m] for row in unit["asked"]]
        after = [row[keys[-1]] for unit in runs[m] for row in unit["next"]]
        mine, slept = (by_passage(runs.get(who, []), keys[-1]) for who in (m, "sleep"))
        ahead = [slept[p] - mine[p] for p in mine if p in slept]
        lines.append(f"{m:14}" + "".join(f"{mean(row[k] for row in rows):10.3f}" for k in keys)
                     + f"{f'{mean(after):.3f}' if after else '':>20}"
                     + f"{stats.gap(ahead) if ahead and m != 'sleep' else '':>20}"
                     + f"{sum(row['said'] is None for row in rows):10}")
    return lines
