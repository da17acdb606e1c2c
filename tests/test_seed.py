"""Knowledge Seeding: the equations against values worked out by hand."""
import math
import random
from types import SimpleNamespace

import pytest
import torch

import dream
import seed
from data import asking, flags, gate
from data.engine import prefill
from data.quizzes import answers_of, pack, shorten, sureness, unpack
from data.text import Day, symbols
from dream import Teacher
from model import FAST, SLOW, clone
from tests.small import MARKS, V, close, little, same_state

LN2, LN3 = math.log(2), math.log(3)
QUIZZES = [(0, (1, 9, 8, 2), (7, 3)), (0, (1, 9, 2), (6, 5, 3)), (1, (1, 4, 4, 4, 2), (8, 3))]


def settings(*words):
    return flags.parse(["--paper", *words])


def blank(model):
    """The self that holds nothing, as a Teacher of two passages."""
    readings = [[*MARKS.bos]] * 2 * dream.VIEWS
    cache, _ = prefill(model, readings)
    return Teacher(model, readings, cache, cache, {}, [{0}, {1}])


def quizzes(teacher=None, pairs=QUIZZES):
    """Packed, as after the screen; with the targets of a teacher, if there is one."""
    z = pack(pairs, "cpu")
    z = z._replace(recalled=torch.zeros(len(pairs), dtype=torch.bool),
                   since=torch.full((len(pairs),), 2),
                   wording=torch.zeros_like(z.ids, dtype=torch.bool))
    return asking.with_targets(z, seed.reader(blank(teacher)), 1) if teacher else z


# --------------------------------------------------------------------------------------------------
# Divergences. T = (1/2, 1/4, 1/4) and S = (1/8, 1/8, 3/4): every ratio is made of twos and threes

T = torch.tensor([[1 / 2, 1 / 4, 1 / 4]], dtype=torch.float64).log()
S = torch.tensor([[1 / 8, 1 / 8, 3 / 4]], dtype=torch.float64).log()


def test_forward_is_kl_of_teacher_to_student_and_reverse_the_other_way():
    forward = 1 / 2 * 2 * LN2 + 1 / 4 * LN2 - 1 / 4 * LN3           # T log(T/S): 0.591781
    reverse = -1 / 8 * 2 * LN2 - 1 / 8 * LN2 + 3 / 4 * LN3          # S log(S/T): 0.564029
    assert abs(forward - 0.591781) < 1e-6 and abs(reverse - 0.564029) < 1e-6
    assert abs(seed.divergence(T, S, "forward").item() - forward) < 1e-12
    assert abs(seed.divergence(T, S, "reverse").item() - reverse) < 1e-12
    assert seed.divergence(T, S).item() == seed.divergence(T, S, "forward").item()


def test_jsd_against_numbers_worked_out_by_hand(monkeypatch):
    # beta = 1/2: M = (5/16, 3/16, 8/16), the usual symmetric divergence
    to_T = 1 / 2 * math.log(8 / 5) + 1 / 4 * math.log(4 / 3) + 1 / 4 * math.log(4 / 8)
    to_S = 1 / 8 * math.log(2 / 5) + 1 / 8 * math.log(2 / 3) + 3 / 4 * math.log(12 / 8)
    monkeypatch.setattr(seed, "BETA", 0.5)
    assert abs(seed.divergence(T, S, "jsd").item() - (to_T + to_S) / 2) < 1e-12
    # beta = 1/4: M = T/4 + 3S/4 = (7/32, 5/32, 20/32): beta belongs to the teacher
    to_T = 1 / 2 * math.log(16 / 7) + 1 / 4 * math.log(8 / 5) + 1 / 4 * math.log(8 / 20)
    to_S = 1 / 8 * math.log(4 / 7) + 1 / 8 * math.log(4 / 5) + 3 / 4 * math.log(24 / 20)
    monkeypatch.setattr(seed, "BETA", 0.25)
    assert abs(seed.divergence(T, S, "jsd").item() - (to_T / 4 + 3 * to_S / 4)) < 1e-12


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_divergence_is_zero_only_between_equals(kind):
    p, q = torch.randn(2, 20, 9, dtype=torch.float64).log_softmax(-1)
    assert seed.divergence(p, p, kind).abs().max() < 1e-14
    assert seed.divergence(p, q, kind).min() > 1e-3


