"""Knowledge Seeding: the equations against values worked out by hand, and against finite differences."""
import math
import random

import pytest
import torch

import seed
from model import GPT, Config, clone, prefill
from seed import Marks

MARKS = Marks(bos=0, ask=1, answer=2, end=3)


def little(vocab=40, seed_=0):
    torch.manual_seed(seed_)
    model = GPT(Config(vocab_size=vocab, block_size=48, n_layer=2, n_head=2, head_dim=8, n_embd=16, d_ff=32, ranks=(4, 4, 4)))
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.3)
    return model.requires_grad_(False)


def test_split_questions_takes_only_well_formed_pairs():
    row = [1, 9, 8, 2, 7, 3, 1, 2, 7, 3, 1, 9, 2, 3, 5, 2, 7, 3, 1, 9, 1, 8, 2, 6, 3, 1, 9]
    assert seed.split_questions([row], MARKS) == [[([1, 9, 8, 2], [7, 3]), ([1, 8, 2], [6, 3])]]


def test_pack_marks_exactly_the_questions_and_the_answers():
    z = seed.pack([(0, (1, 9, 8, 2), (7, 3)), (1, (1, 9, 2), (6, 5, 3))], "cpu")
    assert z["ids"].tolist() == [[1, 9, 8, 2, 7, 3], [1, 9, 2, 6, 5, 3]]
    # over ids[:, 1:]: the given <ask> is no question token, padding and prompt are no answer tokens
    assert z["asks"].long().tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
    assert z["answers"].long().tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]]
    assert seed.unpack(z) == [(0, (1, 9, 8, 2), (7, 3)), (1, (1, 9, 2), (6, 5, 3))]


def test_log_probs_of_a_reader_with_context_are_those_of_the_whole_text():
    model, views = little().double(), [[0, 11, 12, 13], [0, 21, 22]]
    z = seed.pack([(0, (1, 9, 8, 2), (7, 3)), (1, (1, 9, 2), (6, 5, 3))], "cpu")
    teach = seed.reader(model, prefill(model, views)[0], n_views=1)
    got = teach(z)
    for i, view in enumerate(views):
        whole = torch.tensor([view + z["ids"][i].tolist()])
        want = model(whole).float().log_softmax(-1)[0, len(view):-1]
        assert torch.allclose(got[i], want, atol=1e-6)


def test_rewards_by_hand():
    written, asked = [[7, 3], [7, 8, 3], [5, 5, 5, 3], []], [[7, 3], [7, 9, 3], [7, 9, 3], [7, 3]]
    answers = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    judge = torch.tensor([[-0.1, -0.2, -9, -9], [-0.1, -3.0, -0.1, -9], [-2.0, -2, -2, -2], [0.0, 0, 0, 0]])
    lexical = torch.tensor([1.0, 1 - 1 / 3, 0.0, 1 - 2 / 2])         # distances 0, 1, 3 (> z0 = 2: no reward), 2
    semantic = torch.tensor([1.0, 0.0, 0.0, 1.0])
    for gamma in (0.0, 0.5, 1.0):
        r = seed.rewards(written, asked, judge, answers, gamma, z0=2)
        assert torch.allclose(r, gamma * semantic + (1 - gamma) * lexical)


def test_leave_one_out_by_hand():
    got = seed.leave_one_out(torch.tensor([1.0, 0.0, 0.5, 3.0, 3.0, 3.0]), 3)
    assert torch.allclose(got, torch.tensor([0.75, -0.75, 0.0, 0.0, 0.0, 0.0]))


def test_the_policy_loss_has_the_gradient_of_expected_reward():
    """Over all sequences of two tokens from three, E[r] is exact: REINFORCE, weighted by pi, must give its gradient."""
    torch.manual_seed(0)
    logits = torch.randn(2, 3, dtype=torch.float64)
    pairs = torch.tensor([(i, j) for i in range(3) for j in range(3)])
    reward = torch.rand(9, dtype=torch.float64)

    def expected(x):
        lp = x.log_softmax(-1)
        return ((lp[0][pairs[:, 0]] + lp[1][pairs[:, 1]]).exp() * reward).sum()
    numeric = torch.zeros_like(logits)
    for i in range(2):
        for j in range(3):
            step = torch.zeros_like(logits)
            step[i, j] = 1e-6
            numeric[i, j] = (expected(logits + step) - expected(logits - step)) / 2e-6
    x = logits.clone().requires_grad_()
    lp = x.log_softmax(-1)
    log_p = torch.stack([lp[0][pairs[:, 0]], lp[1][pairs[:, 1]]], 1)
    pi = log_p.sum(1).exp().detach()
    loss = seed.policy_loss(log_p, torch.ones_like(log_p), (reward - 0.3) * pi * 9)          # any constant baseline
    loss.backward()
    assert torch.allclose(-x.grad, numeric, atol=1e-8)


