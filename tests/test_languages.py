"""Invented languages: rules by hand, documents, exams, and what the night does with a skill."""
import random
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from bench import skills, tables
from data import asking, exam, gate, languages
from data.languages import Language, Sentence
from data.quizzes import pack, split, unpack
from dream import Teacher
from sleep import DATA
from tests.small import MARKS, little

WORDS = {"dog": "bal", "house": "nor", "sees": "kip", "old": "zim", "red": "tok"}
SOV = Language("Zorbic", WORDS, "SOV", True)
VOS = Language("Tarben", WORDS, "VOS", False)
SENTENCE = Sentence(["old", "dog"], "sees", ["red", "house"])


@pytest.fixture(scope="module")
def data():
    return languages.load(SimpleNamespace(seed=1, world_seed=3, days=3))


def test_a_sentence_is_translated_word_for_word_in_the_order_of_the_language():
    assert languages.in_english(SENTENCE) == " the old dog sees the red house"
    assert languages.gloss(SOV, SENTENCE) == [
        ("subject", ["dog", "old"]), ("object", ["house", "red"]), ("verb", ["sees"])]
    assert languages.gloss(VOS, SENTENCE) == [
        ("verb", ["sees"]), ("object", ["red", "house"]), ("subject", ["old", "dog"])]
    into, out_of = languages.exercises(SOV, SENTENCE)
    assert into == (" Into Zorbic: the old dog sees the red house",
                    " subject dog bal old zim object house nor red tok verb sees kip"
                    ": bal zim nor tok kip")
    assert out_of == (" From Zorbic: bal zim nor tok kip",
                      " subject bal dog zim old object nor house tok red verb kip sees"
                      ": the old dog sees the red house")
    assert languages.exercises(VOS, SENTENCE)[0][1] == \
        " verb sees kip object red tok house nor subject old zim dog bal: kip tok nor zim bal"
    assert languages.word_exercises(SOV, "dog") == [(" Into Zorbic: dog", " dog bal"),
                                                    (" From Zorbic: bal", " bal dog")]


def test_a_lesson_tells_the_grammar_every_word_and_a_sentence():
    text = languages.lesson(SOV, random.Random(0))
    grammar, words, shown = text.split(";")
    assert grammar == " Zorbic: subject object verb, noun adjective"
    assert sorted(words.split(",")) == sorted(f" {e}= {f}= {e}" for e, f in WORDS.items())
    english, aloud, foreign = shown.split(":")
    the, adjective, noun, verb, the_, adjective_, noun_ = english.split()
    assert the == the_ == "the" and noun != noun_
    said = [noun, adjective, noun_, adjective_, verb]
    assert foreign.split() == [WORDS[w] for w in said]
    assert [w for w in aloud.split() if w in WORDS] == said
    other = languages.lesson(VOS, random.Random(0), shown=False)
    assert other.startswith(" Tarben: verb object subject, adjective noun;")
    assert other.count(";") == 1
    assert not set(text) & set(".?!\n"), "the lesson is one sentence: it is read as a whole"


def test_languages_differ_and_orders_are_all_met():
    rng = random.Random(0)
    many = [languages.new_language(rng, "Zorbic") for _ in range(300)]
    assert {(x.order, x.behind) for x in many} == {(o, b) for o in languages.ORDERS
                                                   for b in (False, True)}
    for x in many:
        assert len(set(x.words.values())) == len(x.words) == sum(languages.SIZES)
    assert len({x.words.get("dog") for x in many}) > 50


