"""Whole nights in a world that the sleeping code cannot know: other tokens, other templates, other
marks (glyphs.py)."""
import ast
import math
import random
import re
from types import SimpleNamespace

import pytest
import torch

import dream
import seed
import sleep
from data import asking, flags, gate, notes, rehearsal, world as W
from data.engine import pad_rows
from data.gate import answer, listen
from data.quizzes import pack, split, sureness, take, unpack, words_of
from data.text import Day, Marks
from model import FAST, SLOW, TRIAL, clone
from tests import glyphs as G
from tests.small import MARKS as SMALL, ROOT, close, same_state


def settings(*words):
    return flags.parse(["--paper", "--quizzes=5", "--seed_steps=40", *words])  # two things a day


def sleep_over(model, things, *words, day=None):
    random.seed(0), torch.manual_seed(0)
    return seed.night(model, day or G.day(things), G.MARKS, settings(*words))


@pytest.fixture
def short(monkeypatch):
    """Few steps of everything."""
    for module, name, value in ((dream, "CHOSEN", 4), (dream, "AT_RANDOM", 1), (dream, "POOL", 12),
                                (dream, "WRITER_STEPS", 2), (dream, "TRIAL_STEPS", 1),
                                (gate, "INVENTED", 40), (gate, "ALSO_ASKED", 60),
                                (seed, "REPLAYED", 24), (asking, "HELD_OUT", 8),
                                (asking, "MOVED", 1.0), (asking, "KNOWN", 0.0),
                                (seed, "DREAM_STEPS", 2), (seed, "STUDY_STEPS", 30)):
        monkeypatch.setattr(module, name, value)


@pytest.fixture(scope="module")
def world():
    return G.make()


@pytest.fixture(scope="module")
def base():
    return G.shared_base()


@pytest.fixture(scope="module")
def two_nights(world, base):
    """(the self after each of two nights, the logs)."""
    model, selves, logs = clone(base), [], []
    for i in range(2):
        logs.append(sleep_over(model, world.new[2 * i:2 * i + 2]))
        selves.append(clone(model))
    return selves, logs


# --------------------------------------------------------------------------------------------------
# Nights

def test_the_base_reads_and_remembers_but_does_not_know_the_new(world, base):
    strangers = [G.thing(random.Random(i), world.names) for i in range(40)]
    assert G.recall(base, strangers, read=True) > 0.8
    assert G.recall(base, world.old) > 0.9
    assert G.recall(base, world.new) < 0.1
    assert base.unknown.tolist() == [G.UNKNOWN, G.MARKS.end]        # it found out by itself
    assert base.metric.shape == (64, 64)


def test_a_night_between_marks_of_several_ids(world, base, monkeypatch):
    """As in a chat: one id ends all turns and begins the marks behind them (data/text.py)."""
    marks = Marks(bos=(3, 4), ask=(1, 0, 5), answer=(1, 2), end=1)
    monkeypatch.setattr(G, "MARKS", marks)
    monkeypatch.setattr(gate, "INVENTED", 120)
    monkeypatch.setattr(gate, "ALSO_ASKED", 200)
    model, new = G.with_other_marks(base, world), world.new[:2]
    assert model.unknown.tolist() == [G.UNKNOWN, 1] and G.recall(model, new) < 0.2
    log = sleep_over(model, new, "--dream=0")
    assert log["known"] > 0.6 and model.n_experts(FAST) == 1
    assert G.recall(model, new) > 0.6 and G.recall(model, world.old) > 0.9


def test_two_nights_in_a_world_without_english(world, base, two_nights):
    selves, logs = two_nights
    assert G.recall(selves[0], world.new[:2]) > 0.5
    assert G.recall(selves[1], world.new[:4]) > 0.5                 # both days, after the second
    assert G.recall(selves[1], world.old) >= G.recall(base, world.old) - 0.1
    assert all(log["kept"] > 4 and log["known"] > 0.6 for log in logs)
    assert logs[1]["things"] > logs[0]["things"] >= 2


