"""Absorber: LoRA by hand, the loss of Algorithm 1 against an obvious twin, and the real script on a
tiny budget."""
import copy
import json
import os
import random

import pytest
import torch

import sleep
from bench import absorber
from bench import absorption as A
from bench import absorber_tasks as T
from data import flags, text
from model import GPT, Config

BOS = 0


@pytest.fixture
def model():
    m = GPT(Config(vocab_size=41, block_size=64, n_layer=2, n_head=2, head_dim=8, n_embd=16,
                   d_ff=32, ranks=(4,)))
    for block in m.blocks:  # a new model is the identity: let it do something
        torch.nn.init.normal_(block.proj.weight, std=0.3)
        torch.nn.init.normal_(block.levels[-1].down.weight, std=0.3)
    return m.double().requires_grad_(False)


def docs(n=3, parts=2):
    draw = lambda size: torch.randint(1, 41, (size,)).tolist()
    return [{"x": [BOS] + draw(5 + i), "items": [draw(3), draw(2)],
             "ys": [draw(4 + j) for j in range(parts)],
             "says": [[0, 0, 1] + [1] * (1 + j) for j in range(parts)]} for i in range(n)]


def grown(model, n, seed=0):
    """Adapters that do something: B is not zero."""
    adapter = A.lora(model, 3, n, seed)
    for _, _, B in adapter.values():
        B.data.normal_()
    return adapter


def test_a_fresh_adapter_changes_not_one_bit(model):
    ids = torch.randint(41, (6, 9))
    with A.wearing(model, A.lora(model, 3, 3)):
        worn = model(ids)
    assert torch.equal(worn, model(ids))


def test_a_batch_of_adapters_is_each_document_with_its_own_weights(model):
    """The hooks against copies of the model whose matrices were changed by hand, also on top of
    what was absorbed before."""
    ids, adapter = torch.randint(41, (6, 9)), grown(model, 3)
    on_top = A.lora(model, 3, 3, 1, merged=A.merge(adapter))
    for _, _, B in on_top.values():
        B.data.normal_()
    for worn in (adapter, on_top):
        with A.wearing(model, worn):
            got = model(ids)
        for d in range(3):
            twin = copy.deepcopy(model)
            for name, (M, a, b) in worn.items():
                delta = a[d] @ b[d] + (0 if M is None else M[d])
                twin.blocks.get_submodule(name).weight.data += delta.T
            assert torch.allclose(got[2 * d:2 * d + 2], twin(ids[2 * d:2 * d + 2]), atol=1e-10)
    alone = grown(model, 1)
    with A.wearing(model, alone):
        got = model(ids)
    A.settle(model, alone)
    assert torch.allclose(model(ids), got, atol=1e-10)


def test_the_memory_of_a_stream_does_not_grow(model):
    adapter, size = A.lora(model, 3, 2), []
    for s in range(4):
        adapter = A.lora(model, 3, 2, s, merged=A.merge(adapter))
        size.append(sum(t.numel() for parts in adapter.values() for t in parts))
    assert len(set(size)) == 1


def test_targets_and_losses_against_a_loop(model):
    """Row by row, without padding: f_W(XY) at Y against f_W*(<bos> Y)."""
    some, adapter = docs(), grown(model, 3)
    z = A.targets(model, None, some, BOS)
    row = 0
    for i, d in enumerate(some):
        twin = copy.deepcopy(model)
        A.settle(twin, {k: (M, a[i:i + 1], b[i:i + 1]) for k, (M, a, b) in adapter.items()})
        for y, says in zip(d["ys"], d["says"]):
            h = A.states(model, torch.tensor([d["x"] + y]))[:, 0, len(d["x"]):]  # (layers, Y, d)
            g = A.states(twin, torch.tensor([[BOS] + y]))[:, 0, 1:]
            assert torch.allclose(z["states"][:, row, :len(y)], h, atol=1e-10)
            p, q = (model.logits(model.norm(t[-1])).log_softmax(-1) for t in (h, g))
            want = {"hidden": (h - g).abs().mean(), "last layer": (h[-1] - g[-1]).abs().mean(),
                    "logits": sum((p[j].exp() * (p[j] - q[j])).sum()
                                  for j in range(len(y))) / len(y),
                    "labels": -sum(q[j, y[j + 1]] for j in range(len(y) - 1)
                                   if says[j + 1]) / sum(says[1:])}
            for how, value in want.items():
                with A.wearing(model, adapter):
                    got = A.alignment(model, z, how)[row]
                near = 1e-5 if how in ("logits", "labels") else 1e-10
                assert torch.allclose(got.double(), value, atol=near), how
            row += 1


