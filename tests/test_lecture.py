"""bench/LECTURE.md: its lines are where it says, its numbers those of the result files, its places
exist. bench/EXTENDING.md: done as it says, word for word, a tiny life is lived."""
import inspect
import json
import math
import random
import re

import pytest

import seed
import sleep
from bench import ablations, baselines, lecture, report, stats
from bench.labs import run_all, village
from data import asking, flags, gate, world
from data.text import Day
from model import FAST, GPT, Config
from tests.small import ROOT

TEXT = (ROOT / "bench" / "LECTURE.md").read_text(encoding="utf-8")
EXTENDING = (ROOT / "bench" / "EXTENDING.md").read_text(encoding="utf-8")


# --------------------------------------------------------------------------------------------------
# Equation <-> function <-> line

def test_every_line_of_the_map_is_where_the_page_says():
    rows = re.findall(r"^\| (\d) \| (.+?) \| .+? \| `([\w.]+)` \| "
                      r"\[(\S+):(\d+)\]\(\.\./(\S+)#L(\d+)\)", TEXT, re.M)
    assert len(rows) == len(lecture.MAP) > 20
    for row, (step, equation, _, place, code) in zip(rows, lecture.MAP):
        assert row[0] == str(step) and row[1] == equation
        path, _, name = place.partition(": ")
        assert (row[3], row[2]) == (path, name) and row[3:5] == row[5:7]
        assert code in (ROOT / path).read_text(encoding="utf-8").splitlines()[int(row[4]) - 1]


def test_every_function_that_a_step_names_is_there():
    """`file.py: a`, `b`: a and b are defined in that file, or in another one that is named."""
    steps = re.sub(r"<!-- \w+ -->.*?<!-- end -->", "", TEXT, flags=re.S).split("\n## ")[1:-1]
    assert len(steps) == 9
    for n, step in enumerate(steps):
        named = re.findall(r"`(?:(\w+(?:/\w+)?\.py):\s+)?([A-Za-z_.]+)`", step)
        defined, places = "", [path for path, _ in named if path]
        assert places, f"step {n} names no function"
        for path in places:
            defined += (ROOT / path).read_text(encoding="utf-8")
        for path, name in named:
            if not name.endswith(".json"):
                assert re.search(rf"def {name.split('.')[-1]}\b", defined), (n, name)


def test_a_lecture_takes_45_minutes_and_asks_a_question_a_step():
    minutes = re.findall(r"^## \d\. .+\((\d) minutes\)$", TEXT, re.M)
    assert sum(map(int, minutes)) == 45 and TEXT.count("*For the class.*") == len(minutes)
    labs = {int(n) for n in re.findall(r"[Ll]ab (\d)", TEXT)}
    assert labs == set(range(1, len(run_all.LABS) + 1))
    for step in TEXT.split("\n## "):
        assert step.count("![") <= 1
    for path in re.findall(r"\]\((results/[^)]+|[A-Z]+\.md|labs)\)", TEXT + EXTENDING):
        assert (ROOT / "bench" / path).exists(), path


def test_a_moved_or_doubled_line_is_noticed():
    with pytest.raises(ValueError, match="has no nights"):
        lecture.line_of("seed.py: nights", "x")
    with pytest.raises(ValueError, match="0 lines"):
        lecture.line_of("seed.py: night", "no such code")
    with pytest.raises(ValueError, match="2 lines"):
        lecture.line_of("seed.py: night", "log |= distil(")
    assert lecture.line_of("model.py: GPT.unlock", "def unlock") == \
        inspect.getsourcelines(GPT.unlock)[1]


# --------------------------------------------------------------------------------------------------
# Numbers

def test_the_lecture_is_what_files_and_sources_say():
    files = report.read_all()
    assert lecture.page(files) == TEXT
    files["week.json"]["runs"][0]["ACC"] = 0.0
    assert lecture.page(files) != TEXT
    with pytest.raises(ValueError, match="marks: what"):
        lecture.filled(TEXT + "<!-- what -->\n<!-- end -->\n", files)