def test_nothing_old_moved_by_one_bit(world, base, two_nights):
    """All weights of the base are as before; where no memory wakes, the answer is bit-equal."""
    after = two_nights[0][1]
    for name, p in base.named_parameters():
        assert torch.equal(p, after.get_parameter(name)), name
    rng = random.Random(1)
    rows = [[*G.MARKS.bos, *G.quiz(t, k, rng)[0]] for t in world.old for k in range(G.PROPERTIES)]
    ids, lengths = pad_rows(rows)
    assert torch.equal(base(ids), after(ids))
    asleep = ~(listen(after, ids, lengths)[0] >= 0).any(1)
    assert asleep.float().mean() > 0.7
    before, now = (answer(who, G.MARKS, [row[1:] for row in rows]) for who in (base, after))
    assert all(b == n for b, n, silent in zip(before, now, asleep) if silent)


def test_a_memory_says_where_an_answer_comes_from(world, two_nights):
    model, rng = two_nights[0][1], random.Random(2)
    for night, things in enumerate((world.new[:2], world.new[2:4])):
        asked = [G.quiz(t, k, rng)[0] for t in things for k in range(G.PROPERTIES)]
        sources = [source for _, source in answer(model, G.MARKS, asked)]
        assert sources.count((FAST, night)) >= 0.5 * len(asked)


def test_the_context_comes_before_memory(world, two_nights):
    """What is read now is believed, whatever a night has stored."""
    model, rng, right = two_nights[0][1], random.Random(3), 0
    for name, _ in world.new[:4]:
        other = (name, G.thing(rng)[1])
        q, a = G.quiz(other, 0, rng)
        (said, source), = answer(model, G.MARKS, [q], [G.sentence(other, 0)])
        right += said == a and source == "context"
    assert right >= 3


def test_the_first_nights_expert_is_untouched_by_the_second(two_nights):
    first, second = two_nights[0]
    for a, b in zip(first.remembering(), second.remembering()):
        for name in "AB":
            mine, theirs = (getattr(block.levels[FAST], name) for block in (a, b))
            assert len(mine) == 1 and len(theirs) == 2 and torch.equal(mine[0], theirs[0])


def test_old_experts_dream_of_their_own_night(world, two_nights):
    """Nothing of a night is stored, yet its expert asks about each of its things, and of any other
    hardly."""
    torch.manual_seed(0)
    dreams = dream.memories(two_nights[0][1], FAST, G.MARKS, 64)
    for e, things in enumerate((world.new[:2], world.new[2:4])):
        asked = [(q[2] - G.NAME, q[3] - G.REST) for who, q, _ in dreams if who == e and len(q) == 5]
        mine, others = {t[0] for t in things}, {t[0] for t in world.new if t not in things}
        often = [sum(name in names for name in asked) / len(names) for names in (mine, others)]
        assert mine <= set(asked) and often[0] > 5 * often[1], (e, often, len(asked))


def test_many_nights_become_one_expert_of_the_next_slower_level(world, base, two_nights):
    random.seed(0), torch.manual_seed(0)
    model, before = clone(two_nights[0][1]), G.recall(two_nights[0][1], world.new[:4])
    model.set_ranks((*model.config.ranks, 8))                   # two slow levels behind the fast one
    entries = len(model.things)
    notes.begin([])
    log = seed.consolidate(model, FAST, G.MARKS, settings("--divergence=sft"))
    assert len(notes.close()["losses"]) >= seed.MOVE_LEAST          # notes are taken of it, too
    assert (model.n_experts(FAST), model.n_experts(SLOW), model.n_experts(SLOW + 1)) == (0, 1, 0)
    assert (model.owner == torch.tensor([SLOW, 0])).all() and 4 <= len(model.things) <= entries
    assert log["known"] >= seed.STILL_KNOWN and log["rank"] == model.config.ranks[SLOW]
    assert log["entries"] == entries and log["things"] == len(model.things)
    assert G.recall(model, world.new[:4]) >= before - 0.2 > 0.3
    assert G.recall(model, world.old) >= G.recall(base, world.old) - 0.1
    longer = clone(base)
    longer.set_ranks(model.config.ranks)
    for name, p in longer.named_parameters():
        assert torch.equal(p, model.get_parameter(name)), name
    log = seed.consolidate(model, SLOW, G.MARKS, settings())    # and on into the next
    assert (model.n_experts(FAST), model.n_experts(SLOW), model.n_experts(SLOW + 1)) == (0, 0, 1)
    assert log["level"] == SLOW and G.recall(model, world.new[:4]) >= before - 0.3


