"""bench/haystack.py: what is read as news, when it is slept on, what is forgotten, the table."""
import json
import random
from argparse import Namespace

import pytest
import torch

from bench import haystack, tables
from data import world
from model import FAST
from tests.small import lively


def settings(**more):
    return Namespace(**{"window": 10, "room": 0, "levels": 2, "needles": 3, **more})


def test_sleeps_whenever_the_context_is_full_and_behind_the_last_line(monkeypatch):
    days = []

    def slept(model, context, marks, a, o, i):
        days.append(context)
        return model, {"night": i}
    monkeypatch.setattr(haystack, "slept", slept)
    lines = [[1] * 4, [2] * 9, [3] * 5, [4] * 5, [5] * 30, [6] * 2]
    news = [True, False, True, True, True, False]
    _, logs = haystack.read(None, lines, news, None, None, settings())
    assert days == [[[1] * 4, [3] * 5], [[4] * 5], [[5] * 30]]       # a long line comes alone
    assert [log["night"] for log in logs] == [0, 1, 2]
    assert haystack.read(None, lines, [False] * 6, None, None, settings()) == (None, [])


def test_a_night_undone_is_tried_once_more_and_room_is_kept(monkeypatch):
    model, tried = lively(), []
    model.remember_things(torch.randn(2, 4), torch.ones(2), FAST, 0)
    model.remember_things(torch.randn(1, 4), torch.ones(1), FAST, 1)

    def asleep(a, model, day, marks, i):
        tried.append(day.passages)
        return model, {"undone": "why"} if len(tried) == 1 else {}
    monkeypatch.setattr(haystack.sleep, "asleep", asleep)
    monkeypatch.setattr(haystack.run, "stage", lambda *words: None)
    newest, thing = model.blocks[1].levels[FAST].A[1], model.things[2]
    model, log = haystack.slept(model, [[1], [2]], None, None, settings(levels=1, room=1), 0)
    assert tried == [[[[1], [2]]]] * 2 and log == {}
    assert model.n_experts(FAST) == 1 and model.owner.tolist() == [[FAST, 0]]
    assert torch.equal(model.blocks[1].levels[FAST].A[0], newest)
    assert torch.equal(model.things[0], thing)


def test_needles_are_about_people_never_met():
    made = world.make_world(1)
    facts = haystack.needles(made, 20, random.Random(0))
    assert len(set(facts)) == 20 and not {f.name for f in facts} & set(made["old"])
    with pytest.raises(ValueError, match="--needles=9999"):
        haystack.needles(made, 9999, random.Random(0))


def test_a_self_that_cannot_read_finds_nothing_new(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(haystack, "SMALL", ["--n_layer=1", "--n_embd=32", "--pretrain_steps=2"])
    words = ["--quick", "--tokens=60", f"--work={tmp_path}"]
    haystack.main(words)
    (r,) = json.load(open(tmp_path / "quick.json"))["runs"]
    assert r["sleep"] == r["told"] == 0.0 and r["nights"] == r["undone"]
    assert r["needles"] == 3 and r["lines"] > 3 and "commit" in r
    before = capsys.readouterr().out
    haystack.main([*words, "--table=1"])
    assert capsys.readouterr().out.splitlines()[-1] == before.splitlines()[-1]


def test_the_table_is_over_seeds():
    row = {"levels": 4, "period": 2, "room": 0, "window": 64, "needles": 4, "tokens": 100,
           "window_alone": 0.0, "told": 1.0, "old": 1.0, "needles_kept": 3, "hay_kept": 1,
           "lines": 50, "nights": 2}
    lines = tables.haystacks({"runs": [{**row, "seed": s, "sleep": x} for s, x in ((6, 1.0),
                                                                                   (7, 0.5))]})
    assert len(lines) == 3
    assert "| 2 | 0.75 (0.50 to 1.00) | 0.00 (0.00 to 0.00) |" in lines[2]
    assert lines[2].endswith("| 0.75 | 2.0% | 2.0 |")
    newer = tables.haystacks({"runs": [{**row, "seed": 6, "sleep": 1.0},
                                       {**row, "seed": 6, "sleep": 0.0, "bits": 0.4}]})
    assert [line.split(" | ")[6] for line in newer[2:]] == ["0.2", "0.4"]


@pytest.mark.parametrize("words", [["--room=-1"], ["--tokens=x"], ["--window=999"], ["--levels=0"]])
def test_what_cannot_be_is_one_line(words, capsys):
    with pytest.raises(SystemExit):
        haystack.main(words)
    said = capsys.readouterr().err
    assert said.startswith("haystack.py: ") and said.count("\n") == 1


def test_no_table_without_a_result():
    with pytest.raises(FileNotFoundError, match="no nowhere.json yet"):     # flags.guarded: a line
        haystack.main(["--table=1", "--result=nowhere.json"])
