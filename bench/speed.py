"""
How fast: nanoSleep beside what one would pick instead, measured side by side on one machine.

    python bench/speed.py --threads=1                       every row: about 20 minutes of one CPU core
    python bench/speed.py --only=train,sample --quick       tiny sizes, to see that it runs
    python bench/speed.py --device=cuda --dtype=bfloat16    the same on a GPU, and 124M parameters at 1,024 tokens of context
    more flags: --rounds=5  --seed=1  --base=out/base.pt (of sleep.py, for night and life)  --result=bench/results/speed.json

Competitors run in turn in one process on the same weights, data, dtype and threads; a time is the median of several rounds. With
one CPU thread it is CPU time, so that other jobs on the machine hardly count. Nothing is installed: a missing peer is named with
how to get it. Rows are kept in the result file one by one, so peers can be measured in environments of their own.
"""
import copy
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

import seed
import sleep
from bench.race import (PEERS, amp, clock, edit_distance, fisher_of_batches, fla_delta_rule, gap, gkd_trainer, gpt2,
                        peak_bytes, peer, race, seconds, trio)
from data import flags, store
from data import world as W
from data.flags import COUNT, SOME, SWITCH, TEXT
from model import GPT, Config, chunked_divergence, divergence, generate, levenshtein, new_cache

FLAGS = {  # name: (default, allowed, what it does), as in data/flags.py
    "only": ("", TEXT, "rows, with commas; none: all"), "quick": (False, SWITCH, "tiny sizes, to see that it runs"),
    "device": ("cpu", ("cpu", "cuda"), "where to compute"), "dtype": ("float32", ("float32", "bfloat16"), "number format"),
    "threads": (1, (1, 4096), "CPU threads"), "rounds": (5, SOME, "timed rounds; the median counts"), "seed": (1, COUNT, "seed"),
    "base": ("out/base.pt", TEXT, "base of sleep.py, for the rows night and life"),
    "against": ("", TEXT, "folder of an older copy of nanoSleep, for the row life"),
    "result": ("", TEXT, "result file; none with --quick: nothing is written")}


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


def row_train(o):
    """The same GPT-2 and AdamW in all; and, of another function, our own architecture with our own optimisers. utilisation:
    (6 N + 12 layers d T) FLOP a token (PaLM, arXiv 2204.02311), over the rate of one large matrix product here.
    """
    sizes = [(4, 128, 12, 64, 1024), (6, 384, 8, 256, 1024)] + [(12, 768, 16, 1024, 50304)] * (o.device == "cuda")
    n = 64 if o.quick else 8192 if o.device == "cuda" else 1024
    x = torch.randn(n, n, device=o.device, dtype=o.dtype)
    rate = 2 * n ** 3 / statistics.median(seconds(o, lambda: x @ x) for _ in range(20))
    for n_layer, d, B, T, V in [(2, 32, 2, 16, 128)] if o.quick else sizes:
        c = gpt2(n_layer, d, T, V)
        ours, plain, hf = trio(o, c)
        own = GPT(Config(V, T, n_layer, c.n_head, c.head_dim, d, 4 * d)).to(o.device)
        ids = torch.randint(V, (B, T + 1), device=o.device)
        models, adam = {"nanoSleep": ours, "plain PyTorch": plain}, lambda m: [torch.optim.AdamW(m.parameters(), lr=1e-3)]
        runs = {k: train_step(o, m, ids, adam(m)) for k, m in models.items()}
        if o.device == "cuda":
            runs["nanoSleep, compiled"] = train_step(o, torch.compile(ours), ids, adam(ours))
        if hf:
            models["transformers"] = lambda idx: hf(idx, use_cache=False).logits
            runs["transformers"] = train_step(o, models["transformers"], ids, adam(hf))
        runs["own architecture, Muon"] = train_step(o, own, ids, sleep.optimizers(own, 0.03, 0.04))
        with torch.no_grad():
            same = {k: gap(ours(ids[:, :-1]), f(ids[:, :-1])) for k, f in models.items()}
        line = race(o, f"training step, {n_layer} layers, d={d}, {B}x{T}", ">= 1.0x plain, >= 1.5x transformers; on a GPU 45 %",
                    B * T, "tokens/s", runs, differs_by=same, matmul_flop_per_s=rate)
        flop = (6 * (sum(p.numel() for p in ours.parameters()) - T * d) + 12 * n_layer * d * T) * B * T
        with torch.profiler.profile() as p:
            runs["nanoSleep"]()
        spent = {e.key: e.self_device_time_total if o.device == "cuda" else e.self_cpu_time_total for e in p.key_averages()}
        goes = {k: spent[k] / sum(spent.values()) for k in sorted(spent, key=spent.get)[-6:]}
        yield {**line, "utilisation": {k: flop / t / rate for k, t in line["seconds"].items() if k[0] != "o"}, "time_goes": goes}


