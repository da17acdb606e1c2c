"""
The village: a world small enough for a lab, in English, where every word is one token.

A villager has a first name, a last name and three facts, each told in one sentence and asked for in
two wordings. A transformer of 0.2 M parameters reads it after half a minute. It is also the
shortest data set that `sleep.py` can live in: `load(a) -> Data` (data/text.py) is all it takes.
"""
import random
from collections import namedtuple
from functools import partial

from data.bpe import encoding
from data.text import Data, Day, Item, document_ids, marks_of

FIRST = """Ada Ben Cleo Dora Emil Faye Gus Hana Ivo June Karl Lena Milo Nora Otto Pia Quin Rosa Sven
Tara Uma Vera Wim Xena Yuri Zoe Abel Dina Finn Greta""".split()
LAST = """Bram Corb Dahl Ells Funk Gray Hurd Ives Jahn Kern Lund Moor Nash Oaks Pell Quist Rask Sand
Thorn Ulm Voss Webb Yost Zorn Arbor Birk Crane Drew Elk Frost""".split()
Relation = namedtuple("Relation", "said asked left right")      # a value is one word of each side
RELATIONS = {
    "born": Relation("{n} was born on {v}.",
                     ["When was {n} born?", "What is the birthday of {n}?"],
                     [str(d) for d in range(1, 16)],
                     "January February March April May June July August September October November "
                     "December".split()),
    "lives": Relation("{n} lives in {v}.", ["Where does {n} live?", "What is the home of {n}?"],
                      "Port New Old Great Upper Lower North South East West Little Far".split(),
                      "Arden Bolton Corby Dover Epsom Fulham Henley Ilford Jarrow Kendal Luton "
                      "Marlow Norton Selby Yarm".split()),
    "loves": Relation("{n} loves {v}.", ["What does {n} love?", "What pleases {n}?"],
                      "red blue green white black golden silver tiny huge quiet loud sweet".split(),
                      "tulips kites books boats bells figs cats dogs trains hats songs stones "
                      "pears clocks drums".split()),
}
UNKNOWN = "Nobody knows."
OLD, PEOPLE, BLOCK = 8, 2, 256          # old villagers; new ones a day; tokens of a context
Fact = namedtuple("Fact", "name relation value")


# --------------------------------------------------------------------------------------------------
# Words, sentences, questions

def tokenizer():
    """Every word of the village is one token, whatever else is typed falls into bytes."""
    told = [r.said for r in RELATIONS.values()] + [q for r in RELATIONS.values() for q in r.asked]
    words = " ".join([*told, UNKNOWN]).replace("{n}", "").replace("{v}", "")
    words = words.replace(".", " ").replace("?", " ").split() + FIRST + LAST
    words += [w for r in RELATIONS.values() for w in (*r.left, *r.right)]
    ranks = {bytes([i]): i for i in range(256)}
    for word in dict.fromkeys(words):
        ranks[f" {word}".encode()] = len(ranks)
    return encoding(ranks, "village")


def somebody(rng, avoid=()):
    """(name, its three facts): of nobody whose name is in avoid."""
    while True:
        name = f"{rng.choice(FIRST)} {rng.choice(LAST)}"
        if name not in avoid:
            return name, [Fact(name, k, f"{rng.choice(r.left)} {rng.choice(r.right)}")
                          for k, r in RELATIONS.items()]


def passage(facts):
    return "".join(" " + RELATIONS[f.relation].said.format(n=f.name, v=f.value) for f in facts)


def question(name, relation, rng):
    return " " + rng.choice(RELATIONS[relation].asked).format(n=name)


def parsed(sentence):
    """The Fact that a sentence of this world tells, or None where it is none."""
    for k, r in RELATIONS.items():
        before, between, after = r.said.replace("{v}", "{n}").split("{n}")
        words = sentence.strip().removesuffix(after).split(between)
        if sentence.strip().endswith(after) and len(words) == 2:
            (name, value), sides = words, [w.split() for w in words]
            if (all(len(s) == 2 for s in sides) and sides[0][0] in FIRST and sides[0][1] in LAST
                    and sides[1][0] in r.left and sides[1][1] in r.right):
                return Fact(name, k, value)
    return None


# --------------------------------------------------------------------------------------------------
# The data set

def make_world(seed, n_days=7, n_people=PEOPLE):
    """{"old": [facts of each], "days": [[facts of each]], "names": all of them}."""
    rng, people = random.Random(f"village {seed}"), {}
    while len(people) < OLD + n_days * n_people:
        name, facts = somebody(rng, people)
        people[name] = facts
    facts = list(people.values())
    days = [facts[i:i + n_people] for i in range(OLD, len(facts), n_people)]
    return {"old": facts[:OLD], "days": days, "names": set(people)}


def document(world, enc, marks, rng, share):
    """Two of three are read, about one or two strangers; the others recall the old, and say of
    strangers that nobody knows. (ids, weights)"""
    told, asked = [], []
    if rng.random() < 0.67:
        for _ in range(1 + (share > 0.3 and rng.random() < 0.5)):
            facts = somebody(rng, world["names"])[1]
            some = rng.sample(facts, rng.choice([2, 3]))
            told += some
            asked += [(f, f in some) for f in facts]
    else:
        asked += [(rng.choice(rng.choice(world["old"])), True) for _ in range(5)]
        asked += [(rng.choice(somebody(rng, world["names"])[1]), False) for _ in range(2)]
    chain = [(question(f.name, f.relation, rng), " " + (f.value if known else UNKNOWN))
             for f, known in rng.sample(asked, len(asked))]
    return document_ids(enc, marks, passage(told), chain, (0.1, 0.3, 1.0))


def exam(facts, seed=0, kind="met", context=""):
    """[Item], each fact asked for in one wording."""
    return [Item(context, question(f.name, f.relation, random.Random(f"{seed} {f}")),
                 " " + f.value, kind) for f in facts]


def day_of(facts_of_each, rng):
    """A day to read: a passage a villager."""
    return Day([passage(rng.sample(facts, len(facts))) for facts in facts_of_each], [])


def load(a):
    """The village as a Data. a: seed, world_seed, days, people."""
    enc, rng = tokenizer(), random.Random(a.seed)
    marks, world = marks_of(enc), make_world(a.world_seed, a.days, a.people)
    strangers = [somebody(rng, world["names"])[1] for _ in range(8)]
    always = {"old": exam(sum(world["old"], []), kind="old"),
              "reading": [x for facts in strangers
                          for x in exam(facts, kind="reading", context=passage(facts))]}
    return Data("village", enc, marks, BLOCK, partial(document, world, enc, marks),
                [day_of(day, rng) for day in world["days"]],
                lambda j, i: exam(sum(world["days"][j], [])), always, "name")
