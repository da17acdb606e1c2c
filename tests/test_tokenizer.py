"""Tokenizers of others: the same ids as `tokenizers` gives, on text of many scripts; what cannot be
said in tiktoken's way is refused in one line."""
import json
import random
import re
import unicodedata
from types import SimpleNamespace

import pytest
from hypothesis import given, settings, strategies as st

from data import tokenizer
from data.bpe import SPECIAL
from data.text import SHORT, as_text, document_ids, marks_of
from data.tokenizer import GPT2_SPLIT, QWEN_SPLIT, tokenizer_beside

tokenizers = pytest.importorskip("tokenizers")

LLAMA_SPLIT = QWEN_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
SCRIPTS = [
    "It's she'll WE'RE I'd a day in 1815, 3.14159 or 12345678!",
    "déjà vu — naïve café, Ünïcödé",
    "Съешь же ещё этих мягких французских булок",
    "Η γρήγορη αλεπού 12 ήταν εδώ",
    "نص عربي بسيط مع أرقام ١٢٣٤",
    "טקסט בעברית עם ניקוד שָׁלוֹם",
    "日本語のテキストと漢字、カタカナ。",
    "中文文本没有空格，1234年。",
    "한국어 문장 그리고 한글",
    "ไทยไม่มีเว้นวรรค ๑๒๓",
    "हिन्दी में लिखा हुआ पाठ १२३",
    "தமிழ் உரை",
    "🎉👩‍👩‍👧‍👦🇪🇺 emoji 🏳️‍🌈",
    "def f(x):\n\treturn x**2  # code\r\n\r\n",
    "a\u00a0b\u2003c\u200bd\ufeff",
    "   leading and trailing   \n\n\n",
    "ſ'ſ K's İstanbul ǅ ﬁ Ⅻ ½ ²",
    "e\u0301 o\u0308 가 Å",
    "x" * 70,
    "ab" * 40,
    "\x00\x01\x7f\x80",
    "₹€$ ∑∫√ ≠ → ⇒ ░▒▓",
    "ᏣᎳᎩ ქართული Հայերեն ⴰⵎⴰⵣⵉⵖ"]
KINDS = {"gpt2": (None, False, False, ["<|endoftext|>"]),
         "llama": (LLAMA_SPLIT, False, True, ["<|begin_of_text|>", "<|end_of_text|>",
                                              "<|start_header_id|>", "<|end_header_id|>",
                                              "<|eot_id|>"]),
         "qwen": (QWEN_SPLIT, True, False, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])}


def trained(kind, size=700):
    """A tokenizer of this kind, trained here by `tokenizers` on all scripts."""
    split, composed, whole, special = KINDS[kind]
    t = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=whole))
    before = tokenizers.pre_tokenizers
    t.pre_tokenizer = before.ByteLevel(add_prefix_space=False)
    if split:
        t.pre_tokenizer = before.Sequence([
            before.Split(tokenizers.Regex(split), "isolated"),
            before.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.normalizer = tokenizers.normalizers.NFC() if composed else None
    t.decoder = tokenizers.decoders.ByteLevel()
    t.train_from_iterator(SCRIPTS * 3, tokenizers.trainers.BpeTrainer(
        vocab_size=size, show_progress=False, initial_alphabet=before.ByteLevel.alphabet()))
    t.add_special_tokens([tokenizers.AddedToken(s, normalized=False) for s in special])
    return t


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """{kind: (theirs, ours, its folder)}."""
    made = {}
    for kind in KINDS:
        folder, theirs = tmp_path_factory.mktemp(kind), trained(kind)
        theirs.save(str(folder / "tokenizer.json"))
        made[kind] = theirs, tokenizer_beside(folder), folder
    return made


def same(theirs, ours, text):
    want = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text, allowed_special="all") == want, text
    return want


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_tokenizers(kind, pairs):
    theirs, ours, _ = pairs[kind]
    rng, special, n = random.Random(0), KINDS[kind][3], 0
    letters = [c for text in SCRIPTS for c in text]
    for text in SCRIPTS:
        ids = same(theirs, ours, text)
        known = unicodedata.normalize("NFC", text) if kind == "qwen" else text
        assert ours.decode(ids) == known
        n += len(ids) < len(text.encode())
    assert n > 20                                           # the merges are at work
    for _ in range(1500):
        words = [rng.choice(SCRIPTS), rng.choice(special), "".join(rng.choices(letters, k=9)),
                 " ", "\n", "'", "7" * rng.randint(1, 5)]
        rng.shuffle(words)
        same(theirs, ours, "".join(words)[:rng.randint(1, 200)])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from([*KINDS]), st.text(max_size=40))