def test_next_token_loss_by_hand(model):
    ids = torch.tensor([[0, 3, 4, 5], [0, 7, 9, 9]])
    p = model(ids).log_softmax(-1)
    got = A.next_token(model, ids, torch.tensor([4, 2]))
    want = torch.stack([-(p[0, 0, 3] + p[0, 1, 4] + p[0, 2, 5]) / 3, -p[1, 0, 7]])
    assert torch.allclose(got.double(), want, atol=1e-5)


@pytest.mark.parametrize("how", A.METHODS)
def test_absorbing_lowers_the_loss_and_leaves_the_model_alone(model, how):
    some, adapter, before = docs(), A.lora(model, 3, 3), copy.deepcopy(model.state_dict())
    taken, ratio = A.absorb(model, some, adapter, how, BOS, steps=20, threshold=0.0, lr=1e-2)
    assert taken.tolist() == [20] * 3 and (ratio < 0.97).all()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_documents_do_not_learn_from_each_other_and_rest_at_the_threshold(model):
    some = docs()
    together, alone = A.lora(model, 3, 3), A.lora(model, 3, 1)
    taken, ratio = A.absorb(model, some, together, "hidden", BOS, steps=60, threshold=0.6, lr=1e-2)
    taken_1, ratio_1 = A.absorb(model, some[1:2], alone, "hidden", BOS, steps=60, threshold=0.6,
                                lr=1e-2)
    assert taken[1] == taken_1[0] < 60 and ratio.max() <= 0.6
    assert torch.allclose(ratio[1], ratio_1[0])
    for name in alone:
        for one, many in zip(alone[name][1:], together[name][1:]):
            assert torch.allclose(one[0], many[1], atol=1e-10)


def test_wrong_ranks_and_methods_are_refused(model):
    for rank in (0, -1, 17):
        with pytest.raises(ValueError, match="choose 1 to 16"):
            A.lora(model, rank)
    with pytest.raises(ValueError, match="unknown method 'nap'"):
        A.absorb(model, docs(), A.lora(model, 3, 3), "nap", BOS)