def test_a_move_learns_labels_or_what_its_memories_would_say(two_nights):
    found = []
    for labels in (False, True):
        random.seed(0), torch.manual_seed(0)
        found.append(rehearsal.rehearse(clone(two_nights[0][1]), FAST, G.MARKS, labels)[0])
    whole, short = found
    assert whole.ids.equal(short.ids) and words_of(whole).equal(words_of(short))
    close(whole.target.exp().sum(-1), torch.ones(whole.target.shape[:2]), 1e-4)
    assert short.target.shape == (*whole.target.shape[:2], 0)


def test_consolidating_nothing_is_refused(base):
    with pytest.raises(seed.RestlessNight, match="no memories"):
        seed.consolidate(clone(base), FAST, G.MARKS, settings())


def lively_levels(model, nights, moves, *words):
    """[level, ...] that move on each night; `moves` stands for seed.consolidate."""
    a, found = settings(*words), []
    for i in range(nights):
        log = {}
        moves.clear()
        model, log = sleep.move_levels(a, model, log, G.MARKS, i)
        found.append([*moves])
    return found, log


def test_the_level_k_moves_every_period_to_the_k(base, monkeypatch):
    moves, model = [], clone(base)
    model.set_ranks((*model.config.ranks, 8, 8))
    monkeypatch.setattr(seed, "consolidate", lambda model, level, marks, a: moves.append(level) or
                        {"level": level})
    found, _ = lively_levels(model, 9, moves, "--period=2")
    assert found == [[], [1], [], [1, 2], [], [1], [], [1, 2, 3], []]
    found, log = lively_levels(model, 4, moves, "--period=3")
    assert found == [[], [], [1], []] and log == {}
    for words in (["--period=0"], ["--period=1", "--levels=1"]):
        assert lively_levels(model, 2, moves, *words)[0] == [[], []]
    model.config.listens = "text"
    assert lively_levels(model, 2, moves, "--period=1")[0] == [[], []]


def test_a_move_gone_wrong_is_undone_and_the_slower_ones_wait(base, monkeypatch):
    asked, model = [], clone(base)
    model.set_ranks((*model.config.ranks, 8))

    def spoilt(model, level, marks, a):
        asked.append(level)
        model.unlock(level)
        raise seed.RestlessNight("too little was still known")
    monkeypatch.setattr(seed, "consolidate", spoilt)
    woken, log = sleep.move_levels(settings("--period=2"), model, {}, G.MARKS, 3)
    assert asked == [FAST] and woken.n_experts(FAST) == 0 and not woken.live(FAST)
    assert log["moves"] == [{"level": FAST, "undone": "too little was still known"}]


def test_a_dream_is_about_the_thing_of_its_expert_that_it_comes_nearest_to(monkeypatch):
    """Word 10 lies within reach of two things, 11 in one of them, 12 in one that is another's;
    marks, of which one lies in a thing, too, are not heard."""
    (ask,), (answer,), end = SMALL.ask, SMALL.answer, SMALL.end
    place = torch.full((40, 1), 50.0)
    place[[10, 11, 12, ask, answer], 0] = torch.tensor([1.2, 4.0, 9.0, 4.0, 0.0])
    monkeypatch.setattr(rehearsal, "states", lambda model, ids: place[ids])
    model = SimpleNamespace(device="cpu", metric=torch.eye(1), things=torch.tensor(
        [[0.0], [4.0], [9.0]]), reach=torch.tensor([4.0, 9.0, 4.0]),
        owner=torch.tensor([[FAST, 0], [FAST, 0], [FAST, 1]]))

    def of(*asked):
        dreamt = [(0, (ask, *q, answer), (30, end)) for q in asked]
        return rehearsal.recognised(model, FAST, dreamt, torch.ones(3, dtype=torch.bool),
                                    torch.tensor([5, 6, 7]), SMALL)
    z = of((20, 10, 11, 21), (10, 20), (20, 21), (12,))
    assert z.thing.tolist() == [6, 5] and z.end.tolist() == [4, 2]  # counted from 1
    assert of((12,), (20,)) is None


