"""Class-incremental learning on real text: the loaders, each method on a toy, the metrics by hand, and the real script."""
import copy
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tqdm import tqdm

from bench import class_incremental as K
from bench import clinc150
from data import topics

ROOT = Path(__file__).resolve().parent.parent
THINGS = ["card", "music", "flight", "weather", "alarm", "recipe", "hotel", "taxi"]


def clinc_folder(folder, things=THINGS):
    folder.mkdir(exist_ok=True)
    for split, n, start in (("train", 6, 0), ("val", 2, 10), ("test", 2, 20)):
        rows = [f"{verb} the {t} {start + i}\task_{t}" for t in things for i in range(n) for verb in ("find", "show me")]
        (folder / f"{split}.tsv").write_text("text\tintent\n" + "\n".join(rows) + "\n")
    return folder


# ----------------------------------------------------------------------------------------------------------------------
# Loaders

def banking(folder, n=23, rows=12):
    for split, start in (("train", 0), ("test", 100)):
        lines = [f'"where is my {k}, order {start + i}?",card_arrival_{k}' for k in range(n) for i in range(rows)]
        (folder / f"{split}.csv").write_text("text,category\n" + "\n".join(lines) + "\n")


def test_banking77_is_read_from_its_original_files(tmp_path):
    banking(tmp_path)
    data, stages = topics.load("banking77", str(tmp_path), seed=1)
    assert [len(s) for s in stages] == [22, 1] and len({x for s in stages for x in s}) == 23
    assert data["train"]["card arrival 3"][0] == "where is my 3, order 0?"             # the quoted comma is no column
    for k in data["train"]:
        assert (len(data["train"][k]), len(data["val"][k]), len(data["test"][k])) == (11, 1, 12)
        assert not set(data["train"][k]) & set(data["val"][k]) and not set(data["train"][k]) & set(data["test"][k])
    assert topics.load("banking77", str(tmp_path), seed=2)[1] != stages and topics.load("banking77", str(tmp_path), 1)[1] == stages


def test_dbpedia_is_read_and_its_names_are_spoken(tmp_path):
    for split in ("train", "test"):
        rows = [f"A {k} that is number {i} of {split}.\tTop\tKind{'Of' * (k % 2)}Thing{chr(65 + k)}\tx" for k in range(24) for i in range(3)]
        (tmp_path / f"{split}.tsv").write_text("text\tl1\tl2\tl3\n" + "\n".join(rows) + "\n")
    data, stages = topics.load("dbpedia", str(tmp_path), 1)
    assert "kind of thing b" in data["train"] and [len(s) for s in stages] == [20, 4]


def test_a_text_that_is_in_train_is_no_test(tmp_path):
    banking(tmp_path)
    with open(tmp_path / "test.csv", "a") as f:
        f.write('"where is my 3, order 0?",card_arrival_3\n')
    assert "where is my 3, order 0?" not in topics.read("banking77", str(tmp_path))["test"]["card arrival 3"]


@pytest.mark.parametrize("name, text, says", [
    ("train.csv", None, "no file"), ("train.csv", "", "line 1: expected the header 'text,category'"),
    ("train.csv", "words,label\n", "line 1: expected the header"), ("train.csv", "text,category\n", "no rows"),
    ("test.csv", "text,category\na,b\nonly one\n", "line 3: expected 'text,category', found 'only one'"),
    ("test.csv", "text,category\na,\n", "line 2"), ("test.csv", "text,category\na,never_heard\n", "lacks: never heard")])
def test_bad_files_get_one_line(tmp_path, name, text, says):
    banking(tmp_path)
    (tmp_path / name).unlink()
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises((FileNotFoundError, ValueError), match=name) as e:
        topics.read("banking77", str(tmp_path))
    assert says in str(e.value) and "\n" not in str(e.value)
    r = subprocess.run([sys.executable, str(ROOT / "bench/class_incremental.py"), "--data=banking77", f"--data_dir={tmp_path}",
                        f"--work={tmp_path}/w"], capture_output=True, text=True) if name == "train.csv" and text is None else None
    assert r is None or r.returncode == 2 and r.stderr.startswith("class_incremental.py: ") and r.stderr.count("\n") == 1


