"""
Stories of bAbI (Weston et al., arXiv 1502.05698) for bench/babilong.py: the real ones, and others
of our own, of other people, places and things, from which a base learns to read them.

    Mary got the milk. John moved to the bedroom. Mary travelled to the hallway.
    <ask> Where is the milk? <answer> hallway

Files: FOLDER/babi/en-v1.1/qa1_single-supporting-fact_test.txt (and qa2, qa3) as published, and
FOLDER/tinyshakespeare/input.txt, whose lines are the hay. Documents of the base have people called
by its names, places and things by its words; of its lines they know the first part only (HEARD),
hay is from the rest. What a story does not say, and who is in none, is answered "I do not know.".
"""
import os
import random
import re
from functools import partial
from itertools import islice

from data.bpe import encoding, train_bpe
from data.text import Data, document_ids, marks_of

TASKS = {"qa1": "qa1_single-supporting-fact", "qa2": "qa2_two-supporting-facts",
         "qa3": "qa3_three-supporting-facts"}
GO = ["went", "went back", "moved", "journeyed", "travelled"]
GET = ["got the {} there", "grabbed the {} there", "took the {} there", "picked up the {} there",
       "got the {}", "grabbed the {}", "took the {}", "picked up the {}"]
DROP = ["dropped the {}", "discarded the {}", "left the {}", "put down the {}",
        "dropped the {} there", "discarded the {} there", "left the {} there",
        "put down the {} there"]
# The first wording of each kind is the one of the exam; the base and its quizzes know all.
WHERE = ["Where is {}?", "In which place is {}?", "Which place is {} in?", "What place holds {}?",
         "Where can {} be found?", "At what place is {} now?"]
BEFORE = ["Where was {} before the {}?", "In which place was {} before the {}?",
          "From which place came {} to the {}?"]
HOLDER = ["Who has {}?", "Who is carrying {}?", "Who holds {}?"]
UNKNOWN, NOBODY = "I do not know.", "nobody"
PEOPLE, PLACES, THINGS = 4, 6, 3        # of a story, as bAbI has them
OLD = 24                                # people whose place the base knows by heart
VOCAB, BLOCK, READ = 1024, 256, 180      # tokens: of the vocabulary, a document, its story
ASKED = 8                               # questions of a document, at most
HEARD = 0.7                             # share of the lines that the base has read
SIMPLE, WALKS = 0.08, 0.25              # share of pretraining until stories get longer; have things
CLOSED, HAY = 0.15, 0.10                # share of documents without a text; with hay alone
WEIGHTS = 0.05, 0.4, 1.0                # in the loss: text, question, answer


# --------------------------------------------------------------------------------------------------
# What is published

def read_file(path):
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no file {path}: name the folder of babi and tinyshakespeare with "
                                "--data_dir")
    with open(path, encoding="utf-8") as f:
        return f.read()


def stories(folder, task):
    """[(sentences, question, answer)] of the test file of a task, a row a question: what was told
    until then. Raises FileNotFoundError, or ValueError with the line that is malformed."""
    path = os.path.join(folder, "babi", "en-v1.1", TASKS[task] + "_test.txt")
    found, told = [], []
    for n, line in enumerate(read_file(path).splitlines(), 1):
        number, _, rest = line.partition(" ")
        question, *answer = rest.split("\t")
        if not number.isdigit() or not question.strip() or len(answer) not in (0, 2):
            raise ValueError(f"{path}, line {n}: expected 'number sentence' or 'number question"
                             f"<TAB>answer<TAB>lines', found {line[:40]!r}")
        told = [] if number == "1" else told
        if answer:
            found.append((list(told), " " + question.strip(), " " + answer[0].strip()))
        else:
            told.append(" " + question.strip())
    return found


def hay(folder):
    """(lines that the base may read, lines it never does) of the plays."""
    path = os.path.join(folder, "tinyshakespeare", "input.txt")
    lines = [" " + line.strip() for line in read_file(path).splitlines() if line.strip()]
    if len(lines) < 10:
        raise ValueError(f"{path}: {len(lines)} lines are not enough for hay")
    cut = int(HEARD * len(lines))
    return lines[:cut], lines[cut:]


def words_of(lines, forbidden):
    """(names, words) of the plays, to call people, and places and things by."""
    text = " ".join(lines)
    names = sorted(set(re.findall(r"(?<= )[A-Z][a-z]{2,8}\b", text)))
    words = sorted(set(re.findall(r"(?<= )[a-z]{4,9}\b", text)))
    return [[w for w in some if w.lower() not in forbidden] for some in (names, words)]


def forbidden_in(folder):
    """Every word of the published stories, in small letters: nobody is called so in a document."""
    told = [w for task in TASKS for s, q, a in stories(folder, task) for w in [*s, q, a]]
    return {w.lower() for w in re.findall("[A-Za-z]+", " ".join(told))}


# --------------------------------------------------------------------------------------------------
# Stories of our own

