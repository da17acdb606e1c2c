"""
The gate, and the order in which the self answers. Ours: the paper leaves the router open, so this
is no chapter; the four chapters are the paper.

A *thing* is whatever a question is about: a name, a description, a topic. Where a question becomes
specific is heard from the day itself, the gain log p(word | day) - log p(word | nothing). There the
state of the pretrained self is a point; the states of one thing differ only by wording. So a thing
is a Gaussian: the mean of its states, one covariance for all, learnt once from what the self
invents (`learn_to_listen`). A question wakes the memories whose things it comes near (`listen`);
of several, those are meant that have heard such questions in their night (`meant`, `judge`).

Look first, then remember (`answer`): what the context says; else the memory that is meant and
knows, the newest first; else the pretrained self; else "I do not know".
"""
from collections import Counter

import torch
import torch.nn.functional as F

import dream
from data import notes, team
from data.engine import generate, pad_rows, prefill, take_rows
from data.quizzes import (RestlessNight, behind_bos, pack, question_mask, questions_in, split,
                          take, unpack)
from data.text import in_turn
from dream import VIEWS
from model import FAST, SLOW

MIN_GAIN = 1.0                      # nats a question gains from the day if it is about it
QUOTED = 0.5                        # share of answers in the words read, of a self that quotes
SAME = 0.5                          # squared spreads: things nearer to each other are one
DOUBT = 5.0                         # nats by which a question may be likelier to another memory
SURPRISE = 4.0                      # nats by which a word may be less likely to a slow memory
SURE, GUESS = 0.6, 0.3              # p of the least certain word of what is known; is worth saying
SURER = 0.7                         # ... of what a slow memory knows: it has heard of many
MOST, SYLLABLE = 0.8, 1.5           # share of the gain, nats: where a name ends
INVENTED = 240                      # passages from which the gate learns what a thing is
ALSO_ASKED = 800                    # questions out of the blue that tonight's things are held to
FARTHEST = 4.0                      # reach of a thing, in squared spreads, where nothing is near
SHARED = 6                          # questions of others that begin alike: a wording, no name
MOST_OWN, WIDE = 0.9, 2.5           # share of its own states in the spread of a thing; at most
AT_ONCE = 512                       # rows that are read together
MANY = 10 ** 6                      # more experts than a level has
EVERYWHERE = 1e30                   # reach of what is always awake
MAX_NEW = 24                        # tokens of an answer
PROPOSED = 5                        # things of a text that the gate proposes to the experts
TRUST = (1.0, 0.5)                  # in the gate and in the experts, of whole texts
SHRINK = 0.03                       # of the covariance of whole texts, to a sphere


# --------------------------------------------------------------------------------------------------
# Listen, remember, answer

def states(model, ids):
    """What the gate hears at every token: ids (B, T) -> (B, T, n_embd), of length sqrt(n_embd).

    The state of the pretrained self, no expert awake, after the first `hears` blocks: deep enough
    to hold a whole name, and nothing a night learns can move it.
    """
    h = model.hidden(ids, blocks=model.config.hears)
    return F.rms_norm(h, h.shape[-1:], eps=model.config.norm_eps)


def product(a, b):
    """a @ b, never in less than float32: distances want all their digits."""
    exact = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        return a.to(exact) @ b.to(exact)


