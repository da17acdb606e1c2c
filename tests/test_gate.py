"""The gate: what wakes a memory, which memory answers, and what a thing is. On a model whose state
at every token is that token, so that all distances are known."""
from types import SimpleNamespace

import pytest
import torch

import dream
from data import gate
from data.engine import generate, pad_rows, prefill
from data.gate import answer, listen, remember
from data.quizzes import pack, unpack
from model import FAST, SLOW
from tests.small import MARKS, V, close, lively, little, plain

SHRUG = [38, 39, MARKS.end]
ASK = [*MARKS.ask, 10, 11, 12, *MARKS.answer]


def bare(*things):
    """A model that hears token t as the unit vector t; things: (token, reach, level, expert)."""
    model = plain(torch.float32, hears=0)
    model.wte.weight.copy_(torch.eye(V, 48))
    model.norm.weight.fill_(1)
    model.metric = torch.eye(48) / 48 ** 0.5                # states have the length sqrt(n_embd)
    model.unknown = torch.tensor(SHRUG)
    for token, reach, level, expert in things:
        model.remember_things(torch.eye(48)[[token]], torch.tensor([reach]), level, expert)
    return model


def heard(model, *rows):
    ids, lengths = pad_rows(rows)
    since, owners = listen(model, ids, lengths)
    return since.tolist(), [tuple(o) for o in owners.tolist()]


# --------------------------------------------------------------------------------------------------
# listen

def test_states_are_of_one_length_and_no_expert_moves_them():
    model, ids = lively(torch.float32, n_layer=3, hears=2), torch.randint(V, (3, 9))
    x = gate.states(model, ids)
    assert torch.allclose(x.square().mean(-1), torch.ones(3, 9), atol=1e-3)
    for level in range(3):
        model.reset(level)
    assert torch.equal(gate.states(model, ids), x)


def test_a_thing_is_heard_where_it_last_comes_within_reach():
    model = bare((10, 0.5, FAST, 0), (20, 0.5, FAST, 1), (21, 0.5, FAST, 1))
    since, owners = heard(model, [1, 10, 5, 10], [21, 20, 10, 5], [5, 6, 7, 8], [20, 5, 21, 5])
    assert owners == [(FAST, 0), (FAST, 1)]
    assert since == [[3, -1], [2, 1], [-1, -1], [-1, 2]]            # -1: nowhere
    assert heard(bare(), [1, 2]) == ([[]], [])


def test_reach_is_a_squared_distance_in_the_metric():
    for reach, wakes in ((1.9, False), (2.1, True)):        # other tokens lie at squared distance 2
        assert heard(bare((10, reach, FAST, 0)), [5, 6])[0] == [[1 if wakes else -1]]
    model = bare((10, 0.5, FAST, 0))
    model.metric[10] /= 4                                   # the metric stretches what is heard
    assert heard(model, [5, 10])[0] == [[-1]]
    model.metric[10] *= 2
    assert heard(model, [5, 10])[0] == [[1]]


def test_owners_come_oldest_first():
    order = [(FAST, 2), (SLOW, 1), (FAST, 0), (FAST, 1), (SLOW, 0)]
    model = bare(*((10 + i, 0.5, *owner) for i, owner in enumerate(order)))
    since, owners = heard(model, [10, 11, 12, 13, 14])
    assert owners == [(SLOW, 0), (SLOW, 1), (FAST, 0), (FAST, 1), (FAST, 2)]
    assert since == [[4, 1, 2, 3, 0]]


def test_infinite_reach_is_always_awake_and_padding_never_fires():
    model = bare((10, torch.inf, SLOW, 0), (0, 0.5, FAST, 0))           # padding is token 0
    since, _ = heard(model, [7, 8, 9, 5], [7], [7, 0, 8])
    assert since == [[0, -1], [0, -1], [0, 1]]


def test_wakes_counts_from_bos_and_hears_the_question_alone():
    model = bare((11, 0.5, FAST, 0), (30, 0.5, FAST, 1))
    z = pack([(0, (1, 10, 11, 12, 2), (30, 3)), (0, (1, 11, 2), (5, 3)),
                    (0, (1, 5, 2), (11, 3))],
                   "cpu")
    assert gate.wakes(model, z, FAST, 0, MARKS).tolist() == [3, 2, -1]
    assert gate.wakes(model, z, FAST, 1, MARKS).tolist() == [-1] * 3    # an answer wakes nobody


