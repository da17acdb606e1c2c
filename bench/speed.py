"""
How fast: nanoSleep beside what one would pick instead, measured side by side on one machine.

    python bench/speed.py --threads=1                     every row: 20 minutes of one CPU core
    python bench/speed.py --only=train,sample --quick     tiny sizes, to see that it runs
    python bench/speed.py --device=cuda --dtype=bfloat16  the same on a GPU, and 124M parameters
    python bench/report.py                                the table with its goals

Competitors run in turn in one process on the same weights, data, dtype and threads; a time is the
median of several rounds. With one CPU thread it is CPU time, so that other jobs hardly count.
Nothing is installed: a missing peer is named with how to get it. Rows are kept in the result file
one by one, so peers can be measured in environments of their own.
"""
import copy
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import seed                                                          # noqa: E402
import sleep                                                         # noqa: E402
from bench import stats                                              # noqa: E402
from bench.baselines import squared_gradients                        # noqa: E402
from bench.race import (PEERS, amp, clock, edit_distance, fisher_of_batches,         # noqa: E402
                        fla_delta_rule, gap, gkd_trainer, gpt2, peak_bytes, peer, race, seconds,
                        trio)
from data import flags, gate, store                                  # noqa: E402
from data.engine import generate, new_cache, pad_rows                # noqa: E402
from data.flags import COUNT, SOME, SWITCH, TEXT                     # noqa: E402
from data.kernels import Muon, in_chunks, levenshtein                # noqa: E402
from data.text import Day, sentences                                 # noqa: E402
from model import FAST, GPT, Config                                  # noqa: E402

FLAGS = {  # name: (default, allowed, what it does), as in data/flags.py
    "only": ("", TEXT, "rows, with commas; none: all"),
    "quick": (False, SWITCH, "tiny sizes, to see that it runs"),
    "device": ("cpu", ("cpu", "cuda"), "where to compute"),
    "dtype": ("float32", ("float32", "bfloat16"), "number format"),
    "threads": (1, (1, 4096), "CPU threads"),
    "rounds": (5, SOME, "timed rounds; the median counts"),
    "seed": (1, COUNT, "seed"),
    "base": ("out/base.pt", TEXT, "base of sleep.py, for the rows night and life"),
    "against": ("", TEXT, "folder of an older copy of nanoSleep, for the row life"),
    "result": ("", TEXT, "result file; none with --quick: nothing is written"),
}
FEW = ["--seed_steps=3", "--dream=0", "--quizzes=1"]                 # with --quick


# --------------------------------------------------------------------------------------------------
# Training and sampling

def train_step(o, logits, ids, opts):
    """One step on ids (B, T + 1) as a function without arguments."""
    def run():
        with amp(o):
            loss = F.cross_entropy(logits(ids[:, :-1]).flatten(0, 1).float(), ids[:, 1:].flatten())
        for opt in opts:
            opt.zero_grad(set_to_none=True)
        loss.backward()
        for opt in opts:
            opt.step()
    return run


def adam(model):
    return [torch.optim.AdamW(model.parameters(), lr=1e-3)]


def row_train(o):
    """The same GPT-2 and AdamW in all; and, of another function, our own architecture with our own
    optimisers. utilisation: (6 N + 12 layers d T) FLOP a token (PaLM, arXiv 2204.02311), over the
    rate of one large matrix product here."""
    sizes = [(4, 128, 12, 64, 1024), (6, 384, 8, 256, 1024)]
    sizes += [(12, 768, 16, 1024, 50304)] * (o.device == "cuda")
    n = 64 if o.quick else 8192 if o.device == "cuda" else 1024
    x = torch.randn(n, n, device=o.device, dtype=o.dtype)
    rate = 2 * n ** 3 / statistics.median(seconds(o, lambda: x @ x) for _ in range(20))
    for n_layer, d, B, T, V in [(2, 32, 2, 16, 128)] if o.quick else sizes:
        c = gpt2(n_layer, d, T, V)
        ours, plain, hf = trio(o, c)
        own = GPT(Config(V, T, n_layer, c.n_head, c.head_dim, d, 4 * d)).to(o.device)
        ids = torch.randint(V, (B, T + 1), device=o.device)
        models = {"nanoSleep": ours, "plain PyTorch": plain}
        runs = {k: train_step(o, m, ids, adam(m)) for k, m in models.items()}
        if o.device == "cuda":
            runs["nanoSleep, compiled"] = train_step(o, torch.compile(ours), ids, adam(ours))
        if hf:
            models["transformers"] = partial(logits_of, hf)
            runs["transformers"] = train_step(o, models["transformers"], ids, adam(hf))
        runs["own architecture, Muon"] = train_step(o, own, ids, sleep.optimizers(own))
        with torch.no_grad():
            same = {k: gap(ours(ids[:, :-1]), f(ids[:, :-1])) for k, f in models.items()}
        line = race(o, f"training step, {n_layer} layers, d={d}, {B}x{T}", B * T, "tokens/s", runs,
                    differs_by=same, matmul_flop_per_s=rate)
        weights = sum(p.numel() for p in ours.parameters()) - T * d
        flop = (6 * weights + 12 * n_layer * d * T) * B * T
        used = {k: flop / t / rate for k, t in line["seconds"].items() if k[0] != "o"}
        yield {**line, "utilisation": used, "time_goes": time_goes(o, runs["nanoSleep"])}