def test_an_unknown_divergence_is_refused():
    with pytest.raises(ValueError, match="sideways"):
        seed.divergence(T, S, "sideways")


# --------------------------------------------------------------------------------------------------
# Rewards and REINFORCE

def test_rewards_by_hand(monkeypatch):
    written, asked = [[7, 3], [7, 8, 3], [5, 5, 5, 3], []], [[7, 3], [7, 9, 3], [7, 9, 3], [7, 3]]
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    judge = torch.tensor([[-0.1, -0.2, -9, -9], [-0.1, -3.0, -0.1, -9], [-2.0] * 4, [0.0] * 4])
    # distances 0; 1; 3, more than NEAR = 2: no reward; 2
    lexical = torch.tensor([1.0, 1 - 1 / 3, 0.0, 1 - 2 / 2])
    semantic = torch.tensor([1.0, 0.0, 0.0, 1.0])
    monkeypatch.setattr(seed, "NEAR", 2)
    for gamma in (0.0, 0.5, 1.0):
        monkeypatch.setattr(seed, "GAMMA", gamma)
        close(seed.rewards(written, asked, judge, mask), gamma * semantic + (1 - gamma) * lexical,
              1e-6)


def test_leave_one_out_by_hand():
    got = seed.leave_one_out(torch.tensor([1.0, 0.0, 0.5, 3.0, 3.0, 3.0]), 3)
    assert torch.allclose(got, torch.tensor([0.75, -0.75, 0.0, 0.0, 0.0, 0.0]))


def test_the_policy_loss_has_the_gradient_of_expected_reward():
    """Over all sequences of two tokens from three, E[r] is exact: REINFORCE, weighted by pi, must
    give its gradient."""
    logits = torch.randn(2, 3, dtype=torch.float64)
    pairs = torch.tensor([(i, j) for i in range(3) for j in range(3)])
    reward = torch.rand(9, dtype=torch.float64)

    def log_pi(x):
        lp = x.log_softmax(-1)
        return torch.stack([lp[0][pairs[:, 0]], lp[1][pairs[:, 1]]], 1)
    exact = logits.clone().requires_grad_()
    (log_pi(exact).sum(1).exp() * reward).sum().backward()
    x = logits.clone().requires_grad_()
    log_p = log_pi(x)
    pi = log_p.sum(1).exp().detach()
    advantage = ((reward - 0.3) * pi * 9).requires_grad_()          # any constant baseline will do
    junk = torch.cat([log_p, torch.full((9, 1), 5.0, dtype=torch.float64)],
                     1)      # not in the mask
    mask = torch.tensor([[1, 1, 0]] * 9)
    seed.policy_loss(junk, mask, advantage).backward()
    close(-x.grad, exact.grad, 1e-9)
    assert advantage.grad is None                                   # a reward is no function of it


# --------------------------------------------------------------------------------------------------
# The teacher and its targets

def test_a_reader_says_what_the_whole_text_says():
    model = little()
    day = Day([[[11], [12, 13]], [[21, 22]]], [])
    teacher = seed.hold(model, day, MARKS)
    assert teacher.awake == {} and teacher.held is teacher.cache and teacher.model is not model
    teach, z = seed.reader(teacher), quizzes()
    for view in range(dream.VIEWS):
        got = teach(z, view)
        for i, (p, q, a) in enumerate(QUIZZES):
            text = teacher.readings[p * dream.VIEWS + view]
            want = model(torch.tensor([[*text, *q, *a]])).log_softmax(-1)[0, len(text):-1]
            close(got[i, :len(want)], want, 1e-5)


def test_a_day_too_long_for_the_context_is_studied_awake():
    model = little()
    documents = [([0, 1, 9, 2, 7, 3], [0.0] * 4 + [1.0] * 2)]
    before = clone(model)
    teacher = seed.hold(model, Day([[[11, 12]]], documents), MARKS)
    assert same_state(model, before)                                # only the teacher has studied
    assert teacher.awake == {FAST: 0} and teacher.model.n_experts(FAST) == 1
    assert len(teacher.held["len"]) == len(teacher.readings) and (teacher.held["len"] == 1).all()
    z = quizzes(pairs=[(0, (1, 9, 2), (7, 3))])
    knows = [float(t[0, 2].exp()[7])
             for t in (seed.reader(teacher)(z), seed.reader(blank(model))(z))]
    assert knows[0] > 3 * knows[1]


