"""
The tasks of bench/absorber.py: map, stream, world, latency, life. Each run_* takes (flags, seed, bar) and returns a dict.
"""
import json
import math
import os
import random
import subprocess
import sys
import time

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import dream
import seed as seeding
import sleep
from bench.absorber import METHODS, absorb, lora, merge, next_token, settle, share, wearing
from data import world as W
from data.bpe import SPECIAL
from model import GPT, Config, clone, generate, new_cache, pad_rows

LRS = (3e-3, 1e-2, 3e-2)            # in map and world each method's rate is chosen, on other documents of the same seed


# ----------------------------------------------------------------------------------------------------------------------
# map and stream: a small transformer that has learnt to read a map from its context

CLASSES, WORDS, LABELS, BOS = 8, 4, 8, 0                              # ids: 0, then 32 words, class by class, then 8 labels


def pairs(rng, labels, classes):
    """For each class an item: two of its words and its label, [word, word, label]."""
    return [[1 + c * WORDS + rng.randrange(WORDS), 1 + c * WORDS + rng.randrange(WORDS), 1 + CLASSES * WORDS + labels[c]]
            for c in classes]


def flat(items):
    return [t for item in items for t in item]


def new_map(rng):
    """Each class's label, drawn independently: knowing seven says nothing about the eighth."""
    return [rng.randrange(LABELS) for _ in range(CLASSES)]


def document(labels, x, y):
    """Lists of pairs X and Y as a document of Algorithm 1."""
    return {"labels": labels, "x": [BOS] + flat(x), "items": x, "ys": [flat(y)], "says": [[0, 0, 1] * len(y)]}


def map_document(rng, n, m):
    """X shows every class equally often, Y is what comes next: classes drawn at random."""
    labels, x = new_map(rng), [i % CLASSES for i in range(n)]
    rng.shuffle(x)
    y = [rng.randrange(CLASSES) for _ in range(m)]
    return {**document(labels, pairs(rng, labels, x), pairs(rng, labels, y)), "covered": [c in y for c in range(CLASSES)]}


