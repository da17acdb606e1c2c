"""The rivals of sleep: their mathematics by slow obvious twins, each on a toy, that none sees what
it may not, and that they live the life of sleep.py."""
import ast
import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import seed
import sleep
from bench import baselines as B
from bench import knowledge as K
from data import asking, flags, gate, text
from data import world as W
from data.quizzes import pack
from model import GPT
from tests.small import MARKS, V, little, same_state

ROOT = Path(__file__).resolve().parent.parent
DAY = [[[10, 11, 12, 9], [10, 13, 14, 9]], [[20, 21, 22, 9], [20, 23, 24, 9]]]
PAIRS = [(0, (1, 30, 10, 2), (11, 12, 3)), (0, (1, 31, 10, 2), (13, 14, 3)),
         (1, (1, 30, 20, 2), (21, 22, 3)), (1, (1, 31, 20, 2), (23, 24, 3))]


def toy():
    model = little(n_embd=32, hears=1)
    model.metric = torch.eye(32)
    return model


@pytest.fixture
def asked(monkeypatch):
    """What a self that can read would ask itself: a random one cannot."""
    def ask_itself(model, passages, marks, writer=False):
        day = SimpleNamespace(passages=passages, study=[])
        teacher = seed.hold(model, day, marks)
        z = asking.with_targets(pack(PAIRS, "cpu"), seed.reader(teacher), 1)
        z = z._replace(recalled=torch.zeros(4, dtype=torch.bool))
        return SimpleNamespace(teacher=teacher, dreamt=PAIRS, z=z)
    monkeypatch.setattr(B, "ask_itself", ask_itself)
    monkeypatch.setattr(B, "DREAMS", 8)


def a_night(name, model, memory=None, tokens=300, **knobs):
    night, sees, _ = B.METHODS[name]
    if memory is None:
        stored = {"pretraining": [[0, 5, 6, 1, 7, 2, 8, 3]] * 3}
        memory = stored if name in ("replay", "joint") else {}
    knobs = {**B.DEFAULTS.get(name, {}), **knobs}
    log = night(model, [DAY, DAY] if sees == B.ALL else DAY, MARKS, memory, tokens, **knobs)
    return memory, log


# --------------------------------------------------------------------------------------------------
# The mathematics

def test_fisher_is_the_mean_of_squared_gradients_of_single_samples():
    model = little().double()
    ids, weight = torch.randint(V, (5, 9)), (torch.rand(5, 8) < 0.6).double()
    got = B.fisher(model, ids, weight, chunk=2)
    model.requires_grad_(True)
    params = dict(model.named_parameters())
    want, averaged = ({k: torch.zeros_like(p) for k, p in params.items()} for _ in range(2))
    for row, w in zip(ids, weight):
        lp = F.log_softmax(model(row[None, :-1])[0], -1)
        log_p = sum(w[t] * lp[t, row[t + 1]] for t in range(8))
        grads = torch.autograd.grad(log_p, list(params.values()), allow_unused=True)
        for k, g in zip(params, grads):
            if g is not None:                                        # the norms of empty levels
                want[k] += g.square() / 5
                averaged[k] += g / 5
    for k in params:
        assert torch.allclose(got[k], want[k], rtol=1e-4, atol=1e-7), k
    trap = averaged["wte.weight"].square()                           # averaged, then squared
    assert not torch.allclose(got["wte.weight"], trap)


def test_mahalanobis_is_the_direct_formula():
    x, means, root = (torch.randn(n, 5).double() for n in (7, 4, 9))
    cov = root.T @ root / 9
    inverse = torch.linalg.inv(cov + 0.1 * cov.diagonal().mean() * torch.eye(5).double())
    want = [[(a - m) @ inverse @ (a - m) for m in means] for a in x]
    assert torch.allclose(B.mahalanobis(x, means, cov, shrink=0.1), torch.tensor(want).double())