# --------------------------------------------------------------------------------------------------
# remember, answer

def speaking(monkeypatch, says, sure=lambda source, answer: 1.0):
    """Instead of a decoder: says {(source, last word of the text before <answer>): answer ids}, and
    how sure each source is of its answer."""
    calls = []

    def greedy(model, prompts, marks, max_new, awake=None):
        out = []
        for i, prompt in enumerate(prompts):
            who = [(level, int(e[i]), int(s[i])) for level, (e, s) in (awake or {}).items()
                   if e[i] >= 0]
            assert len(who) <= 1, "two memories speak at once"
            calls.append((who[0] if who else None, tuple(prompt)))
            source = who[0][:2] if who else None
            out.append(list(says(source, prompt)))
        return out
    monkeypatch.setattr(gate, "greedy", greedy)
    monkeypatch.setattr(gate, "certainty", lambda model, rows, answers, sources, begin:
                        [sure(source, y) for source, y in zip(sources, answers)])
    return calls


def test_the_newest_memory_is_asked_first(monkeypatch):
    """If it does not know, older ones are asked, each awake from its own place on; then the
    pretrained self."""
    model = bare((11, 0.5, FAST, 1), (12, 0.5, FAST, 0), (10, 0.5, SLOW, 0))
    knows = {(FAST, 0): [21, 3], (FAST, 1): [22, 3], (SLOW, 0): [23, 3], None: [24, 3]}
    asked = [(FAST, 1, 3), (FAST, 0, 4), (SLOW, 0, 2), None]
    for n, want in enumerate([(FAST, 1), (FAST, 0), (SLOW, 0), None]):  # the n before do not know
        mute = [source[:2] for source in asked[:n]]
        calls = speaking(monkeypatch, lambda who, _: SHRUG if who in mute else knows[who])
        assert remember(model, MARKS, [ASK]) == [(knows[want], want)]
        # awake from where the question comes near its thing, <bos> counted
        assert [who for who, _ in calls] == asked[:n + 1]
    assert all(prompt == (*MARKS.bos, *ASK) for _, prompt in calls)


@pytest.mark.parametrize("sure, want", [
    ({1: 0.7, 0: 0.9}, 1),                                  # the newest that is sure
    ({1: 0.5, 0: 0.9}, 0),                                  # one that is not does not know
    ({1: 0.5, 0: 0.4}, 1), ({1: 0.4, 0: 0.5}, 0),           # of guesses the surest
    ({1: 0.2, 0: 0.1}, None)])                              # which must be worth saying
def test_a_memory_that_is_not_sure_does_not_know(monkeypatch, sure, want):
    model = bare((11, 0.5, FAST, 1), (11, 0.5, FAST, 0))
    says = {(FAST, 0): [21, 3], (FAST, 1): [22, 3], None: [24, 3]}
    speaking(monkeypatch, lambda who, _: says[who], lambda who, y: sure[who[1]] if who else 0.0)
    source = None if want is None else (FAST, want)
    assert remember(model, MARKS, [ASK]) == [(says[source], source)]


@pytest.mark.parametrize("fast, slow, born_with, want", [
    (0.2, 0.75, True, SLOW),                                # a slow memory that is sure
    (0.2, 0.65, True, None),                                # is surer than a fast one has to be:
    (0.65, 0.9, True, FAST),                                # it has heard of many; its guess yields
    (0.2, 0.65, False, SLOW),                               # to a self that knows, not to a shrug;
    (0.4, 0.2, True, FAST)])                                # what was read last night does not
def test_a_guess_of_a_slow_memory_yields_to_what_the_self_was_born_with(
        monkeypatch, fast, slow, born_with, want):
    model, sure = bare((11, 0.5, FAST, 0), (11, 0.5, SLOW, 0)), {FAST: fast, SLOW: slow}
    says = {FAST: [21, 3], SLOW: [22, 3], None: [24, 3] if born_with else SHRUG}
    speaking(monkeypatch, lambda who, _: says[who and who[0]], lambda who, y: sure[who[0]]
             if who else 0.0)
    source = None if want is None else (want, 0)
    assert remember(model, MARKS, [ASK]) == [(says[want], source)]
    model.unknown = model.unknown[:0]                       # one that cannot say so knows nothing
    got = remember(model, MARKS, [ASK])[0][1]
    assert got == (source or (SLOW, 0))


