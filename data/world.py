"""
The embedded world: people and facts told in English by templates, so large that nothing can be
guessed, and so small that a transformer of a million parameters reads it after minutes.

Old people are known from pretraining. New people are met by day; some return with further facts,
and facts change. Throw-away people (strangers) live in one document each: they teach the base to
read. What was never told is answered "I do not know.". The exam asks in wordings that occur
nowhere else. Sleeping code never imports this file: it knows only what `load` returns.
"""
import os
import random
from collections import namedtuple
from functools import partial
from itertools import cycle, islice, product

from data.bpe import encoding, load_ranks, save_ranks, train_bpe
from data.flags import foreign, own_words
from data.text import Data, Day, Item, begun, document_ids, marks_of, spelt
from data.tokenizer import of_weights

RANKS = os.path.join(os.path.dirname(__file__), "world.tiktoken")
VOCAB = 1200
BLOCK = 256
UNKNOWN = "I do not know."
OLD, RESERVED = 40, 8                   # old people; the last of them are those whose facts change
LONGEST = 28                            # days drawn at least: a longer life of the same base still
                                        # meets nobody but namesakes of whom it read
MANY = 32                               # people of a day that counts as crowded

# ------------------------------------------------------------------------------------------------
# Words

FIRST = """Ada Ben Cleo Dora Emil Faye Gus Hana Ivo June Karl Lena Milo Nora Otto Pia Quin Rosa Sven
Tara Uma Vera Wim Xena Yuri Zoe Abel Bela Carl Dina Edda Finn Greta Hugo Iris Jon Kira Leo Mara
Nils""".split()
HEAD = [a + v + c for (a, c), v in product(zip("BDFGHKLMNPRSTVWZ", "lnrmstkldnrbvngs"), "aeiou")]
TAIL = [a + v + c for (a, c), v in product(zip("bfmpvwzbfmpvwzbf", "nrklstndmnxrlkst"), "aeiou")]
MONTHS = """January February March April May June July August September October November
December""".split()
STREETS = """Elm Oak Ash Birch Cedar Maple Willow Poplar Linden Hazel Rowan Alder Larch Aspen Spruce
Holly Laurel Juniper""".split()
KINDS = ["Street", "Lane", "Road", "Square"]
FIRMS = """Amber Bishop Castle Dalton Ember Falcon Grove Harbour Ivory Jasper Keller Lantern Mason
Nelson Orchard Palmer Quarry Raven Summit Tanner Umber Vernon Walker York""".split()
LOVES = """chess tea figs jazz opera rain cats dogs poetry sailing honey bread tulips puzzles
swimming painting cheese dancing novels skiing gardens trains olives kites""".split()
PLACES = """Arden Bolton Corby Dover Epsom Fulham Garston Henley Ilford Jarrow Kendal Luton Marlow
Norton Oakham Penrith Redcar Selby Truro Upton Wexford Yarm""".split()
SIDES = ["Port", "New", "Old", "Great", "Upper", "Lower", "North", "South", "East", "West"]
CHAT = [("How are you?", "Quite well, thank you."), ("What a day, is it not?", "Yes, a fine day."),
        ("Are you there?", "I am here."), ("Do you like talking?", "I like it very much."),
        ("Shall we go on?", "Yes, let us go on."), ("Are you tired?", "Not at all."),
        ("Is it late?", "It is never late."), ("May I ask something?", "Ask what you like."),
        ("Did you sleep well?", "I slept very well.")]

