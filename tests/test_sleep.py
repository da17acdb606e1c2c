"""The real script on a tiny budget: lives, kill -9, questions, and bad input in one clear line."""
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import dream
import seed
import sleep
from data import asking, exam, flags, gate, store, world
from data.text import Day, Item, sentences
from model import GPT
from tests.small import ENV, MARKS, PYTHON, ROOT

TINY = ["--n_layer=1", "--n_embd=32", "--days=2", "--people=2", "--pretrain_steps=24",
        "--quizzes=1",
        "--seed_steps=2", "--rank=4", "--threads=1"]
SLEEPER = ["--contrast=0", "--pretrain_steps=160", "--quizzes=4"]      # on any CPU it keeps something


def run(*words, **kw):
    return subprocess.run([PYTHON, str(ROOT / "sleep.py"), *words], capture_output=True, text=True,
                          timeout=240, env=ENV, **kw)


def said_by(r):
    return r.returncode, r.stdout + r.stderr


def refused(*words, says, script=None):
    """One line that holds `says`, exit 2, no traceback."""
    code, said = (script or forked)(*words)
    lines = [x for x in said.splitlines() if x.strip()]
    assert code == 2 and len(lines) == 1 and says in lines[0], (code, said)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    out = tmp_path_factory.mktemp("life") / "out"
    r = run(*TINY, f"--out_dir={out}")
    assert r.returncode == 0, r.stderr
    return out, r.stdout


# --------------------------------------------------------------------------------------------------
# A life

def test_a_tiny_life_writes_what_it_promises(tiny):
    out, said = tiny
    for folder, method in ((out, "sleep"), (out / "none", "none"), (out / "sft", "sft")):
        s = json.loads((folder / "summary.json").read_text())
        fields = {"method", "data", "seed", "world_seed", "days", "R", "ACC", "BWT", "forgetting",
                  "recall", "old_before", "old_after", "reading_before", "reading_after", "kinds",
                  "params_before", "params_after", "seconds", "command", "versions", "device",
                  "threads"}
        assert fields <= set(s) and s["method"] == method and s["days"] == 2
        assert s["command"].startswith("python sleep.py --n_layer=1")
        assert str(ROOT) not in s["command"]
        assert {"pretrain", "night", "exam", "total"} <= set(s["seconds"])
        assert s["params_after"] >= s["params_before"] > 10000
        R = s["R"]                                        # triangular: a morning knows no later day
        assert [[r is None for r in row] for row in R] == [[False, True], [False, False]]
        assert all(0 <= r <= 1 for row in R for r in row if r is not None)
        assert s["ACC"] == pytest.approx(sum(R[1]) / 2)
        assert s["recall"] == pytest.approx((R[0][0] + R[1][1]) / 2)
        for kind, row in s["kinds"].items():
            assert set(row) == {"next_morning", "end", "n"} and row["n"] > 0, kind
        assert {"old", "reading", "met"} & set(s["kinds"])
        nights = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert [n["night"] for n in nights] == [1, 2] and all("recall" in n and "old" in n
                                                              for n in nights)
    assert "night   1" in said and "ACC" in said
    ask = next(line for line in said.splitlines() if "--ask=" in line)
    told = world.load(flags.parse(TINY)).exams(0, 1)                # somebody it was told of
    assert shlex.split(ask)[-1] in {f"--ask={x.question.strip()}" for x in told}
    assert "Expect about" in said and max(map(len, said.replace(str(out), "out").splitlines())) <= 80


def test_ask_a_saved_self(tiny):
    for words in ([], ["--context=Ada Bram lives at 27 Elm Street."],
                  ["--context=" + "Ada lives. " * 200]):
        code, said = forked(f"--out_dir={tiny[0]}", "--ask=Where does Ada Bram live? \U0001f634",
                            *words)
        assert code == 0 and "(from" in said, said
    assert said.count("(from") > 1                          # too long a passage is read in parts
    assert forked(f"--out_dir={tiny[0] / 'none'}", "--ask=Who?")[0] == 0
    code, said = forked(f"--out_dir={tiny[0]}", "--chat")   # with nobody there to talk to
    assert code == 0 and "Tell me something" in said, said


def test_a_crowded_day_takes_several_cycles(monkeypatch):
    """Every passage is slept on once, and what was lost keeps its number."""
    monkeypatch.setattr(sleep, "CROWDED", 3)
    seen = []

    def night(model, day, marks, a):
        seen.append(day.passages)
        return {"kept": len(seen), "known": 0.5 if len(seen) == 1 else 1.0, "lost": [1], "x": seen}
    monkeypatch.setattr(seed, "night", night)
    log = sleep.in_cycles(None, None, Day(list("abcdefg"), []), None)
    assert seen == [["a", "b"], ["c", "d"], ["e", "f", "g"]]
    assert log["lost"] == [1, 3, 5] and log["cycles"] == 3 and log["kept"] == 6
    assert log["known"] == pytest.approx(5.5 / 6)
    for day in (Day(list("abc"), []), Day(list("abcdefg"), ["studied"])):
        log = sleep.in_cycles(None, None, day, None)        # one night, as it is
        assert seen[-1] == day.passages and log["lost"] == [1] and "cycles" not in log


