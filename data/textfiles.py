"""
Notes of your own: a folder of plain text, a day a file (`--data=text --data_dir=FOLDER`).

    2026-03-01.txt    what is read that day: UTF-8, passages with blank lines between them
    2026-03-01.tsv    its exam, if it is to have one: question<TAB>answer, a line each

Days come in the order of their names; with --resume a life goes on to the files that have come
since. To read and to ask is learnt in the world (data/world.py): its tokenizer, its documents to
pretrain on; its questions every morning. Weights of others (--init_from=FOLDER) can read and ask:
they live in their own words (data/text.py) with the tokenizer beside them, nothing is pretrained,
and the world is not asked about. The night knows of no exam. --ask and --chat need no file: what
they need is in the weights. Ours.
"""
import os
import re
from functools import partial
from types import SimpleNamespace

from data import world
from data.flags import foreign, own_words
from data.gate import MAX_NEW
from data.text import Day, Item

LONG = 512                              # tokens of a passage and a question, where not the world's


def load(a):
    """A folder of notes as a Data (data/text.py). a: data_dir, days (at most so many), and those of
    world.load. Raises FileNotFoundError or ValueError, naming file, line and what is expected."""
    born = newborn(a)
    names = [] if a.ask or a.chat else names_in(a.data_dir)[:a.days]
    texts = [os.path.join(a.data_dir, name + ".txt") for name in names]
    days = [Day(passages_of(path), []) for path in texts]
    if own_words(a) and foreign(a):
        born = born._replace(always={}, block_size=LONG)
    exams = [exam_of(os.path.join(a.data_dir, name + ".tsv"), born) for name in names]
    return born._replace(name="text", days=days, exams=partial(exam, exams))


def newborn(a):
    """A Data of the world in which to read and to ask is learnt, but which tells nothing: it has no
    days. For texts that are brought along. a: those of world.load."""
    return world.load(SimpleNamespace(**{**vars(a), "days": 0}))


def exam(exams, j, i):
    """The exam of day j, the same every morning: nobody says whether a note is still true."""
    return exams[j]


def names_in(folder):
    """The names of the days in a folder, sorted, without their ending; hidden files are none."""
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"no folder {folder}: name the one of your notes with --data_dir")
    files = sorted(f for f in os.listdir(folder) if not f.startswith("."))
    days, exams = ([f[:-4] for f in files if f.endswith(end)] for end in (".txt", ".tsv"))
    if not days:
        raise ValueError(f"{folder}: no file *.txt in it: a day is a text file")
    for name in sorted(set(exams) - set(days)):
        raise ValueError(f"{os.path.join(folder, name)}.tsv is the exam of no day: there is no "
                         f"{name}.txt beside it")
    return days


def content(path):
    """A file as text, its lines ended by \\n. Raises ValueError where it is not UTF-8."""
    try:
        with open(path, encoding="utf-8-sig") as f:
            return f.read()
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: not UTF-8 text ({e.reason} near byte {e.start})") from None


def passages_of(path):
    """A day's passages: a blank line ends one, the end of any other line is only a space."""
    parts = [" ".join(part.split()) for part in re.split(r"\n\s*\n", content(path))]
    found = [" " + part for part in parts if part]
    if not found:
        raise ValueError(f"{path}: the day is empty: write something in it, or take the file away")
    return found


def exam_of(path, data):
    """[Item] of a file of questions and answers; none where there is no such file."""
    lines = content(path).split("\n") if os.path.exists(path) else []
    return [item_of(line, f"{path}, line {n}", data) for n, line in enumerate(lines, 1)
            if line.strip()]


def item_of(line, place, data):
    """An Item of a line question<TAB>answer. Raises ValueError where it could never be answered."""
    cells = [" ".join(cell.split()) for cell in line.split("\t")]
    if len(cells) != 2 or not all(cells):
        raise ValueError(f"{place}: expected question<TAB>answer, found {line[:60]!r}")
    sizes = [len(data.enc.encode_ordinary(" " + cell)) for cell in cells]
    limits = data.block_size - MAX_NEW - 4, MAX_NEW - 1                 # as --ask; and its <end>
    for what, size, most in zip(("question", "answer"), sizes, limits):
        if size > most:
            raise ValueError(f"{place}: the {what} is too long: {size} tokens, at most {most}")
    return Item("", " " + cells[0], " " + cells[1], "told")
