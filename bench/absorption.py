"""
Absorber LLM (arXiv 2604.20915), the neighbour of Knowledge Seeding: a context is not dreamt about,
it is absorbed.

A context X must leave the window. What comes after it, Y, is still there. New weights W* are found
such that the model without the context has the same hidden states on Y, in all layers l, as the old
model with it (Algorithm 1):

    min  sum_l | h_l(Y; W*) - h_l(XY; W) at Y |_1     W* = W + A B (LoRA), AdamW, at most K steps
    W*                                                or a threshold

Then X is dropped, the window slides and the next n tokens are absorbed on top (Algorithm 2): memory
stays constant. There is no router: what is absorbed is always on. Beside it, with the same LoRA,
the same K and the same threshold:

    last layer   the L1 loss on the last layer alone     labels     cross-entropy on the labels in Y
    logits       KL of the next-token distributions      ttt        next-token loss on X itself
    truncation   nothing is done, X is lost              ttt items  the same, X cut into items
    full         X stays in the window

The tasks are in bench/absorber_tasks.py, the command is bench/absorber.py.
"""
import random
import time
from contextlib import contextmanager

import torch
import torch.nn.functional as F

import dream
import seed as seeding
from data.engine import pad_rows
from seed import divergence

METHODS = ("hidden", "last layer", "logits", "labels", "ttt", "ttt items")


# --------------------------------------------------------------------------------------------------
# LoRA by hand, one adapter for each document of a batch

def lora(model, rank, n=1, seed=0, merged=None, where=""):
    """n fresh low-rank adapters of every matrix in the blocks: {name: (M, A, B)}; x W becomes
    x W + x (M + A B).

    where: only matrices with this in their name. A (n, in, rank) is random, B (n, rank, out) zero:
    not one bit changes yet (Hu et al. 2021). M (n, in, out), or None, is what was absorbed before.
    Raises ValueError for a rank that is no rank of a matrix.
    """
    gen, new = torch.Generator().manual_seed(seed), {}
    for name, layer in model.blocks.named_modules():
        if isinstance(layer, torch.nn.Linear) and where in name:
            if not 1 <= rank <= min(layer.weight.shape):
                raise ValueError(f"rank {rank} does not fit a matrix of "
                                 f"{tuple(layer.weight.shape)}: choose 1 to "
                                 f"{min(layer.weight.shape)}")
            A = torch.randn(1, layer.in_features, rank, generator=gen) * layer.in_features ** -0.5
            A = A.to(layer.weight).repeat(n, 1, 1).requires_grad_()
            new[name] = (merged and merged[name], A,
                         layer.weight.new_zeros(n, rank, layer.out_features).requires_grad_())
    return new


def merge(adapter):
    """M + A B of each matrix: the memory that the next absorption starts from has the size of the
    weights, for ever."""
    return {k: (A @ B).detach() + (0 if M is None else M) for k, (M, A, B) in adapter.items()}


def settle(model, adapter):
    """Add an adapter of one document to the model's own weights, in place."""
    with torch.no_grad():
        for name, delta in merge(adapter).items():
            model.blocks.get_submodule(name).weight += delta[0].T


@contextmanager
def wearing(model, adapter):
    """Inside, the i-th n-th part of the rows of a batch goes through the adapter of document i."""
    def hook(M, A, B):
        def add(layer, args, out):
            x = args[0].reshape(len(A), -1, args[0].shape[-1])       # (documents, their tokens, in)
            y = (x @ A) @ B if M is None else (x @ A) @ B + x @ M
            return out + y.view_as(out)
        return add
    hooks = [model.blocks.get_submodule(k).register_forward_hook(hook(*v))
             for k, v in (adapter or {}).items()]
    try:
        yield
    finally:
        for h in hooks:
            h.remove()


# --------------------------------------------------------------------------------------------------
# Algorithm 1. A document: {"x": ids with <bos>, "items": its parts, "ys": continuations, "says":
# True at each y's labels}