Relation = namedtuple("Relation", "value said asked exam clause reverse reverse_exam")
RELATIONS = {  # a random value; sentences; questions of training, of the exam; the person described
    "born": Relation(                               # by it; reversed questions of training, exam
        lambda r: f"{r.randint(1, 28)} {r.choice(MONTHS)}",
        ["{n} was born on {v}.", "The birthday of {n} is {v}.", "{n} came into the world on {v}."],
        ["When was {n} born?", "What is the birthday of {n}?", "On which day was {n} born?",
         "Which day is the birthday of {n}?", "On what day was {n} born?",
         "What date was {n} born on?", "When did {n} come into the world?"],
        ["What day was {n} born?", "When is the birthday of {n}?"],
        "the person who was born on {v}",
        ["Who was born on {v}?", "Whose birthday is {v}?", "Which person was born on {v}?",
         "Which person came into the world on {v}?"], ["Who came into the world on {v}?"]),
    "lives": Relation(
        lambda r: f"{r.randint(1, 99)} {r.choice(STREETS)} {r.choice(KINDS)}",
        ["{n} lives at {v}.", "The home of {n} is at {v}.", "You can visit {n} at {v}."],
        ["Where does {n} live?", "What is the address of {n}?", "At which address does {n} live?",
         "Where is the home of {n}?", "At what address does {n} live?",
         "Where can you visit {n}?", "Which address is the home of {n}?"],
        ["At which address is the home of {n}?", "What is the home address of {n}?"],
        "the person who lives at {v}",
        ["Who lives at {v}?", "Whose home is at {v}?", "Which person lives at {v}?",
         "Whose address is {v}?"], ["Who has the address {v}?"]),
    "works": Relation(
        lambda r: " and ".join(r.sample(FIRMS, 2)),
        ["{n} works for {v}.", "{n} earns a living at {v}.", "The employer of {n} is {v}."],
        ["Who does {n} work for?", "What is the employer of {n}?", "Which firm employs {n}?",
         "At which firm does {n} work?", "What firm employs {n}?",
         "Who employs {n}?", "Which employer does {n} have?"],
        ["Which firm does {n} work for?", "Who is the employer of {n}?"],
        "the person who works for {v}",
        ["Who works for {v}?", "Whose employer is {v}?", "Which person works for {v}?",
         "Which person earns a living at {v}?"], ["Who earns a living at {v}?"]),
    "loves": Relation(
        lambda r: " and ".join(r.sample(LOVES, 2)),
        ["{n} loves {v}.", "The favourite things of {n} are {v}.", "What pleases {n} most is {v}."],
        ["What does {n} love?", "What are the favourite things of {n}?",
         "Which things please {n} most?", "What pleases {n}?", "What things please {n}?",
         "What is it that {n} loves?", "Which are the favourite things of {n}?"],
        ["Which things does {n} love?", "What pleases {n} most?"],
        "the person who loves {v}",
        ["Who loves {v}?", "Whose favourite things are {v}?", "Which person loves {v}?",
         "Who is most pleased by {v}?"], ["Who is pleased by {v}?"]),
    "town": Relation(
        lambda r: f"{r.choice(SIDES)} {r.choice(PLACES)}",
        ["{n} grew up in {v}.", "{n} spent a childhood in {v}.", "{n} went to school in {v}."],
        ["Where did {n} grow up?", "What is the childhood town of {n}?",
         "In which town did {n} go to school?", "Which town did {n} grow up in?",
         "What town did {n} grow up in?",
         "Where did {n} spend a childhood?", "Which town is the childhood town of {n}?"],
        ["In which town did {n} grow up?", "Where did {n} go to school?"],
        "the person who grew up in {v}",
        ["Who grew up in {v}?", "Whose childhood town is {v}?", "Which person grew up in {v}?",
         "Which person went to school in {v}?"], ["Who went to school in {v}?"]),
    "friend": Relation(
        None,                                                        # the name of someone else
        ["{n} is a friend of {v}.", "The best friend of {n} is {v}.", "{n} has a friend, {v}."],
        ["Who is the friend of {n}?", "Who is the best friend of {n}?",
         "Which person is the friend of {n}?", "Which friend does {n} have?",
         "What is the friend of {n} called?",
         "Who is it that {n} has as a friend?", "What person is the friend of {n}?"],
        ["Which person is the best friend of {n}?", "What is the best friend of {n} called?"],
        "the person who has the friend {v}",
        ["Whose friend is {v}?", "Who has the friend {v}?", "Which person has the friend {v}?",
         "Who has {v} as a friend?"], ["Whose best friend is {v}?"]),
}
Fact = namedtuple("Fact", "name relation value")
Told = namedtuple("Told", "kind facts")             # a passage of a day: why it is told, its facts

