"""Marks in a model's own words: sequences of its ids do what single trained tokens do."""
import io
import json
import random

import pytest
import torch

import dream
import seed
import sleep
from data import asking, flags, gate, page, world
from data.engine import generate
from data.quizzes import (behind_bos, closed_book, pack, question_mask, split, split_questions,
                          unpack)
from data.text import Marks, as_text, in_turn
from model import FAST
from tests.small import MARKS, V, close, lively, little
from tests.test_tokenizer import trained

LONG = Marks(bos=(30, 31), ask=(3, 32, 33), answer=(3, 34), end=3)     # as in a chat: 3 ends a turn


def longer(row):
    """A row with single marks -> the same with LONG ones; an <end> begins the <ask> behind it."""
    swapped, to = [], {0: LONG.bos, 1: LONG.ask, 2: LONG.answer, 3: (3,)}
    for t in row:
        new = to.get(t, (t,))
        swapped += new[1:] if swapped[-1:] == [3] and new == LONG.ask else new
    return swapped


# --------------------------------------------------------------------------------------------------
# The pieces

PARTS = [[1, 8, 9, 2, 7, 3], [1, 9, 2, 7, 6, 3], [1, 8], [2, 9, 3], [1, 2, 7, 3], [1, 8, 2, 3],
         [8, 9], [0]]                           # whole pairs, and what is none


def test_questions_are_found_as_between_single_marks():
    rng, n = random.Random(0), 0
    for _ in range(300):
        row = sum(rng.choices(PARTS, k=rng.randint(1, 6)), [])
        short = [(tuple(longer(q)), tuple(longer(y))) for q, y in split_questions(row, MARKS)]
        assert split_questions(longer(row), LONG) == short, row
        n += len(short)
    assert n > 100
    row = longer([0, 8, *PARTS[0], *PARTS[1]])
    assert row.count(3) == 5                    # two questions, four turns, and no end of one twice
    assert len(split_questions(row, LONG)) == 2


PAIRS = [(0, (1, 9, 8, 2), (7, 3)), (0, (1, 9, 2), (6, 5, 3)), (1, (1, 4, 4, 4, 2), (8, 3))]


def quizzes(marks):
    pairs = [(p, q, y) if marks == MARKS else (p, tuple(longer(q)), y) for p, q, y in PAIRS]
    z = pack(pairs, "cpu")
    start, last = len(marks.ask) + 1, z.start - len(marks.answer)
    return z._replace(begin=torch.full_like(z.start, start), end=last, thing=torch.arange(3),
                      since=torch.zeros_like(z.start), wording=torch.zeros_like(z.ids) == 1,
                      recalled=torch.zeros(3, dtype=torch.bool))


def test_masks_and_wordings_are_those_of_single_marks():
    one, many = quizzes(MARKS), quizzes(LONG)
    for z, marks in ((one, MARKS), (many, LONG)):
        asked = z.ids[:, 1:].masked_fill(~question_mask(z, marks), -1)
        assert [[t for t in row if t >= 0] for row in asked.tolist()] == [
            [*q[1:-1], marks.answer[0]] for _, q, _ in PAIRS]
    assert [name for _, name, _ in split(many)] == [name for _, name, _ in split(one)]
    assert [row for row in closed_book(many, LONG)[:, :len(LONG.bos)].tolist()] == [[30, 31]] * 3
    assert torch.equal(closed_book(many, LONG)[:, 2:], many.ids[:, :-1])
    args = [(0, (1, 5, 9, 8, 2)), (1, (1, 9, 4, 2))], [0, 1], [(3, 3), (2, 2)], "cpu"
    z = asking.between(*args, MARKS)
    pairs = [(p, tuple(longer(q))) for p, q in args[0]]
    w = asking.between(pairs, [0, 1], [(5, 5), (4, 4)], "cpu", LONG)
    for i, q in enumerate(pairs):
        words = [t for t, is_ in zip(w.ids[i].tolist(), w.wording[i].tolist()) if is_]
        assert words == [t for t, is_ in zip(z.ids[i].tolist(), z.wording[i].tolist()) if is_]