def share(hit, where=None):
    """Mean of a tensor, or of its part; None where there is nothing to average."""
    hit = hit if where is None else hit[where]
    return float(hit.float().mean()) if hit.numel() else None


def states(model, ids):
    """Hidden states after every block, no expert awake: ids (N, T) -> (n_layer, N, T, n_embd)."""
    seen = []

    def see(layer, args, out):
        seen.append(out)
    hooks = [block.levels[-1].register_forward_hook(see) for block in model.blocks]
    try:
        model.hidden(ids)
    finally:
        for h in hooks:
            h.remove()
    return torch.stack(seen)


@torch.no_grad()
def targets(model, adapter, docs, bos):
    """What f_W with X in its context thinks at Y's positions, for all continuations y in turn.

    ids (N, 1+Y): <bos> y, all that the student sees, its positions start again at 0; keep (N, Y);
    says (N, Y-1): the next token is a label; states (n_layer, N, Y, n_embd); log_p (N, Y, V).
    """
    xs, ys = [d["x"] for d in docs for _ in d["ys"]], [y for d in docs for y in d["ys"]]
    ids, lengths = pad_rows([[bos] + y for y in ys], model.device)
    both, _ = pad_rows([x + y for x, y in zip(xs, ys)], model.device)
    says, _ = pad_rows([s for d in docs for s in d["says"]], model.device)
    j = torch.arange(ids.shape[1] - 1, device=model.device)
    begin = torch.tensor([len(x) for x in xs], device=model.device)
    at = (begin[:, None] + j).clamp(max=both.shape[1] - 1)           # (N, Y)
    with wearing(model, adapter):
        h = states(model, both)
    h = h.gather(2, at[None, :, :, None].expand(len(h), -1, -1, h.shape[-1]))
    log_p = F.log_softmax(model.logits(model.norm(h[-1])).float(), -1)
    return {"ids": ids, "keep": j < lengths[:, None] - 1, "says": says[:, 1:] > 0, "states": h,
            "log_p": log_p}


def alignment(model, z, how):
    """The loss of each continuation in z, mean over its tokens: (N,). The student has <bos> y and
    no X."""
    h = states(model, z["ids"])[:, :, 1:]
    if how == "hidden":                                              # Absorber: L1, all layers
        return over_tokens((h - z["states"]).abs().mean((0, 3)), z["keep"])
    if how == "last layer":
        return over_tokens((h[-1] - z["states"][-1]).abs().mean(2), z["keep"])
    logits = model.logits(model.norm(h[-1])).float()
    if how == "logits":                                              # KL(f_W(XY) || f_W*(Y))
        return over_tokens(divergence(z["log_p"], F.log_softmax(logits, -1)), z["keep"])
    loss = F.cross_entropy(logits[:, :-1].transpose(1, 2), z["ids"][:, 2:], reduction="none")
    return over_tokens(loss, z["says"])


def over_tokens(loss, keep):
    """Mean of a loss (N, T) over the tokens to keep: (N,)."""
    return (loss * keep).sum(1) / keep.sum(1).clamp(min=1)


def next_token(model, ids, lengths):
    """Next-token loss of each row, mean over its tokens: (N,)."""
    keep = torch.arange(1, ids.shape[1], device=ids.device) < lengths[:, None]
    logits = model.logits(model.hidden(ids[:, :-1])).float()
    loss = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (loss * keep).sum(1) / keep.sum(1)