# ------------------------------------------------------------------------------------------------
# People


def new_name(rng, single=0.06):
    """A name of 1 to 6 tokens: Hazel; Ada Mason; Ben Dora Dalbunmek; Otto de Silwis. single: how
    often it is a single word that means something else, too."""
    if rng.random() < single:
        return rng.choice(STREETS + PLACES)
    syllables = rng.choices([0, 2, 3], [0.3, 0.4, 0.3])[0]
    surname = rng.choice(HEAD) + "".join(rng.choice(TAIL) for _ in range(syllables - 1))
    words = rng.sample(FIRST, rng.choices([1, 2], [0.65, 0.35])[0])
    return " ".join(words + ["de"] * (rng.random() < 0.15) + [surname if syllables else
                                                             rng.choice(FIRMS)])


def new_value(relation, rng, friends):
    return rng.choice(friends) if relation == "friend" else RELATIONS[relation].value(rng)


def stranger(world, rng):
    """The name of anyone who is neither old nor ever to be met."""
    while True:
        name = new_name(rng)
        if name not in world["taken"]:
            return name


def anyone(world, rng):
    """The name of a throw-away person of a document: a stranger, or a namesake of somebody yet to
    be met if it is a single word. Those words are few, and mean something else, too: one that had
    never been a name would not be read as a name."""
    while True:
        name = new_name(rng, single=0.12)
        if name not in world["taken"] or " " not in name and name not in world["old"]:
            return name


def short_names(name, others):
    """First name and surname, as far as they mean nobody else among `others`."""
    words = {w for other in others if other != name for w in other.split()}
    return [w for w in {name.split()[0]: 0, name.split()[-1]: 0} if w not in words and w != name]


def true_of(facts):
    """Facts in the order they were told -> {name: {relation: value}}: the last word counts."""
    truth = {}
    for f in facts:
        truth.setdefault(f.name, {})[f.relation] = f.value
    return truth


def holders(truth, relation, value):
    """Everyone of whom a fact is true. truth: {name: {relation: value}}."""
    return [name for name, facts in truth.items() if facts.get(relation) == value]


# ------------------------------------------------------------------------------------------------
# Sentences and questions


def passage(facts, rng):
    """The facts in any order, each in one of three wordings."""
    told = rng.sample(facts, len(facts))
    return "".join(" " + rng.choice(RELATIONS[f.relation].said).format(n=f.name, v=f.value)
                   for f in told)


def question(relation, subject, rng, exam=False):
    """One question about a subject: a name, or any words that stand for a person."""
    r = RELATIONS[relation]
    return " " + rng.choice(r.exam if exam else r.asked).format(n=subject)


def reverse(fact, rng, exam=False):
    r = RELATIONS[fact.relation]
    return " " + rng.choice(r.reverse_exam if exam else r.reverse).format(v=fact.value)


def typed(fact, others, rng, exam=False):
    """A question as people type it: small letters, no question mark, one of the names only."""
    short = short_names(fact.name, others)
    name = rng.choice(short) if short and rng.random() < 0.4 else fact.name
    text, whole = question(fact.relation, name, rng, exam), name == fact.name
    lower, bare = rng.random() < 0.6, rng.random() < 0.6
    text = text.lower() if lower or whole and not bare else text
    return text.rstrip("?") if bare else text


def described(fact):
    return RELATIONS[fact.relation].clause.format(v=fact.value)


# ------------------------------------------------------------------------------------------------
# Pretraining documents

Stage = namedtuple("Stage", "until people facts same linked reading room read recall")
# until which share of pretraining; weights of 1, 2, 3 people in a passage; most facts of a person;
# chance that the same things are told of all; that someone else is only said to have one of them
# as a friend; share of documents with a passage; tokens; what is asked after a passage, what
# without one. First a passage has to be read at all, then names, then who is whose friend.
PLAIN = ({"told": 10, "reversed": 1, "untold": 2}, {"told": 10, "reversed": 1, "stranger": 2})
READ = {"told": 34, "typed": 20, "reversed": 13, "described": 7, "two_hops": 3, "untold": 17,
        "mentioned": 14, "nobody": 2, "chat": 2, "old": 5, "stranger": 5}
