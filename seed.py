"""
seed.py: a night, and Knowledge Seeding.

Chapter two of nanoSleep ([S] = Language Models Need Sleep, arXiv 2606.03979, section 3.3). The day
stands in the context of the teacher: the self before sleep. The student is the same self with a
new low-rank expert and an empty context. Everything is sampled from these two; no outside data, no
ground truth. Text is token ids; the only symbols known are the four marks of the format
<bos> passage (<ask> question <answer> answer <end>)*.

    max  E [ (1 - alpha) r(y) - alpha D(teacher || student)(y | x) ]                     ([S] 3.3)

That is the night of --paper. By default labels alone are learnt, the teacher's own answers y:
max E [ log student(y | x) ], nothing on-policy, no dreaming. It keeps as much (bench/README.md).

Simplifications. The context is cleared at the end of the night, after dreaming, because the
self-made quiz is the judgement of the self that holds it. Imitation masks a dream after its
question, not at random. The period of a level counts nights, not tokens. The gate, the screen,
mishearing and Muon are ours.
"""
import math
import random

import torch
import torch.nn.functional as F
from tqdm import tqdm

import dream
from data import asking, notes, team
from data.asking import look_back, look_up, screen
from data.engine import generate, pad_rows, prefill
from data.gate import MAX_NEW, always, log_probs, open_gate, said, wakes
from data.kernels import in_chunks, levenshtein, muon
from data.quizzes import (RestlessNight, answer_mask, answers_of, closed_book, pack, question_mask,
                          shorten, take, unpack, words_of)
from data.rehearsal import bits_of, known_again, rehearse
from data.text import pad_documents, symbols
from dream import VIEWS, Teacher
from model import FAST, clone

STEPS, STUDIED, LEAST = 3, 10, 120  # of distillation, a fact; a studied thing; in all, at least
USUAL = 24                          # sentences of a day: a shorter one is asked about more often
BATCH, LR = 32, 0.18                # quizzes a step; peak rate (Muon)
SHRUGS = 0.4                        # how often "I do not know" is learnt: there is so much unknown
MLP_LR = LR / 5                     # whole MLPs want smaller steps than a new expert
DREAM_STEPS = 20                    # on the curriculum, after dreaming
STUDY_STEPS = 120                   # of the fast level, awake, on a day too long for the context
WARMUP, LATE, GROUP = 8, 0.7, 4     # steps; from when on some are on-policy; rollouts a question
FORCED, ASK_WEIGHT = 8, 0.3         # rows of a step that teach an expert to ask about its night
MISHEARD = 0.15                     # share of a question's wording that the student hears wrongly
ALPHA, GAMMA, NEAR = 0.9, 0.5, 2    # divergence against imitation; semantic share; r_abs: edits
ON_POLICY_KIND, BETA = "reverse", 0.5    # of divergence; of the Jensen-Shannon divergence
REPLAYED, REPLAY_WEIGHT = 320, 8.0  # dreams that protect what is old where there is no gate
MOVE_STEPS = 3                      # of a move, a fact
MOVE_LEAST, MOVE_MOST = 500, 12000  # in all: at least, at most
AT_LAST = 0.25                      # share of them for what is about to be lost
BITS, LEAST_RANK = 0.4, 16          # a parameter of a slower expert is to hold; its least rank
STILL_KNOWN = 0.85                  # share of its quizzes that a move must keep


# --------------------------------------------------------------------------------------------------
# The night

