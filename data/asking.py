"""
Asking everything about the day, and finding the answers. Ours: [S] lets the self write its quizzes
and says no more; this is what makes them complete and true.

The day is read twice. First sentence by sentence (`one_by_one`), so that nothing told is
overlooked: what the self asks there says which things the day speaks of. Then thing by thing
(`thing_by_thing`): all that was told of one thing, in whatever passage, is put together, and
everything is asked of it (`ask_everything`), in the wordings of all questions about its kind, and
of what was answered, too (`turn_round`). So neither two people in one passage nor one in two are
confused. Where the day does not say, memory is asked (`look_up`). In the morning the self looks
back at what became of each passage (`look_back`).

Text is token ids; nothing here knows a word, a name or a template.
"""
import random
from collections import Counter

import torch
import torch.nn.functional as F

import dream
from data import notes
from data.gate import (MAX_NEW, MIN_GAIN, about, always, awake_for, gains, greedy, imagined,
                       log_probs, remember, said, specific, stands_in, token_log_probs, wakes)
from data.quizzes import (RestlessNight, answers_of, closed_book, join, pack, question_mask, repack,
                          split, sureness, take, unpack)
from dream import VIEWS

FEW = 3                             # times that something must have been heard
OFTEN = 6                           # times that make a name, or a wording
TOLD = 2.0                          # nats that the name of a thing gains where it is spoken of
WORDINGS, TURNS = 40, 6             # in which a thing is asked about; an answer
LIKELY, SPELT = -6.0, -3.0          # log p of the least likely word of a question, of a name
ASKABLE, TURNED = -8.0, 2           # of a question asked in turn; how many are tried, per exercise
READINGS = 2                        # over which an answer's distribution is averaged
HELD_OUT, MOVED = 96, 0.25          # questions a night is judged by; share that may change
RARE = -6.0                         # log p of a word that is met for the first time
KNOWN = 0.25                        # share of its quizzes that a night must know to be kept
MIN_SURE = 0.5                      # p of the least certain word of an answer that is learnt


def screen(teacher, dreamt, marks):
    """Dreams [(passage, question, answer)] -> the Quizzes that the day made likely.

    log p(q | context) - log p(q) > MIN_GAIN: chit-chat and old things gain nothing from the day.
    Raises RestlessNight if nothing is left.
    """
    notes.asked(dreamt)
    if not dreamt:
        raise RestlessNight("the self asked itself nothing about its day: it cannot read yet")
    size = sorted(len(q) + len(a) for _, q, a in dreamt)[int(0.97 * (len(dreamt) - 1))]
    z = pack([t for t in dreamt if len(t[1]) + len(t[2]) <= size], teacher.model.device)
    gain = gains(teacher.model, z, marks, teacher.cache, z.passage * VIEWS, teacher.awake)
    wording = F.pad((gain < 0.3) & question_mask(z, marks), (1, 0)) # <ask> itself is never misheard
    begin, end = specific(gain, teacher.model.config.listens)
    notes.dropped("the day does not make it likelier", z, gain.sum(1) > MIN_GAIN)
    z = take(z._replace(begin=begin, end=end, wording=wording), gain.sum(1) > MIN_GAIN)
    if not len(z.ids):
        raise RestlessNight("the self wrote no usable quiz about its day: it cannot read yet")
    return z


# --------------------------------------------------------------------------------------------------
# The day, thing by thing

def one_by_one(day):
    """The day with each sentence as a passage of its own; of a day that was studied, as it is."""
    if day.study:
        return day
    return day._replace(passages=[[s] for told in day.passages for s in told])


