"""The rivals of sleep: their mathematics by slow obvious twins, each on a toy, and that none sees what it may not."""
import ast
import copy
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import seed
import sleep
from bench import baselines as B
from bench import knowledge as K
from bench.stats import interval
from data import world as W
from model import GPT, Config
from tests import glyphs as G

ROOT = Path(__file__).resolve().parent.parent


def little(vocab=40, **kw):
    model = GPT(Config(vocab_size=vocab, n_layer=2, n_head=2, head_dim=8, n_embd=16, d_ff=32, ranks=(4, 4, 4), **kw))
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.3)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def toy():
    """A world without English and a base that can read it: some seconds, shared by all tests of this file."""
    world = G.make()
    return world, G.base(world, steps=200)


def a_night(name, toy, tokens=300, model=None, memory=None, things=None, **knobs):
    """One night of a method in the toy world. Returns (model, memory, log)."""
    world, base = toy
    model = copy.deepcopy(base) if model is None else model
    day = G.passages(world.new if things is None else things, random)
    night, sees, _ = B.METHODS[name]
    if memory is None:
        stored = [G.document(world.old, world.names, random)[0] for _ in range(8)]
        memory = {"pretraining": stored} if name in ("replay", "joint") else {}
    log = night(model, [day] if sees == B.ALL else day, G.MARKS, memory, tokens, **{**B.DEFAULTS.get(name, {}), **knobs})
    return model, memory, log


# ----------------------------------------------------------------------------------------------------------------------
# The mathematics

def test_fisher_is_the_mean_of_squared_gradients_of_single_samples():
    model = little().double()
    ids, weight = torch.randint(40, (5, 9)), (torch.rand(5, 8) < 0.6).double()
    got = B.fisher(model, ids, weight, chunk=2)
    model.requires_grad_(True)
    params = dict(model.named_parameters())
    want, mean_grad = {k: 0 for k in params}, {k: 0 for k in params}
    for row, w in zip(ids, weight):
        lp = F.log_softmax(model(row[None, :-1])[0], -1)
        log_p = sum(w[t] * lp[t, row[t + 1]] for t in range(8))
        for k, g in zip(params, torch.autograd.grad(log_p, list(params.values()), allow_unused=True)):
            if g is not None:                                        # the norms of empty levels
                want[k], mean_grad[k] = want[k] + g.square() / 5, mean_grad[k] + g / 5
    for k in params:
        assert torch.allclose(got[k], torch.as_tensor(want[k]).to(got[k]), rtol=1e-4, atol=1e-7), k
    assert not torch.allclose(got["wte.weight"], mean_grad["wte.weight"].square())       # the trap: averaged, then squared


def test_mahalanobis_is_the_direct_formula():
    x, means, root = torch.randn(7, 5).double(), torch.randn(4, 5).double(), torch.randn(9, 5).double()
    cov = root.T @ root / 9
    inverse = torch.linalg.inv(cov + 0.1 * cov.diagonal().mean() * torch.eye(5).double())
    want = [[(x[i] - means[k]) @ inverse @ (x[i] - means[k]) for k in range(4)] for i in range(7)]
    assert torch.allclose(B.mahalanobis(x, means, cov, shrink=0.1), torch.tensor(want).double(), atol=1e-9)


def test_incas_shared_covariance_is_the_mean_over_classes(toy, monkeypatch):
    seen, plain = [], B.features
    monkeypatch.setattr(B, "features", lambda *a: seen.append(plain(*a)) or seen[-1])
    world, base = toy
    _, memory, _ = a_night("inca", toy, things=world.new[:2])
    a_night("inca", toy, memory=memory, things=world.new[2:])
    want = sum(torch.cov(x.T, correction=0) for x in seen) / len(seen)
    assert len(seen) == len(memory["texts"]) == 4 and torch.allclose(memory["cov"], want, atol=1e-6)
    assert torch.allclose(memory["means"], torch.stack([x.mean(0) for x in seen]), atol=1e-6)


