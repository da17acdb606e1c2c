"""Notes of a night change no bit of it; a page is made of log.jsonl alone, whatever that holds."""
import base64
import hashlib
import json
import math
import random
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch

import dream
import seed
from data import asking, diary, gate, notes, page
from data.text import Item
from model import FAST, clone
from tests import glyphs as G
from tests.small import same_state
from tests.test_night import settings

HOSTILE = ("</details></script><script>document.title='owned'</script><img src=x onerror=alert(1)>"
           "\" onmouseover='x' &amp; \u202eRTL \u200b\x00\x1b[31m \ud800 \U0001f634 \u0627\u0644")
VOID = {"meta", "br", "path", "img"}


# --------------------------------------------------------------------------------------------------
# Notes

@pytest.fixture(scope="module")
def nights():
    """The same night with and without notes: [(self, log, the next random numbers, notes)]."""
    patch = pytest.MonkeyPatch()
    for module, name, value in ((dream, "CHOSEN", 4), (dream, "AT_RANDOM", 1), (dream, "POOL", 12),
                                (dream, "WRITER_STEPS", 2), (dream, "TRIAL_STEPS", 1),
                                (gate, "ALSO_ASKED", 60), (asking, "HELD_OUT", 8),
                                (asking, "MOVED", 1.0), (asking, "KNOWN", 0.0),
                                (seed, "DREAM_STEPS", 4)):
        patch.setattr(module, name, value)
    found, day = [], G.day(G.make().new[:2])
    for noted in (True, False):
        model = clone(G.shared_base())
        random.seed(0), torch.manual_seed(0)
        if noted:
            notes.begin([(passage, 0) for passage in day.passages])
        log = seed.night(model, day, G.MARKS, settings("--on_policy=0.5"))
        found.append((model, log, torch.rand(3).tolist() + [random.random()], notes.close()))
    patch.undo()
    return found


def test_a_night_is_the_same_to_the_last_bit_with_and_without_notes(nights):
    (one, log, numbers, book), (two, plain, again, none) = nights
    assert same_state(one, two) and log == plain and numbers == again
    assert none == {} and set(book) == {"passages", "asked", "dropped", "kept", "losses", "watched",
                                        "rollouts", "dreams", "old"}


def test_notes_are_few_and_become_words(nights):
    model, log, _, book = nights[0]
    told = diary.told(book, model, SimpleNamespace(enc=Numbers(), marks=G.MARKS))
    assert told["memories"] == model.n_experts(FAST) == 1 and len(told["passages"]) == 2
    assert told["kept"]["n"] == log["kept"] and 0 < len(told["kept"]["some"]) <= notes.KEPT
    assert told["asked"]["n"] == log["dreamt"] and len(told["asked"]["some"]) <= notes.ASKED
    assert all(len(r["some"]) <= min(notes.DROPPED, r["n"]) for r in told["dropped"])
    assert len(told["dreams"]) == log["chosen"] == 5
    gain = [row[2] for row in told["dreams"]]
    assert gain == sorted(gain, reverse=True) and sum(gain) / 5 == pytest.approx(log["gain"], .01)
    assert sum(row[3] for row in told["dreams"]) / 5 == pytest.approx(log["rewarded"])
    assert len(json.dumps(told)) < 100_000


def test_the_watched_student_comes_nearer_to_its_teacher(nights):
    book = nights[0][3]
    w, = diary.told(book, nights[0][0], SimpleNamespace(enc=Numbers(), marks=G.MARKS))["watched"]
    first, last = w["student"][0][1:], w["student"][-1][1:]
    assert [row[0] for row in w["student"]] == list(range(0, 44, notes.EVERY))   # 40 steps, 4 more
    assert max(w["teacher"]) > 0.5 and w["teacher"][0] == max(w["teacher"])
    assert abs(last[0] - w["teacher"][0]) < abs(first[0] - w["teacher"][0])
    assert all(0 <= p <= 1 for row in w["student"] for p in row[1:])


def test_nobody_takes_notes_unless_they_are_begun():
    notes.close()
    notes.write("x", 1), notes.asked([]), notes.sat([], []), notes.step(*[None] * 5)
    assert notes.BOOK is None and notes.close() == {}
    notes.begin([])
    notes.write("x", 1), notes.write("x", 2)
    assert notes.close() == {"passages": [[]], "x": [1, 2]} and notes.close() == {}


