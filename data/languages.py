"""
Invented languages: what is told on a day is no fact but a skill, and its exam asks for sentences
that nobody has ever seen. After Figure 5 of arXiv 2606.03979 (continual translation of languages
that are read in context); the languages are ours.

A day brings a lesson: the grammar of a language, its words, and a sentence with its translation.
Who translates thinks aloud, part by part and word by word, as linguists gloss a language:
    Zorbic: subject object verb, noun adjective; dog= bal= dog, house= nor= house, ...
    <ask> Into Zorbic: the red house sees the old dog
        <answer> subject house nor red tok object dog bal old zim verb sees kip: nor tok bal zim kip
    <ask> From Zorbic: nor tok bal zim kip
        <answer> subject nor house tok red object bal dog zim old verb kip sees: the red house sees
        the old dog
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
SIZES = 6, 3, 4                         # nouns, verbs, adjectives of a language
EXAM = 24                               # sentences of an exam, each way
DAYS = 28                               # languages that a world has beside the old ones
CHAIN = 4                               # exercises of a document
WEIGHTS = 0.05, 1.0, 1.0                # in the loss: lesson, question, answer; it learns to ask
WORDS_UNTIL = 0.18                      # share of pretraining that is about single words alone

Language = namedtuple("Language", "name words order behind")
# words: {English: foreign}; order: of subject, verb and object, "SOV"; behind: do adjectives stand
# behind their noun?
Sentence = namedtuple("Sentence", "subject verb object")    # subject, object: [adjective, noun]


# --------------------------------------------------------------------------------------------------
# Languages and their sentences

def new_language(rng, name, sizes=SIZES):
    """A language of so many nouns, verbs and adjectives."""
    kinds = zip((NOUNS, VERBS, ADJECTIVES), sizes)
    english = [w for words, n in kinds for w in rng.sample(words, n)]
    words = dict(zip(english, rng.sample(FOREIGN, len(english))))
    return Language(name, words, rng.choice(ORDERS), rng.random() < 0.5)


def known(language, kind):
    """The words of a kind (NOUNS, VERBS, ADJECTIVES) that a language has."""
    return [w for w in language.words if w in kind]


def sentence(language, rng):
    """A random sentence."""
    nouns = rng.sample(known(language, NOUNS), 2)
    subject, object_ = ([rng.choice(known(language, ADJECTIVES)), noun] for noun in nouns)
    return Sentence(subject, rng.choice(known(language, VERBS)), object_)


def in_english(s):
    """" the old dog sees the red house"."""
    return f" the {' '.join(s.subject)} {s.verb} the {' '.join(s.object)}"


def gloss(language, s):
    """The parts of a sentence in the order of the language: [(what it is, [English words])]."""
    subject, object_ = (x[::-1] if language.behind else x for x in (s.subject, s.object))
    words = {"S": subject, "V": [s.verb], "O": object_}
    return [(PARTS[part], words[part]) for part in language.order]


def exercises(language, s):
    """(question, answer) of both ways of asking for a sentence: into the language, out of it."""
    english, parts, foreign = in_english(s), gloss(language, s), language.words
    said = "".join(f" {foreign[w]}" for _, words in parts for w in words)
    into, out_of = ("".join(f" {part}" + "".join(pair.format(w, foreign[w]) for w in words)
                            for part, words in parts) for pair in (" {0} {1}", " {1} {0}"))
    return [(f" Into {language.name}:{english}", f"{into}:{said}"),
            (f" From {language.name}:{said}", f"{out_of}:{english}")]


def word_exercises(language, word):
    foreign = language.words[word]
    return [(f" Into {language.name}: {word}", f" {word} {foreign}"),
            (f" From {language.name}: {foreign}", f" {foreign} {word}")]


def lesson(language, rng, shown=True):
    """What is read of a language: its grammar, its words, and (shown) a sentence translated."""
    order = " ".join(PARTS[part] for part in language.order)
    noun = "noun adjective" if language.behind else "adjective noun"
    words = rng.sample([f" {e}= {f}= {e}" for e, f in language.words.items()], len(language.words))
    parts = [f" {language.name}: {order}, {noun}", ",".join(words)]
    if shown:
        s = sentence(language, rng)
        parts.append(f"{in_english(s)}:{exercises(language, s)[0][1]}")
    return ";".join(parts)


# --------------------------------------------------------------------------------------------------
# Documents to pretrain on

def exercise(language, rng, words):
    """(question, answer), either way: of a word, with a probability `words`, or a sentence."""
    if rng.random() < words:
        return rng.choice(word_exercises(language, rng.choice(list(language.words))))
    return rng.choice(exercises(language, sentence(language, rng)))


def document(world, enc, marks, rng, share):
    """A document: a lesson and exercises; or, closed book, of an old language or an unknown one.

    The curriculum: single words of small languages first, then of larger ones, then sentences.
    """
    early = share < WORDS_UNTIL
    words = 1.0 if early else 0.25
    sizes = (3, 2, 2) if share < WORDS_UNTIL / 2 else SIZES
    if rng.random() < 0.15:
        old = rng.random() < 0.75
        language = rng.choice(world["old"]) if old else new_language(rng, stranger(world, rng))
        chain = [exercise(language, rng, words) for _ in range(CHAIN if old else 1)]
        chain = [(q, a if old else " " + UNKNOWN) for q, a in chain]
        return document_ids(enc, marks, "", chain, WEIGHTS)
    language = new_language(rng, stranger(world, rng), sizes)
    chain = [exercise(language, rng, words) for _ in range(CHAIN + 5 * early)]
    return document_ids(enc, marks, lesson(language, rng, not early), chain, WEIGHTS)


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
    english = [*NOUNS, *VERBS, *ADJECTIVES, *UNKNOWN[:-1].split(), "the", "Into", "From",
               *PARTS.values(), "noun", "adjective"]
    for word in [*(" " + w for w in english + FOREIGN + HEAD), *TAIL]:
        for n in range(2, len(word) + 1):
            ranks.setdefault(word[:n].encode(), len(ranks))
    return encoding(ranks, "languages")


# --------------------------------------------------------------------------------------------------
# The data set

def dice(*key):
    return random.Random(" ".join(map(str, key)))


def unseen(language, rng, n, seen=""):
    """n different sentences, none of which stands in the text `seen`."""
    found = {}
    while len(found) < n:
        new = sentence(language, rng)
        if in_english(new) not in seen:
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
    language, text = world["days"][j], told(world, seed, j)
    asked = unseen(language, dice("exam", seed, j), EXAM, text)
    words = [word_exercises(language, w) for w in language.words]
    return [*items_of(language, asked, ("into", "from")),
            *items_of(language, asked, ("in_context", "in_context"), text),
            *(Item("", q, a, "word") for both in words for q, a in both)]


def told(world, seed, j):
    """The lesson of day j."""
    return lesson(world["days"][j], dice("lesson", seed, j))


def always(world, rng):
    """What is asked every morning: the old languages, languages read in a lesson, unknown ones."""
    items = {"old": [], "reading": [], "never_met": []}
    for language in world["old"]:
        items["old"] += items_of(language, unseen(language, rng, 6), ("old", "old"))
    for _ in range(20):
        language = new_language(rng, stranger(world, rng))
        s = sentence(language, rng)
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
