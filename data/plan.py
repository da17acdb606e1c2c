"""
What a night will take on a card, before anything is loaded: `--plan=h100`, `--plan=24`.

Everything follows from shapes: parameters and caches exactly; the FLOPs of a step and what it keeps
for its backward pass from the matrices of a block (tests/test_plan.py holds both to measured
steps). How much a night asks itself is not a shape: ASKED holds what a night of the default life
did for each sentence of its day (bench/plan.py measures it again).
"""
import math
from collections import namedtuple

from data.flags import fail, foreign, own_words
from data.gate import MAX_NEW as ANSWER
from data.text import sentences, spelt
from data.weights import config_in
from seed import BATCH as ROWS, FORCED, LEAST, STEPS, USUAL

Card = namedtuple("Card", "name gigabytes tflops bandwidth")         # dense bfloat16; GB a second
CARDS = [Card("rtx4090", 24, 165, 1008), Card("l40s", 48, 362, 864), Card("a100", 80, 312, 2039),
         Card("h100", 80, 989, 3350), Card("h200", 141, 989, 4800)]   # their makers' data sheets
MFU = 0.33                              # share of that which a step uses (bench/results/speed.json)
GB = 1e9
LAUNCH = 1e-3                           # seconds to launch the kernels of a block, roughly
ROOMY = 0.9                             # share of a card that can be filled
COPIES = 6                              # of weights that learn: base, self, yesterday, cold, ...
ROLLOUTS = ROWS                         # of an on-policy step
CHUNK = 1024                            # words at a time in the loss (kernels.in_chunks)
Asked = namedtuple("Asked", "quizzes facts tokens words read answered")
ASKED = Asked(quizzes=2.7,              # quizzes a document of 64 tokens, about as many are learnt
              facts=4.3,                # answers a sentence, each learnt for 3 steps
              tokens=20, words=6,       # of a quiz, of its answer
              read=14, answered=6)      # times each quiz is read with all words scored; answered


# --------------------------------------------------------------------------------------------------
# Shapes

def attention(c):
    """Weights of one block's attention matrices."""
    return c.n_embd * c.head_dim * (2 * c.n_head + 2 * c.kv_heads)


def mlp(c):
    return c.n_embd * c.d_ff * (3 if c.act == "swiglu" else 2)