def row_sample(o):
    sizes = [(4, 128, 256, 128, 16), (4, 128, 256, 128, 64)] + [(12, 768, 256, 128, 256)] * (o.device == "cuda")
    for n_layer, d, prefix, new, n in [(2, 32, 8, 4, 2)] if o.quick else sizes:
        ours, _, hf = trio(o, gpt2(n_layer, d, prefix + new))
        ours, prompt = ours.to(o.dtype), torch.randint(1, 1024, (1, prefix), device=o.device)
        runs, same = {"nanoSleep": lambda: generate(ours, prompt.tolist(), new, n=n)}, {}
        if hf:
            kw = dict(attention_mask=torch.ones_like(prompt), max_new_tokens=new, use_cache=True)
            theirs, hf = lambda **how: hf.generate(prompt, **kw, **how), hf.to(o.dtype)
            runs["transformers"] = lambda: theirs(do_sample=True, top_k=0, num_return_sequences=n)
            greedy = torch.tensor(generate(ours, prompt.tolist(), new, temperature=0), device=o.device)
            same["share of greedy tokens"] = float((greedy != theirs(do_sample=False)[:, prefix:]).float().mean())
        yield race(o, f"sampling {new} tokens, {n_layer} layers, d={d}, batch {n}, shared prefix of {prefix}", ">= 4x", n * new,
                   "tokens/s", runs, differs_by=same)


def row_distil(o):
    """Sample from the student, score by the teacher, reverse KL, AdamW on all weights of the student."""
    n_layer, d, P, new, batches = (2, 32, 6, 4, (4,)) if o.quick else (4, 128, 64, 64, (8, 32))
    (student, _, hf), (teacher, _, hf_teacher) = (trio(o, gpt2(n_layer, d, P + new + 2), i) for i in (1, 2))
    gkd, marks = peer(o, "trl", "trl.experimental.gkd"), seed.Marks(0, 1, 2, -1)     # end mark -1: no row ends early
    teach, opt = seed.reader(teacher, seed.blank(teacher, marks), gate=True), torch.optim.AdamW(student.parameters(), lr=1e-4)
    for B in batches:
        prompts, more = torch.randint(3, 1024, (B, P), device=o.device), {}
        z = seed.pack([(0, row, [5]) for row in prompts.tolist()], student.device)

        def ours():
            with amp(o):
                loss, _ = seed.on_policy_loss(student, z, torch.arange(B), teach, marks, 1, "reverse", 0.5, 1.0, 0.5, 2, new)
            opt.zero_grad()
            loss.backward()
            opt.step()
        runs = {"nanoSleep": ours}
        if gkd and hf:
            trainer = gkd_trainer(o, gkd, hf, hf_teacher, new)

            def theirs():
                trainer.training_step(trainer.model, {"prompts": prompts, "prompt_attention_mask": torch.ones_like(prompts)})
                trainer.optimizer.step()
                trainer.optimizer.zero_grad()
            a, b = (F.log_softmax(torch.randn(2, 5, 40), -1) for _ in range(2))
            loss = gkd.GKDTrainer.generalized_jsd_loss(b, a, torch.ones(2, 5), beta=1)
            runs["trl GKDTrainer"], more["differs_by"] = theirs, {"loss": gap(divergence(a, b, "reverse").mean(), loss)}
        yield race(o, f"on-policy distillation step, {P} + {new} tokens, batch {B}", ">= 3x", B * new, "tokens/s", runs, **more)


