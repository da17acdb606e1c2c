"""Asking everything: on questions of made-up tokens, worked out by hand, and whole nights in the
world of glyphs.py."""
import random
from types import SimpleNamespace

import pytest
import torch

import seed
from data import asking, flags
from data.engine import generate, prefill
from data.gate import MAX_NEW, listen
from data.quizzes import RestlessNight, join, pack, repack, split, take, unpack
from data.text import Day
from model import FAST, Config, clone
from tests import glyphs as G
from tests.small import MARKS, V, close, lively, little, plain

(ASK,), (ANSWER,), END = MARKS.ask, MARKS.answer, MARKS.end
UNKNOWN = (38, 39, END)
WHO, WHERE, CALLED = ((ASK, 30), (ANSWER,)), ((ASK, 31), (32, ANSWER)), ((ASK, 33), (ANSWER,))


def ask(*asked):
    """[(thing, wording, name, answer)] as after the screen; a passage a thing."""
    z = pack([(k, (*before, *name, *after), tuple(y)) for k, (before, after), name, y in asked],
             "cpu")
    begin = torch.tensor([len(before) + 1 for _, (before, _), _, _ in asked])
    end = torch.tensor([len(before) + len(name) for _, (before, _), name, _ in asked])
    return z._replace(thing=z.passage, begin=begin, end=end,
                      wording=torch.zeros_like(z.ids, dtype=torch.bool))


def questions(z):
    return [(k, q) for k, q, _ in unpack(z)]


# --------------------------------------------------------------------------------------------------
# Where a name ends

def test_a_question_is_wording_name_wording():
    z = ask((0, WHERE, (10, 11), (20, END)), (1, WHO, (12,), (21, 22, END)))
    assert split(z) == [((ASK, 31), (10, 11), (32, ANSWER)), ((ASK, 30), (12,), (ANSWER,))]


def test_names_cut_short_or_too_long_are_heard_by_common_wordings():
    whole = [(k, WHERE, (10 + k, 20 + k), (END,)) for k in range(3)]
    short = 3, ((ASK, 31), (23, 32, ANSWER)), (13,), (END,)             # <ask> 31 [13] 23 32
    early = 4, ((ASK,), (32, ANSWER)), (31, 14, 24), (END,)             # [31 14 24] 32
    late = 5, ((ASK, 31, 15), (32, ANSWER)), (25,), (END,)              # 15 [25]
    rare = 6, ((ASK, 34), (16, ANSWER)), (35,), (END,)                  # nobody else is asked so
    z = ask(*whole, short, early, late, rare)
    names = [name for _, name, _ in split(asking.apart(z, MARKS))]
    assert names == [*((10 + k, 20 + k) for k in range(6)), (35,)]


def test_a_first_name_that_many_have_belongs_to_the_name():
    """Then "Where does Mara ... live" is heard often, and so is each last name."""
    maras, others = [(10, 20 + k) for k in range(7)], [(11 + k, 60 + k) for k in range(7)]
    asked = [(k, ((ASK, 40 + w), (50 + w, ANSWER)), name, (END,))
             for k, name in enumerate(maras + others) for w in range(7)]
    names = [name for _, name, _ in split(asking.apart(ask(*asked), MARKS))]
    assert names == [name for _, _, name, _ in asked]


def test_a_name_is_heard_by_its_wordings_and_a_wording_by_imagined_names():
    """A day that speaks of one person: each wording is heard once, and the name is everywhere."""
    wide = 0, ((ASK,), (ANSWER,)), (46, 10, 20), (END,)
    others = [(ASK, 46, 60 + k, ANSWER) for k in range(3)]
    assert split(asking.apart(ask(wide), MARKS))[0][1] != (10, 20)      # nothing says so
    assert split(asking.apart(ask(wide), MARKS, others))[0] == ((ASK, 46), (10, 20), (ANSWER,))
    many = [(0, ((ASK, 40 + w), (50 + w, ANSWER)), (10,), (END,)) for w in range(5)]
    one = 0, ((ASK, 46), (48, ANSWER)), (10, 47), (END,)
    assert split(asking.apart(ask(*many, one), MARKS))[5][1] == (47,)   # holds what was specific
    one = 0, ((ASK, 46), (47, 48, ANSWER)), (10,), (END,)
    assert split(asking.apart(ask(*many, one), MARKS))[5][1] == (10,)


