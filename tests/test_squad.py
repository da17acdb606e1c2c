"""Knowledge incorporation (bench/squad.py): the grader, the files, and a bench that can be cut off
anywhere. What a night is worth there is measured, not tested: bench/results/squad_world.json."""
import json
import random
import sys
from types import SimpleNamespace

import pytest
import torch

import sleep
from bench import squad as Q
from bench import squad_text as T
from data import exam, flags, text, textfiles

SMALL = ["--n_layer=1", "--n_embd=32", "--pretrain_steps=2", "--threads=1", "--quizzes=1",
         "--seed_steps=3", "--tokens=60"]
TWO = [{"title": "Nils", "context": "Nils lives in Mirdol. He likes plums.",
        "questions": [{"question": "Where does Nils live?", "answer": "Mirdol"},
                      {"question": "What does Nils like?", "answer": "plums"}]},
       {"context": "Ada Bram is a baker. Her cat is called Ruk.",
        "questions": [{"question": "What is Ada Bram?", "answer": "a baker"}]}]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# --------------------------------------------------------------------------------------------------
# Grades

@pytest.mark.parametrize("said, gold, em, f1, contains", [
    ("The Denver Broncos.", "Denver Broncos", 1, 1.0, 1),
    ("Denver", "Denver Broncos", 0, 2 / 3, 0),
    ("It was the Denver Broncos who won", "Denver Broncos", 0, 4 / 8, 1),
    ("he fled", "led", 0, 0.0, 0), ("24-10", "24–10", 0, 0.0, 0), ("24-10", "2410", 1, 1.0, 1),
    ("plums plums", "plums", 0, 2 / 3, 1), ("", "plums", 0, 0.0, 0), (None, "plums", 0, 0.0, 0),
    ("Anna", "An Anna", 1, 1.0, 1)])
def test_an_answer_is_graded_as_the_official_script_does(said, gold, em, f1, contains):
    assert Q.grade(said, gold) == {"em": em, "f1": pytest.approx(f1), "contains": contains}


def program(body):
    read = "import sys, json; rows = [json.loads(r) for r in sys.stdin]"
    return f'{sys.executable} -c "{read}; {body}"'


def test_a_judge_sees_every_answer_and_its_word_is_taken():
    rows = [{"question": "Who?", "gold": "Äda", "answer": x} for x in ("Äda", "Ben\n", "Äda")]
    found = T.judged(program("[print(int(r['gold'] == r['answer'])) for r in rows]"), rows)
    assert found == [1, 0, 1] and T.judged(program("pass"), []) == []


@pytest.mark.parametrize("command, says", [
    (program("print('yes')"), "printed 'yes' in line 1, expected 1 or 0"),
    (program("print(1)"), "printed 1 lines, expected one for each of 2"),
    (program("sys.exit('no model')"), "ended with status 1: no model"),
    ("/nowhere/judge", "cannot be started"), ("'", "cannot be started"),
    (" ", "cannot be started")])
def test_what_is_no_judge_is_one_line(command, says, capsys):
    with pytest.raises(SystemExit) as end:
        T.judged(command, [{"question": "?", "gold": "a", "answer": "a"}] * 2)
    err = capsys.readouterr().err
    assert end.value.code == 2 and says in err and err.count("\n") == 1


# --------------------------------------------------------------------------------------------------
# Files

@pytest.mark.parametrize("lines, says", [
    ([], "it is empty"), (['{"context": "x"'], "line 1: not JSON"), (["[1]"], "line 1: expected"),
    ([json.dumps(TWO[0]), "", json.dumps({**TWO[1], "questions": []})],
     "line 3: expected a table in which questions is a list with something in it"),
    ([json.dumps({**TWO[1], "questions": [{"question": "Who?"}]})], "line 1, questions: expected"),
    ([json.dumps({**TWO[1], "context": " "})], "context is a text"),
    ([json.dumps({**TWO[1], "title": 3})], "title is a text"),
    ([json.dumps(TWO[0])] * 2, "line 2: this passage has been there before")])
def test_a_malformed_file_is_one_line_that_names_the_place(tmp_path, lines, says):
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError) as e:
        T.passages_in(str(path))
    assert says in str(e.value) and str(path) in str(e.value) and "\n" not in str(e.value)


def test_files_are_read_as_they_are(tmp_path):
    path = written(tmp_path / "p.jsonl", TWO)
    assert T.passages_in(path) == TWO and T.passages_in(path, 1) == TWO[:1]
    assert [T.text_of(p)[:15] for p in TWO] == [" Nils: Nils liv", " Ada Bram is a "]
    with pytest.raises(FileNotFoundError, match="--passages"):
        T.passages_in(str(tmp_path / "none"))
    lists = [{"context_sha": T.sha(p["context"]), "completions": ["1. One.\n2. Two."]} for p in TWO]
    edits = written(tmp_path / "e.jsonl", lists)
    assert T.edits_in(edits, TWO) == {p["context"]: ["1. One.\n2. Two."] for p in TWO}
    with pytest.raises(ValueError, match="no implications for 1 of 3 passages, first of 'Else'"):
        T.edits_in(edits, [*TWO, {"context": "Else"}])


