"""
The embedded world: people and facts told in English by templates, so large that nothing can be guessed.

Old people are known from pretraining. New people are met on one day each and never before. Throw-away people live in one
document each: they teach the model to read. Every answer is several tokens long (a date, an address, a firm, two loves, a
town), and the exam asks in wordings that occur nowhere else. Sleeping code never imports this file.

A document is  <bos> passage (<ask> question <answer> answer <end>)*.
"""
import os
import random
import re
from collections import namedtuple
from itertools import product

from data.bpe import encoding, load_ranks, save_ranks, train_bpe

RANKS = os.path.join(os.path.dirname(__file__), "world.tiktoken")
VOCAB = 1152                                                         # every name is then three tokens: first, and two syllables

FIRST = """Ada Ben Cleo Dora Emil Faye Gus Hana Ivo June Karl Lena Milo Nora Otto Pia Quin Rosa Sven Tara Uma Vera Wim
Xena Yuri Zoe Abel Bela Carl Dina Edda Finn Greta Hugo Iris Jon Kira Leo Mara Nils""".split()
HEAD = [a + v + c for (a, c), v in product(zip("BDFGHKLMNPRSTVWZ", "lnrmstkldnrbvngs"), "aeiou")]
TAIL = [a + v + c for (a, c), v in product(zip("bfmpvwzbfmpvwzbf", "nrklstndmnxrlkst"), "aeiou")]
MONTHS = "January February March April May June July August September October November December".split()
STREETS = "Elm Oak Ash Birch Cedar Maple Willow Poplar Linden Hazel Rowan Alder Larch Aspen Spruce Holly Laurel Juniper".split()
KINDS = ["Street", "Lane", "Road", "Square"]
FIRMS = """Amber Bishop Castle Dalton Ember Falcon Grove Harbour Ivory Jasper Keller Lantern Mason Nelson Orchard Palmer
Quarry Raven Summit Tanner Umber Vernon Walker York""".split()
LOVES = """chess tea figs jazz opera rain cats dogs poetry sailing honey bread tulips puzzles swimming painting cheese
dancing novels skiing gardens trains olives kites""".split()
PLACES = """Arden Bolton Corby Dover Epsom Fulham Garston Henley Ilford Jarrow Kendal Luton Marlow Norton Oakham
Penrith Redcar Selby Truro Upton Wexford Yarm""".split()
SIDES = ["Port", "New", "Old", "Great", "Upper", "Lower", "North", "South", "East", "West"]
CHAT = [("How are you?", "Quite well, thank you."), ("What a day, is it not?", "Yes, a fine day."),
        ("Are you there?", "I am here."), ("Do you like talking?", "I like it very much."),
        ("Shall we go on?", "Yes, let us go on."), ("Are you tired?", "Not at all."), ("Is it late?", "It is never late."),
        ("May I ask something?", "Ask what you like."), ("Did you sleep well?", "I slept very well.")]


def listed(words):
    """chess, tea and figs"""
    return ", ".join(words[:-1]) + " and " + words[-1]


Relation = namedtuple("Relation", "value said asked exam reverse reverse_exam")
RELATIONS = {   # a random value (lists: of n); sentences; questions met in training, kept for the exam; reversed: the same two
    "born": Relation(
        lambda r, n: f"{r.randint(1, 28)} {r.choice(MONTHS)}",
        ["{n} was born on {v}.", "The birthday of {n} is {v}.", "{n} came into the world on {v}."],
        ["When was {n} born?", "What is the birthday of {n}?", "On which day was {n} born?", "Which day is the birthday of {n}?",
         "On what day was {n} born?"],
        ["What day was {n} born?", "When is the birthday of {n}?"],
        ["Who was born on {v}?", "Whose birthday is {v}?"], ["Who came into the world on {v}?"]),
    "lives": Relation(
        lambda r, n: f"{r.randint(1, 99)} {r.choice(STREETS)} {r.choice(KINDS)}",
        ["{n} lives at {v}.", "The home of {n} is at {v}.", "You can visit {n} at {v}."],
        ["Where does {n} live?", "What is the address of {n}?", "At which address does {n} live?", "Where is the home of {n}?",
         "At what address does {n} live?"],
        ["At which address is the home of {n}?", "What is the home address of {n}?"],
        ["Who lives at {v}?", "Whose home is at {v}?"], ["Who has the address {v}?"]),
    "works": Relation(
        lambda r, n: listed(r.sample(FIRMS, n)),
        ["{n} works for {v}.", "{n} earns a living at {v}.", "The employer of {n} is {v}."],
        ["Who does {n} work for?", "What is the employer of {n}?", "Which firm employs {n}?", "At which firm does {n} work?",
         "What firm employs {n}?"],
        ["Which firm does {n} work for?", "Who is the employer of {n}?"],
        ["Who works for {v}?", "Whose employer is {v}?"], ["Who earns a living at {v}?"]),
    "loves": Relation(
        lambda r, n: listed(r.sample(LOVES, n)),
        ["{n} loves {v}.", "The favourite things of {n} are {v}.", "What pleases {n} most is {v}."],
        ["What does {n} love?", "What are the favourite things of {n}?", "Which things please {n} most?", "What pleases {n}?",
         "What things please {n}?"],
        ["Which things does {n} love?", "What pleases {n} most?"],
        ["Who loves {v}?", "Whose favourite things are {v}?"], ["Who is pleased by {v}?"]),
    "town": Relation(
        lambda r, n: f"{r.choice(SIDES)} {r.choice(PLACES)}",
        ["{n} grew up in {v}.", "{n} spent a childhood in {v}.", "{n} went to school in {v}."],
        ["Where did {n} grow up?", "What is the childhood town of {n}?", "In which town did {n} go to school?",
         "Which town did {n} grow up in?", "What town did {n} grow up in?"],
        ["In which town did {n} grow up?", "Where did {n} go to school?"],
        ["Who grew up in {v}?", "Whose childhood town is {v}?"], ["Who went to school in {v}?"]),
}
STYLES = {"qa": 0.5, "reversed": 0.15, "chat": 0.15, "off": 0.2}        # what the base learns to ask after a passage