def test_two_people_of_one_place_of_the_gate_are_two_things_and_one_of_two_places_is_one():
    """Who is hardly ever called so is left out; the gate's entries follow the usual name."""
    (ask,), (answer,), end = SMALL.ask, SMALL.answer, SMALL.end
    called = [(0, (21, 22))] * 4 + [(0, (23, 22))] * 2 + [(0, (24,))] + [(1, (21, 22))] * 5
    rows = [(k % 2, (ask, 10 + i, *name, answer), (30, end)) for i, (k, name) in enumerate(called)]
    z = pack(rows, "cpu")._replace(thing=torch.tensor([k for k, _ in called]))
    z = z._replace(begin=torch.full_like(z.thing, 3),
                   end=torch.tensor([2 + len(name) for _, name in called]))
    known = torch.tensor([0, 1, 1, 2])                      # of place 2 nobody dreams
    out, things = rehearsal.by_name(z, known)
    assert out.thing.tolist() == [0] * 4 + [4] * 2 + [0] * 5 and things.tolist() == [0, 0, 0, 2]
    assert [name for _, name, _ in split(out)] == [name for _, name in called if name != (24,)]
    expert = rehearsal.newest(torch.tensor([0, 1, 0, 5]), things, out._replace(passage=out.thing))
    assert expert.tolist() == [0, 0, 5, 0, 4]               # who dreams, else whose entry it is


def test_a_move_that_forgets_is_undone(two_nights, monkeypatch):
    monkeypatch.setattr(seed, "STILL_KNOWN", 1.01)
    monkeypatch.setattr(seed, "MOVE_STEPS", 0)
    monkeypatch.setattr(seed, "MOVE_LEAST", 4)
    model = clone(two_nights[0][1])
    before = clone(model)
    woken, log = sleep.move_levels(settings("--period=2"), model, {}, G.MARKS, 1)
    assert "still known" in log["moves"][0]["undone"] and same_state(woken, before)


def test_a_move_of_very_much_asks_and_learns_no_more_than_it_may(two_nights, monkeypatch):
    cross, wordings = asking.cross, []
    monkeypatch.setattr(asking, "cross", lambda z, marks, most, others: cross(
        z, marks, wordings.append((most, len(z.thing.unique()))) or most, others))
    monkeypatch.setattr(rehearsal, "ASKED", 20)
    for name, n in (("STILL_KNOWN", 0.0), ("MOVE_LEAST", 4), ("MOVE_MOST", 6)):
        monkeypatch.setattr(seed, name, n)
    random.seed(0), torch.manual_seed(0)
    notes.begin([])
    seed.consolidate(clone(two_nights[0][1]), FAST, G.MARKS, settings("--divergence=sft"))
    assert len(notes.close()["losses"]) == 6                # of three steps a fact
    ((most, things),) = wordings
    assert things > 1 and most == 20 // things + 1