def map_model(a, seed, bar):
    """4 layers of 64, trained on documents of 81 pairs; half of them drift through a few classes at a time."""
    path = f"out-absorber/map-{seed}-{a.train_steps}.pt"
    if os.path.isfile(path):
        return sleep.load(path, a.device)[0]
    torch.manual_seed(seed)
    rng = random.Random(f"pretrain {seed}")
    model = GPT(Config(vocab_size=1 + CLASSES * WORDS + LABELS, block_size=256, n_layer=4, n_head=4, head_dim=16, n_embd=64,
                       d_ff=256, ranks=(8,))).to(a.device)
    opts = sleep.optimizers(model, lr_muon=0.02, lr_adam=0.01)
    for step in range(a.train_steps):
        rows = []
        for _ in range(8):
            labels, drift, order = new_map(rng), rng.random() < 0.5, rng.sample(range(CLASSES), CLASSES)
            some = [[order[(i // 8 + rng.randrange(3)) % CLASSES] if drift else rng.randrange(CLASSES)] for i in range(81)]
            rows.append([BOS] + flat(pairs(rng, labels, flat(some))))
        ids, lengths = pad_rows(rows, a.device)
        sleep.descend(model, opts, next_token(model, ids, lengths).mean(),
                      min(1.0, (step + 1) / 20, 2 * (1 - step / a.train_steps) + 0.02), clip=math.inf)
        bar.update(1)
    os.makedirs("out-absorber", exist_ok=True)
    sleep.save(path, model)
    return model.requires_grad_(False)


@torch.no_grad()
def right(model, adapter, docs, before, rng, each=2):
    """Ask every document for every class, `each` times, behind the tokens before[i]. True where right: (D, CLASSES, each)."""
    items = [pairs(rng, d["labels"], [c for c in range(CLASSES) for _ in range(each)]) for d in docs]
    ids, lengths = pad_rows([b + item[:2] for b, some in zip(before, items) for item in some], model.device)
    with wearing(model, adapter):
        h = model.hidden(ids)[torch.arange(len(ids), device=model.device), lengths - 1]
    said = model.logits(h).argmax(-1).cpu()
    return (said == torch.tensor([item[2] for some in items for item in some])).view(len(docs), CLASSES, each)


def tuned(learn, valid, score, how):
    """The rate of LRS at which a method does best on documents that are not those of the test: (rate, {rate: score})."""
    seen = {lr: score(learn(valid, how, lr)[0], valid) for lr in LRS}
    return max(LRS, key=lambda lr: (round(seen[lr], 3), -lr)), seen


def run_map(a, seed, bar):
    """Every method on the same documents, all classes asked; the paper's tables 2, 5 (methods) and 6 (n and m)."""
    model, rng = map_model(a, seed, bar), random.Random(f"map {seed}")
    docs, valid, other = ([map_document(rng, a.n, a.m) for _ in range(count)] for count in
                          (a.documents, max(1, a.documents // 2), a.documents))
    covered = torch.tensor([d["covered"] for d in docs])
    strange = [{**d, "labels": o["labels"]} for d, o in zip(docs, other)]                    # in context: another map

    def learn(some, how, lr):
        adapter, start = lora(model, a.rank, len(some), seed), time.time()
        taken, ratio = absorb(model, some, adapter, how, BOS, a.steps, a.threshold, lr)
        bar.update(a.steps)
        return adapter, {"lr": lr, "taken": share(taken), "loss_ratio": share(ratio), "seconds": time.time() - start}

    def empty(adapter, some):
        return right(model, adapter, some, [[BOS]] * len(some), random.Random(seed))

    def measure(adapter):
        gone, rng = empty(adapter, docs), random.Random(seed)
        window = right(model, adapter, docs, [[BOS] + d["ys"][0] for d in docs], rng)
        return {"all": share(gone), "covered": share(gone, covered), "uncovered": share(gone, ~covered),
                "window_covered": share(window, covered), "window_uncovered": share(window, ~covered),
                "new_map": share(right(model, adapter, strange, [o["x"] for o in other], rng))}

    whole = right(model, None, docs, [d["x"] + d["ys"][0] for d in docs], random.Random(seed))
    result = {"full": {"all": share(whole), "covered": share(whole, covered), "uncovered": share(whole, ~covered)},
              "truncation": measure(None)}
    for how in METHODS:
        lr, grid = tuned(learn, valid, lambda adapter, some: share(empty(adapter, some)), how)
        adapter, log = learn(docs, how, lr)
        result[how] = {**measure(adapter), **log, "rates": grid}
    best = result["hidden"]["lr"]
    result["hidden, highest rate"] = {**measure(learn(docs, "hidden", LRS[-1])[0]), "lr": LRS[-1]}
    # ours: a Y of many pairs explains itself, only the first pair of a class needs X. So each pair alone is a continuation
    single = lambda y: {"ys": y, "says": [[0, 0, 1] for _ in y]}
    parts = [{**d, **single([d["ys"][0][i:i + 3] for i in range(0, 3 * a.m, 3)])} for d in docs]
    adapter, log = learn(parts, "hidden", best)
    result["hidden, Y pair by pair"] = {**measure(adapter), **log}
    said = generate(model, [d["x"] for d in docs], 12 * a.m, generator=torch.Generator(a.device).manual_seed(seed))
    parts = [{**d, **single([y[i:i + 3] for i in range(0, 12 * a.m, 3)])} for d, y in zip(docs, said)]
    adapter, log = learn(parts, "hidden", best)
    seen = torch.tensor([[any((t - 1) // WORDS == c for t in y) for c in range(CLASSES)] for y in said])
    result["hidden, pair by pair, the model writes 4x Y"] = {"coverage": share(seen), **measure(adapter), **log}
    result["n_m"] = []
    for n in (8, 24, 48):
        for m in (4, 8, 32):
            some = [map_document(rng, n, m) for _ in docs]
            adapter, log = learn(some, "hidden", best)
            result["n_m"].append({"n": n, "m": m, **log, "all": share(empty(adapter, some))})
    return result


SLIDES = 6


def stream_document(rng):
    """Seven windows of 8 pairs; window s knows the classes s, s + 1 and s + 2, so class s has left after window s.

    Class 0 is only ever in X and never in a Y. Classes 6 and 7 are in the last window, which is never absorbed.
    """
    labels, order = new_map(rng), rng.sample(range(CLASSES), CLASSES)
    windows = []
    for s in range(SLIDES + 1):
        here = [order[min(s + i % 3, CLASSES - 1)] for i in range(8)]
        rng.shuffle(here)
        windows.append(pairs(rng, labels, here))
    return {"labels": labels, "order": order, "windows": windows}


def live_stream(a, model, docs, how, lr, seed, bar):
    """Algorithm 2: absorb the oldest window X in the light of the next one Y, drop X, slide on. Memory: M, A, B, two windows."""
    adapter = lora(model, a.rank, len(docs), seed)
    for s in range(SLIDES):
        some = [document(d["labels"], d["windows"][s], d["windows"][s + 1]) for d in docs]
        absorb(model, some, adapter, how, BOS, a.steps, a.threshold, lr)
        adapter = lora(model, a.rank, len(docs), seed + s + 1, merged=merge(adapter))
        bar.update(a.steps)
    return adapter


def run_stream(a, seed, bar):
    """The map after six slides: by_class[c] is the class that left 6 - c slides ago (0: also never in a Y; 6, 7: not gone)."""
    model, rng = map_model(a, seed, bar), random.Random(f"stream {seed}")
    docs = [stream_document(rng) for _ in range(a.documents)]

    def measure(adapter, full=False):
        before = [[BOS] + flat(flat(d["windows"]) if full else d["windows"][-1]) for d in docs]
        hit = right(model, adapter, docs, before, random.Random(seed))
        hit = torch.stack([h[d["order"]] for h, d in zip(hit, docs)])
        return {"gone": share(hit[:, 1:SLIDES]), "never in Y": share(hit[:, 0]), "in the window": share(hit[:, SLIDES:]),
                "by_class": hit.float().mean((0, 2)).tolist()}

    result = {"full": measure(None, full=True), "truncation": measure(None)}
    for how in METHODS:
        start = time.time()
        adapter = live_stream(a, model, docs, how, LRS[0], seed, bar)
        result[how] = {**measure(adapter), "lr": LRS[0], "seconds": time.time() - start}
    return result


# ----------------------------------------------------------------------------------------------------------------------
# world: a passage about a stranger is absorbed, then asked about

def world_base(a, seed):
    """The base that sleep.py pretrains for this seed: (model, encoding, marks, world)."""
    enc, path, world = W.load_tokenizer(), a.bases.format(seed), W.make_world(seed)
    marks = seeding.Marks(*(enc.encode_single_token(s) for s in SPECIAL))
    if not os.path.isfile(path):
        args = sleep.parse([f"--seed={seed}", f"--world_seed={seed}", f"--pretrain_steps={a.world_steps}"])
        args.torch_device = torch.device(a.device)
        model = sleep.born(args, enc, marks, world)
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        sleep.save(path, model)
    return sleep.load(path, a.device)[0], enc, marks, world


def passages(model, enc, marks, people, rng, count=12):
    """A document for each person: X a passage, Y `count` questions and answers that the model asks itself with X in context.

    Where it asks itself nothing well-formed, Y is whatever it says. Nothing else is known of X.
    """
    docs = []
    for p in people:
        text = W.passage(p, rng)[0]
        docs.append({"x": [marks.bos] + enc.encode_ordinary(text), "items": sleep.sentences(enc, text)})
    dreamt = dream.write_dreams(model, [d["x"] for d in docs], 1, marks, 8, 64, temperature=0.85)
    said = generate(model, [d["x"] + [marks.ask] for d in docs], 16)
    for i, d in enumerate(docs):
        own = [(q, y) for p, q, y in dreamt if p == i] or [((marks.ask,), tuple(said[i]))]
        own = [own[j % len(own)] for j in rng.sample(range(max(count, len(own))), count)]
        d.update(ys=[[*q, *y] for q, y in own], says=[[0] * len(q) + [1] * len(y) for q, y in own])
    return docs


def run_world(a, seed, bar):
    """recall: held-out questions about the stranger, nothing in context; reading: another passage in context; old: what the
    base knew. The adapter is that of the stranger throughout."""
    model, enc, marks, world = world_base(a, seed)
    torch.manual_seed(seed)
    rng = random.Random(f"strangers {seed}")
    people, some, others = ([W.stranger(world, rng) for _ in range(count)] for count in (a.people, a.people // 2, a.people))
    docs, valid = passages(model, enc, marks, people, rng), passages(model, enc, marks, some, rng)
    closed, opened = W.exam(people, rng), W.exam(others, rng, context=True)
    old = rng.sample(W.exam(world["old"], rng), min(5 * len(people), 200))
    context = [(enc.decode(docs[i // 5]["x"][1:]), q, y) for i, (_, q, y) in enumerate(closed)]

    def learn(docs, how, lr):
        adapter, start = lora(model, a.rank, len(docs), seed), time.time()
        taken, ratio = absorb(model, docs, adapter, how, marks.bos, a.steps, 0.0, lr)      # all K: losses differ too much
        bar.update(a.steps)
        return adapter, {"lr": lr, "taken": share(taken), "loss_ratio": share(ratio), "seconds": time.time() - start}

    def ask(adapter, items):
        with wearing(model, adapter):
            return sleep.exam(model, enc, marks, items)

    measure = lambda adapter: {"recall": ask(adapter, closed), "reading": ask(adapter, opened), "old": ask(adapter, old)}
    result = {"full": {"recall": ask(None, context)}, "truncation": measure(None)}
    questions = W.exam(some, rng)
    for how in METHODS:
        lr, grid = tuned(learn, valid, lambda adapter, _: ask(adapter, questions), how)
        adapter, log = learn(docs, how, lr)
        result[how] = {**measure(adapter), **log, "rates": grid}
    return result


def run_life(a, seed, bar):
    """Seven nights of the real sleep.py from the base of this seed."""
    world_base(a, seed)
    out = f"out-absorber/life-{seed}"
    words = ["sleep.py", "--method=absorb", "--contrast=0", f"--days={a.days}", f"--seed={seed}", f"--world_seed={seed}",
             f"--threads={a.threads}", f"--init_from={a.bases.format(seed)}", f"--out_dir={out}", f"--device={a.device}"]
    subprocess.run([sys.executable, os.path.join(ROOT, words[0]), *words[1:]], check=True, stdout=subprocess.DEVNULL)
    with open(os.path.join(out, "summary.json")) as f:
        life = json.load(f)
    with open(os.path.join(out, "log.jsonl")) as f:
        return {**life, "nights": [json.loads(line) for line in f]}


# ----------------------------------------------------------------------------------------------------------------------
# latency: what a generated token costs behind n tokens, and what it costs to absorb them

@torch.no_grad()
def per_token(model, n, tokens=24):
    """Seconds of one generated token behind n tokens in the cache, the fastest of `tokens`, and the bytes of that cache."""
    cache, idx = new_cache(model, 1, n + tokens), torch.zeros(1, 1, dtype=torch.long, device=model.device)
    for block in cache["blocks"]:
        for t in block.values():
            t.normal_()
    cache.update(len=cache["len"] + n, max=n)
    size, took = sum(t.numel() * t.element_size() for b in cache["blocks"] for t in b.values()), []
    for _ in range(tokens):
        start = time.perf_counter()
        idx = model.logits(model.hidden(idx, cache=cache)).argmax(-1)
        idx.tolist()                                                 # the next token is read: the device is waited for
        took.append(time.perf_counter() - start)
    return min(took), size                                           # a busy machine only ever adds


def run_latency(a, seed, bar):
    """Table 1. Random weights (4 layers of 256): time does not depend on what they know. Y: 32 tokens, all K steps."""
    torch.manual_seed(seed)
    model = GPT(Config(vocab_size=1024, block_size=a.longest + 64, n_layer=4, n_head=4, head_dim=64, n_embd=256, d_ff=1024,
                       ranks=(8,))).to(a.device).requires_grad_(False)
    for block in model.blocks:                                       # not the identity that a new model starts as
        torch.nn.init.normal_(block.proj.weight, std=0.02)
        torch.nn.init.normal_(block.levels[-1].down.weight, std=0.02)
    rows = []
    for n in [0] + [2 ** k for k in range(7, 20) if 2 ** k <= a.longest]:
        x, y = (torch.randint(1024, (count,)).tolist() for count in (n + 1, 32))
        adapter, start, twin = lora(model, a.rank), time.time(), clone(model)
        absorb(model, [{"x": x, "ys": [y], "says": [[1] * 32]}], adapter, "hidden", 0, a.steps, 0.0, 3e-3)
        settle(twin, adapter)
        took = time.time() - start
        full, size = per_token(model, n)
        absorbed, rest = per_token(twin, 0)
        rows.append({"n": n, "full_ms": 1e3 * full, "absorbed_ms": 1e3 * absorbed, "full_bytes": size, "absorbed_bytes": rest,
                     "absorb_seconds": took, "tokens_to_pay_off": took / (full - absorbed) if full > absorbed else None})
        bar.update(1)
    adapter_bytes = sum(t.numel() * t.element_size() for _, A, B in adapter.values() for t in (A, B))
    return {"rows": rows, "parameters": model.n_params(), "adapter_bytes": adapter_bytes}