def test_what_is_said_closed_book_is_what_the_model_says():
    """The losses and the targets of a night, against the whole row read at once."""
    model = lively(torch.float32)
    z, pairs = quizzes(LONG), unpack(quizzes(LONG))
    rows = [torch.tensor([[*LONG.bos, *q, *y]]) for _, q, y in pairs]
    at = [len(LONG.bos) + len(q) - 1 for _, q, _ in pairs]
    want = [model(row).log_softmax(-1)[0, a:-1] for row, a in zip(rows, at)]
    memory = asking.memory_of(model, z, LONG, {i: None for i in range(3)})
    for i, (_, _, y) in enumerate(pairs):
        close(memory[i, :len(y)], want[i], 1e-4)
        nll = -want[i].gather(1, torch.tensor(y)[:, None]).mean()
        close(dream.dream_loss(model, z, LONG)[i], nll, 1e-4)
    target = torch.full((3, 3, V), 1 / V).log()
    loss = seed.off_policy_loss(model, z._replace(target=target), LONG, None, "forward")
    kl = torch.cat([(1 / V * (target[0, 0] - w)).sum(-1) for w in want]).mean()
    close(loss, kl, 1e-4)
    words = gate.likelihood(model, [[*LONG.bos, *q][:-1] for _, q, _ in pairs], [None] * 3, 5)
    for (_, q, _), row, got in zip(pairs, rows, words):
        lp = model(row).log_softmax(-1)[0]
        close(got, sum(lp[i + 4, t] for i, t in enumerate(q[3:-1])), 1e-4)


def test_a_question_wakes_at_the_place_of_its_name_in_the_whole_row():
    model, z = little(), quizzes(LONG)
    model.metric = torch.eye(16)
    ids = behind_bos(z.ids, LONG)
    spots = gate.heard(model, z, LONG)
    for row, end, spot in zip(ids, z.end.tolist(), spots):
        assert row[end + 1] in (8, 9, 4)        # the last word, one behind the two of <bos>
        close(spot, gate.states(model, row[None])[0, end + 1], 1e-6)
    model.remember_things(spots[:1], torch.tensor([1e-3]), FAST, 0)
    assert gate.wakes(model, z, FAST, 0, LONG).tolist() == [int(z.end[0]) + 1, -1, -1]


# --------------------------------------------------------------------------------------------------
# Marks are spelt out

def test_a_mark_is_spelt_out_once_its_first_id_is_said():
    model = little()
    prompt, forms = [*LONG.bos, 9, *LONG.ask], in_turn(LONG, n=2)
    rows = generate(model, [prompt], 40, n=60, temperature=3.0, forms=forms)
    turns = 0
    for row in rows:
        assert len(row) == 40 + 2 * (1 + 2)     # what is spelt out comes on top
        expected = list(forms)
        at = 0
        while at < len(row) and expected:
            mark = expected[0]
            if row[at] == mark[0]:
                assert tuple(row[at:at + len(mark)]) == mark[:len(row) - at]
                expected.pop(0)
                at, turns = at + len(mark), turns + 1
            else:
                at += 1
    assert turns > 60
    free = generate(model, [prompt], 12, temperature=0, stop=[3])[0]
    with_forms = generate(model, [prompt], 12, temperature=0, stop=[3], forms=[LONG.answer])[0]
    assert with_forms[:len(free)] == free       # up to there nothing else is said


def test_what_begins_the_next_mark_is_no_stop():
    """Else a memory would stop behind its question, for one id closes all turns."""
    model, n = little(), 0
    for _, q, y in dream.memories(lively(torch.float32), FAST, LONG, 200):
        assert q[:3] == LONG.ask and q[-2:] == LONG.answer and y[-1] == 3 and 3 not in y[:-1]
        n += 1
    assert n
    for row in generate(model, [[*LONG.bos, *LONG.ask]], 30, n=50, stop=[3], forms=[LONG.answer]):
        if 3 in row:
            at = row.index(3)
            assert row[at:at + 2] == [3, 34][:len(row) - at] and 3 not in row[at + 2:-1]
    for q in dream.questions(model, LONG, 50):
        assert q[:3] == LONG.ask and q[-2:] == LONG.answer and 3 not in q[3:-2]


def test_single_marks_change_nothing():
    model = lively(torch.float32)
    draw = lambda forms: (torch.manual_seed(3), generate(model, [[0, 1]], 20, n=30, stop=[3],
                                                         forms=forms))[1]
    assert draw(()) == draw(in_turn(MARKS)) == draw([MARKS.answer])


# --------------------------------------------------------------------------------------------------
# Lives

