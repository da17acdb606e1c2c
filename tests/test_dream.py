"""Dreaming: gradients, choice, trials and the writer, each against doing it one by one."""
import copy
import random

import pytest
import torch
from hypothesis import given, settings, strategies as st

import dream
import seed
from bench import variants
from data.quizzes import (answer_mask, closed_book, join, pack, question_mask, split_questions,
                          take, unpack)
from data.text import Day
from model import FAST, TRIAL
from tests.small import MARKS, V, close, expand, little, same_state

QUIZZES = [(0, (1, 9, 8, 2), (7, 3)), (0, (1, 9, 2), (6, 5, 3)), (1, (1, 4, 4, 4, 2), (8, 3)),
           (1, (1, 12, 13, 2), (14, 3))]
fuzz = settings(max_examples=80, deadline=None, derandomize=True)


def packed(pairs=QUIZZES):
    return pack(pairs, "cpu")


# --------------------------------------------------------------------------------------------------
# Quizzes

def test_split_questions_takes_only_well_formed_pairs():
    row = [1, 9, 8, 2, 7, 3, 1, 2, 7, 3, 1, 9, 2, 3, 5, 2, 7, 3, 1, 9, 1, 8, 2, 6, 3, 1, 9]
    assert split_questions(row, MARKS) == [((1, 9, 8, 2), (7, 3)), ((1, 8, 2), (6, 3))]


def written_out(pairs):
    """A document, with junk in front of it that holds no marks."""
    return [0, 9, 9] + [t for q, a in pairs for t in (*q, *a)]


WORDS = st.lists(st.integers(4, 20), min_size=1, max_size=6)
PAIRS = st.tuples(WORDS, WORDS).map(lambda p: ((1, *p[0], 2), (*p[1], 3)))


@fuzz
@given(st.lists(PAIRS, max_size=6), st.lists(st.integers(0, 9), max_size=40))
def test_what_is_well_formed_is_found_whatever_stands_around_it(pairs, noise):
    assert split_questions(written_out(pairs), MARKS) == pairs
    for q, a in split_questions(noise, MARKS):
        assert q[0] == 1 and q[-1] == 2 and a[-1] == 3 and len(q) > 2 and len(a) > 1
        assert not {1, 2, 3} & {*q[1:-1]} - {3} and 3 not in a[:-1]


@fuzz
@given(st.lists(st.tuples(st.integers(0, 5), PAIRS), min_size=1, max_size=8))
def test_unpack_is_the_inverse_of_pack(pairs):
    pairs = [(p, q, a) for p, (q, a) in pairs]
    z = packed(pairs)
    assert unpack(z) == pairs == unpack(join(z, packed([])))        # numbers stay whole ones
    some = list(range(0, len(pairs), 2))
    assert unpack(take(z, some)) == [pairs[i] for i in some]
    assert unpack(take(z, torch.tensor([i % 2 == 0 for i in range(len(pairs))]))) == \
        [pairs[i] for i in some]


def test_masks_are_exactly_the_questions_and_the_answers():
    z = packed(QUIZZES[:2])
    assert z.ids.tolist() == [[1, 9, 8, 2, 7, 3], [1, 9, 2, 6, 5, 3]]
    # over ids[:, 1:]: the given <ask> is no word of the question, padding none of the answer
    assert question_mask(z, MARKS).long().tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
    assert answer_mask(z).long().tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]]
    assert closed_book(z, MARKS).tolist() == [[0, 1, 9, 8, 2, 7], [0, 1, 9, 2, 6, 5]]


def test_views_shuffle_sentences_and_lose_nothing():
    day = [[[11], [12, 13], [14]], [[21, 22]]]
    views = dream.views_of(day, MARKS, random.Random(0), 5)
    assert len(views) == 10 and len(set(map(tuple, views[:5]))) > 1
    assert all(sorted(v) == [0, 11, 12, 13, 14] for v in views[:5])
    assert all(v == [0, 21, 22] for v in views[5:])
    assert all(v.index(13) == v.index(12) + 1 for v in views[:5])