def test_incas_shared_covariance_is_the_mean_over_classes(asked, monkeypatch):
    seen, plain = [], B.features
    monkeypatch.setattr(B, "features", lambda *a: seen.append(plain(*a)) or seen[-1])
    model, memory = toy(), {}
    for _ in range(2):
        a_night("inca", model, memory)
    want = sum(torch.cov(x.T, correction=0) for x in seen) / len(seen)
    assert len(seen) == len(memory["texts"]) == 4
    assert torch.allclose(memory["cov"], want, atol=1e-6)
    assert torch.allclose(memory["means"], torch.stack([x.mean(0) for x in seen]), atol=1e-6)


def test_inca_reads_the_passage_that_makes_the_question_likeliest(monkeypatch):
    model = toy()
    memory = {"texts": [[0, 10, 11, 9], [0, 20, 21, 9], [0, 5, 6, 9]], "means": torch.randn(3, 32),
              "cov": torch.eye(32)}
    asked, seen = [(1, 30, 20, 2), (1, 31, 10, 2)], []
    monkeypatch.setattr(B, "greedy", lambda m, rows, *a: seen.extend(rows) or [[5, 3]] * len(rows))
    assert B.look_it_up(memory, model, MARKS, asked, margin=0.5) == [([5, 3], None)] * 2

    def log_p(head, q):
        lp = F.log_softmax(model(torch.tensor([[*head, *q]]))[0], -1)
        return sum(lp[len(head) + t - 1, q[t]] for t in range(1, len(q) - 1)).item()
    for q, row in zip(asked, seen):
        scores = {(0,): log_p([0], q) + 0.5, **{tuple(t): log_p(t, q) for t in memory["texts"]}}
        assert row == [*max(scores, key=scores.get), *q]


def test_advantages_of_grpo_by_hand():
    got = B.group_advantage(torch.tensor([1.0, 0, 0, 1, 0.5, 0.5, 0.5, 0.5]), 4)
    sd = (4 * 0.25 / 3) ** 0.5
    want = torch.tensor([0.5, -0.5, -0.5, 0.5, 0, 0, 0, 0]) / (sd + 1e-4)
    assert torch.allclose(got, want)


def test_grpo_has_the_gradient_of_reinforce_with_group_advantages(monkeypatch):
    """At beta 0 and with ratio 1: -1/N sum A/|y| grad log p(y)."""
    base = toy()
    model = copy.deepcopy(base).requires_grad_(True)
    z = pack(PAIRS[::2], "cpu")
    said = [[11, 12, 3], [11, 3], [22, 3], [21, 22, 3]]
    monkeypatch.setattr(B, "generate", lambda *a, **k: said)
    loss, reward = B.grpo_loss(model, base, z, MARKS, group=2, beta=0.0)
    earned = torch.tensor([1, 2 / 3, 2 / 3, 1])
    assert reward.item() == pytest.approx(earned.mean().item())
    want = 0
    for q, y, A in zip([PAIRS[0][1]] * 2 + [PAIRS[2][1]] * 2, said, B.group_advantage(earned, 2)):
        lp = F.log_softmax(model(torch.tensor([[*MARKS.bos, *q, *y]]))[0], -1)
        want = want - A / len(y) / 4 * sum(lp[len(q) + t, y[t]] for t in range(len(y)))
    mine, theirs = (torch.autograd.grad(v, model.wte.weight)[0] for v in (loss, want))
    assert torch.allclose(mine, theirs, atol=1e-6) and mine.abs().max() > 0


def test_weights_of_a_document():
    ids, weight = B.documents([[0, 7, 1, 8, 2, 9, 3, 7], [0, 5]], MARKS, "cpu")
    q, p = B.ASKED, B.READ
    want = torch.tensor([[p, q, q, q, 1.0, 1.0, p], [p, 0, 0, 0, 0, 0, 0]])
    assert ids.shape == (2, 8) and torch.equal(weight, want)


def test_lora_changes_linear_layers_by_low_rank_and_nothing_else():
    base = toy()
    model = copy.deepcopy(base)
    a_night("sft_lora", model, tokens=900)
    assert model.state_dict().keys() == base.state_dict().keys()
    for k, w in model.state_dict().items():
        change = w.double() - base.state_dict()[k].double()
        linear = any(n in k for n in (".qkv.", ".proj.", ".up.", ".down."))
        assert bool(change.numel() and change.abs().max() > 0) == linear, k
        if linear:
            assert torch.linalg.matrix_rank(change, rtol=1e-4) <= 8


