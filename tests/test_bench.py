"""The lives of bench/ablations.py, the faults of bench/faults.py, and what both refuse. (Tables,
statistics and figures: tests/test_report.py.)"""
import json
import os
import signal
from types import SimpleNamespace

import pytest
import torch

import seed
import sleep
from bench import ablations as A
from bench import faults, stats, tables, week
from data import flags, gate

TINY = ["--n_layer=1", "--n_embd=32", "--pretrain_steps=2", "--people=1", "--days=2",
        "--quizzes=1", "--seed_steps=3"]


# --------------------------------------------------------------------------------------------------
# Ablations

def test_every_life_is_a_life_of_sleep_py_and_is_compared_with_one_that_is_lived():
    o = A.parse([])
    for name, (group, nights, _) in A.LIVES.items():
        words, changed = A.words_of(name, 3, o)
        a = flags.parse(words)                               # unknown flags and bad values end here
        assert a.seed == a.world_seed == 3 and a.days == nights and a.threads == 1
        other = A.against(name)
        assert other is None or other in A.LIVES and A.LIVES[other][1] >= nights, name
        assert (other is None) == (name in A.GROUPS[1:] + ["sleep", "none", "sft"]) or \
            name == "no gate"
        with A.constants(changed):                            # all these places are there
            pass
    assert A.against("no replay (no gate)") == "no gate" and A.against("gate+sft") == "sleep"
    bases = {A.base_folder(n, 1, o) for n in A.LIVES}
    assert len(bases) == 2 and "600" in A.base_folder("no imitation (poor reader)", 1, o)
    assert len({A.folder(n, 1, o) for n in A.LIVES}) == len(A.LIVES)
    assert A.base_words("short nights", 1, o) == ["--seed=1", "--world_seed=1", "--threads=1"]


def test_what_a_difference_needs_is_lived_too():
    assert A.parse(["--only=no expansion"]).only == ["sleep", "no expansion"]
    assert A.parse(["--only=no replay (no gate)"]).only == ["no gate", "no replay (no gate)"]
    group = {n for n in A.LIVES if A.LIVES[n][0] == "24 dreams"}
    assert set(A.parse(["--only=24 dreams"]).only) == group


def test_constants_are_changed_inside_and_are_as_they_were_outside():
    before = seed.STEPS, seed.GAMMA
    with A.constants(["seed.STEPS=42", "seed.GAMMA=0"]):
        assert (seed.STEPS, seed.GAMMA) == (42, 0.0) and type(seed.STEPS) is int
    assert (seed.STEPS, seed.GAMMA) == before


def few_questions(load=sleep.DATA["world"]):
    def few(a):
        data = load(a)
        return data._replace(always={k: items[:2] for k, items in data.always.items()})
    return few


class Here:
    """A pool of processes that is this process."""
    def __init__(self, *args):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *args):
        pass

    def submit(self, function, *args):
        result = function(*args)
        return type("Done", (), {"result": staticmethod(lambda: result)})

    def shutdown(self, **kw):
        pass


def deaf(model, marks, heard_already=None, directions=0):
    model.metric = torch.eye(model.config.n_embd)