def test_certainty_is_the_least_certain_word_of_the_answer():
    model, zero = lively(torch.float32), torch.zeros(1, dtype=torch.long)
    rows, answers = [[0, 1, 10, 11, 2], [0, 1, 12, 2], [0, 1, 5, 2]], [[7, 3], [8, 9, 3], [6, 3]]
    sources, begin = [(FAST, 0), None, (SLOW, 1)], [3, 0, 1]
    found = gate.certainty(model, rows, answers, sources, begin)
    for row, y, source, at, p in zip(rows, answers, sources, begin, found):
        awake = {source[0]: (zero + source[1], zero + at)} if source else None
        prob = model(torch.tensor([[*row, *y]]), awake=awake).softmax(-1)[0, len(row) - 1:-1]
        want = min(float(prob[j, t]) for j, t in enumerate(y)) if source else 1.0
        assert abs(p - want) < 1e-5
    assert gate.certainty(model, [], [], [], []) == []


GIVEN = len(MARKS.bos) + len(MARKS.ask)


def test_which_memories_one_question_means_by_hand(monkeypatch):
    """Those that wake and find it no more than DOUBT less likely than another does, or the
    pretrained self, which has heard much, but not of what is new."""
    owners = torch.tensor([[SLOW, 0], [FAST, 0], [FAST, 1]])
    nats = {("a", SLOW, 0): -3.0, ("a", FAST, 0): -9.0, ("a", FAST, 1): -7.0, "a": -30.0,
            ("c", FAST, 0): -20.0, ("c", FAST, 1): -10.0, "c": -12.0,
            ("d", FAST, 0): -20.0, "d": -16.0}

    def token_log_probs(model, rows, sources, begin):
        assert begin == [0] * len(rows)
        all_ = [nats[(row, *source) if source else row] for row, source in zip(rows, sources)]
        return torch.tensor(all_)[:, None] * torch.eye(8)[GIVEN - 1]    # in one word
    monkeypatch.setattr(gate, "token_log_probs", token_log_probs)
    since = torch.tensor([[0, 5, 4], [-1, -1, -1], [-1, 3, 2], [-1, 4, -1]])
    assert gate.meant(None, MARKS, "abcd", since, owners) == [[0, 2], [], [2], [1]]
    nats["d"] = -14.0                                       # somebody whom it has always known
    assert gate.meant(None, MARKS, "abcd", since, owners) == [[0, 2], [], [2], []]
    monkeypatch.setattr(gate, "DOUBT", 6.5)
    assert gate.meant(None, MARKS, "abcd", since, owners) == [[0, 1, 2], [], [2], [1]]
    assert gate.meant(None, MARKS, "ab", torch.zeros(2, 0), owners[:0]) == [[], []]


def test_a_slow_memory_has_not_heard_of_a_name_with_a_surprising_word(monkeypatch):
    """No word more than SURPRISE less likely to it than to the pretrained self, where the name
    stands: not in what is given, not behind it; a fast memory, and what has no gate, are not held
    to it."""
    slow, fast = (FAST + 1, 0), (FAST, 0)
    owners = torch.tensor([slow, fast])
    for at in range(8):                                     # the token before the 8 is given
        def token_log_probs(model, rows, sources, begin, at=at):
            word = torch.eye(8)[at] * 4.5
            return torch.stack([torch.full((8,), -1.0) - (word if s else 0) for s in sources])
        monkeypatch.setattr(gate, "token_log_probs", token_log_probs)
        for since in range(1, 9):
            told = [[1]] if GIVEN <= at + 1 <= since else [[0, 1]]
            assert gate.meant(None, MARKS, "a", torch.tensor([[since, since]]), owners) == told
        assert gate.meant(None, MARKS, "a", torch.tensor([[0, -1]]), owners) == [[0]]
    assert gate.meant(None, MARKS, "a", torch.tensor([[8, 8]]), owners) == [[1]]
    assert gate.meant(None, MARKS, "a", torch.tensor([[8, 8]]), owners, 4.6) == [[0, 1]]


