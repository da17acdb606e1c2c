"""
Absorber LLM (arXiv 2604.20915), the neighbour of Knowledge Seeding: a context is not dreamt about, it is absorbed.

A context X must leave the window. What comes after it, Y, is still there. New weights W* are found such that the model
without the context has the same hidden states on Y, in all layers l, as the old model with it (Algorithm 1):

    min  sum_l | h_l(Y; W*) - h_l(XY; W) at Y |_1         W* = W + A B (LoRA), AdamW, at most K steps or a threshold
    W*

Then X is dropped, the window slides and the next n tokens are absorbed on top (Algorithm 2): memory stays constant. There is
no router: what is absorbed is always on. Beside it, with the same LoRA, the same K and the same threshold:

    last layer   the L1 loss on the last layer alone       labels      cross-entropy on the labels in Y, without X
    logits       KL of the next-token distributions on Y   ttt         next-token loss on X itself (test-time training)
    truncation   nothing is done, X is lost                ttt items   the same, X cut into single items
    full         X stays in the window

    python bench/absorber.py                four tasks, three seeds: 20 minutes of one CPU core, 15 if the bases exist
                                            -> bench/results/absorber.json
    python bench/absorber.py --quick        all of it in small, two minutes -> out-absorber/quick.json
    python bench/absorber.py --tasks=life   Absorber as the night of a life: sleep.py --method=absorb, three seeds
    python bench/absorber_show.py           the tables and the picture from the result file

Tasks. map: each document has its own map from 8 classes of words to 8 labels; X shows it 24 times, Y 8 times, then everything
is gone and all classes are asked. stream: Algorithm 2, six slides; classes come and go. world: a passage about a stranger; Y
are questions and answers that the model asks itself about it (all K steps). latency: time and memory against the length of
the prefix.
"""
import json
import os
import random
import subprocess
import sys
import time
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from tqdm import tqdm

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import dream
import seed as seeding
from data import flags, store
from data.flags import SHARE, SOME, SWITCH, TEXT
from model import divergence, pad_rows

METHODS = ("hidden", "last layer", "logits", "labels", "ttt", "ttt items")


# ----------------------------------------------------------------------------------------------------------------------
# LoRA by hand, one adapter for each document of a batch

def lora(model, rank, n=1, seed=0, merged=None, where=""):
    """n fresh low-rank adapters of every matrix in the blocks: {name: (M, A, B)}; x W becomes x W + x (M + A B).

    where: only matrices with this in their name. A (n, in, rank) is random, B (n, rank, out) zero: not one bit changes yet
    (Hu et al. 2021). M (n, in, out), or None, is what was absorbed before. Raises ValueError for a rank that is no rank of a
    matrix.
    """
    gen, new = torch.Generator().manual_seed(seed), {}
    for name, layer in model.blocks.named_modules():
        if isinstance(layer, torch.nn.Linear) and where in name:
            if not 1 <= rank <= min(layer.weight.shape):
                raise ValueError(f"rank {rank} does not fit a matrix of {tuple(layer.weight.shape)}: choose 1 to "
                                 f"{min(layer.weight.shape)}")
            A = torch.randn(1, layer.in_features, rank, generator=gen) * layer.in_features ** -0.5
            new[name] = (merged and merged[name], A.to(layer.weight).repeat(n, 1, 1).requires_grad_(),
                         layer.weight.new_zeros(n, rank, layer.out_features).requires_grad_())
    return new


def merge(adapter):
    """M + A B of each matrix: the memory that the next absorption starts from has the size of the weights, for ever."""
    return {k: (A @ B).detach() + (0 if M is None else M) for k, (M, A, B) in adapter.items()}


def settle(model, adapter):
    """Add an adapter of one document to the model's own weights, in place."""
    with torch.no_grad():
        for name, delta in merge(adapter).items():
            model.blocks.get_submodule(name).weight += delta[0].T


