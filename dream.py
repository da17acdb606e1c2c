"""
dream.py: what the self tells itself.

Chapter three of nanoSleep ([S] = Language Models Need Sleep, arXiv 2606.03979, section 3.4, after
SEAL, arXiv 2506.10943). The self that holds the day writes quizzes about it; Knowledge Seeding
(seed.py) learns them. With --dream=1 (--paper) it finds out which dreams make it better, and learns
to dream such:

    write       questions and answers of the day, in all the styles the self knows
    importance  w(i) = || grad L(dream i) ||, or its cosine to the gradient of a self-made quiz
    choose      the top k by importance and b at random
    trial       every chosen dream is learnt by an isolated throw-away copy of the self
    reward      1 if the copy does better on the quiz than before, else 0               ([S] Eq. 5)
    ReST-EM     the writer is fine-tuned on the rewarded dreams: tomorrow it dreams more like them
    curriculum  self-play: learn next what is neither known nor hopeless

There are no human labels: the score is agreement with the self that holds the day.

Simplifications. An isolated copy is a throw-away expert of its own (`unlock(TRIAL, n)`): n trials
run in one batch, each row through its own expert. [S] rewards any gain; nearly every true dream
gains a little, so we ask for more than the average trial of the night.
"""
from collections import namedtuple

import torch
import torch.nn.functional as F

from data import notes, team
from data.engine import generate, pad_rows
from data.quizzes import answer_mask, closed_book, questions_in, take, unpack
from data.text import in_turn
from model import FAST, TRIAL

VIEWS = 2                           # shuffled readings of a passage that the teacher averages over
TEMPERATURE = 0.85                  # of the self that asks itself: higher misspells more names
ASKING = 64                         # tokens of a document of questions
DREAM = 128                         # tokens of a replay dream
CHOSEN, AT_RANDOM = 24, 8           # dreams tried a night: by importance, and by chance
POOL, QUIZ = 192, 24                # dreams importance chooses from; quizzes they are tried on
TRIAL_STEPS, TRIAL_LR = 4, 0.01     # Adam, on an isolated copy
WRITER_STEPS, WRITER_LR = 16, 3e-3  # Adam, ReST-EM
FLOOR = 0.05                        # of the curriculum: nothing is never drawn

Teacher = namedtuple("Teacher", "model readings cache held awake home parts told",
                     defaults=[None] * 3)
# readings: the day's passages as contexts, VIEWS a passage, and their cache; held: the cache that
# answers (of the readings, or of nothing if the day was studied); awake: the expert that studied;
# home: which passages of the real day each passage is made of; parts: of each passage that is a
# thing, those that are its single sentences; told: what was asked about, sentence by sentence


# --------------------------------------------------------------------------------------------------
# Write: the self that holds the day asks itself

def views_of(passages, marks, rng, n=VIEWS):
    """Each passage (a list of sentences of ids) as n contexts with its sentences shuffled."""
    return [[*marks.bos, *(t for s in rng.sample(p, len(p)) for t in s)]
            for p in passages for _ in range(n)]


