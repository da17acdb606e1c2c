"""
Tokenizers of others: GPT-2's, Llama 3's and Qwen's files as a tiktoken Encoding.

All three are byte-level BPEs, which tiktoken runs as it runs ours. What tiktoken cannot say in the
same way is refused in one line. Behind their own special tokens come the four marks (data/bpe.py),
unless the model lives in its own words (data/text.py).
"""
import os
import unicodedata

import tiktoken

from data.bpe import SPECIAL
from data.flags import own_words
from data.weights import json_beside

GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
              r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
MOST = 2 ** 20                          # tokens of a vocabulary
CHATS = {  # a special token: what a person says and what the model says begin and end with
    "<|im_start|>": ("<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n"),   # Qwen
    "<|start_header_id|>": ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>",
                            "<|start_header_id|>assistant<|end_header_id|>\n\n")}       # Llama 3


class Composed(tiktoken.Encoding):
    """An Encoding of texts in Unicode's composed form (NFC), as Qwen's are."""
    def encode_ordinary(self, text):
        return super().encode_ordinary(unicodedata.normalize("NFC", text))

    def encode(self, text, **kw):
        return super().encode(unicodedata.normalize("NFC", text), **kw)


def tokenizer_beside(path, n_vocab=0, marks=SPECIAL):
    """The Encoding of the tokenizer in a folder, or in that of a file; None where there is none.

    tokenizer.json, or vocab.json and merges.txt. n_vocab: rows of the model's table; marks get the
    ids behind them, rows without a token get one that no text holds. Raises ValueError.
    """
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    whole, pair = os.path.join(folder, "tokenizer.json"), os.path.join(folder, "vocab.json")
    path = next((p for p in (whole, pair) if os.path.isfile(p)), None)
    if path is None:
        return None
    try:
        parts = from_json(path) if path == whole else from_pair(path)
        return encoding_of(*parts, n_vocab, marks)
    except (ValueError, OSError) as e:
        raise ValueError(f"{path} is no tokenizer that can be used: {e}") from None


def of_weights(a):
    """The Encoding beside the weights of --init_from, or None: then a data set brings its own."""
    path = getattr(a, "init_from", "scratch")
    if path == "scratch" or path.endswith(".pt") or not os.path.exists(path):
        return None
    inside = os.path.join(path, "") if os.path.isdir(path) else path
    n_vocab = json_beside(inside, "config.json").get("vocab_size", 0)
    marks = [] if own_words(a) else SPECIAL
    return tokenizer_beside(path, n_vocab if type(n_vocab) is int else 0, marks)


# --------------------------------------------------------------------------------------------------
# Files

def from_json(path):
    """tokenizer.json -> (vocabulary, merges, special tokens, pattern, composed?)."""
    fields = json_beside(path, os.path.basename(path))
    model = fields.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise ValueError("its model is no BPE")
    for name in ("dropout", "unk_token", "byte_fallback", "continuing_subword_prefix",
                 "end_of_word_suffix", "fuse_unk"):
        if model.get(name):
            raise ValueError(f"its model has a {name}, which is not supported")
    added = fields.get("added_tokens") or []
    try:
        special = {token["content"]: token["id"] for token in added}
    except (TypeError, KeyError):
        raise ValueError("its added_tokens are described wrongly") from None
    normal = fields.get("normalizer")
    if normal not in (None, {"type": "NFC"}):
        raise ValueError(f"its normalizer {str(normal)[:60]} is not supported: NFC or none")
    return model.get("vocab"), model.get("merges"), special, pattern_of(fields), normal is not None


def pattern_of(fields):
    """The pattern that splits a text into pieces, from the pre_tokenizer of a tokenizer.json."""
    step = fields.get("pre_tokenizer")
    try:
        steps = step["pretokenizers"] if step["type"] == "Sequence" else [step]
        *splits, last = steps
        if last["type"] == "ByteLevel" and not last.get("add_prefix_space"):
            if not splits and last.get("use_regex", True):
                return GPT2_SPLIT
            if len(splits) == 1 and not last.get("use_regex", True):
                split = splits[0]
                pattern, as_it_is = split["pattern"]["Regex"], not split.get("invert")
                if split["behavior"] == "Isolated" and as_it_is and isinstance(pattern, str):
                    return pattern
    except (TypeError, KeyError, ValueError, AttributeError):
        pass
    raise ValueError("its pre_tokenizer is not supported: one pattern, then bytes")