def test_wordings_that_were_imagined_of_others_are_asked_too():
    """WHERE is asked of the thing today, and of others WHERE and 77: so 77 can be asked of it. Of a
    kind of which nothing is asked today, 78, it is not."""
    kind = [((ASK, 31), (32, ANSWER)), ((ASK, 77), (79, ANSWER))]
    others = [(*before, 60 + k, *after) for before, after in kind for k in range(4)]
    others += [(ASK, 78, 70 + k, 80, ANSWER) for k in range(4)]
    z = ask((0, WHERE, (10,), (END,)))
    asked = {q for _, q, _ in unpack(asking.cross(z, MARKS, 40, others))}
    assert asked == {(ASK, 31, 10, 32, ANSWER), (ASK, 77, 10, 79, ANSWER)}
    assert {q for _, q, _ in unpack(asking.cross(z, MARKS))} == {(ASK, 31, 10, 32, ANSWER)}


@pytest.mark.parametrize("study", [[], [([0], [1.0])]])
def test_a_thing_knows_the_passages_it_was_told_in(monkeypatch, study):
    """Sentence by sentence, or, of a day that was studied, passage by passage."""
    home = [{0}, {1}]
    day = Day([[[10, 5], [10, 6]], [[11, 7]]], study)
    where = [0, 1, 2] if not study else [0, 0, 1]
    z = ask(*((k, WHO, (10 + k,), (END,)) for k in (0, 0, 1)))._replace(passage=torch.tensor(where))
    monkeypatch.setattr(asking, "sensible", lambda teacher, z, marks: z)
    monkeypatch.setattr(asking, "about", lambda model, z, marks: z.thing)
    monkeypatch.setattr(asking, "gather", lambda teacher, z, marks:
                        [{s: 9.0 - s for k, s in zip(z.thing.tolist(), z.passage.tolist())
                          if k == thing} for thing in (0, 1)])
    assert len(asking.one_by_one(day).passages) == max(where) + 1
    z, things, found = asking.thing_by_thing(SimpleNamespace(model=little()), z, day, MARKS)
    single = [[10, 5], [10, 6], [11, 7]] if not study else [[10, 5, 10, 6], [11, 7]]
    assert [sum(told, []) for told in things.passages] == [[10, 5, 10, 6], [11, 7], *single]
    assert found["home"] == home + [{0}, {0}, {1}][-len(single):]
    assert z.passage.tolist() == [0, 0, 1] and len(found["told"]) == len(single)
    assert [[things.passages[i] for i in some] for some in found["parts"]] == \
        [[[s] for s in told] for told in things.passages[:2]]


# --------------------------------------------------------------------------------------------------
# Everything that can be asked

def test_things_of_one_kind_exchange_wordings():
    z = ask((0, WHO, (10, 11), (20, END)), (0, WHERE, (10, 11), (20, END)),
            (1, WHO, (12,), (20, END)),
            (2, CALLED, (14,), (20, END)))                              # of another kind
    new = asking.cross(z, MARKS)
    assert sorted(questions(new)) == sorted(
        [*questions(z), (1, (ASK, 31, 12, 32, ANSWER))])
    assert new.thing.tolist() == new.passage.tolist() and new.target is None
    for (before, name, after), wording, y in zip(split(new), new.wording.tolist(), unpack(new)):
        assert name in ((10, 11), (12,), (14,)) and y[2] == (END,)
        words = [False, *[True] * (len(before) - 1), *[False] * len(name),
                 *[True] * (len(after) - 1), False]                     # the marks are none
        assert wording[:len(words)] == words and not any(wording[len(words):])