def test_bytes_that_are_no_text(tmp_path):
    banking(tmp_path)
    (tmp_path / "test.csv").write_bytes(b"text,category\n\xff\xfe,b\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        topics.read("banking77", str(tmp_path))


# ----------------------------------------------------------------------------------------------------------------------
# Methods on a toy

@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    old, topics.SETS["clinc150"] = topics.SETS["clinc150"], (2, 2, 40)
    o = K.parse([f"--data_dir={clinc_folder(folder / 'data')}", f"--work={folder}", "--base_steps=60", "--steps=4",
                 "--class_steps=3", "--class_dreams=4", "--class_replay=4"])
    s = K.beginning(o, 1, "test")
    topics.SETS["clinc150"] = old
    s.bar = tqdm(disable=True)
    return s


@pytest.mark.parametrize("name", [m for m in K.METHODS if m != "joint"])
def test_every_method_lives_two_toy_days_and_sees_no_other_text(name, toy, monkeypatch):
    """What a method encodes is the text of its day, of the base (its training), or what the model itself dreamt."""
    s, seen, dreamt = copy.copy(toy), set(), set()
    encode, imagine = s.enc.encode_ordinary, clinc150.imagine
    enc = SimpleNamespace(**{k: getattr(s.enc, k) for k in ("decode", "encode_single_token", "n_vocab")},
                          encode_ordinary=lambda text: (seen.add(text), encode(text))[1])

    def heard(*args, **kw):
        rows = imagine(*args, **kw)
        dreamt.update(text for text, _ in rows)
        return rows
    monkeypatch.setattr(clinc150, "imagine", heard)
    monkeypatch.setattr(K, "imagine", heard)
    monkeypatch.setattr(toy, "enc", enc)
    everything = [label for stage in s.stages for label in stage]
    exams = {t for split in ("val", "test") for t, _ in s.rows(split, everything)}
    assert len(exams) == 2 * 2 * 2 * len(everything)
    s.enc, model, memory = enc, copy.deepcopy(s.base), {}
    for s.night in (1, 2):
        day = s.rows("train", s.stages[s.night])
        seen.clear(), dreamt.clear()
        K.METHODS[name][0](s, model, day, memory, **K.DEFAULTS.get(name, {}))
        labels = {label for stage in s.stages[:s.night + 1] for label in stage}
        allowed = labels | {t for t, _ in day} | dreamt
        if s.night == 1 and name in ("sleep", "ewc", "inca", "replay"):
            allowed |= {t for t, _ in s.base_rows}                   # the end of the base's own training
        if name == "replay":
            allowed |= {t for t, _ in memory["rows"]}
        assert seen <= allowed, (name, sorted(seen - allowed)[:3])
        assert not seen & (exams - dreamt)
    text = {t for t, _ in s.rows("train", everything)} & strings(memory)
    assert bool(text) == (K.METHODS[name][1] == "text") and all(torch.isfinite(t).all() for t in model.state_dict().values())
    row = K.exam(s, model, memory, 2)
    assert all(0 <= r <= 1 for r in row[:3]) and row[3:] == [None] * (len(row) - 3)


def strings(thing):
    if isinstance(thing, str):
        return {thing}
    parts = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, (list, tuple)) else []
    return {x for part in parts for x in strings(part)}


def test_what_the_router_hears_is_the_mean_over_labels_of_mean_and_covariance(toy):
    heard, rows = {}, toy.base_rows
    clinc150.hear(toy.base, toy.enc, heard, rows[:12])
    clinc150.hear(toy.base, toy.enc, heard, rows[12:])
    covs = []
    for i, label in enumerate(heard["labels"]):
        x = torch.stack([toy.base.features(F.normalize(toy.base.wte.weight[toy.enc.encode_ordinary(t)], dim=-1).sum(0))
                         for t, k in rows if k == label])
        assert torch.allclose(heard["means"][i], x.mean(0), atol=1e-5)
        covs.append((x - x.mean(0)).T @ (x - x.mean(0)) / len(x))
    assert heard["labels"] == toy.stages[0] and torch.allclose(heard["cov"], torch.stack(covs).mean(0), atol=1e-5)


def test_sleep_leaves_the_base_as_it_was_and_dreams_alone_move_the_slow_level(toy):
    s, model, memory = toy, copy.deepcopy(toy.base), {}
    s.night = 1
    K.asleep(s, model, s.rows("train", s.stages[1]), memory)
    new = dict(model.named_parameters())
    assert all(torch.equal(p, new[k]) for k, p in s.base.named_parameters())           # experts are buffers
    assert model.blocks[0].levels[clinc150.SLOW].n_experts == 1 and model.blocks[0].levels[clinc150.FAST].n_experts == 0
    assert model.owner.tolist() == [[clinc150.SLOW, -1]] * 4 + [[clinc150.SLOW, 0]] * 2


def test_metrics_of_a_hand_made_life():
    exams = [[0] * 4, [0] * 2, [0] * 2]
    m = K.metrics([[1.0, None, None], [0.5, 1.0, None], [0.75, 0.5, 1.0]], exams)
    assert m["final"] == pytest.approx((0.75 * 4 + 0.5 * 2 + 1.0 * 2) / 8) and m["base_kept"] == 0.75
    assert m["average_incremental"] == pytest.approx((1.0 + 4 / 6 + 0.75) / 3)
    assert m["ACC"] == pytest.approx(0.75) and m["BWT"] == pytest.approx((-0.25 - 0.5) / 2)
    assert m["forgetting"] == pytest.approx((0.25 + 0.5) / 2)


