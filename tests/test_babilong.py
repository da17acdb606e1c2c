"""Stories of bAbI in a haystack: what is true of a story, its files, and the script."""
import random
import re
from types import SimpleNamespace

import pytest
import torch

from bench import babi, babilong, tables
from data import flags
from data.text import document_ids

TALE = """1 Mary got the milk there.
2 John moved to the bedroom.
3 Sandra went back to the kitchen.
4 Mary travelled to the hallway.
5 Where is the milk? \thallway\t1 4
6 Mary dropped the milk.
7 Mary went to the garden.
8 Where is the milk? \thallway\t6 4
1 Sandra moved to the office.
2 Where is Sandra? \toffice\t1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of files as they are published, small."""
    root = tmp_path_factory.mktemp("texts")
    (root / "babi" / "en-v1.1").mkdir(parents=True)
    for name in babi.TASKS.values():
        (root / "babi" / "en-v1.1" / f"{name}_test.txt").write_text(TALE)
    (root / "tinyshakespeare").mkdir()
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghilmnoprstu", k=6)) for _ in range(150)]
    lines = [" ".join([*rng.sample(words, 4), rng.choice(words).capitalize()]) for _ in range(300)]
    (root / "tinyshakespeare" / "input.txt").write_text("ROMEO:\n" + "\n".join(lines))
    return str(root)


def tracked(told):
    """Where everybody and everything is, and who has what, by reading the sentences."""
    place, holder, trail = {}, {}, {}
    for sentence in told:
        if went := re.fullmatch(r" (\w+) (?:\w+|went back) to the (\w+)\.", sentence):
            who, place[went[1]] = went.groups()
            for thing in [t for t, name in holder.items() if name == who]:
                trail.setdefault(thing, []).append(place[who])
        else:
            who, act, what = re.fullmatch(r" (\w+) (.+) the (\w+)(?: there)?\.", sentence).groups()
            if act in ("got", "grabbed", "took", "picked up"):
                assert holder.get(what, "nobody") == "nobody"       # nobody takes it from another
                holder[what] = who
                if who in place and not trail.get(what):
                    trail[what] = [place[who]]
                assert not trail.get(what) or who not in place or trail[what][-1] == place[who]
            else:
                assert holder[what] == who                          # only what one has is dropped
                holder[what] = "nobody"
    return {"place": place, "holder": holder, "trail": trail}


def test_what_is_true_behind_a_story_is_what_its_sentences_say():
    rng, people, places = random.Random(1), ["Ann", "Bob", "Cid"], ["hut", "inn", "bay", "den"]
    seen = set()
    for _ in range(200):
        told, truth = babi.story(rng, people, places, ["cup", "hat"], rng.randint(1, 20))
        assert truth == tracked(told)
        for _, (q, a) in zip(range(8), babi.talks(rng, truth, people, places, ["cup", "hat"],
                                                  ["Zoe"])):
            if found := re.fullmatch(r" Where is (?:the )?(\w+)\?", q):
                who, trail = found[1], truth["trail"].get(found[1], [])
                known = truth["place"].get(who, trail[-1] if trail else babi.UNKNOWN)
                assert a == " " + known
                seen.add(who in people)
            if found := re.fullmatch(r" Where was the (\w+) before the (\w+)\?", q):
                trail = truth["trail"][found[1]]
                last = len(trail) - 1 - trail[::-1].index(found[2])
                assert a == " " + trail[last - 1]
                seen.add("before")
            if found := re.fullmatch(r" Who has the (\w+)\?", q):
                assert a == " " + truth["holder"].get(found[1], babi.UNKNOWN)
                seen.add("who")
    assert seen == {True, False, "before", "who"}