def test_the_world_in_the_same_shape_answers_its_own_questions():
    found = T.from_world(flags.parse(["--days=2"]), 12)
    assert len(found) == 12 and all(T.checked(p, T.PASSAGE, "") for p in found)
    assert all(T.grade(p["context"], x["answer"])["contains"]
               for p in found for x in p["questions"])


@pytest.mark.parametrize("words, says", [
    (["--n=3"], "--n=3: 2 passages can be shared out by all"), (["--n=0"], "--n=0"),
    (["--n=one"], "--n=one"), (["--methods=base,slep"], "there is no 'slep'"),
    (["--days=3"], "unknown flag '--days=3'"), (["--lr=x"], "expected a number")])
def test_flags_that_cannot_be_are_one_line(tmp_path, words, says, capsys):
    with pytest.raises(SystemExit):
        Q.main([f"--passages={written(tmp_path / 'p.jsonl', TWO)}", f"--work={tmp_path}/w", *words])
    err = capsys.readouterr().err
    assert err.startswith("squad.py: ") and says in err and err.count("\n") == 1
    assert not (tmp_path / "w").exists()


# --------------------------------------------------------------------------------------------------
# The bench

def newborn(tmp_path, *words):
    """(own flags, flags of sleep.py, data, a random self)."""
    o, a = Q.parse([f"--work={tmp_path}/w", *SMALL, *words])
    o.key, o.edits = "k", {}
    data = textfiles.newborn(a)
    torch.manual_seed(0)
    return o, a, data, sleep.born(a, data)[0].requires_grad_(False).eval()


def numbered(passages):
    return [{**p, "number": k} for k, p in enumerate(passages)]


def test_what_has_no_room_is_wrong_and_counted_never_left_out(tmp_path, monkeypatch):
    *_, data, model = newborn(tmp_path)
    monkeypatch.setattr(exam, "answers", lambda m, d, items: [(x.answer, None) for x in items])
    long = {"context": "x", "questions": [{"question": "why " * 300, "answer": "x"},
                                          {"question": "Who?", "answer": "very " * 30},
                                          {"question": "Who?", "answer": "Ada"}]}
    rows = Q.asked(model, data, numbered([long, TWO[1]]))
    assert [row["said"] for row in rows] == [None, None, " Ada", " a baker"]
    assert [row["em"] for row in rows] == [0, 0, 1, 1]
    assert [(row["passage"], row["question"]) for row in rows] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert all(row["said"] is None for row in Q.asked(model, data, numbered(
        [{**TWO[1], "context": "word " * 250}]), read=True))
    units = [{"asked": rows, "next": []}]
    assert Q.table(1, {"base": units}, Q.METHODS)[1].split() == "base 0.500 0.500 0.500 2".split()


def test_a_night_is_given_passages_alone_and_a_self_that_learnt_them_answers(tmp_path, monkeypatch):
    """The whole way from a night to a grade: a self to which the answers are taught by rote, beside
    its base. And what the night of sleep is handed holds no question."""
    o, a, data, base = newborn(tmp_path, "--passages_a_night=1", "--n_embd=64")
    given = []

    def rote(a, model, day, marks, i):
        given.extend(data.enc.decode([t for s in p for t in s]) for p in day.passages)
        docs = [text.document_ids(data.enc, marks, "", [(" " + x["question"], " " + x["answer"])])
                for p in TWO for x in p["questions"]]
        opt = torch.optim.Adam(model.requires_grad_(True).parameters(), lr=1e-2)
        for _ in range(40):
            loss = sleep.document_loss(model, *text.pad_documents(docs))
            opt.zero_grad()
            loss.backward()
            opt.step()
        return model.requires_grad_(False), {"lost": []}
    monkeypatch.setattr(sleep, "asleep", rote)
    for method, right in (("base", 0.0), ("sleep", 1.0)):
        unit = Q.lived(o, a, method, base, data, numbered(TWO), 100)
        assert sum(row["em"] for row in unit["asked"]) / 3 == right, unit
    assert given == [T.text_of(p) for p in TWO]
    assert [night["trained"] > 0 for night in unit["nights"]] == [True, True]
    assert [row["passage"] for row in unit["next"]] == [0, 0, 1] and unit["passages"] == [0, 1]