def test_kinds_meet_through_what_they_have_in_common():
    """0 and 2 share no wording but both share one with 1: what was asked of 2 is not asked of 0."""
    z = ask((0, WHO, (10,), (END,)), (1, WHO, (11,), (END,)), (1, WHERE, (11,), (END,)),
            (2, WHERE, (12,), (END,)), (2, CALLED, (12,), (END,)))
    asked = questions(asking.cross(z, MARKS))
    assert (0, (ASK, 31, 10, 32, ANSWER)) in asked and (1, (ASK, 33, 11, ANSWER)) in asked
    assert (0, (ASK, 33, 10, ANSWER)) not in asked and len(asked) == 8


def test_not_more_wordings_than_are_asked_for():
    z = ask(*((0, ((ASK, 20 + i), (ANSWER,)), (10,), (END,)) for i in range(6)),
            (1, ((ASK, 20), (ANSWER,)), (11,), (END,)))
    asked = questions(asking.cross(z, MARKS, 2))
    assert sum(k == 0 for k, _ in asked) == 6                           # its own stay, all
    assert 1 <= sum(k == 1 for k, _ in asked) <= 3


def test_a_name_up_to_answer_tells_nothing():
    """There the self could not tell where the name ended."""
    z = pack([(0, (ASK, 30, 10, ANSWER), (END,))], "cpu")
    z = z._replace(thing=z.passage, begin=torch.tensor([3]), end=torch.tensor([4]))
    with pytest.raises(RestlessNight, match="what its questions are about"):
        asking.cross(z, MARKS)


def test_what_a_sentence_alone_says_is_learnt_from_that_sentence(monkeypatch):
    """Thing 0 is told of in sentences 2 and 3. All of them together say nothing of the second
    question, 3 alone does: its distribution must come from there (`look_up` reads z.passage)."""
    z = ask((0, WHO, (10,), (END,)), (0, WHERE, (10,), (END,)), (1, WHO, (11,), (END,)))
    known = {(0, 0): (20, END), (3, 1): (21, END), (1, 2): (22, END)}

    def read(teacher, asked, marks):
        number = {q: n for n, (_, q, _) in enumerate(unpack(z))}
        return [known.get((p, number[q]), UNKNOWN) for p, q, _ in asked]
    monkeypatch.setattr(asking, "cross", lambda z, *_: z)
    monkeypatch.setattr(asking, "sensible", lambda teacher, z, marks: z)
    monkeypatch.setattr(asking, "read", read)
    z = z._replace(wording=torch.zeros_like(z.ids, dtype=torch.bool))
    model = SimpleNamespace(unknown=torch.tensor(UNKNOWN), config=Config(),
                            imagined=torch.zeros(0, 0, dtype=torch.long))
    found = asking.ask_everything(SimpleNamespace(model=model, parts=[[2, 3], [4]]), z, MARKS)
    assert [(p, y) for p, _, y in unpack(found)] == [(0, (20, END)), (3, (21, END)), (1, (22, END))]
    assert found.thing.tolist() == [0, 0, 1]


WHOSE, HOW = ((ASK, 40), (ANSWER,)), ((ASK, 41), (42, ANSWER))      # about answers


def turned(dreamt, *asked):
    z = ask(*asked)
    direct = {(before, after): None for before, _, after in split(z)}
    new = asking.turn_round(ask(*dreamt), z, direct, UNKNOWN, MARKS)
    return None if new is None else (new, questions(new))


def test_what_was_answered_can_be_asked_about():
    """10 was asked WHO, and answered 20; about 20 the self asked WHOSE. So 11, answered 21 to WHO,
    is asked for by WHOSE, too; 22, the answer to something else, is not."""
    dreamt = [(0, WHOSE, (20,), (10, END))]
    z, asked = turned(dreamt, (0, WHO, (10,), (20, END)), (1, WHO, (11,), (21, 24, END)),
                      (2, WHERE, (12,), (22, END)), (1, WHERE, (11,), UNKNOWN))
    assert asked == [(0, (ASK, 40, 20, ANSWER)), (1, (ASK, 40, 21, 24, ANSWER))]
    assert [name for _, name, _ in split(z)] == [(20,), (21, 24)]
    assert z.thing.tolist() == [3, 4]                       # things of their own
    assert [row[:5] for row in z.wording.tolist()] == [[False, True, False, False, False]] * 2
    assert turned([(0, HOW, (30,), (10, END))], (0, WHO, (10,), (20, END))) is None


