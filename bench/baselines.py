"""
What else one could do with a day and a night: the rivals of bench/knowledge.py, a function each.

    name(model, passages, marks, memory, tokens, lr=...) -> log     changes the model in place

passages: those of the day, as lists of sentences of token ids. memory: a dict that a method carries
from night to night. METHODS says what each may see; bench/knowledge.py asserts it before every
night. Those that see "the day" obey the rules of sleep: the text is gone in the morning, nothing of
it is stored. No exam and no fact reaches this file.

Equal for all that learn: the base, the passages, the quizzes (seed.py: written, screened, crossed,
looked up), the tokens that go through the learner in a night (those it samples for itself
included), 32 quizzes or rollouts a step, Adam with warm-up and linear decay (sleep's experts learn
by Muon), and three tries of the learning rate (ewc, lwf: two more of their weight). What is not
equal, its docstring says.
"""
import random
from collections import namedtuple
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize

import dream
import seed
from data.asking import ask_everything, look_up, one_by_one, screen, thing_by_thing
from data.engine import generate, pad_rows
from data.gate import greedy, states
from data.kernels import levenshtein
from data.quizzes import answer_mask, behind_bos, closed_book, pack, question_mask, take, unpack
from dream import VIEWS
from model import FAST, clone

DOCUMENTS, DREAMS = 6, 320          # as in sleep: documents of questions a view; dreams of the old
BATCH, REPLAYED = 32, 4             # quizzes, and replayed documents, a step
ASKED, READ = 0.3, 0.05             # weight of the words of a question, of a passage; an answer: 1
Day = namedtuple("Day", "passages study", defaults=[()])    # as in data/text.py
PLAIN = SimpleNamespace(imitate=0, divergence="reverse")


# --------------------------------------------------------------------------------------------------
# What they share

def learn(model, params, loss_of, tokens, lr):
    """Adam on loss_of() until so many tokens went through the model. Only params move."""
    used, step = [0], 0

    def count(module, args, out):
        used[0] += args[0].numel()
    handle = model.wte.register_forward_hook(count)
    for p in params:
        p.requires_grad_(True)
    opt = torch.optim.Adam(params, lr=lr)
    while used[0] < tokens:
        fade = 1 - 0.95 * used[0] / tokens
        opt.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 8) * fade
        loss, step = loss_of(), step + 1
        opt.zero_grad()
        loss.backward()
        opt.step()
    for p in params:
        p.requires_grad_(False)
    handle.remove()
    return {"loss": float(loss.detach()), "steps": step}


def everything(model):
    return list(model.parameters())


class LowRank(nn.Module):
    """LoRA (arXiv 2106.09685): W + B A with B = 0 at first."""
    def __init__(self, W, rank):
        super().__init__()
        self.A = nn.Parameter(torch.randn(rank, W.shape[1]).to(W) * W.shape[1] ** -0.5)
        self.B = nn.Parameter(W.new_zeros(W.shape[0], rank))

    def forward(self, W):
        return W + self.B @ self.A


def learn_low_rank(model, loss_of, tokens, lr, rank=8):
    """As `learn`, but low-rank changes of the linear layers alone, merged into them afterwards."""
    layers = [m for m in model.blocks.modules() if isinstance(m, nn.Linear)]
    for m in layers:
        parametrize.register_parametrization(m, "weight", LowRank(m.weight, rank))
    added = [p for m in layers for p in m.parametrizations.weight[0].parameters()]
    log = learn(model, added, loss_of, tokens, lr)
    for m in layers:
        parametrize.remove_parametrizations(m, "weight")             # W + B A is the new W
    return log


def text_loss(model, passages, marks):
    """-log p of every next token of the passages, their sentences shuffled anew; mean."""
    ids, lengths = pad_rows(dream.views_of(passages, marks, random, 1), model.device)
    here = torch.arange(1, ids.shape[1], device=ids.device) < lengths[:, None]
    return F.cross_entropy(model(ids[:, :-1])[here].float(), ids[:, 1:][here])