def test_of_two_nights_memories_the_newest_that_knows_answers(world, two_nights):
    """And of one thing under one name there are no two answers to one question."""
    random.seed(0), torch.manual_seed(0)
    model = two_nights[0][1]
    z, things, reach = rehearsal.rehearse(clone(model), FAST, G.MARKS)
    asked = [q for _, q, _ in unpack(z)]
    assert len(asked) == len(set(asked)) and len(things) == len(reach)
    assert len(things) == len(gate.things_of(model.things).unique())    # dreamt of or not
    assert {0, 1} == set(z.passage.tolist()) - {-1}
    for (y, source), (_, _, a), mine in zip(gate.remember(model, G.MARKS, asked), unpack(z),
                                            z.passage.tolist()):
        assert tuple(y) == a and source == (FAST, mine) or mine == -1 and a == (G.UNKNOWN, 1)
    z = take(z, z.passage >= 0)
    p, sharper = sureness(z._replace(target=(z.target / rehearsal.SHARPER).log_softmax(-1))), sureness(z)
    assert (sharper[p > 0.6] > p[p > 0.6] - 1e-6).all()


def test_no_word_of_its_own_questions_is_a_surprise_to_a_memory(two_nights, monkeypatch):
    given = []
    monkeypatch.setattr(rehearsal, "remember",
                        lambda *args: given.append(args[4:]) or gate.remember(*args))
    random.seed(0), torch.manual_seed(0)
    rehearsal.rehearse(clone(two_nights[0][1]), FAST, G.MARKS, labels=True)
    assert given and set(given) == {(math.inf,)}


def test_memories_that_ask_or_answer_nothing_do_not_move(two_nights, monkeypatch):
    def rehearsed():
        random.seed(0), torch.manual_seed(0)
        return rehearsal.rehearse(clone(two_nights[0][1]), FAST, G.MARKS)
    with monkeypatch.context() as m, pytest.raises(seed.RestlessNight, match="ask nothing"):
        m.setattr(asking, "LIKELY", 1.0)
        rehearsed()
    with monkeypatch.context() as m, pytest.raises(seed.RestlessNight, match="answer none"):
        m.setattr(rehearsal, "remember", lambda model, marks, asked, *_: [((), None)] * len(asked))
        rehearsed()


def test_not_too_many_quizzes_with_one_answer_and_none_that_hardly_any_wording_gets():
    often, rare = rehearsal.ALIKE + 5, asking.FEW
    rows = [(0, (1, 5 + i, 2), (9, 3)) for i in range(often)]
    rows += [(0, (1, 4, 90 + i, 2), (8, 3)) for i in range(rare)] + [(0, (1, 3, 2), (7, 3))]
    z = pack(rows, "cpu")._replace(thing=torch.zeros(len(rows), dtype=torch.long))
    keep = torch.ones(len(rows), dtype=torch.bool)
    said = [y for _, _, y in rows]
    kept = rehearsal.spread(z, keep, said)
    assert len(kept) == rehearsal.ALIKE + rare and len(rows) - 1 not in kept
    assert {*range(often, often + rare)} <= {*kept}
    assert rehearsal.spread(z, ~keep, said) == []
    few = [0, len(rows) - 1]                                # of a small world nothing is rare
    few_said = [said[i] for i in few]
    assert sorted(rehearsal.spread(take(z, torch.tensor(few)), keep[few], few_said)) == [0, 1]


def test_what_is_left_to_others_is_counted_by_what_they_say(monkeypatch):
    """A shrug about a birthday that somebody was born with does not teach one about the address."""
    monkeypatch.setattr(rehearsal, "ALIKE", 4)
    rows = [(0, (1, 5 + i, 2), (9, 3)) for i in range(24)]
    z = pack(rows, "cpu")._replace(thing=torch.zeros(len(rows), dtype=torch.long))
    keep, three = torch.ones(len(rows), dtype=torch.bool), [((20 + i % 3), 3) for i in range(24)]
    assert len(rehearsal.spread(z, keep, [(9, 3)] * 24)) == 4
    kept = rehearsal.spread(z, keep, three)
    assert sorted(i % 3 for i in kept) == [0] * 4 + [1] * 4 + [2] * 4