def test_the_longest_answer_that_stands_in_a_question_is_what_it_asks_about():
    _, asked = turned([(0, HOW, (20, 21), (9, END))], (0, WHO, (10,), (20, 21, END)),
                      (1, WHERE, (11,), (20, END)), (2, WHERE, (12,), (23, END)))
    assert asked == [(0, (ASK, 41, 20, 21, 42, ANSWER))]    # and not (ASK, 41, 23, 21, 42)


def test_answers_to_one_question_are_of_one_kind():
    """11 is the friend (WHERE) of 10, and 13 of 12. 11 is asked WHO and CALLED, so 13 is, too; and
    by WHOSE, which was heard about 11."""
    told = [(0, WHERE, (10,), (11, END)), (2, WHERE, (12,), (13, END)), (1, WHO, (11,), UNKNOWN),
            (1, CALLED, (11,), UNKNOWN)]
    z, asked = turned([(0, WHOSE, (11,), (10, END))], *told)
    assert sorted(asked) == sorted([(0, (ASK, 40, 11, ANSWER)), (2, (ASK, 40, 13, ANSWER)),
                                    (2, (ASK, 30, 13, ANSWER)), (2, (ASK, 33, 13, ANSWER))])
    assert dict(zip((q for _, q in asked), z.thing.tolist()))[ASK, 40, 11, ANSWER] == 1
    assert len(turned([(0, WHOSE, (11,), (10, END))], *told[:2])[1]) == 2       # nobody is asked so


def test_a_wording_of_things_turns_nothing_round_unless_it_leads_back():
    told = [(0, WHERE, (10,), (11, END)), (1, CALLED, (11,), UNKNOWN), (2, WHERE, (12,), (13, END))]
    _, asked = turned([(1, CALLED, (11,), (10, END))], *told)
    assert (2, (ASK, 33, 13, ANSWER)) in asked
    assert turned([(1, CALLED, (11,), (9, END))], *told) is None


def test_not_more_turns_than_are_asked_for(monkeypatch):
    monkeypatch.setattr(asking, "TURNS", 1)
    dreamt = [(0, WHOSE, (20,), (10, END)), *[(0, HOW, (20,), (y, END)) for y in (10, 9)]]
    _, asked = turned(dreamt, (0, WHO, (10,), (20, END)))
    assert asked == [(0, (ASK, 41, 20, 42, ANSWER))]        # what was heard most often


def test_answers_about_answers_join_the_others(monkeypatch):
    """A turned question that was asked already is kept once; one about which the day says nothing
    is dropped, where it is asked of answers alone."""
    z = ask((0, WHO, (10,), (END,)), (0, WHERE, (10,), (END,)), (1, WHO, (11,), (END,)))
    says = {z_q: y for (_, z_q), y in zip(questions(z), [(20, END), UNKNOWN, (21, END)])}
    says |= {(ASK, 40, 20, ANSWER): (10, END), (ASK, 40, 21, ANSWER): UNKNOWN}
    monkeypatch.setattr(asking, "cross", lambda z, *_: z)
    monkeypatch.setattr(asking, "sensible", lambda teacher, z, marks: z)
    monkeypatch.setattr(asking, "read", lambda teacher, asked, marks: [says[q] for _, q, _ in asked])
    monkeypatch.setattr(asking, "turn_round", lambda dreamt, z, direct, unknown, marks: ask(
        (2, WHOSE, (20,), (END,)), (3, WHOSE, (21,), (END,)), (1, WHO, (11,), (END,))))
    model = SimpleNamespace(unknown=torch.tensor(UNKNOWN), config=Config(),
                            imagined=torch.zeros(0, 0, dtype=torch.long))
    teacher = SimpleNamespace(model=model, parts=[[]] * 4)
    found = asking.ask_everything(teacher, z, MARKS)
    assert [(q, y) for _, q, y in unpack(found)] == [
        *((q, says[q]) for _, q in questions(z)[:2]), ((ASK, 40, 20, ANSWER), (10, END)),
        (questions(z)[2][1], (21, END))]


