"""Real text with classes: the loaders, the documents, the gate of whole texts, and the one night on
a tiny folder."""
import json
import random
import subprocess
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import dream
import seed
from bench import class_incremental as K
from bench import topics
from data import asking, classes, exam, flags, gate
from data.engine import pad_rows
from data.quizzes import sureness, unpack
from data.text import symbols
from model import FAST, SLOW, widen
from sleep import wake
from tests.small import ENV, MARKS, PYTHON, ROOT, close, expand, plain, tokens

THINGS = ["card", "music", "flight", "weather", "alarm", "recipe", "hotel", "taxi"]


def clinc_folder(folder, things=THINGS):
    folder.mkdir(exist_ok=True)
    for split, n, start in (("train", 6, 0), ("val", 2, 10), ("test", 2, 20)):
        rows = [f"{verb} the {t} {start + i}\task_{t}" for t in things for i in range(n)
                for verb in ("find", "show me")]
        (folder / f"{split}.tsv").write_text("text\tintent\n" + "\n".join(rows) + "\n")
    return folder


def banking(folder, n=23, rows=12):
    for split, start in (("train", 0), ("test", 100)):
        lines = [f'"where is my {k}, order {start + i}?",card_arrival_{k}' for k in range(n)
                 for i in range(rows)]
        (folder / f"{split}.csv").write_text("text,category\n" + "\n".join(lines) + "\n")


def asked_for(data, folder, **more):
    return SimpleNamespace(**{"data": data, "data_dir": str(folder), "days": 7, "seed": 1,
                              "world_seed": 1, **more})


@pytest.fixture
def small(monkeypatch):
    """CLINC150 as if it had 4 intents for the base and 2 a day."""
    table = classes.TABLES["clinc150"]._replace(base=4, day=2)
    monkeypatch.setitem(classes.TABLES, "clinc150", table)


# --------------------------------------------------------------------------------------------------
# Files

def test_banking77_is_read_from_its_original_files(tmp_path):
    banking(tmp_path)
    data = classes.load(asked_for("banking77", tmp_path))
    assert [len(d.passages) for d in data.days] == [1] and len(set(n for n, _ in data.heard)) == 22
    rows = classes.read("banking77", str(tmp_path))
    assert rows["train"]["card arrival 3"][0] == "where is my 3, order 0?"      # a quoted comma
    for k in rows["train"]:
        assert [len(rows[s][k]) for s in ("train", "val", "test")] == [11, 1, 12]
        assert not set(rows["train"][k]) & {*rows["val"][k], *rows["test"][k]}


def test_dbpedia_is_read_and_its_names_are_spoken(tmp_path):
    for split in ("train", "test"):
        rows = [f"A {k} that is number {i} of {split}.\tTop\tKind{'Of' * (k % 2)}Thing{chr(65 + k)}"
                "\tx" for k in range(24) for i in range(3)]
        (tmp_path / f"{split}.tsv").write_text("text\tl1\tl2\tl3\n" + "\n".join(rows) + "\n")
    data = classes.load(asked_for("dbpedia", tmp_path))
    names = {data.enc.decode(list(n)) for n, _ in data.heard} | set(data.days[0].passages)
    assert " kind of thing b" in names and len(names) == 24


def test_the_order_of_classes_is_drawn_from_the_seed_of_the_world(tmp_path, small):
    folder = clinc_folder(tmp_path / "data")
    one, same, other = (classes.load(asked_for("clinc150", folder, world_seed=s, days=1))
                        for s in (1, 1, 2))
    assert one.days[0].passages == same.days[0].passages != other.days[0].passages
    assert len(one.days) == 1


def test_a_text_that_is_in_train_is_no_test(tmp_path):
    banking(tmp_path)
    with open(tmp_path / "test.csv", "a") as f:
        f.write('"where is my 3, order 0?",card_arrival_3\n')
    found = classes.read("banking77", str(tmp_path))
    assert "where is my 3, order 0?" not in found["test"]["card arrival 3"]


