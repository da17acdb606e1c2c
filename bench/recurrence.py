"""
The neighbour that thinks in its sleep: Do Language Models Need Sleep? Offline Recurrence for
Improved Online Inference (Lee, McLeish, Goldstein, Fanti, arXiv 2605.26099), [L] below, on tasks
small enough for one CPU thread.

A context is read window by window. Before a window leaves, the model passes over it N times, and
its fast weights S, the state of gated DeltaNet blocks, carry what it makes of the window; then the
attention cache is cleared and only S survives ([L] Alg. 1):

    S = 0;  for each window:  e = Embed(window);  h = e
        N times:              h, S = Blocks(h, S);  h <- norm(h) + e    gradients through all N
        then                  clear the KV cache
    a question:               h, S = Blocks(Embed(question), S), one pass, whatever N was

N buys computation before the question is known. Two tasks ask whether it is used: the k-th
successor in a cycle whose edges were read in random order (Depo-like), and the first cell of a row
after t steps of Rule 110. Every run has the same CPU time; its weights are judged as a moving
average at a constant learning rate, so any point of its curve is a finished run, and the same runs
give the comparison at equal CPU time and at equal steps.

    python bench/recurrence.py           every run, three seeds -> bench/results/recurrence.json
    python bench/recurrence.py --quick   one seed, seconds instead of minutes, in out/
    python bench/recurrence.py --task=khop --passes=1,8 --cpu=150 --out=out/long.json
    python bench/recurrence.py --table   the tables of a result file again
"""
import copy
import json
import os
import shlex
import sys
import time
from statistics import median
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from bench import stats, tables                                      # noqa: E402
from data import flags                                               # noqa: E402
from data.flags import COUNT, RATE, SHARE, SOME, SWITCH, TEXT        # noqa: E402
from data.store import write_json                                    # noqa: E402
from model import angles, rotate                                     # noqa: E402
from sleep import descend, optimizers                                # noqa: E402

FLAGS = {  # name: (default, allowed, what it does), as in data/flags.py
    "task": ("khop,rule110_small,rule110", TEXT,
             "which tasks: khop, rule110 (4 rows of 24), rule110_small (1 row of 16)"),
    "passes": ("1,2,4", TEXT, "the N of training; the last one also with parts of the loop gone"),
    "test_passes": ("1,2,4,8", TEXT, "the N of the test"),
    "seeds": ("1,2,3", TEXT, "seeds"),
    "cpu": (36.0, (0.1, 1e6), "CPU seconds of training a run of khop; the others have less"),
    "steps": (0, COUNT, "end a run after so many steps instead (the same bits again); 0: --cpu"),
    "nodes": (13, (2, 4096), "khop: nodes of the cycle"),
    "hops": (6, (1, 4096), "khop: deepest question"),
    "rollout": (4, (1, 4096), "Rule 110: most steps of the automaton"),
    "window": (24, SOME, "most tokens a window holds (an edge is one token, a cell is one token)"),
    "eviction": ("hard", ("hard", "slide"), "the cache is cleared after a window, or the last "
                 "--window tokens stay visible"),
    "batch": (32, SOME, "examples a step"),
    "width": (64, (1, 16384), "width of the model"),
    "heads": (2, (1, 256), "heads of attention and of DeltaNet"),
    "curriculum": (0.8, SHARE, "ask one depth deeper when this share of the deepest is right; "
                   "0: all depths from the start"),
    "lr_muon": (0.012, RATE, "learning rate of matrices (Muon)"),
    "lr_adam": (0.006, RATE, "learning rate of embeddings, output and the gates' biases (AdamW)"),
    "every": (30, (10, 10 ** 6), "steps between two points of a curve"),
    "exam": (1024, SOME, "examples in an exam; a fourth of them at each point of a curve"),
    "quick": (False, SWITCH, "one seed, N = 1 and 4, a few seconds a run"),
    "table": (False, SWITCH, "only print the tables of --out"),
    "device": ("cpu", ("cpu", "cuda"), "where to compute"),
    "threads": (1, (1, 4096), "CPU threads"),
    "out": ("bench/results/recurrence.json", TEXT, "result file"),
}
QUICK = {"passes": "1,4", "test_passes": "1,4", "seeds": "1", "cpu": 6.0, "exam": 128,
         "out": "out/recurrence.json"}


# --------------------------------------------------------------------------------------------------
# The kernel: the gated delta rule (Yang et al., Gated Delta Networks, arXiv 2412.06464)

