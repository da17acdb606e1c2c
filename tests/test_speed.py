"""bench/speed.py at tiny sizes: it runs, its JSON holds what the table shows, competitors compute
the same thing, and a peer that is missing is named with how to get it."""
import importlib.util
import json
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from bench import race, speed
from bench.baselines import squared_gradients
from data import gate
from data.engine import generate
from model import FAST
from tests.small import MARKS, little


def tiny(**more):
    defaults = {k: v for k, (v, *_) in speed.FLAGS.items()}
    small = {"quick": True, "rounds": 1, "dtype": torch.float32, "absent": {}}
    return SimpleNamespace(**{**defaults, **small, **more})


def test_the_script_prints_a_table_then_json_and_keeps_earlier_rows(tmp_path, capsys):
    out = tmp_path / "speed.json"
    for rows in ("kl,ewc", "levenshtein"):
        speed.main(["--quick", f"--only={rows}", "--rounds=1", f"--result={out}"])
    kept = {"kl cpu", "ewc cpu", "levenshtein cpu"}                  # the first run's rows, too
    assert set(json.loads(out.read_text())) == kept
    printed = capsys.readouterr().out
    last = json.loads(printed.splitlines()[-1])["levenshtein cpu"]
    assert last["command"].startswith("python bench/speed.py --only=levenshtein")
    assert str(tmp_path) not in last["command"] and {"commit", "date"} <= set(last)
    assert last["threads"] == 1 and last["device"] == "cpu"
    assert last["versions"]["torch"] == torch.__version__
    line = last["lines"][0]
    assert line["what"] in printed and line["times_ours"]["nanoSleep"] == 1
    for name, t in line["seconds"].items():
        low, high = line["range"][name]
        assert 0 < low <= t <= high
        assert line["times_ours"][name] == pytest.approx(t / line["seconds"]["nanoSleep"])


@pytest.mark.parametrize("row", ["train", "sample", "distil", "kl", "levenshtein", "delta", "ewc"])
def test_competitors_compute_the_same(row):
    o = tiny()
    lines = list(speed.ROWS[row](o))
    assert lines or o.absent
    for line in lines:
        assert list(line["seconds"])[0] == "nanoSleep" and min(line["seconds"].values()) > 0
        for name, difference in line.get("differs_by", {}).items():
            assert difference <= (1e-4 if row == "delta" else 2e-5), (row, name)
    if row in ("train", "kl", "levenshtein", "ewc"):         # these need no peer to have a rival
        assert all(line["differs_by"] and len(line["seconds"]) >= 2 for line in lines)


def test_muon_takes_the_step_of_torch_but_for_its_rounding():
    line, = speed.row_muon(tiny())
    assert list(line["seconds"]) == ["nanoSleep", "torch.optim.Muon"]
    assert 0 < line["differs_by"]["torch.optim.Muon"] < 0.05            # bfloat16 has 8 bits


def test_a_missing_peer_is_named_with_how_to_get_it(monkeypatch):
    real, find = race.importlib.import_module, importlib.util.find_spec

    def no(name, *a):
        if name.split(".")[0] in race.PEERS or name in race.PEERS:
            raise ModuleNotFoundError(name)
        return real(name, *a)

    def none(name, *a):
        return None if name in race.PEERS else find(name, *a)
    monkeypatch.setattr(race.importlib, "import_module", no)
    monkeypatch.setattr(race.importlib.util, "find_spec", none)
    wanted = {"sample": {"transformers"}, "distil": {"transformers", "trl"},
              "levenshtein": {"rapidfuzz", "torchaudio"}, "delta": {"bench.recurrence", "fla"},
              "ewc": {"avalanche"}}
    for row, names in wanted.items():
        o = tiny()
        for line in speed.ROWS[row](o):                      # ours is measured all the same
            assert line["seconds"]["nanoSleep"] > 0
        assert set(o.absent) == names
        assert all(o.absent[n] == race.PEERS[n] for n in names)
    assert all("pip install" in how for name, how in race.PEERS.items() if name[:5] != "bench")


def test_a_broken_peer_does_not_stop_the_others(monkeypatch, tmp_path):
    (tmp_path / "rapidfuzz.py").write_text("raise OSError('no such library')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [m for m in sys.modules if m.split(".")[0] == "rapidfuzz"]:
        monkeypatch.delitem(sys.modules, name)
    o = tiny()
    assert "Python" in next(speed.row_levenshtein(o))["seconds"]
    assert "no such library" in o.absent["rapidfuzz"]


def test_fisher_is_the_mean_squared_gradient_of_single_samples():
    model, x = nn.Linear(3, 2).double(), torch.randn(5, 3).double()
    y = torch.tensor([0, 1, 0, 1, 1])

    def log_p(net, x, y):
        return -F.cross_entropy(net(x[None]), y[None])
    residual = model(x).softmax(-1) - F.one_hot(y, 2)                # d loss / d logits
    got = squared_gradients(model, log_p, (x, y), chunk=2)
    assert torch.allclose(got["bias"], residual.square().mean(0))
    by_hand = (residual[:, :, None] * x[:, None]).square().mean(0)
    assert torch.allclose(got["weight"], by_hand)
    averaged = race.fisher_of_batches(model, x, y, 5)["bias"]
    assert torch.allclose(averaged, residual.mean(0).square())


def test_edit_distance_by_hand():
    pairs = (("kitten", "sitting"), ("", "abc"), ("abc", ""), ("same", "same"))
    assert [race.edit_distance(*p) for p in pairs] == [3, 3, 3, 0]


def test_an_answer_behind_a_cache_is_the_answer_behind_the_text():
    model = little()
    past, asked = torch.randint(4, 40, (30,)).tolist(), [1, 7, 2]
    cache = speed.read(model, past)
    want = generate(model, [[*past, *asked]], 1, temperature=0)[0]
    for _ in range(2):                                       # the cache is left as it was
        assert speed.continued(model, cache, asked, 1) == want


def test_closed_book_memory_grows_by_experts_only():
    one, two = (line["bytes_kept"] for line in speed.row_past(tiny()))
    assert two["past in context"] > 1.3 * one["past in context"]
    model = little()
    old = speed.grow(model, 7)
    assert old.n_experts(FAST) == 7 and len(old.owner) == 56 and old.owner[:, 1].max() == 6
    assert model.n_experts(FAST) == 0 and len(generate(old, [[1, 2, 3]], 4, n=3)) == 3
    again = speed.grow(old, 3)                               # only the last night's are near
    assert torch.equal(again.things[-8:], old.things[:8]) and again.things[:8].min() > 100
    assert len(gate.remember(again, MARKS, [[1, 9, 2]], 2)) == 1


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


@pytest.mark.parametrize("words, says", [
    (["--thread=2"], "--threads"), (["--only=kll"], "kl"), (["--rounds=x"], "whole number"),
    (["--rounds=0"], "between 1 and"), (["--device=tpu"], "cuda")])
def test_bad_flags_end_with_one_line(words, says, capsys):
    with pytest.raises(SystemExit) as e:
        speed.options(words)
    err = capsys.readouterr().err
    assert e.value.code == 2 and says in err and err.count("\n") == 1