# --------------------------------------------------------------------------------------------------
# Every rival, on a toy

@pytest.mark.parametrize("name", B.METHODS)
def test_every_rival_sleeps_two_toy_nights(name, asked):
    """It runs, moves only what it says, leaves a model that can be saved, and keeps text only if
    its label says so."""
    base = toy()
    model = copy.deepcopy(base)
    memory, _ = a_night(name, model)
    memory, log = a_night(name, model, memory)
    assert not any(p.requires_grad for p in model.parameters())
    assert all(torch.isfinite(t).all() for t in model.state_dict().values())
    old, new = base.state_dict(), model.state_dict()
    moved = {k for k in old if old[k].shape != new[k].shape or not torch.equal(old[k], new[k])}
    if name in ("none", "inca"):
        assert not moved
    elif name == "ttt":                                              # only the fast level
        gates = ("things", "reach", "owner")
        assert moved and all("levels.1." in k or k in gates for k in moved)
    else:
        assert any(".down." in k for k in moved) and log["steps"] > 0
    assert bool(K.texts_in(memory)) == (B.METHODS[name][1] in (B.STORED, B.ALL))
    twin = GPT(model.config)
    twin.load_state_dict(new)
    assert same_state(twin, model)


def test_learning_from_quizzes_learns_them(asked):
    model = toy()
    a_night("qa", model, tokens=15_000, lr=1e-2)
    said = gate.greedy(model, [[0, *q] for _, q, _ in PAIRS], MARKS, 4)
    assert [tuple(y) for y in said] == [y for *_, y in PAIRS]


def test_fast_weights_are_awake_at_every_question():
    model = toy()
    a_night("ttt", model, tokens=2000)
    (_, source), = gate.remember(model, MARKS, [(1, 30, 20, 2)], 2)
    assert source == (1, 0)


def test_ewc_and_lwf_hold_on_to_the_old_self(asked):
    def moved(name, weight):
        torch.manual_seed(0)
        base, few = toy(), {"samples": 8} if name == "ewc" else {}
        model = copy.deepcopy(base)
        a_night(name, model, tokens=1500, weight=weight, **few)
        ids = torch.randint(V, (16, 12))
        old, new = (m(ids).log_softmax(-1) for m in (base, model))
        return (old.exp() * (old - new)).sum(-1).mean().item()
    for name, strong in (("ewc", 1e4), ("lwf", 30.0)):
        assert moved(name, strong) < 0.7 * moved(name, 0.0), name


# --------------------------------------------------------------------------------------------------
# Nobody sees what it may not

def test_rivals_import_no_world_and_no_exam():
    tree = ast.parse((ROOT / "bench" / "baselines.py").read_text())
    names = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert not names & {"sleep", "data", "data.world", "data.text", "data.exam", "bench"}, names


def test_blind_refuses_every_leak():
    day, exam, ahead = [[[5, 6, 7], [8, 9]]], [[1, 20, 21, 22]], [[30, 31]]
    K.blind(B.DAY, day, {"fisher": {"w": torch.ones(3)}}, exam, ahead)
    K.blind(B.STORED, day, {"texts": [[1, 2, 30, 32]]}, exam, ahead)
    K.blind(B.ALL, [[[1, 30, 31]]], {"pretraining": [[1, 2]]}, exam, ahead)
    for sees, passages, memory, says in (
            (B.DAY, [[[5, 20, 21, 22]]], {}, "exam"), (B.DAY, [[[5, 30], [31]]], {}, "another day"),
            (B.ALL, day, {"pretraining": [[1, 20, 21, 22]]}, "exam"),
            (B.STORED, day, {"texts": [[5, 30, 31]]}, "another day"),
            (B.DAY, day, {"hidden": [[[1, 2, 3]]]}, "stored"),
            ("nothing", day, {"ids": torch.ones(2, 3).long()}, "stored")):
        with pytest.raises(AssertionError, match=says):
            K.blind(sees, passages, memory, exam, ahead)