def story(rng, people, places, things, n):
    """n sentences, and what is true behind them: {"place": {name: place}, "holder": {thing: name or
    nobody}, "trail": {thing: [places, the last is where it is]}}. "the milk" is a thing's name."""
    place, holder, trail, told = {}, {}, {}, []
    while len(told) < n:
        who, what = rng.choice(people), rng.choice(things) if things else None
        carried = [t for t in things if holder.get(t) == who]
        act = rng.random()
        if not things or act < 0.5:
            to = rng.choice([p for p in places if p != place.get(who)])
            told.append(f" {who} {rng.choice(GO)} to the {to}.")
            place[who] = to
            for thing in carried:
                trail.setdefault(thing, []).append(to)
        elif act < 0.8 and holder.get(what, NOBODY) == NOBODY and there(trail, what, place, who):
            told.append(f" {who} {rng.choice(GET).format(what)}.")
            holder[what] = who
            if who in place and not trail.get(what):
                trail[what] = [place[who]]
        elif carried:
            what = rng.choice(carried)
            told.append(f" {who} {rng.choice(DROP).format(what)}.")
            holder[what] = NOBODY
    return told, {"place": place, "holder": holder, "trail": trail}


def there(trail, what, place, who):
    """May who get it? Where it has never been seen, or where both are."""
    return not trail.get(what) or place.get(who) == trail[what][-1]


def talks(rng, truth, people, places, things, strangers):
    """Endless (question, answer) about a story."""
    while True:
        kind, who = rng.random(), rng.choice(people)
        if kind < 0.14:
            where = rng.choice([rng.choice(strangers), f"the {rng.choice(places)}"])
            yield " " + rng.choice(WHERE).format(where), " " + UNKNOWN
        elif not things or kind < 0.5:
            yield " " + rng.choice(WHERE).format(who), " " + truth["place"].get(who, UNKNOWN)
        else:
            yield about_a_thing(rng, truth, rng.choice(things), kind)


def about_a_thing(rng, truth, what, kind):
    trail, name = truth["trail"].get(what, []), f"the {what}"
    if kind < 0.74:
        return " " + rng.choice(WHERE).format(name), " " + (trail[-1] if trail else UNKNOWN)
    if kind < 0.86 or len(trail) < 2:
        return " " + rng.choice(HOLDER).format(name), " " + truth["holder"].get(what, UNKNOWN)
    i = rng.randrange(1, len(trail))
    i = max(j for j in range(1, len(trail)) if trail[j] == trail[i])      # the last time there
    return " " + rng.choice(BEFORE).format(name, trail[i]), " " + trail[i - 1]


# --------------------------------------------------------------------------------------------------
# Documents to pretrain on

def document(made, enc, marks, rng, share):
    """A document as (ids, weights), filled with questions, none twice, until there is no room."""
    text, asked = "", set()
    if rng.random() < CLOSED:
        known = rng.choice(list(made["old"])) if rng.random() < 0.5 else None
        who = known or rng.choice(made["names"])
        chain = [(" " + rng.choice(WHERE).format(who), " " + made["old"].get(who, UNKNOWN))]
        return document_ids(enc, marks, text, chain, WEIGHTS)
    people = rng.sample(made["names"], PEOPLE)
    places, things = (rng.sample(made["words"], n) for n in (PLACES, THINGS))
    things = [] if share < WALKS else things[:rng.choice([0, 1, 2, 3])]
    longest = 3 if share < SIMPLE else 8 if share < WALKS else 20
    told, truth = story(rng, people, places, things, rng.randint(1, longest))
    while len(enc.encode_ordinary("".join(told))) > READ:
        told, truth = story(rng, people, places, things, rng.randint(1, longest))
    if rng.random() < HAY:
        told, truth = [], {"place": {}, "holder": {}, "trail": {}}
    if not told or rng.random() < HAY:
        for line in rng.sample(made["lines"], rng.randint(1, 3)):
            told.insert(rng.randint(0, len(told)), line)
    ids, weights = document_ids(enc, marks, "".join(told), [], WEIGHTS)
    for pair in islice(talks(rng, truth, people, places, things, made["names"]), 2 * ASKED):
        more, w = document_ids(enc, marks, "", [pair], WEIGHTS)
        if len(ids) + len(more) > BLOCK or len(asked) == ASKED:
            break
        if pair not in asked:
            ids, weights = ids + more[len(marks.bos):], weights + w[len(marks.bos):]
        asked.add(pair)
    weights[len(marks.bos)] = 0.5       # with a text or without one: dreams begin either way
    return ids, weights


# --------------------------------------------------------------------------------------------------
# The data set

def load(folder, seed):
    """Stories as a Data (data/text.py) without days, and the lines of hay that no base has read.
    Raises FileNotFoundError, ValueError."""
    lines, unread = hay(folder)
    names, words = words_of(lines, forbidden_in(folder))
    rng = random.Random(f"{seed} stories")
    old = {name: rng.choice(words) for name in rng.sample(names, OLD)}
    made = {"names": [n for n in names if n not in old], "words": words, "lines": lines, "old": old}
    enc = encoding(train_bpe(sample_of(made), VOCAB), "stories")
    marks = marks_of(enc)
    return Data("babi", enc, marks, BLOCK, partial(document, made, enc, marks), [], None, {},
                "name"), unread, old


def sample_of(made):
    """Texts that the tokenizer is made of: what the base may read of the plays, and stories."""
    rng = random.Random(0)
    yield from made["lines"]
    for _ in range(4000):
        people, places = rng.sample(made["names"], PEOPLE), rng.sample(made["words"], PLACES)
        things = rng.sample(made["words"], THINGS)
        told, truth = story(rng, people, places, things, 8)
        yield "".join(told)
        for _, pair in zip(range(4), talks(rng, truth, people, places, things, made["names"])):
            yield "".join(pair)