def test_sealed_rows_are_asked_only_when_they_are_the_exam_and_then_nobody_trains_on_them(
        tmp_path, monkeypatch):
    banking(tmp_path)
    usual = classes.read("banking77", str(tmp_path))
    monkeypatch.setattr(classes, "EXAM", "sealed")
    found = classes.read("banking77", str(tmp_path))
    assert "sealed" not in usual and found["test"] == usual["test"] and found["val"] == usual["val"]
    for label, texts in usual["train"].items():
        assert found["sealed"][label] == texts[4::5]
        assert sorted(found["sealed"][label] + found["train"][label]) == sorted(texts)
        assert not set(found["sealed"][label]) & set(found["train"][label])


@pytest.mark.parametrize("name, content, says", [
    ("train.csv", None, "no file"),
    ("train.csv", "", "line 1: expected the header 'text,category'"),
    ("train.csv", "words,label\n", "line 1: expected the header"),
    ("train.csv", "text,category\n", "no rows"),
    ("test.csv", "text,category\na,b\nonly one\n", "line 3: expected 'text,category'"),
    ("test.csv", "text,category\na,\n", "line 2"),
    ("test.csv", "text,category\na,never_heard\n", "lacks: never heard")])
def test_bad_files_get_one_line(tmp_path, name, content, says):
    banking(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises((FileNotFoundError, ValueError), match=name) as e:
        classes.read("banking77", str(tmp_path))
    assert says in str(e.value) and "\n" not in str(e.value)


def test_bytes_that_are_no_text(tmp_path):
    banking(tmp_path)
    (tmp_path / "test.csv").write_bytes(b"text,category\n\xff\xfe,b\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        classes.read("banking77", str(tmp_path))


def test_a_stage_without_exam_rows_is_refused(tmp_path, small):
    folder = clinc_folder(tmp_path / "data")
    day = classes.load(asked_for("clinc150", folder)).days[0].passages
    rows = (folder / "test.tsv").read_text().splitlines(True)
    kept = [r for r in rows if " " + r.split("\t")[1].strip().replace("_", " ") not in day]
    (folder / "test.tsv").write_text("".join(kept))
    with pytest.raises(ValueError, match="no test rows for any of ask"):
        classes.load(asked_for("clinc150", folder))


# --------------------------------------------------------------------------------------------------
# Documents

def test_documents_have_the_form_of_all_data_sets_and_what_is_misheard_is_not_learnt(
        tmp_path, small, monkeypatch):
    folder = clinc_folder(tmp_path / "data")
    monkeypatch.setattr(classes, "MISHEARD", 0.0)
    data = classes.load(asked_for("clinc150", folder))
    (bos,), (ask,), (answer,), end = data.marks
    rows = {q for _, q in map(lambda pair: (pair[0], tuple(pair[1])), data.heard)}
    for share in (0.0, 0.9):
        ids, weights = data.document(random.Random(share), share)
        assert len(ids) == len(weights) and ids[0] == bos and ids[-1] == end and weights[0] == 0
        first, last = ids.index(ask), ids.index(answer)
        assert tuple(ids[first:last + 1]) in rows
    for day in data.days:
        read = [ids for ids, _ in day.study if ids[1] != ask]
        assert len(read) and len(day.study) > 2 * len(day.heard) / 2
        names = {tuple(ids[1:ids.index(ask)]) for ids in read}
        assert names == {n for n, _ in day.heard}
        assert {tuple(data.enc.encode_ordinary(p)) for p in day.passages} == names
    monkeypatch.setattr(classes, "MISHEARD", 0.5)
    speech = classes.Speech(data.enc, data.marks)
    ids, weights = [*data.marks.ask, *range(50)], [1.0] * 51
    heard, told = classes.mishear(speech, (ids, weights), random.Random(1))
    assert 10 < sum(w == 0 for w in told) < 40
    assert all(w == 0 for a, b, w in zip(ids, heard, told) if a != b)
    assert max(heard[1:]) < min(symbols(data.marks))
    name = [*data.marks.answer, *range(50)]                  # an answer is never misheard
    assert classes.mishear(speech, (name, weights), random.Random(1)) == (name, weights)


# --------------------------------------------------------------------------------------------------
# The gate of whole texts

def hearing(things=5, names=((4,), (5, 6), (7,), (8, 9), (10,))):
    model = plain(listens="text")
    model.metric = torch.randn(6, 3 * model.config.n_embd, dtype=torch.float64)
    model.remember_things(torch.randn(things - 2, 6), torch.zeros(things - 2), SLOW, -1,
                          names[:things - 2])
    expand(model, FAST, 1)
    model.remember_things(torch.randn(2, 6), torch.zeros(2), FAST, 0, names[things - 2:])
    return model


def texts(*lengths):
    return [[*MARKS.ask, *(4 + tokens(n) % 30).tolist(), *MARKS.answer] for n in lengths]


def test_a_topic_is_the_mean_direction_of_words_and_states_and_survives_widening():
    model = hearing()
    rows = [[*MARKS.bos, *q] for q in texts(7, 2, 5)]
    batch, lengths = pad_rows(rows)
    batch = torch.where(torch.arange(batch.shape[1]) < lengths[:, None], batch,
                        tokens(*batch.shape))
    d = model.config.n_embd
    for found, row in zip(gate.topic(model, batch, lengths), rows):
        word = sum(F.normalize(model.wte.weight[t], dim=0) for t in row[2:-1])
        close(F.normalize(found[:d], dim=0), F.normalize(word, dim=0))
        ids = torch.tensor([row])
        deep = [model.hidden(ids, blocks=1), gate.states(model, ids)]
        for i, state in enumerate(deep, 1):
            state = F.normalize(state[0, 2:-1], dim=1).sum(0)
            close(F.normalize(found[i * d:(i + 1) * d], dim=0), F.normalize(state, dim=0), 1e-9)
    wide = widen(model, n_embd=64, n_head=4)
    close(gate.propose(wide, batch, lengths), gate.propose(model, batch, lengths), 1e-4)


def test_the_gate_proposes_and_the_experts_judge():
    """p(thing | text) ~ p_gate(thing | text) p(text and name | its expert), by hand."""
    model = hearing()
    for q in texts(3, 6):
        row = torch.tensor([[*MARKS.bos, *q]])
        z = gate.topic(model, row, torch.tensor([row.shape[1]]))[0] @ model.metric.T
        near = torch.stack([-(z - thing).square().sum() / 2 for thing in model.things])
        experts = []
        for name, (level, expert) in zip(model.names.tolist(), model.owner.tolist()):
            name = [t for t in name if t >= 0] + [MARKS.end]
            ids = torch.tensor([[*row[0].tolist(), *name]])
            who = torch.tensor([expert])
            log_p = model(ids[:, :-1], awake={level: (who, torch.tensor([0]))}).log_softmax(-1)[0]
            words = [*row[0, 2:].tolist(), *name]
            experts.append(sum(log_p[1 + i, t] for i, t in enumerate(words)))
        for trust in ((1, 1), (1, 0.5), (1, 0), (0, 1)):
            best = int((trust[0] * near + trust[1] * torch.stack(experts)).argmax())
            (said, source), = gate.judge(model, MARKS, [q], trust)
            assert said[:-1] == [t for t in model.names[best].tolist() if t >= 0]
            assert source == ((FAST, 0) if best > 2 else None)
        assert gate.remember(model, MARKS, [q]) == gate.judge(model, MARKS, [q], gate.TRUST)


def test_what_is_heard_by_day_is_a_mean_a_thing_and_no_text():
    model = plain(torch.float32, listens="text")
    day = [((4 + i % 3,), q) for i, q in enumerate(texts(*[5] * 30))]
    gate.learn_to_listen(model, MARKS, day)
    assert model.names.tolist() == [[4], [5], [6]] and model.owner.tolist() == [[SLOW, -1]] * 3
    x = gate.topic(model, *pad_rows([[*MARKS.bos, *q] for _, q in day]))
    mean = torch.stack([x[i::3].mean(0) for i in range(3)])
    close(model.things, mean @ model.metric.T, 1e-4)
    gate.hear_day(model, MARKS, [((7, 8), q) for _, q in day[:4]], FAST, 0)
    assert model.names.tolist() == [[4, -1], [5, -1], [6, -1], [7, 8]]
    mean = torch.cat([mean, x[:4].mean(0, keepdim=True)])           # in the metric of today
    close(model.things, mean @ model.metric.T, 1e-3)
    model.reset(FAST)
    assert len(model.names) == len(model.things) == len(model.owner) == 3


def test_the_metric_is_the_inverse_of_one_covariance_of_all_days_each_thing_counting_once():
    model, x = plain(torch.float32, listens="text"), torch.randn(60, 5)
    thing = torch.arange(60) % 3
    gate.fit_metric(model, x, thing, gate.SHRINK, inside=None)
    model.remember_things(gate.means(x, thing)[0] @ model.metric.T, torch.zeros(3), SLOW, -1,
                          [(4,), (5,), (6,)])
    before = model.things @ torch.linalg.inv(model.metric).T
    y = 2 * torch.randn(40, 5)
    gate.hear_more(model, y, torch.arange(40) % 2)
    parts = [gate.covariance(t, torch.arange(len(t)) % k, gate.SHRINK) for t, k in ((x, 3), (y, 2))]
    S = (3 * parts[0] + 2 * parts[1]) / 5
    close(model.metric @ S @ model.metric.T, torch.eye(5), 1e-5)
    close(model.things @ torch.linalg.inv(model.metric).T, before, 1e-5)


# --------------------------------------------------------------------------------------------------
# The one night

FEW = ["--pretrain_steps=6", "--days=2", "--quizzes=1", "--threads=1", "--n_layer=2", "--n_embd=32"]


def test_a_tiny_life_on_a_folder(tmp_path):
    """The real script, in the original layout: 45 intents for the base, then 15 a day."""
    things = [a + b for a in "bdfgklmnpr" for b in ("anu", "elo", "iri", "oma", "ube", "yta")]
    folder, out = clinc_folder(tmp_path / "data", things), tmp_path / "out"
    command = [PYTHON, str(ROOT / "sleep.py"), "--data=clinc150", f"--data_dir={folder}",
               f"--out_dir={out}", "--seed_steps=2", *FEW]
    r = subprocess.run(command, capture_output=True, text=True, timeout=240, env=ENV)
    assert r.returncode == 0, r.stderr
    for place in (out, out / "none", out / "sft"):
        s = json.loads((place / "summary.json").read_text())
        assert s["data"] == "clinc150" and len(s["R"]) == 1 and 0 <= s["old_after"] <= 1


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A small base that has learnt its four intents, and two days of two."""
    folder, patch = tmp_path_factory.mktemp("toy"), pytest.MonkeyPatch()
    table = classes.TABLES["clinc150"]._replace(base=4, day=2)
    patch.setitem(classes.TABLES, "clinc150", table)
    for name, small in (("n_layer", 2), ("n_embd", 64)):
        patch.setitem(flags.FLAGS, name, (small, *flags.FLAGS[name][1:]))
    for module, name, few in ((seed, "STUDY_STEPS", 70), (seed, "DREAM_STEPS", 4),
                              (asking, "HELD_OUT", 16), (dream, "CHOSEN", 4), (dream, "POOL", 32),
                              (dream, "WRITER_STEPS", 4)):
        patch.setattr(module, name, few)
    o = K.parse([f"--data_dir={clinc_folder(folder / 'data')}", f"--work={folder}", "--steps=3",
                 "--pretrain_steps=150", "--imagined=4"])
    s = K.beginning(o, 1, "test", 2)
    s.a.quizzes, s.a.seed_steps, o.pretrain_steps = 2, 4, 3         # joint is no base: 3 steps
    yield s
    patch.undo()


@pytest.fixture(scope="module")
def slept(toy):
    """The self after both nights."""
    model, R, seconds = K.lived(toy, "sleep", {})
    assert len(R) == 3 and len(seconds) == 2 and all(0 <= x <= 1 for x in R[-1])
    return model


@pytest.mark.parametrize("name", [m for m in K.METHODS if m != "sleep"])
def test_every_method_lives_two_toy_days(name, toy):
    r = K.life(toy, name, K.DEFAULTS.get(name, {}))
    assert 0 <= r["final"] <= 1 and len(r["R"][-1]) == 3
    if name != "joint":
        assert r["R"][0][1:] == [None, None] and all(0 <= x <= 1 for x in r["R"][-1])


def test_a_night_of_a_studied_day_leaves_the_base_as_it_was_and_forgets_the_text(toy, slept):
    model = slept
    new = dict(model.named_parameters())
    assert all(torch.equal(p, new[k]) for k, p in toy.base.named_parameters())
    nights = model.n_experts(FAST)
    assert nights >= 1 and model.n_experts(SLOW) == 0
    assert model.owner.tolist() == [[SLOW, -1]] * 4 + [[FAST, e] for e in range(nights)
                                                       for _ in range(2)]
    assert {t for row in model.names.tolist() for t in row} <= set(range(-1, min(symbols(toy.data.marks))))


def test_a_dream_of_a_studied_day_is_called_what_the_self_that_studied_calls_it(toy):
    day, marks = wake(toy.data, 0, [])[0], toy.data.marks
    teacher = seed.hold(toy.base, day, marks)
    z = seed.screen(teacher, dream.write(teacher, marks, 2), marks)
    z = asking.named(teacher, z, marks, seed.reader(teacher))
    pairs = unpack(z)
    said = gate.greedy(teacher.model, [[*marks.bos, *q] for _, q, _ in pairs], marks, gate.MAX_NEW,
                       gate.always(teacher.awake, z.ids))
    names = [tuple(view[1:]) for view in teacher.readings[::dream.VIEWS]]
    assert pairs and [tuple(y) for y in said] == [y for _, _, y in pairs]
    assert all(y == (*names[p], marks.end) for p, _, y in pairs)
    assert (sureness(z) > asking.MIN_SURE).all() and z.thing.equal(z.passage)


def test_a_day_that_was_studied_is_over_in_the_morning(toy):
    day, tried = wake(toy.data, 1, [([[1, 2]], 1)])
    assert len(tried) == len(day.passages) == 2


def test_the_bench_of_topics_asks_the_gate_and_the_experts_apart(toy, slept):
    items = [x for stage in toy.exams for x in stage]
    for trust in topics.TRUST.values():
        asked = topics.share_right(slept, toy.data, items, trust)
        assert asked == K.share_right(toy, slept, items, 2, trust)
    assert topics.over_all([1.0, 0.5, None], [[0] * 3, [0], [0] * 9]) == pytest.approx(3.5 / 4)


def test_metrics_of_a_hand_made_life():
    exams = [[0] * 4, [0] * 2, [0] * 2]
    m = K.metrics([[1.0, None, None], [0.5, 1.0, None], [0.75, 0.5, 1.0]], exams)
    assert m["final"] == pytest.approx((0.75 * 4 + 0.5 * 2 + 1.0 * 2) / 8)
    assert m["average_incremental"] == pytest.approx((1.0 + 4 / 6 + 0.75) / 3)
    assert m["base_kept"] == 0.75 and m["ACC"] == pytest.approx(0.75)
    assert m["BWT"] == pytest.approx((-0.25 - 0.5) / 2)


def test_the_script_resumes_and_the_search_sees_validation_rows_alone(tmp_path, small, monkeypatch):
    argv = [f"--data_dir={clinc_folder(tmp_path / 'data')}", f"--work={tmp_path}/w", "--steps=2",
            f"--result={tmp_path}/r.json", "--seeds=1", "--pretrain_steps=3"]
    lives, life = [], K.life

    def watched(s, method, knobs):
        lives.append((method, s.seed, s.split))
        return life(s, method, knobs)
    monkeypatch.setattr(K, "life", watched)
    K.main([*argv, "--methods=sft,none"])
    assert lives.count(("sft", K.VALIDATION, "val")) == 3
    assert lives[-2:] == [("sft", 1, "test"), ("none", 1, "test")]
    K.main([*argv, "--methods=sft,none,inca"])               # finished lives are not lived again
    assert len(lives) == 6 and lives[-1] == ("inca", 1, "test")
    file = json.loads((tmp_path / "r.json").read_text())
    assert str(tmp_path) not in json.dumps(file)
    with pytest.raises(SystemExit):
        K.main([*argv, "--steps=3"])


@pytest.mark.parametrize("words, says", [
    (["--methods=slep"], "no 'slep'"), (["--seeds=one"], "whole numbers"),
    (["--seeds=101"], "validation"), (["--data=clink"], "choose one of")])
def test_bad_flags_get_one_line(words, says, capsys):
    with pytest.raises(SystemExit) as e:
        K.main(words)
    err = capsys.readouterr().err
    assert e.value.code == 2 and says in err and err.count("\n") == 1


def test_an_answer_says_which_memory_it_comes_from(toy, slept):
    items = toy.exams[0][:2] + toy.exams[1][:2]
    said = exam.answers(slept, toy.data, items)
    names = {toy.data.enc.decode(list(n)).strip() for n in toy.known(2)}
    assert all(y in names and (who is None or who[0] == FAST) for y, who in said)
