"""Days from a folder of text files: a life end to end, what is asked of it, and every bad folder."""
import json
import shutil
from types import SimpleNamespace

import pytest

import sleep
from data import exam, flags, page, text, textfiles, world
from tests.small import MARKS
from tests.test_sleep import SLEEPER, TINY, forked, refused

FIRST = """\
Ada Brenner lives at 27 Elm Street.  She paid 3.50 for it,
which was
much!

Otto Kvist works for Amber and Falcon.
   \t
\ufeffIs this a passage? It is.


"""
EXAM = "Where does Ada Brenner live?\t27 Elm Street\n\n Who does  Otto Kvist work for?\tAmber and Falcon "
LIFE = [w for w in [*TINY, *SLEEPER] if not w.startswith("--days")] + ["--data=text"]


def written(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("_", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    """Two days; the second has no exam."""
    return written(tmp_path_factory.mktemp("mine") / "my notes", b_txt="Rain all day.", a_txt=FIRST,
                   a_tsv=EXAM)


@pytest.fixture(scope="module")
def lived(notes, tmp_path_factory):
    out = tmp_path_factory.mktemp("life") / "out"
    code, said = forked(*LIFE, f"--data_dir={notes}", f"--out_dir={out}")
    assert code == 0, said
    return out, said


def loaded(folder, *words):
    return textfiles.load(flags.parse(["--data=text", f"--data_dir={folder}", *words]))


# --------------------------------------------------------------------------------------------------
# What is read

def test_a_file_is_a_day_and_a_blank_line_ends_a_passage(notes):
    data = loaded(notes)
    assert [d.passages for d in data.days] == [
        [" Ada Brenner lives at 27 Elm Street. She paid 3.50 for it, which was much!",
         " Otto Kvist works for Amber and Falcon.", " \ufeffIs this a passage? It is."],
        [" Rain all day."]]
    sentences = text.sentences(data.enc, data.days[0].passages[0])
    assert [data.enc.decode(s) for s in sentences] == [
        " Ada Brenner lives at 27 Elm Street.", " She paid 3.50 for it, which was much!"]
    asked = [("", " Where does Ada Brenner live?", " 27 Elm Street", "told"),
             ("", " Who does Otto Kvist work for?", " Amber and Falcon", "told")]
    assert data.exams(0, 0) == data.exams(0, 1) == asked and data.exams(1, 1) == []
    assert len(loaded(notes, "--days=1").days) == 1 and len(loaded(notes, "--days=9").days) == 2


def test_line_ends_and_marks_of_other_systems(tmp_path):
    data = loaded(written(tmp_path, a_txt="\ufeffOne.\r\nTwo.\r\n\r\nThree.\r\n",
                          a_tsv="\ufeffWho?\tAda\r\n", _hidden_txt="", notes_md="no day"))
    assert data.days[0].passages == [" One. Two.", " Three."]
    assert data.exams(0, 0)[0][1:3] == (" Who?", " Ada")


def test_to_read_is_learnt_in_the_world(notes):
    """Its tokenizer, its documents, its old people: all of their facts, for no day changes any."""
    mine, theirs = loaded(notes), world.load(flags.parse([]))
    assert mine.marks == theirs.marks and mine.enc.n_vocab == theirs.enc.n_vocab
    draw = sleep.run.random.Random
    assert mine.document(draw(5), 0.9) == theirs.document(draw(5), 0.9)
    assert set(mine.always) == set(theirs.always)
    assert len(mine.always["old"]) == world.OLD * len(world.RELATIONS) > len(theirs.always["old"])


def test_a_passage_longer_than_the_context_is_read_in_parts(tmp_path):
    data = loaded(written(tmp_path, a_txt="Ada Brenner lives at 27 Elm Street. " * 40))
    day, _ = sleep.wake(data, 0, [])
    assert len(day.passages) > 1 and sum(map(len, day.passages)) == 40
    assert max(sum(map(len, p)) for p in day.passages) <= data.block_size - sleep.ROOM


# --------------------------------------------------------------------------------------------------
# A life

def test_a_life_of_notes(lived):
    out, said = lived
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["data"], summary["days"]) == ("text", 2)
    (first, none), (later, second) = summary["R"]
    assert none is None and second is None and 0 <= first <= 1 and summary["ACC"] == later
    assert summary["recall"] == first and summary["kinds"]["told"]["n"] == 2
    assert {"old_after", "reading_after", "never_met_after"} <= set(summary)
    nights = page.parsed((out / "log.jsonl").read_text())
    assert [n["recall"] for n in nights] == [first, None] and all(n["kept"] for n in nights)
    assert "2 days of text" in said and "sleep  2: morning -, all days" in said
    shown = (out / "life.html").read_text()
    assert "was known the morning after its day" in shown and "<th>day</th>" in shown
    assert "day 1:" in shown and "day 2:" not in shown               # no exam, no errors


def test_it_is_asked_without_its_notes(lived, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(lived[0], out)
    args = json.loads((out / "args.json").read_text())
    (out / "args.json").write_text(json.dumps({**args, "data_dir": "nowhere"}))
    code, said = forked(f"--out_dir={out}", "--ask=Where does Ada Brenner live?")
    assert code == 0 and "(from" in said, said
    code, said = forked(f"--out_dir={out}", "--chat")
    assert code == 0 and "Tell me something" in said, said
    refused("--resume", f"--out_dir={out}", says="no folder nowhere")


def test_it_goes_on_to_what_is_written_later(lived, tmp_path):
    """To the same bits as a life that had all days from the beginning."""
    folder = written(tmp_path / "in", a_txt=FIRST, a_tsv=EXAM)
    begin = [*LIFE, "--method=none", f"--data_dir={folder}", f"--init_from={lived[0] / 'base.pt'}"]
    for last, words in (("went on", begin), ("went on", ["--resume"]), ("at once", begin)):
        code, said = forked(*words, f"--out_dir={tmp_path / last}")
        assert code == 0, said
        written(folder, b_txt="Nora Kvist lives at 3 Ash Lane.",
                b_tsv="Where does Nora Kvist live?\t3 Ash Lane")
    logs = [page.parsed((tmp_path / x / "log.jsonl").read_text()) for x in ("went on", "at once")]
    assert logs[0] == logs[1] and [len(n["R"]) for n in logs[0]] == [1, 2]
    assert all(r is not None for r in logs[0][1]["R"])


def test_a_life_without_any_exam(lived, tmp_path):
    folder, out = written(tmp_path / "in", a_txt="Ada Brenner lives at 27 Elm Street."), tmp_path / "o"
    code, said = forked(*LIFE, f"--data_dir={folder}", "--method=none", f"--out_dir={out}",
                        f"--init_from={lived[0] / 'base.pt'}")
    assert code == 0 and "none           -       -       -" in said, said
    summary = json.loads((out / "summary.json").read_text())
    assert summary["R"] == [[None]] and summary["ACC"] is None and summary["old_after"] is not None
    assert "<th>born with</th>" in (out / "life.html").read_text()


# --------------------------------------------------------------------------------------------------
# Numbers where a day has no exam

def test_metrics_over_the_days_that_have_an_exam():
    R = [[None, None, None], [None, 0.8, None], [None, 0.6, 1.0]]
    m = exam.metrics(R)
    assert (m["ACC"], m["recall"]) == (pytest.approx(0.8), pytest.approx(0.9))
    assert (m["BWT"], m["forgetting"]) == (pytest.approx(-0.2), pytest.approx(0.2))
    none = {"ACC": None, "BWT": None, "forgetting": None, "recall": None}
    assert exam.metrics([[None, None], [None, None]]) == exam.metrics([[None]]) == none


def test_none_is_a_dash(capsys):
    assert exam.column(None) == "       -" and exam.column(-0.5, "+8.3f") == "  -0.500"
    assert exam.in_a_line([0.5, None], {"old": 1.0}) == "morning -, all days 0.50, old 1.00"
    exam.show([[None, None], [None, 0.5]], "sleep")
    assert capsys.readouterr().out.splitlines()[-1].split() == ["night", "2", "50"]


def test_an_empty_exam_asks_nothing():
    """The model is never called: there is none."""
    model = SimpleNamespace(unknown=SimpleNamespace(tolist=list))
    data = SimpleNamespace(enc=SimpleNamespace(decode=lambda ids: ""), marks=MARKS)
    assert exam.share(exam.sit(model, data, [])) is None


# --------------------------------------------------------------------------------------------------
# Bad input

BAD = {
    "no folder": ({}, "no folder"),
    "no day": ({"a_md": "x"}, "no file *.txt in it"),
    "not UTF-8": ({"a_txt": b"Gr\xfc\xdfe."}, "a.txt: not UTF-8 text"),
    "exam not UTF-8": ({"a_txt": "x", "a_tsv": b"\xff\tx"}, "a.tsv: not UTF-8 text"),
    "empty day": ({"a_txt": "x", "b_txt": " \n\n\t\n"}, "b.txt: the day is empty"),
    "no tab": ({"a_txt": "x", "a_tsv": "Who?\tAda\n\nWho? Ada"}, "a.tsv, line 3: expected question<T"),
    "two tabs": ({"a_txt": "x", "a_tsv": "Who?\tAda\t!"}, "a.tsv, line 1: expected"),
    "no answer": ({"a_txt": "x", "a_tsv": "Who?\t "}, "a.tsv, line 1: expected"),
    "long question": ({"a_txt": "x", "a_tsv": "Who is it? " * 90 + "\tAda"}, "line 1: the question is t"),
    "long answer": ({"a_txt": "x", "a_tsv": "Who?\t" + "Ada Bram " * 20}, "line 1: the answer is too l"),
    "exam of no day": ({"a_txt": "x", "b_tsv": "Who?\tAda"}, "there is no b.txt"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_folder_that_cannot_be_lived_is_refused_in_one_line(name, tmp_path):
    files, says = BAD[name]
    if files:
        written(tmp_path / "in", **files)
    refused(*LIFE, f"--data_dir={tmp_path / 'in'}", f"--out_dir={tmp_path / 'out'}", says=says)
    assert not (tmp_path / "out").exists()


def test_flags_of_notes(capsys):
    with pytest.raises(SystemExit):
        flags.parse(["--data=text"])
    assert "name it with --data_dir" in capsys.readouterr().err
    a = flags.parse(["--data=text", "--data_dir=x"])
    assert flags.value_of("days", str(a.days)) == a.days            # args.json holds it
    assert flags.parse(["--data=text", "--data_dir=x", "--days=3"]).days == 3
    with pytest.raises(SystemExit):
        flags.parse(["--data=text", "--data_dir=x", "--people=2000"])
    assert "no room" in capsys.readouterr().err
