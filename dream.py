"""
dream.py: Dreaming, the second half of a night.

Chapter three of nanoSleep (Language Models Need Sleep, arXiv 2606.03979, section 3.4, after SEAL, arXiv 2506.10943). The self
writes its own curriculum, finds out which dreams make it better, and learns to dream such dreams:

    write       dreams of the day in all the styles it knows, an extra random expert awake in every router
    importance  w(i) = || grad L(dream i) ||, or its cosine to the gradient of a quiz it wrote itself
    choose      the top k by importance and b at random
    trial       every chosen dream is learnt by an isolated throw-away copy of the self
    reward      1 if the copy does better on the quiz than before, else 0                                     ([S] Eq. 5)
    ReST-EM     the writer is fine-tuned on the dreams that were rewarded: tomorrow it dreams more like them
    curriculum  self-play: the self that holds the day asks, the self without it answers; learn next what is neither known
                nor hopeless. The same rule picks which old memories are rehearsed

There are no human labels: the score is agreement with the self that still holds the day in context. An isolated copy is a
throw-away expert of its own (`unlock(level, n)`): n trials run in one batch, each token through its own row's expert.
"""
import torch
import torch.nn.functional as F

from data import team
from model import generate, pad_rows
from seed import closed_book, replay_drift, split_questions, subset, unpack


# ----------------------------------------------------------------------------------------------------------------------
# Write: dreams of the day, in every style the self knows