def thing_by_thing(teacher, z, day, marks):
    """The things that quizzes z about single sentences ask for, and what was told of each.

    Returns (quizzes, day, found): the passages of the day are the things now, all that was told of
    each, and behind them every single sentence; those of the quizzes are things. found: what a
    Teacher keeps of it. home: [{passages of the real day}] of each; parts: of each thing, the
    passages that are its sentences; told: [(passage of the real day, sentence)] of all sentences
    that were asked about. Raises RestlessNight.
    """
    model, heard_of = teacher.model, sorted(set(z.passage.tolist()))
    if model.config.listens == "name":
        z = apart(z, marks, imagined(model))
    z = sensible(teacher, z, marks)
    if not len(z.ids):
        raise RestlessNight("the self cannot tell what its questions are about")
    z = z._replace(thing=about(model, z, marks))
    parts = [[sum(told, [])] if day.study else told for told in day.passages]   # as in one_by_one
    where = [p for p, told in enumerate(parts) for _ in told]
    sentences = [s for told in parts for s in told]
    room = model.config.block_size - 2 * dream.ASKING
    told = []
    for gain in gather(teacher, z, marks):                          # {sentence: nats}
        best, size = [], 0
        for i in sorted(gain, key=gain.get, reverse=True):
            size += len(sentences[i])
            if size < room or not best:
                best.append(i)
        told.append(best)
    wholes, singles = [[sentences[i] for i in some] for some in told], [[s] for s in sentences]
    home = [{where[i] for i in some} for some in told] + [{p} for p in where]
    parts = [[len(told) + i for i in some] for some in told]
    found = {"home": home, "parts": parts, "told": [(where[i], sentences[i]) for i in heard_of]}
    return z._replace(passage=z.thing), day._replace(passages=wholes + singles), found


def sensible(teacher, z, marks, likely=LIKELY):
    """The questions that the self would ask of what it holds: no word of them has log p < likely
    ("Where does 3 May live?"), no word of a name log p < SPELT ("Ada Bramwol"), unless the name
    stands in the passage as it is: a name may be strange."""
    word = log_probs(teacher.model, z.ids, teacher.cache, z.passage * VIEWS, of=said)
    word = word.masked_fill(~question_mask(z, marks), 0.0)
    at = torch.arange(2, z.ids.shape[1] + 1, device=word.device)    # counted from 1
    name = (at >= z.begin[:, None]) & (at <= z.end[:, None])
    spelt = word.masked_fill(~name, 0.0).min(1)[0] > SPELT
    stands = [stands_in(name, teacher.readings[p * VIEWS])
              for p, (_, name, _) in zip(z.passage.tolist(), split(z))]
    spelt = spelt | torch.tensor(stands, dtype=torch.bool, device=word.device)
    notes.dropped("misspelt, or nobody would ask so", z, (word.min(1)[0] > likely) & spelt)
    return take(z, (word.min(1)[0] > likely) & spelt)


def apart(z, marks, others=()):
    """Where name and wording meet in each question (`cut`), others being heard, too."""
    asked = [q for _, q, _ in unpack(z)]
    often = cuts_heard([*asked, *others], marks)
    places = [cut(q, often, marks, end) or (begin, end)
              for q, begin, end in zip(asked, z.begin.tolist(), z.end.tolist())]
    begin, end = torch.tensor(places, device=z.ids.device).view(-1, 2).T
    return z._replace(begin=begin, end=end)


def cut(q, often, marks, holds=None):
    """(begin, end) of the name in a question q = before + name + after, counted from 1; None where
    nothing stands. holds: the place of a word of it, where the question has become specific.

    A name is what is asked about in many wordings, and a wording is what is asked about many names:
    the greatest n(before, after) n(name) counts. n: how many different questions have it, at most
    OFTEN; of equals, without that limit ("Where does Mara ... live" is heard often, too, where many
    are called Mara); of equals still, the shortest name.
    """
    wordings, names = often
    heard = {(b + 1, e): (wordings[q[:b], q[e:]], names[q[b:e]])
             for b, e in cuts_of(q, marks) if holds is None or b < holds <= e}

    def worth(at):
        n, m = heard[at]
        return min(OFTEN, n) * min(OFTEN, m), n * m, at[0] - at[1]
    return max(heard, key=worth, default=None)


def cuts_heard(questions, marks):
    """How many different questions have each wording (before, after), and each name."""
    wordings, names = Counter(), Counter()
    for q in dict.fromkeys(questions):
        cuts = cuts_of(q, marks)
        wordings.update((q[:b], q[e:]) for b, e in cuts)
        names.update({q[b:e] for b, e in cuts})
    return wordings, names


def cuts_of(q, marks):
    """All (b, e) so that q[b:e], between <ask> and <answer>, may be the name in a question q; it is
    not all of it."""
    first, last = len(marks.ask), len(q) - len(marks.answer)
    return [(b, e) for b in range(first, last) for e in range(b + 1, last + 1)
            if (b, e) != (first, last)]