def row_kl(o):
    """KL over a large vocabulary, forward and backward, in chunks and with all logits at once."""
    N, V, d = (64, 1000, 16) if o.quick else (8 * 1024, 50257, 128)
    make = lambda *s: (torch.randn(s) * s[-1] ** -0.25).to(o.device, o.dtype)
    torch.manual_seed(o.seed)
    for trained in (False, True):                                    # at night the head stands still
        h, head, teacher_h, teacher_head = make(N, d).requires_grad_(), make(V, d).requires_grad_(trained), make(N, d), make(V, d)
        log = lambda x, w: F.log_softmax((x @ w.T).float(), -1)
        back = lambda kl: torch.autograd.grad(kl.mean(), [h, head] if trained else [h])
        runs = {"nanoSleep": lambda: back(chunked_divergence(h, head, teacher_h, teacher_head=teacher_head, chunk=N // 8)),
                "all logits": lambda: back(divergence(log(teacher_h, teacher_head), log(h, head)))}
        memory, grads = zip(*(peak_bytes(o, run) for run in runs.values()))
        same = {"gradient, relative": max(gap(a, b) / float(b.abs().max()) for a, b in zip(*grads))}
        yield race(o, f"KL, {N} tokens, vocabulary {V:,}, d={d}, head {'trained' if trained else 'frozen'}",
                   "<= 1/8 of the memory, <= 1.3x the time", N, "tokens/s", runs, min(2, o.rounds), 0, differs_by=same,
                   peak_bytes=dict(zip(runs, memory)))


def row_levenshtein(o):
    """The pure-Python ones do an eighth of the pairs; their time is scaled."""
    N, L = (32, 12) if o.quick else (4096, 64)
    torch.manual_seed(o.seed)
    (a, b), (la, lb) = torch.randint(8, (2, N, L)), torch.randint(1, L + 1, (2, N))
    pairs = [(x[:i], y[:j]) for x, y, i, j in zip(a.tolist(), b.tolist(), la.tolist(), lb.tolist())]
    few, on = pairs[:N // 8], [t.to(o.device) for t in (a, b, la, lb)]
    runs = {"nanoSleep": lambda: levenshtein(*on), "Python": lambda: [edit_distance(*p) for p in few]}
    if peer(o, "rapidfuzz"):
        texts = [["".join(map(chr, x)) for x in side] for side in zip(*pairs)]
        cpdist, metric = peer(o, "rapidfuzz", "rapidfuzz.process").cpdist, peer(o, "rapidfuzz", "rapidfuzz.distance").Levenshtein
        runs["rapidfuzz"] = lambda: cpdist(*texts, scorer=metric.distance, workers=o.threads)
    audio = peer(o, "torchaudio")
    if audio:
        runs["torchaudio"] = lambda: [audio.functional.edit_distance(*p) for p in few]
    truth = torch.tensor(runs["Python"]())
    same = {k: gap(torch.as_tensor(run())[:len(few)].cpu(), truth) for k, run in runs.items()}
    yield race(o, f"Levenshtein, {N} pairs of length <= {L}", ">= 100x Python, near rapidfuzz", N, "pairs/s", runs,
               scale={"Python": 8, "torchaudio": 8}, differs_by=same)


def row_delta(o):
    """The gated delta rule of bench/recurrence.py, its token loop, and fla's chunkwise form in plain torch, which has no gate."""
    ours, theirs = peer(o, "bench.recurrence"), fla_delta_rule(o)
    if ours is None:
        return
    H, L, D = (1, 64, 8) if o.quick else (4, 2048, 64)
    (q, k, v), (beta, decay) = F.normalize(torch.randn(3, 1, H, L, D), dim=-1).to(o.device), torch.rand(2, 1, H, L).to(o.device)
    runs = {"nanoSleep": lambda: ours.gated_delta(q, k, v, decay.log(), beta)[0],
            "token loop": lambda: ours.gated_delta_loop(q, k, v, decay.log(), beta)[0]}
    same = {"token loop": gap(*(run() for run in runs.values()))}
    if theirs:
        runs["fla, naive, no gate"] = lambda: theirs(q, k, v, beta)
        same["fla, decay 1"] = gap(ours.gated_delta(q, k, v, torch.zeros_like(beta), beta)[0], theirs(q, k, v, beta) * D ** 0.5)
    yield race(o, f"gated delta rule, L={L}, {H} heads of {D}", ">= 8x token loop, >= 1x fla", L, "tokens/s", runs,
               differs_by=same)


def fisher(model, x, y, chunk=64):
    """Diagonal Fisher information, the mean of grad^2 over samples (EWC, Kirkpatrick et al. 2017); a chunk's samples at once."""
    params = {k: p.detach() for k, p in model.named_parameters()}
    loss = lambda p, x, y: F.cross_entropy(torch.func.functional_call(model, p, (x[None],)), y[None])
    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))
    parts = [each(params, *part) for part in zip(x.split(chunk), y.split(chunk))]
    return {k: sum(g[k].square().sum(0) for g in parts) / len(x) for k in params}


def row_ewc(o):
    """Fisher information and one step with its penalty. avalanche squares the mean gradient of a batch: another number."""
    N, width = (64, 8) if o.quick else (512, 256)
    torch.manual_seed(o.seed)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)).to(o.device)
    x, y = torch.randn(N, 64, device=o.device), torch.randint(10, (N,), device=o.device)
    old, opt = [p.detach().clone() for p in model.parameters()], torch.optim.SGD(model.parameters(), lr=1e-3)

    def step(importance):
        penalty = sum((f * (p - q).square()).sum() for f, p, q in zip(importance.values(), model.parameters(), old))
        opt.zero_grad()
        (F.cross_entropy(model(x[:32]), y[:32]) + penalty).backward()
        opt.step()
    kinds = {"nanoSleep": lambda: fisher(model, x, y), "sample by sample": lambda: fisher_of_batches(model, x, y, 1),
             "means of 32 squared": lambda: fisher_of_batches(model, x, y, 32)}
    same = {"sample by sample": max(gap(a, b) for a, b in zip(*(f().values() for f in list(kinds.values())[:2])))}
    ewc = peer(o, "avalanche", "avalanche.training.plugins.ewc")
    if ewc:
        data = torch.utils.data.TensorDataset(x, y, torch.zeros_like(y))
        weigh = ewc.EWCPlugin(2.0).compute_importances
        theirs = lambda batch: {k: v.data for k, v in weigh(model, F.cross_entropy, opt, data, o.device, batch).items()}
        kinds["avalanche EWCPlugin, batch 32"], kinds["avalanche EWCPlugin, batch 1"] = lambda: theirs(32), lambda: theirs(1)
        same["avalanche, batch 1"] = max(gap(a, b) for a, b in zip(theirs(1).values(), fisher(model, x, y).values()))
    yield race(o, f"EWC, Fisher of {N} samples and a step, {sum(p.numel() for p in old):,} weights", ">= 1x avalanche", N,
               "samples/s", {k: lambda f=f: step(f()) for k, f in kinds.items()}, differs_by=same)