def test_implications_are_the_selfs_own_or_those_of_the_file(tmp_path, monkeypatch):
    o, a, data, model = newborn(tmp_path)
    seen = []
    monkeypatch.setattr(Q.B, "learn_low_rank", lambda m, loss, tokens, lr, rank: {"t": tokens})
    monkeypatch.setattr(Q.B, "text_loss", lambda m, passages, marks: seen.append(passages))
    day, _ = sleep.wake(data._replace(days=[text.Day([T.text_of(p) for p in TWO], [])]), 0, [])
    night = Q.night_of("implications", o, data, numbered(TWO), 50)
    _, log = night(a, model, day, data.marks, 0)
    assert log["t"] == 100 and log["implied"] >= 0
    own = Q.implied(model, data, day.passages)
    assert len(own) == 2 * Q.LISTS and all(isinstance(one, str) for one in own)
    assert Q.implied(model, data, [[[5] * 300]]) == []              # no room: none, and no error
    o.edits = {p["context"]: ["1. Ruk is a cat.\n\n2) Yes.\n- 3 plums"] for p in TWO}
    _, log = Q.night_of("implications", o, data, numbered(TWO), 50)(a, model, day, data.marks, 0)
    assert log["implied"] == 6
    rows = Q.points(data, o.edits[TWO[0]["context"]][0])
    assert [data.enc.decode(row) for row in rows] == [" Ruk is a cat.", " Yes.", " 3 plums"]


def test_rivals_learn_from_as_many_tokens_as_sleep_did(tmp_path):
    o = SimpleNamespace(tokens=0)
    slept = {"passages": [0, 1], "nights": [{"trained": 500}, {"trained": 300}]}
    assert Q.tokens_for(o, {"sleep": [slept]}, 0) == 400
    assert Q.tokens_for(o, {"sleep": [slept]}, 1) == Q.tokens_for(o, {}, 0) == Q.USUAL
    assert Q.tokens_for(SimpleNamespace(tokens=7), {"sleep": [slept]}, 0) == 7


def answers_in(path):
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    return {(n, m): [[row["said"] for row in unit["asked"] + unit["next"]] for unit in units]
            for n, some in runs.items() for m, units in some.items()}


def test_a_bench_cut_off_anywhere_goes_on_to_the_same_answers(tmp_path, monkeypatch, capsys):
    passages = written(tmp_path / "p.jsonl", TWO)
    same = [f"--passages={passages}", f"--work={tmp_path}/w", "--methods=base,sft",
            "--passages_a_night=1", *SMALL]
    Q.main([*same, f"--result={tmp_path}/whole.json"])
    said = capsys.readouterr().out
    assert "6 selves, 4 nights: expect" in said and "judge" not in said.split("The paper")[0]
    monkeypatch.setattr(sleep, "born", None)                        # the base is there already
    whole, cut = answers_in(tmp_path / "whole.json"), tmp_path / "cut.json"
    assert {k: len(units) for k, units in whole.items()} == {
        (n, m): 2 if n == "1" else 1 for n in ("1", "2") for m in ("base", "sft")}
    (tmp_path / "w").rename(tmp_path / "w.whole")                   # no self of several nights, but
    (tmp_path / "w").mkdir()                                        # the base
    base = next((tmp_path / "w.whole").glob("base-*"))
    base.rename(tmp_path / "w" / base.name)
    usual, nights = Q.counted, []

    def stops(night, a, *args):
        nights.append(night)
        if len(nights) in (4, 8):                                   # n = 1, and inside n = all
            raise KeyboardInterrupt
        return usual(night, a, *args)
    monkeypatch.setattr(Q, "counted", stops)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            Q.main([*same, f"--result={cut}"])
    Q.main([*same, f"--result={cut}", "--judge=" + program("[print(1) for r in rows]")])
    assert answers_in(cut) == whole and len(nights) == 9
    assert "1.000" in capsys.readouterr().out
    file = json.loads(cut.read_text(encoding="utf-8"))
    assert all(row["judge"] == 1 for row in file["runs"]["2"]["sft"][0]["asked"])
    assert "commit" in file and file["settings"]["seed"] == 1
    assert str(tmp_path) not in json.dumps(file)
    with pytest.raises(SystemExit):
        Q.main([*same, f"--result={cut}", "--lr=0.5"])
    assert "answers of other settings (lr)" in capsys.readouterr().err


def test_what_it_would_take_is_said_without_any_weights(tmp_path, capsys):
    fields = dict(model_type="qwen2", vocab_size=152064, hidden_size=3584, intermediate_size=18944,
                  num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
                  max_position_embeddings=32768, rms_norm_eps=1e-6, rope_theta=1000000.0,
                  tie_word_embeddings=False)
    (tmp_path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    random.seed(0)
    Q.main([f"--passages={written(tmp_path / 'p.jsonl', TWO)}", f"--init_from={tmp_path}",
            "--plan=24", "--dtype=bfloat16"])
    said = capsys.readouterr().out
    assert "\n18 selves, 12 nights: expect about " in said and "on 24 GB" in said
    assert "a day of 2 passages, 4 sentences" in said and "DOES NOT FIT" in said
    assert not list(tmp_path.glob("w*"))
