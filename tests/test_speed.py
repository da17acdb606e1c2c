"""bench/speed.py at tiny sizes: it runs, its JSON holds what the table shows, competitors compute the same thing, and a peer that
is missing is named with how to get it."""
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from bench import race, speed
from model import generate

ROOT = Path(__file__).resolve().parent.parent


def tiny(**more):
    defaults = {k: v for k, (v, *_) in speed.FLAGS.items()}
    return SimpleNamespace(**{**defaults, "quick": True, "rounds": 1, "dtype": torch.float32, "absent": {}, **more})


def run(*words):
    return subprocess.run([sys.executable, str(ROOT / "bench/speed.py"), *words], capture_output=True, text=True, timeout=120)


def test_the_script_prints_a_table_then_json_and_keeps_earlier_rows(tmp_path):
    out = tmp_path / "speed.json"
    for rows in ("kl,ewc", "levenshtein"):
        r = run("--quick", f"--only={rows}", "--rounds=1", f"--result={out}")
        assert r.returncode == 0, r.stderr
    assert set(json.loads(out.read_text())) == {"kl cpu", "ewc cpu", "levenshtein cpu"}        # the first run's rows are kept
    last = json.loads(r.stdout.splitlines()[-1])["levenshtein cpu"]
    assert last["command"].startswith("python bench/speed.py --only=levenshtein") and str(tmp_path) not in last["command"]
    assert last["threads"] == 1 and last["versions"]["torch"] == torch.__version__ and last["device"] == "cpu"
    line = last["lines"][0]
    assert line["what"] in r.stdout and line["times_ours"]["nanoSleep"] == 1
    for name, t in line["seconds"].items():
        low, high = line["range"][name]
        assert 0 < low <= t <= high and line["times_ours"][name] == pytest.approx(t / line["seconds"]["nanoSleep"])


@pytest.mark.parametrize("row", ["train", "sample", "distil", "kl", "levenshtein", "delta", "ewc"])
def test_competitors_compute_the_same(row):
    o = tiny()
    lines = list(speed.ROWS[row](o))
    assert lines or o.absent
    for line in lines:
        assert list(line["seconds"])[0] == "nanoSleep" and min(line["seconds"].values()) > 0
        for name, difference in line.get("differs_by", {}).items():
            assert difference <= (1e-4 if row == "delta" else 2e-5), (row, name)
    if row in ("train", "kl", "levenshtein", "ewc"):                  # these need no peer to have a rival
        assert all(len(line["differs_by"]) >= 1 and len(line["seconds"]) >= 2 for line in lines)


def test_a_missing_peer_is_named_with_how_to_get_it(monkeypatch):
    real, find = race.importlib.import_module, importlib.util.find_spec
    def no(name, *a):
        if name.split(".")[0] in race.PEERS or name in race.PEERS:
            raise ModuleNotFoundError(name)
        return real(name, *a)
    monkeypatch.setattr(race.importlib, "import_module", no)
    monkeypatch.setattr(race.importlib.util, "find_spec", lambda name, *a: None if name in race.PEERS else find(name, *a))
    wanted = {"sample": {"transformers"}, "distil": {"transformers", "trl"}, "levenshtein": {"rapidfuzz", "torchaudio"},
              "delta": {"bench.recurrence", "fla"}, "ewc": {"avalanche"}}
    for row, names in wanted.items():
        o = tiny()
        for line in speed.ROWS[row](o):                              # ours is measured all the same
            assert line["seconds"]["nanoSleep"] > 0
        assert set(o.absent) == names
        assert all(o.absent[n] == race.PEERS[n] for n in names)
    assert all("pip install" in text for name, text in race.PEERS.items() if not name.startswith("bench"))


def test_a_broken_peer_does_not_stop_the_others(monkeypatch, tmp_path):
    (tmp_path / "rapidfuzz.py").write_text("raise OSError('no such library')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [m for m in sys.modules if m.split(".")[0] == "rapidfuzz"]:
        monkeypatch.delitem(sys.modules, name)
    o = tiny()
    assert "Python" in next(speed.row_levenshtein(o))["seconds"]
    assert "no such library" in o.absent["rapidfuzz"]


def test_fisher_is_the_mean_squared_gradient_of_single_samples():
    model, x, y = nn.Linear(3, 2).double(), torch.randn(5, 3).double(), torch.tensor([0, 1, 0, 1, 1])
    p = model(x).softmax(-1)
    residual = p - F.one_hot(y, 2)                                   # d loss / d logits
    assert torch.allclose(speed.fisher(model, x, y, chunk=2)["bias"], residual.square().mean(0))
    by_hand = (residual[:, :, None] * x[:, None]).square().mean(0)
    assert torch.allclose(speed.fisher(model, x, y, chunk=2)["weight"], by_hand)
    assert torch.allclose(race.fisher_of_batches(model, x, y, 5)["bias"], residual.mean(0).square() * 1)


def test_edit_distance_by_hand():
    assert [race.edit_distance(*p) for p in (("kitten", "sitting"), ("", "abc"), ("abc", ""), ("same", "same"))] == [3, 3, 3, 0]


def test_a_grown_life_runs_and_closed_book_memory_grows_by_experts_only():
    lines = list(speed.row_past(tiny()))
    one, two = (line["bytes_kept"] for line in lines)
    assert two["past in context"] > 1.5 * one["past in context"]
    from model import GPT, Config
    model = GPT(Config(vocab_size=40, n_embd=32, n_head=2, head_dim=16, d_ff=64, ranks=(4, 4, 4)))
    old = speed.grow(model, 7)
    assert old.blocks[0].levels[1].n_experts == 7 and len(old.owner) == 56 and old.owner[:, 1].max() == 6
    assert len(generate(old, [[1, 2, 3]], 4, n=3)) == 3 and model.blocks[0].levels[1].n_experts == 0


def test_the_night_wants_a_base(tmp_path):
    o = tiny(base=str(tmp_path / "none.pt"))
    assert list(speed.row_night(o)) == [] and "python sleep.py" in o.absent["night"]


def test_peak_memory_sees_a_large_tensor():
    torch.ones(2 ** 16, 2 ** 8).sum()                                # freed before: no part of it
    peak, result = race.peak_bytes(tiny(), lambda: torch.ones(2 ** 16, 2 ** 8).sum())
    assert result == 2 ** 24 and (peak is None or 0.8 * 2 ** 26 < peak < 1.5 * 2 ** 26)


def test_bfloat16_runs():
    for row in ("train", "sample", "kl"):
        for line in speed.ROWS[row](tiny(dtype=torch.bfloat16)):
            assert min(line["seconds"].values()) > 0


@pytest.mark.parametrize("words, says", [(["--thread=2"], "--threads"), (["--only=kll"], "kl"), (["--rounds=x"], "whole number"),
                                         (["--rounds=0"], "between 1 and"), (["--device=tpu"], "cuda")])
def test_bad_flags_end_with_one_line(words, says, capsys):
    with pytest.raises(SystemExit) as e:
        speed.options(words)
    err = capsys.readouterr().err
    assert e.value.code == 2 and says in err and err.count("\n") == 1