def test_advantages_of_grpo_by_hand():
    got = B.group_advantage(torch.tensor([1.0, 0, 0, 1, 0.5, 0.5, 0.5, 0.5]), 4)
    sd = (4 * 0.25 / 3) ** 0.5
    assert torch.allclose(got, torch.tensor([0.5, -0.5, -0.5, 0.5, 0, 0, 0, 0]) / (sd + 1e-4))


def test_grpo_has_the_gradient_of_reinforce_with_group_advantages(toy, monkeypatch):
    """At beta 0 and with ratio 1: -1/N sum A/|y| grad log p(y)."""
    world, base = toy
    model = copy.deepcopy(base).requires_grad_(True)
    z = seed.pack([(0, (0, 185, 12, 55, 2), (95, 110, 1)), (1, (0, 186, 13, 56, 2), (96, 111, 1))], "cpu")
    said = [[95, 110, 1], [95, 1], [96, 1], [96, 111, 1]]
    monkeypatch.setattr(B, "generate", lambda *a, **k: said)
    loss, reward = B.grpo_loss(model, base, z, torch.arange(2), G.MARKS, group=2, beta=0.0)
    assert reward.item() == pytest.approx((1 + 2 / 3 + 2 / 3 + 1) / 4)
    advantage, want = B.group_advantage(torch.tensor([1, 2 / 3, 2 / 3, 1]), 2), 0
    for (p, q, _), y, A in zip([seed.unpack(z)[0]] * 2 + [seed.unpack(z)[1]] * 2, said, advantage):
        lp = F.log_softmax(model(torch.tensor([[G.MARKS.bos, *q, *y]]))[0], -1)
        want = want - A / len(y) / 4 * sum(lp[len(q) + t, y[t]] for t in range(len(y)))
    mine, theirs = (torch.autograd.grad(v, model.wte.weight)[0] for v in (loss, want))
    assert torch.allclose(mine, theirs, atol=1e-6) and mine.abs().max() > 0


def test_lora_changes_linear_layers_by_low_rank_and_nothing_else(toy):
    _, base = toy
    model, _, _ = a_night("sft_lora", toy, tokens=900)
    assert model.state_dict().keys() == base.state_dict().keys()
    for k, w in model.state_dict().items():
        change = w - base.state_dict()[k]
        linear = any(n in k for n in (".qkv.", ".proj.", ".up.", ".down."))
        assert bool(change.abs().max() > 0 if change.numel() else False) == linear, k
        if linear:
            assert torch.linalg.matrix_rank(change, rtol=1e-4) <= 8


def test_metrics_of_hand_made_lives():
    R = [[1.0, None, None], [0.5, 0.8, None], [0.75, 0.9, 1.0]]
    m = K.metrics(R, before=[0.1, 0.2, 0.0], ahead=[None, 0.5, 0.1])
    assert m["ACC"] == pytest.approx((0.75 + 0.9 + 1.0) / 3) and m["recall"] == pytest.approx((1.0 + 0.8 + 1.0) / 3)
    assert m["BWT"] == pytest.approx(((0.75 - 1.0) + (0.9 - 0.8)) / 2)
    assert m["forgetting"] == pytest.approx(((1.0 - 0.75) + (0.8 - 0.9)) / 2)            # max over l < T: it may be negative
    assert m["FWT"] == pytest.approx(((0.5 - 0.2) + (0.1 - 0.0)) / 2)
    joint = K.metrics([[None, None], [0.6, 0.8]])
    assert joint["ACC"] == pytest.approx(0.7) and joint["BWT"] is joint["recall"] is joint["forgetting"] is joint["FWT"] is None
    assert K.metrics([[0.4]])["ACC"] == 0.4


def test_confidence_interval_by_hand():
    middle, half = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert middle == 3 and half == pytest.approx(2.776 * (2.5 / 5) ** 0.5)