def test_every_word_is_one_token_and_every_document_well_formed(data):
    enc, rng = data.enc, random.Random(1)
    for w in languages.NOUNS + languages.FOREIGN + languages.HEAD + ["Into", "the"]:
        assert len(enc.encode_ordinary(" " + w)) == 1, w
    assert len(enc.encode_ordinary(" Bolban")) == 2
    for share in (0.0, 0.3, 0.99) * 30:
        ids, weights = data.document(rng, share)
        assert len(ids) == len(weights) <= data.block_size and ids[:1] == [*data.marks.bos]
        (ask,), (answer,), end = data.marks[1:]
        ask, answer, end = (ids.count(mark) for mark in (ask, answer, end))
        assert ask == answer == end >= 1 and ids[-1] == data.marks.end
        assert weights[-1] == 1.0 and weights[0] == 0.0


def test_documents_tell_the_truth(data):
    """What a document answers follows from its own lesson, by the rules alone."""
    rng, met = random.Random(2), 0
    while met < 20:
        text = data.enc.decode(data.document(rng, 0.9)[0])
        lesson, *asked = text.removeprefix("<|bos|>").split("<|ask|>")
        met += bool(lesson)
        for pair in asked if lesson else ():
            grammar, words, _ = lesson.split(";")
            words = dict(pair.split("= ")[:2] for pair in words.removeprefix(" ").split(", "))
            back = {f: e for e, f in words.items()}
            q, a = (part.split(":") for part in pair.removesuffix("<|end|>").split("<|answer|>"))
            assert q[0].split()[0] in ("Into", "From") and q[0][5:] == grammar.split(":")[0]
            if len(a) == 1:
                word, other = a[0].split()
                assert q[1] == f" {word}" and other == (words if "In" in q[0] else back)[word]
                continue
            english, foreign = (q, a) if "Into" in q[0] else (a, q)
            adjective, noun, verb, _, adjective_, noun_ = english[1].split()[1:]
            parts = {"subject": [adjective, noun], "verb": [verb], "object": [adjective_, noun_]}
            order, nouns = grammar.split(":")[1].split(",")
            turn = -1 if nouns == " noun adjective" else 1
            said = [w for part in order.split() for w in parts[part][::turn]]
            assert [words[w] for w in said] == foreign[1].split()
            assert [w for w in a[0].split() if w in words] == said
            assert [w for w in a[0].split() if w in parts] == order.split()


def test_no_exam_sentence_stands_in_a_lesson_and_no_name_is_met_twice(data):
    names = set()
    for j, day in enumerate(data.days):
        text, = day.passages
        items = data.exams(j, j)
        names.add(text.partition(":")[0])
        whole = [x for x in items if x.kind == "into"]
        assert len(whole) == languages.EXAM == len({x.question for x in whole})
        for x in whole:
            assert x.question.partition(":")[2] not in text
        assert data.exams(j, j) == data.exams(j, 2)
        assert all(x.context == (text if x.kind == "in_context" else "") for x in items)
    assert len(names) == 3
    rng = random.Random(4)
    met = {data.enc.decode(data.document(rng, 0.9)[0]).partition(":")[0] for _ in range(300)}
    assert not {f"<|bos|>{name}" for name in names} & met
    assert {"word", "in_context"} <= exam.APART


def test_one_world_whatever_the_days():
    load = partial(languages.load)
    short, long = (load(SimpleNamespace(seed=1, world_seed=5, days=n)) for n in (1, 4))
    assert short.days == long.days[:1] and short.always == long.always
    assert short.exams(0, 0) == long.exams(0, 0)
    with pytest.raises(ValueError, match="languages for 28 days"):
        load(SimpleNamespace(seed=1, world_seed=5, days=29))
    assert DATA["languages"] is languages.load and short.listen == "first"


# --------------------------------------------------------------------------------------------------
# The night

def test_of_a_skill_the_thing_is_the_first_that_is_specific():
    gain = torch.tensor([[0.1, 4.0, 3.0, 0.0, 2.0, 2.5, 0.0]])      # Into Zor bic : dog house
    assert [int(x) for x in gate.specific(gain, "first")] == [3, 4]
    assert [int(x) for x in gate.specific(gain)] == [3, 7]          # as of a name: all of it