@pytest.fixture
def start(tmp_path):
    """A life of two days in the world, of a self with random weights."""
    a = flags.parse(["--days=2", "--people=1", f"--out_dir={tmp_path}"])
    a.command, a.torch_device = "", torch.device("cpu")
    data = sleep.DATA["world"](a)
    data = data._replace(always={k: items[:2] for k, items in data.always.items()})
    model = little(vocab_size=data.enc.n_vocab, block_size=256)
    model.metric = torch.eye(16)
    return a, model, data


def test_a_rival_lives_the_life_of_sleep_py(start):
    r = K.life("sft", *start, {"lr": 1e-3}, 100, singles=1)
    assert r["method"] == "sft" and r["seed"] == 1 and r["lr"] == 1e-3 and len(r["R"]) == 2
    assert all(n["trained"] >= 100 and n["cpu"] >= 0 and n["ahead"] == 0 for n in r["nights"])
    assert r["stored_tokens"] == r["stored_numbers"] == 0 and "recall" in r["single"][0]
    assert {"ACC", "BWT", "old", "reading", "reversed", "sees", "kinds"} <= set(r)
    again = K.life("sft", *start, {"lr": 1e-3}, 100)
    assert again["nights"][1]["loss"] == r["nights"][1]["loss"]
    assert "sft" in sleep.NIGHTS and sleep.NIGHTS["sft"] is sleep.fine_tune    # as it was


def test_joint_training_sleeps_once(start, asked, monkeypatch):
    seen = []
    monkeypatch.setitem(B.METHODS, "joint", (lambda *a: seen.append(len(a[1])) or {}, B.ALL, {}))
    r = K.life("joint", *start, {}, 100, singles=1)
    assert seen == [2] and r["R"][0] == [None, None] and r["BWT"] is r["recall"] is None
    assert r["stored_tokens"] > 0 and len(r["nights"]) == 1 and "single" not in r


def test_a_restless_rival_keeps_its_day(start, monkeypatch):
    def restless(model, passages, marks, memory, tokens):
        model.wte.weight.data.zero_()
        raise seed.RestlessNight("nothing asked")
    monkeypatch.setitem(B.METHODS, "qa", (restless, B.DAY, {}))
    a, model, data = start
    r = K.life("qa", a, model, data, {}, 100)
    assert [n["undone"] for n in r["nights"]] == ["nothing asked"] * 2
    assert len(r["nights"][1]["lost"]) > len(data.days[1].passages) - 1


def test_a_life_calls_blind_before_every_night(start, monkeypatch):
    def keeps(model, passages, marks, memory, tokens):
        memory.update(kept=passages)
        return {}
    monkeypatch.setitem(B.METHODS, "sft", (keeps, B.DAY, {}))
    with pytest.raises(AssertionError, match="stored"):
        K.life("sft", *start, {}, 100)
    a, model, data = start
    question = data.exams(0, 1)[0].question
    leak = data.days[0]._replace(passages=[*data.days[0].passages, question])
    monkeypatch.setitem(B.METHODS, "sft", (lambda *a: {}, B.DAY, {}))
    with pytest.raises(AssertionError, match="exam"):
        K.life("sft", a, model, data._replace(days=[leak, data.days[1]]), {}, 100)


def test_single_passages_are_asked_about_themselves():
    passage = " Ada Bolmen lives at 3 Elm Road. Ada Bolmen loves tea and figs."
    def item(question, answer):
        return text.Item("", question, answer, "met")
    assert K.about(item(" Where does Ada Bolmen live?", " 3 Elm Road"), passage)
    assert not K.about(item(" Where does Ada Bolmen live?", " 4 Elm Road"), passage)
    assert not K.about(item(" Where does Ben Bolmen live?", " 3 Elm Road"), passage)