def grow(model, n):
    """A copy of the model with n nights behind it: n copies of its first expert and detectors, or random ones if it has none."""
    model, d = copy.deepcopy(model), model.config.n_embd
    for level in (block.levels[sleep.FAST] for block in model.blocks):
        A, B = (level.A, level.B) if len(level.A) else (torch.randn(1, d, level.rank), torch.randn(1, level.rank, d) / 100)
        level.A, level.B = A[:1].to(level.A).repeat(n, 1, 1), B[:1].to(level.B).repeat(n, 1, 1)
    keys, bias = (model.keys, model.bias) if len(model.keys) else (F.normalize(torch.randn(8, d)), torch.full((8,), -2.0))
    model.keys, model.bias, model.owner = model.keys[:0], model.bias[:0], model.owner[:0]
    for i in range(n):
        model.attach(keys, bias, sleep.FAST, i)
    return model


def row_night(o):
    """A night as the life grows. Night 1 is slept; the later ones start from copies of its expert and sleep on the same day."""
    if not os.path.isfile(o.base):
        o.absent["night"] = f"no base at --base={o.base}: python sleep.py writes out/base.pt"
        return
    enc, world, (base, _) = W.load_tokenizer(), W.make_world(o.seed), sleep.load(o.base, o.device)
    marks = seed.Marks(*(enc.encode_single_token(s) for s in sleep.SPECIAL))
    a = sleep.parse(["--seed_steps=3", "--dream_steps=2", "--replay_dreams=40"] if o.quick else [])

    def night(model, day):
        sleep.reseed(a, "speed", day)
        passages = [sleep.sentences(enc, W.passage(p, random)[0]) for p in world["days"][day]]
        with torch.autocast(o.device, torch.bfloat16, enabled=o.dtype == torch.bfloat16, cache_enabled=False):
            sleep.night(a, model, passages, marks, day, tqdm(disable=True))
        return model
    slept = night(copy.deepcopy(base), 0)
    lives = {f"night {n}": grow(slept, n - 1) for n in ((2, 4) if o.quick else (2, 10, 50, 100))}
    yield race(o, "a night as the life grows", "night 100 <= 1.15x night 2", 1, "nights/s",
               {k: lambda m=m: night(copy.deepcopy(m), 1) for k, m in lives.items()}, rounds=1, warm=0)
    new = 4 if o.quick else 64
    yield race(o, f"sampling {new} tokens in 64 rows as the life grows", "night 100 <= 1.15x night 2", new, "tokens/s a row",
               {k: lambda m=m: generate(m, [[marks.bos]], new, n=64) for k, m in lives.items()})


