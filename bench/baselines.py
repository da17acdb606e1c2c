"""
baselines.py: what else one could do with a day and a night. Every baseline of bench/knowledge.py is a short function here:

    name(model, day, marks, memory, tokens, lr=...) -> log      changes the model in place, as sleep.night does

day: the passages of the day as lists of sentences of token ids. memory: a dict the method carries from night to night. METHODS
says what each may see; bench/knowledge.py asserts it before every night. Those that see "the day" obey the rules of sleep:
the text is gone in the morning, nothing of it is stored. No exam and no fact reaches this file; it never imports data/.

Equal for all that learn: the base, the passages, the way the self asks itself (readings, samples, screen), the tokens that go
through the learner in a night (those it samples for itself included), 32 quizzes or rollouts a step, Adam with warm-up and
linear decay (sleep's experts learn by Muon), and three tries of the learning rate (ewc, lwf: two more of their weight). What
is not equal, its docstring says.
"""
import random
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize

import dream
import seed
from model import clone, generate, levenshtein, pad_rows, prefill

TRIAL, FAST = 0, 1                                                    # memory levels, as in sleep.py
VIEWS, DOCUMENTS, TEMPERATURE, DREAMS = 4, 6, 0.85, 320              # how the self asks itself: the defaults of sleep.py
BATCH, REPLAYED = 32, 4                                               # quizzes, and replayed documents, a step


# ----------------------------------------------------------------------------------------------------------------------
# What they share

def learn(model, params, loss_of, tokens, lr):
    """Adam on loss_of() until `tokens` tokens went through the model; 8 steps of warm-up, linear decay. Only params move."""
    used, step = [0], 0
    handle = model.wte.register_forward_hook(lambda module, args, out: used.__setitem__(0, used[0] + args[0].numel()))
    for p in params:
        p.requires_grad_(True)
    opt = torch.optim.Adam(params, lr=lr)
    while used[0] < tokens:
        opt.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 8) * (1 - 0.95 * used[0] / tokens)
        loss, step = loss_of(), step + 1
        opt.zero_grad()
        loss.backward()
        opt.step()
    for p in params:
        p.requires_grad_(False)
    handle.remove()
    return {"loss": float(loss.detach()), "steps": step}


class LowRank(nn.Module):
    """LoRA (arXiv 2106.09685): W + B A with B = 0 at first."""
    def __init__(self, W, rank):
        super().__init__()
        self.A = nn.Parameter(torch.randn(rank, W.shape[1]).to(W) * W.shape[1] ** -0.5)
        self.B = nn.Parameter(W.new_zeros(W.shape[0], rank))

    def forward(self, W):
        return W + self.B @ self.A


def learn_low_rank(model, loss_of, tokens, lr, rank=8):
    """As `learn`, but only low-rank changes of the linear layers are learnt, and merged into them afterwards."""
    layers = [m for m in model.blocks.modules() if isinstance(m, nn.Linear)]
    for m in layers:
        parametrize.register_parametrization(m, "weight", LowRank(m.weight, rank))
    log = learn(model, [p for m in layers for p in m.parametrizations.weight[0].parameters()], loss_of, tokens, lr)
    for m in layers:
        parametrize.remove_parametrizations(m, "weight")             # W + B A is the new W
    return log


def text_loss(model, rows):
    """-log p of every next token of rows (lists of ids), mean."""
    ids, lengths = pad_rows(rows, model.device)
    keep = torch.arange(1, ids.shape[1], device=ids.device) < lengths[:, None]
    return F.cross_entropy(model.logits(model.hidden(ids[:, :-1])[keep]).float(), ids[:, 1:][keep])


def ask_itself(model, day, marks, writer=None):
    """The first step of sleep.night: the self that holds the day in context asks itself about it.

    Returns teacher, views, teach (packed quizzes -> log-probabilities with the day in context), dreamt [(passage, question,
    answer)] as sampled, and z: those that pass seed.screen, packed, with targets. Raises seed.RestlessNight if none do.
    """
    teacher = clone(model)
    views = seed.views_of(day, marks, VIEWS, random)
    cache, _ = prefill(teacher, views, gate=False)
    dreamt = dream.write_dreams(teacher, views, VIEWS, marks, DOCUMENTS, 64, writer=writer, temperature=TEMPERATURE)
    z = seed.screen(teacher, dreamt, cache, VIEWS, marks)
    return SimpleNamespace(teacher=teacher, views=views, teach=seed.reader(teacher, cache, VIEWS), dreamt=dreamt, z=z)


