"""
Invented languages: what is told on a day is no fact but a skill, and its exam asks for sentences
that nobody has ever seen. After Figure 5 of arXiv 2606.03979 (continual translation of languages
that are read in context); the languages are ours.

A day brings a lesson: the grammar of a language, its words, and two sentences with translation:
    Zorbic: subject object verb, noun adjective; dog bal, house nor, sees kip, old zim, and tok;
    the old dog sees the red house: bal zim nor tok kip; ...
    <ask> Into Zorbic: the red house sees the old dog <answer> nor tok bal zim kip <end>
    <ask> From Zorbic: nor tok bal zim kip <answer> the red house sees the old dog <end>
In every document of the base another language is read; a few OLD ones it knows by heart, and of
all others it says, without their lesson, "I do not know.". Words mean something else in each
language, so one that is learnt stands in the way of the next.
"""
import random
from collections import namedtuple
from functools import partial
from itertools import permutations, product

from data.bpe import encoding
from data.text import Data, Day, Item, document_ids, marks_of
from data.tokenizer import of_weights

NOUNS = """dog cat house tree horse king child river bird fish stone ship lion snake farmer boat
queen wolf garden mountain bear goat tower wheel""".split()
VERBS = "sees finds loves hears follows likes brings takes wants leaves holds fears".split()
ADJECTIVES = "old red small good tall young white black strong quiet rich green".split()
FOREIGN = sorted({a + v + c for (a, c), v in product(
    zip("bdfghjklmnprstvzbdfgklmnprstbdgkmnt", "lnrmstkldnrmlnsrmnlsrtkmsldnrsndlts"), "aeiou")})
HEAD = [a + v + c for (a, c), v in product(zip("BDFGHKLMNPRSTVZ", "lnrmstkldnrbvng"), "aeiou")]
TAIL = [a + v + c for (a, c), v in product(zip("bfmpvwz", "nrklstn"), "aeiou")]
ORDERS = ["".join(order) for order in permutations("SVO")]
PARTS = {"S": "subject", "V": "verb", "O": "object"}
UNKNOWN = "I do not know."
BLOCK = 384
OLD = 4                                 # languages the base knows by heart
SIZES = 5, 3, 3                         # nouns, verbs, adjectives of a language, beside "and"
EXAMPLES = 2                            # sentences of a lesson
EXAM = 12                               # sentences of an exam, each way: of one clause, of two
DAYS = 28                               # languages that a world has beside the old ones
CHAIN = 10                              # exercises of a document
WORDS_UNTIL, TWO_FROM = 0.13, 0.4       # share of pretraining: single words alone; two clauses

Language = namedtuple("Language", "name words order behind")
# words: {English: foreign}; order: of subject, verb and object, "SOV"; behind: do adjectives stand
# behind their noun?
Clause = namedtuple("Clause", "subject verb object")        # subject, object: [adjective, noun]


# --------------------------------------------------------------------------------------------------
# Languages and their sentences

def new_language(rng, name, sizes=SIZES):
    """A language of so many nouns, verbs and adjectives."""
    kinds = zip((NOUNS, VERBS, ADJECTIVES), sizes)
    english = [*(w for words, n in kinds for w in rng.sample(words, n)), "and"]
    words = dict(zip(english, rng.sample(FOREIGN, len(english))))
    return Language(name, words, rng.choice(ORDERS), rng.random() < 0.5)


def known(language, kind):
    """The words of a kind (NOUNS, VERBS, ADJECTIVES) that a language has."""
    return [w for w in language.words if w in kind]


def sentence(language, rng, clauses):
    """A random sentence: a list of so many clauses."""
    def clause():
        nouns = rng.sample(known(language, NOUNS), 2)
        subject, object_ = ([rng.choice(known(language, ADJECTIVES)), noun] for noun in nouns)
        return Clause(subject, rng.choice(known(language, VERBS)), object_)
    return [clause() for _ in range(clauses)]