def test_exercises_are_answered_as_they_were_written_and_not_misheard(monkeypatch):
    model = little(listens="first")
    pairs = [(0, (1, 7, 8, 4, 9, 2), (5, 3)), (0, (1, 7, 8, 4, 10, 2), (6, 3)),
             (0, (1, 7, 8, 4, 11, 2), (6, 3))]
    said = {9: [5, 6, 3], 10: [6, 3], 11: [6, 6]}                   # the last one does not end
    z = pack(pairs, "cpu")
    z = z._replace(begin=torch.full((3,), 3), end=torch.full((3,), 3), thing=torch.zeros(3).long(),
                   wording=torch.ones_like(z.ids, dtype=torch.bool))
    teacher = Teacher(model, [[0, 7]] * 2, None, None, {}, [{0}], [[0]], [])
    monkeypatch.setattr(asking, "greedy", lambda model, prompts, *a, **k:
                        [said[p[4]] for p in prompts])
    monkeypatch.setattr(asking, "ask_back", lambda *a: None)
    found = asking.ask_everything(teacher, z, MARKS)
    assert [y for _, _, y in unpack(found)] == [(5, 6, 3), (6, 3)]
    assert not found.wording.any() and [name for _, name, _ in split(found)] == [(8,), (8,)]


def test_what_was_answered_is_asked_in_turn():
    into, out_of, name = 7, 9, 8
    asked = [(1, into, name, 4, w, w + 1, 2) for w in (20, 22, 24)]
    asked += [(1, out_of, name, 4, w, 2) for w in (30, 31, 32)] + [(1, 10, name, 4, 33, 2)]
    pairs = [(0, q, (q[4], 35, 36, 3)) for q in asked]
    z = pack(pairs, "cpu")
    two = torch.full((7,), 3)
    z = z._replace(begin=two, end=two, thing=torch.zeros(7).long())
    new = asking.ask_back(z, MARKS)
    found = {q for _, q, _ in unpack(new)}
    assert len(found) == 7 <= asking.TURNED * len(asked) and not found & set(asked)
    may = {(1, into, name, 4, 35, 36, 2)} | {
        (1, out_of, name, 4, w, 2) for w in (20, 22, 24, 33, 35, 36)}
    assert found == may                                     # 10 was heard once: no way of asking
    assert all(name_ == (name,) for _, name_, _ in split(new))
    only = asking.take(z, torch.arange(7) == 6)
    assert asking.ask_back(only, MARKS) is None


# --------------------------------------------------------------------------------------------------
# The bench

def test_chrf_by_hand():
    assert skills.chrf("the dog", "the dog") == 1.0 and skills.chrf("xyz", "abc") == 0.0
    # n = 1: 2 of 3; n = 2: 1 of 2; n = 3: 0 of 1; nothing is longer. Precision = recall = F
    assert skills.chrf("abc", "abd") == pytest.approx((2 / 3 + 1 / 2) / 3)
    # "ab" for "abc": P = (1 + 1 + 0) / 3, R = (2/3 + 1/2 + 0) / 3, F = 5 P R / (4 P + R)
    P, R = 2 / 3, 7 / 18
    assert skills.chrf("ab", "abc") == pytest.approx(5 * P * R / (4 * P + R))
    assert skills.chrf("a b c", "abc") == 1.0 and skills.chrf("", "abc") == 0.0


