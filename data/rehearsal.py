"""
Rehearsal: what the experts of a level know, asked out of them again before they are recycled. Ours:
[S] 2.2 lets a level be distilled into the next and says no more; this is what makes it complete.

Nothing of a night was stored. But its expert has learnt to ask about it (seed.FORCED), and the gate
knows how many things it holds. So experts dream questions until hardly any new thing turns up; as
on the first night, everything that was asked of one thing is then asked of all of its kind
(`asking.cross`); and each question is answered as the self would, closed book. What is asked is
what the self dreams: no day and no exam is ever seen here.
"""
import math
from collections import Counter

import torch

import dream
from data import asking, notes, team
from data.gate import (MAX_NEW, heard, imagined, product, remember, states, things_of,
                       token_log_probs)
from data.quizzes import (RestlessNight, answers_of, behind_bos, join, pack, repack, split, take,
                          unpack)

DREAMS, LEAST = 8, 128              # a round: dreams for each entry of the gate; of each expert
WORDINGS = 40                       # in which a thing is asked about, by chance: all things, in all
ASKED = 80000                       # questions in all, about; of many things fewer wordings each
ROUNDS, NEW = 4, 0.04               # rounds at most; until so small a share of things is new
ALIKE, QUIZZES = 24, 32000          # quizzes with one answer about one thing; in all, about
SHARPER = 2.0                       # inverse temperature of memories that are learnt again: doubt
                                    # would otherwise grow from level to level
NEVER = -20.0                       # log p of what is not "I do not know", where that is taught
NAMESAKE = 3                        # times rarer than the usual name of a place, at most
CHECKED = 512                       # quizzes by which a move is judged