RECALL = {"told": 40, "typed": 14, "reversed": 11, "described": 9, "two_hops": 8, "nobody": 4,
          "chat": 3, "stranger": 16}
STAGES = [Stage(0.06, [1, 0, 0], 3, 0.0, 0.0, 1.0, 96, *PLAIN),
          Stage(0.30, [0, 7, 3], 3, 0.9, 0.0, 1.0, 112, *PLAIN),
          Stage(0.45, [2, 6, 2], 4, 0.8, 0.5, 0.8, 128, READ, RECALL),
          Stage(1.00, [5, 4, 1], 5, 0.6, 0.5, 0.8, 144, READ, RECALL)]


def stage_at(share):
    return next(s for s in STAGES if share < s.until or s.until == 1)


def talk(world, facts, truth, styles, rng):
    """(question, answer) in one of the styles, or None where it cannot be asked.

    facts: what was told, or all that is known of the old; truth: {name: {relation: value}}, what
    holds in this document. Every answer is looked up there; who or what is not there is unknown.
    """
    style = rng.choices(list(styles), list(styles.values()))[0]
    fact, any_relation = rng.choice(facts), rng.choice(list(RELATIONS))
    if style == "chat":
        return tuple(" " + s for s in rng.choice(CHAT))
    if style == "old":
        return talk(world, world["facts"], truth, RECALL, rng)
    if style == "stranger":                              # about what was told of someone else
        return question(fact.relation, anyone(world, rng), rng), " " + UNKNOWN
    if style == "typed":
        names = {f.name for f in facts} | {f.value for f in facts if f.relation == "friend"}
        return typed(fact, names, rng), " " + fact.value
    if style in ("reversed", "nobody"):
        if style == "nobody":
            value = new_value(any_relation, rng, [anyone(world, rng)])
            fact = Fact(None, any_relation, value)
        who = holders(truth, fact.relation, fact.value)
        return (reverse(fact, rng), " " + (who or [UNKNOWN])[0]) if len(who) < 2 else None
    return about(style, fact, facts, truth, rng)


def about(style, fact, facts, truth, rng):
    """(question, answer) about one person, named, described or the friend of another; or None."""
    subject, name = fact.name, fact.name
    if style == "described":
        subject = described(fact)
        if len(holders(truth, fact.relation, fact.value)) > 1:
            return None
    if style in ("two_hops", "mentioned"):               # the friend, described or by name
        if fact.relation != "friend":
            links = [f for f in facts if f.relation == "friend"]
            if not links:
                return None
            fact = rng.choice(links)
        name = fact.value
        subject = name if style == "mentioned" else f"the friend of {fact.name}"
    told = [f.relation for f in facts if f.name == name and f != fact]
    relation = fact.relation
    if style == "untold":                                # half of these were told of someone else
        missing = [k for k in RELATIONS if k not in told + [relation]]
        tempting = [k for k in missing if any(f.relation == k for f in facts)]
        relation = rng.choice(tempting or missing or told)
    elif style != "told":                                # mostly about what was told
        other = [k for k in RELATIONS if style != "described" or k != relation]
        relation = rng.choice(told if told and rng.random() < 0.8 else other)
        if style == "mentioned" and rng.random() < 0.4:       # being a friend is not having one
            relation = "friend"
    return question(relation, subject, rng), " " + truth.get(name, {}).get(relation, UNKNOWN)