def test_a_stage_without_exam_rows_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(topics.SETS, "clinc150", (2, 2, 40))
    folder = clinc_folder(tmp_path / "data")
    stages = topics.load("clinc150", str(folder), 1)[1]
    rows = (folder / "test.tsv").read_text().splitlines(True)
    (folder / "test.tsv").write_text("".join(r for r in rows if r.split("\t")[1].strip()[4:] not in
                                             {label.split()[1] for label in stages[1]}))
    o = K.parse([f"--data_dir={folder}", f"--work={tmp_path}"])
    with pytest.raises(ValueError, match="no test rows for any of ask"):
        K.beginning(o, 1, "test")


def test_the_script_resumes_and_the_search_sees_validation_rows_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(topics.SETS, "clinc150", (2, 2, 40))
    argv = [f"--data_dir={clinc_folder(tmp_path / 'data')}", f"--work={tmp_path}/w", f"--result={tmp_path}/r.json", "--seeds=1",
            "--base_steps=4", "--steps=2", "--class_steps=2", "--class_dreams=2", "--class_replay=2"]
    lived, splits = [], []
    life = K.life
    monkeypatch.setattr(K, "life", lambda s, m, knobs: (lived.append((m, s.seed)), splits.append((s.seed, s.split)), life(s, m, knobs))[2])
    K.main([*argv, "--methods=sft,none"])
    assert {x for x in splits if x[0] == K.VALIDATION} == {(101, "val")} and (1, "test") in splits
    assert lived.count(("sft", 101)) == 3 and lived[-2:] == [("sft", 1), ("none", 1)]
    K.main([*argv, "--methods=sft,none,joint"])                      # finished lives are not lived again
    assert len(lived) == 6 and lived[-1] == ("joint", 1)
    file = json.loads((tmp_path / "r.json").read_text())
    assert str(tmp_path) not in json.dumps(file) and {r["method"] for r in file["runs"]} == {"sft", "none", "joint"}
    assert "--methods=sft,none " in file["command"]                  # that which made the file, not the one that went on with it
    (tmp_path / "data" / "train.tsv").write_text((tmp_path / "data" / "train.tsv").read_text().replace("find", "seek"))
    K.main([*argv, "--methods=sft,none,joint"])                      # nothing to do, so no base is made
    assert len(list((tmp_path / "w").glob("*.pt"))) == 2
    K.main([*argv[:2], f"--result={tmp_path}/other.json", *argv[3:], "--methods=none"])
    assert len(list((tmp_path / "w").glob("*.pt"))) == 3             # other text: a base of its own
    assert "| joint | all text at once | 1 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        K.main([*argv, "--steps=3"])
    assert "other settings" in capsys.readouterr().err


@pytest.mark.parametrize("words, says", [
    (["--methods=slep"], "no 'slep'"), (["--seeds=one"], "whole numbers"), (["--seeds=101"], "validation"),
    (["--data=clink"], "choose one of"), (["--table", "--result=nowhere.json"], "no results")])
def test_bad_flags_get_one_line(words, says, capsys):
    with pytest.raises(SystemExit) as e:
        K.main(words)
    err = capsys.readouterr().err
    assert e.value.code == 2 and says in err and err.count("\n") == 1


def test_a_gpt2_as_base(tmp_path, monkeypatch):
    """--init_from: GPT-2's file, its tokenizer, learned positions and no convolution; days and nights as for any other base."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("safetensors")
    monkeypatch.setitem(topics.SETS, "clinc150", (2, 2, 40))
    folder = clinc_folder(tmp_path / "data", THINGS[:6])
    enc = K.encoding(K.train_bpe([t for v in topics.read("clinc150", str(folder))["train"].values() for t in v], 300), "small")
    config = transformers.GPT2Config(vocab_size=enc.n_vocab - 4, n_positions=160, n_embd=64, n_layer=2, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    monkeypatch.setattr(K.sleep, "tokenizer", lambda a: enc)
    K.main([f"--data_dir={folder}", f"--work={tmp_path}/w", f"--result={tmp_path}/r.json", "--seeds=1", "--search=0", "--steps=2",
            f"--init_from={tmp_path}/gpt2", "--base_lr=0.002", "--methods=sleep,sft", "--base_steps=3", "--class_steps=2",
            "--class_dreams=2", "--class_replay=2"])
    file = json.loads((tmp_path / "r.json").read_text())
    assert {r["method"] for r in file["runs"]} == {"sleep", "sft"} and str(tmp_path) not in json.dumps(file)
    assert all(len(r["R"]) == 2 and 0 <= r["final"] <= 1 for r in file["runs"])