def test_each_life_of_the_search_is_compared_with_its_regime_and_seeds_are_kept_apart(capsys):
    found = skills.searched()
    tries = [f"{name} {rate}" for name in skills.RIVAL for rate in skills.RATES[name]]
    assert set(map(skills.against, found)) == {None, "sleep", "gate+sft", *skills.REGIMES}
    assert set(found) == {*skills.PLAIN, *skills.REGIMES, *tries, *(
        f"{part} ({regime})" for part in skills.PARTS for regime in skills.REGIMES)}
    assert not any("," in name for name in (*found, *skills.LIVES)), "--only parts them by commas"
    assert {skills.against(name) for name in tries} == {"gate+sft"}
    assert f"seed.LR={skills.RATES['gate+lora'][0]}" in found[tries[0]], "each at its own rate"
    assert [skills.against(n) for n in ("sleep", "none", "no dreaming")] == [None, None, "sleep"]
    for words in ("--seeds=31", "--only=slep", "--nights=0"):
        with pytest.raises(SystemExit):
            skills.parse([words])
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert skills.parse(["--only=no dreaming"]).names == ["sleep", "no dreaming"]
    assert skills.parse([]).names == list(skills.LIVES)
    found = skills.parse(["--only=gate+sft (few exercises)"]).names   # on fresh seeds, too
    assert found == ["few exercises", "gate+sft (few exercises)"]
    assert skills.parse(["--search"]).seeds == [31, 32]
    assert skills.parse(["--search", "--seeds=32"]).seeds == [32]
    assert skills.parse(["--search"]).result.endswith("skills-search.json")


def test_a_table_pairs_by_seed():
    def run(life, seed, acc):
        final = {way: {"exact": acc, "chrf": 0.5} for way in skills.WAYS}
        return {"life": life, "seed": seed, "ACC": acc, "in_context": [0.8], "final": final,
                "old_after": 1.0, "nights": [{}, {"undone": "why"}]}
    runs = [run("sleep", s, 0.8) for s in (1, 2)] + [run("no dreaming", s, 0.6) for s in (1, 2)]
    lines = skills.shown({"runs": runs}, list(skills.LIVES))
    assert lines[1].split()[:3] == ["sleep", "0.800", "±"] and "1.00" in lines[1]
    assert lines[1].split()[-1] == "2", "an undone night is shown"
    assert lines[-1].startswith("no dreaming minus sleep: -0.200 ± 0.000, p after Holm 0.000")


def test_what_a_night_asked_for_is_counted():
    some = [["Into Zorbic: the red house sees the old dog", ""], ["From Zorbic: nor", "nor red"],
            ["From Zorbic: nor tok bal zim kip", "nor"], ["From Zorbic: nor tok bal", ""]]
    asked = skills.asked_for({"asked": {"n": 9, "some": some}})
    assert asked == {"into": {"sentence": 1, "word": 0}, "from": {"sentence": 2, "word": 1}}
    assert skills.asked_for(None) == {way: {"sentence": 0, "word": 0} for way in skills.WAYS}
    run = {"life": "sleep", "seed": 2, "R": [[1.0]], "nights": [{"asked": asked}]}
    others = [{**run, "life": "sft"}, {**run, "nights": [{}]}]
    assert tables.out_of({"runs": [run, *others]})[2:] == ["| sleep | 2 | 2 of 4 |"]


def test_a_regime_is_compared_with_its_whole_night_and_with_usual_exercises():
    def runs(life, acc, nights=2):
        return [{"life": life, "seed": s, "ACC": acc + 0.001 * s * s, "R": [[]] * nights}
                for s in (1, 2, 3)]                                # seed 1 is no evidence
    file = {"runs": [*runs("sleep", 0.8), *runs("gate+sft", 0.7), *runs("few (x)", 0.1, 1),
                     *runs("more", 0.85), *runs("gate+sft (more)", 0.9)]}
    rows = [line.split(" | ")[:3] for line in tables.skill_table(file, 2)[2:]]
    assert rows == [["| gate+sft", "sleep", "−.100 ± .000"], ["| more", "sleep", "+.050 ± .000"],
                    ["| gate+sft (more)", "more", "+.050 ± .000"],
                    ["| gate+sft (more)", "gate+sft", "+.200 ± .000"]]
    assert tables.skill_gaps(file, 1) == {}, "a regime nobody lived is left out"
    assert skills.against("gate+lora (twice the exercises)") == "twice the exercises"