def test_an_earlier_life_is_kept(tiny, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(tiny[0], out)
    code, said = forked(*TINY, "--contrast=0", "--method=none", f"--init_from={out / 'base.pt'}",
                        f"--out_dir={out}")
    assert code == 0 and "held an earlier life" in said, said
    assert json.loads((tmp_path / "out.1" / "summary.json").read_text())["method"] == "sleep"
    assert json.loads((out / "summary.json").read_text())["method"] == "none"


# --------------------------------------------------------------------------------------------------
# kill -9, and on to the same bits

torch.use_deterministic_algorithms(False)       # loads much: once, before the forks


def forked(*words, where=None, n=0):
    """(exit code, what it said): sleep.py in a process of its own, without loading torch again. It
    is killed when it calls `where`, (module, name), for the n-th time. A night learns whatever it
    dreams: after so little pretraining none of it makes sense."""
    def script():
        os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
        sys.stdout, sys.stderr, sys.argv = sys.__stdout__, sys.__stderr__, ["sleep.py", *words]
        sleep.KEEP, asking.MOVED = 16, 1.0
        asking.MIN_GAIN = asking.MIN_SURE = asking.LIKELY = asking.SPELT = -1e9
        dream.POOL, dream.CHOSEN, dream.AT_RANDOM, dream.WRITER_STEPS = 8, 2, 1, 2
        gate.ALSO_ASKED, gate.INVENTED, asking.HELD_OUT, seed.DREAM_STEPS = 32, 16, 4, 2
        asking.KNOWN, usual_reach = 0.0, gate.reach
        gate.reach = lambda *args: usual_reach(*args).clamp(min=1e6)
        if where:
            calls, usual = [0], getattr(*where)

            def and_die(*args, **kw):
                calls[0] += 1
                if calls[0] == n:
                    os.kill(os.getpid(), signal.SIGKILL)
                return usual(*args, **kw)
            setattr(*where, and_die)
        sleep.run.guarded(sleep.main)
    with tempfile.TemporaryFile() as said:
        p = multiprocessing.get_context("fork").Process(target=script)
        p.start()
        p.join(240)
        said.seek(0)
        return p.exitcode, said.read().decode()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    code, said = forked(*TINY, *SLEEPER, f"--out_dir={out}")
    assert code == 0, said
    nights = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert not any("undone" in night for night in nights) and all(n["kept"] > 0
                                                                  for n in nights), nights
    return out


def same_life(a, b):
    for name in ("log.jsonl", "life.html"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    summaries = [json.loads((x / "summary.json").read_text()) for x in (a, b)]
    assert summaries[0]["R"] == summaries[1]["R"] and summaries[0]["kinds"] == summaries[1]["kinds"]
    for name in ("base.pt", "checkpoint.pt"):
        one, two = (store.load(str(x / name))[0]["model"] for x in (a, b))
        assert one.keys() == two.keys() and all(torch.equal(t, two[k]) for k,
                                                t in one.items()), name


# in pretraining, behind its second half-way checkpoint; before the exam of the second night; while a
# file is renamed
@pytest.mark.parametrize("where,n", [((sleep, "document_loss"), 42), ((sleep, "examine"), 2),
                                     ((os, "replace"), 14)])
def test_a_killed_life_goes_on_to_the_same_bits(whole, tmp_path, where, n):
    out = tmp_path / "out"
    code, said = forked(*TINY, *SLEEPER, f"--out_dir={out}", where=where, n=n)
    assert code == -signal.SIGKILL and not (out / "summary.json").exists(), said
    assert (out / "pretraining.pt").exists() == (where == (sleep, "document_loss"))
    code, said = forked("--resume", f"--out_dir={out}")
    assert code == 0, said
    same_life(whole, out)
    assert not (out / "pretraining.pt").exists()


def test_ctrl_c_ends_behind_a_saved_stage_and_says_how_to_go_on(whole, tmp_path):
    out = tmp_path / "out"

    def press(*args, **kw):
        os.kill(os.getpid(), signal.SIGINT)
        return night(*args, **kw)
    night, seed.night = seed.night, press
    try:
        code, said = forked(*TINY, *SLEEPER, f"--out_dir={out}")
    finally:
        seed.night = night
    assert code == 2 and "go on with --resume" in said and "finishing this stage" in said
    assert len(store.load(str(out / "checkpoint.pt"))[0]["R"]) == 1
    code, said = forked("--resume", f"--out_dir={out}")
    assert code == 0, said
    same_life(whole, out)


def test_a_lived_life_is_only_reported_again(whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    before = (out / "checkpoint.pt").read_bytes()
    code, said = forked("--resume", f"--out_dir={out}")
    assert code == 0 and "ACC" in said and (out / "checkpoint.pt").read_bytes() == before


# --------------------------------------------------------------------------------------------------
# Bad input

def test_bad_input_of_the_real_script_is_one_line(tiny, tmp_path):
    refused("--dais=3", says="did you mean --days=...?", script=lambda *words: said_by(run(*words)))
    refused(f"--out_dir={tmp_path / 'none'}", "--ask=Who?", says="no checkpoint")
    refused(f"--out_dir={tiny[0]}", "--ask=" + "Who is Ada Bram? " * 99, says="too long")
    assert not (tmp_path / "none").exists()


def test_files_that_are_no_self_are_refused_and_left_alone(tiny, tmp_path):
    bad, good = tmp_path / "checkpoint.pt", (tiny[0] / "checkpoint.pt").read_bytes()
    for content in (b"not a checkpoint", good[:-700]):
        bad.write_bytes(content)
        refused(f"--out_dir={tmp_path}", "--ask=Who?", says="is damaged")
        assert bad.read_bytes() == content
    store.save(str(bad), {"version": 1, "config": {}, "model": {}})
    refused(f"--out_dir={tmp_path}", "--ask=Who?", says="checkpoint")
    new = tmp_path / "new"
    refused("--init_from=nowhere.pt", f"--out_dir={new}", says="nowhere.pt")
    refused("--init_from=nowhere.safetensors", f"--out_dir={new}", says="nowhere")
    refused("--resume", f"--out_dir={new}", says="nothing to resume")
    assert not (new / "args.json").exists()


def test_a_self_of_another_vocabulary_is_refused(tiny, tmp_path):
    model, _ = sleep.load(str(tiny[0] / "base.pt"), "cpu")
    path = tmp_path / "other.pt"
    sleep.save(str(path), GPT(replace(model.config, vocab_size=300)))
    refused(f"--init_from={path}", f"--out_dir={tmp_path / 'new'}", says="vocabulary of 300")


# --------------------------------------------------------------------------------------------------
# The pieces of a life

def test_every_method_and_data_set_that_a_flag_allows_is_there():
    assert set(sleep.flags.FLAGS["data"][1]) <= set(sleep.DATA)
    assert set(sleep.flags.FLAGS["method"][1]) - {"absorb"} <= set(sleep.NIGHTS)


def test_metrics_of_a_hand_made_life():
    R = [[1.0, None, None], [0.5, 0.8, None], [0.25, 0.6, 1.0]]
    m = exam.metrics(R)
    assert m["ACC"] == pytest.approx((0.25 + 0.6 + 1.0) / 3)
    assert m["BWT"] == pytest.approx(((0.25 - 1.0) + (0.6 - 0.8)) / 2)
    assert m["forgetting"] == pytest.approx(((1.0 - 0.25) + (0.8 - 0.6)) / 2)
    assert m["recall"] == pytest.approx((1.0 + 0.8 + 1.0) / 3)
    assert exam.metrics([[0.5]]) == {"ACC": 0.5, "BWT": 0, "forgetting": 0, "recall": 0.5}


def test_kinds_are_counted_apart(monkeypatch):
    items = [Item("", " a", " yes", "met"), Item("", " b", " yes", "met"),
             Item("", " c", " ?", "not_told"),
             Item("", " d", " yes", "reversed")]
    enc = SimpleNamespace(decode=lambda ids: "".join(ids))
    data = SimpleNamespace(enc=enc, marks=MARKS)
    said = ["yes", "?", "?", "no"]
    monkeypatch.setattr(exam, "answers", lambda *a: [(s, None) for s in said])
    graded = exam.sit(SimpleNamespace(unknown=SimpleNamespace(tolist=lambda: ["?"])), data, items)
    assert graded == {"met": [True, False], "not_told": [True], "reversed": [False],
                      "false_unknown": [False, True]}
    assert exam.share(graded) == 0.5 and exam.share(graded, ["not_told"]) == 1
    assert exam.share({}) is None
    kinds = exam.kinds_of([graded], [graded, {"met": [True, True]}])
    assert kinds["met"] == {"next_morning": 0.5, "end": 0.75, "n": 4}
    assert kinds["reversed"]["end"] == 0


def test_a_day_that_fits_leaves_room_to_ask():
    """The longest passage that `wake` lets through can be read, asked about and answered."""
    assert sleep.ROOM >= 2 + sleep.seed.dream.ASKING        # <bos>, <ask>, questions
    assert world.BLOCK - sleep.ROOM + 1 + 40 + gate.MAX_NEW <= world.BLOCK


def test_wake_reads_what_was_left_over_first():
    enc = SimpleNamespace(encode_ordinary=lambda s: list(range(len(s.split()))))
    data = SimpleNamespace(enc=enc, days=[Day(["A b. C d e."], []), Day(["F g?"], [])],
                           block_size=256)
    day, tried = sleep.wake(data, 1, [([[7]], 2)])
    assert day.passages == [[[7]], [[0, 1]]] and [n for _, n in tried] == [2, 0]
    assert sentences(enc, "A b. C d e.") == [[0, 1], [0, 1, 2]]