def test_what_the_last_step_says_by_heart():
    model = GPT(Config())
    assert f"{sum(p.numel() for p in model.unlock(FAST)):,}" == "16,384" in TEXT
    rng = random.Random(0)
    days = {world.RELATIONS["born"].value(rng) for _ in range(20_000)}
    assert len(days) == 28 * 12 and f"{math.log2(len(days)):.1f} bits" in TEXT
    assert {len(run["R"]) for run in stats.read("week.json")["runs"]} == {7}
    assert "**A year has not been measured.**" in TEXT
    assert asking.MOVED == 0.25 and asking.MIN_GAIN == 1.0 and gate.FARTHEST == 4.0


# --------------------------------------------------------------------------------------------------
# EXTENDING.md

TINY = ["--n_layer=1", "--n_embd=32", "--pretrain_steps=4", "--days=2", "--people=1", "--rank=4",
        "--contrast=0", "--threads=1"]


def allow(monkeypatch, flag, word):
    """A word more that a flag takes: the second place."""
    default, words, text = flags.FLAGS[flag]
    monkeypatch.setitem(flags.FLAGS, flag, (default, (*words, word), text))


def test_a_rival_and_a_data_set_live_after_two_places_each(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gate, "INVENTED", 8)
    monkeypatch.setattr(gate, "ALSO_ASKED", 8)
    block, = re.findall(r"```python\n(.*?)```", EXTENDING, re.S)
    written = {}
    exec(block, written)
    for line in ('`sleep.py: NIGHTS`: `"rote": rote`',
                 '`sleep.py: DATA`: `"village": village.load`',
                 "the flag `method`: the word `rote`", "the flag `data`: the word `village`"):
        assert line in EXTENDING
    monkeypatch.setitem(sleep.NIGHTS, "rote", written["rote"])
    monkeypatch.setitem(sleep.DATA, "village", village.load)
    allow(monkeypatch, "method", "rote"), allow(monkeypatch, "data", "village")
    out = tmp_path / "out"
    sleep.main(["--method=rote", "--data=village", f"--out_dir={out}", *TINY])
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["method"], summary["data"]) == ("rote", "village") and len(summary["R"]) == 2
    nights = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert all(night["loss"] > 0 for night in nights)
    before, after = (sleep.load(str(out / name), "cpu")[0] for name in ("base.pt", "checkpoint.pt"))
    moved = {name for name, p in before.named_parameters()
             if not p.equal(after.get_parameter(name))}
    assert moved == {"blocks.0.levels.4.down.weight"}                # as the page says
    capsys.readouterr()


def test_an_ingredient_is_a_flag_and_the_line_that_reads_it(monkeypatch):
    flag = re.search(r'in `GROUPS`: `("crowded": \(.*\),)`', EXTENDING)[1]
    new = eval("{" + flag + "}", {"SOME": flags.SOME})
    assert "`a.crowded` in the place of `CROWDED`" in EXTENDING
    monkeypatch.setitem(flags.FLAGS, "crowded", new["crowded"])
    source = inspect.getsource(sleep.in_cycles)
    assert "CROWDED" in source
    scope = dict(vars(sleep))
    exec(source.replace("CROWDED", "a.crowded"), scope)
    seen = []

    def night(model, day, marks, a):
        seen.append(day.passages)
        return {"kept": 1, "known": 1.0, "lost": []}
    monkeypatch.setattr(seed, "night", night)
    for words, sizes in ([], [5]), (["--crowded=2"], [1, 2, 2]):
        seen.clear()
        a = flags.parse(words)
        scope["in_cycles"](a, None, Day(list("abcde"), []), None)
        assert sorted(map(len, seen)) == sizes
        a.command = ""
        assert flags.kept(a)["crowded"] == a.crowded                 # args.json, and --resume


def test_the_other_places_that_it_names_are_there():
    for place in re.findall(r"`((?:bench|data)/\w+\.py|sleep\.py): (\w+)`", EXTENDING):
        assert re.search(rf"\b{place[1]}\b", (ROOT / place[0]).read_text(encoding="utf-8")), place
    assert baselines.METHODS and ablations.lives()
    with ablations.constants(["sleep.CROWDED=8"]):
        assert sleep.CROWDED == 8
