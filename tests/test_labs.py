"""The labs: solved they reach their number, unsolved they say what to write and where, and what is
wrong does not pass. On a base of fewer
steps, so that all of it takes some seconds."""
import ast
import importlib
import json
import re
import runpy
import sys
from types import SimpleNamespace

import pytest
import torch

from bench.labs import common, run_all, village
from data import flags, gate
from tests.small import ROOT

LABS = {name: importlib.import_module(f"bench.labs.{name}") for name in run_all.LABS}
SOLVED = {name: importlib.import_module(f"bench.labs.solutions.{name}") for name in LABS}

NIGHT = ["--quizzes=5", "--seed_steps=60", "--on_policy=0", "--dream=0"]


@pytest.fixture(scope="module")
def o(tmp_path_factory):
    """The flags of a lab, with a base that is already made."""
    o = SimpleNamespace(seed=1, steps=220, out_dir=str(tmp_path_factory.mktemp("labs")), threads=1)
    with pytest.MonkeyPatch.context() as small:
        small.setattr(common, "BATCH", 10)
        small.setattr(gate, "ALSO_ASKED", 200), small.setattr(gate, "INVENTED", 80)
        common.base(o, common.load_village(o)[0])
    return o


@pytest.fixture
def short(monkeypatch):
    """Without what is only there to be looked at."""
    monkeypatch.setattr(common, "night_flags", lambda: flags.parse(NIGHT))
    monkeypatch.setattr(LABS["lab1_kl"], "STEPS", 20)
    monkeypatch.setattr(LABS["lab3_forgetting"], "after_a_night", lambda o, data, before: "")
    monkeypatch.setattr(LABS["lab4_baseline"], "GROUPS", 20_000)
    monkeypatch.setattr(LABS["lab6_dreams"], "STEPS", 60)
    monkeypatch.setattr(LABS["lab6_dreams"], "CHANCES", 2)
    monkeypatch.setattr(LABS["lab7_matrix"], "DAYS", 2)
    monkeypatch.setattr(LABS["lab7_matrix"], "TOKENS", 2000)
    monkeypatch.setattr(LABS["lab7_matrix"], "a_night_of_sleep", lambda model, data, i: model)
    monkeypatch.setattr(LABS["lab8_break_it"], "GOAL", 0.7)          # so small a self wavers


def measured(name, o, monkeypatch, **written):
    """What a lab finds where a student has written these functions."""
    for function, body in written.items():
        assert function in run_all.LABS[name]
        monkeypatch.setattr(LABS[name], function, body)
    return common.fresh(LABS[name].measure, o)


# --------------------------------------------------------------------------------------------------
# The page, the gap, the solution

@pytest.mark.parametrize("name", LABS)
def test_a_lab_is_a_short_page(name):
    page = LABS[name].__doc__
    assert len(page.splitlines()) <= 45 and f"python bench/labs/{name}.py" in page
    for part in ("QUESTION.", "WRITE", "THE NUMBER:", "OBSERVE."):
        assert page.count(part) == 1, part
    assert re.search(r"\d{4}\.\d{5}|data/gate.py|village.py", page), "no source of its equation"


@pytest.mark.parametrize("name", LABS)
def test_a_solution_fits_the_gap_and_its_arguments(name):
    """No more lines than the marker allows, which are 20 at most; the same arguments."""
    lab, solution = (functions(ROOT / "bench" / "labs" / part / f"{name}.py")
                     for part in ("", "solutions"))
    for function in run_all.LABS[name]:
        most = int(re.search(r"# --- your code: at most (\d+) lines ---", lab[function][1])[1])
        body = [x for x in solution[function][0].body if not isinstance(x, ast.Expr)]
        assert most <= 20 and body[-1].end_lineno - body[0].lineno < most, function
        assert ast.dump(lab[function][0].args) == ast.dump(solution[function][0].args), function
        assert f"at most {most} lines" in lab[function][1].split("raise")[1]