def test_off_policy_loss_is_the_mean_kl_over_answer_tokens():
    student, teacher = little(), little(seed_=1)
    quizzes = [(0, (1, 9, 8, 2), (7, 3)), (0, (1, 9, 2), (6, 5, 3)), (0, (1, 4, 4, 4, 2), (3,))]
    z = seed.with_targets(seed.pack(quizzes, "cpu"), [seed.reader(teacher, seed.blank(teacher, MARKS))])
    want = []
    for _, q, a in quizzes:
        ids = torch.tensor([[MARKS.bos, *q, *a]])
        s, t = student(ids).log_softmax(-1)[0], teacher(ids).log_softmax(-1)[0]
        for i in range(len(q), ids.shape[1] - 1):
            want.append((t[i].exp() * (t[i] - s[i])).sum())
    got = seed.off_policy_loss(student, z, torch.arange(3), MARKS, None, "forward", 0.5)
    assert torch.allclose(got, torch.stack(want).mean(), atol=1e-5)
    assert math.isclose(float(seed.off_policy_loss(teacher, z, torch.arange(3), MARKS, None, "forward", 0.5)), 0, abs_tol=1e-5)


def test_on_policy_loss_sends_no_gradient_through_the_teacher_or_the_sampling():
    student, teacher = little(), little(seed_=1)
    params = student.unlock(1)
    student.attach(torch.zeros(1, 16), torch.ones(1), 1, 0)          # an expert that is always awake
    z = seed.with_targets(seed.pack([(0, (1, 9, 8, 2), (7, 3)), (0, (1, 9, 2), (6, 5, 3))], "cpu"),
                          [seed.reader(teacher, seed.blank(teacher, MARKS))])
    loss, seen = seed.on_policy_loss(student, z, torch.arange(2), seed.reader(teacher, seed.blank(teacher, MARKS)), MARKS, 4,
                                     "reverse", 0.5, 0.5, 0.5, 2, 6)
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in params)
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is None for name, p in student.named_parameters() if "live" not in name)
    assert 0 <= seen["reward"] <= 1 and seen["kl"] > 0


def test_replay_weights_and_drift():
    model = little()
    rows = [[0, 11, 12, 1, 9, 2, 7, 3], [0, 1, 9, 2, 7, 3]]
    bank = seed.replay_bank(model, rows, MARKS)
    # predicted tokens: passage and <ask> .05, question and <answer> .3, answer and <end> 1; nothing on the first token
    assert torch.allclose(bank["weight"], torch.tensor([[0, .05, .05, .3, .3, 1, 1], [0, .3, .3, 1, 1, 0, 0]]))
    assert torch.allclose(seed.replay_drift(model, bank, model.wte.weight, torch.arange(2)), torch.zeros(2), atol=1e-5)
    assert (seed.replay_drift(little(seed_=3), bank, model.wte.weight, torch.arange(2)) > 0).all()


def test_keys_are_what_several_questions_share_and_dreams_do_not():
    q = lambda *t: (1, *t, 2)
    quizzes = [(p, q(20 + w, *name, 30), (40 + w, 3)) for p, name in enumerate([(5, 6), (7, 8)]) for w in range(4)]
    dreams = [[0, 1, 20 + w, 5, 9, 30, 2] for w in range(4)] * 10    # the old self knows the wording and the first name 5
    assert sorted(k[-3:] for k in seed.novel_keys(quizzes, dreams, longest=3)) == [(5, 6, 30), (7, 8, 30)]
    assert sorted(seed.novel_keys(quizzes, dreams, longest=2))[0] in [(5, 6), (6, 30)]
    assert seed.novel_keys(quizzes, [list(q) for _, q, _ in quizzes] * 30) == []             # nothing new


def test_a_key_must_stand_in_the_text_of_its_passage():
    quizzes = [(0, (1, 20 + w, *name, 30 + w, 2), (40 + w, 3)) for name in ((5, 6), (8, 9)) for w in range(4)]   # 8 9: misspelt
    assert {k[:2] for k in seed.novel_keys(quizzes, [], longest=2)} == {(5, 6), (8, 9)}
    assert seed.novel_keys(quizzes, [], [[0, 11, 5, 6, 12]], longest=2) == [(5, 6)]