def row_life(o):
    """Two nights of the default life as a process, and where its seconds go; --against: beside an older copy of nanoSleep."""
    if not os.path.isfile(o.base):
        o.absent["life"] = f"no base at --base={o.base}: python sleep.py writes out/base.pt"
        return
    copies, goes = {"nanoSleep": ROOT, **({"an older copy": o.against} if o.against else {})}, {}
    small = ["--seed_steps=3", "--dream_steps=2", "--replay_dreams=40"] if o.quick else []

    def live(name, folder):
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "sleep.py", "--contrast=0", "--stop=2", f"--init_from={os.path.abspath(o.base)}",
                       f"--threads={o.threads}", f"--device={o.device}", f"--out_dir={out}", *small]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            with open(os.path.join(out, "summary.json")) as f:
                goes[name] = json.load(f)["seconds"]
    line = race(o, "two nights of the default life, from a base", "faster than it was", 2, "nights/s",
                {name: lambda n=name, f=folder: live(n, f) for name, folder in copies.items()}, o.rounds, 0)
    yield {**line, "stages": {k: {x: t for x, t in v.items() if x not in ("pretrain", "total")} for k, v in goes.items()}}


def row_past(o):
    """A closed-book answer after sleep, and the same with the whole past in context. Random weights: the time is the same."""
    enc, days, rng = W.load_tokenizer(), (1, 2) if o.quick else (1, 10, 100), random.Random(o.seed)
    world = W.make_world(o.seed, n_days=max(days))
    for n in days:
        text = [0] + [t for day in world["days"][:n] for p in day for t in enc.encode_ordinary(W.passage(p, rng)[0])]
        base = GPT(Config(block_size=len(text) + 64, vocab_size=enc.n_vocab)).to(o.device, o.dtype)
        asleep, ask = grow(base, n), [[1] + enc.encode_ordinary(" Where does Ada Bram live?") + [2]]

        @torch.no_grad()
        def read():
            cache = new_cache(base, 1, len(text))
            for i in range(0, len(text), 512):                       # in pieces: the mask of all at once is len(text)^2 wide
                base.hidden(torch.tensor([text[i:i + 512]], device=o.device), cache=cache)
            return cache
        past, size = [], lambda tensors: sum(t.numel() * t.element_size() for t in tensors)
        reading = seconds(o, lambda: past.append(read()))
        runs = {"closed book": lambda: generate(asleep, ask, 8), "past in context": lambda: generate(base, ask, 8, cache=past[0])}
        kept = {"closed book": size(t for _, t in asleep.named_buffers()),
                "past in context": size(t for b in past[0]["blocks"] for t in b.values())}
        yield race(o, f"an answer of 8 tokens after {n} days: {len(text):,} tokens, read in {reading:.2f} s", "closed book flat",
                   8, "tokens/s", runs, bytes_kept=kept, reading_seconds=reading)