def draw(z, n=BATCH):
    return torch.randint(len(z["ids"]), (n,), device=z["ids"].device)


def quiz_loss(model, z, index, marks, question_weight=0.3):
    """Closed book -log p(answer | question), and 0.3 of -log p(question): what is never asked is never dreamt again."""
    h = model.hidden(seed.closed_book(z, index, marks))[:, 1:]
    nll = F.cross_entropy(model.logits(h).float().transpose(1, 2), z["ids"][index, 1:], reduction="none")
    weight = z["answers"][index] + question_weight * z["asks"][index]
    return (nll * weight).sum() / weight.sum()


def self_dreams(teacher, marks, n):
    """What the self says with an empty context: documents, and (LAMOL's way to call up a task) questions from <ask> on."""
    rows = seed.dream_replay(teacher, marks, n // 2, 120)
    asked = generate(teacher, [[marks.bos, marks.ask]], 120, n=n // 2, stop=[marks.bos])
    return rows + [[marks.bos, marks.ask, *row] for row in asked]


def documents(rows, marks, device):
    """Rows of ids with the weights of seed.replay_bank (answers 1, questions 0.3, passages 0.05), without targets."""
    nobody = SimpleNamespace(device=device, hidden=lambda ids: ids.new_zeros(0))
    return seed.replay_bank(nobody, rows, marks)


def document_loss(model, bank, index):
    """Weighted -log p of some documents of a bank: replay with hard labels."""
    weight, ids = bank["weight"][index], bank["ids"][index]
    keep = weight > 0
    nll = F.cross_entropy(model.logits(model.hidden(ids[:, :-1])[keep]).float(), ids[:, 1:][keep], reduction="none")
    return (nll * weight[keep]).sum() / weight.sum()


# ----------------------------------------------------------------------------------------------------------------------
# Next-token learning on the passage

def none(model, day, marks, memory, tokens):
    """Nothing: in-context learning while the context lasts (`in_context` in the results), then it is gone."""
    return {}


def sft(model, day, marks, memory, tokens, lr):
    """Sequential fine-tuning (continued pretraining) on the day's text, all weights, sentences shuffled anew each step."""
    return learn(model, list(model.parameters()), lambda: text_loss(model, seed.views_of(day, marks, 1, random)), tokens, lr)


def sft_lora(model, day, marks, memory, tokens, lr):
    """The same, but a LoRA of rank 8 on every linear layer (arXiv 2106.09685), merged after the night."""
    return learn_low_rank(model, lambda: text_loss(model, seed.views_of(day, marks, 1, random)), tokens, lr)


def ttt(model, day, marks, memory, tokens, lr):
    """Test-time training (arXiv 2407.04620; on the MLP's fast weights as in 2512.23675): next-token loss, fast weights only.

    The fast weights are one low-rank memory per block, awake at every token, kept and trained on over all nights: TTT proper
    empties them with the context, and then knows nothing in the morning. Only they move.
    """
    if model.blocks[0].levels[FAST].n_experts:
        params = model.reopen(FAST)
    else:
        model.attach(torch.zeros(1, model.config.n_embd), torch.ones(1), FAST, 0)                # a gate that is always open
        params = model.unlock(FAST)
    log = learn(model, params, lambda: text_loss(model, seed.views_of(day, marks, 1, random)), tokens, lr)
    model.settle(FAST)
    return log


# ----------------------------------------------------------------------------------------------------------------------
# Learning from self-made quizzes, and protecting what is old

def qa(model, day, marks, memory, tokens, lr):
    """SFT on the self-made quizzes of the day, closed book, all weights: SEAL's "SFT on synthetic data" (arXiv 2506.10943)."""
    z = ask_itself(model, day, marks).z
    return learn(model, list(model.parameters()), lambda: quiz_loss(model, z, draw(z), marks), tokens, lr)


def qa_replay(model, day, marks, memory, tokens, lr):
    """The same with generative replay (Shin et al. 2017, arXiv 1705.08690; LAMOL, 1909.03329).

    The self before the night says 320 documents with an empty context; 4 of them a step (as many tokens as 32 quizzes) are
    learnt again with hard labels.
    """
    asked = ask_itself(model, day, marks)
    bank = documents(self_dreams(asked.teacher, marks, DREAMS), marks, model.device)
    loss = lambda: quiz_loss(model, asked.z, draw(asked.z), marks) + document_loss(model, bank, draw(bank, REPLAYED))
    return learn(model, list(model.parameters()), loss, tokens, lr)


def replay(model, day, marks, memory, tokens, lr):
    """Experience replay (Chaudhry et al. 2019, arXiv 1902.10486). STORES TEXT: every quiz and passage of all earlier days.

    memory["pretraining"] holds 320 documents of the base's pretraining. Each step: 32 quizzes of today, 16 of earlier days,
    4 stored documents. The store is never emptied.
    """
    asked = ask_itself(model, day, marks)
    today, past, texts = seed.unpack(asked.z), memory.setdefault("quizzes", []), memory.setdefault("texts", [])
    z, old = asked.z, seed.pack(past, model.device) if past else None
    bank = documents(memory["pretraining"] + texts, marks, model.device)

    def loss():
        kept = document_loss(model, bank, draw(bank, REPLAYED))
        return kept + quiz_loss(model, z, draw(z), marks) + (quiz_loss(model, old, draw(old, 16), marks) if old else 0.0)
    log = learn(model, list(model.parameters()), loss, tokens, lr)
    past.extend(today)
    texts.extend(asked.views[::VIEWS])
    return log


def fisher(model, ids, weight, chunk=16):
    """Diagonal Fisher information from per-sample gradients: {name: mean over n of (d/dw log p(sample n))^2}.

    ids (N, T), weight (N, T-1): log p(n) = sum over t of weight * log p(ids[n, t+1] | ids[n, :t+1]). Squared sample by sample and
    then averaged, not the square of the averaged gradient (Kirkpatrick et al. 2017, arXiv 1612.00796, section 2).
    """
    params = {k: p.detach() for k, p in model.named_parameters()}

    def log_p(params, row, w):
        logits = functional_call(model, params, (row[None, :-1],))[0]
        return (F.log_softmax(logits.float(), -1).gather(1, row[1:, None])[:, 0] * w).sum()
    total = {k: torch.zeros_like(p) for k, p in params.items()}
    with sdpa_kernel(SDPBackend.MATH):                               # the fused attention has no rule for vmap
        for rows, w in zip(ids.split(chunk), weight.split(chunk)):
            for k, g in vmap(grad(log_p), in_dims=(None, 0, 0))(params, rows, w).items():
                total[k] += g.square().sum(0) / len(ids)
    return total


def ewc(model, day, marks, memory, tokens, lr, weight, samples=64):
    """Elastic weight consolidation: qa + weight/2 sum_w F_w (w - w*)^2; online (arXiv 1805.06370): F adds up, w* is last night's.

    F is the per-sample diagonal Fisher: before the first night of 64 documents that the self says by itself (samples of its own
    distribution: the true Fisher), after each night of 64 quizzes with the teacher's answers. Stores a number a weight.
    """
    asked, params = ask_itself(model, day, marks), dict(model.named_parameters())
    if not memory:
        bank = documents(self_dreams(asked.teacher, marks, samples), marks, model.device)
        memory.update(fisher=fisher(model, bank["ids"], (bank["weight"] > 0).float()))
    anchor = {k: p.detach().clone() for k, p in params.items()}

    def loss():
        drift = sum((memory["fisher"][k] * (p - anchor[k]).square()).sum() for k, p in params.items())
        return quiz_loss(model, asked.z, draw(asked.z), marks) + 0.5 * weight * drift
    log = learn(model, list(params.values()), loss, tokens, lr)
    some = seed.subset(asked.z, torch.randperm(len(asked.z["ids"]), device=model.device)[:samples])
    ids = torch.cat([torch.full_like(some["ids"][:, :1], marks.bos), some["ids"]], 1)
    for k, f in fisher(model, ids, F.pad(some["answers"], (1, 0)).float()).items():
        memory["fisher"][k] += f
    return log


def lwf(model, day, marks, memory, tokens, lr, weight):
    """Learning without forgetting (Li & Hoiem 2016, arXiv 1606.09282): qa + weight * KL(old self || new self) on the new input.

    The new input is all there is of other tasks: the day's passages, each followed by quizzes about it. On these documents the
    self shall go on to answer as the self before the night did.
    """
    asked = ask_itself(model, day, marks)
    chains = {p: [t for q, t in enumerate(seed.unpack(asked.z)) if t[0] == p] for p in set(asked.z["passage"].tolist())}
    rows = [asked.views[p * VIEWS + v] + [t for _, q, a in random.sample(chain, min(3, len(chain))) for t in q + a]
            for p, chain in sorted(chains.items()) for v in range(VIEWS)]
    bank, head = seed.replay_bank(asked.teacher, rows, marks), asked.teacher.wte.weight

    def loss():
        drift = seed.replay_drift(model, bank, head, draw(bank, REPLAYED)).mean()
        return quiz_loss(model, asked.z, draw(asked.z), marks) + weight * drift
    return learn(model, list(model.parameters()), loss, tokens, lr)


# ----------------------------------------------------------------------------------------------------------------------
# Reinforcement and self-distillation

def seal(model, day, marks, memory, tokens, lr):
    """SEAL (arXiv 2506.10943): self-edits, LoRA-SFT on them, ReST-EM on the writer. Dreaming without gradient selection, random
    expert, truth or consolidation.

    The self writes edits (its quizzes, unscreened), learns them by a merged LoRA, and tries 32 random ones on isolated copies:
    those that help more than the average on its own quiz are rewarded and teach the writer, who writes tomorrow's. SEAL rewards
    by labelled questions; here there are none, so the score is the screened self-made quiz.
    """
    asked = ask_itself(model, day, marks, writer=TRIAL)
    pool = seed.pack(seed.no_ramblings(asked.dreamt), model.device)
    log = learn_low_rank(model, lambda: quiz_loss(model, pool, draw(pool), marks), tokens, lr)
    few = seed.subset(pool, torch.randperm(len(pool["ids"]), device=model.device)[:192])
    quiz = seed.subset(asked.z, torch.randperm(len(asked.z["ids"]), device=model.device)[:32])
    _, found = dream.learn_to_dream(model, asked.teacher, TRIAL, few, quiz, asked.views, VIEWS, marks, asked.teach, "random",
                                    0, 24, 8)
    return {**log, **found}


def group_advantage(reward, group):
    """GRPO's advantage (arXiv 2402.03300, Eq. 3 ff.): (r - mean) / std over the rollouts of one prompt. reward (N,)."""
    r = reward.view(-1, group)
    return ((r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-4)).flatten()


def grpo_loss(model, teacher, z, index, marks, group, beta):
    """-1/N sum_y 1/|y| sum_t [A_y ratio_t - beta k3_t], k3 = p_ref/p - log p_ref/p - 1. Returns (loss, mean reward).

    A is the advantage of the reward 1 - lev(y, d)/max(|y|, |d|), d the teacher's own answer: a binary reward would be zero
    everywhere, for a self that has not heard the day answers nothing right. One update per sample: the ratio is 1 (its gradient
    that of log p) and the clip does nothing.
    """
    rows = seed.unpack(seed.subset(z, index))
    said = generate(model, [[marks.bos, *q] for _, q, _ in rows], 12, n=group, stop=[marks.end])
    many = [row for row in rows for _ in range(group)]
    (a, len_a), (b, len_b) = pad_rows(said), pad_rows([list(d) for _, _, d in many])
    reward = 1 - levenshtein(a, b, len_a, len_b).float() / torch.maximum(len_a, len_b)
    y = seed.pack([(p, q, tuple(s)) for (p, q, _), s in zip(many, said)], model.device)
    ids = seed.closed_book(y, slice(None), marks)
    lp = lambda m: F.log_softmax(m.logits(m.hidden(ids)[:, 1:]).float(), -1).gather(2, y["ids"][:, 1:, None])[..., 0]
    log_p = lp(model)
    with torch.no_grad():
        ref = lp(teacher)
    k3 = (ref - log_p).exp() - (ref - log_p) - 1
    gain = group_advantage(reward, group).to(log_p)[:, None] * (log_p - log_p.detach()).exp() - beta * k3
    return -((gain * y["answers"]).sum(1) / y["answers"].sum(1)).mean(), reward.mean()


def grpo(model, day, marks, memory, tokens, lr, group=8, beta=0.04):
    """GRPO (arXiv 2402.03300) on the self-made quiz, closed book, all weights: 4 prompts x 8 rollouts a step."""
    asked, seen = ask_itself(model, day, marks), []

    def loss():
        value, reward = grpo_loss(model, asked.teacher, asked.z, draw(asked.z, BATCH // group), marks, group, beta)
        seen.append(reward)
        return value
    log = learn(model, list(model.parameters()), loss, tokens, lr)
    return {**log, "reward": float(torch.stack(seen[-20:]).mean())}


def opsd(model, day, marks, memory, tokens, lr, group=4):
    """On-policy self-distillation (arXiv 2601.18734) without expansion, all weights: the self that holds the day comments every
    token that the self without it says, by reverse KL. 8 prompts x 4 rollouts a step.
    """
    asked = ask_itself(model, day, marks)
    loss = lambda: seed.on_policy_loss(model, asked.z, draw(asked.z, BATCH // group), asked.teach, marks, group, "reverse", 0.5,
                                       alpha=1.0, gamma=0.5, z0=2, max_new=12)[0]
    return learn(model, list(model.parameters()), loss, tokens, lr)


# ----------------------------------------------------------------------------------------------------------------------
# InCA: an external memory, no learning

def features(model, rows):
    """(N, n_embd): the mean of the frozen base's token features (seed.heard) over each row of ids, without marks."""
    ids, lengths = pad_rows(rows, model.device)
    keep = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None])[..., None]
    with torch.no_grad():
        return (seed.heard(model, ids) * keep).sum(1) / keep.sum(1)


def mahalanobis(x, means, cov, shrink=1e-2):
    """(N, K) squared distances (x - m)' C^-1 (x - m), C = cov + shrink * mean(diag cov) * I. x (N, d), means (K, d)."""
    C = cov + shrink * cov.diagonal().mean() * torch.eye(len(cov), device=cov.device, dtype=cov.dtype)
    root = torch.linalg.cholesky(C)
    white = lambda v: torch.linalg.solve_triangular(root, v.T, upper=False).T
    return torch.cdist(white(x), white(means)).square()


def add_class(memory, x):
    """One more Gaussian in memory {means (K, d), cov (d, d)}, from its samples x (n, d); cov: the mean of the classes' own."""
    mean = x.mean(0, keepdim=True)
    K, spread = len(memory.setdefault("means", mean[:0])), (x - mean).T @ (x - mean) / len(x)
    memory["cov"] = (K * memory["cov"] + spread) / (K + 1) if K else spread
    memory["means"] = torch.cat([memory["means"], mean])


def inca(model, day, marks, memory, tokens):
    """InCA (arXiv 2412.15563), translated: a class is a passage. STORES TEXT: every passage, and a Gaussian to find it by.

    The paper keeps, for each class, the mean of frozen features of its samples' tags, one covariance shared by all (the mean
    over classes, kept up incrementally), and a summary. Here the samples are the passage's sentences and the self's quizzes
    about it, the summary is the passage itself. The model never learns; see `inca_answer`.
    """
    asked = ask_itself(model, day, marks)
    for p, passage in enumerate(day):
        add_class(memory, features(model, passage + [q[1:-1] for i, q, _ in seed.unpack(asked.z) if i == p]))
        memory.setdefault("texts", []).append(asked.views[p * VIEWS])
    return {"passages": len(memory["texts"])}


def plain_answer(model, prompts, marks, memory):
    """Greedy answers to prompts (lists of ids that end in <answer>): lists of ids."""
    return generate(model, prompts, 16, temperature=0, stop=[marks.end])


def inca_answer(model, prompts, marks, memory, k=3, margin=1.0):
    """The k nearest stored passages by Mahalanobis distance of the question; then the model decides which of them, or none.

    It takes the context that makes the question likeliest, log p(question | passage); the prompt as asked (old people, a context
    of its own) has `margin` nats ahead, the margin of seed.screen. The answer is then given with that passage in context.
    """
    if not memory:
        return plain_answer(model, prompts, marks, memory)
    at = [len(p) - 1 - p[::-1].index(marks.ask) for p in prompts]
    k = min(k, len(memory["texts"]))
    near = mahalanobis(features(model, [p[i + 1:-1] for p, i in zip(prompts, at)]), memory["means"], memory["cov"])
    near = near.topk(k, largest=False)[1].tolist()
    heads = [[p[:i]] + [memory["texts"][j] for j in js] for p, i, js in zip(prompts, at, near)]
    tails = [p[i:] for p, i in zip(prompts, at)]
    ids, lengths = pad_rows([h + t for hs, t in zip(heads, tails) for h in hs], model.device)
    begin = torch.tensor([len(h) for hs in heads for h in hs], device=ids.device)
    with torch.no_grad():
        lp = torch.cat([F.log_softmax(model(part[:, :-1]).float(), -1).gather(2, part[:, 1:, None])[..., 0]
                        for part in ids.split(64)])
    pos = torch.arange(1, ids.shape[1], device=ids.device)           # position of each predicted token; <ask> itself is given
    score = (lp * ((pos > begin[:, None]) & (pos < lengths[:, None] - 1))).sum(1).view(len(prompts), k + 1)
    score[:, 0] += margin
    best = score.argmax(1).tolist()
    return plain_answer(model, [hs[b] + t for hs, b, t in zip(heads, best, tails)], marks, memory)


# ----------------------------------------------------------------------------------------------------------------------
# The bound

def joint(model, days, marks, memory, tokens, lr):
    """Joint training, the upper bound. SEES ALL DAYS AT ONCE and 320 documents of pretraining; the tokens of as many nights."""
    z = seed.pack([quiz for day in days for quiz in seed.unpack(ask_itself(model, day, marks).z)], model.device)
    bank = documents(memory["pretraining"], marks, model.device)
    loss = lambda: quiz_loss(model, z, draw(z), marks) + document_loss(model, bank, draw(bank, REPLAYED))
    return learn(model, list(model.parameters()), loss, tokens * len(days), lr)


DAY, STORED, ALL = "the day", "the day + stored text", "all days at once + pretraining text"
FULL, LOW = {"lr": [1e-3, 3e-3, 1e-2]}, {"lr": [3e-3, 1e-2, 3e-2]}   # all weights; low-rank weights like larger steps
METHODS = {  # name: (night, what it may see, what is searched on a validation world)
    "none": (none, "nothing", {}), "sft": (sft, DAY, FULL), "sft_lora": (sft_lora, DAY, LOW), "ttt": (ttt, DAY, LOW),
    "qa": (qa, DAY, FULL), "qa_replay": (qa_replay, DAY, FULL), "ewc": (ewc, DAY, {**FULL, "weight": [0.3, 30.0]}),
    "lwf": (lwf, DAY, {**FULL, "weight": [1.0, 10.0]}), "seal": (seal, DAY, LOW), "grpo": (grpo, DAY, FULL),
    "opsd": (opsd, DAY, FULL), "replay": (replay, STORED, FULL), "inca": (inca, STORED, {}), "joint": (joint, ALL, FULL)}
DEFAULTS = {m: {"lr": grid.get("lr", FULL["lr"])[1]} for m, (*_, grid) in METHODS.items() if grid}        # without a search
DEFAULTS["ewc"]["weight"], DEFAULTS["lwf"]["weight"] = 3.0, 3.0