def logits_of(hf, ids):
    return hf(ids, use_cache=False).logits


def time_goes(o, run):
    """The six operations that take longest, and their share of the time."""
    with torch.profiler.profile() as p:
        run()
    name = "self_device_time_total" if o.device == "cuda" else "self_cpu_time_total"
    spent = {e.key: getattr(e, name) for e in p.key_averages()}
    return {k: spent[k] / sum(spent.values()) for k in sorted(spent, key=spent.get)[-6:]}


def row_muon(o):
    """A step of Muon for the matrices of the default self: ours, and torch's, which rounds
    to bfloat16; differs_by: of the first steps, over the largest."""
    c = Config(n_layer=1, n_embd=32) if o.quick else Config()
    weights = sleep.optimizers(GPT(c).to(o.device))[0].param_groups[0]["params"]
    runs, steps = {}, {}
    for name, opt in (("nanoSleep", Muon), ("torch.optim.Muon", torch.optim.Muon)):
        mine = [torch.zeros_like(p) for p in weights]
        for p, like in zip(mine, weights):
            p.grad = like.detach().clone()
        runs[name] = opt(mine, lr=0.01).step
        runs[name]()
        steps[name] = torch.cat([p.flatten() for p in mine])
    ours, theirs = steps.values()
    many = sum(p.numel() for p in weights)
    yield race(o, f"a step of Muon, {len(weights)} matrices of {many:,} weights", many, "weights/s",
               runs, differs_by={"torch.optim.Muon": gap(ours, theirs) / float(ours.abs().max())})


def row_sample(o):
    sizes = [(4, 128, 256, 128, 16), (4, 128, 256, 128, 64)]
    sizes += [(12, 768, 256, 128, 256)] * (o.device == "cuda")
    for n_layer, d, prefix, new, n in [(2, 32, 8, 4, 2)] if o.quick else sizes:
        ours, _, hf = trio(o, gpt2(n_layer, d, prefix + new))
        ours, prompt = ours.to(o.dtype), torch.randint(1, 1024, (1, prefix), device=o.device)
        runs = {"nanoSleep": partial(generate, ours, prompt.tolist(), new, n=n)}
        same = {}
        if hf:
            theirs = partial(hf.to(o.dtype).generate, prompt, max_new_tokens=new, use_cache=True,
                             attention_mask=torch.ones_like(prompt))
            runs["transformers"] = partial(theirs, do_sample=True, top_k=0, num_return_sequences=n)
            greedy = torch.tensor(generate(ours, prompt.tolist(), new, temperature=0))
            other = theirs(do_sample=False)[:, prefix:].cpu() != greedy
            same["share of greedy tokens"] = float(other.float().mean())
        yield race(o, f"sampling {new} tokens, {n_layer} layers, d={d}, batch {n}, shared prefix "
                      f"of {prefix}", n * new, "tokens/s", runs, differs_by=same)