def write(teacher, marks, n, writer=True, random_expert=False):
    """Unique dreams [(passage, question, answer)], n documents for each view of each passage.

    writer: the expert that has learnt to dream (`rest_em`), once there is one, is awake in the
    first view of each passage. In the other the self asks as before (ours): a writer alone would
    soon ask only what was rewarded.
    random_expert: half of the views also wake an old one, picked at random ([S] 3.4, synthesis).
    The gates of earlier nights are shut: an older memory would answer for what is read here.
    """
    model, device, rows = teacher.model, teacher.model.device, len(teacher.readings)
    always, awake = torch.zeros(rows, dtype=torch.long, device=device), dict(teacher.awake)
    awake = {level: (always + expert, always) for level, expert in awake.items()}
    if writer and model.n_experts(TRIAL):
        view = torch.arange(rows, device=device) % VIEWS
        awake[TRIAL] = (-view, always)                                  # 0: the writer; < 0: none
    if random_expert and FAST not in awake and (old := model.n_experts(FAST)):
        awake[FAST] = (torch.randint(-old, old, (rows,), device=device), always)    # < 0: none
    prompts = [[*view, *marks.ask] for view in teacher.readings]
    out = generate(model, prompts, ASKING, n=n, temperature=TEMPERATURE, awake=awake,
                   forms=in_turn(marks))
    found = {(i // n // VIEWS, q, a): None for i, q, a in questions_in(out, marks)}
    return team.share(list(found))


def replay(model, marks, n):
    """What the self says of itself: n documents dreamt from <bos> alone, as lists of ids."""
    rows = generate(model, [[*marks.bos]], DREAM, n=n, stop=marks.bos[:1],
                    forms=in_turn(marks, asked=False))
    return team.share([[*marks.bos, *row] for row in rows])


def questions(model, marks, n, max_new=32):
    """What the self asks out of the blue: n questions, or fewer, as ids, <ask> ... <answer>."""
    stop = [marks.answer[0], marks.end]
    rows = team.share(generate(model, [[*marks.bos, *marks.ask]], max_new, n=n, stop=stop))
    return [(*marks.ask, *row[:-1], *marks.answer) for row in rows
            if len(row) > 1 and row[-1] == marks.answer[0]]


def memories(model, level, marks, n, max_new=32):
    """Closed-book quizzes [(expert, question, answer)] that the experts of a level dream when they
    speak from the first token on. An expert has learnt (seed.py) to ask, once it is picked, about
    its own night: a night can be dreamt again although nothing of it was stored."""
    expert = torch.arange(model.n_experts(level), device=model.device)
    awake = {level: (expert, torch.zeros_like(expert))}
    prompts = [[*marks.bos, *marks.ask]] * len(expert)
    rows = generate(model, prompts, max_new, n=n, temperature=TEMPERATURE, stop=[marks.end],
                    awake=awake, forms=[marks.answer])
    found = {(i // n, q, a): None for i, q, a in questions_in(rows, marks)}
    return team.share(list(found))


# --------------------------------------------------------------------------------------------------
# Importance: the gradient of each dream, all at once

def dream_loss(model, z, marks, awake=None):
    """-log p(answer | question) per token of each quiz, closed book: (N,)."""
    h = model.hidden(closed_book(z, marks), awake=awake)[:, len(marks.bos):]
    nll = F.cross_entropy(model.logits(h).float().transpose(1, 2), z.ids[:, 1:], reduction="none")
    mask = answer_mask(z)
    return (nll * mask).sum(1) / mask.sum(1)


def copies(expert):
    """Each row's own throw-away expert, awake from the first token on."""
    return {TRIAL: (expert, torch.zeros_like(expert))}


def gradients(model, z, marks, group):
    """grad of the mean loss of each group of rows, with respect to an expert of its own: (G, D).

    The experts start equal with B = 0, so the function is that of the self and only the gradient
    of B is not zero. group (N,) numbers the rows; one backward pass serves all groups, since no
    two of them share a parameter.
    """
    n = int(group.max()) + 1
    first = model.n_experts(TRIAL)
    model.unlock(TRIAL, n)
    loss = dream_loss(model, z, marks, copies(first + group))
    size = torch.zeros(n, device=loss.device).index_add(0, group, torch.ones_like(loss))
    B = [block.levels[TRIAL].B_live for block in model.remembering()]
    grads = torch.autograd.grad((loss / size[group]).sum(), B)
    model.discard(TRIAL)
    return torch.cat([g.flatten(1) for g in grads], 1)


def importance(model, z, quiz, marks, select):
    """w(i) of each dream (N,). norm: ||grad|| ([S]); cosine: to the quiz's gradient (ours)."""
    rows = torch.arange(len(z.ids), device=model.device)
    if select == "random":
        return torch.rand(len(rows), device=model.device)
    grads = [gradients(model, take(z, part), marks, torch.arange(len(part), device=part.device))
             for part in rows.split(128)]
    grads = torch.cat(grads)
    if select == "norm":
        return grads.norm(dim=1)
    target = gradients(model, quiz, marks, torch.zeros_like(quiz.start))
    return F.cosine_similarity(grads, target)


def truthful(z, teach):
    """True where the self that holds the day would give every token of the answer log p > -1."""
    said = teach(z).gather(2, z.ids[:, 1:, None])[..., 0]
    return said.masked_fill(~answer_mask(z), 0.0).min(1)[0] > -1


def choose(score, dreams, k, b, no_repeats=True):
    """Indices of the top k by score and of b others at random.

    With no_repeats a score shrinks by the share of its word pairs that are taken already.
    """
    score = score.tolist()
    pairs = [set(zip((q + a), (q + a)[1:])) for _, q, a in dreams]
    taken, seen = [], set()

    def worth(i):
        new = len(pairs[i] - seen) / len(pairs[i]) if no_repeats else 1.0
        return score[i] * new if score[i] > 0 else score[i]
    for _ in range(min(k, len(dreams))):
        best = max((i for i in range(len(dreams)) if i not in taken), key=worth)
        taken.append(best)
        seen |= pairs[best]
    rest = [i for i in range(len(dreams)) if i not in taken]
    return taken + [rest[i] for i in torch.randperm(len(rest))[:b].tolist()]


def choose_dreams(cold, pool, quiz, marks, teach, select, k, b):
    """The chosen part of the pool: by [S]'s importance, or by ours, cosine x truth, no repeats.

    cold: the self before sleep, without its day: what a dream is worth is what it would teach it.
    """
    score = importance(cold, pool, quiz, marks, select)
    if select == "cosine":
        score = torch.where(truthful(pool, teach), score, -1.0)
    index = choose(score, unpack(pool), k, b, no_repeats=select == "cosine")
    return take(pool, torch.tensor(team.share(index), device=cold.device))


# --------------------------------------------------------------------------------------------------
# Trial, reward, ReST-EM

def trials(model, z, quiz, marks):
    """What each dream alone would do for the quiz: gain (N,) in mean log p per answer token.

    Dream i is learnt by throw-away expert i for a few Adam steps; then every copy answers the
    quiz. All isolated copies learn in one batch.
    """
    N, Q = len(z.ids), len(quiz.ids)
    everyone = torch.arange(Q, device=model.device)
    own = model.n_experts(TRIAL) + torch.arange(N, device=model.device)
    opt = torch.optim.Adam(model.unlock(TRIAL, N), lr=TRIAL_LR)
    with torch.no_grad():
        before = dream_loss(model, quiz, marks).mean()
    for _ in range(TRIAL_STEPS):
        opt.zero_grad()
        dream_loss(model, z, marks, copies(own)).sum().backward()
        opt.step()
    after = []
    with torch.no_grad():
        for some in own.split(8):                           # eight copies answer side by side
            asked = take(quiz, everyone.repeat(len(some)))
            loss = dream_loss(model, asked, marks, copies(some.repeat_interleave(Q)))
            after.append(loss.view(len(some), Q).mean(1))
    model.discard(TRIAL)
    return before - torch.cat(after)


def rest_em(model, z, readings, marks, reward, batch=16, held=None):
    """ReST-EM ([S] 3.4): fine-tune the writer, awake only while dreaming, on the rewarded dreams.

    E step: the dreams were sampled and rewarded. M step: SFT on question and answer behind the
    passage they came from. The rest of the self does not move. held: {level: expert}, which has
    studied the day and is awake beside the writer: else the writer would learn the day itself.
    Returns the last loss, or None if nothing was rewarded.
    """
    good = [pair for pair, r in zip(unpack(z), reward.tolist()) if r > 0]
    if not good:
        return None
    params = model.reopen(TRIAL) if model.n_experts(TRIAL) else model.unlock(TRIAL)
    opt = torch.optim.Adam(params, lr=WRITER_LR)
    for _ in range(WRITER_STEPS):
        some = [good[i] for i in torch.randint(len(good), (batch,)).tolist()]
        view = torch.randint(VIEWS, (batch,)).tolist()
        texts = [readings[p * VIEWS + v] for (p, _, _), v in zip(some, view)]
        ids, length = pad_rows([[*t, *q, *a] for t, (_, q, a) in zip(texts, some)], model.device)
        start = torch.tensor([len(t) + len(marks.ask) for t in texts], device=model.device)
        at = torch.arange(1, ids.shape[1], device=model.device)
        mask = (at >= start[:, None]) & (at < length[:, None])  # what follows passage and <ask>
        zero = torch.zeros_like(ids[:, 0])
        awake = {level: (zero + expert, zero) for level, expert in (held or {}).items()}
        logits = model(ids[:, :-1], awake=awake | copies(zero)).float()
        nll = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        loss = (nll * mask).sum() / mask.sum()
        opt.zero_grad()
        loss.backward()
        team.average_gradients(params)
        opt.step()
    model.settle(TRIAL)
    return float(loss.detach())


def learn_to_dream(model, cold, pool, quiz, teacher, marks, teach, select, writer=True):
    """One round of [S] 3.4: choose dreams, try each on an isolated copy, reward, teach the writer.

    quiz: quizzes of the self that holds the day, the score tau. Returns a log.
    """
    chosen = choose_dreams(cold, pool, quiz, marks, teach, select, CHOSEN, AT_RANDOM)
    gain = trials(cold, chosen, quiz, marks)
    reward = (gain > gain.mean().clamp(min=0)).float()                                  # Eq. 5
    notes.dreams(chosen, gain, reward)
    log = {"pool": len(pool.ids), "chosen": len(chosen.ids), "gain": float(gain.mean()),
           "rewarded": float(reward.mean())}
    if writer:
        log["writer_loss"] = rest_em(teacher.model, chosen, teacher.readings, marks, reward,
                                     held=teacher.awake)
        for mine, learnt in zip(model.blocks, teacher.model.blocks):
            mine.levels[TRIAL].A = learnt.levels[TRIAL].A.clone()
            mine.levels[TRIAL].B = learnt.levels[TRIAL].B.clone()
    return log


# --------------------------------------------------------------------------------------------------
# Curriculum: self-play between the self that holds the day and the self without it

def curriculum(p):
    """How often to draw a quiz that is answered with probability p (N,): most where the learner is
    neither sure nor hopeless (ours)."""
    return p * (1 - p) + FLOOR
