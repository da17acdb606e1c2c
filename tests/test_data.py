"""The embedded world and CLINC150: what is new is new, the exam asks in words of its own, bad files are named."""
import random

import numpy as np
import pytest

from data import clinc as C, world as W
from data.bpe import encoding, train_bpe


def test_the_world_is_repeatable_and_its_people_are_different():
    a, b = W.make_world(3), W.make_world(3)
    assert a["old"] == b["old"] and a["days"] == b["days"] and W.make_world(4)["old"] != a["old"]
    names = [p["name"] for p in a["old"] + [p for day in a["days"] for p in day]]
    assert len(names) == len(set(names)) == 40 + 7 * 8


def test_a_longer_life_begins_like_a_shorter_one():
    assert W.make_world(1, n_days=21)["days"][:7] == W.make_world(1, n_days=7)["days"]


def test_new_people_occur_in_no_pretraining_document():
    world, rng = W.make_world(1), random.Random(0)
    text = " ".join(t + " ".join(q + a for q, a in chain) for t, chain in (W.document(world, rng) for _ in range(3000)))
    assert all(p["name"] not in text for day in world["days"] for p in day)
    assert all(p["name"] in text for p in world["old"])


def test_exam_wordings_are_held_out_and_answers_are_several_tokens():
    enc, world = W.load_tokenizer(), W.make_world(1)
    for _, _, trained, held_out, reverse, reverse_exam in W.RELATIONS.values():
        assert not set(trained) & set(held_out) and not set(reverse) & set(reverse_exam)
    lengths = [len(enc.encode_ordinary(" " + p[k])) for p in world["old"] for k in W.RELATIONS]
    assert min(lengths) >= 2 and max(lengths) >= 3
    for _, q, a in W.exam(world["old"][:3], random.Random(0)):
        assert enc.decode(enc.encode_ordinary(q)) == q and enc.decode(enc.encode_ordinary(a)) == a


def test_lists_are_as_long_as_asked():
    enc, world, rng = W.load_tokenizer(), W.make_world(1, things=5), random.Random(0)
    for p in (*world["old"], *world["days"][0], W.stranger(world, rng)):
        for k in ("works", "loves"):
            assert len(p[k].replace(" and ", ", ").split(", ")) == len(set(p[k].replace(" and ", ", ").split(", "))) == 5
            assert len(enc.encode_ordinary(" " + p[k])) == 9
    assert W.listed(["tea", "figs"]) == "tea and figs" and W.listed(["tea", "figs", "rain"]) == "tea, figs and rain"


def test_the_shipped_tokenizer_survives_any_text():
    enc = W.load_tokenizer()
    for text in ("", "Ærøskøbing ∑ 漢字 \x00\n\t", "<|end|>"):
        assert enc.decode(enc.encode_ordinary(text)) == text
    assert not set(enc.encode_ordinary("<|bos|><|end|>")) & set(range(enc.n_vocab - 4, enc.n_vocab))


def write(folder, split="train", rows=("please freeze my card\tfreeze_account", "what is my balance\tbalance")):
    (folder / f"{split}.tsv").write_text("text\tintent\n" + "\n".join(rows) + "\n", encoding="utf-8")


def test_clinc_is_read_and_dealt(tmp_path):
    for split in C.SPLITS:
        write(tmp_path, split, [f"{split} says {i} {j}\tintent_{i}" for i in range(8) for j in range(3)])
    data, stages = C.load(tmp_path, base=2, per_day=3, seed=1)
    assert [len(s) for s in stages] == [2, 3, 3] and len({label for s in stages for label in s}) == 8
    assert C.rows_of(data, "test", ["intent 4"]) == [(f"test says 4 {j}", "intent 4") for j in range(3)]
    assert C.load(tmp_path, base=2, per_day=3, seed=1)[1] == stages != C.load(tmp_path, base=2, per_day=3, seed=2)[1]


@pytest.mark.parametrize("line,says", [("no tab here", "line 3"), ("two\ttabs\there", "line 3"), ("\tno_text", "line 3"),
                                       ("no intent\t ", "line 3")])
def test_a_malformed_row_is_named(tmp_path, line, says):
    write(tmp_path, rows=["fine\tok", line])
    with pytest.raises(ValueError, match=f"train.tsv, {says}: expected"):
        C.read_split(tmp_path, "train")


def test_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="put train.tsv, val.tsv and test.tsv there"):
        C.load(tmp_path)
    (tmp_path / "train.tsv").write_text("text\tintent\n")
    with pytest.raises(ValueError, match="no rows"):
        C.read_split(tmp_path, "train")


def test_documents_and_tries():
    enc = encoding(train_bpe(["freeze account balance please"] * 3, 300))
    for first in (True, False):
        ids, weight = C.document(enc, "please", "balance", first)
        assert len(ids) == len(weight) and weight[-1] == 1.0 and weight[0] == 0.0
    table, end = C.trie(enc, ["balance", "freeze account"]), C.specials(enc)[3]
    state = 0
    for token in [*enc.encode_ordinary("freeze account"), end]:
        state = table[state][token]
        assert state >= 0
    assert (table[0] >= 0).sum() == len({enc.encode_ordinary(x)[0] for x in ("balance", "freeze account")})


def test_tfidf_reference_on_a_case_a_child_can_do():
    train = [("freeze my card", "freeze"), ("freeze this account", "freeze"), ("what is my balance", "balance"),
             ("show the balance", "balance")]
    assert C.tfidf_nearest_mean(train, [("please freeze it", "freeze"), ("balance now", "balance")]) == 1.0
    assert np.isclose(C.tfidf_nearest_mean(train, [("balance", "freeze"), ("balance", "balance")]), 0.5)