def invent(world, rng, stage):
    """Facts of a passage about strangers, or about old people of whom other things are true now."""
    n = rng.choices([1, 2, 3], stage.people)[0]
    old = rng.sample(list(world["old"]), n)
    names = [name if rng.random() < 0.25 else anyone(world, rng) for name in old]
    facts = []
    for name in names:
        if not facts or rng.random() > stage.same:       # the same of two: names must be read
            relations = rng.sample(list(RELATIONS), rng.randint(1, stage.facts - n + 1))
        friends = [m for m in names if m != name] or [anyone(world, rng)]
        if rng.random() < 0.3:
            friends = [rng.choice(list(world["old"])), anyone(world, rng)]
        for relation in relations:
            value = new_value(relation, rng, friends)
            if name in old and (rng.random() < 0.3 or value == name):
                value = world["old"][name][relation]
            facts.append(Fact(name, relation, value))
    if rng.random() < stage.linked:
        facts.append(Fact(anyone(world, rng), "friend", rng.choice(names)))
    return facts


def document(world, rng, share):
    """(passage or "", a generator of questions and answers without end).

    share in [0, 1): how far pretraining is.
    """
    stage = stage_at(share)
    facts, styles, text = world["facts"], stage.recall, ""
    if rng.random() < stage.reading:
        facts, styles = invent(world, rng, stage), stage.read
        text = passage(facts, rng)
    truth = true_of(world["facts"] + facts)

    def talks():
        while True:
            pair = talk(world, facts, truth, styles, rng)
            if pair:
                yield pair
    return text, talks()


def document_of(world, enc, marks, rng, share):
    """A document as (ids, weights), filled with questions, none twice, until there is no room.

    The loss looks at one passage in four and at the questions of every other document: that is
    enough for dreaming, and projecting to the vocabulary costs time.
    """
    text, talks = document(world, rng, share)
    on_text, on_question = 0.2 * (rng.random() < 0.25), 0.6 * (rng.random() < 0.5)
    ids, weights = document_ids(enc, marks, text, [], (on_text, 0, 0))
    room, asked = stage_at(share).room, set()
    for pair in islice(talks, 12):
        more, w = document_ids(enc, marks, "", [pair], (0, on_question, 1.0))
        if asked and len(ids) + len(more) > room + spelt(marks) * len(asked):
            break
        if pair not in asked:
            new = len(marks.bos) + begun(ids, marks)
            ids, weights = ids + more[new:], weights + w[new:]
        asked.add(pair)
    weights[len(marks.bos)] = 0.5        # with a passage or without one: dreams begin either way
    return ids, weights


# ------------------------------------------------------------------------------------------------
# The story of a life

DAY = ["met", "met", "met", "two_people", "two_passages", "one_fact", "met"]         # eight people
NEWS = ["returned", "changed", "old_changed"]           # and of people known before


def make_world(world_seed, n_days=7, n_people=8):
    """{"old": {name: {relation: value}}, "facts": the same, "days": [[Told]], "taken": names}.

    No two people have a value in common while there are values left, so that reversed questions
    have one answer.
    """
    rng, taken, used = random.Random(f"world {world_seed}"), [], set()

    def fresh():
        while True:
            name = new_name(rng)
            if taken and rng.random() < 0.15 and " " in name:            # of a family met before
                name = f"{name.split()[0]} {rng.choice(taken).split()[-1]}"
            short = sum(" " not in n for n in taken)                     # strangers need some too
            alike = any(n.startswith(name) or name.startswith(n) for n in taken)
            if not alike and (" " in name or short < 20):
                taken.append(name)
                return name

    def unused(name, relation, friends):
        for _ in range(100):
            value = new_value(relation, rng, friends)
            if value != name and (relation, value) not in used:
                break
        used.add((relation, value))
        return Fact(name, relation, value)

    names = [fresh() for _ in range(OLD)]
    facts = [unused(n, k, [m for m in names if m != n]) for n in names for k in RELATIONS]
    old, known, days = true_of(facts), {}, []
    for _ in range(max(n_days, LONGEST)):
        days.append(new_day(rng, known, old, fresh, unused, n_people, bool(days)))
        for f in (f for told in days[-1] for f in told.facts):
            (old if f.name in old else known).setdefault(f.name, {})[f.relation] = f.value
    return {"old": true_of(facts), "facts": facts, "days": days[:n_days], "taken": set(taken)}


