"""A conversation: what is told stands in the context, sleep moves it, undo brings it back."""
from types import SimpleNamespace

import pytest
import torch

from data import chat, flags, world
from model import FAST, clone
from tests.small import close, lively

DATA = SimpleNamespace(enc=world.load_tokenizer(), block_size=256, days=[], always={
    "reading": [SimpleNamespace(context=" Ada Bram lives at 3 Elm Road. Ada Bram loves tea.")],
    "old": [SimpleNamespace(question=" Where does Ben Dunfir live?")]})
DATA.marks = world.marks_of(DATA.enc)
KNOWN = {"kept": 12, "known": 0.75}


@pytest.fixture
def talk(monkeypatch, tmp_path, capsys):
    """talk(lines, log of each night) -> (what it says, days it slept on, selves it saved)."""
    def conversation(lines, *logs):
        model, days, saved, logs = lively(torch.float32), [], [], list(logs)
        model.name = 0
        monkeypatch.setattr(chat, "replied", lambda model, data, told, line: f"self {model.name}, "
                            f"{len(told)} in mind: {line}")

        def night(a, model, day, marks, i):
            days.append([data_text(passage) for passage in day.passages])
            new, log = clone(model), logs.pop(0)
            new.name = model.name if "undone" in log else model.name + 1
            return new, log
        a = SimpleNamespace(out_dir=str(tmp_path), seed=1)
        chat.talk(a, model, DATA, night, lambda path, m: saved.append(m.name), lines)
        a.lock.close()
        return capsys.readouterr().out, days, saved
    return conversation


def data_text(passage):
    return DATA.enc.decode([t for s in passage for t in s]).strip()


def test_what_is_told_is_slept_on_and_gone(talk):
    said, days, saved = talk(["Ada lives here. She loves tea.", "Ben is ill!", "Who?", "sleep",
                              "Who?", "bye", "never"], {**KNOWN, "lost": [1]})
    assert days == [["Ada lives here. She loves tea.", "Ben is ill!"]] and saved == [1]
    assert "self 0, 2 in mind: Who?" in said and "self 1, 1 in mind: Who?" in said
    assert "12 questions about 2 passages and know 75%" in said and "still in mind: 1 passage." in said
    assert "never" not in said and "not slept on 1 passage: forgotten" in said
    assert "Ada Bram lives at 3 Elm Road." in said and "Where does Ben Dunfir live?" in said


def test_undo_brings_the_self_and_the_day_back(talk):
    said, days, saved = talk(["A is one.", "sleep", "B is two.", "undo", "Who?", "undo", "sleep"],
                             {**KNOWN, "lost": []}, {**KNOWN, "lost": []})
    assert "self 0, 2 in mind: Who?" in said and "I have not slept yet" in said
    assert days == [["A is one."], ["A is one.", "B is two."]] and saved == [1, 0, 1]
    assert "forgotten" not in said and "my context is empty" in said


def test_a_bad_night_forgets_nothing(talk):
    said, _, saved = talk(["sleep", "A is one.", "sleep", "Who?"], {"undone": "x", "lost": [0]})
    assert "nothing to sleep on" in said and "slept badly" in said
    assert "self 0, 1 in mind: Who?" in said and saved == [0]


def test_an_end_that_nobody_wanted_says_what_is_lost(talk, capsys):
    def lines():
        yield "A is one."
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        talk(lines())
    assert "not slept on 1 passage: forgotten" in capsys.readouterr().out


def test_commands_say_what_there_is(talk):
    said, _, _ = talk(["who", "help", "", "A is one.", "who"])
    assert "In mind: 0 passages" in said and "In mind: 1 passage." in said
    assert said.count("bye   the end") == 2


def test_an_answer_says_where_it_comes_from_and_how_sure_it_is(monkeypatch):
    """The newest passage that says is the one that answers; else memory does."""
    model, m = lively(torch.float32, vocab_size=DATA.enc.n_vocab), DATA.marks
    told = [[DATA.enc.encode_ordinary(text)] for text in (" one.", " two.", " three.")]
    seen = []

    def answers(model, marks, asked, contexts):
        seen.extend(data_text([c]) for c in contexts)
        return [([7, m.end], "context" if data_text([c]) == "two." else (FAST, 0)) for c in contexts]
    monkeypatch.setattr(chat, "answer", answers)
    monkeypatch.setattr(chat, "wakes", lambda *a: torch.tensor([3]))
    said = chat.replied(model, DATA, told, "Who?")
    assert seen == ["three.", "two.", "one."] and "from the passage; p = " in said
    assert "from memory 1 of level 1; p = " in chat.replied(model, DATA, [], "Who?")
    assert "too long" in chat.replied(model, DATA, [], "Who is " * 99)
    # by hand: each word of the answer as it was given, from where the memory was awake on
    q = [*m.ask, *DATA.enc.encode_ordinary(" Who?"), *m.answer]
    for source, context, awake in ((None, [], None), ("context", [5, 6], None),
                                   ((FAST, 1), [], {FAST: (torch.tensor([1]), torch.tensor([3]))})):
        row = [*m.bos, *context, *q, 7, m.end]
        log_p = model(torch.tensor([row[:-1]]), awake=awake).log_softmax(-1)[0]
        want = min(log_p[-2, 7], log_p[-1, m.end]).exp()
        close(torch.tensor(chat.sure(model, m, q, [7, m.end], source, context)), want, 1e-5)


def test_a_conversation_goes_on_where_the_last_one_ended(tmp_path):
    a = SimpleNamespace(out_dir=str(tmp_path))
    assert chat.begins(a) == str(tmp_path / "checkpoint.pt")
    (tmp_path / chat.KEPT).write_bytes(b"")
    assert chat.begins(a) == str(tmp_path / chat.KEPT)


@pytest.mark.parametrize("words", [["--chat", "--ask=Who?"], ["--chat", "--resume"]])
def test_what_makes_no_sense_with_it(words, capsys):
    with pytest.raises(SystemExit):
        flags.parse(words)
    assert "--chat talks to a saved self" in capsys.readouterr().err