def night(model, day, marks, a):
    """One night: the day moves from the context into the model, in place. Returns its log.

    day: passages (lists of sentences of ids) that the teacher holds in its context, and documents
    to study where they are too many; nothing else is ever seen of it. a: the flags of sleep.py.
    log["lost"]: the passages that the self could not learn. Raises RestlessNight.
    """
    cold = clone(model, a.expand)                               # the self without its day
    alone = asking.one_by_one(day)
    teacher = hold(cold, alone, marks)                          # the same self, the day in mind
    often = a.quizzes if day.study else a.quizzes * max(1, USUAL // len(alone.passages))
    dreamt = dream.write(teacher, marks, often, a.writer, a.random_expert)          # 1. write
    z = screen(teacher, dreamt, marks)                                              # 2. screen
    if model.config.listens == "text":                          # a passage is the name of a topic
        z = asking.named(teacher, z, marks, reader(teacher))
    else:                                                       # the day again, thing by thing
        z, things, found = asking.thing_by_thing(teacher, z, day, marks)
        teacher = hold(cold, things, marks)._replace(**found)
        z = asking.ask_everything(teacher, z, marks)
        z = look_up(teacher, z, marks, reader(teacher))
    teach = reader(teacher)
    level, z = open_gate(model, z, teacher, day.heard, marks, a)                    # 3. open a gate
    log = {"dreamt": len(dreamt), "kept": len(z.ids), "things": len(model.things)}
    params = learners(model, level)
    bank = replay_bank(cold, marks) if a.replay and not (a.gate and a.expand) else None
    if a.budget:                                                # learn from few dreams: choose them
        z = dream.choose_dreams(cold, z, z, marks, teach, a.select, a.budget, 0)
    work = STUDIED * len(z.thing.unique()) if day.study else STEPS * asking.facts_in(z)
    steps = a.seed_steps or max(LEAST, work)
    weights = torch.where(asking.shrugs(z, model.unknown), SHRUGS, 1.0)
    log |= distil(model, params, z, teach, marks, level, steps, a, weights, bank)   # 4. distil
    if a.dream:                                                                     # 5. dream
        pool, quiz = some(z, dream.POOL), some(z, dream.QUIZ)
        log |= dream.learn_to_dream(model, cold, pool, quiz, teacher, marks, teach,
                                    a.select, a.writer)
        weights = dream.curriculum(knows(model, z, marks, level)) if a.curriculum else None
        log |= distil(model, params, z, teach, marks, level, DREAM_STEPS, a, weights, bank)
    if level is not None:
        model.settle(level)                                                         # 6. settle
    model.requires_grad_(False)
    return log | look_back(model, cold, z, teacher, day, marks)


def some(z, n):
    """n quizzes of z at random, the same for every process of a team."""
    return take(z, team.share(torch.randperm(len(z.ids), device=z.ids.device)[:n].cpu()))


def learners(model, level):
    """The parameters that learn tonight: live experts, or (level None) the MLPs of all blocks."""
    model.requires_grad_(False)
    mlps = [m for b in model.blocks for m in (b.levels[-1].up, b.levels[-1].down)]
    params = [p for m in mlps for p in m.parameters()] if level is None else model.live(level)
    return [p.requires_grad_(True) for p in params]


# --------------------------------------------------------------------------------------------------
# The teacher: the self that holds the day

def hold(cold, day, marks):
    """The self before sleep with the day in its context -> Teacher. Raises RestlessNight.

    A day too long for the context is studied: the fast level learns it by gradient steps while
    awake ([S] Eq. 2), and its passages are only what to dream about.
    """
    if not any(day.passages):
        raise RestlessNight("the day was empty")
    model, awake = clone(cold, share=True), {}
    if day.study:
        awake = {FAST: model.n_experts(FAST)}
        study(model, day.study)
    readings = dream.views_of(day.passages, marks, random)
    rows = torch.zeros(len(readings), device=model.device)
    cache, _ = prefill(model, readings, always(awake, rows))
    blank = [[*marks.bos]] * len(readings)
    held = prefill(model, blank, always(awake, rows))[0] if day.study else cache
    return Teacher(model, readings, cache, held, awake, [{p} for p in range(len(day.passages))])


def study(model, documents):
    """Learn [(ids, weights)] into a new expert of the fast level: next-token loss, awake."""
    params = learners(model, (model.unlock(FAST) and FAST))
    momenta, expert = [torch.zeros_like(p) for p in params], model.n_experts(FAST) - 1
    for step in tqdm(range(STUDY_STEPS), desc="awake", unit="step", leave=False):
        docs = random.sample(documents, min(BATCH, len(documents)))
        ids, weight = pad_documents(docs)
        told = weight.flatten().nonzero()[:, 0]                     # only these become logits
        ids, told, w = (t.to(model.device) for t in (ids, told, weight.flatten()[told]))
        h = model.hidden(ids[:, :-1], awake=always({FAST: expert}, ids)).flatten(0, 1)[told]
        words = ids[:, 1:].flatten()[told]
        nll = F.cross_entropy(model.logits(h).float(), words, reduction="none")
        loss = (nll * w).sum() / w.sum()
        descend(params, momenta, loss, step, STUDY_STEPS, LR)
    model.settle(FAST)


def reader(teacher):
    """teach(quizzes, view=None) -> (N, T-1, V) log-probabilities of the self that holds the day,
    each given a reading of its passage: the one numbered `view`, or any."""
    def teach(z, view=None):
        if view is None:
            view = torch.randint(VIEWS, z.passage.shape, device=z.passage.device)
        row = z.passage.clamp(min=0) * VIEWS + view
        return log_probs(teacher.model, z.ids, teacher.held, row, teacher.awake)
    return teach


# --------------------------------------------------------------------------------------------------
# Distillation upward: the teacher, with its day, into the student without it

def divergence(teacher, student, kind="forward"):
    """Divergence of each row's two distributions, log-probabilities (..., V) -> (...), in nats.

    forward  D(T || S) = sum T (log T - log S)          reverse  D(S || T)
    jsd      beta D(T || M) + (1 - beta) D(S || M), M = beta T + (1 - beta) S
                                                        (GKD, arXiv 2306.13649, section 2)
    """
    def kl(p, q):
        return (p.exp() * (p - q)).sum(-1)
    if kind == "forward":
        return kl(teacher, student)
    if kind == "reverse":
        return kl(student, teacher)
    if kind != "jsd":
        raise ValueError(f"unknown divergence {kind!r}: choose forward, reverse or jsd")
    mixed = torch.logaddexp(teacher + math.log(BETA), student + math.log(1 - BETA))
    return BETA * kl(teacher, mixed) + (1 - BETA) * kl(student, mixed)


def distil(student, params, z, teach, marks, level, steps, a, weights=None, bank=None):
    """Train `params`, and nothing else, of the student on quizzes z. Returns logged means.

        L = (1 - lambda) E_{(x, y) ~ D} D(T || S)(y|x) + lambda E_{y ~ S} D(T || S)(y|x)
                                                                                (GKD, Eq. 1)
    lambda = a.on_policy, in the last steps: a cold student writes nonsense, on which the teacher
    can only comment. a.divergence: D; "sft": -log S(y|x) in its place. weights (N,): how often each
    quiz is drawn. bank: see `replay_bank`.
    """
    momenta, seen = [torch.zeros_like(p) for p in params], {}
    weights = torch.ones(len(z.ids), device=student.device) if weights is None else weights
    read = weights * ~z.recalled                                    # not answered from memory
    late = LATE * steps if bool(read.any()) else steps
    lr = LR if a.expand else MLP_LR
    own = torch.Generator().manual_seed(random.getrandbits(31) + team.RANK)
    weights, read, length = weights.cpu(), read.cpu(), z.length.cpu()   # drawn without waiting
    for step in tqdm(range(steps), desc="seeding", unit="step", leave=False, mininterval=1.0):
        if step >= late and random.random() < a.on_policy:
            assert_finite(params)                                   # before they are sampled from
            index = torch.multinomial(read, BATCH // GROUP, replacement=True, generator=own)
            batch = take(z, index.to(z.ids.device, non_blocking=True))
            loss, now = on_policy_loss(student, batch, teach, marks, level, a)
        else:
            index = torch.multinomial(weights, BATCH, replacement=True, generator=own)
            batch = take(z, index.to(z.ids.device, non_blocking=True))
            batch = shorten(batch, int(length[index].max()))
            loss = off_policy_loss(student, batch, marks, level, a.divergence)
            now = {"loss": loss.detach()}
        if bank is not None:
            loss = loss + REPLAY_WEIGHT * drift(student, bank, level, 16).mean()
        for name, value in now.items():
            seen[name] = [*seen.get(name, []), value][-20:]
        notes.step(student, z, marks, level, now)
        descend(params, momenta, loss, step, steps, lr)
    assert_finite(params)
    return {name: float(torch.stack(values).mean()) for name, values in seen.items()}


def assert_finite(params):
    """Raises RestlessNight where learning has left the numbers."""
    if not torch.stack([p.isfinite().all() for p in params]).all():
        raise RestlessNight("learning diverged: a weight is not a finite number")


def new_expert(student, level, since):
    """The expert that learns tonight, awake from `since` (N,) on."""
    if level is None:
        return None
    return {level: (torch.full_like(since, student.n_experts(level) - 1), since)}


def off_policy_loss(student, z, marks, level, kind):
    """E_{(x, y) ~ D} D(teacher || student)(y|x) over the words of the answers (GKD Eq. 1, left).

    The last FORCED rows are read with the expert awake from <bos> on: there it learns the
    questions of its night, so that it can dream them again.
    """
    z = z._replace(ids=mishear(z, marks, student.config.vocab_size))
    forced = take(z, slice(0, 0 if level is None else FORCED))
    ids = torch.cat([closed_book(z, marks), closed_book(forced, marks)])
    since = torch.cat([z.since, torch.zeros_like(forced.since)])
    h = student.hidden(ids, awake=new_expert(student, level, since))[:, len(marks.bos):]
    n, mask = len(z.ids), words_of(z).flatten()
    words = answers_of(z, h[:n]).flatten(0, 1)                      # (n * A, n_embd)

    def loss_of(h, t):
        log_p = F.log_softmax(student.logits(h).float(), -1)
        if kind == "sft":
            return -log_p.gather(1, t[:, None])[:, 0]
        return divergence(t, log_p, kind)
    target = answers_of(z, z.ids[:, 1:]) if kind == "sft" else z.target
    loss = (in_chunks(loss_of, words, target.flatten(0, 1)) * mask).sum() / mask.sum()
    if level is not None:
        asked = question_mask(forced, marks)
        logits = student.logits(h[n:]).float().transpose(1, 2)
        nll = F.cross_entropy(logits, forced.ids[:, 1:], reduction="none")
        loss = loss + ASK_WEIGHT * (nll * asked).sum() / asked.sum()
    return loss


def mishear(z, marks, vocab):
    """The ids of z with a share of their wording replaced by any words: one dream then teaches
    more than one wording (ours)."""
    other = torch.randint(vocab, z.ids.shape, device=z.ids.device)
    where = z.wording & (torch.rand(z.ids.shape, device=z.ids.device) < MISHEARD)
    for mark in symbols(marks):
        where = where & (other != mark)
    return torch.where(where, other, z.ids)


def on_policy_loss(student, z, teach, marks, level, a):
    """-E_{y ~ student} [(1 - alpha) r(y) - alpha D(teacher || student)(y|x)]    ([S] 3.3).

    The gradient does not go through sampling; the temperature is 1 in sampling and in the loss.
    Returns (loss, {"reward", "spread", "kl"}).
    """
    asked, right = zip(*((q, y) for _, q, y in unpack(z)))
    prompts = [[*marks.bos, *q] for q in asked]
    ys = generate(student, prompts, MAX_NEW, n=GROUP, stop=[marks.end],
                  awake=new_expert(student, level, z.since))
    many = torch.arange(len(prompts)).repeat_interleave(GROUP).tolist()
    passage = z.passage.tolist()
    rolled = pack([(passage[i], asked[i], y) for i, y in zip(many, ys)], student.device)
    since = z.since.repeat_interleave(GROUP)
    log_t, mask = teach(rolled), answer_mask(rolled)
    h = student.hidden(closed_book(rolled, marks), awake=new_expert(student, level, since))
    log_s = F.log_softmax(student.logits(h[:, len(marks.bos):]).float(), -1)
    kl = (divergence(log_t, log_s, ON_POLICY_KIND) * mask).sum() / mask.sum()
    r = rewards(ys, [right[i] for i in many], said(log_t, rolled.ids), mask)
    notes.rollouts(asked, right, ys, r)
    alpha = ALPHA if a.imitate else 1.0
    policy = policy_loss(said(log_s, rolled.ids), mask, leave_one_out(r, GROUP))
    loss = alpha * kl + (1 - alpha) * policy
    return loss, {"reward": r.mean(), "spread": r.view(-1, GROUP).std(1).mean(), "kl": kl.detach()}


def rewards(written, asked, judge, mask):
    """Learning to Imitate: r = gamma r_sem + (1 - gamma) r_abs of each rollout (N,)     ([S] 3.3).

    r_abs = 1 - lev(y, d) / max(|y|, |d|) if lev(y, d) <= NEAR, else 0, against the teacher's own
    text d. r_sem = 1 if a frozen judge finds the meaning the same: the teacher, who has read the
    day, would itself have said every token. judge (N, T-1): its log-probabilities; mask: where.
    """
    y, len_y = pad_rows(written, judge.device)
    d, len_d = pad_rows(asked, judge.device)
    edits = levenshtein(y, d, len_y, len_d).float()
    close = 1 - edits / torch.maximum(len_y, len_d).clamp(min=1)
    r_abs = torch.where(edits <= NEAR, close, 0.0)
    r_sem = (judge.masked_fill(~mask, 0.0).min(1)[0] > -1).float()
    return GAMMA * r_sem + (1 - GAMMA) * r_abs


def leave_one_out(r, group):
    """REINFORCE advantage: a reward minus the mean of the other rollouts of its prompt. r (N,)."""
    r = r.view(-1, group)
    others = (r.sum(1, keepdim=True) - r) / (group - 1)
    return (r - others).flatten()


def policy_loss(log_p, mask, advantage):
    """-mean of advantage * log pi(y), whose gradient is REINFORCE. log_p, mask (N, T)."""
    return -(advantage.detach() * (log_p * mask).sum(1)).mean()


def descend(params, momenta, loss, step, steps, lr):
    """One step of `muon` down the gradient of loss: warm-up, then straight down to a twentieth."""
    for p, grad in zip(params, torch.autograd.grad(loss, params)):
        p.grad = grad
    team.average_gradients(params)
    muon(params, momenta, lr * min(1.0, (step + 1) / WARMUP) * (1 - 0.95 * step / steps))


# --------------------------------------------------------------------------------------------------
# From level to level: what many nights wrote into one level becomes one expert of the next slower

def consolidate(model, level, marks, a):
    """Distil all experts of a level into one new expert of the next slower, then recycle them
    ([S] 2.2, 3.2, 3.3), in place. Returns a log; raises RestlessNight, the model then half moved.

    The experts ask and answer all they know (data/rehearsal.py); their things are the new one's, so
    it wakes where they did. Its rank follows the bits it is to hold. In the last part it learns
    most what is about to be lost (prioritised rehearsal).
    """
    teacher, slower = clone(model, share=True), level + 1
    z, things, reach = rehearse(teacher, level, marks, labels=a.divergence == "sft")
    new = model.n_experts(slower)
    before, bits = len(model.things), bits_of(teacher, z, marks)
    model.reset(level)
    model.remember_things(things, reach, slower, new)
    model.unlock(slower, seed=len(model.owner), rank=rank_for(model, bits))
    z = z._replace(since=wakes(model, z, slower, new, marks))
    z = take(z, z.since >= 0)
    if not len(z.ids):
        raise RestlessNight("the new expert sleeps through all it is to learn")
    facts, params = asking.facts_in(z), learners(model, slower)
    steps = min(max(MOVE_LEAST, MOVE_STEPS * facts), MOVE_MOST)
    even = torch.where(asking.shrugs(z, model.unknown), SHRUGS, 1.0)
    last = int(AT_LAST * steps)
    distil(model, params, z, None, marks, slower, steps - last, a, even)
    endangered = even * (1 - knows(model, z, marks, slower) + dream.FLOOR)
    log = distil(model, params, z, None, marks, slower, last, a, endangered)
    model.settle(slower)
    model.requires_grad_(False)
    known = known_again(model, z, marks)
    if known < STILL_KNOWN:
        raise RestlessNight(f"of what it moved only {known:.0%} was still known")
    return {"level": level, "quizzes": len(z.ids), "facts": facts, "bits": round(bits),
            "things": len(things), "entries": before - len(model.things) + len(things),
            "rank": model.config.ranks[slower], "known": known, **log}


def rank_for(model, bits):
    """The rank of an expert that is to hold so many bits."""
    a_rank = 2 * model.config.n_embd * len(model.remembering())     # parameters
    return max(LEAST_RANK, math.ceil(bits / BITS / a_rank))


# --------------------------------------------------------------------------------------------------
# Replay: what protects the old where there is no gate (ablations)

def replay_bank(old, marks):
    """Dreams of the old self and its own hidden states, as targets: (ids, hidden, mask)."""
    ids, length = pad_rows(dream.replay(old, marks, REPLAYED), old.device)
    mask = torch.arange(1, ids.shape[1], device=ids.device) < length[:, None]
    with torch.no_grad():
        hidden = torch.cat([old.hidden(part[:, :-1]) for part in ids.split(128)])
    return ids, hidden, mask


def drift(student, bank, level, n):
    """Forward KL from the old self to the student on n of the old self's dreams, a mean a token."""
    index = torch.randperm(len(bank[0]), device=bank[0].device)[:n]
    ids, hidden, mask = (t[index] for t in bank)
    awake = new_expert(student, level, torch.zeros_like(index))
    h = student.hidden(ids[:, :-1], awake=awake)

    def loss_of(h, old):
        return divergence(F.log_softmax(student.logits(old).float(), -1),
                          F.log_softmax(student.logits(h).float(), -1))
    kl = in_chunks(loss_of, h.flatten(0, 1), hidden.flatten(0, 1)).view_as(mask)
    return (kl * mask).sum(1) / mask.sum(1)


# --------------------------------------------------------------------------------------------------
# What is known

@torch.no_grad()
def knows(model, z, marks, level):
    """p(the whole answer) that the self without its day gives to each quiz: (N,)."""
    parts = [take(z, i) for i in torch.arange(len(z.ids), device=z.ids.device).split(128)]
    nll = [dream.dream_loss(model, part, marks, new_expert(model, level, part.since))
           for part in parts]
    return (-torch.cat(nll) * answer_mask(z).sum(1)).exp()