def fit(model, adapter, loss_of, steps, threshold, lr, bar=None):
    """AdamW on every document's own A and B; loss_of() -> (n,).

    A document rests once its loss <= threshold x its first. The threshold is relative (ours; the
    paper's epsilon is absolute and would depend on the scale of the hidden states). Returns (steps
    taken (n,), last loss / first loss (n,)).
    """
    params = [p for _, A, B in adapter.values() for p in (A, B)]
    opt, taken, first = torch.optim.AdamW(params, lr=lr, weight_decay=0.01), 0, None
    for step in range(steps):
        with wearing(model, adapter):
            loss = loss_of()
            if first is None:
                first, busy = loss.detach(), torch.ones_like(loss, dtype=torch.bool)
            busy = busy & (loss.detach() > threshold * first)
            if step % 10 == 9 and not bool(busy.any()):              # a look at the device in ten
                break
            grads = torch.autograd.grad((loss * busy).sum(), params)
        before = [p.detach().clone() for p in params]
        for p, g in zip(params, grads):
            p.grad = g
        fade = 1 - 0.95 * step / steps                               # an L1 loss does not by itself
        opt.param_groups[0]["lr"] = lr * fade
        opt.step()
        with torch.no_grad():
            for p, old in zip(params, before):
                p.copy_(torch.where(busy[:, None, None], p, old))
        taken = taken + busy.long()
        if bar is not None:
            bar.update(1)
    return taken, loss.detach() / first.clamp_min(1e-12)


def absorb(model, docs, adapter, how, bos, steps=100, threshold=0.1, lr=1e-2):
    """Algorithm 1 for a batch of documents, each into its own adapter, in place.

    how: one of METHODS. Returns what `fit` returns.
    """
    if how.startswith("ttt"):
        rows = [d["x"] for d in docs]
        if how == "ttt items":
            rows = [[bos] + item for d in docs for item in d["items"]]
        ids, lengths = pad_rows(rows, model.device)

        def loss():
            return next_token(model, ids, lengths)
    elif how in METHODS:
        z = targets(model, adapter, docs, bos)

        def loss():
            return alignment(model, z, how)
    else:
        raise ValueError(f"unknown method {how!r}: choose one of {', '.join(METHODS)}")

    def loss_of():
        return loss().view(len(docs), -1).mean(1)
    return fit(model, adapter, loss_of, steps, threshold, lr)


# --------------------------------------------------------------------------------------------------
# A night of sleep.py

NIGHT = {"rank": 64, "steps": 600, "lr": 1e-2, "batch": 32, "where": "levels",       # MLPs: facts
         "how": "hidden"}                                                            # live there


def night(a, model, day, marks, i):
    """A night for sleep.NIGHTS: a fresh LoRA absorbs the day and is added to the weights, for good.

    day: passages, each a list of sentences of ids. X: a shuffled passage, Y: questions and answers
    that the self writes with X in context (no truth is known). Changes the model in place; no new
    parameters, no gate, no replay. Returns (model, log).
    """
    cpu = time.process_time()
    try:
        teacher = seeding.hold(model, day, marks)
        dreamt = dream.write(teacher, marks, a.quizzes, writer=False)
        if not dreamt:
            raise seeding.RestlessNight("the self asked itself nothing about its day")
    except seeding.RestlessNight as e:
        return model, {"undone": str(e), "lost": list(range(len(day.passages)))}
    views = teacher.readings
    docs = [{"x": views[p * dream.VIEWS + random.randrange(dream.VIEWS)], "ys": [[*q, *y]],
             "says": [[0] * len(q) + [1] * len(y)]} for p, q, y in dreamt]
    rank = min(NIGHT["rank"], model.config.n_embd)
    adapter = lora(model, rank, 1, seed=i, where=NIGHT["where"])
    z = targets(model, None, docs, marks.bos[0])

    def loss():
        i = torch.randint(len(docs), (NIGHT["batch"],), device=model.device)
        some = {k: v[:, i] if k == "states" else v[i] for k, v in z.items()}
        return alignment(model, some, NIGHT["how"]).mean()[None]
    _, ratio = fit(model, adapter, loss, NIGHT["steps"], 0.0, NIGHT["lr"])
    settle(model, adapter)
    return model, {"dreamt": len(dreamt), "loss_ratio": share(ratio),
                   "cpu_seconds": time.process_time() - cpu}