def test_study_weighs_the_words_as_the_documents_say():
    """A weight between 0 and 1 is a weight, not nothing."""
    weighed = []
    model = little()
    seen, seed.descend = seed.descend, lambda _, __, loss, *rest: weighed.append(loss.item())
    try:
        torch.manual_seed(0)
        seed.study(model, [([0, 11, 9, 7], [0.0, 0.25, 0.5, 0.5])])
    finally:
        seed.descend = seen
    lp = model(torch.tensor([[0, 11, 9, 7]])).log_softmax(-1)[0, :-1]
    nll = -lp.gather(1, torch.tensor([[11], [9], [7]]))[:, 0]
    want = (0.25 * nll[0] + 0.5 * nll[1] + 0.5 * nll[2]) / 1.25
    assert weighed[0] == pytest.approx(float(want), abs=1e-4)


def test_an_empty_day_and_a_day_that_says_nothing_are_restless():
    model = little()
    for passages in ([], [[]]):
        with pytest.raises(seed.RestlessNight, match="empty"):
            seed.hold(model, Day(passages, []), MARKS)
    with pytest.raises(seed.RestlessNight, match="asked itself nothing"):
        seed.screen(None, [], MARKS)
    with pytest.raises(seed.RestlessNight,
                       match="cannot read"):    # a day that makes nothing likelier
        seed.screen(blank(model), QUIZZES, MARKS)


def test_the_screen_keeps_what_the_day_made_likely(monkeypatch):
    gain = torch.tensor([[2.0, 3.0, 0.0, 0, 0], [0.1, 0.2, 0.0, 0, 0], [0.0, 5.0, 5.0, 0.0, 0]])
    monkeypatch.setattr(asking, "gains", lambda model, z, *rest: gain[:, :z.ids.shape[1] - 1])
    pairs = [(0, (1, 9, 8, 2), (7, 3)), (0, (1, 9, 2), (6, 5, 3)), (1, (1, 4, 5, 2), (8, 3))]
    z = seed.screen(blank(little()), pairs, MARKS)
    assert unpack(z) == [pairs[0], pairs[2]]
    assert z.begin.tolist() == [2, 3] and z.end.tolist() == [3, 4]
    # wording: words of the question that gained nothing, never <ask>, never the answer
    assert z.wording.long().tolist() == [[0, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0]]


def test_answers_of_is_the_answer_and_nothing_else():
    z = quizzes()
    number = torch.arange(z.ids.shape[1] - 1).expand(len(QUIZZES), -1) * 1.0
    got = answers_of(z, number)
    here = torch.arange(3) < (z.length - z.start)[:, None]
    assert got.shape == (3, 3)
    assert got[0, :2].tolist() == [3, 4] and got[1].tolist() == [2, 3, 4]
    assert got[2, :2].tolist() == [4, 5]
    words = answers_of(z, z.ids[:, 1:])
    assert [row[m].tolist() for row, m in zip(words, here)] == [list(a) for _, _, a in QUIZZES]
    wide = answers_of(z, number[..., None].expand(-1, -1, 4))
    assert torch.equal(wide[..., 2], got)
    assert torch.equal(answers_of(z, number[..., None, None])[..., 0, 0], got)


def test_targets_are_the_mean_over_readings_and_sureness_its_least_word():
    z, n = quizzes(), z_width(quizzes())
    views = [torch.randn(3, n, V).log_softmax(-1) for _ in range(2)]
    got = asking.with_targets(z, lambda z, view: views[view], 2)
    want = sum(answers_of(z, v).exp() for v in views) / 2
    close(got.target.exp(), want, 1e-6)
    sure = sureness(got)
    for i, (_, _, a) in enumerate(QUIZZES):
        close(sure[i], min(want[i, j, t] for j, t in enumerate(a)), 1e-6)


