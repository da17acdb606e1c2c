"""
Tasks of ARC for bench/arc.py: files, grids, and what can be made of a task's demonstrations.

A grid is a list of rows of colours 0 to 9; a pair is (input, output); the demonstrations of a task
are pairs of one rule. Whatever is done to a demonstration is done to both its grids, so it obeys a
rule again: of that kind of examples is the data that a self-edit asks for (SEAL, arXiv 2506.10943,
after Akyürek et al., arXiv 2411.07279).

Files in --data_dir, a task being {"train": [{"input", "output"}], "test": [{"input", "output"}]}:
arc_1d.json, {type: {name: task}}, is the dataset of 1D-ARC (arXiv 2305.18354) in one file;
seal_filtered_training.json and seal_filtered_evaluation.json are SEAL's, {"challenges": {name: task
without the outputs of its tests}, "solutions": {name: those outputs}}.
"""
import json
import os
from collections import namedtuple
from functools import partial

Task = namedtuple("Task", "name kind demos tests")      # kind: its type in 1D-ARC, else ""
SIDE = 128                          # cells of a side at most (1D-ARC has rows of 93)
CHAINED = 4                         # compositions of two that "chain" adds
PAINTED = 4                         # exchanges of colours that "colours" adds


# --------------------------------------------------------------------------------------------------
# Files

def one_dimensional(folder):
    """arc_1d.json, {type: {name: task}}, as a list of Task. Raises ValueError or OSError."""
    path = os.path.join(folder, "arc_1d.json")
    return [task_of(path, f"{name}", kind, fields) for kind, tasks in table_in(path).items()
            for name, fields in named(path, kind, tasks).items()]


def seal(folder, part):
    """SEAL's chosen tasks of ARC-AGI-1, part "training" or "evaluation": files of challenges, and
    of solutions (the outputs of their tests). Raises ValueError or OSError."""
    path = os.path.join(folder, f"seal_filtered_{part}.json")
    file = table_in(path)
    challenges, solutions = (named(path, k, file.get(k)) for k in ("challenges", "solutions"))
    tasks = []
    for name, fields in challenges.items():
        tests, right = named(path, name, fields).get("test"), solutions.get(name)
        if not isinstance(tests, list) or not isinstance(right, list) or len(tests) != len(right):
            raise ValueError(f"{path}: {name} does not have a solution for each test")
        whole = [{**named(path, name, t), "output": y} for t, y in zip(tests, right)]
        tasks.append(task_of(path, name, "", {**fields, "test": whole}))
    return tasks


def table_in(path):
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no {path}: put the file there (bench/arc_grids.py says which) "
                                "or name its folder with --data_dir")
    try:
        with open(path, encoding="utf-8") as f:
            return named(path, "the file", json.load(f))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ValueError(f"{path} is not JSON ({type(e).__name__}): get the file again") from None


def named(path, what, fields):
    if not isinstance(fields, dict) or not fields:
        raise ValueError(f"{path}: {what} is not a table with something in it: get the file again")
    return fields


def task_of(path, name, kind, fields):
    """{"train": [{"input", "output"}], "test": [...]} as a Task. Raises ValueError."""
    def pairs(part, least):
        found = named(path, name, fields).get(part)
        if not isinstance(found, list) or len(found) < least:
            raise ValueError(f"{path}: {name} has fewer than {least} {part} pairs")
        return [tuple(grid_of(path, name, named(path, name, pair).get(side))
                      for side in ("input", "output")) for pair in found]
    return Task(name, kind, pairs("train", 2), pairs("test", 1))


def grid_of(path, name, grid):
    """The grid, if it is one. Raises ValueError."""
    ok = isinstance(grid, list) and 1 <= len(grid) <= SIDE and all(
        isinstance(row, list) and 1 <= len(row) <= SIDE and len(row) == len(grid[0])
        and all(type(c) is int and 0 <= c <= 9 for c in row) for row in grid)
    if not ok:
        raise ValueError(f"{path}: {name} holds a grid that is not rows of equal length of colours "
                         "0 to 9: get the file again")
    return grid


# --------------------------------------------------------------------------------------------------
# Grids, changed

def same(g):
    return g


def left_right(g):
    return [row[::-1] for row in g]


def up_down(g):
    return g[::-1]


def transposed(g):
    return [list(column) for column in zip(*g)]


def quarter(g):
    return left_right(transposed(g))                                # clockwise


def half(g):
    return up_down(left_right(g))


def three_quarters(g):
    return up_down(transposed(g))


def scaled(g):
    """Every cell as 2 x 2; of a row as 1 x 2."""
    wide = [[c for c in row for _ in range(2)] for row in g]
    return wide if len(g) == 1 else [list(row) for row in wide for _ in range(2)]


def beside(g):
    return [row + row for row in g]


def below(g):
    return g + g


def repainted(rng):
    """A change that exchanges colours at random; 0, the background, stays."""
    new = [0, *rng.sample(range(1, 10), 9)]
    return partial(painted, new)


def painted(new, g):
    return [[new[c] for c in row] for row in g]


KINDS = {"turns": [left_right, up_down, half, transposed, quarter, three_quarters],
         "sizes": [scaled], "repeats": [beside, below]}


def changed(pairs, change):
    return [(change(x), change(y)) for x, y in pairs]


def variants(demos, edit, rng):
    """The demonstrations as they are, and in every way that the self-edit asks for, each once.

    edit: {"turns", "sizes", "repeats", "colours", "chain"}: "0" or "1". A task of rows stays one,
    and colours may be exchanged (both not in SEAL).
    """
    asked = [change for kind, changes in KINDS.items() if edit[kind] == "1" for change in changes]
    asked += [repainted(rng) for _ in range(PAINTED * (edit["colours"] == "1"))]
    found = [demos, *(changed(demos, change) for change in asked)]
    if edit["chain"] == "1" and asked:
        for _ in range(CHAINED):
            one, two = rng.choice(asked), rng.choice(asked)
            found.append(changed(changed(demos, one), two))
    if all(len(g) == 1 for pair in demos for g in pair):
        found = [pairs for pairs in found if all(len(g) == 1 for pair in pairs for g in pair)]
    return [pairs for i, pairs in enumerate(found) if pairs not in found[:i]]


def leave_one_out(pairs, rng):
    """Each pair in turn as the last of a document, behind the others in any order."""
    return [[*rng.sample(pairs[:i] + pairs[i + 1:], len(pairs) - 1), pairs[i]]
            for i in range(len(pairs))]


def examples(demos, edit, rng):
    """What a self-edit makes of a task's demonstrations: documents, lists of pairs, of which the
    last is asked and those before are its context."""
    return [doc for pairs in variants(demos, edit, rng) for doc in leave_one_out(pairs, rng)]


# --------------------------------------------------------------------------------------------------
# Grids as ids: a token a cell, whatever the tokenizer would make of several

def encode(enc, grid):
    """Cells row by row, a line break between rows."""
    ids = []
    for row in grid:
        ids += [enc.encode_single_token(str(c)) for c in row] + [enc.encode_single_token("\n")]
    return ids[:-1]


def decode(enc, ids):
    """The grid that was written, or None where it is none."""
    cell = {enc.encode_single_token(str(c)): str(c) for c in range(10)}
    cell[enc.encode_single_token("\n")] = "\n"
    if not ids or any(i not in cell for i in ids):
        return None
    grid = [[int(c) for c in line] for line in "".join(cell[i] for i in ids).split("\n")]
    return grid if grid[0] and all(len(row) == len(grid[0]) for row in grid) else None