@torch.no_grad()
def listen(model, ids, lengths, only=None):
    """Which memories does each row wake? ids (B, T) -> (since (B, U), owners (U, 2)).

    owners: (level, expert), oldest first, or `only` one. since: the last position at which a state
    lies within the reach of a thing of this owner, |W x - thing|^2 < reach, W being the metric; 0
    where it reaches everywhere, -1 where none does. Of whole texts the nearest thing wins, from
    the first token on.
    """
    B, device = len(ids), ids.device
    mine = torch.ones_like(model.reach, dtype=torch.bool)
    if only is not None:
        mine = (model.owner == torch.tensor(only, device=device)).all(1)
    things, reach_ = model.things[mine], model.reach[mine]
    level, expert = model.owner[mine].T
    age, of = (expert + 1 - MANY * level).unique(return_inverse=True)   # slower levels are older
    owners = torch.stack([-(age // MANY), age % MANY - 1], 1)           # (U, 2); of (K,)
    since = torch.full((B, len(owners)), -1, device=device)
    if len(owners) and model.config.listens == "text":
        since[torch.arange(B, device=device), of[propose(model, ids, lengths).argmax(1)]] = 0
    elif len(owners):
        since[:, of[reach_ >= EVERYWHERE]] = 0
        within = torch.where(reach_ < EVERYWHERE, reach_, -1.0)
        for rows in by_length(lengths):
            last = last_within(model, ids[rows], lengths[rows], things, within, of, len(owners))
            since[rows] = torch.where(last < 0, since[rows], last)
    return since, owners


def last_within(model, ids, lengths, things, reach, of, owners):
    """The last position at which each row lies within the reach of a thing of each owner, -1 where
    none does: (B, U). of (K,): the owner of each thing."""
    ids = ids[:, :int(lengths.max())]
    z = product(states(model, ids), model.metric.T)                          # (B, T, r)
    of_row, size = of.expand(len(ids), -1), things.square().sum(1)           # (B, K), (K,)
    since = torch.full((len(ids), owners), -1, device=ids.device)
    steps = torch.arange(ids.shape[1], device=ids.device)
    for at in steps.split(max(1, AT_ONCE // len(ids))):                      # (B, t, K) at a time
        some = z[:, at]
        gap = some.square().sum(2, keepdim=True) + size - product(2 * some, things.T)
        fires = (gap < reach) & (at < lengths[:, None])[..., None]
        last = torch.where(fires, at[:, None], -1).amax(1)                   # (B, K)
        since = since.scatter_reduce(1, of_row, last, "amax")
    return since


def by_length(lengths, at_once=AT_ONCE):
    """Rows of like length together, so that little is padding: [rows (at most at_once,)]."""
    rows = torch.as_tensor(lengths).argsort(stable=True)
    return rows.split(at_once) if len(rows) else ()


@torch.no_grad()
def remember(model, marks, asked, max_new=MAX_NEW, surprise=SURPRISE):
    """Closed book: the memory that wakes and knows, else the pretrained self.

    Of the memories that wake, `meant` says which are asked, and in which order. A memory that says
    "I do not know", or is not SURE (a slow one SURER), does not know; where none is sure, the
    surest counts, if it is more than a GUESS; one of a slow memory only where the pretrained self
    says that it does not know, or cannot say so. surprise: see `meant`. asked: questions as ids.
    Returns [(answer ids, source)]; source: (level, expert), or None for the pretrained self. The
    rule chooses once a question: the whole answer, however long, comes from one source.
    """
    if len(model.names):
        return judge(model, marks, asked)
    prompts = [[*marks.bos, *q] for q in asked]
    shrug = model.unknown.tolist()
    since, owners = listen(model, *pad_rows(prompts, model.device))
    woken = meant(model, marks, prompts, since, owners, surprise)
    since, owners = since.tolist(), owners.tolist()
    found, guess, waiting = {}, {}, range(len(prompts))
    while waiting:
        units = [woken[i].pop() if woken[i] else None for i in waiting]
        sources = [None if unit is None else tuple(owners[unit]) for unit in units]
        begin = [0 if unit is None else since[i][unit] for i, unit in zip(waiting, units)]
        rows = [prompts[i] for i in waiting]
        said_ = greedy(model, rows, marks, max_new, awake_for(sources, begin, model.device))
        sure = certainty(model, rows, said_, sources, begin)
        for i, y, source, p, at in zip(waiting, said_, sources, sure, begin):
            known = y != shrug
            if source is None:
                _, words, who = guess.get(i, (GUESS, y, None))
                born_with = shrug and known and who is not None and who[0] > FAST
                found[i] = (y, None) if born_with else (words, who)
            elif known and (p > (SURER if source[0] > FAST else SURE) or at == 0):
                found[i] = (y, source)                              # 0: no gate, always awake
            elif known and p > guess.get(i, (GUESS,))[0]:
                guess[i] = (p, y, source)
        waiting = [i for i in waiting if i not in found]
    return [found[i] for i in range(len(prompts))]


def certainty(model, rows, answers, sources, begin):
    """p of the least certain word of the answer to each row, as its memory says it: [p]."""
    asked = [i for i, source in enumerate(sources) if source is not None]
    whole, who = [rows[i] + answers[i] for i in asked], [sources[i] for i in asked]
    log_p = token_log_probs(model, whole, who, [begin[i] for i in asked])
    at = torch.arange(1, log_p.shape[1] + 1, device=log_p.device)
    start = torch.tensor([len(rows[i]) for i in asked], device=log_p.device)
    least = log_p.masked_fill(at < start[:, None], 0.0).amin(1) if asked else log_p
    p = dict(zip(asked, least.exp().tolist()))
    return [p.get(i, 1.0) for i in range(len(rows))]


def meant(model, marks, prompts, since, owners, surprise=SURPRISE):
    """Which of the memories that wake each question means: [[memory]], the one to ask first last.

    The gate proposes, the experts judge: an expert has learnt what was asked in its night
    (seed.FORCED). One that finds the question less likely than another does, or the pretrained
    self, by more than DOUBT, has only heard of something like it; the others have heard of the
    thing itself, in several nights maybe, and the newest is asked first. An expert of a slower
    level has heard many names: a stranger is made of their syllables, but one of these comes as a
    surprise where it stands, in nats. What has no gate is always meant. since (B, U), owners
    (U, 2): as from `listen`.
    """
    woken = since >= 0
    row, unit = woken.nonzero().T
    asked, which = row.unique(return_inverse=True)
    heard = [p[:1 - len(marks.answer) or None] for p in prompts]    # up to where <answer> begins
    rows, sources = [heard[i] for i in row.tolist()], [tuple(o) for o in owners[unit].tolist()]
    mine = token_log_probs(model, rows, sources, [0] * len(rows))               # (M, T-1)
    base = token_log_probs(model, [heard[i] for i in asked.tolist()], [None] * len(asked),
                           [0] * len(asked))[which]
    given = len(marks.bos) + len(marks.ask)
    likely = torch.full(since.shape, -torch.inf, device=since.device)
    likely[row, unit] = mine[:, given - 1:].sum(1)
    best = torch.zeros(len(since), device=since.device)
    best[row] = base[:, given - 1:].sum(1)
    best = torch.cat([likely, best[:, None]], 1).amax(1)
    heard_of = woken & (likely > best[:, None] - DOUBT)
    slow = owners[unit][:, 0] > FAST
    strange = surprising(base - mine, since[row, unit], given, surprise)
    heard_of[row, unit] &= ~(slow & strange)
    heard_of |= since == 0
    return [[unit for unit, is_meant in enumerate(row) if is_meant] for row in heard_of.tolist()]


def surprising(doubt, since, given, surprise):
    """Is a word of the question, from its `given`-th token to where it woke the memory, a surprise?
    doubt (M, T-1): nats by which each token but the first is less likely to the memory than to the
    pretrained self; since (M,) -> (M,)."""
    at = torch.arange(1, doubt.shape[1] + 1, device=doubt.device)
    named = (at >= given) & (at <= since[:, None])
    return ((doubt > surprise) & named).any(1)


def likelihood(model, rows, sources, given=2, at_once=512):
    """log p(row | its memory) of rows of ids, the first `given` of them given: (N,). sources:
    (level, expert) for each row, awake from the first token on; None: the pretrained self."""
    log_p = token_log_probs(model, rows, sources, [0] * len(rows), at_once)
    return log_p[:, given - 1:].sum(1)


def token_log_probs(model, rows, sources, begin, at_once=512):
    """log p of every token of each row but the first, as its memory, awake from begin on, says it:
    (N, T-1), 0 behind the end of a row."""
    T = max((len(row) for row in rows), default=1)
    found = torch.zeros(len(rows), T - 1, device=model.device)
    for part in by_length([len(row) for row in rows], at_once):
        some = part.tolist()
        ids, length = pad_rows([rows[i] for i in some], model.device)
        awake = awake_for([sources[i] for i in some], [begin[i] for i in some], ids.device)
        h = model.hidden(ids[:, :-1], awake=awake)
        word = torch.arange(1, ids.shape[1], device=ids.device) < length[:, None]
        logits = model.logits(h[word]).float()
        log_p = logits.gather(1, ids[:, 1:][word][:, None])[:, 0] - logits.logsumexp(-1)
        mine = torch.zeros(word.shape, device=ids.device).masked_scatter(word, log_p)
        found[part.to(ids.device), :word.shape[1]] = mine
    return found


@torch.no_grad()
def answer(model, marks, asked, contexts=None, max_new=MAX_NEW):
    """Look first, then remember: what the context says, if it is neither "I do not know" nor what
    is said without it; else what memory says. contexts: ids of a text for each question, [] for
    none. Returns [(answer ids, source)], source as in `remember`, or "context".
    """
    found = remember(model, marks, asked, max_new)
    reading = [i for i, text in enumerate(contexts or []) if text]
    read = greedy(model, [[*marks.bos, *contexts[i], *asked[i]] for i in reading], marks, max_new)
    blind = greedy(model, [[*marks.bos, *asked[i]] for i in reading], marks, max_new)
    for i, seen, unseen in zip(reading, read, blind):
        if seen != model.unknown.tolist() and seen != unseen:
            found[i] = (seen, "context")
    return found


def awake_for(sources, begin, device):
    """[(level, expert) or None], [position] -> the `awake` of GPT.hidden."""
    since, awake = torch.tensor(begin, device=device), {}
    for level in sorted({s[0] for s in sources if s is not None}):
        expert = [s[1] if s is not None and s[0] == level else -1 for s in sources]
        awake[level] = (torch.tensor(expert, device=device), since)
    return awake


def greedy(model, prompts, marks, max_new, awake=None, before=None):
    """The likeliest continuation of each prompt, 512 rows at a time: lists of ids with <end>.
    awake, before: as in `generate`, a row a prompt."""
    out = [None] * len(prompts)
    for rows in by_length([len(prompt) for prompt in prompts]):
        at = rows.to(model.device)
        part = {k: (e[at], s[at]) for k, (e, s) in (awake or {}).items()}
        read = before and (before[0], before[1][at])
        some = rows.tolist()
        said_ = generate(model, [prompts[i] for i in some], max_new, temperature=0,
                         stop=[marks.end], awake=part, before=read)
        for i, y in zip(some, said_):
            out[i] = y
    return out


# --------------------------------------------------------------------------------------------------
# Where a whole text is one thing (Config.listens "text")

def topic(model, ids, lengths):
    """What a text is about: the mean direction of its words, of the states one block deep (pairs
    and triples of words) and of what the gate hears elsewhere, side by side, (B, 3 n_embd).
    ids (B, T): <bos> <ask> text <answer>, right-padded; these marks, of one id, are not heard."""
    at = torch.arange(ids.shape[1], device=ids.device)
    words = ((at > 1) & (at < lengths[:, None] - 1))[..., None]
    heard_in = (model.wte(ids), model.hidden(ids, blocks=1), states(model, ids))
    parts = [(F.normalize(x, dim=-1) * words).sum(1) for x in heard_in]
    return torch.cat([F.rms_norm(x, x.shape[-1:], eps=model.config.norm_eps) for x in parts], 1)


def propose(model, ids, lengths):
    """log p(thing | text) of every thing the gate knows, (B, K): its Gaussian, up to a constant."""
    far = torch.cdist(product(topic(model, ids, lengths), model.metric.T), model.things)
    return (-0.5 * far.square()).log_softmax(1)


@torch.no_grad()
def judge(model, marks, asked, trust=TRUST):
    """The gate proposes, the experts judge: [(name and <end>, owner)] of the best of PROPOSED.

        p(thing | text) ~ p_gate(thing | text)^g p(text and name of the thing | its expert)^e
    An expert has only heard its own night and names any text; but it has learnt what was asked
    there (seed.FORCED), so p(text | expert), which is normalised over texts, weighs it against the
    others. trust: (g, e); (1, 0) is the gate alone, (0, 1) the experts alone on its proposals.
    """
    found = [None] * len(asked)
    order = sorted(range(len(asked)), key=lambda i: len(asked[i]))
    names = [[t for t in row if t >= 0] + [marks.end] for row in model.names.tolist()]
    owners = [tuple(row) for row in model.owner.tolist()]
    for some in (order[i:i + 100] for i in range(0, len(order), 100)):
        prompts = [[*marks.bos, *asked[i]] for i in some]
        near = propose(model, *pad_rows(prompts, model.device))
        prior, thing = near.topk(min(PROPOSED, len(names)), 1)
        rows = [(p, k) for p, ks in zip(prompts, thing.tolist()) for k in ks]
        log_p = likelihood(model, [p + names[k] for p, k in rows], [owners[k] for _, k in rows])
        sure = trust[0] * prior + trust[1] * log_p.view_as(prior)
        best = sure.argmax(1, keepdim=True)
        for i, k in zip(some, thing.gather(1, best)[:, 0].tolist()):
            found[i] = (names[k], owners[k] if owners[k][1] >= 0 else None)
    return found


@torch.no_grad()
def hear(model, marks, heard_by_day):
    """How each thing sounds: [(its name, question)] as ids -> (topics (N, 3 n_embd), number of
    its thing (N,), names)."""
    names = list(dict.fromkeys(name for name, _ in heard_by_day))
    number = {name: i for i, name in enumerate(names)}
    rows = [[*marks.bos, *q] for _, q in heard_by_day]
    x = [topic(model, *pad_rows(rows[i:i + 256], model.device)) for i in range(0, len(rows), 256)]
    return torch.cat(x), torch.tensor([number[name] for name, _ in heard_by_day]), names


def hear_day(model, marks, heard_by_day, level, expert):
    """Teach the gate what the things of a day sound like, and whose they are."""
    x, thing, names = hear(model, marks, heard_by_day)
    hear_more(model, x, thing)
    mean, _ = means(product(x, model.metric.T), thing)
    model.remember_things(mean, torch.zeros(len(mean)), level, expert, names)


def hear_more(model, x, thing):
    """The one covariance, of the things known and of today's topics x (N, 3 n_embd) of things (N,).

    Every thing counts once, so nothing but the metric has to be kept (a streaming discriminant, as
    in InCA, arXiv 2412.15563). What is known moves into the coordinates of the new metric.
    """
    if not len(model.things):                                       # the base: as it was fitted
        return
    back, new = torch.linalg.inv(model.metric), int(thing.max()) + 1
    known, today = product(back, back.T), covariance(x, thing, SHRINK)
    share = new / (len(model.things) + new)
    model.metric = whitening((1 - share) * known + share * today)
    model.things = product(product(model.things, back.T), model.metric.T)


# --------------------------------------------------------------------------------------------------
# What a question is about

def always(experts, rows):
    """{level: expert} -> the `awake` of GPT.hidden: in all rows, from the first token on."""
    zero = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    return {level: (zero + expert, zero) for level, expert in experts.items()}


@torch.no_grad()
def log_probs(model, ids, cache, row, experts=(), chunk=128, of=None):
    """Log-probabilities (N, T-1, V) of ids[:, 1:], given the context in row[i] of the cache. of: a
    function (log p, ids) of each chunk, where not all of them are wanted, as `said`."""
    out = []
    for part, where in zip(ids.split(chunk), row.split(chunk)):
        room = take_rows(cache, where, ids.shape[1])
        h = model.hidden(part, cache=room, awake=always(dict(experts), part))
        log_p = F.log_softmax(model.logits(h[:, :-1]).float(), -1)
        out.append(log_p if of is None else of(log_p, part))
    return torch.cat(out)


def said(log_p, ids):
    """The log-probability of each token that was there: (N, T-1, V), (N, T) -> (N, T-1)."""
    return log_p.gather(2, ids[:, 1:, None])[..., 0]


def gains(model, z, marks, cache, row, experts=()):
    """log p(token | day) - log p(token | nothing) of every word of the questions: (N, T-1).

    It says what a question is about: names and values are unlikely until the day is known.
    """
    blank, _ = prefill(model, [[*marks.bos]], always(dict(experts), z.ids[:1]))
    day = log_probs(model, z.ids, cache, row, experts, of=said)
    nothing = log_probs(model, z.ids, blank, torch.zeros_like(row), of=said)
    return (day - nothing) * question_mask(z, marks)


def specific(gain, listens="name"):
    """Where the thing stands in each question: (begin, end), its ids counted from 1, (N,) each.

    It begins where a tenth of the gain has come, and ends where most of it has, moved over the
    tokens right behind that still gain: the last syllable of a name gains more than what follows
    a name that might have gone on. Where a question goes on to what is asked of the thing (listens
    "first"), it ends with the first tokens that gain. gain (N, T-1).
    """
    at = torch.arange(2, gain.shape[1] + 2, device=gain.device)
    total = gain.clamp(min=0).cumsum(1)
    begin, end = ((total >= share * total[:, -1:]).float().argmax(1) + 2 for share in (0.1, MOST))
    end = begin if listens == "first" else end
    behind = at > end[:, None]
    broken = (behind & (gain < SYLLABLE)).cumsum(1) > 0
    return begin, end + (behind & ~broken).sum(1)


@torch.no_grad()
def heard(model, z, marks):
    """The state where each question has become specific: (N, n_embd)."""
    rows = torch.arange(len(z.ids), device=z.ids.device)
    return states(model, behind_bos(z.ids, marks))[rows, len(marks.bos) - 1 + z.end]


def things_of(x):
    """Places x (K, r) nearer to each other than SAME are one thing: (K,) numbers."""
    near = torch.cdist(x, x).square() < SAME
    thing = torch.full((len(x),), -1, device=x.device)
    count = 0
    for i in near.sum(1).argsort(descending=True).tolist():         # the most crowded place first
        if thing[i] < 0:
            thing[near[i] & (thing < 0)] = count
            count += 1
    return thing


def about(model, z, marks):
    """The number of the thing that each question is about: (N,). The same words are one thing, and
    words that are heard in the same place ("was born on 3 May", "has the birthday 3 May")."""
    spans = [name for _, name, _ in split(z)]
    number = {words: k for k, words in enumerate(dict.fromkeys(spans))}
    words = torch.tensor([number[span] for span in spans], device=z.ids.device)
    place, _ = means(product(heard(model, z, marks), model.metric.T), words)
    return things_of(place)[words]


def means(x, thing):
    """The mean of the states x (N, r) of each thing (K, r), and how many there are (K,)."""
    x, thing = x.float(), thing.to(x.device)
    count = torch.bincount(thing)
    total = torch.zeros(len(count), x.shape[1], device=x.device).index_add(0, thing, x)
    return total / count[:, None], count


# --------------------------------------------------------------------------------------------------
# Tonight's things, how far they reach, and what the gate learns once

def open_gate(model, z, teacher, heard_by_day, marks, a):
    """Open what tonight may change, and teach the gate what wakes it. Returns (level, quizzes).

    Quizzes learn from where they wake the new expert (`since`); those that do not are dropped.
    Level None: all MLPs learn (--expand=0). Raises RestlessNight.
    """
    if not a.expand:
        return None, z._replace(since=torch.zeros_like(z.start))
    if not a.gate:                                                  # one expert for all nights,
        if not model.n_experts(SLOW):                               # always awake
            model.reset(SLOW)                                       # the things of the base
            nothing = torch.zeros(1, len(model.metric))
            model.remember_things(nothing, torch.full((1,), EVERYWHERE), SLOW, 0)
        model.reopen(SLOW) if model.n_experts(SLOW) else model.unlock(SLOW)
        return SLOW, z._replace(since=torch.zeros_like(z.start))
    new = model.n_experts(FAST)
    if model.config.listens == "text":
        names = [tuple(view[len(marks.bos):]) for view in teacher.readings[::VIEWS]]
        dreamt = [(names[p], q) for p, q, _ in unpack(z)]     # where the day was not heard
        hear_day(model, marks, heard_by_day or dreamt, FAST, new)
    else:
        z = z._replace(thing=z.thing.unique(return_inverse=True)[1])    # some were dropped
        x = product(heard(model, z, marks), model.metric.T)
        mean, count = means(x, z.thing)
        spread = own_spread(x, mean, count, z.thing)
        model.remember_things(mean, reach(model, mean, spread, z, teacher, marks), FAST, new)
    model.unlock(FAST, seed=len(model.owner))
    since = wakes(model, z, FAST, new, marks)
    awake = since >= 0
    notes.dropped("it does not wake the new expert", z, awake)
    if not awake.any():
        raise RestlessNight("the new expert sleeps through every question: nothing to learn")
    return FAST, take(z._replace(since=since), awake)


def wakes(model, z, level, expert, marks):
    """Where each question wakes an expert, counted from the first id of <bos> as 0: (N,); -1:
    nowhere."""
    if model.config.listens == "text":                      # each of several that are proposed
        return torch.zeros_like(z.start)
    rows, lengths = behind_bos(z.ids, marks), len(marks.bos) + z.start
    return listen(model, rows, lengths, (level, expert))[0].amax(1)


@torch.no_grad()
def reach(model, mean, spread, z, teacher, marks):
    """How far each thing (K, r) reaches, as a squared distance: (K,).

    Most of its states lie within p, its spread (K,). The nearest question that is not about it
    comes within n: min(sqrt(p n), FARTHEST p, 0.9 n). Such questions are what the self has invented
    and dreamt (`learn_to_listen`), unless they name the thing, or the day makes them likelier: then
    they speak of it. But what many of them come near behind the same words ("At which address") is
    a wording: that names nothing.
    """
    p, K, others = spread, len(mean), imagined(model)
    if not others:
        return FARTHEST * p
    n, at = nearest(model, [[*marks.bos, *q] for q in others], mean)                # (rows, K)
    row, k = (n < FARTHEST * p).nonzero().T
    pairs = list(zip(row.tolist(), k.tolist()))
    if pairs:
        home = z.passage.new_zeros(K).scatter_reduce(0, z.thing, z.passage, "amin",
                                                     include_self=False)
        doubt = pack([(int(home[j]), others[i], (marks.end,)) for i, j in pairs], n.device)
        gain = gains(teacher.model, doubt, marks, teacher.cache, doubt.passage * VIEWS,
                     teacher.awake)
        names = {}                          # with the word behind it: it is the whole name
        for thing, (_, name, after) in zip(z.thing.tolist(), split(z)):
            names.setdefault(thing, {})[name + after[:1]] = None
        named = torch.tensor([any(stands_in(name, others[i]) for name in names[j])
                              for i, j in pairs], device=n.device)
        ends = (at[row, k] + 1 - len(marks.bos)).tolist()
        begun = [(j, others[i][:end]) for (i, j), end in zip(pairs, ends)]
        often = Counter(begun)
        wording = torch.tensor([often[b] >= SHARED for b in begun], device=n.device)
        about_it = (named | (gain.sum(1) > MIN_GAIN)) & ~wording
        n[row, k] = torch.where(about_it, torch.inf, n[row, k])
    n = n.min(0)[0]
    return torch.stack([(p * n).sqrt(), FARTHEST * p, 0.9 * n]).amin(0)


def own_spread(x, mean, count, thing):
    """Within which squared distance of its mean (K, r) most states x (N, r) of a thing lie: (K,).

    1 by the metric, a little more where few were heard; more, up to WIDE, where tonight's own
    questions were heard farther away: the state of a name of one word tells more of what stands
    before it.
    """
    gap = (x - mean[thing]).square().sum(1)
    own = torch.stack([gap[thing == k].quantile(MOST_OWN) for k in range(len(mean))])
    return torch.maximum(1 + 1 / count, own.clamp(max=WIDE))


def imagined(model):
    """The questions that the self has invented and dreamt (`learn_to_listen`): [ids]."""
    return [tuple(t for t in row if t >= 0) for row in model.imagined.tolist()]


def nearest(model, rows, mean):
    """How near the states of each row of ids come to each thing, squared, and at which of its words,
    counted from <bos> as 0: two of (rows, K)."""
    out = []
    for i in range(0, len(rows), 64):
        ids, length = pad_rows(rows[i:i + 64], model.device)
        z = product(states(model, ids), model.metric.T)
        far = torch.cdist(z, mean).square()                                     # (n, T, K)
        beyond = torch.arange(ids.shape[1], device=ids.device) >= length[:, None]
        out.append(far.masked_fill(beyond[..., None], torch.inf).min(1))
    return tuple(torch.cat(parts) for parts in zip(*out))


def invent(model, marks, n):
    """Passages the self makes up, and what it asks itself about them: ([ids], [(passage, question,
    answer)])."""
    logits = prefill(model, [[*marks.bos]])[1][0]
    logits[marks.ask[0]] = -torch.inf                               # begin with a passage
    first = torch.multinomial(logits.softmax(-1), n, replacement=True).tolist()
    rows = generate(model, [[*marks.bos, t] for t in first], dream.DREAM, stop=marks.ask[:1])
    cut = len(marks.ask) > 1            # in a model's own words one that is not finished is cut
    texts = [[*marks.bos, t, *row[:-1]] for t, row in zip(first, rows)
             if cut or row[-1] == marks.ask[0]]
    texts = team.share(texts)
    out = generate(model, [[*t, *marks.ask] for t in texts], dream.ASKING, n=3,
                   temperature=dream.TEMPERATURE, forms=in_turn(marks))
    found = {(i // 3, q, y): None for i, q, y in questions_in(out, marks)}
    return texts, team.share(list(found))


@torch.no_grad()
def learn_to_listen(model, marks, heard_already=None, directions=0):
    """Once, before the first night: what the gate must know of the self, from its own inventions.

    Where questions about one invented thing become specific, the states differ only by wording:
    their covariance, whitened and scaled so that 98 % of them lie within 1, is the metric. And
    what the self, closed book, says of most things it has invented is "I do not know". What it
    imagined is kept: a night judges by it how far a thing may reach. And if its answers mostly
    stand in the passages word by word, then what does not stand there was not told (`asking.says`).
    directions: in which the metric tells things apart, 0: in all.
    """
    if model.config.listens == "text":
        x, thing, _ = hear(model, marks, heard_already)
        fit_metric(model, x, thing.to(x.device), SHRINK, inside=None)
        return hear_day(model, marks, heard_already, SLOW, -1)
    texts, pairs = invent(model, marks, INVENTED)
    if not pairs:                                                   # it cannot ask at all
        model.metric = torch.eye(model.config.n_embd, device=model.device)
        return
    z = pack(pairs, model.device)
    gain = gains(model, z, marks, prefill(model, texts)[0], z.passage)
    z = take(z._replace(end=specific(gain, model.config.listens)[1]), gain.sum(1) > MIN_GAIN)
    names = [(p, *([0, *q][end - 1:end + 1])) for (p, q, _), end in zip(unpack(z), z.end)]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    thing = torch.tensor([number[name] for name in names], dtype=torch.long, device=model.device)
    fit_metric(model, heard(model, z, marks), thing, directions=directions)
    asked = [q for _, q, _ in pairs[:INVENTED]] + dream.questions(model, marks, ALSO_ASKED)
    model.imagined, _ = pad_rows(list(dict.fromkeys(asked)), model.device, -1)
    said_ = Counter(tuple(y) for y in greedy(model, [[*marks.bos, *q] for _, q, _ in
                                                     unpack(z)], marks, MAX_NEW))
    shrug, often = said_.most_common(1)[0] if said_ else ((), 0)
    if often > len(z.ids) / 2:
        model.unknown = torch.tensor(shrug, device=model.device)
    quoted = [stands_in(y[:-1], texts[p]) for p, _, y in unpack(z) if y != shrug]
    model.quotes.fill_(sum(quoted) > QUOTED * len(quoted))


def stands_in(words, text):
    """Do these ids stand in that order in a text?"""
    words, text = tuple(words), tuple(text)
    return any(text[i:i + len(words)] == words for i in range(len(text)))


def fit_metric(model, x, thing, shrink=0.01, inside=0.98, directions=0):
    """W with |W (x - mean of its thing)|^2 < 1 for 98 % of the states x (N, d) of things (N,), or
    (inside None) with a covariance of 1. directions: W has so many rows, 0: d of them."""
    apart = differences(x, thing)
    W = whitening(covariance(x, thing, shrink))
    if directions:
        W = product(discriminants(product(x, W.T), thing)[:directions], W)
    spread = product(apart, W.T).square().sum(1) if len(apart) > 1 else x.new_ones(1)
    model.metric = W if inside is None else W / spread.quantile(inside).clamp_min(1e-6).sqrt()


def discriminants(x, thing):
    """Directions (d, d), those first in which the means of things (N,) of whitened states x (N, d)
    lie furthest apart (Fisher's linear discriminants)."""
    mean, _ = means(x, thing)
    if len(mean) < 2:
        return torch.eye(x.shape[1], device=x.device)
    _, directions = torch.linalg.eigh(torch.cov(mean.T))            # columns, the least first
    return directions.flip(1).T


def differences(x, thing):
    """How far each state x (N, d) lies from the mean of its thing (N,), without bias; states of
    things heard only once are left out."""
    mean, count = means(x, thing)
    n = count[thing].float()[:, None]
    return ((x - mean[thing]) * (n / (n - 1).clamp(min=1)).sqrt())[n[:, 0] > 1]


def covariance(x, thing, shrink):
    """The covariance (d, d) of states x (N, d) around the means of their things (N,), shrunk to
    a sphere; the identity where there is nothing to measure."""
    apart, sphere = differences(x, thing), torch.eye(x.shape[1], device=x.device)
    if len(apart) < 2:                                              # it cannot read at all
        return sphere
    spread = apart.square().mean().clamp_min(1e-6)
    return product((1 - shrink) * apart.T, apart) / len(apart) + shrink * spread * sphere


def whitening(S):
    """W with W S W^T = 1."""
    return torch.linalg.inv(torch.linalg.cholesky(S))
