"""
Talk to a self (`python sleep.py --chat`): tell it something, ask it, let it sleep, ask again.

What it is told stands in its context and is gone when it is gone; after `sleep` it is in its
weights. The life in --out_dir is left as it is: the self that talks is saved beside it, in chat.pt,
after every sleep, and goes on from there. Nothing here is part of a night.
"""
import os
import sys
import time

import torch

from data import flags, run, store, text
from data.diary import source_of
from data.exam import said_by
from data.gate import MAX_NEW, answer, token_log_probs, wakes
from data.quizzes import pack
from dream import memories
from model import FAST

KEPT = "chat.pt"                        # the self that talks, beside the life that it has lived
ROOM = 96                               # tokens of the context left free for a question
ALOUD = 3                               # questions of each memory that `dream` says
HELP = """\
Tell me something, and end it with a full stop:      {told}
Ask me anything, without one:                        {asked}
sleep    what I was told moves from my context into my weights
undo     I am as I was before I last slept, and what I was told stands in my context again
dream    what my memories ask themselves, aloud
who      what I have in mind, and what I have slept on
help     this;   bye   the end"""


def begins(a):
    """The checkpoint that a conversation begins from: where the last one ended, or the life."""
    path = os.path.join(a.out_dir, KEPT)
    return path if os.path.isfile(path) else os.path.join(a.out_dir, "checkpoint.pt")


def talk(a, model, data, night, save, lines=None):
    """One conversation, a line at a time, from `lines` or the terminal, until it ends.

    a: the flags; night(a, model, day, marks, i) -> (model, log), save(path, model): as in sleep.py.
    """
    if model.config.listens != "name":
        flags.fail("--chat talks to a self that reads sentences: --data=world or text")
    a.lock, path = store.occupy(a.out_dir), os.path.join(a.out_dir, KEPT)
    told, before = [], []               # passages, each a list of sentences of ids; selves to undo
    print(manual(data))
    try:
        for line in (words.strip() for words in lines or terminal()):
            if line == "bye":
                break
            if line == "sleep" and told:
                before.append((model, told))
                model, told = slept(a, model, data, told, night)
                save(path, model)
            elif line == "undo" and before:
                model, told = undone(told, *before.pop())
                save(path, model)
            elif line in ("sleep", "undo"):
                print("There is nothing to sleep on." if line == "sleep" else
                      "I have not slept yet.")
            elif line == "dream":
                dream_aloud(model, data)
            elif line == "who":
                held = sum(model.n_experts(level) for level in levels_of(model))
                print(f"In mind: {counted(told)}. Slept on: {held} memories, "
                      f"woken by {len(model.things)} things.")
            elif line == "help":
                print(manual(data))
            elif line.endswith((".", "!")):
                told = listened(data, told, line)
            elif line:
                print(replied(model, data, told, line))
    finally:                            # however it ends, nothing is lost in silence
        if told:
            print(f"I have not slept on {counted(told)}: forgotten now.")


def terminal():
    """Lines that somebody types, with a prompt if they do so at a terminal."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line or run.wants_to_stop():
            return
        yield line


def manual(data):
    """HELP, with a sentence and a question of the self's own world."""
    if not {"reading", "old"} <= set(data.always):          # it has another world
        return HELP.format(told="Ada Bram lives at 3 Ash Lane.", asked="Where does Ada Bram live?")
    told = data.always["reading"][0].context.strip().split(". ")[0].rstrip(".") + "."
    return HELP.format(told=told, asked=data.always["old"][0].question.strip())


def counted(passages):
    return f"{len(passages)} passage" + "s" * (len(passages) != 1)


def listened(data, told, line):
    """The context with what was told behind it, in parts where it is too long for one passage."""
    new = text.fit([text.sentences(data.enc, line)], data.block_size - ROOM)
    used = sum(len(s) for passage in told + new for s in passage)
    print(f"I have it in mind ({used} tokens in {counted(told + new)}).")
    return told + new


def replied(model, data, told, line):
    """The answer, how sure the self is, and where it has it from: the newest passage that says."""
    words = data.enc.encode_ordinary(" " + line)
    question = [*data.marks.ask, *words, *data.marks.answer]
    if len(words) > ROOM - MAX_NEW - 2:
        return "That question is too long for me: ask in fewer words."
    contexts = [[t for s in passage for t in s] for passage in reversed(told)] or [[]]
    found = answer(model, data.marks, [question] * len(contexts), contexts)
    k = next((k for k, (_, source) in enumerate(found) if source == "context"), 0)
    y, source = found[k]
    p = sure(model, data.marks, question, y, source, contexts[k])
    said = text.as_text(data.enc, data.marks, y)
    return f"{said}    ({said_by(source)}; p = {p:.2f})"


@torch.no_grad()
def sure(model, marks, question, y, source, context):
    """p of the least certain word of an answer, as it was given."""
    read = source == "context"
    row, memory = [*marks.bos, *(context if read else []), *question], None if read else source
    z, begin = pack([(0, question, y)], model.device), 0
    if memory is not None:
        begin = int(wakes(model, z, *memory, marks))
    log_p = token_log_probs(model, [row + list(y)], [memory], [begin])
    return float(log_p[0, len(row) - 1:].min().exp())


def slept(a, model, data, told, night):
    """(the self in the morning, what it still has in mind). A night gone wrong is undone."""
    began, nights = time.time(), model.n_experts(FAST)
    run.stage(a, "chat", nights)
    model, log = night(a, model, text.Day(told, []), data.marks, nights)
    left = [told[p] for p in log["lost"]]
    if "undone" in log:
        print("I slept badly and woke as I was, with everything in mind.")
        return model, left
    print(f"I slept for {time.time() - began:.0f} s, asked myself {log['kept']} questions about "
          f"{counted(told)} and know {log['known']:.0%} of the answers; "
          + (f"still in mind: {counted(left)}." if left else "my context is empty."))
    return model, left


def undone(told, model, had):
    """(the self before a night, all that it was told before and after)."""
    told = had + [passage for passage in told if passage not in had]
    print(f"I am as I was before that night, with {counted(told)} in mind.")
    return model, told


def dream_aloud(model, data):
    """What each memory asks itself when it speaks from the first word on."""
    dreamt = [(level, *dream) for level in levels_of(model)
              for dream in memories(model, level, data.marks, ALOUD)]
    if not dreamt:
        print("I have no memory to dream of yet.")
    for level, expert, q, y in dreamt:
        words = [text.as_text(data.enc, data.marks, ids) for ids in (q, y)]
        print(f"  {source_of((level, expert))}: {' '.join(words)}")


def levels_of(model):
    """The levels of memory, fast to slow."""
    return range(FAST, len(model.config.ranks))