def test_published_stories_are_read_and_malformed_ones_named(folder, tmp_path):
    (told, question, answer), later, other = babi.stories(folder, "qa2")
    assert told[0] == " Mary got the milk there." and len(told) == 4
    assert (question, answer) == (" Where is the milk?", " hallway")
    assert len(later[0]) == 6 and other == ([" Sandra moved to the office."], " Where is Sandra?",
                                            " office")
    assert "hallway" in babi.forbidden_in(folder) and "mary" in babi.forbidden_in(folder)
    with pytest.raises(FileNotFoundError, match="--data_dir"):
        babi.stories(str(tmp_path), "qa1")
    (tmp_path / "babi" / "en-v1.1").mkdir(parents=True)
    (tmp_path / "babi" / "en-v1.1" / (babi.TASKS["qa1"] + "_test.txt")).write_text(
        "1 Mary moved to the hut.\nWhere is Mary?\thut\t1\n")
    with pytest.raises(ValueError, match="line 2: expected"):
        babi.stories(str(tmp_path), "qa1")


def test_documents_fit_and_no_word_of_a_published_story_names_anything(folder):
    data, unread, old = babi.load(folder, 1)
    again, _, _ = babi.load(folder, 1)
    met = set()
    for i in range(200):
        ids, weights = data.document(random.Random(i), i / 200)
        assert len(ids) == len(weights) <= babi.BLOCK
        assert ids == again.document(random.Random(i), i / 200)[0]
        met |= set(re.findall("[a-z]+", data.enc.decode(ids).lower()))
    assert not met & {"john", "sandra", "hallway", "milk", "office"} and len(old) == babi.OLD
    heard, rest = babi.hay(folder)
    assert rest == unread and not set(heard) & set(rest)
    ids, _ = document_ids(data.enc, data.marks, " John moved.", [(" Where is John?", " hut")])
    assert data.enc.decode(ids).startswith("<|bos|> John moved.<|ask|> Where is John?<|answer|> hut")


def test_a_story_stays_in_order_among_its_hay():
    told, hay = [f" s{i}." for i in range(6)], [f" h{i}" for i in range(40)]
    lines = babilong.hidden(told, hay, 100, lambda line: 2, random.Random(3))
    assert [s for s, own in lines if own] == told and len(lines) == 56
    others = [int(s[2:]) for s, own in lines if not own]
    assert all((b - a) % 40 == 1 for a, b in zip(others, others[1:]))


def test_what_is_read_in_order_is_one_text(monkeypatch):
    slept = []

    def night(model, context, *_):
        slept.append(context)
        return model, {}
    monkeypatch.setattr(babilong.haystack, "slept", night)
    o, lines = SimpleNamespace(window=5), [[1, 2], [3, 4], [5, 6], [7]]
    babilong.haystack.read(None, lines, [True, True, True, True], None, None, o, True)
    assert slept == [[[1, 2, 3, 4]], [[5, 6, 7]]]
    babilong.haystack.read(None, lines, [True, False, True, True], None, None, o)
    assert slept[2:] == [[[1, 2], [5, 6], [7]]]


def test_the_script_runs_and_bad_input_is_one_line(folder, tmp_path, capsys, monkeypatch):
    torch.manual_seed(0)
    argv = [f"--data_dir={folder}", "--quick", f"--work={tmp_path}", "--stories=2", "--steps=8"]
    babilong.main(argv)
    file = babilong.stats.read(str(tmp_path / "quick.json"))
    (row,) = file["runs"]
    assert row["task"] == "qa1" and 0 <= row["sleep"] <= 1 and len(row["right"]) == 2
    assert "--data_dir=FOLDER" in file["command"] and folder not in file["command"]
    assert tables.babilong(file)[0].startswith("| task")
    babilong.main(argv)                                             # nothing is read again
    assert babilong.stats.read(str(tmp_path / "quick.json"))["runs"] == [row]
    for word, said in (("--tasks=qa9", "there is no 'qa9'"), ("--stories=50", "--stories=50: qa1"),
                       (f"--data_dir={tmp_path}", "--data_dir")):
        monkeypatch.setattr("sys.argv", ["babilong.py", *argv, "--tokens=50", word])
        capsys.readouterr()
        with pytest.raises(SystemExit):
            flags.guarded(babilong.main, "babilong.py")
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and said in err