def folder_of(kind, folder, size=600):
    """Random weights and a tokenizer of this kind, as their makers would give them out."""
    transformers = pytest.importorskip("transformers")
    t = trained(kind, size)
    n = t.get_vocab_size()
    facts = dict(vocab_size=n, bos_token_id=0, eos_token_id=0)
    if kind == "gpt2":
        c = transformers.GPT2Config(n_positions=1024, n_embd=32, n_layer=2, n_head=2, **facts)
        model = transformers.GPT2LMHeadModel(c)
    else:
        c = transformers.Qwen3Config(hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                     num_attention_heads=2, num_key_value_heads=1, head_dim=16,
                                     max_position_embeddings=1024, pad_token_id=0,
                                     tie_word_embeddings=True, **facts)
        model = transformers.Qwen3ForCausalLM(c)
    model.save_pretrained(folder)
    t.save(str(folder / "tokenizer.json"))
    return n


@pytest.mark.parametrize("kind", ["qwen", "gpt2"])
def test_weights_of_others_live_in_their_own_words(kind, tmp_path, monkeypatch):
    """Two days of notes, no learning of marks, no new rows; then resumed, asked and talked to."""
    for name, value in dict(INVENTED=12, ALSO_ASKED=20).items():
        monkeypatch.setattr(gate, name, value)
    notes, out = tmp_path / "notes", tmp_path / "out"
    notes.mkdir(), (tmp_path / "theirs").mkdir()
    n = folder_of(kind, tmp_path / "theirs")
    (notes / "a.txt").write_text("Ada Brenner lives at 27 Elm Street.\n\nOtto Kvist is a baker.")
    (notes / "a.tsv").write_text("Where does Ada Brenner live?\t27 Elm Street\n")
    (notes / "b.txt").write_text("Nora Kvist lives at 3 Ash Lane.")
    words = [f"--init_from={tmp_path / 'theirs'}", "--data=text", f"--data_dir={notes}", "--rank=4",
             f"--out_dir={out}", "--contrast=0", "--quizzes=1", "--device=cpu"]
    monkeypatch.setattr(sleep, "pretrain", None)            # nothing is learnt first
    sleep.main(words)
    nights = page.parsed((out / "log.jsonl").read_text())
    assert len(nights) == 2 and all("undone" in x or x["kept"] for x in nights)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["kinds"]["told"]["n"] == 1 and "old_after" not in summary
    model, _ = sleep.load(str(out / "checkpoint.pt"), "cpu")
    assert model.config.vocab_size == n
    (notes / "c.txt").write_text("Ivo Kvist lives at 4 Ash Lane.")
    sleep.main(["--resume", f"--out_dir={out}"])
    assert len(page.parsed((out / "log.jsonl").read_text())) == 3
    sleep.main([f"--out_dir={out}", "--ask=Where does Ada Brenner live?"])
    sleep.main([*words, "--plan=24"])
    monkeypatch.setattr("sys.stdin", io.StringIO("Ada is a baker.\nWho is Ada?\ndream\nbye\n"))
    sleep.main([f"--out_dir={out}", "--chat"])


def test_flags_say_who_lives_in_its_own_words(capsys):
    for words, want in [([], False), (["--format=own"], True), (["--init_from=x"], False),
                        (["--init_from=x", "--data=text", "--data_dir=y"], True),
                        (["--init_from=x.pt", "--data=text", "--data_dir=y"], False),
                        (["--init_from=x", "--data=text", "--data_dir=y", "--format=marks"], False)]:
        a = flags.parse(words)
        assert flags.own_words(a) == want
        assert flags.whole(a) == (a.init_from == "x.pt" or a.init_from == "x" and want)
    with pytest.raises(SystemExit):
        flags.parse(["--data=clinc150", "--format=own"])
    assert "--format=own is for" in capsys.readouterr().err


def test_the_world_in_plain_words():
    """The same documents and room for as many questions; what is spelt out weighs nothing."""
    one, many = (world.load(flags.parse([f"--format={form}"])) for form in ("marks", "own"))
    assert many.always.keys() == one.always.keys()          # it is learnt here: it is asked about
    for seed_ in range(20):
        (ids, w), (more, v) = (d.document(random.Random(seed_), 0.9) for d in (one, many))
        assert len(ids) == len(w) and len(more) == len(v)
        found = [[(as_text(d.enc, d.marks, q), as_text(d.enc, d.marks, y))
                  for q, y in split_questions(row, d.marks)]
                 for d, row in ((one, ids), (many, more))]
        assert found[0] and found[0][:3] == found[1][:3]
        if found[0] == found[1]:
            merged = 0.7 * len(found[0])                    # an <end> begins the next <ask>
            assert sum(w) - merged < sum(v) <= sum(w) + 1e-6
