"""bench/year.py: a long life, cut off and gone on with, and what its tables say."""
import json
from argparse import Namespace

import pytest
import torch

import sleep
from bench import sizes, tables, year
from data import flags, world


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    """A life of a self that cannot read: its nights are undone, its exams are held."""
    work = tmp_path_factory.mktemp("year")
    base, result = str(work / "base.pt"), str(work / "year.json")
    a = flags.parse(["--n_layer=2", "--n_embd=64"])
    torch.manual_seed(0)
    model = sleep.GPT(sleep.config_of(a, world.load(a)))
    model.metric = torch.eye(64)[:32]
    sleep.save(base, model, seconds=0.0)
    words = ["--days=4", "--period=2", "--exam_every=2", f"--base={base}", f"--work={work}",
             f"--result={result}"]
    year.main(words)
    return words, result


def test_a_life_and_its_file(lived, capsys):
    words, result = lived
    (r,) = json.load(open(result))["runs"]
    assert r["days"] == 4 and list(r["R"]) == ["1", "2", "3", "4"] and len(r["next_morning"]) == 4
    assert [t["night"] for t in r["times"]] == [1, 2, 3, 4] and r["undone"] == 4
    assert r["lives_in"] == [1] * 4 and r["facts"] > 4 and 6 < r["bits"] / r["facts"] < 14
    assert r["commits"] == [[1, year.stats.commit()]] and "--period=2" in r["command"]
    year.main(words)                                                # finished: not lived again
    assert json.load(open(result))["runs"][0]["times"] == r["times"]
    assert "a quarter" in capsys.readouterr().out