# ----------------------------------------------------------------------------------------------------------------------
# Every baseline, on a toy

@pytest.mark.parametrize("name", B.METHODS)
def test_every_baseline_sleeps_two_toy_nights(name, toy, monkeypatch):
    """It runs, moves only what it says, leaves a model that can be saved, and keeps text only if its label says so."""
    monkeypatch.setattr(B, "DREAMS", 24)
    world, base = toy
    model, memory, _ = a_night(name, toy, things=world.new[:2])
    model, memory, log = a_night(name, toy, model=model, memory=memory, things=world.new[2:])
    assert not any(p.requires_grad for p in model.parameters())
    assert all(torch.isfinite(t).all() for t in model.state_dict().values())
    assert "loss" not in log or torch.isfinite(torch.tensor(log["loss"]))
    old = base.state_dict()
    moved = {k for k, t in model.state_dict().items() if k in old and (t.shape != old[k].shape or not torch.equal(t, old[k]))}
    if name in ("none", "inca"):
        assert not moved
    elif name == "ttt":
        assert moved and all("levels.1." in k or k in ("keys", "bias", "owner") for k in moved)   # only the fast level
    else:
        assert any(".down." in k for k in moved)
    sees = B.METHODS[name][1]
    assert bool(K.texts_in(memory)) == (sees in (B.STORED, B.ALL))
    twin = GPT(model.config)
    twin.load_state_dict(model.state_dict())
    ids = torch.tensor([[G.MARKS.bos, 12, 55, 190]])
    assert torch.equal(twin(ids), model(ids))


def test_learning_from_quizzes_learns_and_text_does_not_answer(toy):
    world, base = toy
    before = G.recall(base, world.new)
    model, _, _ = a_night("qa", toy, tokens=20_000, lr=3e-3)
    assert G.recall(model, world.new) > before + 0.3
    inca, memory, _ = a_night("inca", toy)
    prompts = [[G.MARKS.bos, *G.quiz(t, k, random)[0]] for t in world.new for k in range(G.PROPERTIES)]
    answers = [list(t[1][k]) for t in world.new for k in range(G.PROPERTIES)]
    wanted = [[G.VALUE + 30 * k + v[0], G.VALUE + 30 * k + 15 + v[1], G.MARKS.end]
              for v, k in zip(answers, [*range(G.PROPERTIES)] * len(world.new))]
    read = [a == w for a, w in zip(B.inca_answer(inca, prompts, G.MARKS, memory), wanted)]
    assert sum(read) / len(read) > before + 0.3                                            # retrieved, then read


def test_ewc_and_lwf_hold_on_to_the_old_self(toy):
    world, base = toy

    def moved(name, weight):
        torch.manual_seed(0), random.seed(0)
        model, _, _ = a_night(name, toy, tokens=4000, weight=weight, **({"samples": 16} if name == "ewc" else {}))
        asked = [[G.MARKS.bos, *G.sentence(t, k), *G.quiz(t, k, random.Random(0))[0]] for t in world.old for k in (0, 1)]
        ids = torch.tensor(asked)
        old, new = (m(ids).log_softmax(-1) for m in (base, model))
        return (old.exp() * (old - new)).sum(-1).mean().item()
    for name, strong in (("ewc", 1e4), ("lwf", 30.0)):
        assert moved(name, strong) < 0.7 * moved(name, 0.0), name


# ----------------------------------------------------------------------------------------------------------------------
# Nobody sees what it may not

def test_baselines_import_no_data_and_no_exam():
    tree = ast.parse((ROOT / "bench" / "baselines.py").read_text())
    names = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert not any(n.split(".")[0] in ("data", "sleep", "bench") for n in names), names