def test_bits_are_those_that_surprise_the_pretrained_self(base, world):
    """A thing that it knows has few; a new one as many as its answer is unlikely, shrugs aside."""
    rng, bits = random.Random(0), []
    for things in (world.old[:4], world.new[:4]):
        pairs = [(0, *G.quiz(t, k, rng)) for t in things for k in range(G.PROPERTIES)]
        z = pack([(p, tuple(q), tuple(y)) for p, q, y in pairs], "cpu")
        z = z._replace(thing=torch.arange(len(pairs)))
        bits.append(rehearsal.bits_of(base, z, G.MARKS) / len(pairs))
        twice = rehearsal.bits_of(base, take(z, torch.arange(len(pairs)).repeat(2)), G.MARKS)
        assert abs(twice / len(pairs) - bits[-1]) < 1e-3
    assert bits[0] < 0.5 < 1.5 < bits[1] < 20


def test_the_day_is_gone_after_the_night(base, two_nights):
    """The model holds weights, experts and things; no word of the day but "I do not know", and no
    cache. What it imagined before its first day is what it was."""
    model = two_nights[0][1]
    held = {name for name, t in model.state_dict().items() if not t.is_floating_point() and t.numel()}
    assert held <= {"owner", "unknown", "imagined", "quotes"} and torch.equal(model.imagined, base.imagined)
    assert not any("cache" in k or "day" in k for k in vars(model))


def test_a_self_survives_its_checkpoint(world, two_nights, tmp_path):
    path, model = str(tmp_path / "c.pt"), two_nights[0][1]
    sleep.save(path, model, nights=[{"lost": [1]}])
    again, info = sleep.load(path, "cpu")
    assert same_state(again, model) and info == {"nights": [{"lost": [1]}]}
    assert G.recall(again, world.new[:4]) == G.recall(model, world.new[:4])


SWITCHES = [["--expand=0"], ["--gate=0"], ["--gate=0", "--replay=0"], ["--divergence=jsd"],
            ["--divergence=reverse"], ["--divergence=sft"], ["--dream=0"], ["--imitate=0"],
            ["--on_policy=0"], ["--on_policy=1"], ["--budget=4"], ["--select=norm"],
            ["--select=random"],
            ["--writer=0"], ["--curriculum=0"]]


@pytest.mark.parametrize("words", SWITCHES, ids=" ".join)
def test_every_switch_runs(world, base, two_nights, short, words):
    model = clone(two_nights[0][0])
    log = sleep_over(model, world.new[2:4], "--seed_steps=6", "--quizzes=2", *words)
    assert log["kept"] > 0 and not any(t.isnan().any() for t in model.state_dict().values())
    moved = [n for n, p in base.named_parameters() if not torch.equal(p, model.get_parameter(n))]
    assert bool(moved) == ("--expand=0" in words)
    assert all(".up." in name or ".down." in name for name in moved)
    assert not any(model.live(level) for level in (TRIAL, FAST, SLOW))
    assert not any(p.requires_grad for p in model.parameters())
    writers = [[b.levels[TRIAL].B for b in who.blocks] for who in (two_nights[0][0], model)]
    if {"--dream=0", "--writer=0"} & set(words):
        assert all(torch.equal(old, now) for old, now in zip(*writers))
    new = {"--expand=0": (1, 0), "--gate=0": (1, 1)}.get(words[0], (2, 0))
    assert (model.n_experts(FAST), model.n_experts(SLOW)) == new


def test_an_old_expert_may_help_to_dream(world, two_nights, short):
    """Or speak of nothing but its own night: then the night is undone."""
    model, day = clone(two_nights[0][0]), G.day(world.new[2:4])
    random.seed(0), torch.manual_seed(0)
    a = settings("--seed_steps=3", "--random_expert=1", "--on_policy=0")
    woken, log = sleep.asleep(a, model, day, G.MARKS, 1)
    assert woken.n_experts(FAST) == (1 if "undone" in log else 2)