# --------------------------------------------------------------------------------------------------
# Writing

def spied(monkeypatch, rows):
    calls = []

    def generate(model, prompts, max_new, n=1, awake=None, **kw):
        calls.append((prompts, n,
                      {k: (e.tolist(), s.tolist()) for k, (e, s) in (awake or {}).items()}, kw))
        return [rows[i % len(rows)] for i in range(len(prompts) * n)]
    monkeypatch.setattr(dream, "generate", generate)
    return calls


def test_the_self_asks_itself_behind_every_reading(monkeypatch):
    model = expand(little(), FAST, 2)
    teacher = seed.hold(model, Day([[[11], [12]], [[21]]], []), MARKS)
    calls = spied(monkeypatch, [[9, 2, 7, 3, 1, 8, 2, 6, 3], [9, 2, 7, 3, 9]])
    n = 2
    found = dream.write(teacher, MARKS, n)
    (prompts, k, awake, _), = calls
    assert prompts == [[*view, 1] for view in teacher.readings] and k == n
    assert not awake                                        # the gates of earlier nights are shut
    assert sorted(found) == sorted((p, q, a) for p in (0, 1)
                                   for q, a in [((1, 9, 2), (7, 3)), ((1, 8, 2), (6, 3))])


def test_who_is_awake_while_writing(monkeypatch):
    model = expand(expand(little(), FAST, 3), TRIAL, 1)
    teacher = seed.hold(model, Day([[[11]]], []), MARKS)
    rows, calls = len(teacher.readings), spied(monkeypatch, [[9, 2, 7, 3]])
    for kw in ({}, {"writer": False}, {"random_expert": True}):
        dream.write(teacher, MARKS, 1, **kw)
    dream.write(teacher._replace(awake={FAST: 2}), MARKS, 1)
    variants.writer_alone(teacher._replace(awake={}), MARKS, 1)
    awake = [call[2] for call in calls]
    assert awake.pop() == {TRIAL: ([0] * rows, [0] * rows)}
    zeros, first_view = [0] * rows, [0, -1] * (rows // 2)        # the writer, and nobody
    assert awake[0] == {TRIAL: (first_view, zeros)} and awake[1] == {}
    assert set(awake[2]) == {TRIAL, FAST} and set(awake[2][FAST][0]) <= {-3, -2, -1, 0, 1, 2}
    assert awake[2][FAST][1] == zeros
    day = Day([[[11]]] * 20, [])
    dream.write(seed.hold(model, day, MARKS), MARKS, 1, random_expert=True)
    half = calls[-1][2][FAST][0]
    assert min(half) < 0 <= max(half) <= 2                          # beside those without
    assert awake[3] == {TRIAL: (first_view, zeros), FAST: ([2] * rows, zeros)}    # studied the day


def test_memories_are_asked_of_each_expert_awake_from_the_first_word(monkeypatch):
    model = expand(little(), FAST, 2)
    calls = spied(monkeypatch, [[9, 2, 7, 3], [9, 9, 9], [8, 2, 7, 3]])
    found = dream.memories(model, FAST, MARKS, 3)
    (prompts, n, awake, kw), = calls
    assert prompts == [[0, 1]] * 2 and n == 3 and awake == {FAST: ([0, 1], [0, 0])}
    assert sorted(found) == [(e, q, (7, 3)) for e in (0, 1) for q in ((1, 8, 2), (1, 9, 2))]


def test_what_the_self_says_out_of_the_blue():
    model = little()
    rows = dream.replay(model, MARKS, 7)
    assert len(rows) == 7 and all((row[0],) == MARKS.bos and 1 < len(row) <= 1 + dream.DREAM
                                  for row in rows)


# --------------------------------------------------------------------------------------------------
# Importance

def test_gradients_of_all_dreams_at_once_are_those_of_each_alone():
    model, z = little(), packed()
    before = copy.deepcopy(model)
    together = dream.gradients(model, z, MARKS, torch.arange(4))
    for i in range(4):
        alone = dream.gradients(model, take(z, [i]), MARKS, torch.zeros(1, dtype=torch.long))
        close(together[i], alone[0], 1e-6)
    mean = dream.gradients(model, z, MARKS, torch.zeros(4, dtype=torch.long))
    close(mean[0], together.mean(0), 1e-6)
    halves = dream.gradients(model, z, MARKS, torch.tensor([0, 1, 1, 0]))
    close(halves[1], together[1:3].mean(0), 1e-6)
    assert same_state(model, before) and model.live(TRIAL) == []


def test_the_gradient_is_that_of_the_loss():
    """Against finite differences of B of the first block that remembers."""
    model, z = little().double(), packed(QUIZZES[:1])
    grad = dream.gradients(model, z, MARKS, torch.zeros(1, dtype=torch.long))[0]
    model.unlock(TRIAL)
    awake = dream.copies(torch.zeros(1, dtype=torch.long))
    B = model.remembering()[0].levels[TRIAL].B_live
    for at in (0, 17, 40):
        losses = []
        for step in (1e-4, -1e-4):                          # the logits are rounded to float32
            B.data.flatten()[at] += step
            losses.append(dream.dream_loss(model, z, MARKS, awake).item())
            B.data.flatten()[at] -= step
        assert (losses[0] - losses[1]) / 2e-4 == pytest.approx(float(grad[at]), abs=5e-3)


def test_a_dream_like_the_quiz_has_cosine_one_and_select_switches_work():
    model, z = little(), packed()
    quiz = take(z, [2])
    cosine = dream.importance(model, z, quiz, MARKS, "cosine")
    assert cosine.argmax() == 2 and abs(float(cosine[2]) - 1) < 1e-5
    norm = dream.importance(model, z, quiz, MARKS, "norm")
    close(norm, dream.gradients(model, z, MARKS, torch.arange(4)).norm(dim=1), 1e-6)
    once, again = (dream.importance(model, z, quiz, MARKS, "random") for _ in range(2))
    assert not torch.equal(once, again)


def test_dream_loss_is_nats_an_answer_word():
    model, z = little(), packed()
    got = dream.dream_loss(model, z, MARKS)
    for i, (_, q, a) in enumerate(QUIZZES):
        lp = model(torch.tensor([[0, *q, *a]])).log_softmax(-1)[0, len(q):-1]
        close(got[i], -sum(lp[j, t] for j, t in enumerate(a)) / len(a), 1e-5)


def test_truth_asks_the_self_that_holds_the_day():
    z = packed(QUIZZES[:2])
    lp = torch.full((2, z.ids.shape[1] - 1, V), -9.0)
    lp[0, 3:5] = -0.5                                       # sure of the first answer, of none else
    assert dream.truthful(z, lambda y: lp).tolist() == [1, 0]


def test_choose_takes_the_best_avoids_repeats_and_adds_some_by_chance():
    a, b = ((1, 9, 8, 2), (7, 3)), ((1, 5, 6, 2), (4, 3))
    dreams = [(0, *a), (1, *a), (0, *b), (0, (1, 9, 2), (3,))]
    score = torch.tensor([1.0, 0.9, 0.5, -1.0])
    assert dream.choose(score, dreams, 2, 0, no_repeats=False) == [0, 1]
    assert dream.choose(score, dreams, 2, 0, no_repeats=True) == [0, 2]         # 1 says nothing new
    assert sorted(dream.choose(score, dreams, 1, 3)) == [0, 1, 2, 3]
    assert len(dream.choose(score, dreams, 9, 9)) == 4
    assert len({tuple(dream.choose(score, dreams, 1, 1)) for _ in range(40)}) == 3


def test_a_lie_is_chosen_last():
    model, z = little(), packed()
    lp = torch.full((4, z.ids.shape[1] - 1, V), -0.1)
    lp[2] = -9.0
    for _ in range(3):
        got = dream.choose_dreams(model, z, take(z, [2]), MARKS, lambda y: lp, "cosine", 3, 0)
        assert QUIZZES[2] not in unpack(got)
    norm = dream.choose_dreams(model, z, z, MARKS, None, "norm", 4, 0)
    assert sorted(unpack(norm)) == sorted(QUIZZES)


# --------------------------------------------------------------------------------------------------
# Trials, and the writer

@pytest.mark.parametrize("writer", [0, 1])
def test_trials_are_isolated_copies(writer):
    """A dream's gain does not depend on which others are tried, and the self does not change."""
    model, z = expand(little(), TRIAL, writer), packed()
    before, quiz = copy.deepcopy(model), take(z, [0])
    together = dream.trials(model, z, quiz, MARKS)
    for i in range(4):
        alone = dream.trials(model, take(z, [i]), quiz, MARKS)
        close(alone[0], together[i], 1e-4)
    assert together.argmax() == 0 and together[0] > 0       # the quiz itself prepares best for it
    assert same_state(model, before) and model.n_experts(TRIAL) == writer


def test_the_writer_learns_what_was_rewarded_and_nothing_else_moves():
    model, z = expand(little(), FAST, 1), packed()
    readings = [[0, 11, 12]] * dream.VIEWS + [[0, 21, 22]] * dream.VIEWS
    ids, old = torch.tensor([[0, 11, 12, 1, 9, 8, 2, 7, 3]]), copy.deepcopy(model)

    def log_p(awake=None):
        lp = model(ids, awake=awake).log_softmax(-1)[0, 3:-1]
        return float(lp.gather(1, ids[0, 4:, None]).sum())
    reward, plain = torch.tensor([1.0, 0, 0, 0]), log_p()
    for _ in range(2):                                      # the same writer goes on learning
        loss = dream.rest_em(model, z, readings, MARKS, reward)
        assert model.n_experts(TRIAL) == 1 and loss > 0 and model.live(TRIAL) == []
    assert log_p(dream.copies(torch.tensor([0]))) > plain + 1
    assert torch.equal(model(ids), old(ids))                # awake only while dreaming
    for name, t in old.state_dict().items():
        assert f"levels.{TRIAL}." in name or torch.equal(t, model.state_dict()[name]), name
    assert dream.rest_em(model, z, readings, MARKS, torch.zeros(4)) is None


@pytest.mark.parametrize("writer", [True, False])
def test_a_round_of_dreaming_leaves_the_self_without_its_day_alone(writer):
    model, z = little(), packed()
    cold = copy.deepcopy(model)
    readings = [[0, 11, 12]] * dream.VIEWS + [[0, 21, 22]] * dream.VIEWS
    lp = torch.full((4, z.ids.shape[1] - 1, V), -0.1)
    teacher = dream.Teacher(copy.deepcopy(model), readings, None, None, {}, None)
    log = dream.learn_to_dream(model, cold, z, z, teacher, MARKS, lambda y: lp[:len(y.ids)],
                               "cosine", writer)
    assert same_state(cold, little()) and log["chosen"] == log["pool"] == 4
    assert 0 <= log["rewarded"] <= 1 and ("writer_loss" in log) == writer
    assert model.n_experts(TRIAL) == writer * (log.get("writer_loss") is not None)


# --------------------------------------------------------------------------------------------------
# Curriculum

def test_the_curriculum_prefers_what_is_neither_known_nor_hopeless():
    w = dream.curriculum(torch.tensor([0.0, 0.5, 1.0]))
    assert w[1] > w[0] and w[1] > w[2] and (w > 0).all()