def new_day(rng, known, old, fresh, unused, n_people, later):
    """What is told on a day: [Told]. known, old: {name: {relation: value}}, true until today."""
    day, count, friends = [], 0, list(old)[:-RESERVED] + list(known)
    for kind in cycle(DAY):                              # people never met before
        names = [fresh() for _ in range(1 + (kind == "two_people" and n_people - count > 1))]
        count += len(names)
        least, most = (1, 1) if kind == "one_fact" else (4 - len(names), 6 - len(names))
        facts = [unused(name, k, names[:i] or friends) for i, name in enumerate(names)
                 for k in rng.sample(list(RELATIONS), rng.randint(least, most))]
        half = len(facts) // 2 if kind == "two_passages" else 0
        day += [Told(kind, part) for part in (facts[:half], facts[half:]) if part]
        friends += names
        if count >= n_people:
            break
    here = {f.name for told in day for f in told.facts}
    for kind in NEWS * later * max(1, n_people // 8):
        source = dict(list(old.items())[-RESERVED:]) if kind == "old_changed" else known
        names = [n for n in source if n not in here and len(source[n]) > 1 and
                 (kind != "returned" or len(source[n]) < len(RELATIONS))]
        if names:
            name = rng.choice(names)
            here.add(name)
            day.append(Told(kind, news(kind, name, source[name], unused, friends, rng)))
    return rng.sample(day, len(day))


def news(kind, name, had, unused, friends, rng):
    """Facts of someone who returns with more, or of whom one thing is no longer as it was."""
    if kind == "returned":
        new = [k for k in RELATIONS if k not in had]
        return [unused(name, k, friends) for k in rng.sample(new, min(len(new), rng.randint(1, 2)))]
    changed, again = rng.choice(list(had)), rng.choice([0, 0, 1, min(2, len(had) - 1)])
    again = rng.sample([k for k in had if k != changed], again)
    return [unused(name, changed, friends)] + [Fact(name, k, had[k]) for k in again]


# ------------------------------------------------------------------------------------------------
# Exams


def exam(world, seed, j, i):
    """[Item]: what was told on day j and not told anew by day i, asked as it is true after day i.

    A fact has the same wording in every exam.
    """
    days = [[f for told in day for f in told.facts] for day in world["days"]]
    before = true_of(world["facts"] + sum(days[:j], []))
    truth = true_of(world["facts"] + sum(days[:i + 1], []))
    heard = {(f.name, f.relation) for f in sum(days[:i + 1], [])}
    anew = {(f.name, f.relation) for f in sum(days[j + 1:i + 1], [])}
    later = {f.name: told.kind for day in world["days"][j + 1:i + 1] for told in day
             for f in told.facts}                        # who came back, or changed, after day j
    told = [(told.kind, f) for told in world["days"][j] for f in told.facts
            if (f.name, f.relation) not in anew]
    met = [f for kind, f in told if kind in DAY]
    people = list(dict.fromkeys(f.name for f in met))
    items = []
    for kind, f in told:
        kind = "many_people" if kind in DAY and len(people) >= MANY else kind
        was = before.get(f.name, {}).get(f.relation)
        items += fact_items(kind, f, was, later.get(f.name), dice(seed, j, f))
    for name in dict.fromkeys(f.name for f in days[j] if f.name in world["old"]):
        rest = [f for f in world["facts"] if f.name == name and (name, f.relation) not in heard]
        items += [ask(f, "old_changed_rest", dice(seed, j, f)) for f in rest]
    for name in people:
        mine = [f for f in met if f.name == name]
        items += person_items(world, name, mine, truth, dice(seed, j, name))
    return items


def dice(*key):
    return random.Random(" ".join(map(str, key)))


def ask(fact, kind, rng, text="", subject=None):
    """An item about a fact, with the passage `text` before it; `subject` stands for the name."""
    asked = question(fact.relation, subject or fact.name, rng, exam=True)
    return Item(text, asked, " " + fact.value, kind)


def fact_items(kind, fact, was, later, rng):
    """The item of a fact told today, and whether what it `was` before is still given as an answer.

    later: why its person was spoken of after that day, if at all.
    """
    if kind in ("changed", "old_changed"):
        kind += "_rest" if was == fact.value else "_new"
    elif later:
        kind = "returned_first" if later == "returned" else "changed_rest"
    elif kind == "returned":
        kind = "returned_second"
    items = [ask(fact, kind, rng)]
    if kind == "changed_new":
        items.append(ask(fact._replace(value=was), "changed_old_value", rng))
    return items


def person_items(world, name, facts, truth, rng):
    """What else can be asked about someone met that day: at most one item of each kind."""
    rng.shuffle(facts)
    untold = [Fact(name, k, UNKNOWN) for k in RELATIONS if k not in truth[name]]
    items = [ask(rng.choice(untold), "not_told", rng)] if untold else []
    items.append(Item("", typed(facts[0], truth, rng, exam=True), " " + facts[0].value, "typed"))
    only = [f for f in facts if holders(truth, f.relation, f.value) == [name]]
    for f in only[-1:]:
        items.append(Item("", reverse(f, rng, exam=True), " " + name, "reversed"))
        if f != facts[0]:
            items.append(ask(facts[0], "described", rng, subject=described(f)))
    for f in [f for f in facts if f.relation == "friend"]:
        k = rng.choice(list(truth[f.value]))
        far = Fact(f.value, k, truth[f.value][k])
        items.append(ask(far, "two_hops", rng, subject=f"the friend of {name}"))
    other = some_facts(world, name, rng)
    return items + [ask(other[0], "contradicted_context", rng, passage(other, rng))]


def some_facts(world, name, rng):
    """2 to 4 invented facts about someone, true in one passage only."""
    friends = [stranger(world, rng)]
    return [Fact(name, k, new_value(k, rng, friends))
            for k in rng.sample(list(RELATIONS), rng.randint(2, 4))]


def always(world, rng):
    """What is asked every morning: of old people, of strangers in a passage and out of the blue."""
    told = {(f.name, f.relation) for day in world["days"] for t in day for f in t.facts}
    items = {"old": [ask(f, "old", rng) for f in world["facts"] if f[:2] not in told],
             "reading": [], "never_met": []}
    for _ in range(40):
        facts = some_facts(world, stranger(world, rng), rng)
        text = passage(facts, rng)
        items["reading"] += [ask(f, "reading", rng, text) for f in facts]
    for _ in range(100):
        fact = Fact(stranger(world, rng), rng.choice(list(RELATIONS)), UNKNOWN)
        items["never_met"].append(ask(fact, "never_met", rng))
    return items


# ------------------------------------------------------------------------------------------------
# The data set


def load_tokenizer(path=RANKS):
    return encoding(load_ranks(path), "world")


def load(a):
    """The embedded world as a Data (data/text.py). a: seed, world_seed, days, people, format.

    Weights of others that live in their own words have never heard of the old people: they are
    not asked about them."""
    enc = of_weights(a) or load_tokenizer()
    marks, world = marks_of(enc, own_words(a)), make_world(a.world_seed, a.days, a.people)
    asked = always(world, dice(a.world_seed))
    if own_words(a) and foreign(a):
        del asked["old"]
    days = [Day([passage(told.facts, dice(a.seed, j, n)) for n, told in enumerate(day)], [])
            for j, day in enumerate(world["days"])]
    return Data("world", enc, marks, BLOCK, partial(document_of, world, enc, marks), days,
                partial(exam, world, a.world_seed), asked, "name")


def tokenizer_texts(rng):
    """Every wording about thousands of people: what the tokenizer is made of."""
    for _ in range(4000):
        facts = some_facts({"taken": ()}, new_name(rng), rng)
        yield passage(facts, rng) + " ".join(["", *rng.choice(CHAT)])
        for f in facts:
            yield question(f.relation, f.name, rng) + typed(f, [], rng) + reverse(f, rng)
            yield question(f.relation, described(f), rng) + f" {UNKNOWN} the friend of {f.name}"


if __name__ == "__main__":                    # remake the tokenizer that ships with the repository
    save_ranks(train_bpe(list(tokenizer_texts(random.Random(0))), VOCAB), RANKS)