def gated_delta_loop(q, k, v, log_a, b, S=None):
    """S_t = a_t S_{t-1} + b_t (v_t - a_t S_{t-1} k_t) k_t',  o_t = S_t q_t: token by token.

    q, k (B, H, L, K), v (B, H, L, V), log_a = log of the decay and b (B, H, L), S (B, H, V, K) or
    None for 0
    -> o (B, H, L, V), S after the last token.
    """
    S = v.new_zeros(*v.shape[:2], v.shape[-1], k.shape[-1]) if S is None else S
    out = []
    for q_t, k_t, v_t, g_t, b_t in zip(*(x.unbind(2) for x in (q, k, v, log_a, b))):
        S = g_t.exp()[..., None, None] * S
        u = b_t[..., None] * (v_t - (S @ k_t[..., None])[..., 0])    # what S has wrong about v_t
        S = S + u[..., None] * k_t[..., None, :]
        out.append((S @ q_t[..., None])[..., 0])
    return torch.stack(out, 2), S


def gated_delta(q, k, v, log_a, b, S=None, chunk=32):
    """The same function, a chunk of tokens at a time (the WY / UT form); the same shapes.

    With u_t = b_t (v_t - a_t S_{t-1} k_t) and G the running sum of log a inside a chunk that
    starts from S_0,

        S_t = e^{G_t} S_0 + sum_{i<=t} e^{G_t - G_i} u_i k_i'
        so that  (I + A) U = b (V - e^G K S_0')  with  A_ti = b_t e^{G_t - G_i} k_t'k_i  for i < t

    One unit-triangular solve, T = (I + A)^-1 diag(b), serves all chunks at once:
    U = T V - T (e^G K) S_0'. Only S is handed from chunk to chunk. Everything is float32 inside
    (float64 for float64 input) and so is S; o has v's dtype.
    """
    dtype, L, V = v.dtype, v.shape[2], v.shape[3]
    C, wide = min(chunk, L), torch.float64 if v.dtype == torch.float64 else torch.float32
    with torch.autocast(v.device.type, enabled=False):
        q, k, v, log_a, b = (x.to(wide) for x in (q, k, v, log_a, b))
        if L % C:                               # a padding token writes nothing and forgets nothing
            q, k, v = (F.pad(x, (0, 0, 0, -L % C)) for x in (q, k, v))
            log_a, b = (F.pad(x, (0, -L % C)) for x in (log_a, b))
        q, k, v, log_a, b = (x.unflatten(2, (-1, C)) for x in (q, k, v, log_a, b))
        G = log_a.cumsum(-1)                                         # all are (B, H, n, C, ...)
        later = torch.ones(C, C, dtype=torch.bool, device=v.device).triu(1)
        decay = G[..., :, None] - G[..., None, :]
        decay = decay.masked_fill(later, -torch.inf).exp()           # exp of the later overflows
        grown, b = G.exp()[..., None], b[..., None]
        A = b * decay * (k @ k.mT)                                   # read below the diagonal only
        T = torch.linalg.solve_triangular(A, torch.diag_embed(b[..., 0]), upper=False,
                                          unitriangular=True)
        Uv, Uk = T @ v, T @ (grown * k)
        inside, q, k = decay * (q @ k.mT), grown * q, decay[..., -1, :, None] * k
        S = v.new_zeros(*v.shape[:2], V, k.shape[-1]) if S is None else S.to(v.dtype)
        out = []
        chunks = zip(*(x.unbind(2) for x in (q, k, inside, Uv, Uk, grown[..., -1:, :])))
        for q_c, k_c, in_c, Uv_c, Uk_c, g_c in chunks:
            U = Uv_c - Uk_c @ S.mT                                   # (B, H, C, V)
            out.append(q_c @ S.mT + in_c @ U)
            S = g_c * S + U.mT @ k_c
        return torch.stack(out, 2).flatten(2, 3)[:, :, :L].to(dtype), S


# --------------------------------------------------------------------------------------------------
# The model: attention reads the window, gated DeltaNet carries S

def norm(x):
    return F.rms_norm(x, x.shape[-1:])