def usual_wordings(questions, marks):
    """What the self asks of whom: {name: {(before, after)}} of questions in wordings that were
    heard about FEW names or more."""
    often, found = cuts_heard(questions, marks), {}
    for q in dict.fromkeys(questions):
        begin, end = cut(q, often, marks) or (1, 0)
        wording = q[:begin - 1], q[end:]
        if often[0][wording] >= FEW:
            found.setdefault(q[begin - 1:end], {})[wording] = None
    return found


def gather(teacher, z, marks):
    """Which sentences speak of each thing: [{sentence: nats that its words gain from it}].

    Looked for where it was asked about, and wherever else the things of those sentences were. It
    is spoken of where the gain is the greatest, or more than TOLD and half of the greatest.
    """
    asked, here, first = {}, {}, {}
    for i, (k, s) in enumerate(zip(z.thing.tolist(), z.passage.tolist())):
        first.setdefault(k, i)                                      # one question a thing
        asked.setdefault(k, {})[s] = here.setdefault(s, {})[k] = None
    near = {k: sorted({s for home in asked[k] for other in here[home] for s in asked[other]})
            for k in asked}
    pairs = [(k, s) for k in sorted(asked) for s in near[k]]
    thing, sentence = torch.tensor(pairs, device=z.ids.device).T
    q = take(z, torch.tensor([first[k] for k in sorted(asked)], device=z.ids.device)[thing])
    q = q._replace(ids=q.ids[:, :int(q.end.max())])                 # what follows does not matter
    gain = gains(teacher.model, q, marks, teacher.cache, sentence * VIEWS)
    at = torch.arange(2, gain.shape[1] + 2, device=gain.device)
    name = (at >= q.begin[:, None]) & (at <= q.end[:, None])
    found = [{} for _ in asked]
    for (k, s), nats in zip(pairs, (gain * name).sum(1).tolist()):
        found[k][s] = nats
    return [{s: g for s, g in row.items() if g >= max(row.values()) or
             g > max(TOLD, 0.5 * max(row.values()))} for row in found]


# --------------------------------------------------------------------------------------------------
# Everything that can be asked

def ask_everything(teacher, dreamt, marks):
    """Quizzes about things, their passages -> many more, with answers: whatever can be asked of
    each thing, and of what was answered. Of a skill (Config.listens "first") what was asked."""
    if teacher.model.config.listens == "first":
        return as_written(teacher, dreamt, marks)
    unknown = tuple(teacher.model.unknown.tolist())
    everything = cross(dreamt, marks, WORDINGS, imagined(teacher.model))
    z = answered(teacher, sensible(teacher, everything, marks), marks)
    direct = {(before, after): None for before, _, after in split(z)}   # asked of things
    more = turn_round(dreamt, z, direct, unknown, marks)
    if more is not None:
        more = answered(teacher, sensible(teacher, more, marks), marks)
        more = take(more, chosen(y != unknown or (before, after) in direct
                                 for (before, _, after), (_, _, y) in zip(split(more),
                                                                          unpack(more))))
        asked = {q for _, q, _ in unpack(more)}
        z = join(take(z, chosen(q not in asked for _, q, _ in unpack(z))), more)
    z = take(z, chosen(y[-1:] == (marks.end,) for _, _, y in unpack(z)))
    return take(z, agreed(z, unknown))


def as_written(teacher, dreamt, marks):
    """Exercises in a skill, answered with the day in the context, and what is asked in turn. A
    sentence to translate is no wording: nothing of it may be misheard."""
    z = answered(teacher, dreamt, marks)
    turns = ask_back(z, marks)
    if turns is not None:
        z = join(z, answered(teacher, sensible(teacher, turns, marks, ASKABLE), marks))
    z = z._replace(wording=torch.zeros_like(z.wording))
    return take(z, chosen(y[-1:] == (marks.end,) for _, _, y in unpack(z)))