@contextmanager
def wearing(model, adapter):
    """Inside, the i-th n-th part of the rows of every batch goes through the adapter of document i."""
    def hook(M, A, B):
        def add(layer, args, out):
            x = args[0].reshape(len(A), -1, args[0].shape[-1])       # (documents, their tokens, in)
            y = (x @ A) @ B if M is None else (x @ A) @ B + x @ M
            return out + y.view_as(out)
        return add
    hooks = [model.blocks.get_submodule(k).register_forward_hook(hook(*v)) for k, v in (adapter or {}).items()]
    try:
        yield
    finally:
        for h in hooks:
            h.remove()


# ----------------------------------------------------------------------------------------------------------------------
# Algorithm 1. A document: {"x": ids with <bos>, "items": its parts, "ys": continuations, "says": True at each y's labels}

def share(hit, where=None):
    """Mean of a tensor, or of its part; None where there is nothing to average."""
    hit = hit if where is None else hit[where]
    return float(hit.float().mean()) if hit.numel() else None


def states(model, ids):
    """Hidden states after every block: ids (N, T) -> (n_layer, N, T, n_embd). The router stays shut."""
    seen = []
    hooks = [b.levels[-1].register_forward_hook(lambda layer, args, out: seen.append(out)) for b in model.blocks]
    try:
        model.hidden(ids, gate=False)
    finally:
        for h in hooks:
            h.remove()
    return torch.stack(seen)


@torch.no_grad()
def targets(model, adapter, docs, bos):
    """What f_W with X in its context thinks at Y's positions, for all continuations y of all documents in turn.

    ids (N, 1+Y): <bos> y, all that the student sees, its positions start again at 0; keep (N, Y); says (N, Y-1): the next token
    is a label; states (n_layer, N, Y, n_embd); log_p (N, Y, V).
    """
    xs, ys = [d["x"] for d in docs for _ in d["ys"]], [y for d in docs for y in d["ys"]]
    ids, lengths = pad_rows([[bos] + y for y in ys], model.device)
    both, _ = pad_rows([x + y for x, y in zip(xs, ys)], model.device)
    says, _ = pad_rows([s for d in docs for s in d["says"]], model.device)
    j = torch.arange(ids.shape[1] - 1, device=model.device)
    at = (torch.tensor([len(x) for x in xs], device=model.device)[:, None] + j).clamp(max=both.shape[1] - 1)       # (N, Y)
    with wearing(model, adapter):
        h = states(model, both)
    h = h.gather(2, at[None, :, :, None].expand(len(h), -1, -1, h.shape[-1]))
    return {"ids": ids, "keep": j < lengths[:, None] - 1, "says": says[:, 1:] > 0, "states": h,
            "log_p": F.log_softmax(model.logits(model.norm(h[-1])).float(), -1)}


def alignment(model, z, how):
    """The loss of each continuation in z, mean over its tokens: (N,). The student has <bos> y and no X."""
    h = states(model, z["ids"])[:, :, 1:]
    mean = lambda loss, keep: (loss * keep).sum(1) / keep.sum(1).clamp(min=1)
    if how == "hidden":                                              # Absorber: L1, all layers
        return mean((h - z["states"]).abs().mean((0, 3)), z["keep"])
    if how == "last layer":
        return mean((h[-1] - z["states"][-1]).abs().mean(2), z["keep"])
    logits = model.logits(model.norm(h[-1])).float()
    if how == "logits":                                              # KL(f_W(XY) || f_W*(Y)) of the next token
        return mean(divergence(z["log_p"], F.log_softmax(logits, -1)), z["keep"])
    return mean(F.cross_entropy(logits[:, :-1].transpose(1, 2), z["ids"][:, 2:], reduction="none"), z["says"])


def next_token(model, ids, lengths):
    """Next-token loss of each row, mean over its tokens: (N,)."""
    keep = torch.arange(1, ids.shape[1], device=ids.device) < lengths[:, None]
    logits = model.logits(model.hidden(ids[:, :-1], gate=False)).float()
    return (F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * keep).sum(1) / keep.sum(1)


