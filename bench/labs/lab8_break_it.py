"""
Lab 8: break it.

    python bench/labs/lab8_break_it.py

QUESTION. A night that never failed would not have been looked at closely enough. Find a day, of
sentences that everybody in the village could say, of which the self knows less than half in the
morning. Six ordinary people are no problem: try them first.

    a villager   FIRST LAST                                 ("Ada Bram": bench/labs/village.py)
    sentences    "Ada Bram was born on 3 May."  "Ada Bram lives in Old Yarm."
                 "Ada Bram loves red tulips."

WRITE `day` below: at most 6 passages of at most 18 sentences in all, none of them twice about the
same thing of the same person. The old villagers are yours to use: `old` lists their facts. At most
20 lines.

THE NUMBER: the share of what you told that is known in the morning. Goal: below 0.5. A minute, the
base included.

OBSERVE. The lab asks the same with the passage still in context: was the day not read, or not kept?
Then see what the code says of it. Nothing is lost in silence: log["lost"] are the passages of which
no more than half was learnt, they stay in the context for tomorrow night (sleep.left_over) and are
given up aloud after three; a night that knows too little, or that has moved what was old, is undone
(asking.look_back, sleep.asleep). Is what you found among them? If the log says "known" and the exam
does not agree, you have found something better than a hard day: where do the two differ? (The night
judges by its own questions, the exam by yours.)
"""
import os
import sys

import random

sys.path.insert(0, os.path.abspath(os.path.join(__file__, "..", "..", "..")))
import sleep                                                         # noqa: E402
from bench.labs import common, village                               # noqa: E402
from data import text                                                # noqa: E402
from data.text import Day                                            # noqa: E402
from model import clone                                              # noqa: E402

GOAL = 0.5                          # known in the morning, at most
PASSAGES, SENTENCES = 6, 18         # of a day, at most


def day(old, rng):
    """A list of passages, each a text. old: [[Fact of an old villager] for each]; rng: random.

    village.somebody(rng) invents a villager, village.passage(facts) says facts.
    """
    # --- your code: at most 20 lines ---
    raise NotImplementedError("a list of at most 6 passages, at most 18 sentences, "
                              "at most 20 lines")


def measure(o):
    data, world = common.load_village(o)
    passages = day(world["old"], random.Random(o.seed))
    facts = told_by(passages)
    before = common.base(o, data)
    read = [text.sentences(data.enc, p) for p in passages]
    model, log = sleep.asleep(common.night_flags(), clone(before), Day(read, []), data.marks, 0)
    anew = {(f.name, f.relation) for f in facts}
    old = village.exam([f for fs in world["old"] for f in fs if (f.name, f.relation) not in anew])
    share = common.known(model, data, village.exam(facts))
    open_book = [x for p in passages for x in village.exam(told_by([p]), context=p)]
    seen = [f"{len(passages)} passages, {len(facts)} facts",
            f"  with the passage in context, before the night: "
            f"{common.known(before, data, open_book):.2f}",
            f"  the morning after, nothing in the context:     {share:.2f}",
            *([f"  the old, of whom nothing new was told:         "
               f"{common.known(model, data, old):.2f}"] if old else []),
            said_by_the_night(log)]
    return common.Result(share, f"below {GOAL}", share < GOAL, seen)


def said_by_the_night(log):
    if "undone" in log:
        return f"  the night is undone ({log['undone']}): all of the day waits for tomorrow night"
    return (f"  the night itself: known, by its own quizzes: {log['known']:.2f}; lost passages: "
            f"{[p + 1 for p in log['lost']] or 'none'}")


def told_by(passages):
    """The Facts of a day. Raises NotYet where it is no day of this world."""
    if not isinstance(passages, list) or not all(isinstance(p, str) for p in passages):
        raise common.NotYet("day gave no list of texts")
    told = [s.strip() + "." for p in passages for s in p.split(".") if s.strip()]
    if not 0 < len(told) <= SENTENCES or len(passages) > PASSAGES:
        raise common.NotYet(f"{len(passages)} passages of {len(told)} sentences: at most "
                            f"{PASSAGES} of at most {SENTENCES}, and at least one sentence")
    facts = {}
    for sentence in told:
        fact = village.parsed(sentence)
        if fact is None:
            raise common.NotYet(f"{sentence!r} is no sentence of the village")
        if (fact.name, fact.relation) in facts:
            raise common.NotYet(f"{sentence!r}: it was told before, a day must be true")
        facts[fact.name, fact.relation] = fact
    return list(facts.values())


if __name__ == "__main__":
    common.run(measure, __doc__, __file__)