class Block(nn.Module):
    """h <- h + mix(norm h), h <- h + MLP(norm h); mix is causal attention or, with delta, gated
    DeltaNet.

    memory: what survives of earlier tokens: S (B, H, D, D) with delta, else the cache (k, v) of
    tokens that stay visible.
    """
    def __init__(self, width, heads, delta):
        super().__init__()
        self.heads, self.delta = heads, delta
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)
        nn.init.zeros_(self.proj.weight), nn.init.zeros_(self.down.weight)
        if delta:
            self.gates = nn.Linear(width, 2 * heads)                 # a starts at .98, b at .5
            nn.init.zeros_(self.gates.weight)
            with torch.no_grad():
                self.gates.bias.copy_(torch.tensor([4.0] * heads + [0.0] * heads))

    def forward(self, h, memory, window):
        B, T, d = h.shape
        x = norm(h)
        qkv = self.qkv(x).view(B, T, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)                         # (B, H, T, D)
        if self.delta:
            a, b = self.gates(x).transpose(1, 2).chunk(2, 1)
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
            y, memory = gated_delta(q, k, v, F.logsigmoid(a), b.sigmoid(), memory)
            y = norm(y)
        else:
            y, memory = attend(norm(q), norm(k), v, memory, window)
        h = h + self.proj(y.transpose(1, 2).reshape(B, T, d))
        return h + self.down(F.relu(self.up(norm(h))).square()), memory


def attend(q, k, v, cache, window):
    """Causal attention over the last `window` tokens, cached ones included.

    -> y (B, H, T, D), (k, v) of all of them.
    """
    if cache is not None:
        k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
    at = torch.arange(k.shape[2], device=q.device)                   # only distances matter
    cos, sin = angles(at[None], q.shape[-1], q)
    T = q.shape[2]
    back = at[-T:, None] - at
    q = rotate(q, cos[:, :, -T:], sin[:, :, -T:])
    y = F.scaled_dot_product_attention(q, rotate(k, cos, sin), v, scale=2 * q.shape[-1] ** -0.5,
                                       attn_mask=(back >= 0) & (back < window))
    return y, (k, v)


class Reader(nn.Module):
    """kinds: one letter a block, a attention, d gated DeltaNet. Tokens (..., 2) are the sum of two
    embeddings."""
    def __init__(self, n_first, n_second, n_out, width=64, heads=4, kinds="ad", window=24,
                 eviction="hard"):
        super().__init__()
        self.first, self.second = nn.Embedding(n_first, width), nn.Embedding(n_second, width)
        self.blocks = nn.ModuleList(Block(width, heads, kind == "d") for kind in kinds)
        self.head = nn.Linear(width, n_out, bias=False)
        self.window, self.eviction = window, eviction

    def embed(self, tokens):
        return self.first(tokens[..., 0]) + self.second(tokens[..., 1])

    def one_pass(self, h, memory):
        new = []
        for block, m in zip(self.blocks, memory):
            h, m = block(h, m, self.window)
            new.append(m)
        return h, new

    def evict(self, memory):
        """hard: the attention cache is gone; slide: its last tokens stay. S survives either way."""
        keep = self.window - 1 if self.eviction == "slide" else 0
        return [m if block.delta else None if not keep else tuple(x[:, :, -keep:] for x in m)
                for block, m in zip(self.blocks, memory)]

    def sleep(self, tokens, n_passes, loop="both"):
        """[L] Algorithm 1. tokens (B, L, 2) -> the memory: a list of each block's S, or of what is
        left of its cache.

        loop: both | state (no hidden loop: each pass starts from the embedding, only S is carried
        on) | reset (the hidden state is carried on, S starts again before the last pass).
        """
        memory = [None] * len(self.blocks)
        for part in tokens.split(self.window, 1):
            before, e = memory, self.embed(part)
            h = e
            for i in range(n_passes):
                S = before if loop == "reset" and i == n_passes - 1 else memory
                old = [s if block.delta else m for block, s, m in zip(self.blocks, S, before)]
                h, memory = self.one_pass(norm(h) + e if i and loop != "state" else e, old)
            memory = self.evict(memory)
        return memory

    def forward(self, tokens, questions, n_passes, loop="both"):
        """Context (B, L, 2), questions (B, Q, 2) -> logits (B, Q, n_out): sleep over the context,
        then one pass."""
        h, _ = self.one_pass(self.embed(questions), self.sleep(tokens, n_passes, loop))
        return self.head(norm(h))


# --------------------------------------------------------------------------------------------------
# The tasks: context (B, L, 2), questions (B, Q, 2), answers (B, Q), depth (Q,)