def test_documents_of_the_tasks():
    rng = random.Random(0)
    d = T.map_document(rng, 24, 8)
    assert len(d["x"]) == 73 and len(d["ys"][0]) == 24
    for w1, w2, label in d["items"] + [d["ys"][0][i:i + 3] for i in range(0, 24, 3)]:
        kind = (w1 - 1) // T.WORDS
        assert kind == (w2 - 1) // T.WORDS
        assert label == 1 + T.CLASSES * T.WORDS + d["labels"][kind]
    s = T.stream_document(rng)
    where = [{s["order"].index((w - 1) // T.WORDS) for w, _, _ in window}
             for window in s["windows"]]
    assert where == [{0, 1, 2}, {1, 2, 3}, {2, 3, 4}, {3, 4, 5}, {4, 5, 6}, {5, 6, 7}, {6, 7}]


def start():
    """(flags, model, data) of a life of one day; the self has random weights."""
    a = flags.parse(["--days=1", "--people=1", "--quizzes=1"])
    data = sleep.DATA["world"](a)
    few = {k: items[:2] for k, items in data.always.items()}
    m = GPT(Config(vocab_size=data.enc.n_vocab, n_layer=1, n_head=1, n_embd=32, d_ff=64,
                   ranks=(4, 4, 4), hears=1)).requires_grad_(False)
    m.metric = torch.eye(32)
    a.command, a.torch_device = "", m.device
    return a, m, data._replace(always=few)


def test_a_night_changes_weights_and_adds_none(monkeypatch):
    a, m, data = start()
    enc, marks = data.enc, data.marks
    before, size = copy.deepcopy(m.state_dict()), m.n_params()
    lines = text.sentences(enc, " Ada Bram lives at 27 Elm Street. Ada Bram loves tea and figs.")
    day = text.Day([lines], [])
    said = (0, (*marks.ask, *enc.encode_ordinary(" Where?"), *marks.answer),
            (*enc.encode_ordinary(" Elm"), marks.end))
    monkeypatch.setattr(A, "NIGHT", {**A.NIGHT, "steps": 3})
    monkeypatch.setattr(A.dream, "write", lambda *args, **kw: [])    # it cannot read yet
    same, log = A.night(a, m, day, marks, 0)
    assert same is m and log["undone"] and log["lost"] == [0]
    assert all(torch.equal(v, before[k]) for k, v in m.state_dict().items())
    monkeypatch.setattr(A.dream, "write", lambda *args, **kw: [said] * 5)
    same, log = A.night(a, m, day, marks, 0)
    changed = {k for k, v in m.state_dict().items() if not torch.equal(v, before[k])}
    assert log["dreamt"] == 5 and m.n_params() == size and changed and same is m
    assert all(k.endswith(("up.weight", "down.weight")) for k in changed)


TINY = ["--quick", "--documents=2", "--steps=2", "--train_steps=2", "--n=3", "--m=2",
        "--longest=128"]


def test_the_bench_in_small_and_not_twice(tmp_path, monkeypatch, capsys):
    words = [*TINY, "--tasks=map,stream,latency", "--out=r.json"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(T, "sizes", lambda *args: [])
    monkeypatch.setattr(T, "LRS", T.LRS[:1])
    absorber.main(words)
    assert "expect about" in capsys.readouterr().out
    data = json.loads((tmp_path / "r.json").read_text())
    assert [x["task"] for x in data["runs"]] == ["map", "stream", "latency"]
    for x in data["runs"]:
        assert x["seed"] == 1 and x["versions"]["torch"] and "commit" in x
        assert x["command"].startswith("python bench/absorber.py --quick")
    for x in data["runs"][:2]:
        assert set(A.METHODS) | {"full", "truncation"} <= set(x["result"])
    assert [row["n"] for row in data["runs"][2]["result"]["rows"]] == [0, 128]
    stamp = os.stat(tmp_path / "r.json").st_mtime_ns
    absorber.main(words)
    assert capsys.readouterr().out.startswith("0 runs")
    assert os.stat(tmp_path / "r.json").st_mtime_ns == stamp


def test_a_tiny_life_of_absorbing_nights(tmp_path, monkeypatch):
    """sleep.live with the nights of Absorber: a self that cannot read asks itself nothing."""
    args, m, data = start()
    args.out_dir = str(tmp_path)
    monkeypatch.setattr(T, "world_base", lambda a, seed: (args, m, data))
    life = T.run_life(None, 1, None)
    assert life["method"] == "absorb" and life["params_after"] == life["params_before"]
    assert "undone" in life["nights"][0] and "reversed" in life["nights"][0]
    assert sleep.NIGHTS.pop("absorb") is A.night


def test_each_stranger_is_asked_as_often_about_their_own_passage():
    data = sleep.DATA["world"](flags.parse(["--days=1"]))
    people = T.strangers(data, random.Random(0))
    assert len(people) >= 40                                         # enough for --people=16
    opened, closed = (T.examined(people[:3], context) for context in (True, False))
    assert len(opened) == len(closed) == 15
    for i, (x, y) in enumerate(zip(opened, closed)):
        assert x.context == people[i // 5][0] and y == x._replace(context="")
        assert x.answer.strip() in x.context


def test_answers_of_a_batch_are_those_of_each_document(model):
    """Items go through the adapter of their own document."""
    enc = type("Enc", (), {"encode_ordinary": lambda self, s: [ord(c) % 30 + 5 for c in s],
                           "decode": lambda self, ids: " ".join(map(str, ids))})()
    data = text.Data("toy", enc, text.Marks((0,), (1,), (2,), 3), 64, None, [], None, {}, "name")
    items = [text.Item("ab" * (i % 2), f"q{i}", "", "k") for i in range(4)]
    adapter, said = grown(model, 2), []
    for i, x in enumerate(items):
        alone = {k: (M, a[i // 2:i // 2 + 1], b[i // 2:i // 2 + 1])
                 for k, (M, a, b) in adapter.items()}
        ids = [0, *enc.encode_ordinary(x.context), 1, *enc.encode_ordinary(x.question), 2]
        with A.wearing(model, alone):
            row = T.generate(model, [ids], 24, temperature=0, stop=[3])[0]
        said.append(enc.decode([t for t in row if t > 3]))
    told = [x._replace(answer=y) for x, y in zip(items, said)]
    assert all(T.asked_of_each(model, data, adapter, told))


@pytest.mark.parametrize("words,says", [
    (["--rank=0"], "--rank=0: must lie between 1 and 64"),
    (["--rnk=8"], "did you mean --rank"), (["rank=8"], "unknown flag"),
    (["--steps=x"], "expected a whole number"),
    (["--seeds=a"], "whole numbers"), (["--tasks=nap"], "choose from map"),
    (["--n"], "needs a value"), (["--threshold=nan"], "must lie between"),
    (["--device=tpu"], "choose one of cpu"),
    (["--n=0"], "--n=0"), (["--m=99"], "between 1 and 10"),
])
def test_bad_flags_get_one_line(words, says, capsys):
    with pytest.raises(SystemExit) as stop:
        absorber.parse(words)
    err = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(err) == 1 and says in err[0]