def functions(path):
    source = path.read_text(encoding="utf-8")
    return {node.name: (node, ast.get_source_segment(source, node))
            for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", LABS)
def test_an_unsolved_lab_says_what_to_write_and_where(name, tmp_path, monkeypatch):
    """One line, exit status 1, before any base is made; the line it names is in the gap."""
    path, out = ROOT / "bench" / "labs" / f"{name}.py", tmp_path / "out"
    monkeypatch.setattr(sys, "argv", [str(path), f"--out_dir={out}", "--threads=1"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(path), run_name="__main__")
    said = stop.value.code                              # a text: the status is 1, stderr has it
    function = run_all.LABS[name][0]
    found = re.fullmatch(rf"{name}.py: still to be written: {function} in bench/labs/{name}.py, "
                         r"line (\d+): .*at most \d+ lines", said)
    assert found and not out.exists(), said
    lines = path.read_text(encoding="utf-8").splitlines()
    assert "your code" in lines[int(found[1]) - 2]


def test_a_lab_from_the_command_line_ends_with_its_number(monkeypatch, capsys):
    for written, status, word in ((SOLVED["lab4_baseline"].advantages, 0, "reached"),
                                  (LABS["lab4_baseline"].no_baseline, 1, "not yet")):
        monkeypatch.setattr(LABS["lab4_baseline"], "advantages", written)
        monkeypatch.setattr(LABS["lab4_baseline"], "GROUPS", 20_000)
        monkeypatch.setattr(sys, "argv", ["lab4_baseline.py", "--threads=1"])
        with pytest.raises(SystemExit) as stop:
            common.run(LABS["lab4_baseline"].measure, "", LABS["lab4_baseline"].__file__)
        assert stop.value.code == status
        last = capsys.readouterr().out.strip().splitlines()[-1]
        assert last.startswith("your number:") and word in last


def test_an_error_of_torch_is_not_taken_for_a_gap():
    def torch_has_no_such_kernel():
        raise NotImplementedError("not for this device")
    with pytest.raises(NotImplementedError):
        try:
            torch_has_no_such_kernel()
        except NotImplementedError as e:
            common.unwritten(e, "lab.py")


# --------------------------------------------------------------------------------------------------
# Solved

@pytest.mark.parametrize("name", LABS)
def test_solved_a_lab_reaches_its_number(name, o, short, monkeypatch):
    written = {f: getattr(SOLVED[name], f) for f in run_all.LABS[name]}
    found = measured(name, o, monkeypatch, **written)
    assert found.reached is True, (found.number, found.goal, found.seen)


def test_the_result_file_is_of_these_labs():
    """Every lab at full size, in less than three minutes with the base that it may have to make."""
    file = json.loads((ROOT / "bench" / "results" / "labs.json").read_text(encoding="utf-8"))
    assert [run["file"] for run in file["runs"]] == [f"bench/labs/{name}.py" for name in LABS]
    assert [run["title"] for run in file["runs"]] == list(map(run_all.title, LABS.values()))
    assert all(run["reached"] for run in file["runs"])
    assert all(run["seconds"] + file["base_seconds"] < 180 for run in file["runs"])


# --------------------------------------------------------------------------------------------------
# Wrong

def zeros(width, rank, generator):
    return torch.zeros(width, rank), torch.zeros(rank, width)


def loud(width, rank, generator):
    return torch.randn(width, rank), torch.randn(rank, width)


def turned_round(*args):
    return -SOLVED["lab3_forgetting"].step_and_predict(*args)


def without_a_step(opt, params, day_loss, old_loss):
    return -0.1


def everything_apart(x, person):
    """Whitened around one mean: people themselves count as noise."""
    return SOLVED["lab5_gate"].metric(x, torch.zeros_like(person))


def chance(gradients, aim, true, words, k):
    return torch.randperm(len(true))[:k].tolist()


def diagonal_included(R):
    return SOLVED["lab7_matrix"].bwt(R) * (len(R) - 1) / len(R)


def by_bwt_alone(R):
    return "forgets" if SOLVED["lab7_matrix"].bwt(R) < -0.2 else "remembers"


def ordinary(old, rng):
    return [village.passage(village.somebody(rng)[1]) for _ in range(2)]


RIGHT = {f: getattr(SOLVED[name], f) for name, fs in run_all.LABS.items() for f in fs}
WRONG = [  # lab, {function: what a student might write}, what is said of it ("": the number is off)
    ("lab1_kl", {"forward_kl": RIGHT["reverse_kl"], "reverse_kl": RIGHT["forward_kl"]}, ""),
    ("lab1_kl", {"forward_kl": lambda t, s: (t.exp() * (t - s)).mean(-1)}, ""),
    ("lab1_kl", {"forward_kl": lambda t, s: t.exp() * (t - s)}, r"a tensor \(2,\), expected \(\)"),
    ("lab2_unlock", {"new_expert": zeros}, ""),
    ("lab2_unlock", {"new_expert": loud}, "logits have changed"),
    ("lab3_forgetting", {"step_and_predict": turned_round}, "the change of L_old is -.1"),
    ("lab3_forgetting", {"step_and_predict": without_a_step}, r"w should be \(.9, 1.8\)"),
    ("lab4_baseline", {"advantages": LABS["lab4_baseline"].mean_of_all}, ""),
    ("lab4_baseline", {"advantages": LABS["lab4_baseline"].no_baseline}, ""),
    ("lab5_gate", {"metric": everything_apart}, ""),
    ("lab5_gate", {"metric": lambda x, person: torch.eye(x.shape[1])}, ""),
    ("lab6_dreams", {"choose": chance}, ""),
    ("lab6_dreams", {"choose": lambda g, aim, true, words, k: [0] * k}, "1 different dreams of 5"),
    ("lab7_matrix", {"bwt": diagonal_included}, ""),
    ("lab7_matrix", {"read_life": by_bwt_alone}, ""),
    ("lab8_break_it", {"day": ordinary}, ""),
    ("lab8_break_it", {"day": lambda old, rng: ["Ada Bram hates figs."]}, "no sentence of the"),
    ("lab8_break_it", {"day": lambda old, rng: ["Ada Bram lives in Old Yarm."] * 2}, "told before"),
    ("lab8_break_it", {"day": lambda old, rng: []}, "at least one sentence"),
]


@pytest.mark.parametrize("name, written, says", WRONG)
def test_what_is_wrong_does_not_pass(name, written, says, o, short, monkeypatch):
    written = {**{f: RIGHT[f] for f in run_all.LABS[name]}, **written}
    if says:
        with pytest.raises(common.NotYet, match=says):
            measured(name, o, monkeypatch, **written)
    else:
        assert measured(name, o, monkeypatch, **written).reached is False


# --------------------------------------------------------------------------------------------------
# The village

def test_a_sentence_is_read_as_the_fact_it_tells():
    data = village.load(SimpleNamespace(seed=1, world_seed=1, days=2, people=3))
    told = [f for facts in village.make_world(1, 2, 3)["days"][0] for f in facts]
    for f in told:
        assert village.parsed(village.passage([f])) == f
        assert len(data.enc.encode_ordinary(village.passage([f]))) <= 9       # a word is a token
    for text in ("Ada Bram lives in Yarm.", "Ada lives in Old Yarm.", "", "Ada Bram loves red."):
        assert village.parsed(text) is None
    assert len(data.days) == 2 and len(data.days[0].passages) == 3
    assert {x.answer.strip() for x in data.exams(0, 1)} == {f.value for f in told}


def test_bad_flags_of_a_lab_get_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lab1_kl.py", "--sed=2"])
    with pytest.raises(SystemExit) as stop:
        common.run(LABS["lab1_kl"].measure, "", LABS["lab1_kl"].__file__)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "--seed" in err and err.count("\n") == 1
    assert set(common.FLAGS) < set(run_all.FLAGS) and flags.FLAGS is not common.FLAGS