def depths(n, deepest, lesson, device):
    """Depths of n questions, in any order: 1 to deepest in turn; in a lesson a third is the lesson,
    the others 1 to it."""
    turn = torch.arange(n, device=device) % (lesson or deepest) + 1
    if lesson:
        turn[n - n // 3:] = lesson
    return turn[torch.randperm(n, device=device)]


def khop(n, nodes, hops, device="cpu", lesson=None):
    """Edges (from, to) of a random cycle in random order; asked (node, k): who is k steps ahead?
    Two questions a depth."""
    cycle = torch.rand(n, nodes, device=device).argsort(1)
    place = cycle.argsort(1)

    def ahead(node, k):
        return cycle.gather(1, (place.gather(1, node) + k) % nodes)
    source = torch.rand(n, nodes, device=device).argsort(1)
    depth = depths(2 * hops, hops, lesson, device)
    node = torch.randint(nodes, (n, len(depth)), device=device)
    asked = torch.stack([node, (nodes + depth - 1).expand_as(node)], -1)
    return torch.stack([source, ahead(source, 1)], -1), asked, ahead(node, depth), depth


def rule110(n, rows, cells, steps, device="cpu", lesson=None):
    """Random rows of a ring of cells, token (place, bit); asked (row, t): its first cell after t
    steps of Rule 110?"""
    x = torch.randint(2, (n, rows, cells), device=device)
    place = torch.arange(rows * cells, device=device).view(rows, cells).expand_as(x)
    context = torch.stack([place, x], -1).flatten(1, 2)
    first = []                                                       # of step t: (n, rows)
    for _ in range(steps):
        x = (110 >> (4 * x.roll(1, -1) + 2 * x + x.roll(-1, -1))) & 1
        first.append(x[..., 0])
    row = torch.arange(rows, device=device).repeat_interleave(steps)
    depth = depths(steps, steps, lesson, device).repeat(rows)
    asked = torch.stack([rows * cells + row, 1 + depth], -1).expand(n, -1, -1)
    return context, asked, torch.stack(first, -1)[:, row, depth - 1], depth


def task_of(a, name):
    """draw(n, lesson=None) -> a batch; depths; sizes of the two embeddings and the output; share
    of --cpu."""
    if name == "khop":
        def draw(n, lesson=None):
            return khop(n, a.nodes, a.hops, a.device, lesson)
        return SimpleNamespace(draw=draw, depths=a.hops, share=1.0,
                               sizes=(a.nodes, a.nodes + a.hops, a.nodes))
    rows, cells, share = (4, 24, 0.5) if name == "rule110" else (1, 16, 0.3)

    def draw(n, lesson=None):
        return rule110(n, rows, cells, a.rollout, a.device, lesson)
    return SimpleNamespace(draw=draw, depths=a.rollout, share=share,
                           sizes=(rows * cells + rows, 2 + a.rollout, 2))


# --------------------------------------------------------------------------------------------------
# Training and exams

def clock(device):
    """Seconds this process has computed (CPU time: neighbours on the machine do not count); on a
    GPU, seconds by the clock."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@torch.no_grad()
def exam(a, task, model, n_passes, loop, seed, n):
    """Share of right answers at each depth; the same n examples for every variant of a seed."""
    with torch.random.fork_rng(devices=[] if a.device == "cpu" else None):
        torch.manual_seed(10_000 + seed)
        tokens, asked, answer, depth = task.draw(n)
    parts = zip(tokens.split(256), asked.split(256))
    right = torch.cat([model(t, q, n_passes, loop).argmax(-1) for t, q in parts]) == answer
    return [round(right[:, depth == k].float().mean().item(), 4) for k in range(1, task.depths + 1)]


class Lessons:
    """What depth is asked: one hop deeper whenever `enough` of the deepest are right.

    depth is None where all depths are asked from the start (enough = 0).
    """
    def __init__(self, enough, deepest, device):
        self.enough, self.deepest = enough, deepest
        self.depth = 1 if enough else None
        self.known = torch.zeros((), device=device)                  # running share of right ones

    def hear(self, right, depth):
        """right (B, Q), depth (Q,) of a batch."""
        if self.depth:
            share = right[:, depth == self.depth].float().mean()
            self.known = torch.lerp(self.known, share, 0.1)

    def go_on(self):
        if self.depth and self.depth < self.deepest and self.known > self.enough:
            self.depth, self.known = self.depth + 1, self.known * 0


def train(a, name, variant, n_passes, seed, tick=lambda used: None):
    """One run: constant learning rate, judged by the moving average of the weights.

    variant: hybrid | state, reset (the loops of `Reader.sleep`) | transformer (attention only).
    tick(used) hears the seconds. Returns the run's record for the result file.
    """
    task = task_of(a, name)
    torch.manual_seed(seed)
    kinds = "aa" if variant == "transformer" else "ad"
    model = Reader(*task.sizes, a.width, a.heads, kinds, a.window, a.eviction).to(a.device)
    average = copy.deepcopy(model).requires_grad_(False)
    opts = optimizers(model)
    for opt, rate in zip(opts, (a.lr_muon, a.lr_adam)):
        opt.param_groups[0]["peak"] = rate
    loop = variant if variant in ("state", "reset") else "both"
    lessons = Lessons(a.curriculum, task.depths, a.device)
    seconds, used, step, curve = budget(a, name, variant), 0.0, 0, []
    start = clock(a.device)
    while step < a.steps if a.steps else used < seconds:
        tokens, asked, answer, depth = task.draw(a.batch, lessons.depth)
        logits = model(tokens, asked, n_passes, loop)
        loss = F.cross_entropy(logits.flatten(0, 1), answer.flatten())
        descend(model, opts, loss, min(1.0, (step + 1) / 20))
        step += 1
        follow(average, model, max(0.02, 1 / (step + 1)))            # the first do not weigh for 50
        lessons.hear(logits.argmax(-1) == answer, depth)
        if step % 10 == 0 or step == a.steps:
            lessons.go_on()
            now = clock(a.device)
            used, start = used + now - start, now
            tick(min(used, seconds))
            if step % a.every == 0:
                found = exam(a, task, average, n_passes, loop, seed, max(1, a.exam // 4))
                curve.append({"step": step, "cpu": round(used, 2), "accuracy": found})
                start = clock(a.device)                              # exams are not training time
    tests = {n_passes} if variant == "transformer" else {n_passes, *numbers(a.test_passes)}
    return {"task": name, "variant": variant, "n_passes": n_passes, "seed": seed, "steps": step,
            "cpu_seconds": round(used, 2), "lesson": lessons.depth,
            "params": sum(w.numel() for w in model.parameters()), "curve": curve,
            "accuracy": {str(n): exam(a, task, average, n, loop, seed, a.exam)
                         for n in sorted(tests)}}


@torch.no_grad()
def follow(average, model, share):
    """average <- average + share (model - average)"""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), share)


def numbers(text):
    return [int(x) for x in text.split(",")]


def budget(a, name, variant):
    """CPU seconds of a run. The control is at chance by construction: a tenth of them shows it."""
    return a.cpu * task_of(a, name).share * (0.1 if variant == "transformer" else 1.0)


def plan(a):
    """[(task, variant, N, seed)], seed by seed, so that an interrupted bench has whole seeds."""
    runs = []
    for name in a.task.split(","):
        for seed in numbers(a.seeds):
            runs += [(name, "hybrid", n, seed) for n in numbers(a.passes)]
            runs.append((name, "transformer", 1, seed))
            if name == "khop":
                runs += [(name, loop, numbers(a.passes)[-1], seed) for loop in ("state", "reset")]
    return runs


def time_kernel(device, length=2048, heads=4, dim=64, rounds=5):
    """Forward and backward of the loop and of the chunks, in turn, in one run; medians of seconds.

    In its turn each runs twice and the second counts: the first pays for memory that the other has
    given back.
    """
    x = [torch.randn(1, heads, length, dim, device=device, requires_grad=True) for _ in range(3)]
    gate = [torch.randn(1, heads, length, device=device, requires_grad=True) for _ in range(2)]
    took = {gated_delta_loop: [], gated_delta: []}
    for f in [*took] * rounds:
        for again in (False, True):
            start = clock(device)
            decay, b = F.logsigmoid(gate[0] + 4), gate[1].sigmoid()
            o, S = f(x[0], F.normalize(x[1], dim=-1), x[2], decay, b)
            (o.square().sum() + S.square().sum()).backward()
            took[f] += [clock(device) - start] * again
    loop, chunks = (median(t) for t in took.values())
    return {"length": length, "heads": heads, "dim": dim, "rounds": rounds,
            "loop_seconds": round(loop, 4), "chunked_seconds": round(chunks, 4),
            "speed_up": round(loop / chunks, 1)}


# --------------------------------------------------------------------------------------------------
# The command line

def fail(message):
    flags.fail(message, "recurrence.py")


def parse(argv):
    """The flags, and what no range can say: impossible sizes end here, nothing is written."""
    a = flags.parse(argv, __doc__, FLAGS, "recurrence.py", QUICK)
    for name in ("passes", "test_passes", "seeds"):
        given, least = getattr(a, name), 0 if name == "seeds" else 1
        if not all(x.isdecimal() and int(x) >= least for x in given.split(",")):
            fail(f"--{name}={given}: whole numbers with commas between them, like "
                 f"--{name}={FLAGS[name][0]}")
    if a.hops >= a.nodes:
        fail(f"--hops={a.hops}: in a cycle of {a.nodes} nodes, {a.nodes} hops lead back to the "
             "start; use fewer or more --nodes")
    if a.every % 10 or a.width % (2 * a.heads):
        fail("--every must be a multiple of 10, --width a multiple of twice --heads")
    if not set(a.task.split(",")) <= set(FLAGS["task"][0].split(",")):
        fail(f"--task={a.task}: choose from {FLAGS['task'][0]}")
    if a.device == "cuda" and not torch.cuda.is_available():
        fail("--device=cuda: there is none on this machine; use --device=cpu")
    return a


def opened(a):
    """The result file so far, if its runs were made with the same settings."""
    free = ("task", "passes", "seeds", "quick", "table", "out")
    settings = {k: getattr(a, k) for k in FLAGS if k not in free}
    if not os.path.isfile(a.out):
        if a.table:
            fail(f"--table: there is no {a.out}")
        return {"settings": settings, "runs": []}
    with open(a.out) as f:
        result = json.load(f)
    other = [k for k in settings if settings[k] != result["settings"].get(k)]
    if other and not a.table:
        fail(f"{a.out} has runs with another --{other[0]} ({result['settings'].get(other[0])}): "
             "choose another --out or delete it")
    return result


def guesses(a, name):
    """Share of right answers at each depth if the most frequent one is always given."""
    torch.manual_seed(0)
    _, _, y, depth = task_of(a, name).draw(4096)
    answers = [y[:, depth == k].flatten() for k in depth.unique().tolist()]
    return [round(x.bincount().max().item() / x.numel(), 4) for x in answers]


def show(result):
    """The tables of a result file, as in bench/README.md."""
    for task in dict.fromkeys(r["task"] for r in result["runs"]):
        lines = [f"\n{task}: " + ", ".join(tables.steps(result, task))]
        print(*lines, *tables.recurrence(result, task), sep="\n")
    print("\nkernel, forward and backward:", result["kernel"])


def main(argv):
    a = parse(argv)
    torch.set_num_threads(a.threads)
    result = opened(a)
    if a.table:
        return show(result)
    os.makedirs(os.path.dirname(a.out) or ".", exist_ok=True)
    result |= stats.provenance(shlex.join(["python", "bench/recurrence.py", *argv]))
    done = {(r["task"], r["variant"], r["n_passes"], r["seed"]) for r in result["runs"]}
    todo = [p for p in plan(a) if p not in done]
    seconds = sum(budget(a, name, variant) for name, variant, *_ in todo)
    kernel = 0 if "kernel" in result else 20
    print(f"{len(todo)} runs on {a.threads} thread{'s' * (a.threads > 1)} ({a.device}): about "
          f"{(1.15 * seconds + kernel) / 60:.1f} minutes" + " or less" * bool(a.steps), flush=True)
    if kernel:
        torch.manual_seed(0)
        small = {"length": 512, "rounds": 1} if a.quick else {}
        result["kernel"] = time_kernel(a.device, **small)
    known = result.get("guess", {})
    result["guess"] = {**known, **{name: guesses(a, name) for name in a.task.split(",")}}
    run_all(a, todo, result)
    write_json(a.out, result)
    show(result)


def run_all(a, todo, result):
    """Every run of the plan that is missing; the file is written after each."""
    spent = 0.0
    with tqdm(total=round(sum(budget(a, *run[:2]) for run in todo)), unit="s", mininterval=1.0,
              leave=False, bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
              ) as bar:
        def tick(used):
            bar.update(spent + used - bar.n)
        for name, variant, n, seed in todo:
            bar.set_description_str(f"{name} {variant} N={n} seed {seed}")
            result["runs"].append(train(a, name, variant, n, seed, tick))
            spent += budget(a, name, variant)
            write_json(a.out, result)


if __name__ == "__main__":
    main(sys.argv[1:])