def ask_back(z, marks):
    """What was answered can be asked about -> TURNED times as many quizzes without answers at
    most, or None.

    Behind each beginning of a question (up to the word behind the name) stands the end of an
    answer, or one word of it, of a length heard there: so what was translated is translated back
    (as in back-translation, arXiv 1511.06709), if the self finds that it can be asked.
    """
    pairs, places, lengths = unpack(z), {}, {}
    for (p, _, _), k, (before, name, after) in zip(pairs, z.thing.tolist(), split(z)):
        begin = before + name + after[:1]
        places[begin] = p, k, (len(before) + 1, len(before) + len(name))
        lengths.setdefault(begin, Counter())[len(after) - 1 - len(marks.answer)] += 1
    new, asked = {}, {q for _, q, _ in pairs}
    for begin, often in lengths.items():
        for n in (n for n, times in often.items() if n > 0 and times >= FEW):
            words = [y[:-1] for _, _, y in pairs]
            ends = [(t,) for y in words for t in y] if n == 1 else [y[-n:] for y in words]
            new |= {(*begin, *end, *marks.answer): places[begin] for end in ends if len(end) == n}
    new = [q for q in new if q not in asked]
    if not new:
        return None
    new = random.sample(new, min(len(new), TURNED * len(pairs)))
    of = [places[next(q[:n] for n in range(len(q)) if q[:n] in places)] for q in new]
    return between([(p, q) for (p, _, _), q in zip(of, new)], [k for _, k, _ in of],
                   [place for _, _, place in of], z.ids.device, marks)


def chosen(these):
    """Any row of True and False as an index for `take`: (N,)."""
    return torch.tensor(list(these), dtype=torch.bool)


def answered(teacher, z, marks):
    """z with answers from what was told of each thing, its passage: by all of it, else by a single
    sentence of it. Such a sentence is then the passage."""
    pairs, unknown = unpack(z), tuple(teacher.model.unknown.tolist())
    pairs = [(k, q, y) for (k, q, _), y in zip(pairs, read(teacher, pairs, marks))]
    again = [(i, (s, q, y)) for i, (k, q, y) in enumerate(pairs) if y == unknown
             for s in teacher.parts[k] if len(teacher.parts[k]) > 1]
    closer = read(teacher, [pair for _, pair in again], marks)
    for (i, (s, q, _)), y in zip(again, closer):
        if pairs[i][2] == unknown != y:
            pairs[i] = s, q, y
    return repack(z, pairs)