def write_dreams(teacher, views, n_views, marks, n, max_new, writer=None, random_level=None, temperature=1.0):
    """Unique dreams [(passage, question, answer)] sampled with the day in context, n for each view of each passage.

    writer: the level whose expert 0 has learnt to dream (see `rest_em`); awake from the first token on, once there is one.
    random_level: there, each dream also gets one old expert picked at random: novel synthesis ([S] 3.4).
    The gates of earlier nights are shut, or an older memory would answer for what stands in the context.
    """
    extra, rows, device = {}, len(views) * n, teacher.device
    if writer is not None and teacher.blocks[0].levels[writer].n_experts:
        extra[writer] = torch.zeros(rows, dtype=torch.long, device=device)
    if random_level is not None and teacher.blocks[0].levels[random_level].n_experts:
        some = torch.randint(teacher.blocks[0].levels[random_level].n_experts, (len(views),), device=device)
        extra[random_level] = some.repeat_interleave(n)
    out = generate(teacher, [v + [marks.ask] for v in views], max_new, n=n, temperature=temperature, extra=extra or None,
                   gate=False)
    pairs = split_questions([[marks.ask] + r for r in out], marks)
    return list(dict.fromkeys((i // n // n_views, tuple(q), tuple(a)) for i, ps in enumerate(pairs) for q, a in ps))


# ----------------------------------------------------------------------------------------------------------------------
# Importance: the gradient of each dream, all at once

def dream_loss(model, z, marks, extra):
    """-log p(answer | question) per token of each packed quiz, closed book, its row's extra expert awake: (N,)."""
    h = model.hidden(closed_book(z, slice(None), marks), extra=extra)[:, 1:]
    nll = F.cross_entropy(model.logits(h).float().transpose(1, 2), z["ids"][:, 1:], reduction="none")
    return (nll * z["answers"]).sum(1) / z["answers"].sum(1)


def gradients(model, level, z, marks, group):
    """grad of the mean loss of each group of rows with respect to a throw-away expert of its own: (groups, D).

    The experts start equal with B = 0, so the function is that of the self and only the gradient of B is not zero. group
    (N,) numbers the rows; one backward pass serves all groups, since no two groups share a parameter.
    """
    n = int(group.max()) + 1
    model.unlock(level, n)
    first = model.blocks[0].levels[level].n_experts - n
    loss = dream_loss(model, z, marks, {level: first + group})
    size = torch.zeros(n, device=loss.device).index_add(0, group, torch.ones_like(loss))
    B = [block.levels[level].B_live for block in model.blocks]
    g = torch.autograd.grad((loss / size[group]).sum(), B)
    model.discard(level)
    return torch.cat([t.flatten(1) for t in g], 1)


def importance(model, level, z, quiz, marks, select="cosine", chunk=128):
    """w(i) of each dream. norm: ||grad|| ([S]); cosine: to the gradient of the self-made quiz (ours); random. (N,)."""
    N, device = len(z["ids"]), model.device
    if select == "random":
        return torch.rand(N, device=device)
    if select not in ("cosine", "norm"):
        raise ValueError(f"unknown selection {select!r}: choose cosine, norm or random")
    asked = gradients(model, level, quiz, marks, torch.zeros_like(quiz["q"])) if select == "cosine" else None
    w, mine = model.wte.weight.new_zeros(N), torch.arange(N, device=device)[team.mine()]
    for i in mine.split(chunk) if len(mine) else ():
        g = gradients(model, level, subset(z, i), marks, torch.arange(len(i), device=device))
        w[i] = g.norm(dim=1) if asked is None else F.cosine_similarity(g, asked)
    return team.total(w)


def truthful(z, teach):
    """1 where the self that holds the day would itself give every token of the answer log p > -1, else 0 (ours). (N,)."""
    said = teach(z).gather(2, z["ids"][:, 1:, None])[..., 0]
    return (said.masked_fill(~z["answers"], 0.0).min(1)[0] > -1).float()


def choose(score, dreams, k, b, no_repeats=True):
    """The top k by score and b others at random. With no_repeats a score shrinks by the share of its bigrams already taken."""
    score, bigrams = score.tolist(), [set(zip((q + a), (q + a)[1:])) for _, q, a in dreams]
    taken, seen = [], set()
    for _ in range(min(k, len(dreams))):
        new = [len(g - seen) / len(g) if no_repeats else 1.0 for g in bigrams]
        best = max((i for i in range(len(dreams)) if i not in taken), key=lambda i: score[i] * (new[i] if score[i] > 0 else 1))
        taken.append(best)
        seen |= bigrams[best]
    rest = [i for i in range(len(dreams)) if i not in taken]
    return taken + [rest[i] for i in torch.randperm(len(rest))[:b].tolist()]


# ----------------------------------------------------------------------------------------------------------------------
# Trial, reward, ReST-EM

def trials(model, level, z, quiz, marks, steps=4, lr=0.01):
    """What each dream alone would do for the quiz: gain (N,) in mean log p per answer token, on isolated copies.

    Dream i is learnt by throw-away expert i for a few Adam steps; then the quiz is answered by every copy. [S] Eq. 5 rewards
    a gain; nearly all true dreams gain a little, so `rest_em` asks for more than the average trial of the night.
    """
    N, Q = len(z["ids"]), len(quiz["ids"])
    params = model.unlock(level, N)
    first = model.blocks[0].levels[level].n_experts - N
    who, part = first + torch.arange(N, device=model.device), team.mine()
    opt = torch.optim.Adam(params, lr=lr)
    with torch.no_grad():
        before = dream_loss(model, quiz, marks, None).mean()
    for _ in range(steps):
        opt.zero_grad()
        dream_loss(model, subset(z, part), marks, {level: who[part]}).sum().backward()
        opt.step()
    gain = before.new_zeros(N)
    with torch.no_grad():
        for i in range(N)[part]:
            gain[i] = before - dream_loss(model, quiz, marks, {level: who[i].expand(Q)}).mean()
    model.discard(level)
    return team.total(gain)


def rest_em(model, level, z, views, n_views, marks, reward, steps=16, lr=3e-3, batch=16):
    """ReST-EM ([S] 3.4): fine-tune the writer, an expert that is awake only while dreaming, on the rewarded dreams.

    E step: the dreams were sampled and rewarded. M step: SFT on question and answer behind the passage they came from. The
    rest of the self does not move. Returns the last loss, or None if nothing was rewarded.
    """
    good = (reward > 0).nonzero()[:, 0]
    if not len(good):
        return None
    rows = [row for row, r in zip(unpack(z), reward.tolist()) if r > 0]
    params = model.reopen(level) if model.blocks[0].levels[level].n_experts else model.unlock(level)
    opt = torch.optim.Adam(params, lr=lr)
    for _ in range(steps):
        some = [rows[i] for i in torch.randint(len(rows), (batch,)).tolist()]
        text = [views[p * n_views + int(torch.randint(n_views, (1,)))] for p, _, _ in some]
        ids, lengths = pad_rows([v + list(q) + list(a) for v, (_, q, a) in zip(text, some)], model.device)
        start = torch.tensor([len(v) for v in text], device=model.device)
        at = torch.arange(1, ids.shape[1], device=model.device)
        keep = (at > start[:, None]) & (at < lengths[:, None])       # all behind the passage and the given <ask>
        count, ids, keep = keep.sum(), ids[team.mine()], keep[team.mine()]
        h = model.hidden(ids[:, :-1], extra={level: torch.zeros_like(ids[:, 0])}, gate=False)
        loss = F.cross_entropy(model.logits(h[keep]).float(), ids[:, 1:][keep], reduction="sum") / count
        opt.zero_grad()
        loss.backward()
        team.sum_gradients(params)
        opt.step()
    model.settle(level)
    return float(team.total(loss.detach()))


# ----------------------------------------------------------------------------------------------------------------------
# Curriculum: self-play between the self that holds the day and the self without it

@torch.no_grad()
def known(model, z, marks):
    """p(the whole answer) that the self without its day gives to each packed quiz: (N,)."""
    return (-dream_loss(model, z, marks, None) * z["answers"].sum(1)).exp()


def progress(p, floor=0.05):
    """How often to draw each quiz: p (1 - p) is largest where the learner is neither sure nor hopeless (ours). (N,)."""
    return p * (1 - p) + floor


@torch.no_grad()
def rehearsal(model, bank, head, floor=0.05):
    """How often to draw each replay dream: where the self has drifted from the old self that dreamt it (ours). (N,)."""
    parts = torch.arange(len(bank["ids"]), device=model.device).split(128)
    drift = torch.cat([replay_drift(model, bank, head, i) for i in parts])
    return drift / drift.mean().clamp_min(1e-9) + floor


def choose_dreams(model, level, pool, quiz, marks, teach, select, truth, k, b):
    """[S]'s selection, or ours: cosine x truth without repeats. pool, quiz: packed. Returns the chosen part of the pool."""
    score = importance(model, level, pool, quiz, marks, select)
    if truth:
        score = torch.where(truthful(pool, teach) > 0, score, -1.0)
    return subset(pool, torch.tensor(choose(score, unpack(pool), k, b, no_repeats=truth), device=model.device))


def learn_to_dream(model, cold, level, pool, quiz, views, n_views, marks, teach, select, truth, k, b, writer=True):
    """One round of [S] 3.4: choose dreams, try each on an isolated copy of the cold self, reward, teach the writer.

    cold: the self before sleep, without its day: what tonight's dreams are worth is what they would have taught it. quiz:
    packed quizzes of the self that holds the day, the score tau. model: whose writer learns. Returns (chosen, log).
    """
    chosen = choose_dreams(cold, level, pool, quiz, marks, teach, select, truth, k, b)
    gain = trials(cold, level, chosen, quiz, marks)
    reward = (gain > gain.mean().clamp(min=0)).float()
    log = {"pool": len(pool["ids"]), "chosen": len(chosen["ids"]), "gain": float(gain.mean()), "rewarded": float(reward.mean())}
    if writer:
        log["writer_loss"] = rest_em(model, level, chosen, views, n_views, marks, reward)
    return chosen, log