def z_width(z):
    return z.ids.shape[1] - 1


# --------------------------------------------------------------------------------------------------
# Losses

def test_the_off_policy_loss_is_the_mean_kl_over_answer_words():
    student, teacher = little(), little(seed=1)
    z = quizzes(teacher)
    for kind in ("forward", "reverse", "jsd"):
        want = []
        for _, q, a in QUIZZES:
            ids = torch.tensor([[*MARKS.bos, *q, *a]])
            s, t = student(ids).log_softmax(-1)[0], teacher(ids).log_softmax(-1)[0]
            want += [seed.divergence(t[i], s[i], kind) for i in range(len(q), ids.shape[1] - 1)]
        close(seed.off_policy_loss(student, z, MARKS, None, kind), torch.stack(want).mean(), 1e-5)
    hard = []
    for _, q, a in QUIZZES:
        lp = student(torch.tensor([[*MARKS.bos, *q, *a]])).log_softmax(-1)[0, len(q):-1]
        hard += [-lp[i, t] for i, t in enumerate(a)]
    close(seed.off_policy_loss(student, z, MARKS, None, "sft"), torch.stack(hard).mean(), 1e-5)
    assert seed.off_policy_loss(teacher, z, MARKS, None, "forward").abs() < 1e-5


def test_losses_ignore_padding():
    student, teacher = little(), little(seed=1)
    z = quizzes(teacher)
    junk = torch.where(torch.arange(z.ids.shape[1]) < z.length[:, None], z.ids, 17)
    more = torch.cat([junk, torch.full((3, 4), 23)], 1)
    wide = z._replace(ids=more, wording=torch.zeros_like(more, dtype=torch.bool))
    assert shorten(wide, z.ids.shape[1]).ids.equal(junk)
    for kind in ("forward", "sft"):
        for level in (None, FAST):
            if level is not None and not student.n_experts(FAST):
                student.unlock(FAST)
            a, b = (seed.off_policy_loss(student, x, MARKS, level, kind) for x in (z, wide))
            close(a, b, 1e-5)


def test_a_new_expert_learns_the_answers_and_to_ask():
    """With a level: the same, plus questions of some rows, read with the expert awake at once."""
    student, teacher = little(), little(seed=1)
    z, plain = quizzes(teacher), seed.off_policy_loss(student, quizzes(teacher), MARKS, None,
                                                      "forward")
    student.unlock(FAST)
    nll = []
    for _, q, _ in QUIZZES:
        lp = student(torch.tensor([[*MARKS.bos, *q]])).log_softmax(-1)[0, 1:]
        nll += [-lp[i, t] for i, t in enumerate(q[1:])]             # <ask> is given
    want = plain + seed.ASK_WEIGHT * torch.stack(nll).mean()
    close(seed.off_policy_loss(student, z, MARKS, FAST, "forward"), want, 1e-5)


def test_mishearing_touches_the_wording_and_nothing_else():
    z = quizzes()
    where = torch.rand(z.ids.shape) < 0.5
    many = z._replace(ids=z.ids.repeat(500, 1), wording=where.repeat(500, 1))
    heard = seed.mishear(many, MARKS, 60)
    changed = heard != many.ids
    assert not changed[~many.wording].any()
    assert not torch.isin(heard[changed], torch.tensor([*symbols(MARKS)])).any()
    assert 0.8 * seed.MISHEARD < changed[many.wording].float().mean() < seed.MISHEARD