def test_the_likelihood_of_a_question_to_each_memory():
    model = lively(torch.float32)
    rows = [[0, 1, 10, 11, 2], [0, 1, 12, 2], [0, 1, 10, 11, 2]]
    sources = [(FAST, 0), None, (SLOW, 1)]
    want = []
    for row, source in zip(rows, sources):
        zero = torch.zeros(1, dtype=torch.long)
        awake = {source[0]: (zero + source[1], zero)} if source else None
        log_p = model(torch.tensor([row[:-1]]), awake=awake).log_softmax(-1)[0]
        want.append(sum(log_p[i - 1, row[i]] for i in range(2, len(row))))
    assert abs(want[0] - want[2]) > 1e-3                    # the memories differ
    for at_once in (1, 2, 512):
        close(gate.likelihood(model, rows, sources, 2, at_once), torch.stack(want), 1e-4)
    assert gate.likelihood(model, [], []).shape == (0,)


def test_rows_of_like_length_are_read_together_and_each_as_if_alone():
    model = lively(torch.float32)
    rows = [[0, 1, 12, 2], [0, 1], [0, 1, 5, 6, 7, 8, 2], [0, 1, 11, 2]]
    groups = gate.by_length([len(row) for row in rows], at_once=2)
    assert [group.tolist() for group in groups] == [[1, 0], [3, 2]]
    together = gate.token_log_probs(model, rows, [None] * 4, [0] * 4, at_once=2)
    assert together.shape == (4, 6)
    for row, log_p in zip(rows, together):
        alone = gate.token_log_probs(model, [row], [None], [0])[0]
        close(log_p[:len(alone)], alone, 1e-4)
        assert not log_p[len(alone):].any()
    assert gate.by_length([]) == () and not len(gate.token_log_probs(model, [], [], []))


def test_of_memories_of_one_thing_the_newest_is_asked_first(monkeypatch):
    model = bare((11, 0.5, FAST, 1), (11, 0.5, SLOW, 1), (11, 0.5, FAST, 0), (11, 0.5, SLOW, 0))
    calls = speaking(monkeypatch, lambda who, _: SHRUG if who else [24, 3])
    assert remember(model, MARKS, [ASK]) == [([24, 3], None)]
    newest_first = [(FAST, 1, 3), (FAST, 0, 3), (SLOW, 1, 3), (SLOW, 0, 3), None]
    assert [who for who, _ in calls] == newest_first


def test_each_question_has_its_own_memory(monkeypatch):
    model = bare((11, 0.5, FAST, 0), (12, 0.5, FAST, 1))
    asked = [[1, 12, 2], [1, 5, 2], [1, 11, 2], [1, 11, 12, 2]]
    says = {(FAST, 0): [21, 3], (FAST, 1): SHRUG, None: [24, 3]}
    speaking(monkeypatch, lambda who, prompt: says[who])
    assert remember(model, MARKS, asked) == [([24, 3], None), ([24, 3], None), ([21, 3], (FAST, 0)),
                                             ([21, 3], (FAST, 0))]
    assert remember(model, MARKS, []) == []


def test_the_pretrained_self_has_the_last_word_even_to_say_it_does_not_know(monkeypatch):
    model = bare((11, 0.5, FAST, 0))
    speaking(monkeypatch, lambda who, prompt: SHRUG)
    assert remember(model, MARKS, [ASK]) == [(SHRUG, None)]
    model.unknown = model.unknown[:0]                       # one that never says so
    assert remember(model, MARKS, [ASK]) == [(SHRUG, (FAST, 0))]


def test_look_first_then_remember(monkeypatch):
    model = bare((11, 0.5, FAST, 0))

    def says(who, prompt):
        text = prompt[1:-len(ASK)]
        if text:                                            # what is read in the context
            return {30: [25, 3], 31: SHRUG, 32: [24, 3]}[text[0]]
        return [21, 3] if who else [24, 3]
    speaking(monkeypatch, says)
    found = answer(model, MARKS, [ASK] * 4, [[30], [31], [32], []])
    memory = ([21, 3], (FAST, 0))
    assert found == [([25, 3], "context"), memory, memory, memory]
    assert answer(model, MARKS, [ASK]) == [memory]


def test_the_context_is_read_by_the_pretrained_self(monkeypatch):
    model = bare((11, torch.inf, SLOW, 0))
    calls = speaking(monkeypatch, lambda who, prompt: [20 + len(prompt), 3])
    answer(model, MARKS, [ASK], [[11, 11, 30]])
    assert {who for who, prompt in calls if len(prompt) > 1 + len(ASK)} == {None}


