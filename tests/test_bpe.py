"""The tokenizer: no text is lost, training is the textbook's, damaged rank files say where."""
import base64
import random
import re
from collections import Counter

import pytest

from data.bpe import SPECIAL, SPLIT, encoding, load_ranks, save_ranks, train_bpe

TEXTS = ["Ada Lovelace was born in London in 1815.", "Alan Turing was born in London in 1912.",
         "Where was Ada born? In London.", "aaaa aaa aaaaa banana bananas",
         "déjà vu — naïve café\n\n  two  spaces"]


@pytest.fixture(scope="module")
def ranks():
    return train_bpe(TEXTS, 280)


def slow_bpe(texts, vocab_size):
    """Sennrich et al. without any bookkeeping: count all pairs again for every merge."""
    words = Counter(tuple(bytes([b]) for b in w.encode()) for text in texts
                    for w in re.findall(SPLIT, text))
    ranks = {bytes([i]): i for i in range(256)}
    while len(ranks) < vocab_size - len(SPECIAL):
        pairs = Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += n
        if not pairs or max(pairs.values()) < 2:
            break
        left, right = min(p for p in pairs if pairs[p]
                          == max(pairs.values()))               # ties: the smaller pair
        ranks[left + right] = len(ranks)
        merged = Counter()
        for word, n in words.items():
            new, fresh = [], False
            for token in word:                               # left to right, no token is used twice
                if new and (new[-1], token) == (left, right) and not fresh:
                    new[-1], fresh = left + right, True
                else:
                    new, fresh = new + [token], False
            merged[tuple(new)] += n
        words = merged
    return ranks


def test_train_bpe_equals_the_slow_trainer(ranks):
    assert list(ranks.items()) == list(slow_bpe(TEXTS,
                                                280).items()) and len(ranks) == 280 - len(SPECIAL)
    for seed in range(40):                         # few letters: long runs, many ties, many repeats
        draw = random.Random(seed)
        texts = ["".join(draw.choice("ab c"[:draw.randint(1, 4)]) for _ in range(40))
                 for _ in range(4)]
        assert train_bpe(texts, 300) == slow_bpe(texts, 300)


def test_train_bpe_does_not_depend_on_the_order_of_texts(ranks):
    assert list(train_bpe(TEXTS[::-1], 280).items()) == list(ranks.items())


def test_merges_stop_when_nothing_repeats():
    assert len(train_bpe(["abcdef"], 1000)) == 256
    assert len(train_bpe([], 1000)) == 256


def test_every_text_comes_back(ranks):
    enc = encoding(ranks)
    anywhere = [c for c in range(0x110000)
                if not 0xD800 <= c <= 0xDFFF]                 # surrogates are no characters
    for draw in (range(128), range(0x3000), anywhere):
        for _ in range(100):
            text = "".join(chr(random.choice(draw)) for _ in range(random.randint(0, 30)))
            assert enc.decode(enc.encode_ordinary(text)) == text
    for text in TEXTS:
        assert enc.decode(enc.encode_ordinary(text)) == text
        assert len(enc.encode_ordinary(text)) < len(text.encode())           # the merges are in use


def test_special_tokens_come_last_and_are_never_made_by_plain_text(ranks):
    enc = encoding(ranks)
    assert [enc.encode_single_token(s)
            for s in SPECIAL] == list(range(len(ranks), len(ranks) + len(SPECIAL)))
    assert max(enc.encode_ordinary("".join(SPECIAL))) < len(ranks)
    later = encoding(ranks, first=900)                       # behind somebody else's special tokens
    assert [later.encode_single_token(s) for s in SPECIAL] == [900, 901, 902, 903]


def test_ranks_survive_a_file(ranks, tmp_path):
    save_ranks(ranks, tmp_path / "a.bpe")
    assert list(load_ranks(tmp_path / "a.bpe").items()) == list(ranks.items())


@pytest.mark.parametrize("line",
                         ["", "YQ==", "YQ== one", "YQ== 1 2", "!!!! 2", "YQ= 2", "\xff\xfe 2"])
def test_a_malformed_line_is_named(ranks, tmp_path, line):
    save_ranks(ranks, tmp_path / "bad.bpe")
    lines = (tmp_path / "bad.bpe").read_bytes().split(b"\n")
    lines[2] = line.encode("latin1")
    (tmp_path / "bad.bpe").write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match=r"bad\.bpe, line 3"):
        load_ranks(tmp_path / "bad.bpe")


@pytest.mark.parametrize("change", ["gap", "twice", "no byte", "cut short"])
def test_ranks_with_holes_are_refused(ranks, tmp_path, change):
    pairs = list(ranks.items())
    pairs = {"gap": pairs[:-2] + pairs[-1:], "twice": pairs + [(b"twice", 7)],
             "cut short": pairs[:200],
             "no byte": [(b"no byte" if t == b"a" else t, r) for t, r in pairs]}[change]
    (tmp_path / "bad.bpe").write_text("".join(f"{base64.b64encode(t).decode()} {r}\n" for t,
                                              r in pairs))
    with pytest.raises(ValueError, match=r"bad\.bpe"):
        load_ranks(tmp_path / "bad.bpe")


def test_a_missing_rank_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*none\.bpe"):
        load_ranks(tmp_path / "none.bpe")