def test_blind_refuses_every_leak():
    day, exam, other = [[[5, 6, 7], [8, 9]]], [[20, 21, 22]], [[30, 31]]
    K.blind(B.DAY, day, {"fisher": {"w": torch.ones(3)}}, exam, other)
    K.blind(B.STORED, day, {"texts": [[1, 2, 30, 31]]}, exam, other)
    K.blind(B.ALL, [[[1, 30, 31]]], {"pretraining": [[1, 2]]}, exam, other)
    for sees, d, memory, says in ((B.DAY, [[[5, 20, 21, 22]]], {}, "exam"), (B.DAY, [[[5, 30], [31]]], {}, "another day"),
                                  (B.ALL, day, {"pretraining": [[20, 21, 22]]}, "exam"),
                                  (B.STORED, [[[5, 30, 31]]], {}, "another day"),
                                  (B.DAY, day, {"hidden": [[[1, 2, 3]]]}, "stored"),
                                  ("nothing", day, {"ids": torch.ones(2, 3).long()}, "stored")):
        with pytest.raises(AssertionError, match=says):
            K.blind(sees, d, memory, exam, other)


def tiny_life(name, world, model, days=2, **kw):
    enc = W.load_tokenizer()
    marks = seed.Marks(*(enc.encode_single_token(s) for s in sleep.SPECIAL))
    return K.life(name, K.beginning(sleep.parse([]), model, world, enc, marks, days), {"lr": 1e-3}, 100, **kw)


def tiny_world():
    world = W.make_world(3, n_days=2, n_people=1)
    world["old"] = world["old"][:2]
    return world


def test_a_night_depends_on_no_exam_and_on_no_other_day(monkeypatch):
    """Change the exam's wordings and answers, and all that happens on day 2: night 1 learns the same, bit by bit."""
    monkeypatch.setattr(W, "stranger", lambda world, rng, s=W.stranger: s(world, random.Random(0)))
    model, world = little(W.VOCAB + 4), tiny_world()
    first = tiny_life("sft", world, model)
    for relation in list(W.RELATIONS):
        other = W.RELATIONS[relation]._replace(exam=["Tell {n}?"], reverse_exam=["Say {v}?"])
        monkeypatch.setitem(W.RELATIONS, relation, other)
    world["days"][1] = [{**world["days"][1][0], "name": "Ada Bolmen", "lives": "3 Elm Road"}]
    second = tiny_life("sft", world, model)
    assert first["nights"][0]["loss"] == second["nights"][0]["loss"]
    assert first["nights"][1]["loss"] != second["nights"][1]["loss"]                       # else the test could not fail


def test_a_life_calls_blind_before_every_night(monkeypatch):
    monkeypatch.setitem(B.METHODS, "sft", (lambda model, day, marks, memory, tokens, lr: memory.update(kept=day), B.DAY, {}))
    with pytest.raises(AssertionError, match="stored"):
        tiny_life("sft", tiny_world(), little(W.VOCAB + 4))
    monkeypatch.setitem(B.METHODS, "sft", (lambda *a, lr: {}, B.DAY, {}))
    leak = lambda p, rng, passage=W.passage: (passage(p, rng)[0] + " What day was Ada Bolmen born?", [])
    monkeypatch.setattr(W, "passage", leak)
    world = tiny_world()
    world["days"][1][0]["name"] = "Ada Bolmen"
    monkeypatch.setitem(W.RELATIONS, "born", W.RELATIONS["born"]._replace(exam=["What day was {n} born?"]))
    with pytest.raises(AssertionError, match="exam"):
        tiny_life("sft", world, little(W.VOCAB + 4))


def test_the_score_is_the_exam_of_sleep(toy):
    enc = W.load_tokenizer()
    marks = seed.Marks(*(enc.encode_single_token(s) for s in sleep.SPECIAL))
    model, world = little(W.VOCAB + 4), tiny_world()
    items = [(c, q, " " + a) for (c, q, _), a in zip(W.exam(world["old"], random), ["x"] * 10)]
    items = [(c, q, a) for (c, q, _), a in zip(items, sleep.answer(model, enc, marks, items[:4]) + ["x"] * 6)]
    want = sleep.exam(model, enc, marks, items)
    assert want >= 0.4 and K.score(lambda p: B.plain_answer(model, p, marks, {}), enc, marks, items) == want