def test_the_bench_lives_goes_on_and_keeps_what_is_lived(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(A, "SMALL", TINY)
    monkeypatch.setattr(A, "ProcessPoolExecutor", Here)
    monkeypatch.setitem(sleep.DATA, "world", few_questions())
    monkeypatch.setattr(gate, "learn_to_listen", deaf)
    argv = ["--quick", "--only=none", f"--work={tmp_path}", "--jobs=1"]
    A.main(argv)
    file = stats.read(str(tmp_path / "quick.json"))
    assert [r["life"] for r in file["runs"]] == ["none"] and str(tmp_path) not in str(file)
    for r in file["runs"]:
        assert {"commit", "date", "versions", "threads", "kinds", "group"} <= set(r)
        assert "--init_from=BASE" in r["command"] and len(r["R"]) == len(r["nights"]) == 2
        assert stats.after(r, 2)["ACC"] == pytest.approx(r["ACC"])
    assert "none" in capsys.readouterr().out
    monkeypatch.setattr(A, "live", lambda *args: pytest.fail("lived again"))
    A.main(argv)


def test_the_results_of_an_older_bench_are_refused(tmp_path, capsys):
    path = tmp_path / "old.json"
    path.write_text('{"runs": [{"life": "sleep", "seed": 1}]}')
    with pytest.raises(SystemExit):
        A.main([f"--result={path}", f"--work={tmp_path}"])
    err = capsys.readouterr().err
    assert "older bench" in err and err.count("\n") == 1 and "sleep" in path.read_text()


@pytest.mark.parametrize("main, words, says", [
    (A.main, ["--only=no_gat"], "there is no 'no_gat'"), (A.main, ["--job=2"], "--jobs"),
    (A.main, ["--seeds=1,x"], "whole numbers"), (faults.main, ["--only=kil"], "there is no 'kil'"),
    (faults.main, ["--quik"], "--quick")])
def test_bad_flags_get_one_line(main, words, says, capsys):
    with pytest.raises(SystemExit) as e:
        main(words)
    err = capsys.readouterr().err
    assert e.value.code == 2 and says in err and err.count("\n") == 1


# --------------------------------------------------------------------------------------------------
# Faults

def test_every_place_to_die_is_there():
    for where in [*faults.IN_BIRTH, *faults.IN_NIGHTS]:
        module, function = where.split(":")[0].split(".")
        assert callable(getattr(faults.MODULES[module], function)), where


@pytest.mark.parametrize("how", ["", "half", "between"])
def test_a_victim_dies_in_the_middle_of_a_write(tmp_path, how):
    path = str(tmp_path / "c.pt")
    child = os.fork()
    if child == 0:
        faults.store.write(path, b"0123456789")
        faults.dies_at(f"store.write:1{':' * bool(how)}{how}")
        faults.store.write(path, b"abcdefghij", keep_old=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    left = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    old = {"c.pt": b"0123456789"}
    assert left == {"": old, "half": {**old, "c.pt.tmp": b"abcde"},
                    "between": {"c.pt.before": b"0123456789", "c.pt.tmp": b"abcdefghij"}}[how]


@pytest.mark.parametrize("how", ["rate", "nan", "noise", "algebra"])
def test_sabotage_strikes_the_second_night_alone(monkeypatch, how):
    seen, sound = [], seed.muon

    def night():
        p = torch.nn.Parameter(torch.zeros(4, 4))
        p.grad = torch.eye(4)
        seed.muon([p], [torch.zeros(4, 4)], 0.1)
        seen.append(p.detach())
    monkeypatch.setattr(seed, "night", night)
    monkeypatch.setattr(seed, "muon", sound)
    faults.sabotages(how)
    seed.night()
    try:
        seed.night()
    except torch.linalg.LinAlgError:
        assert how == "algebra"
        seen.append(torch.full((4, 4), torch.nan))
    seed.night()
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[1])


def test_a_refusal_that_changes_a_file_is_no_refusal(tmp_path, monkeypatch):
    (tmp_path / "kept").write_text("x")

    def call(words, hurt_by=(), **kw):
        if words == ["moves"]:
            (tmp_path / "kept").write_text("y")
        return 2, "", ["sleep.py: no"] * (1 + (words == ["two lines"]))
    monkeypatch.setattr(faults, "call", call)
    assert faults.refused("f", ["good"], str(tmp_path), "no")["survived"]
    for words, says in ((["good"], "yes"), (["two lines"], "no"), (["moves"], "no")):
        assert not faults.refused("f", words, str(tmp_path), says)["survived"]


def test_a_week_a_seed_and_a_crowded_day_from_its_base(monkeypatch, tmp_path):
    lived = []

    def run(command, check, cwd):
        folder = next(word.split("=")[1] for word in command if word.startswith("--out_dir"))
        lived.append([os.path.basename(folder), *command[3:]])
        kinds = ["many_people", "old"] if folder.endswith("crowd") else ["met"]
        known = {"next_morning": None, "end": 0.25, "n": 8}
        os.makedirs(folder)
        with open(os.path.join(folder, "summary.json"), "w") as f:
            json.dump({"command": "secret", "days": 7, "recall": 0.5, "ACC": 0.25, "BWT": 0.0,
                       "old_after": 1.0, "reading_before": 1.0, "reading_after": 1.0,
                       "seed": folder, "kinds": dict.fromkeys(kinds, known)}, f)
    monkeypatch.setattr(week, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(stats, "RESULTS", str(tmp_path))
    argv = ["--seeds=4,2", "--at_once=2", f"--work={tmp_path}/w"]
    week.main(argv)
    assert sorted(row[0] for row in lived) == ["seed2", "seed4"]
    file = stats.read("week.json")
    assert file["command"] == "python bench/week.py --seeds=4,2 --at_once=2"
    assert [r["seed"] for r in file["runs"]] == [f"{tmp_path}/w/seed4", f"{tmp_path}/w/seed2"]
    assert "secret" not in json.dumps(file)
    week.main([*argv, "--crowd=40"])                        # what was lived is not lived again
    assert sorted(row[0] for row in lived[2:]) == ["seed2-crowd", "seed4-crowd"]
    crowd = next(row for row in lived if row[0] == "seed4-crowd")
    assert f"--init_from={tmp_path}/w/seed4/base.pt" in crowd and "--people=40" in crowd
    rows = tables.week(file, stats.read("crowd.json"))
    assert "| **a day of 40 people** | 0.25 (0.25 to 0.25) | | 8 |" in rows
    assert stats.read("week.json") == file and len(lived) == 4