def test_the_search_uses_the_validation_world_alone_and_takes_the_best(monkeypatch):
    """First the learning rate at the default weight, then the weight at the best of them; a
    finished try is not made again."""
    tries, goods, seeds = [], {"ewc": 1e-2, "qa": 1e-3}, []

    def fake(name, a, base, data, knobs, tokens):
        tries.append((name, dict(knobs), tokens))
        score = (knobs["lr"] == goods[name]) + 0.1 * (knobs.get("weight") == 30.0)
        return {"ACC": score, "recall": 0.0, "old": 0.0, "reading": 0.0, "nights": [{"cpu": 1.0}]}
    monkeypatch.setattr(K, "life", fake)
    monkeypatch.setattr(K, "base_of", lambda o, number, n: seeds.append(number) or (0, 0, 0))
    o, file = K.parse(["--methods=qa,ewc,joint,none"]), {"search": [], "longer": []}
    K.search(o, file, lambda: None)
    assert seeds == [K.VALIDATION] and [t[0] for t in tries] == 3 * ["qa"] + 6 * ["ewc"]
    weights = [t[1].get("weight") for t in tries[3:]]
    assert weights == [3.0, 3.0, 3.0, 0.3, 30.0, 30.0]
    assert [t[1]["lr"] for t in tries] == 2 * [1e-3, 3e-3, 1e-2] + 3 * [1e-2]
    assert tries[-1][2] == 175_000 and len(file["longer"]) == 1      # the best of ewc once more
    assert K.best(file, "qa") == {"lr": 1e-3} and K.best(file, "ewc") == {"lr": 1e-2, "weight": 30}
    K.search(o, file, lambda: None)
    assert len(tries) == 9


# --------------------------------------------------------------------------------------------------
# The script

def test_the_script_goes_on_and_refuses_other_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(K, "SMALL", ["--n_layer=1", "--n_embd=32", "--pretrain_steps=2",
                                     "--people=1"])
    load = W.load
    def few(a):
        data = load(a)
        return data._replace(always={k: items[:2] for k, items in data.always.items()})
    monkeypatch.setitem(sleep.DATA, "world", few)
    monkeypatch.setattr(gate, "learn_to_listen", deaf)
    words = ["--quick", f"--work={tmp_path}", "--tokens=100", "--nights=1"]
    K.main([*words, "--methods=ttt"])
    first = stored(tmp_path)["runs"]
    K.main([*words, "--methods=ttt,none"])
    file = stored(tmp_path)
    assert file["runs"][:1] == first and [r["method"] for r in file["runs"]] == ["ttt", "none"]
    assert {"command", "commit", "date", "versions", "tokens", "search"} <= set(file)
    assert str(tmp_path) not in file["command"] and "commit" in file["runs"][0]
    ttt, none = (r["nights"][0] for r in file["runs"])
    assert ttt["trained"] >= 100 > none["trained"] == 0
    assert file["runs"][0]["parameters"] > file["runs"][1]["parameters"]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        K.main([*words, "--tokens=9"])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "other settings" in said[0]


def deaf(model, marks, heard_already=None, directions=0):
    model.metric = torch.eye(model.config.n_embd)


def stored(folder):
    return K.stats.read(str(folder / "quick.json"))


@pytest.mark.parametrize("words, says", [
    (["--seed=1"], "did you mean --seeds="), (["--methods=sfr"], "did you mean sft"),
    (["--nights=x"], "whole number"), (["--seeds=1,b"], "whole numbers"),
    (["--seeds=101"], "validation"), (["--tokens=0"], "between 1 and")])
def test_bad_flags_get_one_line(words, says, capsys):
    with pytest.raises(SystemExit) as stop:
        K.parse(words)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and says in err and err.count("\n") == 1


def test_a_rival_asks_itself_as_the_night_does():
    """Nothing is replaced here: the real first half of a night, in the world of glyphs."""
    from tests import glyphs
    torch.manual_seed(0)
    passages = glyphs.day(glyphs.make().new[:2]).passages
    asked = B.ask_itself(glyphs.shared_base(), passages, glyphs.MARKS)
    assert len(asked.z.ids) and asked.dreamt and asked.z.target is not None
    assert int(asked.z.passage.max()) < len(asked.teacher.home)
