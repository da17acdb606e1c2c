"""What the benches share: intervals and verdicts by hand, the lives of ablations.py, and the tables and figures of report.py."""
import json
from pathlib import Path

import pytest

from bench import ablations as A
from bench import report, stats
from data import flags

ROOT = Path(__file__).resolve().parent.parent


def test_interval_by_hand():
    m, half = stats.interval([1.0, 2.0, 3.0])
    assert m == 2.0 and half == pytest.approx(4.303 * 1.0 / 3 ** 0.5)
    assert stats.interval([1.0])[1] != stats.interval([1.0])[1]       # one seed has no interval
    assert stats.pm([1.0, 2.0, None, 3.0], 2) == "2.00 ± 1.00" and stats.pm([None]) == "" and stats.pm([0.5], 1) == "0.5"


@pytest.mark.parametrize("differences, says", [
    ([-0.4, -0.5, -0.45], "helps: 0.450"), ([0.1, 0.12, 0.11], "hurts: 0.110"), ([-0.1, 0.1, 0.05], "no effect seen"),
    ([0.0, 0.0, 0.0], "no effect seen"), ([-0.4], "one seed")])
def test_verdicts(differences, says):
    assert stats.verdict(differences) == says


def test_every_life_is_a_life_of_sleep_py_and_is_compared_with_one_that_is_lived():
    o = A.parse([])
    for name, (group, nights, more, against) in A.LIVES.items():
        a = flags.parse(A.words_of(name, 3, o))                      # unknown flags and bad values end here
        assert a.seed == a.world_seed == 3 and a.stop == nights <= a.days and a.threads == 1
        assert group in A.GROUPS and (against is None or against in A.LIVES and A.LIVES[against][1] >= nights)
        assert A.base_of(name, 3, o) is None or "--init_from" not in " ".join(more)
    starts = {n for n in A.LIVES if A.base_of(n, 1, o) is None}
    assert starts == {"sleep", "poor reader", "longer answers"}      # one base a seed and kind of pretraining
    assert "poor_reader-1" in A.base_of("no imitation (poor reader)", 1, o)
    assert len({A.folder(n, 1, o) for n in A.LIVES}) == len(A.LIVES)


def test_what_a_difference_needs_is_lived_too():
    assert A.parse(["--only=no gate"]).only == ["sleep", "no gate"]
    assert set(A.parse(["--only=24 dreams"]).only) == {n for n in A.LIVES if A.LIVES[n][0] == "24 dreams"}


def hand_made(life, seed, R, **night):
    return {"life": life, "seed": seed, "R": R, "params_after": 10,
            "nights": [{"old": 1.0, "reading": 0.9, "reversed": 0.0, "seconds": {"seed": 2.0}, **night} for _ in R]}


def test_tables_pair_by_seed_and_cut_to_the_shorter_life(capsys):
    runs = [hand_made("sleep", s, [[1.0, None, None], [1.0, 0.9, None], [0.0, 0.0, 0.0]]) for s in (1, 2, 3)]
    runs += [hand_made("no gate", s, [[1.0, None], [0.5, 0.4 + s / 100]], undone="why") for s in (1, 2, 3)]
    A.tables({"runs": runs})
    said = capsys.readouterr().out
    assert "| no gate | 2 | 3 | 0.710 ± 0.005 | 0.460 ± 0.005 | -0.500 ± 0.000 |" in said
    assert "| no gate | 2 | -0.490 ± 0.012 | +0.000 ± 0.000 | +0.000 ± 0.000 | 6 | helps: 0.490 |" in said


def test_the_pictures_of_hand_made_results(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(stats, "RESULTS", str(tmp_path))
    two = [[1.0, None], [0.5, 0.4]]
    lives = [hand_made(n, s, two) for n in ("sleep", "sft", "none", "no gate") for s in (1, 2)]
    (tmp_path / "ablations.json").write_text(json.dumps({"runs": lives}))
    (tmp_path / "knowledge.json").write_text(json.dumps({"runs": [
        {"method": m, "seed": s, "R": R} for s in (1, 2) for m, R in (("sleep", two), ("joint", [[None, None], [0.9, 0.8]]))]}))
    (tmp_path / "classes-dbpedia.json").write_text(json.dumps({"runs": [{"method": "sleep", "seed": 1, "over_nights": [0.9, 0.8]}]}))
    report.main(["--pictures"])
    for name in ("life.png", "ablations.png", "rivals.png"):
        assert (tmp_path / name).stat().st_size > 5000
    out = tmp_path / "one"
    out.mkdir()
    (out / "summary.json").write_text(json.dumps(lives[0]))
    report.main([f"--life={out}", f"--out={tmp_path}/mine.png"])
    assert (tmp_path / "mine.png").is_file()


def test_the_committed_results_can_be_shown(capsys):
    report.main([])
    said = capsys.readouterr().out
    assert "faults tried" in said and said.count("|---|") >= 3


@pytest.mark.parametrize("script, words, says", [
    ("ablations", ["--only=no_gat"], "there is no 'no_gat'"), ("ablations", ["--seeds=1,x"], "whole numbers"),
    ("ablations", ["--table", "--result=nowhere.json"], "no results at nowhere.json"), ("ablations", ["--job=2"], "--jobs"),
    ("report", ["--life=nowhere"], "no life in nowhere")])
def test_bad_flags_get_one_line(script, words, says, capsys):
    with pytest.raises(SystemExit) as e:
        {"ablations": A, "report": report}[script].main(words)
    err = capsys.readouterr().err
    assert e.value.code == 2 and says in err and err.count("\n") == 1


def test_the_real_script_lives_resumes_and_compares(tmp_path, monkeypatch, capsys):
    """Two lives of two tiny nights; a life that fails ends the script in one line; a lived one is not lived again."""
    monkeypatch.setattr(A, "SMALL", ["--pretrain_steps=3", "--people=2", "--seed_steps=3", "--dream_steps=2", "--replay_dreams=8",
                                     "--quizzes=1", "--views=1"])
    argv = ["--quick", "--seeds=1", "--only=no replay", f"--work={tmp_path}", "--jobs=1"]
    A.main(argv)
    said, file = capsys.readouterr().out, json.loads((tmp_path / "quick.json").read_text())
    assert [r["life"] for r in file["runs"]] == ["sleep", "none", "sft", "no replay"] and "| no replay | 2 |" in said
    assert "--init_from=BASE" in file["runs"][-1]["command"] and str(tmp_path) not in json.dumps(file)
    monkeypatch.setattr(A.subprocess, "run", lambda *a, **kw: pytest.fail("lived again"))
    A.main(argv)