def ask_itself(model, passages, marks, writer=False):
    """The first half of seed.night: the self that holds the day asks itself about it.

    Returns the teacher and what it dreamt, [(passage, question, answer)], passages being things
    (data/asking.py), and the quizzes z that sleep would learn. Raises seed.RestlessNight if there
    are none.
    """
    day = Day(passages)
    teacher = seed.hold(model, one_by_one(day), marks)
    z = screen(teacher, dream.write(teacher, marks, DOCUMENTS, writer), marks)
    z, things, found = thing_by_thing(teacher, z, day, marks)
    teacher = seed.hold(model, things, marks)._replace(**found)
    dreamt = dream.write(teacher, marks, DOCUMENTS, writer)
    z = ask_everything(teacher, z, marks)
    z = look_up(teacher, z, marks, seed.reader(teacher))._replace(since=None)
    return SimpleNamespace(teacher=teacher, dreamt=dreamt, z=z)


def draw(z, n=BATCH):
    """n quizzes of z, any of them and each perhaps more than once."""
    return take(z, torch.randint(len(z.ids), (n,), device=z.ids.device))


def quiz_loss(model, z, marks):
    """Closed book -log p(answer | question), and a little of -log p(question): what is never asked
    is never dreamt again."""
    h = model.hidden(closed_book(z, marks))[:, len(marks.bos):]
    nll = F.cross_entropy(model.logits(h).float().transpose(1, 2), z.ids[:, 1:], reduction="none")
    weight = answer_mask(z) + ASKED * question_mask(z, marks)
    return (nll * weight).sum() / weight.sum()