def row_distil(o):
    """Sample from the student, score by the teacher, reverse KL, AdamW on all weights."""
    n_layer, d, P, new, batches = (2, 32, 6, 4, (4,)) if o.quick else (4, 128, 64, 64, (8, 32))
    (student, _, hf), (teacher, _, old) = (trio(o, gpt2(n_layer, d, P + new + 2), i)
                                           for i in (1, 2))
    gkd, opt = peer(o, "trl", "trl.experimental.gkd"), adam(student)[0]
    for B in batches:
        prompts, more = torch.randint(3, 1024, (B, P), device=o.device), {}

        def ours():
            ids = torch.tensor(generate(student, prompts.tolist(), new), device=o.device)
            ids = torch.cat([prompts, ids], 1)
            with amp(o), torch.no_grad():
                wanted = F.log_softmax(teacher(ids)[:, P - 1:-1].float(), -1)
            with amp(o):
                said = F.log_softmax(student(ids)[:, P - 1:-1].float(), -1)
            loss = seed.divergence(wanted, said, "reverse").mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
        runs = {"nanoSleep": ours}
        if gkd and hf:
            trainer = gkd_trainer(o, gkd, hf, old, new)
            batch = {"prompts": prompts, "prompt_attention_mask": torch.ones_like(prompts)}

            def theirs():
                trainer.training_step(trainer.model, batch)
                trainer.optimizer.step()
                trainer.optimizer.zero_grad()
            a, b = (F.log_softmax(torch.randn(2, 5, 40), -1) for _ in range(2))
            loss = gkd.GKDTrainer.generalized_jsd_loss(b, a, torch.ones(2, 5), beta=1)
            runs["trl GKDTrainer"] = theirs
            more["differs_by"] = {"loss": gap(seed.divergence(a, b, "reverse").mean(), loss)}
        yield race(o, f"on-policy distillation step, {P} + {new} tokens, batch {B}", B * new,
                   "tokens/s", runs, **more)


# --------------------------------------------------------------------------------------------------
# Kernels