@torch.no_grad()
def rehearse(model, level, marks, labels=False):
    """All that the experts of a level hold -> (Quizzes with targets, things (K, r), reach (K,)).

    thing: the number of a thing; one of several nights, and whatever goes by the same name, is one.
    passage: the expert that answers. labels: the words of the answers are enough, and no target has
    distributions. Of what no expert dreams again there is no quiz; the gate keeps its place: it may
    be another name of what was dreamt ("ada york"). Raises RestlessNight where nothing is found.
    """
    mine = model.owner[:, 0] == level
    z, known = dreamt_of(model, level, mine, marks)
    wordings = min(WORDINGS, ASKED // len(z.thing.unique()) + 1)
    asked = asking.cross(z, marks, wordings, imagined(model))
    expert = newest(model.owner[mine, 1], known, z)
    likely = askable(model, level, asked, expert, marks)
    if not likely.any():
        raise RestlessNight("its memories would ask nothing of what they dream")
    dreamt, (z, sources, said) = z, from_memory(model, level, take(asked, likely), marks)
    if not any(sources):
        raise RestlessNight("its memories answer none of their own questions")
    turned = turned_round(model, mine, known, dreamt, z, marks)
    if turned is not None and (likely := askable(model, level, turned, expert, marks)).any():
        more, others, words = from_memory(model, level, take(turned, likely), marks)
        z, sources, said = join(z, more), sources + others, said + words
    keep = spread(z, asking.agreed(z, tuple(model.unknown.tolist())), said)
    if not any(sources[i] for i in keep):
        raise RestlessNight("its memories answer nothing for sure")
    z, sources = take(z, torch.tensor(keep)), [sources[i] for i in keep]
    thing = z.thing.unique(return_inverse=True)[1]
    place = things_of(model.things[mine])                           # one entry of the gate a place
    places = [place == p for p in place.unique().tolist()]
    things = torch.stack([model.things[mine][where].mean(0) for where in places])
    reach = torch.stack([model.reach[mine][where].max() for where in places])
    passage = torch.tensor([-1 if who is None else who[1] for who in sources], device=model.device)
    target = no_targets(z) if labels else targets(model, z, sources, marks)
    z = z._replace(target=target, thing=thing, passage=passage,
                   recalled=torch.ones_like(thing, dtype=torch.bool))
    return z, things, reach


def dreamt_of(model, level, mine, marks):
    """Questions as the experts of a level dream them -> (Quizzes with places and things, the thing
    of each of the gate's entries `mine`)."""
    z, found, before, known = None, {}, 0, things_of(model.things[mine])
    many = max(LEAST, DREAMS * len(known) // max(1, model.n_experts(level)))
    for _ in range(ROUNDS):
        dreamt = dream.memories(model, level, marks, many)
        new = [d for d in dreamt if (d[0], d[1]) not in found]
        found.update({(d[0], d[1]): d[2] for d in new})
        more = recognised(model, level, new, mine, known, marks) if new else None
        if more is not None:
            z = more if z is None else join(z, more)
        count = 0 if z is None else len(z.thing.unique())
        if count - before <= NEW * count:
            break
        before = count
    if z is None or not len(z.ids):
        raise RestlessNight("it holds no memories that can be dreamt again")
    z = asking.apart(z, marks, imagined(model))
    notes.dreamt_again([(e, q, found[e, q]) for e, q, _ in unpack(z)])
    return by_name(z, known)


def by_name(z, known):
    """Dreams whose things are places of the gate, and the places `known` of its entries -> the
    same of things. All that goes by one name is one thing.

    A place has its most usual name. One that is not much rarer there may belong to somebody else,
    whom the expert tells apart and the gate does not (Kira and Lena Tuvbodfur), so it is a thing of
    its own: the i-th name of place k is thing k + i K. Dreams with other names are left out.
    """
    often, one, number, usual = {}, {}, {}, {}
    rows = [(k, name) for k, (_, name, _) in zip(z.thing.tolist(), split(z))]
    for k, name in rows:
        often.setdefault(k, Counter())[name] += 1
    for k, names in often.items():
        most = max(names.values())
        for i, (name, n) in enumerate(names.most_common()):
            if NAMESAKE * n >= most:
                number[k, name] = one.setdefault(name, k + i * len(known))
        usual[k] = number[k, names.most_common(1)[0][0]]
    z = take(z, asking.chosen(row in number for row in rows))
    thing = torch.tensor([number[row] for row in rows if row in number], device=z.ids.device)
    known = torch.tensor([usual.get(k, k) for k in known.tolist()], device=known.device)
    return z._replace(thing=thing), known


def newest(owner, known, z):
    """The expert of each thing: the newest that dreams of it, else the newest that holds it."""
    many = 1 + int(max(known.max(), z.thing.max()))
    expert = torch.zeros(many, dtype=torch.long, device=known.device)
    expert.scatter_reduce_(0, known, owner, "amax")
    return expert.scatter_reduce_(0, z.thing, z.passage, "amax", include_self=False)


def recognised(model, level, dreamt, mine, known, marks):
    """Dreams [(expert, question, answer)] that come near a thing of their expert, one of the gate's
    entries `mine`, which are the things `known` -> Quizzes, or None.

    The gate hears them as it hears any question: the nearest entry, at the nearest word, is what
    the dream is about, if it is within reach.
    """
    z, found = pack(dreamt, model.device), []
    things, reach, owner = model.things[mine], model.reach[mine], model.owner[mine, 1]
    known = known.to(model.device)
    for part in torch.arange(len(z.ids), device=z.ids.device).split(64):
        ids = behind_bos(z.ids[part], marks)
        x = product(states(model, ids), model.metric.T)                         # (n, T, r)
        gap = torch.cdist(x, things).square() / reach                           # (n, T, K)
        at = torch.arange(ids.shape[1], device=ids.device) - len(marks.bos) + 1  # in z.ids, from 1
        wordless = (at <= len(marks.ask)) | (at > z.start[part, None] - len(marks.answer))
        gap = gap.masked_fill(wordless[..., None], torch.inf)
        gap = gap.masked_fill((z.passage[part, None] != owner)[:, None], torch.inf)
        least, where = gap.flatten(1).min(1)
        end, entry = at[where // len(things)], where % len(things)
        found.append((end, known[entry], least < 1))
    end, thing, within = (torch.cat(parts) for parts in zip(*found))
    z = take(z._replace(begin=end, end=end, thing=thing), within)
    return z if len(z.ids) else None


def near(model, z, mine, known, marks):
    """The quizzes that come near one of the gate's entries `mine`; it is the thing they are about.
    """
    x = product(heard(model, z, marks), model.metric.T)
    gap, entry = torch.cdist(x, model.things[mine]).square().min(1)
    z = z._replace(thing=known.to(entry.device)[entry])
    return take(z, gap < model.reach[mine][entry])


def turned_round(model, mine, known, dreamt, z, marks):
    """What was answered can be asked about, as on the first night (`asking.turn_round`), if it is a
    thing of the gate -> Quizzes without answers, or None."""
    direct = {(before, after): None for before, _, after in split(z)}
    turned = asking.turn_round(dreamt, z, direct, tuple(model.unknown.tolist()), marks)
    if turned is None:
        return None
    asked = {q for _, q, _ in unpack(z)}
    turned = take(turned, asking.chosen(q not in asked for _, q, _ in unpack(turned)))
    turned = near(model, turned, mine, known, marks) if len(turned.ids) else turned
    if not len(turned.ids):
        return None
    called = {name: k for k, (_, name, _) in zip(dreamt.thing.tolist(), split(dreamt))}
    rows = zip(turned.thing.tolist(), split(turned))
    thing = [called.get(name, k) for k, (_, name, _) in rows]
    return turned._replace(thing=torch.tensor(thing, device=turned.thing.device))


def askable(model, level, z, expert, marks):
    """(N,) True where the expert of the thing, expert (K,), would ask so."""
    rows, who = [[*marks.bos, *q] for _, q, _ in unpack(z)], expert[z.thing].tolist()
    log_p = token_log_probs(model, rows, [(level, e) for e in who], [0] * len(rows))
    return log_p[:, len(marks.bos) + len(marks.ask) - 1:].amin(1) > asking.LIKELY


def from_memory(model, level, z, marks):
    """Quizzes with the answers of the self: (Quizzes, [(level, expert), or None for a shrug], [what
    the self says]).

    What the level does not know for sure, and a slower one or the pretrained self may, it is to
    learn to leave to them: such a question about one of its things is answered "I do not know". No
    word of what the level itself asks is a surprise to it.
    """
    shrug, pairs, sources, said = tuple(model.unknown.tolist()), unpack(z), [], []
    asked = [q for _, q, _ in pairs]
    for i, (y, source) in enumerate(remember(model, marks, asked, MAX_NEW, math.inf)):
        mine = source is not None and source[0] == level
        sources.append(source if mine else None)
        said.append(tuple(y))
        pairs[i] = pairs[i][0], pairs[i][1], tuple(y) if mine else shrug
    done = [i for i, (_, _, y) in enumerate(pairs) if y[-1:] == (marks.end,)]
    z = take(z, torch.tensor(done, dtype=torch.long))
    z = repack(z, [pairs[i] for i in done]) if done else z
    return z, [sources[i] for i in done], [said[i] for i in done]


def targets(model, z, sources, marks):
    """(N, A, V) log-probabilities to learn: those of the memory that answers, sharper; for sure
    "I do not know" where it is none."""
    target = asking.memory_of(model, z, marks, dict(enumerate(sources)))
    target = (SHARPER * target).log_softmax(-1)
    words = answers_of(z, z.ids[:, 1:], target.shape[1])[..., None]
    certain = torch.full_like(target, NEVER).scatter(-1, words, 0.0)
    left = torch.tensor([source is None for source in sources], device=target.device)
    return torch.where(left[:, None, None], certain, target)


def no_targets(z):
    """(N, A, 0): how long the answers are, where their words are learnt and nothing else."""
    return torch.empty(len(z.ids), int((z.length - z.start).max()), 0, device=z.ids.device)


def spread(z, keep, said):
    """The numbers of quizzes, in random order, a question once, not too many to which the self says
    the same about one thing. What hardly any wording gets as an answer is left out: nobody would
    ask so. That is fewer than FEW, or where wordings are few, than a third of what the most usual
    one gets.

    said: what the self says to each, also where the level is to leave it to others: "I do not
    know" is then learnt of each fact that somebody was born with, not once for them all.
    """
    order, count, taken = team.share(torch.randperm(len(z.ids)).tolist()), Counter(), set()
    rows = [(q, (k, y)) for k, (_, q, y) in zip(z.thing.tolist(), unpack(z))]
    keep, out = keep.tolist(), []
    often = Counter(fact for good, (_, fact) in zip(keep, rows) if good)
    enough = min(asking.FEW, max(often.values(), default=0) // 3)
    most = max(2, min(ALIKE, QUIZZES // max(1, sum(n >= enough for n in often.values()))))
    for i in (i for i in order if keep[i] and often[rows[i][1]] >= enough):
        (q, fact), alike = rows[i], (rows[i][1][0], said[i])
        if q not in taken and count[alike] < most:
            count[alike] += 1
            taken.add(q)
            out.append(i)
    return out


@torch.no_grad()
def bits_of(model, z, marks):
    """What there is to hold: bits by which the answers surprise a pretrained self that may not say
    "I do not know", each answer about each thing once."""
    shrug, first = tuple(model.unknown.tolist()), {}
    for k, (_, q, y) in zip(z.thing.tolist(), unpack(z)):
        if y != shrug:
            first.setdefault((k, y), [*marks.bos, *q])
    rows = [q + list(y) for (_, y), q in first.items()]
    start = torch.tensor([len(q) for q in first.values()])[:, None] - 1
    log_p = token_log_probs(model, rows, [None] * len(rows), [0] * len(rows)).cpu()
    nats = -log_p.masked_fill(torch.arange(log_p.shape[1]) < start, 0.0).sum()
    if shrug:
        rows = [q + [shrug[0]] for q in first.values()]
        log_p = token_log_probs(model, rows, [None] * len(rows), [0] * len(rows)).cpu()
        nats += torch.log1p(-log_p.gather(1, start).exp()).clamp(min=-30).sum()
    return float(nats) / math.log(2)


def known_again(model, z, marks):
    """The share of some of the quizzes about what is known that the self answers, by its own gate,
    as it did."""
    shrug = tuple(model.unknown.tolist())
    pairs = [pair for pair in unpack(z) if pair[2] != shrug]
    some = team.share(torch.randperm(len(pairs))[:CHECKED].tolist())
    pairs = [pairs[i] for i in some]
    said = remember(model, marks, [q for _, q, _ in pairs], MAX_NEW)
    return sum(tuple(y) == a for (y, _), (_, _, a) in zip(said, pairs)) / max(1, len(pairs))