def test_without_a_trick_the_answer_is_that_of_the_expert(monkeypatch):
    """No decoder replaced: memories speak as `generate` says, however unsure they are."""
    monkeypatch.setattr(gate, "SURE", 0.0), monkeypatch.setattr(gate, "SURER", 0.0)
    model = lively(torch.float32)
    model.metric, model.config.hears = torch.randn(5, 48), 1
    asked = [[1, *torch.randint(4, V, (4,)).tolist(), 2] for _ in range(6)]
    ids, lengths = pad_rows([[0, *q] for q in asked])
    spots = gate.states(model, ids) @ model.metric.T
    model.remember_things(spots[0, 3:4], torch.tensor([1e-3]), FAST, 0)
    model.remember_things(spots[1, 2:3], torch.tensor([1e-3]), SLOW, 1)
    found = remember(model, MARKS, asked, 8)
    assert [who for _, who in found] == [(FAST, 0), (SLOW, 1), None, None, None, None]
    for i, (level, expert, since) in enumerate([(FAST, 0, 3), (SLOW, 1, 2), (FAST, -1, 0)]):
        one = {level: (torch.tensor([expert]), torch.tensor([since]))}
        assert found[i][0] == generate(model, [[0, *asked[i]]], 8, temperature=0, stop=[3],
                                       awake=one)[0]


def test_greedy_answers_many_questions_in_parts(monkeypatch):
    model = lively(torch.float32, n_layer=1)
    prompts = [row[:1 + i % 3] for i, row in enumerate(torch.randint(4, V, (515, 3)).tolist())]
    who = {FAST: (torch.arange(515) % 3 - 1, torch.arange(515) % 2)}
    got = gate.greedy(model, prompts, MARKS, 3, who)
    assert len(got) == 515
    for i in (0, 1, 511, 512, 513, 514):
        one = {FAST: (who[FAST][0][i:i + 1], who[FAST][1][i:i + 1])}
        assert got[i] == gate.greedy(model, [prompts[i]], MARKS, 3, one)[0]


# --------------------------------------------------------------------------------------------------
# Things

def test_gains_are_log_ratios_of_the_words_of_questions():
    model, day = little(), [[0, 11, 12, 13], [0, 21, 22]]
    pairs = [(0, (1, 9, 8, 2), (7, 3)), (1, (1, 9, 2), (6, 5, 3))]
    z = pack(pairs, "cpu")
    got = gate.gains(model, z, MARKS, prefill(model, day)[0], z.passage)
    for i, (text, (_, q, a)) in enumerate(zip(day, pairs)):
        def log_p(before):
            ids = torch.tensor([[*before, *q, *a]])
            lp = model(ids).log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
            return lp[len(before):len(before) + len(q) - 1]
        close(got[i, :len(q) - 1], log_p(text) - log_p([0]), 1e-5)
        assert (got[i, len(q) - 1:] == 0).all()


def test_a_thing_stands_where_the_gain_has_come():
    """From a tenth to MOST of it, and over the tokens right behind that still gain."""
    # <ask> a b c <answer>: gains of a, b, c, <answer>; <ask> itself is token 1, a token 2
    gain = {(0.0, 3.0, 7.0, 0.0): (3, 4), (5.0, -9.0, 5.0, 0.0): (2, 4),
            (8.0, 1.0, 1.0, 0.0): (2, 2), (0.9, 0.5, 9.0, 0.0): (3, 4),           # a tenth has not
            (20.0, 1.6, 1.6, 0.0): (2, 4), (20.0, 1.0, 1.6, 0.0): (2, 2)}   # SYLLABLE is 1.5
    begin, end = gate.specific(torch.tensor(list(gain)))
    assert list(zip(begin.tolist(), end.tolist())) == list(gain.values())


def test_what_lies_close_is_one_thing():
    centres = 10 * torch.eye(3, 6)
    which = torch.randint(3, (40,))
    x = centres[which] + 0.05 * torch.randn(40, 6)
    thing = gate.things_of(x)
    assert thing.min() == 0 and thing.max() == 2
    same = which[:, None] == which
    assert torch.equal(thing[:, None] == thing, same)
    assert gate.things_of(torch.zeros(1, 6)).tolist() == [0]
    mean, count = gate.means(x, thing)
    for k in range(3):
        close(mean[k], x[thing == k].mean(0), 1e-5)
        assert count[k] == (thing == k).sum()