def test_curves_are_means_and_numbers_are_finite():
    steps = [{"loss": torch.tensor(float(n))} for n in range(240)]
    found = diary.curves([*steps, {"kl": torch.tensor(math.nan)}])
    assert len(found["loss"]) == diary.POINTS and found["loss"][0] == [2, 1.5]
    assert found["kl"] == [[240, None]]


def test_where_the_gate_opens_is_where_it_listens(nights):
    """The memory of the night wakes at the name of its thing, and nowhere for the old."""
    model, world, rng = nights[0][0], G.make(), random.Random(0)
    data = SimpleNamespace(enc=Numbers(), marks=G.MARKS)
    asked = [G.quiz(t, 0, rng) for t in (world.new[0], world.old[0])]
    picked = [(Item("", Numbers().decode(q[1:-1]), "", "met"), ("", (FAST, 0))) for q, _ in asked]
    new, old = diary.opens(model, data, picked)
    assert new["tokens"] == [f" {t}" for t in asked[0][0][1:-1]]
    (at, who), = new["wakes"]
    assert who == new["source"] == "memory 1" and at in (2, 3)      # the name ends there
    assert old["wakes"] == []


class Numbers:
    """Tokens as numbers with a blank in front."""
    def decode(self, ids):
        return "".join(f" {t}" for t in ids)

    def encode_ordinary(self, text):
        return [int(word) for word in text.split()]


# --------------------------------------------------------------------------------------------------
# The page

def night(n, text="Where does Ada Bram live?", many=40):
    """A line of log.jsonl in which every text is `text`."""
    qa = [text, text]
    noted = {"memories": n, "passages": [{"text": text * 6, "tried": 1}] * 16,
             "asked": {"n": 700, "some": [qa] * 24},
             "kept": {"n": 800, "some": [[*qa, text + "!", text, True]] * many},
             "dropped": [{"why": text, "n": 9, "some": [qa] * 8}] * 7,
             "losses": {"loss": [[s, 1 / (s + 1)] for s in range(60)], "kl": [[1, None]]},
             "watched": [{"question": text, "answer": text, "before": text, "words": [text] * 7,
                          "teacher": [0.5] * 7, "student": [[s, *[0.1] * 7] for s in range(60)]}],
             "rollouts": [{"question": text, "right": text, "tries": [[text, 1.0]] * 4}] * 6,
             "dreams": [[*qa, 0.1, True], [*qa, None, False]] * 16,
             "old": [[text, text, text + "?", text]] * many, "again": [[text, *qa]] * many,
             "exam": [["met", text, text, text, text, text]] * 60 +
                     [["changed_old_value", text, "a", "b", text, ""]],
             "wrong": [{"n": 30, "wrong": 12, "some": [[*qa, text + ".", text]] * 12}] * n,
             "always": {text: {"n": 230, "wrong": 12, "some": [[*qa, text + ".", text]] * 12}},
             "opens": [{"tokens": [text] * 12, "wakes": [[2, "memory 1"], [12, "slow memory 1"]],
                        "said": text, "truth": text, "source": "memory 1"}] * 10}
    return {"night": n, "recall": 0.9, "old": 1.0, "reading": 0.95, "dreamt": 700, "kept": 800,
            "known": 0.97, "lost": [1], "method": "sleep", "R": [0.9] * n, "notes": noted}


def logged(*lines):
    return "".join(json.dumps(line) + "\n" for line in lines)