def test_any_text_has_the_ids_of_tokenizers(pairs, kind, text):
    same(*pairs[kind][:2], text)


def test_their_special_tokens_and_our_marks(pairs):
    for kind, (theirs, ours, folder) in pairs.items():
        for token in KINDS[kind][3]:
            assert ours.encode_single_token(token) == theirs.token_to_id(token)
        n = theirs.get_vocab_size()
        marks = [ours.encode_single_token(mark) for mark in SPECIAL]
        assert marks == [n, n + 1, n + 2, n + 3] and ours.n_vocab == n + 4
        words = n - len(KINDS[kind][3])
        assert max(ours.encode_ordinary("".join(SPECIAL + KINDS[kind][3]))) < words
        padded = tokenizer_beside(folder, n_vocab=n + 20)   # a table with rows to spare (Qwen's)
        assert padded.n_vocab == n + 24 and padded.encode_single_token(SPECIAL[0]) == n + 20
        assert padded.decode([n + 3, 65]) == f"<|unused {n + 3}|>" + padded.decode([65])
        with pytest.raises(ValueError, match="more tokens than"):
            tokenizer_beside(folder, n_vocab=n - 1)


@pytest.mark.parametrize("kind", ["gpt2", "qwen"])
def test_vocab_and_merges_are_the_same_tokenizer(kind, pairs, tmp_path):
    theirs, ours, folder = pairs[kind]
    whole = json.loads((folder / "tokenizer.json").read_text())
    vocab, special = dict(whole["model"]["vocab"]), whole["added_tokens"]
    if kind == "gpt2":                                      # there it stands among the words
        vocab |= {token["content"]: token["id"] for token in special}
    else:
        decoder = {str(token["id"]): {"content": token["content"]} for token in special}
        beside = json.dumps({"added_tokens_decoder": decoder})
        (tmp_path / "tokenizer_config.json").write_text(beside)
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in whole["model"]["merges"]), ""]
    (tmp_path / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    again = tokenizer_beside(tmp_path)
    assert again.n_vocab == ours.n_vocab
    for text in [*SCRIPTS, *KINDS[kind][3]]:
        assert same(theirs, again, text) == ours.encode(text, allowed_special="all")


WRITTEN = {  # marks in a model's own words
    "gpt2": ("<|endoftext|>Text:", "\nQuestion:", "\nAnswer:"),
    "qwen": (f"<|im_start|>system\n{SHORT}Text:", "<|im_end|>\n<|im_start|>user\nQuestion:",
             "<|im_end|>\n<|im_start|>assistant\nAnswer:"),
    "llama": (f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{SHORT}Text:",
              "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nQuestion:",
              "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nAnswer:")}


@pytest.mark.parametrize("kind", KINDS)
def test_marks_in_own_words_are_ids_of_a_whole_chat(pairs, kind):
    """A document of marks and texts has the ids that their tokenizer gives it as one text."""
    theirs, _, folder = pairs[kind]
    ours = tokenizer_beside(folder, marks=[])
    assert ours.n_vocab == theirs.get_vocab_size()                  # no row is added
    marks = marks_of(ours, own=True)
    assert tuple(map(ours.decode, marks[:3])) == WRITTEN[kind]
    assert marks.ask[0] == marks.answer[0] == marks.end
    asked = [(" Where?", " 27 Elm\u00e9"), (" Who?", " Ada")]
    ids, _ = document_ids(ours, marks, " Ada lives at 27 Elm. Who?", asked)
    same(theirs, ours, ours.decode(ids))
    assert ours.encode(ours.decode(ids), allowed_special="all") == ids
    assert ours.decode(ids).count(ours.decode([marks.end])) >= 4    # none is doubled
    question = [*marks.ask, *ours.encode_ordinary(" Who?"), *marks.answer]
    assert as_text(ours, marks, question) == "Who?"
    person = ours.encode_ordinary(ours.decode([marks.bos[0]]))      # typed, it is no mark
    assert marks.bos[0] not in person


def test_qwen_3_does_not_think_and_a_plain_text_needs_ends_of_lines(tmp_path):
    t = trained("qwen")
    t.add_special_tokens(["<think>", "</think>"])
    t.save(str(tmp_path / "tokenizer.json"))
    ours = tokenizer_beside(tmp_path, marks=[])
    answer = ours.decode(marks_of(ours, own=True).answer)
    assert answer.endswith("<think>\n\n</think>\n\nAnswer:")
    ours = SimpleNamespace(special_tokens_set={"<|x|>"}, encode=joined)
    with pytest.raises(ValueError, match="--format=marks"):
        marks_of(ours, own=True)


def joined(text, **_):
    """A line's end joined to what stands before it, as Llama 3's and Qwen's tokenizers do."""
    return [sum(map(ord, piece)) for piece in re.findall(r"\w+|[^\s\w]+\n*|\s+", text)]


def test_no_tokenizer_is_none(tmp_path):
    assert tokenizer_beside(tmp_path) is None
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match=r"vocab\.json is no tokenizer.*merges\.txt"):
        tokenizer_beside(tmp_path)