def in_english(clauses):
    """[Clause] -> " the old dog sees the house and the cat ..."."""
    return " and".join(f" the {' '.join(c.subject)} {c.verb} the {' '.join(c.object)}"
                       for c in clauses)


def in_order(language, clauses):
    """[Clause] -> its English words in the order of the language, without "the": [word]."""
    found = []
    for c in clauses:
        subject, object_ = (list(reversed(x)) if language.behind else x
                            for x in (c.subject, c.object))
        parts = {"S": subject, "V": [c.verb], "O": object_}
        found += ["and"] * bool(found) + [w for part in language.order for w in parts[part]]
    return found


def translated(language, english_words):
    return "".join(f" {language.words[w]}" for w in english_words)


def exercises(language, clauses):
    """Both ways of asking for a sentence: (into the language, out of it)."""
    english, foreign = in_english(clauses), translated(language, in_order(language, clauses))
    return [(f" Into {language.name}:{english}", foreign),
            (f" From {language.name}:{foreign}", english)]


def word_exercises(language, word):
    return [(f" Into {language.name}: {word}", f" {language.words[word]}"),
            (f" From {language.name}: {language.words[word]}", f" {word}")]


def lesson(language, rng, examples=EXAMPLES):
    """What is read of a language: its grammar, its words, and some sentences with translation."""
    order = " ".join(PARTS[part] for part in language.order)
    noun = "noun adjective" if language.behind else "adjective noun"
    words = [f" {e} {f}" for e, f in language.words.items()]
    told = [sentence(language, rng, 1) for _ in range(examples)]
    shown = [f"{in_english(s)}:{translated(language, in_order(language, s))}" for s in told]
    return ";".join([f" {language.name}: {order}, {noun}", ",".join(rng.sample(words, len(words))),
                     *shown])


# --------------------------------------------------------------------------------------------------
# Documents to pretrain on

Stage = namedtuple("Stage", "sizes examples words two closed")
# of the curriculum. sizes: of a language; examples: sentences of a lesson; words, two: shares of
# the exercises that are single words, two clauses; closed: share of documents without a lesson


def stage_of(share):
    """The curriculum: single words of small languages first, long sentences last."""
    if share < WORDS_UNTIL:
        return Stage((3, 2, 1) if share < WORDS_UNTIL / 2 else SIZES, 0, 1.0, 0.0, 0.1)
    two = min(0.4, max(0.0, 2 * (share - TWO_FROM)))
    return Stage(SIZES, EXAMPLES, 0.15, two, 0.15)


def exercise(language, rng, stage):
    """(question, answer): a word, a clause or two, either way."""
    if rng.random() < stage.words:
        return rng.choice(word_exercises(language, rng.choice(list(language.words))))
    clauses = 2 if rng.random() < stage.two else 1
    return rng.choice(exercises(language, sentence(language, rng, clauses)))


def document(world, enc, marks, rng, share):
    """A document: a lesson and exercises; or, closed book, of an old language or an unknown one."""
    stage = stage_of(share)
    if rng.random() < stage.closed:
        old = rng.random() < 0.75
        language = rng.choice(world["old"]) if old else new_language(rng, stranger(world, rng))
        chain = [exercise(language, rng, stage) for _ in range(CHAIN if old else 1)]
        chain = [(q, a if old else " " + UNKNOWN) for q, a in chain]
        return document_ids(enc, marks, "", chain)
    language = new_language(rng, stranger(world, rng), stage.sizes)
    chain = [exercise(language, rng, stage) for _ in range(CHAIN)]
    return document_ids(enc, marks, lesson(language, rng, stage.examples), chain)


def stranger(world, rng):
    """A name that no old language has, and none of a day."""
    while True:
        name = rng.choice(HEAD) + rng.choice(TAIL)
        if name not in world["taken"]:
            return name


# --------------------------------------------------------------------------------------------------
# The world, its days and exams

