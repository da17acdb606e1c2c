"""The real script on a tiny budget: lives, resume, questions, and bad input in one clear line."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import sleep
from data import clinc as C
from data import store

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--n_layer=2", "--n_embd=64", "--n_head=2", "--days=2", "--people=2", "--pretrain_steps=6", "--quizzes=1", "--views=1",
        "--replay_dreams=8", "--seed_steps=3", "--dream_steps=2", "--threads=1"]


def run(*words, **kw):
    return subprocess.run([sys.executable, str(ROOT / "sleep.py"), *words], capture_output=True, text=True, timeout=240, **kw)


def refused(*words, says):
    """One line on stderr that holds `says`, a non-zero exit, no traceback."""
    r = run(*words)
    lines = [x for x in r.stderr.splitlines() if x.strip()]
    assert r.returncode != 0 and len(lines) == 1 and says in lines[0], (r.returncode, r.stderr)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    out = tmp_path_factory.mktemp("life") / "out"
    r = run(*TINY, f"--out_dir={out}")
    assert r.returncode == 0, r.stderr
    return out, r.stdout


def test_a_tiny_life_writes_what_it_promises(tiny):
    out, text = tiny
    for folder, method in ((out, "sleep"), (out / "none", "none"), (out / "sft", "sft")):
        s = json.loads((folder / "summary.json").read_text())
        assert s["method"] == method
        for key in ("seed", "world_seed", "days", "R", "ACC", "BWT", "forgetting", "old_before", "old_after",
                    "reading_before", "reading_after", "params_before", "params_after", "command", "versions"):
            assert key in s, key
        assert set(s["seconds"]) == {"pretrain", "wake", "seed", "dream", "exam", "total"}
        assert len(s["R"]) == 2 and s["R"][0][1] is None and s["R"][1][0] is not None        # unvisited cells are null
        assert len((folder / "log.jsonl").read_text().splitlines()) == 2
    assert "night  1" in text and "ACC" in text and "--ask=" in text


def test_ask_a_saved_model(tiny):
    r = run(f"--out_dir={tiny[0]}", "--ask=Where does Ada Bram live?", "--context=Ada Bram lives at 27 Elm Street.")
    assert r.returncode == 0 and "from memory:" in r.stdout and "with the passage in context:" in r.stdout


def test_an_earlier_life_is_kept(tiny, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(tiny[0], out)
    r = run(*TINY, "--contrast=0", "--method=none", f"--out_dir={out}")
    assert r.returncode == 0 and "held an earlier life" in r.stdout
    assert json.loads((tmp_path / "out.1" / "summary.json").read_text())["method"] == "sleep"


def test_the_same_seed_is_the_same_life_and_a_killed_one_goes_on(tiny, tmp_path):
    """kill -9 after the first morning, --resume: the same R and the same weights, bit for bit, as without the kill."""
    flags = [*TINY, f"--init_from={tiny[0] / 'base.pt'}", "--contrast=0", "--days=3"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(*flags, f"--out_dir={whole}").returncode == 0
    p = subprocess.Popen([sys.executable, str(ROOT / "sleep.py"), *flags, f"--out_dir={broken}"], stdout=subprocess.DEVNULL,
                         stderr=subprocess.DEVNULL)
    log = broken / "checkpoint.pt"
    while not log.exists() and p.poll() is None:
        time.sleep(0.02)
    os.kill(p.pid, signal.SIGKILL)
    p.wait()
    r = run("--resume", f"--out_dir={broken}")
    assert r.returncode == 0, r.stderr
    a, b = (json.loads((x / "summary.json").read_text()) for x in (whole, broken))
    assert a["R"] == b["R"]
    a, b = (store.load(str(x / "checkpoint.pt"))[0]["model"] for x in (whole, broken))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("words,says", [
    (["--nite=3"], "unknown flag '--nite=3'"), (["--day=3"], "did you mean --days=...?"),
    (["days=3"], "unknown flag"), (["--days"], "needs a value"),
    (["--days=x"], "expected a whole number"), (["--days=0"], "between 1 and"), (["--seed_lr=nan"], "must lie between"),
    (["--alpha=2"], "between 0.0 and 1.0"), (["--expand=2"], "between 0 and 1"), (["--method=nap"], "choose one of"),
    (["--n_embd=4"], "between 8 and"), (["--select=best"], "choose one of cosine"), (["--days=900", "--people=90"], "room for"),
    (["--data=clinc150", "--data_dir=nowhere"], "no CLINC150 at nowhere"),
    (["--init_from=nowhere.pt"], "no checkpoint at nowhere.pt"),
    (["--ask=Who?", "--out_dir=nowhere"], "no checkpoint"), (["--resume", "--out_dir=nowhere"], "nothing to resume"),
])
def test_bad_flags_get_one_line(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        a = sleep.parse(words)
        if a.ask:
            a.torch_device = "cpu"
            sleep.question(a, None, None)
        elif a.resume:
            sleep.resumed(a, words)
        elif a.init_from != "scratch":
            sleep.load(a.init_from)
        else:
            try:
                C.load(a.data_dir)
            except FileNotFoundError as e:
                sleep.fail(str(e))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and says in said and len(said.splitlines()) == 1
    assert not any(tmp_path.iterdir())                               # nothing was written


def test_bad_input_of_the_real_script(tiny, tmp_path):
    refused("--dais=3", says="did you mean --days=...?")
    bad = tmp_path / "checkpoint.pt"                                 # and no checkpoint before it
    for content in (b"", b"not a checkpoint", (tiny[0] / "checkpoint.pt").read_bytes()[:-700]):
        bad.write_bytes(content)
        refused(f"--out_dir={tmp_path}", "--ask=Who?", says="is damaged")
        assert bad.read_bytes() == content
    refused(f"--out_dir={tiny[0]}", "--ask=" + "Who is Ada Bram? " * 99, says="too long")
    r = run(f"--out_dir={tiny[0]}", "--ask=Who? \U0001f634", "--context=" + "Ada lives. " * 200)
    assert r.returncode == 0 and "split between sentences" in r.stdout + r.stderr


def test_no_gpu_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        sleep.pick_device(sleep.parse(["--device=cuda"]))


def test_metrics_of_a_hand_made_life():
    R = [[1.0, None, None], [0.5, 0.8, None], [0.25, 0.6, 1.0]]
    m = sleep.metrics(R)
    assert m["ACC"] == pytest.approx((0.25 + 0.6 + 1.0) / 3)
    assert m["BWT"] == pytest.approx(((0.25 - 1.0) + (0.6 - 0.8)) / 2)
    assert m["forgetting"] == pytest.approx(((1.0 - 0.25) + (0.8 - 0.6)) / 2)
    assert m["recall"] == pytest.approx((1.0 + 0.8 + 1.0) / 3)


def test_a_life_can_start_from_gpt2_weights(tmp_path, monkeypatch):
    """Random GPT-2 weights written by transformers, with the vocabulary of the world standing in for GPT-2's."""
    transformers = pytest.importorskip("transformers")
    import tiktoken
    from data.bpe import SPLIT, load_ranks
    from data.world import RANKS, make_world
    ranks = load_ranks(RANKS)
    config = transformers.GPT2Config(vocab_size=len(ranks), n_positions=192, n_embd=48, n_layer=2, n_head=3)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path, safe_serialization=True)
    fake = tiktoken.Encoding("gpt2", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens={})
    monkeypatch.setattr(sleep.tiktoken, "get_encoding", lambda name: fake)
    a = sleep.parse([f"--init_from={tmp_path}", "--pretrain_steps=2"])
    a.torch_device = torch.device("cpu")
    enc = sleep.tokenizer(a)
    marks = sleep.Marks(*(enc.encode_single_token(s) for s in sleep.SPECIAL))
    model = sleep.born(a, enc, marks, make_world(1))
    assert model.config.vocab_size == enc.n_vocab == len(ranks) + 4 and model.config.n_head == 3
    assert sleep.answer(model, enc, marks, [("", " Who are you?", "")])[0] is not None
