"""
The tasks of bench/absorber.py: map, stream, world, latency, life. Each run_* takes (flags, seed,
bar) and returns a dict.
"""
import math
import os
import random
import sys
import time
from contextlib import redirect_stdout

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import dream                                                         # noqa: E402
import sleep                                                         # noqa: E402
from bench.absorption import (METHODS, absorb, lora, merge, next_token, night,       # noqa: E402
                              settle, share, wearing)
from data import exam, flags, text                                   # noqa: E402
from data.engine import generate, new_cache, pad_rows                # noqa: E402
from model import GPT, Config, clone                                 # noqa: E402

LRS = (3e-3, 1e-2, 3e-2)            # map, world: each method's rate, chosen on other documents


# --------------------------------------------------------------------------------------------------
# map and stream: a small transformer that has learnt to read a map from its context

CLASSES, WORDS, LABELS, BOS = 8, 4, 8, 0                             # ids: 0, 32 words, 8 labels


def pairs(rng, labels, classes):
    """For each class an item: two of its words and its label, [word, word, label]."""
    return [[1 + c * WORDS + rng.randrange(WORDS), 1 + c * WORDS + rng.randrange(WORDS),
             1 + CLASSES * WORDS + labels[c]] for c in classes]


def flat(items):
    return [t for item in items for t in item]


def new_map(rng):
    """Each class's label, drawn independently: knowing seven says nothing about the eighth."""
    return [rng.randrange(LABELS) for _ in range(CLASSES)]


def document(labels, x, y):
    """Lists of pairs X and Y as a document of Algorithm 1."""
    return {"labels": labels, "x": [BOS] + flat(x), "items": x, "ys": [flat(y)],
            "says": [[0, 0, 1] * len(y)]}


def map_document(rng, n, m):
    """X shows every class equally often, Y is what comes next: classes drawn at random."""
    labels, x = new_map(rng), [i % CLASSES for i in range(n)]
    rng.shuffle(x)
    y = [rng.randrange(CLASSES) for _ in range(m)]
    return {**document(labels, pairs(rng, labels, x), pairs(rng, labels, y)),
            "covered": [c in y for c in range(CLASSES)]}


def map_model(a, seed, bar):
    """4 layers of 64, trained on documents of 81 pairs; half of them drift through a few classes at
    a time."""
    path = f"out-absorber/map-{seed}-{a.train_steps}.pt"
    if os.path.isfile(path):
        return sleep.load(path, a.device)[0]
    torch.manual_seed(seed)
    rng = random.Random(f"pretrain {seed}")
    model = GPT(Config(vocab_size=1 + CLASSES * WORDS + LABELS, block_size=256, n_layer=4, n_head=4,
                       head_dim=16, n_embd=64, d_ff=256, ranks=(8,))).to(a.device)
    opts = sleep.optimizers(model)
    opts[1].param_groups[0]["peak"] = 0.01
    for step in range(a.train_steps):
        ids, lengths = pad_rows([long_document(rng) for _ in range(8)], a.device)
        pace = min(1.0, (step + 1) / 20, 2 * (1 - step / a.train_steps) + 0.02)
        sleep.descend(model, opts, next_token(model, ids, lengths).mean(), pace, clip=math.inf)
        bar.update(1)
    os.makedirs("out-absorber", exist_ok=True)
    sleep.save(path, model)
    return model.requires_grad_(False)