@pytest.mark.parametrize("imitate", [0, 1])
def test_the_on_policy_loss_by_hand(monkeypatch, imitate):
    """alpha D(teacher || student) on what the student wrote, and REINFORCE on its rewards."""
    student, teacher = little(), little(seed=1)
    params = student.unlock(FAST)
    for p in params:
        p.data = 0.3 * torch.randn_like(p)
    z = quizzes(teacher)
    written = []

    def write(model, prompts, max_new, n, stop, awake, **kw):
        assert prompts == [[*MARKS.bos, *q] for _, q, _ in QUIZZES] and n == seed.GROUP
        assert {k: (e.tolist(), s.tolist()) for k,
                (e, s) in awake.items()} == {FAST: ([0] * 3, [2] * 3)}
        written[:] = [[*torch.randint(4, 9, (random.randint(0, 3),)).tolist(), 3]
                      for _ in range(3 * n)]
        return written
    monkeypatch.setattr(seed, "generate", write)
    a = settings(f"--imitate={imitate}")
    loss, seen = seed.on_policy_loss(student, z, seed.reader(blank(teacher)), MARKS, FAST, a)
    kind = a.divergence if a.divergence != "sft" else "forward"
    kls, log_pi, judged = [], [], []
    for i, y in enumerate(written):
        q = QUIZZES[i // seed.GROUP][1]
        ids, n = torch.tensor([[*MARKS.bos, *q, *y]]), len(q)
        s = student(ids, awake={FAST: (torch.tensor([0]), torch.tensor([2]))}).log_softmax(-1)[0,
                                                                                               n:-1]
        t = teacher(ids).log_softmax(-1)[0, n:-1]
        kls.append((t, s))
        log_pi.append(sum(s[j, x] for j, x in enumerate(y)))
        judged.append(min(float(t[j, x]) for j, x in enumerate(y)) > -1)
    right = [list(QUIZZES[i // seed.GROUP][2]) for i in range(len(written))]
    table = torch.tensor(judged).float()[:, None] * 2 - 1.5         # > -1 where the judge agrees
    r = seed.rewards(written, right, table, torch.ones_like(table, dtype=torch.bool))
    policy = -(seed.leave_one_out(r, seed.GROUP) * torch.stack(log_pi)).mean()
    alpha = seed.ALPHA if imitate else 1.0
    wanted = []
    for name in {kind, "forward",
                 "reverse"}:                       # the direction is the run's choice
        every = torch.cat([seed.divergence(t, s, name) for t, s in kls])
        wanted.append(alpha * every.mean() + (1 - alpha) * policy)
    error, want = min(((loss - w).abs().item(), w) for w in wanted)
    assert error < 1e-4
    for ours, theirs in zip(torch.autograd.grad(loss, params), torch.autograd.grad(want, params)):
        close(ours, theirs, 1e-4)
    assert all(p.grad is None for p in teacher.parameters())
    assert 0 <= seen["reward"] <= 1 and seen["kl"] > 0


# --------------------------------------------------------------------------------------------------
# Steps

def learnt(student, level, *words, teacher=None, steps=12, **kw):
    teacher = teacher or little(seed=1)
    z, a = quizzes(teacher), settings(*words)
    params = seed.learners(student, level)
    return seed.distil(student, params, z, seed.reader(blank(teacher)), MARKS, level, steps, a,
                       **kw)


@pytest.mark.parametrize("words", [["--on_policy=0"], ["--on_policy=1"],
                                   ["--on_policy=0", "--divergence=sft"],
                                   ["--on_policy=0", "--divergence=jsd"]], ids=" ".join)
def test_distil_trains_the_new_expert_and_nothing_else(words):
    student = little()
    student.unlock(FAST)
    for p in student.live(FAST):
        p.data = 0.1 * torch.randn_like(p)
    student.settle(FAST)
    student.unlock(FAST)
    frozen = {k: t.clone() for k, t in student.state_dict().items() if "_live" not in k}
    lively = [p.detach().clone() for p in student.live(FAST)]
    log = learnt(student, FAST, *words)
    assert all(torch.equal(t, frozen[k]) for k, t in student.state_dict().items()
               if "_live" not in k)
    assert not any(torch.equal(p, q) for p, q in zip(student.live(FAST), lively))
    assert all(math.isfinite(x) for x in log.values())


def test_distil_makes_the_student_say_what_the_teacher_says(monkeypatch):
    monkeypatch.setattr(seed, "ASK_WEIGHT", 0.0)
    student, teacher, z = little(), little(seed=1), quizzes(little(seed=1))
    student.unlock(FAST)
    before = seed.off_policy_loss(student, z, MARKS, FAST, "forward")
    learnt(student, FAST, "--on_policy=0", teacher=teacher, steps=60)
    after = seed.off_policy_loss(student, z, MARKS, FAST, "forward")
    assert after < 0.3 * before


def test_without_expansion_all_mlps_learn_and_nothing_else():
    student = little()
    frozen = {k: t.clone() for k, t in student.state_dict().items()}
    learnt(student, None, "--expand=0", "--on_policy=0")
    for name, t in student.state_dict().items():
        mlp = ".up." in name or ".down." in name
        assert torch.equal(t, frozen[name]) != mlp, name


def test_quizzes_answered_from_memory_are_never_rolled_out(monkeypatch):
    student, teacher = little(), little(seed=1)
    student.unlock(FAST)
    z = quizzes(teacher)._replace(recalled=torch.tensor([True, False, True]))
    seen, real = [], seed.on_policy_loss

    def spy(student, z, *rest):
        seen.extend(unpack(z))
        return real(student, z, *rest)
    monkeypatch.setattr(seed, "on_policy_loss", spy)
    monkeypatch.setattr(seed, "LATE", 0.0)
    params, a = seed.learners(student, FAST), settings("--on_policy=1")
    seed.distil(student, params, z, seed.reader(blank(teacher)), MARKS, FAST, 3, a)
    assert seen and set(seen) == {QUIZZES[1]}
    seen.clear()
    z = z._replace(recalled=torch.ones(3, dtype=torch.bool))        # all of them: no such steps
    seed.distil(student, params, z, seed.reader(blank(teacher)), MARKS, FAST, 3, a)
    assert not seen


def test_learning_that_diverges_is_a_restless_night():
    student, teacher = little(), little(seed=1)
    student.unlock(FAST)
    z = quizzes(teacher)
    z = z._replace(target=z.target * torch.nan)
    with pytest.raises(seed.RestlessNight, match="diverged"):
        seed.distil(student, seed.learners(student, FAST), z, None, MARKS, FAST, 2,
                    settings("--on_policy=0"))


def test_things_are_counted_without_gaps(monkeypatch):
    """What was dropped from the quizzes leaves no thing without a place behind."""
    model = little()
    model.metric = torch.eye(16)
    z = quizzes()._replace(end=torch.tensor([2, 2, 3]), thing=torch.tensor([0, 3, 3]))
    monkeypatch.setattr(gate, "reach", lambda model, mean, count,
                        *rest: torch.full((len(mean),), 0.5))
    level, z = gate.open_gate(model, z, blank(model), (), MARKS, settings())
    assert level == FAST and len(model.things) == 2 and model.things.isfinite().all()


def test_muon_turns_any_gradient_into_equal_steps():
    for shape in ((2, 40, 8), (2, 8, 40), (24, 6)):
        p, m = torch.zeros(shape), torch.zeros(shape)
        p.grad = torch.randn(shape) * torch.logspace(0, -1, shape[-1])
        was = p.grad.clone()
        seed.muon([p], [m], lr=0.1)
        size = torch.linalg.svdvals(p) / 0.1
        assert (size > 0.3).all() and (size < 1.3).all()            # Newton-Schulz: about 1
        assert (p * was).sum() < 0 and torch.equal(m, was)          # downhill; the momentum is kept
        once = p.clone()
        seed.muon([p], [m], lr=0.1)
        assert torch.allclose(m, 1.95 * was) and not torch.equal(p, once)


def test_the_rate_rises_and_falls_to_a_twentieth(monkeypatch):
    rates = []
    monkeypatch.setattr(seed, "muon", lambda params, momenta, lr: rates.append(lr))
    p = torch.nn.Parameter(torch.ones(2, 2))
    for step in range(100):
        seed.descend([p], [None], p.square().sum(), step, 100, 0.2)
    assert torch.equal(p.grad, 2 * torch.ones(2, 2))
    top = max(rates)
    assert rates[0] < top / 4 and 0.17 < top <= 0.2 and 0.01 <= rates[-1] < 0.02
    assert rates[seed.WARMUP:] == sorted(rates[seed.WARMUP:], reverse=True)


# --------------------------------------------------------------------------------------------------
# Replay, and the look back

def test_the_same_self_has_not_drifted_from_its_dreams():
    model = little()
    ids, hidden, mask = bank = seed.replay_bank(model, MARKS)
    assert (ids[:, 0] == MARKS.bos[0]).all() and hidden.shape[:2] == mask.shape
    assert mask.sum(1).min() >= 1 and mask.shape[1] == ids.shape[1] - 1
    assert seed.drift(model, bank, None, 16).abs().max() < 1e-5
    model.unlock(SLOW)                                           # nothing learnt yet: the same self
    assert seed.drift(model, bank, SLOW, 16).abs().max() < 1e-5
    for p in model.live(SLOW):
        p.data = 0.5 * torch.randn_like(p)
    some = seed.drift(model, bank, SLOW, 16)
    assert some.shape == (16,) and (some > 0.01).all()


def test_drift_is_forward_kl_from_the_old_self(monkeypatch):
    old = little()
    new = clone(old)
    for block in new.blocks:                                        # words stay what they are
        block.levels[SLOW].down.weight.data += 0.3 * torch.randn(16, 32)
    rows = [[0, 11, 12, 1, 9, 2, 7, 3], [0, 1, 9, 2, 7, 3]]
    monkeypatch.setattr(dream, "replay", lambda *a: rows)
    got = seed.drift(new, seed.replay_bank(old, MARKS), None, 2)
    want = []
    for row in rows:
        t, s = (who(torch.tensor([row])).log_softmax(-1)[0, :-1] for who in (old, new))
        want.append((t.exp() * (t - s)).sum(-1).mean())
    close(got.sort()[0], torch.stack(want).sort()[0], 1e-5)


def test_known_is_the_probability_of_the_whole_answer():
    model, z = little(), quizzes()
    p = seed.knows(model, z, MARKS, None)
    for i, (_, q, a) in enumerate(QUIZZES):
        lp = model(torch.tensor([[*MARKS.bos, *q, *a]])).log_softmax(-1)[0, len(q):-1]
        close(p[i], sum(lp[j, t] for j, t in enumerate(a)).exp(), 1e-6)


def test_the_look_back_finds_what_was_lost(monkeypatch):
    """A passage is lost where no more than half of the quizzes about its things are answered, or
    none was asked. What memory answered says nothing of it."""
    pairs = [(0, (1, 9, 2), (7, 3)), (0, (1, 8, 2), (7, 3)), (1, (1, 7, 2), (7, 3)),
             (1, (1, 6, 2), (8, 3)),
             (1, (1, 5, 2), (9, 3))]
    day, teacher = SimpleNamespace(passages=[0, 1, 2]), SimpleNamespace(home=[{0}, {1}], told=None)
    z = pack(pairs, "cpu")._replace(recalled=torch.zeros(5, dtype=torch.bool))

    def look(says, before=lambda q: [4, 3], z=z):
        monkeypatch.setattr(asking, "remember", lambda who, marks, asked, n:
                            [((before if who == "cold" else says)(q), None) for q in asked])
        return seed.look_back("new", "cold", z, teacher, day, MARKS)
    monkeypatch.setattr(dream, "questions", lambda *a: [(1, 30 + i, 2) for i in range(8)])
    right = {q: list(a) for _, q, a in pairs}
    log = look(lambda q: right.get(q, [4, 3]))
    assert log == {"known": 1.0, "lost": [2], "moved": 0.0}
    log = look(lambda q: right[q] if q[1] in (9, 8, 7) else [4, 3])
    assert log["lost"] == [1, 2] and log["known"] == 3 / 5
    assert look(lambda q: right[q] if q[1] in (9, 8, 7) else [4, 3],
                z=z._replace(recalled=torch.tensor([False] * 3 + [True] * 2)))["lost"] == [2]
    teacher.home = [{0, 2}, {1}]                            # a thing told of in two passages
    assert look(lambda q: right.get(q, [4, 3]))["lost"] == []
    with pytest.raises(seed.RestlessNight, match="1 of 5 quizzes"):
        look(lambda q: right[q] if q[1] == 9 else [4, 3])
    log = look(lambda q: right.get(q, [5, 3] if q[1] == 30 else [4, 3]))
    assert log["moved"] == 1 / 8
    with pytest.raises(seed.RestlessNight, match="has changed"):
        look(lambda q: right.get(q, [5, 3]))