def test_quizzes_side_by_side():
    z = ask((0, WHO, (10,), (20, END))), ask((1, WHERE, (11, 12), (21, 22, END)))
    both = join(*z)
    assert unpack(both) == unpack(z[0]) + unpack(z[1]) and split(both) == split(z[0]) + split(z[1])
    assert both.wording.shape == both.ids.shape and both.target is None


def test_an_answer_that_repeats_its_question_says_nothing():
    model = SimpleNamespace(unknown=torch.tensor(UNKNOWN), quotes=torch.tensor(False))
    question = (ASK, 30, 10, 11, ANSWER)
    for answer, says in (((20, 21, END), (20, 21, END)), ((10, 11, END), UNKNOWN),
                         ([11, END], UNKNOWN), ((11, 10, END), (11, 10, END)), ((END,), UNKNOWN)):
        assert asking.says(model, [], question, answer) == says


def test_a_self_that_quotes_says_nothing_that_does_not_stand_there():
    """It would speak of somebody else, whom it remembers."""
    quotes, question, text = torch.tensor(True), (ASK, 30, 10, ANSWER), [10, 20, 21, 11, 22]
    model = SimpleNamespace(unknown=torch.tensor(UNKNOWN), quotes=quotes)
    for answer, says in (((20, 21, END), (20, 21, END)), ((20, 22, END), UNKNOWN),
                         ((23, END), UNKNOWN), ((10, END), UNKNOWN)):
        assert asking.says(model, text, question, answer) == says
    model.quotes = torch.tensor(False)
    assert asking.says(model, text, question, (23, END)) == (23, END)


def test_what_a_minority_of_wordings_got_is_dropped():
    """WHO, WHERE and CALLED got the same answers of 0 to 2: they ask the same, also of 3."""
    def rows(k, *answers):
        return [(k, w, (10 + k,), y) for w, y in zip((WHO, WHERE, CALLED), answers)]
    alike = [row for k in range(3) for row in rows(k, *[(20 + k, END)] * 3)]
    z = ask(*alike, *rows(3, (23, END), (29, END), (23, END)))
    keep = asking.agreed(z, UNKNOWN).tolist()
    assert keep == [True] * 9 + [True, False, True]
    few = ask(*alike[:6], *rows(3, (23, END), (29, END), (23, END)))     # two things in common
    assert asking.agreed(few, UNKNOWN).all()


def test_other_questions_do_not_vote():
    z = ask(*((k, w, (10 + k,), (y + k, END)) for k in range(4)
              for w, y in ((WHO, 20), (WHERE, 24), (CALLED, 24))))
    assert asking.agreed(z, UNKNOWN).all()


def test_i_do_not_know_makes_no_two_wordings_the_same():
    z = ask(*((k, w, (10 + k,), UNKNOWN) for k in range(5) for w in (WHO, WHERE, CALLED)),
            (5, WHO, (15,), (20, END)), (5, WHERE, (15,), (21, END)), (5, CALLED, (15,), (21, END)))
    assert asking.agreed(z, UNKNOWN).all()


def test_other_answers_keep_their_masks():
    z = ask((0, WHO, (10, 11), (20, END)), (1, WHERE, (12,), (20, 21, 22, END)))
    wording = torch.rand(z.ids.shape) < 0.5
    for answers in ([(20, 21, 22, 23, 24, END), (END,)], [(END,), (END,)]):     # wider, narrower
        new = repack(z._replace(wording=wording), [(k, q, y) for (k, q), y in
                                                   zip(questions(z), answers)])
        assert [y for _, _, y in unpack(new)] == answers and questions(new) == questions(z)
        assert split(new) == split(z) and torch.equal(new.thing, z.thing)
        assert new.wording.shape == new.ids.shape
        for i, start in enumerate(z.start.tolist()):
            assert torch.equal(new.wording[i, :start], wording[i, :start])