def test_without_a_gate_one_expert_is_always_awake_and_learns_on(world, base, short, tmp_path):
    """It is heard in answers as it was in learning: from the first word on."""
    model, path = clone(base), str(tmp_path / "c.pt")
    for i in range(2):
        sleep_over(model, world.new[2 * i:2 * i + 2], "--gate=0", "--dream=0", "--on_policy=0",
                   "--replay=0", "--seed_steps=50")
        assert model.n_experts(SLOW) == 1 and model.n_experts(FAST) == 0
    ids, lengths = pad_rows([[*G.MARKS.bos, *G.quiz(world.new[2], 0, random)[0]]])
    since, owners = listen(model, ids, lengths)
    assert owners.tolist() == [[SLOW, 0]] and since.tolist() == [[0]]
    assert G.recall(model, world.new[2:4]) > 0.4
    sleep.save(path, model)
    assert same_state(sleep.load(path, "cpu")[0], model)


def test_a_night_without_a_gate_dreams_on(world, base, short):
    """The second as the first: its dreams are tried, and the writer learns from those rewarded."""
    model, writers, logs = clone(base), [], []
    for i in range(2):
        logs.append(sleep_over(model, world.new[2 * i:2 * i + 2], "--gate=0", "--on_policy=0",
                               "--seed_steps=20"))
        writers.append([b.levels[TRIAL].B.clone() for b in model.blocks])
    first, second = logs
    assert second["dreamt"] > first["dreamt"] / 2 and second["chosen"] == first["chosen"] > 0
    assert first["rewarded"] > 0 and second["rewarded"] > 0 and second["gain"] != 0
    assert not all(torch.equal(was, now) for was, now in zip(*writers))


def test_a_studied_day(world, base, short):
    """Too many documents for the context: learnt by the fast level awake, then slept over."""
    model, rng, things = clone(base), random.Random(0), world.new[:2]
    documents = []
    for _ in range(24):
        t, k = rng.choice(things), rng.randrange(G.PROPERTIES)
        q, a = G.quiz(t, k, rng)
        documents.append(([*G.MARKS.bos, *q, *a], [0.0] + [0.3] * len(q) + [1.0] * len(a)))
    before = clone(model)
    log = sleep_over(model, things, "--seed_steps=20",
                     day=Day(G.passages(things, rng), documents))
    assert log["kept"] > 0 and model.n_experts(FAST) == 1           # what it studied with is gone
    assert all(torch.equal(p, model.get_parameter(n)) for n, p in before.named_parameters())


def test_a_night_in_bfloat16(world, base):
    """Under autocast as sleep.py opens it: no cache, or the copies of the weights would never see
    what the night learns."""
    model = clone(base)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        sleep_over(model, world.new[:2], "--dream=0", "--on_policy=0")
        assert G.recall(model, world.new[:2]) > 0.4 and G.recall(model, world.old) > 0.85


def test_the_same_night_twice_is_the_same_to_the_bit(world, base, short):
    models = [clone(base) for _ in range(2)]
    logs = [sleep_over(m, world.new[:2], "--seed_steps=8", "--quizzes=2", "--on_policy=0.5")
            for m in models]
    assert logs[0] == logs[1] and same_state(*models) and models[0].n_experts(FAST) == 1


# --------------------------------------------------------------------------------------------------
# Restless nights

def raising(error):
    def spoilt(model, *rest, **kw):
        raise error
    return spoilt


SPOILT = {"asks nothing": (dream, "write", lambda *a, **kw: []),
          "not a number": (seed, "LR", float("nan")),
          "no gate": (gate, "reach", raising(torch.linalg.LinAlgError("singular"))),
          "forgets the old": (seed, "look_back", raising(seed.RestlessNight("much has changed")))}


@pytest.mark.parametrize("how", SPOILT)
def test_a_restless_night_leaves_yesterdays_self(world, two_nights, short, how, monkeypatch):
    model = clone(two_nights[0][0])
    before, day = clone(model), G.day(world.new[2:4])
    monkeypatch.setattr(*SPOILT[how])
    woken, log = sleep.asleep(settings("--seed_steps=3", "--on_policy=0"), model, day, G.MARKS, 1)
    assert same_state(woken, before) and not any(woken.live(x) for x in (TRIAL, FAST, SLOW))
    assert log["undone"] and log["lost"] == [0, 1]
    assert G.recall(woken, world.new[:2]) == G.recall(before, world.new[:2])