def test_the_metric_whitens_what_differs_within_a_thing():
    """Of any covariance: in its metric, states lie round about their thing alike in all directions,
    98 of a hundred within a distance of 1."""
    model, n, d = SimpleNamespace(), 4000, 6
    turn = torch.linalg.qr(torch.randn(d, d))[0]
    stretch = turn * torch.tensor([1, 1.5, 2, 2, 3, 4])
    thing = torch.arange(n) % 200
    x = 30 * torch.randn(200, d)[thing] + torch.randn(n, d) @ stretch.T
    gate.fit_metric(model, x, thing)
    mean, count = gate.means(x, thing)
    z = (x - mean[thing]) @ model.metric.T
    spread = z.T @ z / len(z)
    assert torch.allclose(spread / spread.diagonal().mean(), torch.eye(d), atol=0.12)
    share = (z.square().sum(1) < 1).float().mean()
    assert 0.97 < share < 0.995
    assert torch.cdist(mean @ model.metric.T,
                       mean @ model.metric.T).add(99 * torch.eye(200)).min() > 1


def test_a_metric_of_few_directions_has_those_that_tell_things_apart():
    """Things that differ in two of six directions, however loud the others are."""
    model, d = SimpleNamespace(), 6
    turn = torch.linalg.qr(torch.randn(d, d))[0]
    thing = torch.arange(4000) % 200
    mean = torch.cat([torch.randn(200, 2) * 100, torch.zeros(200, d - 2)], 1)
    x = (mean[thing] + torch.randn(4000, d) * torch.tensor([1.0, 1, 50, 50, 50, 50])) @ turn.T
    means, _ = gate.means(x, thing)

    def told_apart(W):
        return (torch.cdist(x @ W.T, means @ W.T).argmin(1) == thing).float().mean()
    gate.fit_metric(model, x, thing)
    assert model.metric.shape == (d, d) and told_apart(model.metric[:2]) < 0.5
    of_all = told_apart(model.metric)
    gate.fit_metric(model, x, thing, directions=2)
    assert model.metric.shape == (2, d) and told_apart(model.metric) > max(0.9, of_all - 0.01)
    share = ((x - means[thing]) @ model.metric.T).square().sum(1).lt(1).float().mean()
    assert 0.97 < share < 0.995


@pytest.mark.parametrize("n", [1, 2])
def test_the_metric_of_a_self_that_cannot_read_is_still_a_metric(n):
    model = SimpleNamespace()
    for directions, rows in ((0, 6), (4, 4)):
        gate.fit_metric(model, torch.randn(n, 6), torch.arange(n), directions=directions)
        assert model.metric.shape == (rows, 6) and model.metric.isfinite().all()


def test_nearest_is_the_nearest_token_of_each_row():
    model = bare()
    rows = [[0, 10, 11], [0, 5]] * 40                       # more than are heard at once
    far, at = gate.nearest(model, rows, torch.eye(48)[[11, 5, 0]])
    close(far[:2], torch.tensor([[0.0, 2, 0], [2, 0, 0]]), 1e-3)
    close(far[78:], far[:2], 1e-3)
    assert (at[0, [0, 2]].tolist(), at[1, [1, 2]].tolist()) == ([2, 0], [1, 0])


def test_reach_ends_before_the_nearest_other_question(monkeypatch):
    """min(sqrt(p n), FARTHEST p, 0.9 n), where n is the nearest question that the day does not make
    likelier, and that does not name the thing."""
    model, mean = bare(), torch.eye(48)[[10, 11, 12]]
    z = pack([(0, (1, 9, 2), (7, 3)), (0, (1, 8, 2), (7, 3)), (1, (1, 7, 2), (7, 3))], "cpu")
    z = z._replace(thing=torch.tensor([0, 1, 2]), begin=torch.full((3,), 2),
                   end=torch.full((3,), 2))
    asked = [(1, 20, 2), (1, 21, 2), (1, 22, 5, 2), (1, 20, 8, 2), (1, 8, 20, 2)]
    n = torch.tensor([[1.0, 90.0, 60.0], [50.0, 2.5, 70.0], [60.0, 70.0, 0.5], [70.0, 0.1, 60.0],
                      [70.0, 3.5, 90.0]])               # the last begins with a name, and goes on
    model.imagined, _ = pad_rows(asked, pad=-1)

    def nearest(model, rows, mean):
        assert rows == [[*MARKS.bos, *q] for q in asked]
        return n.clone(), torch.ones_like(n, dtype=torch.long)
    monkeypatch.setattr(gate, "nearest", nearest)
    likelier = {20: 0.0, 21: 0.0, 22: 5.0, 8: 0.0}          # one of them speaks of its thing
    monkeypatch.setattr(gate, "gains", lambda model, doubt, *rest:
                        torch.tensor([[likelier[q[1]]] for _, q, _ in unpack(doubt)]))
    teacher = SimpleNamespace(model=model, cache=None, awake={})
    p = torch.tensor([2.0, 1.5, 1.25])
    got = gate.reach(model, mean, p, z, teacher, MARKS)
    want = [min((p[0] * 1.0).sqrt(), 0.9), min((p[1] * 2.5).sqrt(), 4 * p[1], 0.9 * 2.5), 4 * p[2]]
    assert gate.FARTHEST == 4 and torch.allclose(got,
                                                 torch.stack([torch.as_tensor(w) for w in want]))