ROWS = {k[4:]: v for k, v in list(globals().items()) if k.startswith("row_")}


def options(argv):
    """The flags, with the rows taken apart."""
    o = flags.parse(argv, __doc__, FLAGS, "speed.py")
    o.rows = o.only.split(",") if o.only else list(ROWS)
    if not set(o.rows) <= set(ROWS):
        flags.fail(f"--only={o.only}: choose from {', '.join(ROWS)}", "speed.py")
    if o.device == "cuda" and not torch.cuda.is_available():
        flags.fail("--device=cuda: there is none on this machine", "speed.py")
    o.dtype, o.result = getattr(torch, o.dtype), o.result or ("" if o.quick else os.path.join(ROOT, "bench/results/speed.json"))
    return o


def show(line):
    print(f"\n{line['what']}      goal: {line['goal']}      (last column: times our time)")
    for k, t in line["seconds"].items():
        more = [f"{key} {line[key][k]:.3g}" for key in ("peak_bytes", "bytes_kept", "utilisation") if line.get(key, {}).get(k)]
        print(f"  {k:34}{t:10.4f} s{line['rate'][k]:14,.1f} {line['unit']:15}{line['times_ours'][k]:8.2f}x", *more, flush=True)


def main(argv):
    o, stored = options(argv), {}
    torch.set_num_threads(o.threads)
    card = torch.cuda.get_device_name() if o.device == "cuda" else "cpu"
    print(f"{card}, {o.dtype}, {o.threads} threads. Expect {1 if o.quick else 2 * len(o.rows)} minutes of a core.", flush=True)
    if os.path.isfile(o.result):
        with open(o.result) as f:
            stored = json.load(f)
    kept = [w for w in argv if not w.startswith(("--only", "--result", "--base", "--against"))]
    for name in tqdm(o.rows, desc="rows", leave=False, disable=None):
        o.absent, lines = {}, []
        for line in ROWS[name](o):
            lines.append(line)
            show(line)
        for what, how in o.absent.items():
            print(f"  not measured in {name}: {what} ({how})", flush=True)
        found = {k: getattr(sys.modules.get(k), "__version__", None) for k in ("torch", *PEERS)}
        stored[f"{name} {o.device}"] = {
            "command": " ".join(["python bench/speed.py", f"--only={name}", *kept]), "device": card, "dtype": str(o.dtype)[6:],
            "threads": o.threads, "seed": o.seed, "clock": clock(o).__name__, "versions": {k: v for k, v in found.items() if v},
            "absent": o.absent, "lines": lines}
        if o.result:                                                 # every row is kept as it finishes
            store.write_json(o.result, stored)
    print("\n" + json.dumps({k: v for k, v in stored.items() if k.split()[0] in o.rows}))


if __name__ == "__main__":
    main(sys.argv[1:])