def long_document(rng):
    """81 pairs of one map, as ids; half of these documents drift through the classes."""
    labels, drift = new_map(rng), rng.random() < 0.5
    order = rng.sample(range(CLASSES), CLASSES)
    classes = [order[(i // 8 + rng.randrange(3)) % CLASSES] if drift else rng.randrange(CLASSES)
               for i in range(81)]
    return [BOS] + flat(pairs(rng, labels, classes))


@torch.no_grad()
def right(model, adapter, docs, before, rng, each=2):
    """Ask every document for every class, `each` times, behind the tokens before[i].

    True where right: (D, CLASSES, each).
    """
    classes = [c for c in range(CLASSES) for _ in range(each)]
    items = [pairs(rng, d["labels"], classes) for d in docs]
    rows = [b + item[:2] for b, some in zip(before, items) for item in some]
    ids, lengths = pad_rows(rows, model.device)
    with wearing(model, adapter):
        h = model.hidden(ids)[torch.arange(len(ids), device=model.device), lengths - 1]
    said = model.logits(h).argmax(-1).cpu()
    true = torch.tensor([item[2] for some in items for item in some])
    return (said == true).view(len(docs), CLASSES, each)


def tuned(learn, valid, score, how):
    """The rate of LRS at which a method does best on documents that are not those of the test:
    (rate, {rate: score})."""
    seen = {lr: score(learn(valid, how, lr)[0], valid) for lr in LRS}
    return max(LRS, key=lambda lr: (round(seen[lr], 3), -lr)), seen


def run_map(a, seed, bar):
    """Every method on the same documents, all classes asked; the paper's tables 2, 5 (methods) and
    6 (n and m)."""
    model, rng = map_model(a, seed, bar), random.Random(f"map {seed}")
    counts = (a.documents, max(1, a.documents // 2), a.documents)
    docs, valid, other = ([map_document(rng, a.n, a.m) for _ in range(n)] for n in counts)
    covered = torch.tensor([d["covered"] for d in docs])
    strange = [{**d, "labels": o["labels"]} for d, o in zip(docs, other)]    # another map to read

    def learn(some, how, lr):
        return learnt(a, model, some, how, lr, a.threshold, BOS, seed, bar)

    def empty(adapter, some):
        return right(model, adapter, some, [[BOS]] * len(some), random.Random(seed))

    def known(adapter, some):
        return share(empty(adapter, some))

    def measure(adapter):
        gone, rng = empty(adapter, docs), random.Random(seed)
        window = right(model, adapter, docs, [[BOS] + d["ys"][0] for d in docs], rng)
        reads = right(model, adapter, strange, [o["x"] for o in other], rng)
        return {"all": share(gone), "covered": share(gone, covered),
                "uncovered": share(gone, ~covered), "window_covered": share(window, covered),
                "window_uncovered": share(window, ~covered), "new_map": share(reads)}

    whole = right(model, None, docs, [d["x"] + d["ys"][0] for d in docs], random.Random(seed))
    result = {"full": {"all": share(whole), "covered": share(whole, covered),
                       "uncovered": share(whole, ~covered)}, "truncation": measure(None)}
    for how in METHODS:
        lr, grid = tuned(learn, valid, known, how)
        adapter, log = learn(docs, how, lr)
        result[how] = {**measure(adapter), **log, "rates": grid}
    best = result["hidden"]["lr"]
    highest = learn(docs, "hidden", LRS[-1])[0]
    result["hidden, highest rate"] = {**measure(highest), "lr": LRS[-1]}
    return {**result, **pair_by_pair(a, model, docs, learn, measure, best, seed),
            "n_m": sizes(rng, len(docs), learn, known, best)}


def learnt(a, model, docs, how, lr, threshold, bos, seed, bar):
    """A fresh adapter for each document, after it has absorbed it, and what it took."""
    adapter, start = lora(model, a.rank, len(docs), seed), time.time()
    taken, ratio = absorb(model, docs, adapter, how, bos, a.steps, threshold, lr)
    bar.update(a.steps)
    return adapter, {"lr": lr, "taken": share(taken), "loss_ratio": share(ratio),
                     "seconds": time.time() - start}


def pair_by_pair(a, model, docs, learn, measure, lr, seed):
    """Ours: a Y of many pairs explains itself, only the first pair of a class needs X. So each pair
    alone is a continuation; then the model writes four times as many."""
    def single(y, pairs):
        ys = [y[i:i + 3] for i in range(0, 3 * pairs, 3)]
        return {"ys": ys, "says": [[0, 0, 1] for _ in ys]}
    adapter, log = learn([{**d, **single(d["ys"][0], a.m)} for d in docs], "hidden", lr)
    cut = {**measure(adapter), **log}
    said = generate(model, [d["x"] for d in docs], 12 * a.m,
                    generator=torch.Generator(a.device).manual_seed(seed))
    parts = [{**d, **single(y, 4 * a.m)} for d, y in zip(docs, said)]
    adapter, log = learn(parts, "hidden", lr)
    seen = [[any((t - 1) // WORDS == c for t in y) for c in range(CLASSES)] for y in said]
    own = {"coverage": share(torch.tensor(seen)), **measure(adapter), **log}
    return {"hidden, Y pair by pair": cut, "hidden, pair by pair, the model writes 4x Y": own}


def sizes(rng, count, learn, known, lr):
    """Accuracy against n, pairs in X, and m, pairs in Y."""
    rows = []
    for n in (8, 24, 48):
        for m in (4, 8, 32):
            some = [map_document(rng, n, m) for _ in range(count)]
            adapter, log = learn(some, "hidden", lr)
            rows.append({"n": n, "m": m, **log, "all": known(adapter, some)})
    return rows


SLIDES = 6


def stream_document(rng):
    """Seven windows of 8 pairs; window s knows the classes s, s + 1 and s + 2, so class s has left
    after window s.

    Class 0 is only ever in X and never in a Y. Classes 6 and 7 are in the last window, which is
    never absorbed.
    """
    labels, order = new_map(rng), rng.sample(range(CLASSES), CLASSES)
    windows = []
    for s in range(SLIDES + 1):
        here = [order[min(s + i % 3, CLASSES - 1)] for i in range(8)]
        rng.shuffle(here)
        windows.append(pairs(rng, labels, here))
    return {"labels": labels, "order": order, "windows": windows}


def live_stream(a, model, docs, how, lr, seed, bar):
    """Algorithm 2: absorb the oldest window X in the light of the next one Y, drop X, slide on.
    Memory: M, A, B and two windows."""
    adapter = lora(model, a.rank, len(docs), seed)
    for s in range(SLIDES):
        some = [document(d["labels"], d["windows"][s], d["windows"][s + 1]) for d in docs]
        absorb(model, some, adapter, how, BOS, a.steps, a.threshold, lr)
        adapter = lora(model, a.rank, len(docs), seed + s + 1, merged=merge(adapter))
        bar.update(a.steps)
    return adapter


def run_stream(a, seed, bar):
    """The map after six slides: by_class[c] is the class that left 6 - c slides ago (0: also never
    in a Y; 6, 7: not gone)."""
    model, rng = map_model(a, seed, bar), random.Random(f"stream {seed}")
    docs = [stream_document(rng) for _ in range(a.documents)]

    def measure(adapter, full=False):
        before = [[BOS] + flat(flat(d["windows"]) if full else d["windows"][-1]) for d in docs]
        hit = right(model, adapter, docs, before, random.Random(seed))
        hit = torch.stack([h[d["order"]] for h, d in zip(hit, docs)])
        return {"gone": share(hit[:, 1:SLIDES]), "never in Y": share(hit[:, 0]),
                "in the window": share(hit[:, SLIDES:]),
                "by_class": hit.float().mean((0, 2)).tolist()}

    result = {"full": measure(None, full=True), "truncation": measure(None)}
    for how in METHODS:
        start = time.time()
        adapter = live_stream(a, model, docs, how, LRS[0], seed, bar)
        result[how] = {**measure(adapter), "lr": LRS[0], "seconds": time.time() - start}
    return result


# --------------------------------------------------------------------------------------------------
# world: a passage about a stranger is absorbed, then asked about

def world_base(a, seed):
    """The base that sleep.py pretrains for this seed: (its flags, model, data)."""
    path = a.bases.format(seed)
    args = flags.parse([f"--seed={seed}", f"--world_seed={seed}", f"--days={a.days}",
                        f"--pretrain_steps={a.world_steps}", f"--out_dir={path}.life"])
    args.torch_device, args.command, args.resume = torch.device(a.device), "", True
    data = sleep.DATA[args.data](args)
    if not os.path.isfile(path):
        os.makedirs(args.out_dir, exist_ok=True)
        model, _ = sleep.pretrained(args, sleep.born(args, data), data)
        sleep.save(path, model)
    return args, sleep.load(path, a.device)[0], data


def strangers(data, rng):
    """[(passage, [Item] about it)], in any order: people whom the base has read nothing about."""
    found = {}
    for item in data.always["reading"]:
        found.setdefault(item.context, []).append(item)
    return rng.sample(list(found.items()), len(found))


def examined(people, context=False, each=5):
    """`each` questions a passage, the same ones again where it tells less: [Item]."""
    items = [known[i % len(known)] for _, known in people for i in range(each)]
    return items if context else [x._replace(context="") for x in items]


def passages(model, data, people, rng, count=12):
    """A document for each person: X a passage, Y `count` questions and answers that the model asks
    itself with X in context.

    Where it asks itself nothing well-formed, Y is whatever it says. Nothing else is known of X.
    """
    enc, marks = data.enc, data.marks
    docs = [{"x": [*marks.bos] + enc.encode_ordinary(words), "items": text.sentences(enc, words)}
            for words, _ in people]
    asking = [[*d["x"], *marks.ask] for d in docs]
    rows = generate(model, asking, dream.ASKING, n=8, temperature=dream.TEMPERATURE)
    said = generate(model, asking, 16)
    for i, d in enumerate(docs):
        dreamt = {pair: 0 for row in rows[8 * i:8 * i + 8]
                  for pair in dream.split_questions([*marks.ask, *row], marks)}
        own = list(dreamt) or [((*marks.ask,), tuple(said[i]))]
        own = [own[j % len(own)] for j in rng.sample(range(max(count, len(own))), count)]
        d.update(ys=[[*q, *y] for q, y in own], says=[[0] * len(q) + [1] * len(y) for q, y in own])
    return docs


def run_world(a, seed, bar):
    """recall: held-out questions about the stranger, nothing in context; reading: another passage
    in context; old: what the base knew. The adapter is that of the stranger throughout."""
    args, model, data = world_base(a, seed)
    torch.manual_seed(seed)
    rng, n = random.Random(f"strangers {seed}"), a.people
    everyone = strangers(data, rng)
    people, some, others = everyone[:n], everyone[n:n + n // 2], everyone[n + n // 2:][:n]
    docs, valid = (passages(model, data, them, rng) for them in (people, some))
    closed, opened = examined(people), examined(others, context=True)
    old = rng.sample(data.always["old"], min(5 * len(people), 200) // len(people) * len(people))
    questions = examined(some)

    def learn(docs, how, lr):                                        # all K: losses differ too much
        return learnt(a, model, docs, how, lr, 0.0, data.marks.bos[0], seed, bar)

    def ask(adapter, items):
        return share(torch.tensor(asked_of_each(model, data, adapter, items)))

    def measure(adapter):
        return {"recall": ask(adapter, closed), "reading": ask(adapter, opened),
                "old": ask(adapter, old)}

    def score(adapter, _):
        return ask(adapter, questions)

    read = ask(None, examined(people, context=True))
    result = {"full": {"recall": read}, "truncation": measure(None)}
    for how in METHODS:
        lr, grid = tuned(learn, valid, score, how)
        adapter, log = learn(docs, how, lr)
        result[how] = {**measure(adapter), **log, "rates": grid}
    return result


def asked_of_each(model, data, adapter, items):
    """Is each answer right? Items stand in the order of the documents, as many for each."""
    enc, marks = data.enc, data.marks
    rows = [[*marks.bos, *enc.encode_ordinary(x.context), *marks.ask,
             *enc.encode_ordinary(x.question), *marks.answer] for x in items]
    with wearing(model, adapter):
        said = generate(model, rows, 24, temperature=0, stop=[marks.end])
    given = [text.as_text(enc, marks, y) for y in said]
    return [y == x.answer.strip() for y, x in zip(given, items)]


def run_life(a, seed, bar):
    """Nights of sleep.py from the base of this seed; absorbing is what its nights do."""
    args, model, data = world_base(a, seed)
    sleep.NIGHTS["absorb"] = night
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        life = sleep.live(args, "absorb", model, data, args.out_dir, 0.0)
    _, state = sleep.load(os.path.join(args.out_dir, "checkpoint.pt"), "cpu")
    for row, graded in zip(state["nights"], state["graded"]):
        row["reversed"] = exam.share(graded, ["reversed"]) or 0.0
    return {**life, "nights": state["nights"]}


# --------------------------------------------------------------------------------------------------
# latency: what a generated token costs behind n tokens, and what it costs to absorb them

@torch.no_grad()
def per_token(model, n, tokens=24):
    """Seconds of one generated token behind n tokens in the cache, the fastest of `tokens`, and the
    bytes of that cache."""
    cache = new_cache(model, 1, n + tokens)
    idx = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    for block in cache["blocks"]:
        for t in block.values():
            t.normal_()
    cache.update(len=cache["len"] + n, max=n)
    size = sum(t.numel() * t.element_size() for b in cache["blocks"] for t in b.values())
    took = []
    for _ in range(tokens):
        start = time.perf_counter()
        idx = model.logits(model.hidden(idx, cache=cache)).argmax(-1)
        idx.tolist()                                                 # waits for the device
        took.append(time.perf_counter() - start)
    return min(took), size                                           # a busy machine only ever adds


def run_latency(a, seed, bar):
    """Table 1. Random weights (4 layers of 256): time does not depend on what they know. Y: 32
    tokens, all K steps."""
    torch.manual_seed(seed)
    model = GPT(Config(vocab_size=1024, block_size=a.longest + 64, n_layer=4, n_head=4, head_dim=64,
                       n_embd=256, d_ff=1024, ranks=(8,))).to(a.device).requires_grad_(False)
    for block in model.blocks:                                       # a new one is the identity
        torch.nn.init.normal_(block.proj.weight, std=0.02)
        torch.nn.init.normal_(block.levels[-1].down.weight, std=0.02)
    rows = []
    for n in [0] + [2 ** k for k in range(7, 20) if 2 ** k <= a.longest]:
        x, y = (torch.randint(1024, (count,)).tolist() for count in (n + 1, 32))
        adapter, start, twin = lora(model, a.rank), time.time(), clone(model)
        docs = [{"x": x, "ys": [y], "says": [[1] * 32]}]
        absorb(model, docs, adapter, "hidden", 0, a.steps, 0.0, 3e-3)
        settle(twin, adapter)
        took = time.time() - start
        full, size = per_token(model, n)
        absorbed, rest = per_token(twin, 0)
        pays = took / (full - absorbed) if full > absorbed else None
        rows.append({"n": n, "full_ms": 1e3 * full, "absorbed_ms": 1e3 * absorbed,
                     "full_bytes": size, "absorbed_bytes": rest, "absorb_seconds": took,
                     "tokens_to_pay_off": pays})
        bar.update(1)
    pairs_of = [t for _, A, B in adapter.values() for t in (A, B)]
    adapter_bytes = sum(t.numel() * t.element_size() for t in pairs_of)
    return {"rows": rows, "parameters": model.n_params(), "adapter_bytes": adapter_bytes}


TASKS = {"map": run_map, "stream": run_stream, "world": run_world, "latency": run_latency,
         "life": run_life}