def test_the_search_uses_the_validation_world_alone_and_takes_the_best(monkeypatch):
    """First the learning rate at the default weight, then the weight at the best of them; a finished try is not made again."""
    tries, goods = [], {"ewc": ("lr", 1e-2), "qa": ("lr", 1e-3)}

    def fake(name, start, knobs, tokens):
        tries.append((name, dict(knobs), tokens))
        good = knobs["lr"] == goods[name][1]
        score = {"ACC": good + 0.1 * (knobs.get("weight") == 30.0), "recall": 0.0, "old": 0.0, "reading": 0.0}
        return {**score, "seconds": {"cpu": 0.0}}
    monkeypatch.setattr(K, "life", fake)
    monkeypatch.setattr(K, "beginning", lambda a, base, world, *rest: world)
    seeds = []
    monkeypatch.setattr(K, "base_of", lambda o, number, *rest: seeds.append(number) or (None, None))
    o, file = K.parse(["--methods=qa,ewc,joint,none"]), {"search": [], "longer": []}
    K.search(o, file, None, None, lambda: None)
    assert seeds == [K.VALIDATION] and K.VALIDATION not in o.seeds
    assert [t[1].get("weight", t[1]["lr"]) for t in tries] == [1e-3, 3e-3, 1e-2, 3.0, 3.0, 3.0, 0.3, 30.0, 30.0]
    assert [t[1]["lr"] for t in tries] == 2 * [1e-3, 3e-3, 1e-2] + 3 * [1e-2]
    assert tries[-1][2] == 175_000 and len(file["longer"]) == 1      # the best of ewc once more, with longer nights
    assert K.best(file, "qa") == {"lr": 1e-3} and K.best(file, "ewc") == {"lr": 1e-2, "weight": 30.0}
    K.search(o, file, None, None, lambda: None)
    assert len(tries) == 9


# ----------------------------------------------------------------------------------------------------------------------
# The real script

def test_the_script_resumes_and_prints_its_tables(tmp_path, capsys):
    result = tmp_path / "r.json"
    words = [f"--work={tmp_path}", f"--result={result}", "--seeds=1", "--nights=1", "--tokens=100", "--singles=1", "--search=0",
             "--pretrain_steps=2"]
    r = subprocess.run([sys.executable, str(ROOT / "bench" / "knowledge.py"), *words, "--methods=ttt"], capture_output=True,
                       text=True, timeout=120)
    assert r.returncode == 0 and "0 lives are done" in r.stdout and "| ttt | the day |" in r.stdout, r.stderr
    first = json.loads(result.read_text())["runs"]
    K.main([*words, "--methods=ttt,none"])
    runs = json.loads(result.read_text())["runs"]
    assert runs[:1] == first and [x["method"] for x in runs] == ["ttt", "none"] and "1 lives are done" in capsys.readouterr().out
    ttt, none = (x["nights"][0] for x in runs)
    assert ttt["trained"] >= 100 > none["trained"] and ttt["params"] > none["params"]
    with pytest.raises(SystemExit):
        K.main([*words, "--tokens=9"])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "other settings" in said[0]


@pytest.mark.parametrize("words, says", [
    (["--seed=1"], "did you mean --seeds="), (["--methods=sfr"], "did you mean sft"), (["--nights=x"], "whole number"),
    (["--seeds=1,b"], "whole numbers"), (["--seeds=101"], "validation"), (["--tokens=0"], "between 1 and")])
def test_bad_flags_get_one_line(words, says, capsys):
    with pytest.raises(SystemExit) as stop:
        K.parse(words)
    assert stop.value.code == 2 and says in capsys.readouterr().err