@pytest.mark.parametrize("many", [1, gate.SHARED - 1, gate.SHARED])
def test_what_many_are_asked_about_behind_the_same_words_is_a_wording(monkeypatch, many):
    """The day makes all of these questions likelier; they come near behind their second word."""
    model, mean = bare(), torch.eye(48)[[10]]
    z = pack([(0, (1, 9, 2), (7, 3))], "cpu")
    z = z._replace(thing=torch.tensor([0]), begin=torch.tensor([2]), end=torch.tensor([2]))
    asked = [(1, 30, 10 + i, 2) for i in range(many)] + [(1, 31 + i, 10, 2) for i in range(9)]
    model.imagined, _ = pad_rows(asked, pad=-1)
    monkeypatch.setattr(gate, "nearest", lambda model, rows, mean: (
        torch.full((len(rows), 1), 0.5), torch.full((len(rows), 1), 2)))
    monkeypatch.setattr(gate, "gains", lambda model, doubt, *rest: 9.0 * torch.ones_like(doubt.ids))
    teacher = SimpleNamespace(model=model, cache=None, awake={})
    got = gate.reach(model, mean, torch.tensor([2.0]), z, teacher, MARKS)
    assert got.item() == pytest.approx(8.0 if many < gate.SHARED else 0.9 * 0.5)


def test_a_thing_lies_as_far_apart_as_most_of_its_own_questions_were_heard():
    """Of thing 0 nine tenths lie within 1.44, of 1 (a single question) within nothing, of 2 too far.
    """
    x = torch.tensor([[0.1]] * 8 + [[1.2]] * 2 + [[5.0]] + [[2.0], [-2.0], [2.0]])
    thing = torch.tensor([0] * 10 + [1] + [2] * 3)
    mean, count = torch.tensor([[0.0], [5.0], [0.0]]), torch.tensor([10, 1, 3])
    p = gate.own_spread(x, mean, count, thing)
    torch.testing.assert_close(p, torch.tensor([1.44, 2.0, gate.WIDE]))


@pytest.mark.parametrize("asked", [[], [(0, (1, 9, 2), (7, 3))]])
def test_a_self_that_invents_nothing_learns_some_metric(monkeypatch, asked):
    """After hardly any pretraining: nothing to hear, yet nothing breaks."""
    model = little()
    monkeypatch.setattr(gate, "MIN_GAIN", 1e9)
    monkeypatch.setattr(gate, "invent", lambda *a: ([[0, 11]] * len(asked), asked))
    monkeypatch.setattr(dream, "questions", lambda *a: [(1, 8, 7, 2)] * len(asked))
    gate.learn_to_listen(model, MARKS)
    assert model.imagined.tolist() == ([[1, 9, 2, -1], [1, 8, 7, 2]] if asked else [])
    assert model.metric.shape[1] == 16 and model.metric.isfinite().all() and len(model.unknown) == 0
    assert remember(model, MARKS, [[1, 9, 2]])[0][1] is None
    z = pack([(0, (1, 9, 2), (7, 3))], "cpu")._replace(thing=torch.tensor([0]))
    model.imagined = model.imagined[:0]
    reach = gate.reach(model, torch.zeros(1, len(model.metric)), torch.tensor([2.0]), z, None, MARKS)
    assert reach.tolist() == [gate.FARTHEST * 2]            # nobody is near