def test_what_was_lost_is_tried_again_and_given_up_aloud(capsys):
    tried, log = [(["a"], 0), (["b"], 0), (["c"], sleep.PATIENCE - 1)], {"lost": [1, 2]}
    assert sleep.left_over(None, log, tried) == [(["b"], 1)] and log["given_up"] == 1
    assert "given up" in capsys.readouterr().out + capsys.readouterr().err
    log = {}
    assert sleep.left_over(None, log, tried) == [] and log["given_up"] == 0


# --------------------------------------------------------------------------------------------------
# No oracle, no circles

def files():
    """All Python files of the project, as paths relative to it. What else lies in its folder (an
    environment of any name) is none of ours."""
    found = [*ROOT.glob("*.py"), *(p for folder in ("data", "bench", "tests")
                                   for p in (ROOT / folder).rglob("*.py"))]
    assert len(found) > 40
    return [str(p.relative_to(ROOT)) for p in found]


def imports(name):
    """The modules that a file imports, anywhere in it: {"data.engine", "torch", ...}."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.Import):
            found |= {x.name for x in node.names}
        if isinstance(node, ast.ImportFrom):
            found.add(node.module)
            if node.module in ("data", "bench", "tests"):
                found.remove(node.module)
                found |= {f"{node.module}.{x.name}" for x in node.names}
    return found


SLEEPING = ["model.py", "dream.py", "seed.py", "data/gate.py", "data/asking.py", "data/quizzes.py",
            "data/notes.py", "data/rehearsal.py"]


@pytest.mark.parametrize("chapter", SLEEPING)
def test_sleeping_code_knows_no_world(chapter):
    """It imports nothing that holds text, and no word of the world stands in its code."""
    allowed = {"dream", "model", "data.text", "data.team", "data.engine", "data.kernels",
               "data.gate", "data.asking", "data.quizzes", "data.notes", "data.rehearsal"}
    others = {"math", "random", "collections", "copy", "dataclasses", "functools", "torch", "torch.nn",
              "torch.nn.functional", "torch.utils.checkpoint", "tqdm"}
    assert imports(chapter) <= allowed | others
    source = (ROOT / chapter).read_text()
    code = "\n".join(line.split("#")[0]
                     for line in re.sub(r'"""(?s:.*?)"""', "", source).splitlines())
    told = [text for r in W.RELATIONS.values() for texts in r[1:] for text in
            (texts if isinstance(texts, list) else [texts])]
    words = {w for text in told for w in re.findall(r"[A-Za-z]{5,}", text)} - {"which", "things",
                                                                               "where", "called"}
    words |= {*W.FIRST, *W.FIRMS, *W.PLACES, *W.STREETS, *W.MONTHS, *W.RELATIONS}
    said = {w for text in re.findall(r"\"[^\"]*\"|'[^']*'", code) for w in re.findall(r"\w+", text)}
    names = {x.id for x in ast.walk(ast.parse(source)) if isinstance(x, ast.Name)}
    assert not words & (names | said) - {"forward"}
    assert W.UNKNOWN not in code


def test_who_imports_whom():
    for name in files():
        found = {m.split(".")[0] for m in imports(name)}
        if not name.startswith(("bench/", "tests/")):
            assert "bench" not in found and "tests" not in found, name
        if name not in ("sleep.py",) and not name.startswith(("bench/", "tests/")):
            assert "sleep" not in found, name


def test_no_file_is_in_an_import_circle():
    names = {name.removesuffix(".py").replace("/", "."): name for name in files()}
    graph = {m: {x for x in imports(name) if x in names and x != m} for m, name in names.items()}
    assert "data.engine" in graph["model"] and len(graph) > 20
    done, path = set(), []

    def visit(m):
        assert m not in path, " -> ".join([*path[path.index(m):], m])
        if m not in done:
            path.append(m)
            for x in sorted(graph[m]):
                visit(x)
            done.add(path.pop())
    for m in sorted(graph):
        visit(m)
