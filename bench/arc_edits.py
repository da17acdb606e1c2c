"""
What bench/arc.py reads and writes: tasks as prompts, and self-edits, the dreams of this bench.

A self-edit (SEAL, arXiv 2506.10943, section 4.2) says in JSON what to make of a task's
demonstrations and how to learn it. The self writes it token by token; at every token only what is
a self-edit is allowed, and among that its own likelihood decides.
"""
import json
from collections import namedtuple

import torch

from bench.arc_grids import encode
from data import bpe, text
from data.tokenizer import CHATS

SLOTS = {  # of a self-edit: what may stand there
    "turns": ("0", "1"),                        # flips, rotations, transposes
    "sizes": ("0", "1"),                        # every cell as four
    "repeats": ("0", "1"),                      # the grid twice, side by side and one below another
    "colours": ("0", "1"),                      # exchanged, 0 apart (not in SEAL)
    "chain": ("0", "1"),                        # two of these one after the other
    "loss": ('"all"', '"answer"'),              # on every cell, or on those of outputs alone
    "rate": ("0.01", "0.03", "0.1", "0.3"),   # of Muon
    "epochs": ("2", "4", "8", "16")}            # over what it makes
RECIPE = {"turns": "1", "sizes": "0", "repeats": "0", "colours": "0", "chain": "0",
          "loss": '"answer"', "rate": "0.1", "epochs": "16"}        # of `ttt`: always the same
RULE = "Each grid of digits becomes another by one rule. Answer with the new grid alone.\n"
ASKED = ("Which settings would teach you this rule best? Answer in JSON: turns, sizes, repeats, "
         "colours, chain (0 or 1: flip and rotate, enlarge, repeat the grids, exchange their "
         "colours, do two of these), loss (all or answer), rate (0.01 to 0.3), epochs (2 to 16).")
Format = namedtuple("Format", "enc marks head asked", defaults=[RULE, ASKED])
# marks: as in data/text.py, each one id or several (a chat format); head: said before the first
# grid; asked: the question that a self-edit answers


# --------------------------------------------------------------------------------------------------
# Prompts

def own_format(enc):
    """The Format of a tokenizer that came with weights: its chat, else our four marks."""
    token = next((token for token in CHATS if token in enc.special_tokens_set), None)
    if token is None:
        return Format(enc, text.marks_of(enc))
    begin, end, answer = (enc.encode(part, allowed_special="all") for part in CHATS[token])
    bos = "<|begin_of_text|>"
    bos = [enc.encode_single_token(bos)] if bos in enc.special_tokens_set else []
    return Format(enc, text.Marks(bos, begin, [*end, *answer], end))


def tiny_format():
    """That of the self that is pretrained here: bytes, and the words of self-edits."""
    texts = [written({slot: o[i % len(o)] for slot, o in SLOTS.items()}) for i in range(4)] * 2
    enc = bpe.encoding(bpe.train_bpe(texts, 310), "arc")
    return Format(enc, text.marks_of(enc), "", "settings")


def ids_of(mark):
    return [mark] if isinstance(mark, int) else list(mark)


def stop_of(f):
    return ids_of(f.marks.end)[0]


def document(f, pairs, asked=()):
    """[(id, part)] of examples: part 0: marks and the head, 1: an input, 2: an output. asked: a
    last question as ids, to be answered."""
    bos, ask, answer, end = map(ids_of, f.marks)
    ids, head = [(i, 0) for i in bos], f.enc.encode_ordinary(f.head)
    for x, y in pairs:
        ids += [(i, 0) for i in [*ask, *head]] + [(i, 1) for i in encode(f.enc, x)]
        ids += [(i, 0) for i in answer] + [(i, 2) for i in encode(f.enc, y)]
        ids += [(end[0], 2), *((i, 0) for i in end[1:])]
        head = []
    if asked:
        ids += [(i, 0) for i in [*ask, *head, *asked, *answer]]
    return ids


def prompt_of(f, demos, x):
    """The demonstrations, and an input whose output is asked: ids."""
    return [i for i, _ in document(f, demos, encode(f.enc, x))]


def wish_of(f, demos, room):
    """The demonstrations, as many as leave `room` tokens enough, and the question for a self-edit:
    ids. Raises ValueError where not even the question has room."""
    for n in range(len(demos), -1, -1):
        ids = [i for i, _ in document(f, demos[:n], f.enc.encode_ordinary(f.asked))]
        if len(ids) <= room:
            return ids
    raise ValueError(f"a context with {room} tokens for a question is too short for one that asks "
                     f"for a self-edit ({len(ids)}): take a self with a longer one")


# --------------------------------------------------------------------------------------------------
# Self-edits

def written(edit):
    return "{" + ", ".join(f'"{slot}": {option}' for slot, option in edit.items()) + "}"


def pieces(f):
    """The parts of a self-edit as ids: [(what stands before, {option: ids})]."""
    return [(f.enc.encode_ordinary(("{" if i == 0 else " ") + f'"{slot}": '),
             {o: f.enc.encode_ordinary(o + ("}" if i == len(SLOTS) - 1 else ",")) for o in options})
            for i, (slot, options) in enumerate(SLOTS.items())]


def edit_ids(f, edit):
    """A self-edit as the self would write it, its end included."""
    parts = [[*before, *options[edit[slot]]] for slot, (before, options) in zip(SLOTS, pieces(f))]
    return [i for part in parts for i in part] + [stop_of(f)]


def grammar(f, vocabulary, device="cpu"):
    """All self-edits, as `engine.generate` wants it: (states, vocabulary), the next state after
    each token, -1 where it is not allowed. An option ends in a comma: none begins another."""
    rows, state = [{}], 0
    for before, options in pieces(f):
        for i in before:
            rows.append({})
            rows[state][i] = len(rows) - 1
            state = len(rows) - 1
        rows.append({})
        after = len(rows) - 1                           # where all options meet again
        for ids in options.values():
            at = state
            for i in ids[:-1]:
                if i not in rows[at]:
                    rows.append({})
                    rows[at][i] = len(rows) - 1
                at = rows[at][i]
            rows[at][ids[-1]] = after
        state = after
    rows[state][stop_of(f)] = state
    table = torch.full((len(rows), vocabulary), -1, dtype=torch.int32)
    for at, row in enumerate(rows):
        for i, to in row.items():
            table[at, i] = to
    return table.to(device)


def edit_in(f, ids):
    """The self-edit in these ids, a dict of its options, or None where they are none."""
    said = f.enc.decode([i for i in ids if i != stop_of(f)])
    try:
        fields = json.loads(said)
        edit = {slot: json.dumps(fields[slot]) for slot in SLOTS}
    except (ValueError, KeyError, TypeError):
        return None
    return edit if all(edit[slot] in options for slot, options in SLOTS.items()) else None


def any_edit(rng):
    return {slot: rng.choice(options) for slot, options in SLOTS.items()}
