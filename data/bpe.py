"""A small byte-level BPE: trained here, run by tiktoken. Nothing is downloaded, and no text is lost (256 bytes are tokens)."""
import base64
import os
import re
from collections import Counter, defaultdict

import tiktoken

SPLIT = r" ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+"                 # a merge never crosses a word
SPECIAL = ["<|bos|>", "<|ask|>", "<|answer|>", "<|end|>"]             # begin a document, a question, its answer, its end


def train_bpe(texts, vocab_size):
    """Byte-pair merges of an iterable of texts (Sennrich et al. 2016) -> {bytes: rank}, 256 bytes first.

    vocab_size counts the special tokens too. Ties go to the smaller pair, so the result does not depend on hashing.
    """
    counts = Counter(piece for text in texts for piece in re.findall(SPLIT, text))
    words = [list(map(bytes, zip(w.encode()))) for w in counts]
    weight, pairs, where = list(counts.values()), Counter(), defaultdict(set)
    for i, word in enumerate(words):
        for pair in zip(word, word[1:]):
            pairs[pair] += weight[i]
            where[pair].add(i)
    ranks = {bytes([i]): i for i in range(256)}
    while pairs and len(ranks) < vocab_size - len(SPECIAL):
        best = min(pairs, key=lambda p: (-pairs[p], p))
        if pairs[best] < 2:
            break
        ranks[best[0] + best[1]] = len(ranks)
        for i in where.pop(best):
            word, new, j = words[i], [], 0
            for pair in zip(word, word[1:]):
                pairs[pair] -= weight[i]
            while j < len(word):
                both = tuple(word[j:j + 2]) == best
                new.append(word[j] + word[j + 1] if both else word[j])
                j += 2 if both else 1
            words[i] = new
            for pair in zip(new, new[1:]):
                pairs[pair] += weight[i]
                where[pair].add(i)
        pairs.pop(best, None)
        if len(ranks) % 64 == 0:                                      # drop what the merges have used up
            pairs = Counter({p: c for p, c in pairs.items() if c > 0})
    return ranks


def encoding(ranks, name="nanosleep", split=SPLIT, first=None):
    """{bytes: rank} -> tiktoken.Encoding with the four special tokens from id `first` on (default: right behind the ranks)."""
    special = {s: (first or len(ranks)) + i for i, s in enumerate(SPECIAL)}
    return tiktoken.Encoding(name, pat_str=split, mergeable_ranks=ranks, special_tokens=special)


def save_ranks(ranks, path):
    with open(path, "w") as f:
        f.writelines(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())


def load_ranks(path):
    """Read a rank file (one 'base64 rank' a line, tiktoken's own format). Raises ValueError with file and line."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no tokenizer at {path}: it ships with the repository; restore it with git checkout")
    ranks = {}
    with open(path, encoding="ascii", errors="replace") as f:     # a damaged byte is a damaged line
        for n, line in enumerate(f, 1):
            try:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
            except ValueError:
                raise ValueError(f"{path}, line {n}: expected 'base64 rank', found {line.strip()[:40]!r}") from None
    if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([i]) not in ranks for i in range(256)):
        raise ValueError(f"{path}: ranks must be 0, 1, 2, ... without gaps and contain all 256 bytes")
    return ranks