class Reader(HTMLParser):
    """Holds the tags of a page, and that each is closed where it has to be."""
    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.names, self.words = [], [], set(), []
        self.feed(text), self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, sorted(name for name, _ in attrs)))
        self.names |= {value for name, value in attrs if name == "id"}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, sorted(name for name, _ in attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        self.words.append(data)


def test_whatever_a_model_says_is_text():
    """The same tags with the same attributes stand in the page as if it had said something kind."""
    kind, hostile = (page.written(page.parsed(logged(night(1, t), night(2, t))))
                     for t in ("Ada lives at 1 Elm Lane.", HOSTILE))
    assert Reader(kind).seen == Reader(hostile).seen
    assert "document.title='owned'" in "".join(Reader(hostile).words) and "<img" not in hostile
    assert hostile.count("<script>") == 1 and "\x00" not in hostile and "\u202e" not in hostile


def test_a_page_needs_nothing_else():
    text = page.written(page.parsed(logged(night(1), night(2))))
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link|<img| src=", text)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    script = re.search(r"<script>(.*)</script>", text, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'")
    names, links = Reader(text).names, set(re.findall(r'href="#([^"]*)"', text))
    assert links == {"night-1", "night-2", "m1-1", "m2-1", "m2-2"} and links <= names


@pytest.mark.parametrize("many", [1, 30, 90])
def test_a_page_has_less_than_a_megabyte(many):
    text = page.written([night(n + 1, "Who is it that Kira Mara Wegmanfem has as a friend?", 40)
                         for n in range(many)])
    assert len(text.encode()) < 10 ** 6 and len(Reader(text).seen) > 100
    assert f"A life of {many} night" in text


def test_made_again_from_the_log_alone_it_is_the_same(tmp_path, capsys):
    lines = [night(1), night(2)]
    state = {"nights": [{k: v for k, v in x.items() if k not in ("method", "R", "notes")}
                        for x in lines],
             "R": [x["R"] for x in lines], "notes": [x["notes"] for x in lines]}
    diary.publish(str(tmp_path), state, "sleep")
    assert [json.loads(x) for x in (tmp_path / "log.jsonl").read_text().splitlines()] == lines
    first = (tmp_path / page.NAME).read_bytes()
    (tmp_path / page.NAME).unlink()
    page.main([str(tmp_path)])
    assert (tmp_path / page.NAME).read_bytes() == first
    assert capsys.readouterr().out.strip() == str(tmp_path / page.NAME)


@pytest.mark.parametrize("content, says", [
    ("", "no night"), (logged(night(1)) + '{"night": 2, "rec', "line 2"), ("[1, 2]\n", "line 1"),
    ('{"night": "one"}', "line 1"), ("[" * 100_000, "line 1"), (b"\xff\xfe\x00", "log.jsonl"),
    (logged({"night": 1, "notes": {"kept": 7}}), "notes of night 1"),
    (logged({"night": 1, "notes": {"dreams": [["a"]]}}), "notes of night 1"),
    (logged({"night": 1, "R": 7}), "not those of a life"),
    (logged({**night(1), "R": ["1"]}), "not those of a life"), (None, "no ")])
def test_what_is_no_log_is_refused_in_one_line(tmp_path, capsys, content, says):
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "log.jsonl").write_bytes(data)
    with pytest.raises(SystemExit) as e:
        page.main([str(tmp_path)])
    err = capsys.readouterr().err
    assert e.value.code == 2 and says in err and err.count("\n") == 1
    assert not (tmp_path / page.NAME).exists()


def test_a_night_without_notes_or_undone_has_its_numbers():
    """Logs of an earlier version, of other methods, and of topics lack some or all notes."""
    old = {"night": 1, "recall": 0.5, "old": 1.0, "kept": 12, "dreamt": 40}
    undone = {"night": 2, "recall": None, "undone": HOSTILE, "lost": [0], "R": [None, None],
              "notes": {"memories": 0, "passages": [{"text": "freeze account", "tried": 0}]}}
    text = page.written([old, undone])
    words = "".join(Reader(text).words)
    assert "No notes of this night" in words and "undone" in words and "freeze account" in words
    assert "kept 12" in words
    Reader(page.written([{"night": 1}]))
    Reader(page.written(page.parsed(logged({**night(1), "R": [math.nan], "recall": math.inf}))))


def test_a_life_begun_without_a_diary_goes_on_with_one(nights):
    model = nights[0][0]
    state = {"nights": [{"night": 1}, {"night": 2}], "R": [[1.0, None], [1.0, 0.5]]}
    notes.begin([([[11, 12]], 0)])
    diary.note(state, model, SimpleNamespace(enc=Numbers(), marks=G.MARKS))
    assert state["notes"][0] == {} and state["notes"][1]["passages"] == [{"text": "11 12",
                                                                          "tried": 0}]