def fit(model, adapter, loss_of, steps, threshold, lr, bar=None):
    """AdamW on every document's own A and B; loss_of() -> (n,). A document rests once its loss <= threshold x its first.

    The threshold is relative (ours; the paper's epsilon is absolute and would depend on the scale of the hidden states).
    Returns (steps taken (n,), last loss / first loss (n,)).
    """
    params = [p for _, A, B in adapter.values() for p in (A, B)]
    opt, taken, first = torch.optim.AdamW(params, lr=lr, weight_decay=0.01), 0, None
    for step in range(steps):
        with wearing(model, adapter):
            loss = loss_of()
            if first is None:
                first, busy = loss.detach(), torch.ones_like(loss, dtype=torch.bool)
            busy = busy & (loss.detach() > threshold * first)
            if step % 10 == 9 and not bool(busy.any()):              # one look at the device in ten steps
                break
            grads = torch.autograd.grad((loss * busy).sum(), params)
        before = [p.detach().clone() for p in params]
        for p, g in zip(params, grads):
            p.grad = g
        opt.param_groups[0]["lr"] = lr * (1 - 0.95 * step / steps)   # the gradient of an L1 loss does not fade by itself
        opt.step()
        with torch.no_grad():
            for p, old in zip(params, before):
                p.copy_(torch.where(busy[:, None, None], p, old))
        taken = taken + busy.long()
        if bar is not None:
            bar.update(1)
    return taken, loss.detach() / first.clamp_min(1e-12)


def absorb(model, docs, adapter, how, bos, steps=100, threshold=0.1, lr=1e-2):
    """Algorithm 1 for a batch of documents, each into its own adapter, in place. how: one of METHODS. Returns fit's."""
    if how.startswith("ttt"):
        rows = [d["x"] for d in docs] if how == "ttt" else [[bos] + item for d in docs for item in d["items"]]
        ids, lengths = pad_rows(rows, model.device)
        loss = lambda: next_token(model, ids, lengths)
    elif how in METHODS:
        z = targets(model, adapter, docs, bos)
        loss = lambda: alignment(model, z, how)
    else:
        raise ValueError(f"unknown method {how!r}: choose one of {', '.join(METHODS)}")
    return fit(model, adapter, lambda: loss().view(len(docs), -1).mean(1), steps, threshold, lr)


# ----------------------------------------------------------------------------------------------------------------------
# A night of sleep.py

NIGHT = {"rank": 64, "steps": 600, "lr": 1e-2, "batch": 32, "where": "levels", "how": "hidden"}   # MLPs: facts live there


def night(a, model, day, marks, number, bar):
    """The night of sleep.py --method=absorb: a fresh LoRA absorbs the day, then it is added to the weights, for good.

    day: passages, each a list of sentences of ids. X: a shuffled passage, Y: questions and answers that the self writes with X
    in context (no truth is known). Changes the model in place; no new parameters, no router, no replay. Returns a log.
    """
    start, cpu = time.time(), time.process_time()
    views = seeding.views_of(day, marks, a.views, random)
    dreamt = dream.write_dreams(model, views, a.views, marks, a.quizzes, 64, temperature=a.temperature)
    if not dreamt:
        return {"undone": "the self asked itself nothing about its day: it cannot read yet; pretrain longer"}
    docs = [{"x": views[p * a.views + random.randrange(a.views)], "ys": [[*q, *y]], "says": [[0] * len(q) + [1] * len(y)]}
            for p, q, y in dreamt]
    adapter = lora(model, min(NIGHT["rank"], model.config.n_embd), 1, seed=number, where=NIGHT["where"])
    z = targets(model, None, docs, marks.bos)

    def loss():
        i = torch.randint(len(docs), (NIGHT["batch"],), device=model.device)
        some = {k: v[:, i] if k == "states" else v[i] for k, v in z.items()}
        return alignment(model, some, NIGHT["how"]).mean()[None]
    taken, ratio = fit(model, adapter, loss, NIGHT["steps"], 0.0, NIGHT["lr"], bar)
    settle(model, adapter)
    return {"dreamt": len(dreamt), "loss_ratio": share(ratio), "cpu_seconds": time.process_time() - cpu,
            "seconds": {"seed": time.time() - start}}


# ----------------------------------------------------------------------------------------------------------------------
# Command line