def parameters(c):
    """All weights of a model without experts, exactly."""
    d, heads, gain = c.n_embd, (c.n_head + 2 * c.kv_heads) * c.head_dim, 2 if c.bias else 1
    block = attention(c) + mlp(c) + c.conv * d + 2 * c.head_dim * c.qk_gain * gain
    block += (1 + len(c.ranks) + bool(c.conv)) * d * gain
    block += heads * (c.bias or c.qkv_bias) + c.bias * (2 * d + (mlp(c) // d - c.d_ff))
    tables = c.vocab_size * (1 if c.tied else 2) + (0 if c.rope else c.block_size)
    return c.n_layer * block + d * (tables + gain)


def learning(c):
    """Blocks that hold experts."""
    return c.n_layer - min(c.hears, c.n_layer - 1)


def expert(c, level=1):
    """Weights of one expert of a level in all blocks that hold one."""
    return learning(c) * 2 * c.n_embd * c.ranks[min(level, len(c.ranks) - 1)]


def cache(c, rows, length, size):
    """Bytes of keys, values and inputs of the convolution of rows of so many tokens."""
    before = length + c.conv - 1 if c.conv else 0
    return rows * c.n_layer * size * (2 * length * c.kv_heads * c.head_dim + before * c.n_embd)


# --------------------------------------------------------------------------------------------------
# FLOPs (a multiplication and an addition are two)

def forward(c, tokens, keys, words):
    """Reading `tokens`, each looking at `keys` positions, and scoring `words` of them."""
    looks = 2 * keys * c.n_head * c.head_dim
    return 2 * (tokens * c.n_layer * (attention(c) + mlp(c) + looks)
                + words * c.n_embd * c.vocab_size)


def step(c, rows, T, words, everything=False):
    """Forward and backward of rows of T tokens. The weights are frozen: a gradient goes through
    them (once more the forward), from the words down to the lowest expert. everything: they learn,
    too."""
    tokens, live = rows * T, c.n_layer if everything else learning(c)
    back = live * mlp(c) + (live - 1) * attention(c)
    looks = (live - 1) * 5 * T * c.n_head * c.head_dim               # five products for two
    experts = 0 if everything else 3 * expert(c)
    again = words if words <= CHUNK else 2 * words                   # chunks are computed again
    total = forward(c, tokens, T, words) + 2 * tokens * (back + looks + experts)
    total += 2 * again * c.n_embd * c.vocab_size
    if everything:
        looks = 5 * T * c.n_head * c.head_dim
        total += 2 * tokens * (c.n_layer * (attention(c) + mlp(c)) + attention(c) + looks)
        total += 2 * words * c.n_embd * c.vocab_size
    return total


# --------------------------------------------------------------------------------------------------
# What a step keeps for its backward pass

def activations(c, tokens, words, size, everything=False):
    """Bytes, size: of a number inside the blocks; scores of words are float32."""
    d, D, rank = c.n_embd, c.head_dim, c.ranks[min(1, len(c.ranks) - 1)]
    live = c.n_layer if everything else learning(c)
    hidden = {"swiglu": 3, "gelu": 1}.get(c.act, 2) * c.d_ff
    turned = (c.n_head + c.kv_heads) * bool(c.rope or c.qk_norm or c.qk_gain)
    heads = (2 * c.n_head + 2 * c.kv_heads + turned) * D             # as read, turned; the answer
    level = d + hidden                                               # the MLP
    level += 0 if everything else 2 * d + 2 * rank + 2 * d * math.ceil(rank / 16)    # the expert
    above = d + heads + (d if c.conv else 0)                         # attention
    if everything:                                                   # inputs of all matrices
        above, level = above + d + c.n_head * D + 3 * d * bool(c.conv), level + d + c.d_ff
    inside = tokens * size * (live * level + (live - (not everything)) * above)
    return inside + min(words, CHUNK) * c.vocab_size * 4 * 2


# --------------------------------------------------------------------------------------------------
# A night, and learning to read

Night = namedtuple("Night", "quizzes steps flops looks bytes")
# quizzes that are learnt; steps of distillation; FLOPs; decoding steps; {what: bytes}


def night(c, passages, sentences_, length, a, size, longer=0):
    """A day of passages of `length` tokens, with so many sentences, under the flags a. longer:
    ids by which marks in a model's own words are longer."""
    often = a.quizzes * max(1, USUAL // sentences_)                    # as in seed.night
    documents = 2 * sentences_ * often
    N, T, A = int(ASKED.quizzes * documents), ASKED.tokens + longer, ASKED.words
    steps = a.seed_steps or max(LEAST, STEPS * int(ASKED.facts * sentences_))
    rows, late = ROWS + FORCED, int(0.3 * a.on_policy * steps)
    words = ROWS * A + FORCED * T
    flops = {"dreaming of the day": forward(c, documents * 64, length, documents * 64),
             "reading quizzes": forward(c, ASKED.read * N * T, length, ASKED.read * N * T),
             "answering": forward(c, ASKED.answered * N * ANSWER, length, ASKED.answered * N * 12),
             "learning": (steps - late) * step(c, rows, T, words),
             "on-policy": late * (step(c, ROLLOUTS, T, ROLLOUTS * T)
                                  + 2 * forward(c, ROLLOUTS * T, length, ROLLOUTS * T))}
    if a.dream:
        trials = 4 * step(c, 32, T, 32 * T) + forward(c, 32 * 24 * T, T, 32 * 24 * T)
        writer = 16 * step(c, 16, length + T, 16 * (length + T)) if a.writer else 0
        tried = step(c, 216, T, 216 * T)
        flops["trying dreams"] = trials + writer + tried + 20 * step(c, rows, T, words)
    looks = 64 + ASKED.answered * math.ceil(N / 512) * ANSWER + late * ANSWER
    tokens, read = rows * T, min(N, 128)
    log_p = read * T * c.vocab_size * 4                              # of the day's teacher, a part
    held = {"weights": (1 if a.expand else COPIES) * parameters(c) * size,
            "an expert and Muon": 3 * expert(c) * size,
            "caches": cache(c, 2 * (passages + 2 * sentences_), length, size)
            + cache(c, min(documents, 512), 64, size) + cache(c, read, length + T, size),
            "a step": activations(c, tokens, words, size),
            "what the teacher says": N * A * c.vocab_size * 4 + 2 * log_p}
    return Night(N, steps, flops, looks, held)


def pretraining(c, steps, length, size):
    """(FLOPs, {what: bytes}) of learning the format: all weights, 8 documents a step."""
    words, P = 8 * length // 2, parameters(c)
    adam = c.n_embd * c.vocab_size * (1 if c.tied else 2)            # Adam keeps two numbers
    return steps * step(c, 8, length, words, True), {
        "weights and gradients": 2 * P * size, "Muon and Adam": (P + adam) * size,
        "a step": activations(c, 8 * length, words, size, True)}


# --------------------------------------------------------------------------------------------------
# On a card

def card_of(text):
    """A card by its name, or the nearest to a number of gigabytes, of exactly that size."""
    named = next((card for card in CARDS if card.name == text.lower()), None)
    if named:
        return named
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 < size < 1e4:
        fail(f"--plan={text[:40]}: a card ({', '.join(card.name for card in CARDS)}) or its "
             "gigabytes")
    near = min(CARDS, key=lambda card: abs(math.log(card.gigabytes / size)))
    return near._replace(name=f"{size:g} GB, as fast as {near.name}", gigabytes=size)


def minutes(c, card, size, flops, steps, looks=0):
    """Learning at MFU; while decoding, all weights pass by at each look, at half the bandwidth; and
    nothing is faster than its kernels can be launched."""
    launch = c.n_layer * LAUNCH
    look = max(launch, parameters(c) * size / (0.5 * card.bandwidth * GB))
    return (max(flops / (MFU * card.tflops * 1e12), 3 * steps * launch) + looks * look) / 60


def size_of(days):
    """Of the longest of days (lists of passages): (sentences, tokens of its longest passage)."""
    longest = max(days, key=lambda day: sum(map(len, day)))
    return sum(map(len, longest)), max(sum(map(len, p)) for p in longest) + 1


def show(a, data, c):
    """Print, and return as numbers, what a life with these flags would take on the card of --plan.

    c: the Config of a self from scratch; with --init_from that of the weights in its folder, of
    which only config.json is read. Raises FileNotFoundError or ValueError where there is none."""
    if a.init_from != "scratch":
        c = config_in(a.init_from, c.ranks, 0 if own_words(a) else len(data.marks))
    card, size = card_of(a.plan), 2 if a.dtype == "bfloat16" else 4
    days = [[sentences(data.enc, p) for p in day.passages] for day in data.days]
    (told, length), n = size_of(days), max(map(len, days))
    length += len(data.marks.bos) - 1
    tonight = night(c, n, told, length, a, size, spelt(data.marks))
    reading, held = pretraining(c, a.pretrain_steps, min(data.block_size, c.block_size), size)
    print(f"{parameters(c):,} weights of {size} bytes in {c.n_layer} blocks, {expert(c):,} more a "
          f"night; {card.name}, {MFU:.0%} of {card.tflops:.0f} TFLOPS\n"
          f"a day of {n} passages, {told} sentences: {tonight.quizzes} quizzes, "
          f"{tonight.steps} steps")
    spent = sum(tonight.flops.values())
    took = {"learning to read": (minutes(c, card, size, reading, a.pretrain_steps), held),
            "a night": (minutes(c, card, size, spent, tonight.steps, tonight.looks), tonight.bytes)}
    if foreign(a) and own_words(a):                                  # there is nothing to learn
        del took["learning to read"]
    numbers = {}
    for name, (time, held) in took.items():
        total = sum(held.values()) / GB
        fits = total < ROOMY * card.gigabytes
        parts = {what: round(b / GB, 2) for what, b in held.items()}
        print(f"{name:16} {time:9.2f} minutes {total:8.2f} GB, "
              f"{'fits' if fits else 'DOES NOT FIT'}: "
              + ", ".join(f"{what} {b}" for what, b in parts.items()))
        numbers[name] = {"minutes": round(time, 2), "GB": round(total, 2), "fits": fits, **parts}
    return numbers
