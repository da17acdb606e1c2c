"""
clinc_draft.py: a life on real text, consolidated into the slow level itself (no expert a night, no router).

    python clinc_draft.py --data_dir=FOLDER --method=sleep,none,sft,joint --split=test

Awake, the fast level learns the day's 1,500 labelled sentences by gradient steps (Eq. 2: the context cannot hold a day).
Asleep, no stored text is touched. There are two teachers, and both are the self before sleep: with its fast level for what
is new, without it for what is old. Each imagines sentences label-first, and the student, the slow weights, follows the
teachers' whole distributions on them. Then the fast level is gone.
"""
import argparse
import copy
import json
import os
import random
import time

import torch
import torch.nn.functional as F

from data import clinc as C
from data.bpe import SPECIAL, encoding, train_bpe
from model import GPT, Config, clone, divergence, generate, pad_rows

FAST = 0


def batches(docs, size, gen):
    """Endless (ids (B, T), weight (B, T)): rows of like length share a batch, so that little of it is padding."""
    while True:
        order, out = torch.randperm(len(docs), generator=gen).tolist(), []
        for i in range(0, len(order), size * 16):
            some = sorted(order[i:i + size * 16], key=lambda j: len(docs[j][0]))
            out += [some[j:j + size] for j in range(0, len(some), size)]
        for k in torch.randperm(len(out), generator=gen).tolist():
            ids, _ = pad_rows([docs[j][0] for j in out[k]])
            weight = torch.zeros(ids.shape)
            for r, j in enumerate(out[k]):
                weight[r, :len(docs[j][1])] = torch.tensor(docs[j][1])
            yield ids, weight


def mishear(ids, enc, gen, share=0.1):
    """A tenth of the words replaced where a sentence is to be understood; where it is to be imagined, none."""
    words, ask = enc.n_vocab - len(SPECIAL), C.specials(enc)[1]
    hit = (torch.rand(ids.shape, generator=gen) < share) & (ids < words) & (ids[:, 1:2] == ask)
    return torch.where(hit, torch.randint(words, ids.shape, generator=gen), ids)


def optimizers(model, muon, adam):
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and min(p.shape) > 8 and "wte" not in n]
    mine = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in mine]
    return [torch.optim.Muon(hidden, lr=muon, weight_decay=0.0), torch.optim.AdamW(rest, lr=adam, betas=(0.9, 0.98), weight_decay=0.0)]


def rate(opts, i, n):
    """Ten warm-up steps, then flat, then straight down to a twentieth over the last 60 %."""
    for o in opts:
        for g in o.param_groups:
            g.setdefault("peak", g["lr"])
            g["lr"] = g["peak"] * min(1.0, (i + 1) / 10) * (0.05 + 0.95 * min(1.0, (n - i) / (0.6 * n)))


def awake(n, on=True):
    return {FAST: torch.zeros(n, dtype=torch.long)} if on else None  # the fast level of every row, or of none


def next_token_loss(model, ids, weight, seen, on=False):
    keep = weight[:, 1:] > 0
    h = model.hidden(seen[:, :-1], extra=awake(len(ids), on), gate=False)[keep]
    w = weight[:, 1:][keep]
    return (F.cross_entropy(model.logits(h), ids[:, 1:][keep], reduction="none") * w).sum() / w.sum()


def train_all(model, enc, docs, steps, gen, muon=0.03, adam=3e-3, size=32):
    """All weights on documents: the base, the joint bound, sequential fine-tuning."""
    model.requires_grad_(True)
    opts = optimizers(model, muon, adam)
    for i, (ids, weight) in zip(range(steps), batches(docs, size, gen)):
        rate(opts, i, steps)
        next_token_loss(model, ids, weight, mishear(ids, enc, gen)).backward()
        for o in opts:
            o.step()
            o.zero_grad()
    return model.requires_grad_(False)


def wake(model, enc, docs, gen, steps=500, lr=0.2, size=16):
    """Eq. 2: only the fast level moves. Muon orthogonalises matrices; an expert is a stack of one, so it gets views."""
    live = model.unlock(FAST)
    views = [torch.nn.Parameter(p.data[0]) for p in live]
    opt = torch.optim.Muon(views, lr=lr, weight_decay=0.0)
    for i, (ids, weight) in zip(range(steps), batches(docs, size, gen)):
        rate([opt], i, steps)
        next_token_loss(model, ids, weight, mishear(ids, enc, gen), on=True).backward()
        for v, p in zip(views, live):
            v.grad, p.grad = p.grad[0], None
        opt.step()