def turn_round(dreamt, z, direct, unknown, marks):
    """What was answered can be asked about -> quizzes without answers, or None.

    The day says that Ada was born on 3 May, and the self has asked who was born on 3 May, or where
    the person lives who was: so can whoever was born on any day be asked for. Such a wording v
    turns w round ("When was Ada born?") if v was heard about an answer to w. The passage is what
    was told of Ada. Answers to one question are of one kind: if one is a thing of the day (the
    friend of Ada is Ben), what is asked of it is asked of the others, too. direct: all wordings
    in which things were asked about.
    """
    asked, called, facts = {}, {}, {}               # {thing: wordings}, {name: thing}
    for k, (before, name, after), (_, _, y) in zip(z.thing.tolist(), split(z), unpack(z)):
        asked.setdefault(k, {})[before, after] = None
        called.setdefault(name, k)
        if y != unknown:                            # {answer: {thing: wordings}}
            facts.setdefault(y[:-1], {}).setdefault(k, {})[before, after] = None
    kinds = {}                                      # {wording: those asked of what answers it}
    for value, of in facts.items():
        for w in (w for ws in of.values() for w in ws):
            kinds.setdefault(w, {}).update(asked[called[value]] if value in called else {})
    turns, new, last = turns_of(dreamt, facts, called, direct), {}, max(asked) + 1
    for value, of in facts.items():
        k = max(of, key=lambda k: len(asked[k]))    # of Ada, and not only of the friend of Ben
        often = sum((turns.get(w, Counter()) for w in of[k]), Counter())
        ways = [v for v, _ in often.most_common(TURNS)]
        if ways and value not in called:
            alike = list({v: None for w in of[k] for v in kinds[w]})
            ways += random.sample(alike, min(len(alike), WORDINGS // 2))
        j = called.get(value, last)
        last = max(last, j + 1)
        for before, after in ways:
            new[j, before + value + after] = k, len(before) + 1, len(before) + len(value)
    if not new:
        return None
    return between([(k, q) for (_, q), (k, _, _) in new.items()], [j for j, _ in new],
                   [(b, e) for _, b, e in new.values()], z.ids.device, marks)


def turns_of(dreamt, facts, called, direct):
    """{wording: how often each other wording was heard about what answers it}, see `turn_round`.

    One that is asked of things, too, must lead back ("Whose friend is Ben?"): the answer is the
    thing itself.
    """
    turns = {}
    for _, q, y in unpack(dreamt):
        spans = [(b - a, a, b) for a in range(1, len(q)) for b in range(a + 1, len(q))
                 if q[a:b] in facts]
        if spans:
            _, a, b = max(spans)                    # the longest answer that stands in it
            v = q[:a], q[b:]
            for k, ws in facts[q[a:b]].items():
                if v not in direct or called.get(y[:-1]) == k:
                    for w in ws:
                        turns.setdefault(w, Counter())[v] += 1
    return turns


def between(asked, thing, places, device, marks):
    """Quizzes without answers: [(passage, question)] about things, named at [(begin, end)]."""
    z = pack([(p, q, (marks.end,)) for p, q in asked], device)
    begin, end = torch.tensor(places, device=device).T
    at = torch.arange(1, z.ids.shape[1] + 1, device=device)         # counted from 1
    outside = (at < begin[:, None]) | (at > end[:, None])
    wording = outside & (at > len(marks.ask)) & (at <= z.start[:, None] - len(marks.answer))
    return z._replace(thing=torch.tensor(thing, device=device), begin=begin, end=end,
                      wording=wording)


def read(teacher, asked, marks):
    """What the self says to each quiz (passage, question, _) with that passage in context: ids."""
    if not asked:
        return []
    rows = torch.tensor([p * VIEWS for p, _, _ in asked], device=teacher.model.device)
    prompts = [list(q) for _, q, _ in asked]
    answers = greedy(teacher.model, prompts, marks, MAX_NEW, before=(teacher.cache, rows))
    return [says(teacher.model, teacher.readings[p * VIEWS][len(marks.bos):], q, y)
            for (p, q, _), y in zip(asked, answers)]


def cross(z, marks, most=WORDINGS, others=()):
    """Everything that can be asked of each thing -> quizzes without answers: as it was asked, and
    in up to `most` wordings of its kind.

    Things that were asked about in the same wording are of one kind (two people, two birthdays):
    what was asked of one can be asked of the other. A small day has few wordings: then so can what
    the self has asked of others of that kind, whom it has imagined. Raises RestlessNight.
    """
    names, wordings, kinds, new = {}, usual_wordings(others, marks), {}, {}
    for name, asked in wordings.items():
        for w in asked:
            kinds.setdefault(w, {})[name] = None
    for k, (before, name, after) in zip(z.thing.tolist(), split(z)):
        if len(after) >= len(marks.answer):                         # not up to <answer>
            new[k, before + name + after] = len(before) + 1, len(before) + len(name)
            names.setdefault(k, []).append(name)
            wordings.setdefault(k, {})[before, after] = None
            kinds.setdefault((before, after), {})[k] = None
    for k, called in names.items():
        alike = dict.fromkeys(other for w in wordings[k] for other in kinds[w])
        today = list(dict.fromkeys(w for other in alike if other in names for w in wordings[other]))
        asked = random.sample(today, min(len(today), most))
        if len(asked) < most:                                       # a small day
            more = list(dict.fromkeys(w for other in alike for w in wordings[other]
                                      if w not in asked))
            asked += random.sample(more, min(len(more), most - len(asked)))
        for before, after in asked:
            name = random.choice(called)
            new[k, before + name + after] = len(before) + 1, len(before) + len(name)
    if not new:
        raise RestlessNight("the self cannot tell what its questions are about")
    return between(list(new), [k for k, _ in new], list(new.values()), z.ids.device, marks)


def says(model, text, question, answer):
    """An answer to a question about a text, as ids. One that only repeats its question says "I do
    not know". So does one that does not stand in the text, if the self answers in the words it
    reads: it speaks of somebody else."""
    words = answer[:-1]
    told = stands_in(words, text) or not model.quotes
    return tuple(answer if told and not stands_in(words, question) else model.unknown.tolist())


def agreed(z, unknown):
    """(N,) False where an answer is not what most wordings of the same question got.

    Two wordings ask the same if, of the things of which both were asked, they got the same known
    answer FEW times or more, and other ones at most a third as often.
    """
    answers, rows = {}, list(zip(z.thing.tolist(), split(z), unpack(z)))
    for k, (before, _, after), (_, _, y) in rows:
        answers.setdefault((before, after), {})[k] = y
    alike = {}
    for w, mine in answers.items():
        for v, theirs in answers.items():
            both = [(mine[k], theirs[k]) for k in mine.keys() & theirs.keys()]
            known = [a == b for a, b in both if unknown not in (a, b)]
            if v == w or sum(known) >= max(FEW, 3 * known.count(False)):
                alike.setdefault(w, []).append(v)
    keep = []
    for k, (before, _, after), (_, _, y) in rows:
        votes = Counter(answers[v][k] for v in alike[before, after] if k in answers[v])
        keep.append(votes[y] >= max(votes.values()))
    notes.dropped("outvoted: most wordings of it got another answer", z, keep)
    return torch.tensor(keep, dtype=torch.bool, device=z.ids.device)


# --------------------------------------------------------------------------------------------------
# What the day says, else what memory says

def look_up(teacher, z, marks, teach):
    """Quizzes with targets. Where the day does not say, yesterday's self is the teacher, closed
    book: who returns is stored again whole (reconsolidation). Where they differ, the day's word
    wins.

    Only what the teacher is sure of is kept, and only things of which the day says anything new.
    Raises RestlessNight if nothing is.
    """
    model, pairs, unknown = teacher.model, unpack(z), tuple(teacher.model.unknown.tolist())
    recalled, news = {}, []
    memory = remember(model, marks, [q for _, q, _ in pairs], MAX_NEW)
    for i, ((p, q, y), (was, source)) in enumerate(zip(pairs, memory)):
        news.append(y not in (unknown, tuple(was)))                 # the day changed what is said
        if y == unknown:
            pairs[i], recalled[i] = (p, q, tuple(was)), source
    new = repack(z, pairs)
    new = new._replace(recalled=torch.zeros_like(z.thing, dtype=torch.bool))
    new = with_targets(new, teach, READINGS)
    for i, target in zip(recalled, memory_of(model, take(new, list(recalled)), marks, recalled)):
        new.target[i], new.recalled[i] = target, True
    sure = sureness(new) > MIN_SURE
    told_of = new.thing[sure & torch.tensor(news, device=sure.device)]
    notes.dropped("unsure of the answer", new, sure)
    notes.dropped("nothing new about it", new, ~sure | torch.isin(new.thing, told_of))
    new = take(new, sure & torch.isin(new.thing, told_of))
    if not len(new.ids):
        raise RestlessNight("the self is not sure of any answer about its day")
    return new


def facts_in(z):
    """How many different answers about how many things: what there is to learn."""
    return len({(k, y) for k, (_, _, y) in zip(z.thing.tolist(), unpack(z))})


def shrugs(z, unknown):
    """(N,) True where the answer is "I do not know"."""
    unknown = tuple(unknown.tolist())
    return torch.tensor([y == unknown for _, _, y in unpack(z)], device=z.ids.device)


def named(teacher, z, marks, teach):
    """Quizzes about topics, with targets: a text may drift away from the name under which it was
    dreamt, so the self that holds the day names it again.

    Kept is what it is sure to call by a name of the day. Raises RestlessNight if nothing is.
    """
    pairs, device = unpack(z), teacher.model.device
    names = [tuple(view[len(marks.bos):]) for view in teacher.readings[::VIEWS]]
    number = {(*name, marks.end): p for p, name in enumerate(names)}
    prompts, awake = [[*marks.bos, *q] for _, q, _ in pairs], always(teacher.awake, z.ids)
    answers = [tuple(y) for y in greedy(teacher.model, prompts, marks, MAX_NEW, awake)]
    today = [i for i, y in enumerate(answers) if y in number]
    notes.dropped("called by no name of the day", z, [y in number for y in answers])
    if not today:
        raise RestlessNight("the self calls nothing it dreams by a name of its day")
    new = repack(take(z, torch.tensor(today, device=device)),
                 [(number[answers[i]], pairs[i][1], answers[i]) for i in today])
    new = new._replace(thing=new.passage, recalled=torch.zeros_like(new.passage, dtype=torch.bool))
    new = with_targets(new, teach, 1)                               # nothing is in the context
    notes.dropped("unsure of the answer", new, sureness(new) > MIN_SURE)
    new = take(new, sureness(new) > MIN_SURE)
    if not len(new.ids):
        raise RestlessNight("the self is not sure of any answer about its day")
    return new


def with_targets(z, teach, views):
    """Quizzes with the teacher's distribution over each answer token, averaged over readings."""
    longest, targets = int((z.length - z.start).max()), []
    for part in torch.arange(len(z.ids), device=z.ids.device).split(128):
        some = take(z, part)
        mean = sum(answers_of(some, teach(some, view), longest).exp() for view in range(views))
        targets.append((mean / views).clamp_min(1e-12).log())
    return z._replace(target=torch.cat(targets))


def memory_of(model, z, marks, sources):
    """What yesterday's self would say: (n, A, V) log-probabilities, closed book.

    sources: {index: (level, expert), or None for the pretrained self} of the n quizzes.
    """
    begin, who = torch.zeros_like(z.start), list(sources.values())
    for source in set(who) - {None}:
        mine = torch.tensor([w == source for w in who], device=begin.device)
        begin = torch.where(mine, wakes(model, z, *source, marks), begin)
    out = []
    for part in torch.arange(len(who), device=begin.device).split(128):
        awake = awake_for([who[i] for i in part.tolist()], begin[part].tolist(), begin.device)
        h = model.hidden(closed_book(take(z, part), marks), awake=awake)
        out.append(F.log_softmax(model.logits(h[:, len(marks.bos):]).float(), -1))
    return answers_of(z, torch.cat(out)) if out else []


# --------------------------------------------------------------------------------------------------
# The look back: nothing is lost in silence

def look_back(model, cold, z, teacher, day, marks):
    """What became of each passage and of what was known before. Returns a log (ours).

    The new self answers the quizzes of the day by its own gate: a passage of which it knows no
    more than half is lost, for tonight, and so is one of whose sentences no more than half can be
    said again (`said_again`). And it answers what it asks in dreams of old: raises RestlessNight
    where more than a share MOVED of those answers have changed.
    """
    pairs = unpack(z)
    answers = remember(model, marks, [q for _, q, _ in pairs], MAX_NEW)
    right = [tuple(y) == a for (y, _), (_, _, a) in zip(answers, pairs)]
    notes.kept(z, answers)
    if sum(right) < KNOWN * len(right):
        raise RestlessNight(f"in the end {sum(right)} of {len(right)} quizzes were known")
    known, again = {}, said_again(z, right, teacher, marks)
    for (k, _, _), r, recalled in zip(pairs, right, z.recalled.tolist()):
        for p in () if recalled else teacher.home[k]:
            known.setdefault(p, []).append(r)
    lost = [p for p in range(len(day.passages)) if p not in known or
            any(2 * sum(some) <= len(some) for some in (known[p], again.get(p, [True])))]
    old = dream.questions(cold, marks, HELD_OUT)
    before, after = (remember(who, marks, old, MAX_NEW) for who in (cold, model))
    notes.old(old, before, after)
    moved = sum(b[0] != c[0] for b, c in zip(before, after)) / max(1, len(old))
    if moved > MOVED:
        raise RestlessNight(f"{moved:.0%} of what the self said of old things has changed")
    return {"known": sum(right) / len(right), "lost": lost, "moved": moved}


def said_again(z, right, teacher, marks):
    """{passage: [True for each of its sentences that can be said again]}, of what was asked about.

    A sentence can if a quiz is known whose answer stands in it and that has all its RARE words, in
    question or answer: one that has misspelt a strange name helps nobody who asks by it. A self
    that answers in its own words cannot be held to that.
    """
    score, known = {}, {}
    if not teacher.told or not teacher.model.quotes:
        return score
    for k, (_, q, y), r in zip(z.passage.tolist(), unpack(z), right):
        for p in teacher.home[k] if r else ():
            known.setdefault(p, {})[q, y[:-1]] = None
    rows = [[*marks.bos, *sentence] for _, sentence in teacher.told]
    log_p = token_log_probs(teacher.model, rows, [None] * len(rows), [0] * len(rows))
    for (p, sentence), nats in zip(teacher.told, log_p[:, len(marks.bos) - 1:].tolist()):
        rare = {word for word, n in zip(sentence, nats) if n < RARE}
        score.setdefault(p, []).append(any(stands_in(y, sentence) and rare <= {*q, *y}
                                           for q, y in known.get(p, {})))
    return score