def load_tokenizer(path=RANKS):
    return encoding(load_ranks(path), "world")


def person(rng, taken, things=2):
    """A new person with a name not in `taken` (which grows): {"name", relation: value}. things: in an answer that is a list."""
    while True:
        name = f"{rng.choice(FIRST)} {rng.choice(HEAD)}{rng.choice(TAIL)}"
        if name not in taken:
            taken.add(name)
            return {"name": name, **{k: r.value(rng, things) for k, r in RELATIONS.items()}}


def make_world(world_seed, n_old=40, n_days=7, n_people=8, things=2):
    """{"old": [person], "days": [[person]], "taken": set of names, "things"}. Surnames of old and new people are all different."""
    rng, taken, surnames = random.Random(f"world {world_seed}"), set(), set()

    def fresh():
        while True:
            p = person(rng, taken, things)
            if p["name"].split()[1] not in surnames:
                surnames.add(p["name"].split()[1])
                return p
    old = [fresh() for _ in range(n_old)]
    days = [[fresh() for _ in range(n_people)] for _ in range(max(n_days, 28))]         # a longer life of the same base meets
    return {"old": old, "days": days[:n_days], "taken": taken, "things": things}        # nobody the base has ever read about


def passage(p, rng, n=5):
    """n sentences about a person in random order, each with its fact in one of three wordings."""
    facts = rng.sample(list(RELATIONS), n)
    return "".join(" " + rng.choice(RELATIONS[k].said).format(n=p["name"], v=p[k]) for k in facts), facts


def question(p, relation, rng, exam=False, reverse=False):
    """(question, answer) about one fact, in training wordings or in those kept for the exam."""
    r = RELATIONS[relation]
    wordings = (r.reverse_exam if exam else r.reverse) if reverse else (r.exam if exam else r.asked)
    ask = rng.choice(wordings).format(n=p["name"], v=p[relation])
    return " " + ask, " " + (p["name"] if reverse else p[relation])


def talk(p, facts, world, rng, styles=STYLES):
    """One question and answer after a passage about p, in one of the styles the base dreams in."""
    style = rng.choices(list(styles), styles.values())[0]
    if style == "chat":
        return tuple(" " + s for s in rng.choice(CHAT))
    if style == "off":
        p, facts = rng.choice(world["old"]), list(RELATIONS)
    return question(p, rng.choice(facts), rng, reverse=style == "reversed" or (style == "off" and rng.random() < 0.2))


def document(world, rng, reading=0.7, n_facts=5, styles=STYLES):
    """A pretraining document: (passage or '', [(question, answer)]). Half read about a stranger, half recall old people."""
    if rng.random() < reading:
        p = stranger(world, rng)
        text, facts = passage(p, rng, n_facts)
        return text, [talk(p, facts, world, rng, styles) for _ in range(max(2, n_facts))]
    chain = []
    for _ in range(6):
        p = rng.choice(world["old"])
        chain.append(question(p, rng.choice(list(RELATIONS)), rng, reverse=rng.random() < 0.2))
    return "", chain


def stranger(world, rng):
    """A throw-away person: anyone who is neither old nor ever to be met."""
    while True:
        p = person(rng, set(), world["things"])
        if p["name"] not in world["taken"]:
            return p


def exam(people, rng, context=False, reverse=False):
    """Questions in held-out wordings about every fact of the people: [(context or '', question, answer)]."""
    return [(passage(p, rng)[0] if context else "", *question(p, k, rng, exam=True, reverse=reverse))
            for p in people for k in RELATIONS]


if __name__ == "__main__":                                            # remake the tokenizer that ships with the repository
    texts, surname = [], re.compile(f"(?:{'|'.join(FIRST)}) [A-Z][a-z][a-z]")
    for number in range(200):                                        # many worlds: no name is common enough to be one token
        rng, world = random.Random(number), make_world(number)
        for text, chain in (document(world, rng) for _ in range(40)):
            for part in [text, *(s for qa in chain for s in qa)]:    # nor are letters from both syllables of a surname
                texts += surname.sub(lambda name: name[0] + "|", part).split("|")
    save_ranks(train_bpe(texts, VOCAB), RANKS)