def imagine(model, enc, labels, n, on, gen, temperature=0.9):
    """n sentences for each label, from the model alone: [(sentence, label)]. What never ended or spoke markup is dropped."""
    end, out = C.specials(enc)[3], []
    for i in range(0, len(labels), 10):
        some = labels[i:i + 10]
        rows = generate(model, [C.prompt(enc, label=label) for label in some], 24, n=n, temperature=temperature, stop=(end,),
                        generator=gen, extra=awake(n * len(some), on), gate=False)
        out += [(enc.decode(row[:-1]), some[j // n]) for j, row in enumerate(rows)
                if len(row) > 2 and row[-1] == end and max(row[:-1]) < enc.n_vocab - len(SPECIAL)]
    return out


def night(self_, enc, new, old, gen, steps, muon=0.02, adam=2e-3, size=48, share=0.3):
    """Forward KL to two teachers: the self with its fast level on dreams of the new, without it on dreams of the old.

    The student mishears, the teacher does not: the same dream teaches more than one sentence.
    """
    student = clone(self_)
    student.reset(FAST)
    student.requires_grad_(True)
    opts, k = optimizers(student, muon, adam), int(size * share)
    sources = [(True, share, batches(documents(enc, new), k, gen)), (False, 1 - share, batches(documents(enc, old), size - k, gen))]
    for i in range(steps):
        rate(opts, i, steps)
        for on, part, source in sources:
            ids, weight = next(source)
            keep = weight[:, 1:] > 0
            with torch.no_grad():
                teacher = self_.logits(self_.hidden(ids[:, :-1], extra=awake(len(ids), on), gate=False)[keep]).log_softmax(-1)
            h = student.hidden(mishear(ids, enc, gen)[:, :-1], gate=False)[keep]
            w = weight[:, 1:][keep]
            (part * (divergence(teacher, student.logits(h).log_softmax(-1)) * w).sum() / w.sum()).backward()
        for o in opts:
            o.step()
            o.zero_grad()
    return student.requires_grad_(False)


def documents(enc, rows):
    return [C.document(enc, text, label, first) for text, label in rows for first in (True, False)]


def classify(model, enc, rows, labels):
    """Share of rows [(text, label)] named right: greedy decoding over a trie of all labels seen. No task id."""
    end, tree, right = C.specials(enc)[3], torch.as_tensor(C.trie(enc, labels)), 0
    rows = sorted(rows, key=lambda r: len(r[0]))
    for i in range(0, len(rows), 500):
        part = rows[i:i + 500]
        out = generate(model, [C.prompt(enc, text) for text, _ in part], 16, temperature=0, stop=(end,), trie=tree, gate=False)
        right += sum(enc.decode([t for t in row if t != end]) == label for row, (_, label) in zip(out, part))
    return right / len(rows)


def main():
    p = argparse.ArgumentParser()
    for name, value in {"data_dir": "data/clinc150", "method": "sleep,none,sft,joint", "split": "test", "seed": 1, "base_steps": 1200,
                        "days": 7, "new": 100, "old": 80, "steps": 380, "more": 30, "out": ""}.items():
        p.add_argument(f"--{name}", type=type(value), default=value)
    a = p.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(a.seed)
    random.seed(a.seed)
    gen = torch.Generator().manual_seed(a.seed)
    data, stages = C.load(a.data_dir, 45, 15, a.seed)
    stages = stages[:a.days + 1]
    day = lambda i: documents(enc, C.rows_of(data, "train", stages[i]))
    base_rows, everything = C.rows_of(data, "train", stages[0]), sum(stages, [])
    enc = encoding(train_bpe([text for text, _ in base_rows] + stages[0], 2048))
    config = Config(vocab_size=enc.n_vocab, block_size=64, n_layer=3, n_head=4, n_embd=128, d_ff=512, ranks=(256, 64))
    exam = lambda model, i: [classify(model, enc, C.rows_of(data, a.split, s), sum(stages[:i + 1], [])) for s in stages[:i + 1]]
    overall = lambda r: sum(x * len(s) for x, s in zip(r, stages)) / sum(len(s) for _, s in zip(r, stages))
    clock = time.time()
    base = train_all(GPT(config), enc, day(0), a.base_steps, gen)
    results = {"seed": a.seed, "split": a.split, "params": base.n_params(), "base_seconds": time.time() - clock}
    print(f"base {overall(exam(base, 0)):.3f}  {results['base_seconds']:.0f} s  {base.n_params()} parameters", flush=True)

    for method in a.method.split(","):
        clock, model, R = time.time(), copy.deepcopy(base), [exam(base, 0)]
        if method == "joint":
            model = train_all(GPT(config), enc, documents(enc, C.rows_of(data, "train", everything)), 2 * a.base_steps, gen, size=40)
            R.append(exam(model, len(stages) - 1))
        else:
            for i in range(1, len(stages)):
                t = time.time()
                if method == "sleep":
                    wake(model, enc, day(i), gen)
                    new = imagine(model, enc, stages[i], a.new, True, gen)
                    old = imagine(model, enc, sum(stages[:i], []), a.old, False, gen)
                    model = night(model, enc, new, old, gen, a.steps + a.more * i)
                elif method == "sft":
                    train_all(model, enc, day(i), 300, gen, 0.01, 1e-3)
                R.append(exam(model, i))
                print(f"{method} {i}: {overall(R[-1]):.3f} {[round(x, 2) for x in R[-1]]} {time.time() - t:.0f} s", flush=True)
        results[method] = {"R": R, "final": overall(R[-1]), "seconds": time.time() - clock}
        print(f"{method}: {results[method]['final']:.3f} {results[method]['seconds']:.0f} s", flush=True)
        if a.out:
            with open(a.out, "w") as f:
                json.dump(results, f)
    print("tf-idf nearest mean", C.tfidf_nearest_mean(C.rows_of(data, "train", everything), C.rows_of(data, a.split, everything)))


if __name__ == "__main__":
    main()