def from_pair(path):
    """vocab.json and merges.txt -> the same, with what tokenizer_config.json says beside them.

    A Qwen is known by its special tokens: it has a pattern of its own."""
    vocab = json_beside(path, os.path.basename(path))
    try:
        with open(os.path.join(os.path.dirname(path), "merges.txt"), encoding="utf-8") as f:
            lines = [line.rstrip("\n") for line in f]
    except FileNotFoundError:
        raise ValueError("there is no merges.txt beside it") from None
    merges = [line for line in lines if line and not line.startswith("#version")]
    decoder = json_beside(path, "tokenizer_config.json").get("added_tokens_decoder", {})
    try:
        special = {token["content"]: int(number) for number, token in decoder.items()}
    except (TypeError, KeyError, ValueError, AttributeError):
        raise ValueError("the added_tokens_decoder beside it is described wrongly") from None
    qwen = "<|im_start|>" in special
    return vocab, merges, special, QWEN_SPLIT if qwen else GPT2_SPLIT, qwen


# --------------------------------------------------------------------------------------------------
# From their words to tiktoken's

def alphabet():
    """{character: byte} of byte-level BPE (GPT-2): every byte is written as a visible character."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in seen]
    return {chr(b): b for b in seen} | {chr(256 + i): b for i, b in enumerate(hidden)}


def encoding_of(vocab, merges, special, pattern, composed, n_vocab, marks):
    """A tiktoken Encoding of {written token: id} and merges in their order. Raises ValueError.

    tiktoken merges what has the smallest id, they what stands first among the merges: both are the
    same where ids grow from merge to merge, which is checked.
    """
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise ValueError("it has no vocabulary or no merges")
    ids = [*vocab.values(), *special.values()]
    if any(type(i) is not int or not 0 <= i < MOST for i in ids) or not all(
            isinstance(text, str) and text for text in special):
        raise ValueError("its ids are no numbers, or its tokens no words")
    last, made, byte = -1, set(), alphabet()
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(
                isinstance(t, str) and t in vocab for t in pair) or "".join(pair) not in vocab:
            raise ValueError(f"the merge {str(merge)[:40]!r} is not of its words")
        word = "".join(pair)
        if word not in made and vocab[word] < last:
            raise ValueError(f"the merge {str(merge)[:40]!r} does not stand in the order of ids")
        last = max(last, vocab[word])
        made.add(word)
    ranks, special = {}, dict(special)
    for word, number in vocab.items():
        if word in special:
            continue
        if len(word) > 1 and word not in made:               # never reached: special (GPT-2's only)
            special[word] = number
        elif all(c in byte for c in word):
            ranks[bytes(byte[c] for c in word)] = number
        else:
            raise ValueError(f"the token {word[:40]!r} is not written in bytes")
    if any(bytes([b]) not in ranks for b in range(256)):
        raise ValueError("not all 256 bytes are tokens")
    return built(ranks, special, pattern, composed, n_vocab, marks)


def built(ranks, special, pattern, composed, n_vocab, marks):
    taken = {*ranks.values(), *special.values()}
    if len(taken) < len(ranks) + len(special) or set(marks) & set(special):
        raise ValueError("two tokens have one id, or a mark of ours is a token of theirs")
    first = max(n_vocab, max(taken) + 1)
    if n_vocab and first > n_vocab:
        raise ValueError(f"it has more tokens than the {n_vocab} words of the model")
    unused = {f"<|unused {i}|>": i for i in range(first) if i not in taken}
    special |= unused | {mark: first + i for i, mark in enumerate(marks)}
    kind = Composed if composed else tiktoken.Encoding
    return kind("beside the weights", pat_str=pattern, mergeable_ranks=ranks,
                special_tokens=special)