def self_dreams(teacher, marks, n):
    """What the self says with an empty context: documents, and (LAMOL's way to call up a task)
    questions from <ask> on."""
    asked = generate(teacher, [[*marks.bos, *marks.ask]], 120, n=n // 2, stop=[*marks.bos])
    return dream.replay(teacher, marks, n // 2) + [[*marks.bos, *marks.ask, *row] for row in asked]


def documents(rows, marks, device):
    """Rows of ids -> (ids (N, T), weight (N, T-1)): answers 1, questions and passages little."""
    ids, _ = pad_rows(rows, device)
    weights = []
    for row in rows:
        now, of = READ, []
        for token in row:
            now = ASKED if token == marks.ask[0] else now
            of.append(now)
            now = {marks.answer[0]: 1.0, marks.end: READ}.get(token, now)
        weights.append(of[1:] + [0.0] * (ids.shape[1] - len(row)))
    return ids, torch.tensor(weights, device=device)


def document_loss(model, bank, n=REPLAYED):
    """Weighted -log p of n documents of a bank: replay with hard labels."""
    at = torch.randint(len(bank[0]), (n,), device=model.device)
    ids, weight = (t[at] for t in bank)
    here = weight > 0
    logits = model.logits(model.hidden(ids[:, :-1])[here]).float()
    nll = F.cross_entropy(logits, ids[:, 1:][here], reduction="none")
    return (nll * weight[here]).sum() / weight.sum()


# --------------------------------------------------------------------------------------------------
# Next-token learning on the passages

def none(model, passages, marks, memory, tokens):
    """Nothing: the context ends, the day is forgotten."""
    return {}


def sft(model, passages, marks, memory, tokens, lr):
    """Sequential fine-tuning (continued pretraining) on the day's text, all weights."""
    return learn(model, everything(model), lambda: text_loss(model, passages, marks), tokens, lr)


def sft_lora(model, passages, marks, memory, tokens, lr):
    """The same, but a LoRA of rank 8 on every linear layer, merged after the night."""
    return learn_low_rank(model, lambda: text_loss(model, passages, marks), tokens, lr)


def ttt(model, passages, marks, memory, tokens, lr):
    """Test-time training (arXiv 2407.04620; on the MLP's fast weights as in 2512.23675).

    The fast weights are one low-rank memory a block, awake at every token, kept and trained on over
    all nights: TTT proper empties them with the context, and then knows nothing in the morning.
    """
    if model.n_experts(FAST):
        params = model.reopen(FAST)
    else:
        nothing = torch.zeros(1, len(model.metric))                  # a gate that is always open
        model.remember_things(nothing, torch.full((1,), 1e30), FAST, 0)
        params = model.unlock(FAST)

    def loss():
        ids, lengths = pad_rows(dream.views_of(passages, marks, random, 1), model.device)
        here = torch.arange(1, ids.shape[1], device=ids.device) < lengths[:, None]
        zero = torch.zeros_like(lengths)
        logits = model(ids[:, :-1], awake={FAST: (zero, zero)})
        return F.cross_entropy(logits[here].float(), ids[:, 1:][here])
    log = learn(model, params, loss, tokens, lr)
    model.settle(FAST)
    return log


# --------------------------------------------------------------------------------------------------
# Learning from self-made quizzes, and protecting what is old

def qa(model, passages, marks, memory, tokens, lr):
    """SFT on the self-made quizzes, closed book, all weights: SEAL's "SFT on synthetic data"
    (arXiv 2506.10943)."""
    z = ask_itself(model, passages, marks).z
    return learn(model, everything(model), lambda: quiz_loss(model, draw(z), marks), tokens, lr)


def qa_replay(model, passages, marks, memory, tokens, lr):
    """The same with generative replay (arXiv 1705.08690; LAMOL, 1909.03329): the self before the
    night says 320 documents with an empty context; 4 of them a step are learnt again."""
    asked = ask_itself(model, passages, marks)
    bank = documents(self_dreams(asked.teacher.model, marks, DREAMS), marks, model.device)

    def loss():
        return quiz_loss(model, draw(asked.z), marks) + document_loss(model, bank)
    return learn(model, everything(model), loss, tokens, lr)


def replay(model, passages, marks, memory, tokens, lr):
    """Experience replay (arXiv 1902.10486). STORES TEXT: every quiz and passage of earlier days.

    memory["pretraining"]: 320 documents of the base's pretraining. A step: 32 quizzes of today, 16
    of earlier days, 4 stored documents. The store is never emptied.
    """
    asked = ask_itself(model, passages, marks)
    past, texts = memory.setdefault("quizzes", []), memory.setdefault("texts", [])
    old = pack(past, model.device) if past else None
    bank = documents(memory["pretraining"] + texts, marks, model.device)

    def loss():
        total = quiz_loss(model, draw(asked.z), marks) + document_loss(model, bank)
        return total + quiz_loss(model, draw(old, 16), marks) if old else total
    log = learn(model, everything(model), loss, tokens, lr)
    past.extend(unpack(asked.z))
    texts.extend([*marks.bos, *(t for s in passage for t in s)] for passage in passages)
    return log


def squared_gradients(model, log_p, samples, chunk=16):
    """Diagonal Fisher information: {name: mean over samples of (d/dw log p(sample))^2}.

    log_p(net, *sample) -> a number; net(x) is the model. samples: tensors, a row a sample. Squared
    sample by sample and then averaged, not the square of the averaged gradient (arXiv 1612.00796).
    """
    params = {k: p.detach() for k, p in model.named_parameters()}

    def of(params, *sample):
        return log_p(lambda x: functional_call(model, params, (x,)), *sample)
    each = vmap(grad(of), (None, *[0] * len(samples)))
    total = {k: torch.zeros_like(p) for k, p in params.items()}
    with sdpa_kernel(SDPBackend.MATH):                               # the fused one knows no vmap
        for part in zip(*(t.split(chunk) for t in samples)):
            for k, g in each(params, *part).items():
                total[k] += g.square().sum(0) / len(samples[0])
    return total


def fisher(model, ids, weight, chunk=16):
    """Of texts: ids (N, T), weight (N, T-1), log p(n) = sum_t weight * log p(ids[n, t+1] | ...)."""
    def log_p(net, row, w):
        said = F.log_softmax(net(row[None, :-1])[0].float(), -1).gather(1, row[1:, None])[:, 0]
        return (said * w).sum()
    return squared_gradients(model, log_p, (ids, weight), chunk)


def ewc(model, passages, marks, memory, tokens, lr, weight, samples=64):
    """Elastic weight consolidation: qa + weight/2 sum_w F_w (w - w*)^2; online (arXiv 1805.06370):
    F adds up, w* is last night's. It stores a number a weight.

    F: before the first night of 64 documents that the self says by itself (samples of its own
    distribution: the true Fisher), after each night of 64 quizzes.
    """
    asked, params = ask_itself(model, passages, marks), dict(model.named_parameters())
    if not memory:
        bank = documents(self_dreams(asked.teacher.model, marks, samples), marks, model.device)
        memory.update(fisher=fisher(model, bank[0], (bank[1] > 0).float()))
    anchor = {k: p.detach().clone() for k, p in params.items()}

    def loss():
        moved = sum((memory["fisher"][k] * (p - anchor[k]).square()).sum()
                    for k, p in params.items())
        return quiz_loss(model, draw(asked.z), marks) + 0.5 * weight * moved
    log = learn(model, everything(model), loss, tokens, lr)
    some = seed.some(asked.z, samples)
    ids = behind_bos(some.ids, marks)
    for k, f in fisher(model, ids, F.pad(answer_mask(some), (1, 0)).float()).items():
        memory["fisher"][k] += f
    return log


def lwf(model, passages, marks, memory, tokens, lr, weight):
    """Learning without forgetting (arXiv 1606.09282): qa + weight * KL(old self || new self) on the
    new input, the only input there is: passages, each followed by quizzes about it."""
    asked, chains = ask_itself(model, passages, marks), {}
    for p, q, y in unpack(asked.z):
        chains.setdefault(p, []).append([*q, *y])
    rows = [asked.teacher.readings[p * VIEWS + v] +
            [t for pair in random.sample(chain, min(3, len(chain))) for t in pair]
            for p, chain in sorted(chains.items()) for v in range(VIEWS)]
    ids, lengths = pad_rows([row[:model.config.block_size] for row in rows], model.device)
    here = torch.arange(1, ids.shape[1], device=ids.device) < lengths[:, None]
    with torch.no_grad():
        bank = ids, asked.teacher.model.hidden(ids[:, :-1]), here

    def loss():
        moved = seed.drift(model, bank, None, REPLAYED).mean()
        return quiz_loss(model, draw(asked.z), marks) + weight * moved
    return learn(model, everything(model), loss, tokens, lr)


# --------------------------------------------------------------------------------------------------
# Reinforcement and self-distillation

def seal(model, passages, marks, memory, tokens, lr):
    """SEAL (arXiv 2506.10943): self-edits, LoRA-SFT on them, ReST-EM on the writer.

    The self writes edits (its quizzes, unscreened), learns them by a merged LoRA, and tries 32
    random ones on isolated copies: those that help more than the average on its own quiz teach the
    writer of tomorrow's. SEAL rewards by labelled questions; here there are none, so the score is
    the screened self-made quiz.
    """
    asked = ask_itself(model, passages, marks, writer=True)
    teacher = asked.teacher
    longest = sorted(len(q) + len(y) for _, q, y in asked.dreamt)[int(0.97 * len(asked.dreamt))]
    pool = pack([t for t in asked.dreamt if len(t[1]) + len(t[2]) <= longest], model.device)
    log = learn_low_rank(model, lambda: quiz_loss(model, draw(pool), marks), tokens, lr)
    found = dream.learn_to_dream(model, teacher.model, seed.some(pool, dream.POOL),
                                 seed.some(asked.z, 32), teacher, marks,
                                 seed.reader(teacher), "random")
    return log | found


def group_advantage(reward, group):
    """GRPO's advantage (arXiv 2402.03300, Eq. 3 ff.): (r - mean) / std over the rollouts of one
    prompt. reward (N,)."""
    r = reward.view(-1, group)
    return ((r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-4)).flatten()


def said(model, y, marks):
    """log p of each token of quizzes y, closed book: (N, T-1)."""
    h = model.hidden(closed_book(y, marks))[:, len(marks.bos):]
    return F.log_softmax(model.logits(h).float(), -1).gather(2, y.ids[:, 1:, None])[..., 0]


def grpo_loss(model, old, z, marks, group, beta):
    """-1/N sum_y 1/|y| sum_t [A_y ratio_t - beta k3_t], k3 = p_old/p - log p_old/p - 1.

    A: advantage of the reward 1 - lev(y, d)/max(|y|, |d|), d the teacher's own answer: a binary one
    would be zero everywhere, for a self that has not heard the day answers nothing right. One
    update a sample: the ratio is 1 (its gradient that of log p) and the clip does nothing. Returns
    (loss, mean reward).
    """
    many = [row for row in unpack(z) for _ in range(group)]
    ys = generate(model, [[*marks.bos, *q] for _, q, _ in many[::group]], 12, n=group,
                  stop=[marks.end])
    (a, len_a), (b, len_b) = (pad_rows(rows, model.device) for rows in (ys, [y for *_, y in many]))
    reward = 1 - levenshtein(a, b, len_a, len_b).float() / torch.maximum(len_a, len_b)
    y = pack([(p, q, tuple(row)) for (p, q, _), row in zip(many, ys)], model.device)
    log_p = said(model, y, marks)
    with torch.no_grad():
        gap = said(old, y, marks) - log_p
    k3 = (gap + log_p.detach() - log_p).exp() - (gap + log_p.detach() - log_p) - 1
    ratio = (log_p - log_p.detach()).exp()
    gain = group_advantage(reward, group).to(log_p)[:, None] * ratio - beta * k3
    mask = answer_mask(y)
    return -((gain * mask).sum(1) / mask.sum(1)).mean(), reward.mean()


def grpo(model, passages, marks, memory, tokens, lr, group=8, beta=0.04):
    """GRPO on the self-made quiz, closed book, all weights: 4 prompts x 8 rollouts a step."""
    asked, seen = ask_itself(model, passages, marks), []
    old = asked.teacher.model

    def loss():
        value, reward = grpo_loss(model, old, draw(asked.z, BATCH // group), marks, group, beta)
        seen.append(reward)
        return value
    log = learn(model, everything(model), loss, tokens, lr)
    return log | {"reward": float(torch.stack(seen[-20:]).mean())}


def opsd(model, passages, marks, memory, tokens, lr):
    """On-policy self-distillation (arXiv 2601.18734) without expansion, all weights: the self that
    holds the day comments every token that the self without it says, by reverse KL."""
    asked = ask_itself(model, passages, marks)
    z, teach = take(asked.z, ~asked.z.recalled), seed.reader(asked.teacher)
    if not len(z.ids):
        raise seed.RestlessNight("the day says nothing that memory does not")
    z = z._replace(since=torch.zeros_like(z.start))

    def loss():
        return seed.on_policy_loss(model, draw(z, BATCH // seed.GROUP), teach, marks, None,
                                   PLAIN)[0]
    return learn(model, everything(model), loss, tokens, lr)


# --------------------------------------------------------------------------------------------------
# InCA: an external memory, no learning

@torch.no_grad()
def features(model, rows):
    """(N, n_embd): the mean over each row of ids of what the gate of sleep hears of it."""
    ids, lengths = pad_rows(rows, model.device)
    here = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None])[..., None]
    return (states(model, ids) * here).sum(1) / here.sum(1)


def mahalanobis(x, means, cov, shrink=1e-2):
    """(N, K) squared distances (x - m)' C^-1 (x - m), C = cov + shrink * mean(diag cov) * I.
    x (N, d), means (K, d)."""
    one = torch.eye(len(cov), device=cov.device, dtype=cov.dtype)
    root = torch.linalg.cholesky(cov + shrink * cov.diagonal().mean() * one)
    x, means = (torch.linalg.solve_triangular(root, v.T, upper=False).T for v in (x, means))
    return torch.cdist(x, means).square()


def add_class(memory, x):
    """One more Gaussian in memory {means (K, d), cov (d, d)}, from its samples x (n, d); cov: the
    mean of the classes' own."""
    mean = x.mean(0, keepdim=True)
    K, spread = len(memory.setdefault("means", mean[:0])), (x - mean).T @ (x - mean) / len(x)
    memory["cov"] = (K * memory["cov"] + spread) / (K + 1) if K else spread
    memory["means"] = torch.cat([memory["means"], mean])


def inca(model, passages, marks, memory, tokens):
    """InCA (arXiv 2412.15563), translated: a class is a passage. STORES TEXT: every passage, and a
    Gaussian to find it by.

    The paper keeps of each class the mean of frozen features of its samples' tags, one covariance
    shared by all, and a summary. Here the samples are the passage's sentences and the self's
    quizzes about it, the summary is the passage. The model never learns; see `look_it_up`.
    """
    asked = ask_itself(model, passages, marks)
    for p, passage in enumerate(passages):
        quizzes = [list(q[1:-1]) for k, q, _ in unpack(asked.z) if p in asked.teacher.home[k]]
        add_class(memory, features(model, passage + quizzes))
        memory.setdefault("texts", []).append([*marks.bos, *(t for s in passage for t in s)])
    return {"passages": len(memory["texts"])}


@torch.no_grad()
def look_it_up(memory, model, marks, asked, max_new=24, k=3, margin=1.0):
    """In the place of gate.remember: the k nearest passages by Mahalanobis distance of the
    question; of them the one that makes the question likeliest, if by more than `margin` nats (that
    of seed.screen); the answer is given with it in context. Returns [(answer ids, source)]."""
    empty, texts = [*marks.bos], memory.get("texts", [])
    context = [empty] * len(asked)
    if texts:
        near = mahalanobis(features(model, [q[1:-1] for q in asked]), memory["means"],
                           memory["cov"])
        near = near.topk(min(k, len(texts)), largest=False)[1].tolist()
        heads = [[empty] + [texts[j] for j in js] for js in near]
        likely = torch.stack([question_log_p(model, some, asked) for some in zip(*heads)], 1)
        likely[:, 0] += margin
        context = [hs[best] for hs, best in zip(heads, likely.argmax(1).tolist())]
    rows = greedy(model, [[*c, *q] for c, q in zip(context, asked)], marks, max_new)
    return [(row, None) for row in rows]


def question_log_p(model, heads, asked):
    """log p(question | head) of each row, its <ask> and <answer> not counted: (N,)."""
    out = []
    for i in range(0, len(asked), 64):
        some = list(zip(heads, asked))[i:i + 64]
        ids, lengths = pad_rows([[*h, *q] for h, q in some], model.device)
        begin = torch.tensor([len(h) for h, _ in some], device=ids.device)
        at = torch.arange(1, ids.shape[1], device=ids.device)
        here = (at > begin[:, None]) & (at < lengths[:, None] - 1)
        log_p = F.log_softmax(model(ids[:, :-1]).float(), -1).gather(2, ids[:, 1:, None])[..., 0]
        out.append((log_p * here).sum(1))
    return torch.cat(out)


# --------------------------------------------------------------------------------------------------
# The bound

def joint(model, days, marks, memory, tokens, lr):
    """Joint training, the upper bound. SEES ALL DAYS AT ONCE and 320 documents of pretraining; the
    tokens of as many nights."""
    old = clone(model)
    pairs = [t for day in days for t in unpack(ask_itself(old, day, marks).z)]
    z, bank = pack(pairs, model.device), documents(memory["pretraining"], marks, model.device)

    def loss():
        return quiz_loss(model, draw(z), marks) + document_loss(model, bank)
    return learn(model, everything(model), loss, tokens * len(days), lr)


DAY, STORED = "the day", "the day + stored text"
ALL = "all days at once + pretraining text"
FULL, LOW = {"lr": [1e-3, 3e-3, 1e-2]}, {"lr": [3e-3, 1e-2, 3e-2]}   # low rank likes larger steps
METHODS = {  # name: (night, what it may see, what is searched on a validation world)
    "none": (none, "nothing", {}), "sft": (sft, DAY, FULL), "sft_lora": (sft_lora, DAY, LOW),
    "ttt": (ttt, DAY, LOW), "qa": (qa, DAY, FULL), "qa_replay": (qa_replay, DAY, FULL),
    "ewc": (ewc, DAY, {**FULL, "weight": [0.3, 30.0]}),
    "lwf": (lwf, DAY, {**FULL, "weight": [1.0, 10.0]}), "seal": (seal, DAY, LOW),
    "grpo": (grpo, DAY, FULL), "opsd": (opsd, DAY, FULL), "replay": (replay, STORED, FULL),
    "inca": (inca, STORED, {}), "joint": (joint, ALL, FULL)}
DEFAULTS = {m: {"lr": grid["lr"][1]} for m, (*_, grid) in METHODS.items() if grid}    # no search
DEFAULTS["ewc"]["weight"], DEFAULTS["lwf"]["weight"] = 3.0, 3.0