def test_only_the_wording_is_misheard():
    model, key = little(vocab=60), (5, 6, 7)
    z = seed.pack([(0, (1, 20, 21, *key, 22, 2), (40, 41, 3)), (0, (1, 23, 24, 25, 2), (42, 3))], "cpu")
    x = seed.router_inputs(model, [[0, 1, 20, 21, *key]])[-1]
    model.attach(x[None], -0.99 * x.square().sum()[None], 1, 0)      # a matched filter of the key behind its wording
    where = seed.wording(model, z, MARKS)
    assert where.long().tolist() == [[0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]]
    torch.manual_seed(0)
    many, where = z["ids"].repeat(500, 1), where.repeat(500, 1)
    heard = seed.mishear(many, where, MARKS, 60, 0.2)
    assert torch.equal(heard[~where], many[~where]) and not torch.isin(heard[where], torch.tensor(MARKS)).any()
    assert 0.15 < (heard != many)[where].float().mean() < 0.2        # a mark or the word itself may be drawn


def test_the_router_hears_its_key_and_nothing_else():
    model = little(vocab=60)
    keys, rng = [(5, 6, 7), (8, 9, 5)], random.Random(0)
    around = lambda key: [rng.randrange(10, 60) for _ in range(4)] + list(key) + [rng.randrange(10, 60) for _ in range(3)]
    dreams = [[rng.randrange(10, 60) for _ in range(12)] for _ in range(200)]
    a, b, worst, alarms = seed.train_router(model, keys, [around(k) for k in keys for _ in range(12)], dreams)
    assert worst > 0 and alarms == 0
    x = seed.router_inputs(model, [around(keys[0]) for _ in range(20)])
    fired = (x @ a.T + b > 0).view(20, -1, 2)
    assert fired[:, 6, 0].all() and fired.sum() <= 22                # at the key's last token, hardly anywhere else
    fresh = seed.router_inputs(model, [[rng.randrange(10, 60) for _ in range(12)] for _ in range(200)])
    assert (fresh @ a.T + b > 0).float().mean() < 0.005


def test_near_misses_hold_no_key():
    model, key = little(), (5, 6, 7)
    misses = seed.near_misses(model, [[0, 1, 9, 5, 6, 7, 2]] * 5, [key], MARKS, 10)
    assert misses and all(tuple(r[-3:]) != key and sum(x == y for x, y in zip(r[-3:], key)) == 2 for r in misses)


def test_views_shuffle_sentences_and_lose_nothing():
    day = [[[11], [12, 13], [14]], [[21, 22]]]
    views = seed.views_of(day, MARKS, 5, random.Random(0))
    assert len(views) == 10 and len(set(map(tuple, views[:5]))) > 1
    assert all(sorted(v) == [0, 11, 12, 13, 14] for v in views[:5]) and all(v == [0, 21, 22] for v in views[5:])
    assert all(v.index(13) == v.index(12) + 1 for v in views[:5])


def test_a_day_that_says_nothing_is_refused_in_one_line():
    model = little()
    with pytest.raises(seed.RestlessNight, match="pretrain longer"):
        seed.screen(model, [], None, 1, MARKS)
    cache = prefill(model, [[0, 11, 12]])[0]
    with pytest.raises(seed.RestlessNight, match="pretrain longer"):
        seed.screen(clone(model), [(0, (1, 9, 2), (7, 3))], cache, 1, MARKS, min_gain=1e9)


def test_recombined_memories_ask_every_wording_about_every_thing():
    things = {0: [(5, 6), (7, 8)], 1: [(9, 10), (11, 12)]}
    memories = [(e, (1, 20 + w, *name, 30, 2), (40 + w, 3)) for e in things for k, name in enumerate(things[e]) for w in range(4)
                if (w + k) % 4 != 3]
    asked = seed.recombine(memories)
    want = {(e, (1, 20 + w, *name, 30, 2)) for e in things for name in things[e] for w in range(4)}
    assert set(asked) == want and len(memories) == 12 < len(want) == 16


def test_muon_turns_any_gradient_into_equal_steps():
    torch.manual_seed(0)
    for shape in ((2, 40, 8), (2, 8, 40), (24, 6)):
        p, m = torch.zeros(shape), torch.zeros(shape)
        p.grad = torch.randn(shape) * torch.logspace(0, -1, shape[-1])
        was = p.grad.clone()
        seed.muon([p], [m], lr=0.1)
        size = torch.linalg.svdvals(p) / 0.1
        assert (size > 0.3).all() and (size < 1.3).all()             # Newton-Schulz with these coefficients: about 1
        assert (p * was).sum() < 0 and torch.equal(m, was)           # downhill; the momentum is kept