def test_a_base_that_hears_otherwise_is_refused_in_one_line(lived, tmp_path, capsys):
    with pytest.raises(SystemExit):
        year.main([lived[0][3], f"--work={tmp_path}", f"--result={tmp_path / 'y.json'}",
                   "--directions=16"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "32 directions" in said and "--directions=16" in said


def test_a_longer_life_goes_on_from_a_shorter_one(lived, tmp_path):
    words, result = lived
    longer = [*words[1:-1], f"--result={tmp_path / 'longer.json'}", "--days=5"]
    year.main(longer)
    (r,) = json.load(open(tmp_path / "longer.json"))["runs"]
    (before,) = json.load(open(result))["runs"]
    assert r["times"][:4] == before["times"] and len(r["times"]) == 5
    assert r["next_morning"][:4] == before["next_morning"] and len(r["next_morning"]) == 5
    assert {k: r["R"][k] for k in before["R"]} == before["R"] and r["facts"] > before["facts"]


def test_a_last_night_that_is_killed_and_gone_on_with(lived, monkeypatch, capsys):
    """These nights learn nothing: they die while they dream. Other bits are seen."""
    words, result = lived
    monkeypatch.setattr(year, "DIES", "dream.write:1")
    year.main([*words, "--kill=1"])
    assert json.load(open(result))["runs"][0]["killed"] == {"night": 4, "same_bits": True}
    assert "Killed in the middle of night 4" in capsys.readouterr().out
    monkeypatch.setattr(year.faults, "equal", lambda a, b: not a.keys() == b.keys())
    year.main([*words, "--kill=1"])
    assert json.load(open(result))["runs"][0]["killed"]["same_bits"] is False
    monkeypatch.setattr(year, "DIES", "seed.muon:1")                # never reached
    with pytest.raises(ValueError, match="not killed"):
        year.main([*words, "--kill=1"])


def test_moves_of_other_sizes_begin_on_the_same_evening(lived, tmp_path, monkeypatch, capsys):
    """Each move has the constants of its size and the same random numbers; then all is as before."""
    words, seen = lived[0], []
    monkeypatch.setattr(sizes, "TRIED", ((0.2, 3, 40), (0.8, 5, 7)))

    def consolidate(model, level, marks, a):
        seen.append((sizes.night.BITS, sizes.night.MOVE_STEPS, sizes.rehearsal.WORDINGS,
                     sizes.night.LEAST_RANK, torch.rand(1).item()))
        if len(seen) == 2:
            raise sizes.night.RestlessNight("for the test")
        return {"rank": 8, "known": 1.0}
    monkeypatch.setattr(sizes.night, "consolidate", consolidate)
    usual = sizes.night.BITS, sizes.night.LEAST_RANK, sizes.rehearsal.WORDINGS
    here = [words[3], f"--work={tmp_path}", f"--result={tmp_path / 's.json'}", "--days=2",
            "--seeds=6"]
    sizes.main(here)
    assert [s[:4] for s in seen] == [(0.2, 3, 40, 4), (0.8, 5, 7, 4)] and seen[0][4] == seen[1][4]
    assert usual == (sizes.night.BITS, sizes.night.LEAST_RANK, sizes.rehearsal.WORDINGS)
    before, made, undone = json.load(open(tmp_path / "s.json"))["runs"]
    assert before["recall"] == made["recall"] and made["rank"] == 8 and "rank" not in before
    assert undone["undone"] == "for the test" and "recall" not in undone
    said = capsys.readouterr().out
    assert "| 0.2 | 3 | 40 | 1 of 1 | 8 |" in said and "| 0.8 | 5 | 7 | 0 of 1 | - |" in said
    sizes.main(here)                                                # what is there stays
    assert len(seen) == 2


def test_the_clock_changes_nothing_and_is_taken_away(lived):
    assert sleep.NIGHTS["sleep"] is sleep.asleep and year.exam.EVERY == 1
    assert year.night.consolidate.__module__ == "seed"


@pytest.mark.parametrize("word", ["--period=-1", "--levels=0", "--levels=9", "--exam_every=0",
                                  "--days=0", "--people=x"])
def test_what_cannot_be_is_one_line(word, capsys):
    with pytest.raises(SystemExit):
        year.main([word])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and word.split("=")[0] in said


def test_bits_are_counted_in_what_was_told_and_is_true():
    facts, bits = year.bits_told(6, Namespace(days=3, people=2))
    more, more_bits = year.bits_told(6, Namespace(days=4, people=2))
    assert 10 < facts < more and bits < more_bits and 5 < bits / facts < 14


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
    assert line[:5] == ["all", 1, 2, 0, "1.000"] and "−.500" in line[5]
    all_, few = tables.costs([{**run, "directions": 32}, run])      # of each gate by itself
    assert few[:3] == [32, 1, 2] and all_[1:] == line[1:]


def test_what_was_known_before_the_first_day_is_read_around_the_moves_of_slow_levels():
    run = {"seed": 1, "moves": [[2, {"level": 1}], [4, {"level": 1}], [4, {"level": 2}]]}
    assert tables.born_with(run) == []                              # older files have no such line
    assert tables.born_with({**run, "old": [1.0, 0.9, 0.75, 0.5]}) == [[1, 4, "0.750", "0.500"]]


def test_which_code_lived_which_nights():
    assert tables.of_code({"commits": [[1, "a"]]}) == "a" and tables.of_code({"commit": "c"}) == "c"
    assert tables.of_code({"commits": [[1, "a"], [57, "b"]]}) == "a from night 1, b from night 57"


def test_recall_by_age_and_by_level():
    run = {"days": 40, "seed": 1, "R": {"40": [0.0] * 9 + [0.5] * 24 + [1.0] * 7},
           "lives_in": [3] * 20 + [1] * 20,
           "times": [{"experts": [[5, 50], [0, 0], [1, 10]], "gate": 40}]}
    ages = tables.by_age(run)
    assert ages["yesterday"] == ages["a week"] == "1.000" and ages["longer"] == "-"
    assert ages["a month"] == "0.500" and ages["a quarter"] == "0.000"
    assert [row[2:4] for row in tables.by_level(run)] == [[1, 20], [2, 0], [3, 20]]
    assert tables.added(run) == 100