def make_world(seed):
    """{"old": [Language], "days": [Language], "taken": names}: no two share a name. A longer life
    of the same base meets more of the same languages."""
    rng, taken = random.Random(f"{seed} languages"), set()
    found = []
    for _ in range(OLD + DAYS):
        name = stranger({"taken": taken}, rng)
        taken.add(name)
        found.append(new_language(rng, name))
    return {"old": found[:OLD], "days": found[OLD:], "taken": taken}


def load_tokenizer():
    """One token for each word and each part of a name: every beginning of a word is a token."""
    ranks = {bytes([i]): i for i in range(256)}
    english = [*NOUNS, *VERBS, *ADJECTIVES, *UNKNOWN[:-1].split(), "the", "and", "Into", "From",
               *PARTS.values(), "noun", "adjective"]
    for word in [*(" " + w for w in english + FOREIGN + HEAD), *TAIL]:
        for n in range(2, len(word) + 1):
            ranks.setdefault(word[:n].encode(), len(ranks))
    return encoding(ranks, "languages")


# --------------------------------------------------------------------------------------------------
# The data set

def dice(*key):
    return random.Random(" ".join(map(str, key)))


def unseen(language, rng, n, clauses, seen=""):
    """n different sentences of so many clauses, none of which stands in the text `seen`."""
    found = {}
    while len(found) < n:
        new = sentence(language, rng, clauses)
        if in_english(new) + ":" not in seen:
            found[in_english(new)] = new
    return list(found.values())


def items_of(language, sentences, kinds, context=""):
    """An Item for each way of each sentence, of a kind for each way."""
    return [Item(context, question, answer, kind) for s in sentences
            for kind, (question, answer) in zip(kinds, exercises(language, s))]


def exam(world, seed, j, i):
    """[Item] of the language of day j, the same every morning: sentences that stand in no lesson.

    Apart from R: single words; and the same sentences with the lesson in the context.
    """
    language, rng = world["days"][j], dice("exam", seed, j)
    text = told(world, seed, j)
    short, long = (unseen(language, rng, EXAM, clauses, text) for clauses in (1, 2))
    items = items_of(language, short, ("into", "from"))
    items += items_of(language, long, ("into_two_clauses", "from_two_clauses"))
    items += [x._replace(context=text, kind="in_context") for x in items]
    words = [word_exercises(language, w) for w in language.words]
    return items + [Item("", q, a, "word") for both in words for q, a in both]


def told(world, seed, j):
    """The lesson of day j."""
    return lesson(world["days"][j], dice("lesson", seed, j))


def always(world, rng):
    """What is asked every morning: the old languages, languages read in a lesson, unknown ones."""
    items = {"old": [], "reading": [], "never_met": []}
    for language in world["old"]:
        for clauses in (1, 2):
            items["old"] += items_of(language, unseen(language, rng, 3, clauses), ("old", "old"))
    for _ in range(20):
        language = new_language(rng, stranger(world, rng))
        s = sentence(language, rng, rng.choice([1, 2]))
        items["reading"] += items_of(language, [s], ("reading", "reading"), lesson(language, rng))
        items["never_met"] += [x._replace(answer=" " + UNKNOWN)
                               for x in items_of(language, [s], ("never_met", "never_met"))]
    return items


def load(a):
    """Invented languages as a Data (data/text.py), one a day. a: seed, world_seed, days.

    Raises ValueError for more days than there are names.
    """
    if a.days > DAYS:
        raise ValueError(f"--days={a.days}: there are languages for {DAYS} days")
    enc = of_weights(a) or load_tokenizer()
    marks, world = marks_of(enc), make_world(a.world_seed)
    days = [Day([told(world, a.world_seed, j)], []) for j in range(a.days)]
    return Data("languages", enc, marks, BLOCK, partial(document, world, enc, marks), days,
                partial(exam, world, a.world_seed), always(world, dice(a.world_seed)), "first")
