"""Dreaming: gradients, choice, trials and the writer, each against doing it one by one."""
import copy

import torch

import dream
import seed
from test_seed import MARKS, little

QUIZZES = [(0, (1, 9, 8, 2), (7, 3)), (0, (1, 9, 2), (6, 5, 3)), (1, (1, 4, 4, 4, 2), (8, 3)), (1, (1, 12, 13, 2), (14, 3))]


def test_gradients_of_all_dreams_at_once_are_those_of_each_alone():
    model, z = little(), seed.pack(QUIZZES, "cpu")
    together = dream.gradients(model, 0, z, MARKS, torch.arange(4))
    for i in range(4):
        alone = dream.gradients(model, 0, seed.subset(z, torch.tensor([i])), MARKS, torch.zeros(1, dtype=torch.long))
        assert torch.allclose(together[i], alone[0], atol=1e-6)
    mean = dream.gradients(model, 0, z, MARKS, torch.zeros(4, dtype=torch.long))
    assert torch.allclose(mean[0], together.mean(0), atol=1e-6)
    assert model.blocks[0].levels[0].A_live is None                  # nothing is left behind


def test_a_dream_like_the_quiz_has_cosine_one_and_select_switches_work():
    model, z = little(), seed.pack(QUIZZES, "cpu")
    quiz = seed.subset(z, torch.tensor([2]))
    cosine = dream.importance(model, 0, z, quiz, MARKS, "cosine")
    assert cosine.argmax() == 2 and abs(float(cosine[2]) - 1) < 1e-5
    norm = dream.importance(model, 0, z, quiz, MARKS, "norm")
    assert torch.allclose(norm, dream.gradients(model, 0, z, MARKS, torch.arange(4)).norm(dim=1))
    once, again = (dream.importance(model, 0, z, quiz, MARKS, "random") for _ in range(2))
    assert not torch.equal(once, again)


def test_choose_takes_the_best_avoids_repeats_and_adds_random_ones():
    a, b = ((1, 9, 8, 2), (7, 3)), ((1, 5, 6, 2), (4, 3))
    dreams = [(0, *a), (1, *a), (0, *b), (0, (1, 9, 2), (3,))]
    score = torch.tensor([1.0, 0.9, 0.5, -1.0])
    assert dream.choose(score, dreams, 2, 0, no_repeats=False) == [0, 1]
    assert dream.choose(score, dreams, 2, 0, no_repeats=True) == [0, 2]                      # 1 says nothing new
    assert sorted(dream.choose(score, dreams, 1, 3)) == [0, 1, 2, 3]
    assert len(dream.choose(score, dreams, 9, 9)) == 4


def test_trials_are_isolated_copies():
    """A dream's gain does not depend on which other dreams are tried in the same batch, and the self is not changed."""
    model, z = little(), seed.pack(QUIZZES, "cpu")
    before = copy.deepcopy(model.state_dict())
    together = dream.trials(model, 0, z, seed.subset(z, torch.tensor([0])), MARKS)
    for i in range(4):
        alone = dream.trials(model, 0, seed.subset(z, torch.tensor([i])), seed.subset(z, torch.tensor([0])), MARKS)
        assert torch.allclose(alone[0], together[i], atol=1e-4)
    assert together.argmax() == 0 and together[0] > 0                # the quiz itself is the best preparation for it
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_writer_learns_to_dream_what_was_rewarded_and_nothing_else_moves():
    torch.manual_seed(0)
    model, z = little(), seed.pack(QUIZZES, "cpu")
    views, reward, ids = [[0, 11, 12], [0, 21, 22]], torch.tensor([1.0, 0, 0, 0]), torch.tensor([[0, 11, 12, 1, 9, 8, 2, 7, 3]])
    old = copy.deepcopy(model)
    log_p = lambda who: float(model(ids, gate=False, extra=who).log_softmax(-1)[0, 3:-1].gather(1, ids[0, 4:, None]).sum())
    plain = log_p(None)
    dream.rest_em(model, 0, z, views, 1, MARKS, reward)
    dream.rest_em(model, 0, z, views, 1, MARKS, reward)              # the same writer goes on learning
    assert model.blocks[0].levels[0].n_experts == 1
    assert log_p({0: torch.tensor([0])}) > plain + 1
    assert torch.equal(model(ids), old(ids))                         # awake only while dreaming
    assert dream.rest_em(model, 0, z, views, 1, MARKS, torch.zeros(4)) is None


def test_the_curriculum_prefers_what_is_neither_known_nor_hopeless():
    w = dream.progress(torch.tensor([0.0, 0.5, 1.0]))
    assert w[1] > w[0] and w[1] > w[2] and (w > 0).all()


def test_known_is_the_probability_of_the_whole_answer():
    model, z = little(), seed.pack(QUIZZES, "cpu")
    p = dream.known(model, z, MARKS)
    for i, (_, q, a) in enumerate(QUIZZES):
        ids = torch.tensor([[MARKS.bos, *q, *a]])
        lp = model(ids).log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[len(q):]
        assert torch.allclose(p[i], lp.sum().exp(), atol=1e-6)


def test_truth_asks_the_self_that_holds_the_day():
    z = seed.pack(QUIZZES[:2], "cpu")
    lp = torch.full((2, z["ids"].shape[1] - 1, 40), -9.0)
    lp[0, 3:5] = -0.5                                                # sure of every answer token of the first, of none else
    assert dream.truthful(z, lambda y: lp).tolist() == [1, 0]


def test_rehearsal_goes_where_the_self_has_drifted():
    model = little()
    bank = seed.replay_bank(model, [[0, 1, 9, 2, 7, 3], [0, 1, 20, 2, 21, 3]], MARKS)
    bank["hidden"][1] += torch.randn_like(bank["hidden"][1])         # the old self said the second dream differently
    w = dream.rehearsal(model, bank, model.wte.weight)
    assert w[1] > 10 * w[0]