def row_kl(o):
    """KL over a large vocabulary, forward and backward, in chunks and with all logits at once."""
    N, V, d = (64, 1000, 16) if o.quick else (8 * 1024, 50257, 128)
    torch.manual_seed(o.seed)

    def make(*shape):
        return (torch.randn(shape) * shape[-1] ** -0.25).to(o.device, o.dtype)

    def kl(h, old, head, old_head):
        return seed.divergence(F.log_softmax((old @ old_head.T).float(), -1),
                               F.log_softmax((h @ head.T).float(), -1))
    for trained in (False, True):                            # at night the head stands still
        h, head = make(N, d).requires_grad_(), make(V, d).requires_grad_(trained)
        old, old_head = make(N, d), make(V, d)
        one = partial(kl, head=head, old_head=old_head)
        learnt = [h, head] if trained else [h]

        def chunked(one=one, h=h, old=old, learnt=learnt):
            return torch.autograd.grad(in_chunks(one, h, old, N // 8).mean(), learnt)

        def at_once(one=one, h=h, old=old, learnt=learnt):
            return torch.autograd.grad(one(h, old).mean(), learnt)
        runs = {"nanoSleep": chunked, "all logits": at_once}
        memory, grads = zip(*(peak_bytes(o, run) for run in runs.values()))
        apart = max(gap(a, b) / float(b.abs().max()) for a, b in zip(*grads))
        yield race(o, f"KL, {N} tokens, vocabulary {V:,}, d={d}, head "
                      f"{'trained' if trained else 'frozen'}", N, "tokens/s", runs,
                   min(2, o.rounds), 0, differs_by={"gradient, relative": apart},
                   peak_bytes=dict(zip(runs, memory)))


def row_levenshtein(o):
    """The pure-Python ones do an eighth of the pairs; their time is scaled."""
    N, L = (32, 12) if o.quick else (4096, 64)
    torch.manual_seed(o.seed)
    (a, b), (la, lb) = torch.randint(8, (2, N, L)), torch.randint(1, L + 1, (2, N))
    pairs = [(x[:i], y[:j]) for x, y, i, j in zip(a.tolist(), b.tolist(), la.tolist(), lb.tolist())]
    few, on = pairs[:N // 8], [t.to(o.device) for t in (a, b, la, lb)]

    def by(distance):
        return [distance(*p) for p in few]
    runs = {"nanoSleep": lambda: levenshtein(*on), "Python": partial(by, edit_distance)}
    if peer(o, "rapidfuzz"):
        texts = [["".join(map(chr, x)) for x in side] for side in zip(*pairs)]
        metric = peer(o, "rapidfuzz", "rapidfuzz.distance").Levenshtein.distance
        cpdist = peer(o, "rapidfuzz", "rapidfuzz.process").cpdist
        runs["rapidfuzz"] = partial(cpdist, *texts, scorer=metric, workers=o.threads)
    audio = peer(o, "torchaudio")
    if audio:
        runs["torchaudio"] = partial(by, audio.functional.edit_distance)
    truth = torch.tensor(runs["Python"]())
    same = {k: gap(torch.as_tensor(run())[:len(few)].cpu(), truth) for k, run in runs.items()}
    yield race(o, f"Levenshtein, {N} pairs of length <= {L}", N, "pairs/s", runs,
               scale={"Python": 8, "torchaudio": 8}, differs_by=same)


def row_delta(o):
    """The gated delta rule of bench/recurrence.py, its token loop, and fla's chunkwise form in
    plain torch, which has no gate."""
    ours, theirs = peer(o, "bench.recurrence"), fla_delta_rule(o)
    if ours is None:
        return
    H, L, D = (1, 64, 8) if o.quick else (4, 2048, 64)
    q, k, v = F.normalize(torch.randn(3, 1, H, L, D), dim=-1).to(o.device)
    beta, decay = torch.rand(2, 1, H, L).to(o.device)
    runs = {"nanoSleep": lambda: ours.gated_delta(q, k, v, decay.log(), beta)[0],
            "token loop": lambda: ours.gated_delta_loop(q, k, v, decay.log(), beta)[0]}
    same = {"token loop": gap(*(run() for run in runs.values()))}
    if theirs:
        runs["fla, naive, no gate"] = lambda: theirs(q, k, v, beta)
        open_ = ours.gated_delta(q, k, v, torch.zeros_like(beta), beta)[0]
        same["fla, decay 1"] = gap(open_, theirs(q, k, v, beta) * D ** 0.5)
    yield race(o, f"gated delta rule, L={L}, {H} heads of {D}", L, "tokens/s", runs,
               differs_by=same)


def row_ewc(o):
    """Fisher information and one step with its penalty. avalanche squares the mean gradient of a
    batch: another number."""
    N, width = (64, 8) if o.quick else (512, 256)
    torch.manual_seed(o.seed)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
                          nn.Linear(width, 10)).to(o.device)
    x, y = torch.randn(N, 64, device=o.device), torch.randint(10, (N,), device=o.device)
    old, opt = [p.detach().clone() for p in model.parameters()], torch.optim.SGD(
        model.parameters(), lr=1e-3)

    def log_p(net, x, y):
        return -F.cross_entropy(net(x[None]), y[None])

    def step(importance):
        weighed = zip(importance().values(), model.parameters(), old)
        penalty = sum((f * (p - q).square()).sum() for f, p, q in weighed)
        opt.zero_grad()
        (F.cross_entropy(model(x[:32]), y[:32]) + penalty).backward()
        opt.step()
    kinds = {"nanoSleep": lambda: squared_gradients(model, log_p, (x, y), chunk=64),
             "sample by sample": lambda: fisher_of_batches(model, x, y, 1),
             "means of 32 squared": lambda: fisher_of_batches(model, x, y, 32)}
    ours, slow = (kinds[k]().values() for k in ("nanoSleep", "sample by sample"))
    same = {"sample by sample": max(gap(a, b) for a, b in zip(ours, slow))}
    ewc = peer(o, "avalanche", "avalanche.training.plugins.ewc")
    if ewc:
        data = torch.utils.data.TensorDataset(x, y, torch.zeros_like(y))
        weigh = ewc.EWCPlugin(2.0).compute_importances

        def theirs(batch):
            found = weigh(model, F.cross_entropy, opt, data, o.device, batch)
            return {k: v.data for k, v in found.items()}
        for batch in (32, 1):
            kinds[f"avalanche EWCPlugin, batch {batch}"] = partial(theirs, batch)
        apart = zip(theirs(1).values(), kinds["nanoSleep"]().values())
        same["avalanche, batch 1"] = max(gap(a, b) for a, b in apart)
    yield race(o, f"EWC, Fisher of {N} samples and a step, {sum(p.numel() for p in old):,} weights",
               N, "samples/s", {k: partial(step, f) for k, f in kinds.items()}, differs_by=same)


# --------------------------------------------------------------------------------------------------
# Nights

def grow(model, n):
    """A copy of the model with n nights behind it: copies of its first expert (or random ones), and
    of the things that wake it, of which only the last night's are near."""
    model, d = copy.deepcopy(model), model.config.n_embd
    for level in (block.levels[FAST] for block in model.remembering()):
        A, B = torch.randn(1, d, level.rank), torch.randn(1, level.rank, d) / 100
        A, B = (level.A, level.B) if len(level.A) else (A.to(level.A), B.to(level.B))
        level.A, level.B = A[:1].repeat(n, 1, 1), B[:1].repeat(n, 1, 1)
    if not len(model.metric):
        model.metric = torch.eye(d, device=model.device, dtype=model.wte.weight.dtype)
    mine = (model.owner == torch.tensor([FAST, 0], device=model.device)).all(1)
    things, reach = model.things[mine], model.reach[mine]
    if not len(things):
        things, reach = torch.randn(8, d, device=model.device), torch.ones(8, device=model.device)
    model.things, model.reach, model.owner = model.things[:0], model.reach[:0], model.owner[:0]
    for i in range(n):
        model.remember_things(things + 100 * (n - 1 - i), reach, FAST, i)
    return model


def row_night(o):
    """A night as the life grows. Night 1 is slept; the later ones start from copies of its expert
    and sleep on the same day."""
    if not os.path.isfile(o.base):
        o.absent["night"] = f"no base at --base={o.base}: python sleep.py writes out/base.pt"
        return
    base, _ = sleep.load(o.base, o.device)
    a = flags.parse([f"--seed={o.seed}", f"--world_seed={o.seed}", *(FEW if o.quick else [])])
    data = sleep.DATA[a.data](a)

    def night(model, i):
        sleep.run.stage(a, "speed", i)
        day = Day([sentences(data.enc, p) for p in data.days[i].passages], [])
        with torch.autocast(o.device, torch.bfloat16, enabled=o.dtype == torch.bfloat16,
                            cache_enabled=False):
            return sleep.asleep(a, copy.deepcopy(model), day, data.marks, i)[0]
    slept, new = night(base, 0), 4 if o.quick else 64
    lives = {f"night {n}": grow(slept, n - 1) for n in ((2, 4) if o.quick else (2, 10, 50, 100))}
    yield race(o, "a night as the life grows", 1, "nights/s",
               {k: partial(night, m, 1) for k, m in lives.items()}, rounds=1, warm=0)
    yield race(o, f"sampling {new} tokens in 64 rows as the life grows", new, "tokens/s a row",
               {k: partial(generate, m, [[*data.marks.bos]], new, n=64) for k, m in lives.items()})


def row_life(o):
    """Two nights of the default life as a process, and where its seconds go; --against: beside an
    older copy of nanoSleep with the same flags."""
    if not os.path.isfile(o.base):
        o.absent["life"] = f"no base at --base={o.base}: python sleep.py writes out/base.pt"
        return
    copies, goes = {"nanoSleep": ROOT}, {}
    if o.against:
        copies["an older copy"] = o.against

    def live(name):
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "sleep.py", "--contrast=0", "--days=2",
                       f"--init_from={os.path.abspath(o.base)}", f"--threads={o.threads}",
                       f"--device={o.device}", f"--out_dir={out}", *(FEW if o.quick else [])]
            subprocess.run(command, cwd=copies[name], check=True, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
            goes[name] = stats.read(os.path.join(out, "summary.json"))["seconds"]
    line = race(o, "two nights of the default life, from a base", 2, "nights/s",
                {name: partial(live, name) for name in copies}, o.rounds, 0)
    yield {**line, "stages": goes}


def row_past(o):
    """A closed-book answer after sleep, and the same with the whole past in context. Random
    weights: the time is the same."""
    days = (1, 2) if o.quick else (1, 10, 100)
    a = flags.parse([f"--world_seed={o.seed}", f"--days={max(days)}"])
    data = sleep.DATA[a.data](a)
    marks, enc = data.marks, data.enc
    ask = [*marks.ask, *enc.encode_ordinary(" Where does Ada Bram live?"), *marks.answer]
    for n in days:
        past = [*marks.bos] + [t for day in data.days[:n] for p in day.passages
                              for t in enc.encode_ordinary(p)]
        base = GPT(Config(block_size=len(past) + 64, vocab_size=enc.n_vocab)).to(o.device, o.dtype)
        asleep, caches = grow(base.requires_grad_(False), n), []
        reading = seconds(o, lambda: caches.append(read(base, past)))
        runs = {"closed book": partial(gate.remember, asleep, marks, [ask], 8),
                "past in context": partial(continued, base, caches[0], ask, 8)}
        kept = {"closed book": bytes_of(t for _, t in asleep.named_buffers()),
                "past in context": bytes_of(t for b in caches[0]["blocks"] for t in b.values())}
        yield race(o, f"an answer of 8 tokens after {n} days: {len(past):,} tokens, read in "
                      f"{reading:.2f} s", 8, "tokens/s", runs, bytes_kept=kept,
                   reading_seconds=reading)


def bytes_of(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


@torch.no_grad()
def read(model, ids):
    """A cache that holds these ids, read in pieces: the mask of all at once is len(ids)^2 wide."""
    cache = new_cache(model, 1, len(ids) + 64)
    for i in range(0, len(ids), 512):
        model.hidden(pad_rows([ids[i:i + 512]], model.device)[0], cache=cache)
    return cache


@torch.no_grad()
def continued(model, cache, asked, new):
    """Greedily `new` tokens behind what stands in a cache, which is left as it was."""
    cache, row = dict(cache), asked
    for _ in range(new):
        h = model.hidden(pad_rows([row], model.device)[0], cache=cache)
        row = model.logits(h[:, -1]).argmax(-1).tolist()
    return row


# --------------------------------------------------------------------------------------------------

ROWS = {k[4:]: v for k, v in list(globals().items()) if k.startswith("row_")}


def options(argv):
    """The flags, with the rows taken apart."""
    o = flags.parse(argv, __doc__, FLAGS, "speed.py")
    o.rows = o.only.split(",") if o.only else list(ROWS)
    if not set(o.rows) <= set(ROWS):
        flags.fail(f"--only={o.only}: choose from {', '.join(ROWS)}", "speed.py")
    if o.device == "cuda" and not torch.cuda.is_available():
        flags.fail("--device=cuda: there is none on this machine", "speed.py")
    if not o.result and not o.quick:
        o.result = os.path.join(stats.RESULTS, "speed.json")
    o.dtype = getattr(torch, o.dtype)
    return o


def show(line):
    print(f"\n{line['what']}      (last column: times our time)")
    for k, t in line["seconds"].items():
        more = [f"{key} {line[key][k]:.3g}" for key in ("peak_bytes", "bytes_kept", "utilisation")
                if line.get(key, {}).get(k)]
        print(f"  {k:34}{t:10.4f} s{line['rate'][k]:14,.1f} {line['unit']:15}"
              f"{line['times_ours'][k]:8.2f}x", *more, flush=True)


def main(argv):
    o = options(argv)
    stored = (stats.read(os.path.abspath(o.result)) if o.result else None) or {}
    torch.set_num_threads(o.threads)
    card = torch.cuda.get_device_name() if o.device == "cuda" else "cpu"
    print(f"{card}, {o.dtype}, {o.threads} threads. Expect {1 if o.quick else 2 * len(o.rows)} "
          "minutes of a core.", flush=True)
    kept = [w for w in argv if not w.startswith(("--only", "--result", "--base", "--against"))]
    for name in tqdm(o.rows, desc="rows", leave=False, disable=None):
        o.absent, lines = {}, []
        for line in ROWS[name](o):
            lines.append(line)
            show(line)
        for what, how in o.absent.items():
            print(f"  not measured in {name}: {what} ({how})", flush=True)
        about = stats.provenance(shlex.join(["python", "bench/speed.py", f"--only={name}", *kept]))
        peers = {k: getattr(sys.modules.get(k), "__version__", None) for k in PEERS}
        about["versions"].update({k: v for k, v in peers.items() if v})
        stored[f"{name} {o.device}"] = {
            **about, "device": card, "dtype": str(o.dtype)[6:], "seed": o.seed,
            "clock": clock(o).__name__, "absent": o.absent, "lines": lines}
        if o.result:                                         # every row is kept as it finishes
            store.write_json(o.result, stored)
    print("\n" + json.dumps({k: v for k, v in stored.items() if k.split()[0] in o.rows}))


if __name__ == "__main__":
    flags.guarded(main, "speed.py")