FLAGS = {  # name: (default, allowed, what it does), as in data/flags.py
    "tasks": ("map,stream,world,latency", TEXT, "what to run; also: life (after the others, about 8 minutes)"),
    "seeds": ("1,2,3", TEXT, "one run for each"),
    "quick": (False, SWITCH, "all of it in small"),
    "rank": (8, (1, 64), "rank of the LoRA"),
    "steps": (100, SOME, "K: most steps of one absorption"),
    "threshold": (0.1, SHARE, "a document stops at this share of its first loss"),
    "documents": (16, (1, 4096), "documents of a seed"),
    "n": (24, (1, 40), "pairs in X"),
    "m": (8, (1, 10), "pairs in Y"),
    "train_steps": (250, SOME, "pretraining steps of the small transformer of map and stream"),
    "world_steps": (900, SOME, "pretraining steps of the base of world, where --bases has none"),
    "people": (8, (2, 40), "strangers of a seed in task world"),
    "days": (7, (1, 28), "days of a life"),
    "longest": (8192, (128, 2 ** 20), "longest prefix of task latency, in tokens"),
    "bases": ("out-absorber/base-{}.pt", TEXT, "checkpoints of nanoSleep, {} is the seed"),
    "out": (os.path.join(ROOT, "bench/results/absorber.json"), TEXT, "result file; adds what is missing"),
    "threads": (1, (1, 4096), "CPU threads"),
    "device": ("cpu", ("cpu", "cuda"), "where to compute"),
}
QUICK = {"seeds": "1", "steps": 30, "documents": 6, "train_steps": 150, "world_steps": 300, "people": 4, "days": 2,
         "longest": 1024, "bases": "out-absorber/quick-{}.pt", "out": "out-absorber/quick.json"}
MINUTES = {"map": 1.6, "stream": 1.5, "world": 3.4, "latency": 0.4, "life": 3.0}             # a seed, of one quiet CPU core


def fail(message):
    flags.fail(message, "absorber.py")


def parse(argv):
    """The flags, with the lists taken apart. Anything impossible ends here, in one line."""
    a = flags.parse(argv, __doc__, FLAGS, "absorber.py", QUICK)
    a.tasks = a.tasks.split(",")
    if not set(a.tasks) <= set(MINUTES):
        fail(f"--tasks={','.join(a.tasks)}: choose from {', '.join(MINUTES)}")
    a.seeds = flags.numbers(a.seeds, "seeds", "absorber.py")
    if a.device == "cuda" and not torch.cuda.is_available():
        fail("--device=cuda: there is none on this machine; use --device=cpu")
    return a


def main(argv):
    a = parse(argv)
    from bench import absorber_tasks                                 # it needs this file
    torch.set_num_threads(a.threads)
    same = {k: getattr(a, k) for k in FLAGS if k not in ("tasks", "seeds", "out", "bases", "quick")}     # other flags: another run
    runs = []
    if os.path.isfile(a.out):
        with open(a.out) as f:
            runs = json.load(f)["runs"]
    todo = [(task, seed) for seed in a.seeds for task in a.tasks
            if not any((r["task"], r["seed"], r["flags"]) == (task, seed, same) for r in runs)]
    scale = 0.25 if a.quick else 1.0
    minutes = scale * sum(MINUTES[task] for task, _ in todo)
    print(f"{len(todo)} runs; expect about {minutes:.0f} minutes on one quiet CPU core -> {os.path.relpath(a.out)}", flush=True)
    for task, seed in todo:
        wall, cpu = time.time(), time.process_time()
        with tqdm(desc=f"{task} {seed}", unit="step", leave=False, mininterval=1.0) as bar:
            result = getattr(absorber_tasks, f"run_{task}")(a, seed, bar)
        runs.append({"task": task, "seed": seed, "flags": same, "seconds": round(time.time() - wall, 1),
                     "cpu_seconds": round(time.process_time() - cpu, 1), "result": result,
                     "command": "python bench/absorber.py " + " ".join(argv), "device": a.device,
                     "versions": {"python": sys.version.split()[0], "torch": torch.__version__}})
        os.makedirs(os.path.dirname(a.out) or ".", exist_ok=True)
        store.write_json(a.out, {"command": "python bench/absorber.py", "runs": runs})
        print(f"{task} seed {seed}: {runs[-1]['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        fail("interrupted: the same command goes on with what is not finished")
    except (OSError, ValueError, subprocess.CalledProcessError) as e:
        fail(str(e))
