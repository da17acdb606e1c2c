"""bench/year.py: a long life, cut off and gone on with, and what its tables say."""
import json
import subprocess
import sys

import pytest

from bench import tables, year
from tests.small import ROOT


def ran(*words, ok=True):
    done = subprocess.run([sys.executable, str(ROOT / "bench" / "year.py"), *words],
                          capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode == 0) == ok, done.stderr[-500:]
    return done


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    """A life of a self that cannot read: its nights are undone, its exams are held."""
    work = tmp_path_factory.mktemp("year")
    base, result = str(work / "base.pt"), str(work / "year.json")
    small = ["--n_layer=2", "--n_embd=64", "--pretrain_steps=3", "--days=1", "--people=1",
             "--contrast=0", f"--out_dir={work / 'small'}"]
    subprocess.run([sys.executable, str(ROOT / "sleep.py"), *small], check=True,
                   capture_output=True, cwd=ROOT)
    (work / "small" / "base.pt").rename(base)
    words = ["--days=4", "--period=2", "--exam_every=2", f"--base={base}", f"--work={work}",
             f"--result={result}"]
    said = ran(*words).stdout
    return words, result, said


def test_a_life_and_its_file(lived):
    words, result, said = lived
    (r,) = json.load(open(result))["runs"]
    assert r["days"] == 4 and list(r["R"]) == ["1", "2", "3", "4"] and len(r["next_morning"]) == 4
    assert [t["night"] for t in r["times"]] == [1, 2, 3, 4] and r["undone"] == 4
    assert r["lives_in"] == [1] * 4 and r["facts"] > 4 and 6 < r["bits"] / r["facts"] < 14
    assert r["commit"] and "--period=2" in r["command"] and "a quarter" in said
    again = ran(*words)                                             # finished: not lived again
    assert json.load(open(result))["runs"][0]["times"] == r["times"] and again.stdout


def test_a_bad_period_is_one_line():
    for word in ("--period=-1", "--levels=0", "--levels=9", "--exam_every=0", "--days=0"):
        said = ran(word, ok=False)
        assert said.stderr.count("\n") == 1 and word.split("=")[0] in said.stderr


def test_in_which_level_a_day_lives():
    moves = [(2, {"level": 1}), (4, {"level": 1}), (4, {"level": 2}), (6, {"level": 1, "undone": ""})]
    assert year.levels_of(7, moves) == [3, 3, 3, 3, 1, 1, 1]


def test_what_a_move_costs_is_read_from_the_mornings_around_it():
    run = {"days": 4, "seed": 1, "period": 2, "moves": [[2, {"level": 1}], [4, {"level": 1}]],
           "R": {"1": [1.0], "2": [0.5, 1.0], "3": [0.5, 1.0, 1.0], "4": [0.5, 1.0, 0.5, 1.0]}}
    assert tables.moved_days(run, 2, 1) == [(1.0, 0.5)]
    assert tables.moved_days(run, 4, 1) == [(1.0, 0.5)]
    assert tables.moved_days(run, 4, 2) == [(0.5, 0.5), (1.0, 1.0), (1.0, 0.5)]
    (line,) = tables.costs([run])
    assert line[:4] == [1, 2, 0, "1.000"] and "−.500" in line[4]


def test_recall_by_age_and_by_level():
    run = {"days": 40, "seed": 1, "R": {"40": [0.0] * 9 + [0.5] * 24 + [1.0] * 7},
           "lives_in": [3] * 20 + [1] * 20,
           "times": [{"experts": [[5, 50], [0, 0], [1, 10]], "gate": 40}]}
    ages = tables.by_age(run)
    assert ages["yesterday"] == ages["a week"] == "1.000" and ages["longer"] == "-"
    assert ages["a month"] == "0.500" and ages["a quarter"] == "0.000"
    assert [row[2:4] for row in tables.by_level(run)] == [[1, 20], [2, 0], [3, 20]]
    assert tables.added(run) == 100