WRONG = [(("model",), None), (("model", "type"), "Unigram"), (("model", "vocab"), []),
         (("model", "vocab"), {}), (("model", "vocab", "a"), "1"), (("model", "vocab", "a"), -1),
         (("model", "vocab", "a"), 2 ** 40), (("model", "vocab", "a"), 5), (("model", "merges"), {}),
         (("model", "merges", 0), "a"), (("model", "merges", 0), ["q", "zzz"]),
         (("model", "merges", 0), 7), (("model", "byte_fallback"), True),
         (("model", "unk_token"), "?"), (("normalizer",), {"type": "Lowercase"}),
         (("pre_tokenizer",), None), (("pre_tokenizer", "type"), "Metaspace"),
         (("pre_tokenizer", "pretokenizers"), []), (("pre_tokenizer", "pretokenizers"), [1, 2]),
         (("pre_tokenizer", "pretokenizers", 0, "pattern"), {"String": " "}),
         (("pre_tokenizer", "pretokenizers", 0, "pattern"), {"Regex": "(("}),
         (("pre_tokenizer", "pretokenizers", 0, "pattern"), {"Regex": 7}),
         (("pre_tokenizer", "pretokenizers", 0, "behavior"), "Removed"),
         (("added_tokens",), [1]), (("added_tokens",), {"a": 1}), (("added_tokens", 0, "id"), "x"),
         (("added_tokens", 0, "id"), 3), (("added_tokens", 0, "content"), ""),
         (("added_tokens", 0, "content"), [1]), (("added_tokens", 0, "content"), SPECIAL[0])]


@pytest.mark.parametrize("where, value", WRONG, ids=str)
def test_what_tiktoken_cannot_say_is_refused(where, value, pairs, tmp_path):
    fields = json.loads((pairs["qwen"][2] / "tokenizer.json").read_text())
    place = fields
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer that can be used") as e:
        tokenizer_beside(tmp_path)
    assert "\n" not in str(e.value) and len(str(e.value)) < 500


def test_merges_in_another_order_than_ids_are_refused(pairs, tmp_path):
    fields = json.loads((pairs["gpt2"][2] / "tokenizer.json").read_text())
    fields["model"]["merges"].reverse()
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="order of ids"):
        tokenizer_beside(tmp_path)
    for text in ("[1]", "{", "\udcff", '{"a":' * 50000):
        (tmp_path / "tokenizer.json").write_text(text, errors="surrogateescape")
        with pytest.raises(ValueError, match="no tokenizer that can be used"):
            tokenizer_beside(tmp_path)


JUNK = st.one_of(st.none(), st.booleans(), st.integers(-5, 900), st.text(max_size=4),
                 st.lists(st.text(max_size=3), max_size=3),
                 st.dictionaries(st.sampled_from(["type", "id", "content", "a"]),
                                 st.text(max_size=3) | st.integers(), max_size=2))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from([where for where, _ in WRONG]), JUNK)
def test_any_tokenizer_is_used_or_refused_in_one_line(pairs, tmp_path_factory, where, value):
    folder = tmp_path_factory.getbasetemp() / "any-tokenizer"
    folder.mkdir(exist_ok=True)
    fields = json.loads((pairs["qwen"][2] / "tokenizer.json").read_text())
    place = fields
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    try:
        enc = tokenizer_beside(folder)
        assert enc.decode(enc.encode_ordinary("Ada, 1815")) == "Ada, 1815"
    except ValueError as e:
        assert "no tokenizer that can be used" in str(e) and "\n" not in str(e)


def test_every_byte_has_its_character():
    assert sorted(tokenizer.alphabet().values()) == list(range(256))
    assert {*tokenizer.alphabet()} == {*tokenizers.pre_tokenizers.ByteLevel.alphabet()}
    assert GPT2_SPLIT.count("|") > 5