# --------------------------------------------------------------------------------------------------
# What was told of each thing

def test_sentences_are_gathered_where_they_speak_of_a_thing(monkeypatch):
    """Of 0: sentence 0, asked about, and 1, where the thing 1 was that stands in both; not 2, which
    it gains too little from; 3 is not looked at, for nothing of it was there."""
    nats = {(10, 0): 8.0, (10, 1): 5.0, (10, 2): 3.9, (11, 0): 6.0, (11, 1): 9.0, (11, 2): 1.0,
            (12, 3): 0.5, (12, 4): 0.4}
    z = ask((0, WHO, (10,), (END,)), (1, WHO, (11,), (END,)), (1, WHERE, (11,), (END,)),
            (1, CALLED, (11,), (END,)), (2, WHO, (12,), (END,)), (2, WHERE, (12,), (END,)))
    z = z._replace(passage=torch.tensor([0, 0, 1, 2, 3, 4]))
    asked = []

    def gains(model, q, marks, cache, row, experts=()):
        assert q.ids.shape[1] == 3                                      # up to the name
        out = torch.zeros(len(q.ids), 2)
        for i, (name, s) in enumerate(zip(q.ids[:, 2].tolist(), row.tolist())):
            asked.append((name, s // asking.VIEWS))
            out[i] = torch.tensor([50.0, nats[asked[-1]]])              # wording does not count
        return out
    monkeypatch.setattr(asking, "gains", gains)
    found = asking.gather(SimpleNamespace(model=None, cache=None), z, MARKS)
    assert set(asked) == set(nats)
    assert [list(row) for row in found] == [[0, 1], [0, 1], [3]]
    assert found[0][1] == 5.0


# --------------------------------------------------------------------------------------------------
# What the day says, else what memory says

Q = [(0, WHO, (10,), (20, END)), (0, WHERE, (10,), UNKNOWN), (0, CALLED, (10,), (21, END)),
     (1, WHO, (11,), (22, END)), (1, WHERE, (11,), UNKNOWN)]


def looked_up(monkeypatch, memory, z=ask(*Q), sure=0.9):
    """look_up where memory says [(answer, source)], and the teacher is sure of what it says."""
    model = little()
    model.unknown = torch.tensor(UNKNOWN)
    monkeypatch.setattr(asking, "remember", lambda *a: memory)

    def token_log_probs(z, p):
        rest = (1 - p) / (V - 1)
        t = torch.full((*z.ids[:, 1:].shape, V), rest)
        return t.scatter(2, z.ids[:, 1:, None], p).log()
    monkeypatch.setattr(asking, "memory_of", lambda model, z, marks, sources:
                        asking.answers_of(z, token_log_probs(z, 0.8)))
    got = asking.look_up(SimpleNamespace(model=model), z, MARKS, lambda z, view: token_log_probs(z, sure))
    return got, list(zip(unpack(got), got.recalled.tolist()))


def test_memory_answers_where_the_day_does_not_say(monkeypatch):
    memory = [([29, END], (FAST, 0)), ([28, END], (FAST, 0)), ([21, END], (FAST, 0)),
              (list(UNKNOWN), None), (list(UNKNOWN), None)]
    z, got = looked_up(monkeypatch, memory)
    told = dict((q, (y, recalled)) for (_, q, y), recalled in got)
    assert told == {(ASK, 30, 10, ANSWER): ((20, END), False),          # the day's word wins
                    (ASK, 31, 10, 32, ANSWER): ((28, END), True),       # yesterday's memory
                    (ASK, 33, 10, ANSWER): ((21, END), False),
                    (ASK, 30, 11, ANSWER): ((22, END), False),
                    (ASK, 31, 11, 32, ANSWER): (UNKNOWN, True)}         # it knows that it does not
    close(asking.sureness(z), torch.tensor([0.9, 0.8, 0.9, 0.9, 0.8]), 1e-5)


def test_things_of_which_the_day_says_nothing_new_are_dropped(monkeypatch):
    memory = [([20, END], (FAST, 0)), ([28, END], (FAST, 0)), ([21, END], (FAST, 0)),
              (list(UNKNOWN), None), (list(UNKNOWN), None)]
    _, got = looked_up(monkeypatch, memory)
    assert {k for (k, _, _), _ in got} == {1}
    with pytest.raises(RestlessNight, match="not sure"):                # nothing new at all
        looked_up(monkeypatch, memory[:3], take(ask(*Q), slice(0, 3)))


def test_what_the_self_was_born_knowing_is_stored_with_what_is_new(monkeypatch):
    memory = [([29, END], None), ([28, END], None), ([27, END], None), *[(list(UNKNOWN), None)] * 2]
    _, got = looked_up(monkeypatch, memory)
    assert ((0, (ASK, 31, 10, 32, ANSWER), (28, END)), True) in got


def test_nothing_unsure_is_learnt(monkeypatch):
    memory = [(list(UNKNOWN), None)] * 5
    with pytest.raises(RestlessNight, match="not sure"):
        looked_up(monkeypatch, memory, sure=0.4)


def test_memory_speaks_as_yesterdays_self_does():
    """Targets of what is recalled: the expert's, awake where its thing is heard; or the base's."""
    model = lively(torch.float32)
    z = ask((0, WHO, (10,), (20, END)), (0, WHERE, (11,), (21, 22, END)), (0, WHO, (12,), (END,)))
    spots = model.hidden(asking.closed_book(z, MARKS), blocks=1)
    model.metric = torch.eye(48)
    scaled = spots / (spots.square().mean(-1, keepdim=True) + model.config.norm_eps).sqrt()
    model.remember_things(scaled[:1, 3], torch.tensor([1e-3]), FAST, 1)
    got = asking.memory_of(model, z, MARKS, {5: (FAST, 1), 6: None, 7: None})
    for i, (_, q, y) in enumerate(unpack(z)):
        who = {FAST: (torch.tensor([1]), torch.tensor([3]))} if i == 0 else None
        want = model(torch.tensor([[*MARKS.bos, *q, *y]]), awake=who).log_softmax(-1)[0, len(q):-1]
        close(got[i, :len(y)], want, 1e-5)


# --------------------------------------------------------------------------------------------------
# What was read before a prompt; what the gate hears

def test_to_go_on_behind_another_cache_is_to_read_it_all():
    model, texts = lively(torch.float64), [[0, 5, 6, 7, 8], [0, 9]]
    prompts, row = [[1, 10, 2], [1, 11, 12, 13, 2], [1, 14, 2]], torch.tensor([1, 0, 0])
    cache, _ = prefill(model, texts)
    whole = [texts[r] + p for r, p in zip(row.tolist(), prompts)]
    before = [b["k"].clone() for b in cache["blocks"]]
    _, logits = prefill(model, prompts, before=(cache, row))
    close(logits, prefill(model, whole)[1])
    for options in (dict(temperature=0), dict(temperature=0, n=2)):
        got = generate(model, prompts, 9, before=(cache, row), **options)
        assert got == generate(model, whole, 9, **options)
    assert all(torch.equal(a, b["k"]) for a, b in zip(before, cache["blocks"]))
    got = asking.greedy(model, prompts * 200, MARKS, 4, before=(cache, row.repeat(200)))
    assert got == asking.greedy(model, whole, MARKS, 4) * 200           # more than 512 rows


@pytest.mark.parametrize("hears,n_layer", [(1, 3), (2, 3), (3, 3), (0, 2)])
def test_experts_live_above_the_ear(hears, n_layer):
    """But at least in the last block."""
    model = plain(torch.float32, hears=hears, n_layer=n_layer)
    model.unlock(FAST)
    here = [b.levels[FAST].A_live is not None for b in model.blocks]
    above = min(hears, n_layer - 1)
    assert here == [False] * above + [True] * (n_layer - above)
    assert len(model.live(FAST)) == 2 * (n_layer - above)
    model.settle(FAST)
    assert model.n_experts(FAST) == 1


def test_what_a_night_learns_cannot_move_what_the_gate_hears():
    """Not even if all its experts are awake: they stand above the ear."""
    model = lively(torch.float32, n_layer=3, hears=2)
    ids = torch.randint(V, (3, 9))
    awake = {level: (torch.zeros(3, dtype=torch.long),) * 2 for level in range(3)}
    assert torch.equal(model.hidden(ids, blocks=2), model.hidden(ids, blocks=2, awake=awake))
    assert (model(ids) - model(ids, awake=awake)).abs().max() > 0.1


# --------------------------------------------------------------------------------------------------
# Whole nights

@pytest.fixture(scope="module")
def world():
    return G.make()


@pytest.fixture(scope="module")
def base(world):
    return G.shared_base()


def sleep_over(model, *passages):
    random.seed(0), torch.manual_seed(0)
    return seed.night(model, Day(list(passages), []), G.MARKS,
                      flags.parse(["--quizzes=5", "--seed_steps=60"]))


def test_one_in_two_passages_and_two_in_one(world, base):
    model, (a, b, c) = clone(base), world.new[:3]
    told = [[G.sentence(t, k) for k in range(G.PROPERTIES)] for t in (a, b, c)]
    log = sleep_over(model, told[0][:2], told[0][2:], told[1] + told[2])
    assert log["lost"] == []
    for t in (a, b, c):
        assert G.recall(model, [t]) > 0.5, t


def test_who_is_told_of_again_keeps_what_was_not_told_again(world, base):
    model, name, properties = clone(base), *world.new[0]
    sleep_over(model, *G.passages(world.new[:2], random.Random(0)))
    assert G.recall(model, [world.new[0]]) == 1
    other = next(v for _, (v, *_) in (G.thing(random.Random(i)) for i in range(9))
                 if v != properties[0])
    changed = name, [other, *properties[1:]]
    sleep_over(model, [G.sentence(changed, 0), G.sentence(changed, 1)])
    rng = random.Random(1)
    for k in range(G.PROPERTIES):
        asked = [G.quiz(changed, k, rng) for _ in range(4)]
        said = [y for y, _ in asking.remember(model, G.MARKS, [q for q, _ in asked], MAX_NEW)]
        assert sum(y == right for y, (_, right) in zip(said, asked)) >= 3, k
    assert G.recall(model, world.new[1:2]) > 0.5
    ids = torch.tensor([[*G.MARKS.bos, *asked[0][0]]])
    since, owners = listen(model, ids, torch.tensor([ids.shape[1]]))
    assert (since >= 0).all() and len(owners) == 2                      # both nights wake


def test_what_cannot_be_said_again_is_not_kept(monkeypatch):
    """A known quiz must have the rare words of a sentence, and an answer that stands in it."""
    rare, common = -9.0, -1.0
    told = [(0, [10, 11, 20]), (1, [12, 21]), (2, [13, 22])]    # 10 to 12: strange names
    quizzes = [(0, (ASK, 10, 11, ANSWER), (20, END)), (1, (ASK, 14, ANSWER), (21, END)),
               (2, (ASK, 14, ANSWER), (22, END))]
    z = pack(quizzes, "cpu")
    model = SimpleNamespace(quotes=torch.tensor(True))
    teacher = SimpleNamespace(model=model, told=told, home=[{0}, {1}, {2}])
    monkeypatch.setattr(asking, "token_log_probs", lambda model, rows, sources, begin: torch.tensor(
        [[*(rare if t in (10, 11, 12) else common for t in row[1:]), *[0.0] * (4 - len(row))]
         for row in rows]))
    assert asking.said_again(z, [True] * 3, teacher, MARKS) == {0: [True], 1: [False], 2: [True]}
    assert asking.said_again(z, [False, True, True], teacher, MARKS)[0] == [False]
    teacher.told = [(0, [10, 11, 23]), *told[1:]]               # the answer stands nowhere
    assert asking.said_again(z, [True] * 3, teacher, MARKS)[0] == [False]
    model.quotes = torch.tensor(False)
    assert asking.said_again(z, [True] * 3, teacher, MARKS) == {}
