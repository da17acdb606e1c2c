"""
A life on real text: CLINC150, class by class. `python sleep.py --data=clinc150 --data_dir=FOLDER` starts it.

A day is 1,500 sentences of 15 new intents: too long for the context. So the fast level of model.py learns the day by gradient
steps while awake ([S] Eq. 2); at night the self imagines sentences for each new intent, and from those alone a new expert of
the slow level is distilled; then the fast level is reset. What is new here is not a name, so the router listens to the topic
of a whole text instead of three tokens (ours): a Gaussian for each intent, heard by day. No sentence of an earlier day is kept
anywhere, only these means and one covariance.
"""
import copy
import json
import os
import random
import signal
import sys
import time

import torch
import torch.nn.functional as F
from tqdm import tqdm

import seed as seeding
import sleep
from bench.baselines import add_class
from data import clinc as C
from data import store
from data.bpe import SPECIAL, encoding, train_bpe
from model import GPT, Config, chunked_divergence, clone, generate, pad_rows
from sleep import FAST, SLOW

LR = 0.12                           # peak learning rate of an expert (Muon)


# ----------------------------------------------------------------------------------------------------------------------
# Learning from documents

def batch_of(docs, rows, n, device):
    """n random documents of like length (rows: indices sorted by length): ids (n, T), weight (n, T-1)."""
    at = random.randrange(max(1, len(rows) - 8 * n))
    return sleep.pad_documents([docs[i] for i in random.sample(rows[at:at + 8 * n], min(n, len(rows)))], device)


def mishear(ids, model, share=0.1):
    """A tenth of the words replaced by any others: little text, many steps."""
    words = model.config.vocab_size - len(SPECIAL)                   # the marks are the last of the vocabulary
    return seeding.mishear(ids, ids < words, (), words, share)


def both_ways(enc, rows):
    """Every (text, label) as two documents: read it and name it, think of the name and say it (data/clinc.py)."""
    return [C.document(enc, text, label, first) for text, label in rows for first in (True, False)]


def by_length(docs):
    return sorted(range(len(docs)), key=lambda i: len(docs[i][0]))


def rate(step, steps, flat=0.4):
    """Ten warm-up steps, then flat, then straight down to a twentieth."""
    return min(1.0, (step + 1) / 10) * (0.05 + 0.95 * min(1.0, (steps - step) / ((1 - flat) * steps)))


def study_all(model, docs, steps, bar, lr_muon=0.03, lr_adam=0.02):
    """All weights on documents [(ids, weights)]: the base, the joint bound and sequential fine-tuning."""
    opts, rows = sleep.optimizers(model, lr_muon, lr_adam), by_length(docs)
    for step in range(steps):
        sleep.descend(model, opts, text_loss(model, *batch_of(docs, rows, 32, model.device)), rate(step, steps))
        bar.update(1)
    return model


def text_loss(model, ids, weight):
    """Weighted next-token loss of documents of which the model mishears a tenth. ids (N, T), weight (N, T-1)."""
    keep = weight > 0
    h = model.hidden(mishear(ids, model)[:, :-1])[keep]
    loss = F.cross_entropy(model.logits(h).float(), ids[:, 1:][keep], reduction="none")
    return (loss * weight[keep]).sum() / weight[keep].sum()


def study(model, params, docs, who, steps, lr, bar, teacher=None):
    """One expert on documents: next-token loss (awake, [S] Eq. 2), or forward KL to a teacher (asleep). Returns the loss.

    who: {level: expert}, awake in every token; teacher: (model, its own who). The teacher hears every word, the student not.
    """
    momenta, rows = [torch.zeros_like(p) for p in params], by_length(docs)
    wake = lambda who, n: {level: torch.full((n,), e, device=model.device) for level, e in who.items()}
    for step in range(steps):
        ids, weight = batch_of(docs, rows, 32, model.device)
        keep = weight > 0
        h = model.hidden(mishear(ids, model)[:, :-1], extra=wake(who, len(ids)), gate=False)[keep]
        if teacher is None:
            loss = F.cross_entropy(model.logits(h).float(), ids[:, 1:][keep], reduction="none")
        else:
            with torch.no_grad():
                t = teacher[0].hidden(ids[:, :-1], extra=wake(teacher[1], len(ids)), gate=False)[keep]
            loss = chunked_divergence(h, model.wte.weight, t, teacher_head=teacher[0].wte.weight)
        loss = (loss * weight[keep]).sum() / weight[keep].sum()
        for p, g in zip(params, torch.autograd.grad(loss, params)):
            p.grad = g
        seeding.muon(params, momenta, lr * rate(step, steps))
        bar.update(1)
    return float(loss.detach())


# ----------------------------------------------------------------------------------------------------------------------
# The router of whole texts

def topic(model, ids, lengths):
    """What a text is about: the mean direction of its token embeddings, normalised. ids (N, T) -> (N, n_embd)."""
    here = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    return model.features((F.normalize(model.wte(ids), dim=-1) * here[..., None]).sum(1))


@torch.no_grad()
def hear(model, enc, heard, rows):
    """Add the labels of rows [(text, label)] to what the router has heard: {labels, means (K, d), cov (d, d)}, changed in place.

    A Gaussian a label with one covariance for all, kept up one label at a time, as InCA does (arXiv 2412.15563). No text is kept.
    """
    by_label = {}
    for text, label in rows:
        by_label.setdefault(label, []).append(enc.encode_ordinary(text))
    for label, texts in by_label.items():
        add_class(heard, topic(model, *pad_rows(texts, model.device)))
        heard.setdefault("labels", []).append(label)


def topic_detectors(means, cov, shrink=0.1):
    """Linear discriminants of what was heard: means (K, d), cov (d, d) -> keys (K, d), bias (K,).

    z_k = mu_k' S^-1 x - mu_k' S^-1 mu_k / 2, S the covariance shrunk to its mean variance: the loudest detector is the nearest
    mean by Mahalanobis distance. Closed form: nothing to tune, nothing to forget.
    """
    S = (1 - shrink) * cov + shrink * cov.trace() / len(cov) * torch.eye(len(cov), device=cov.device, dtype=cov.dtype)
    keys = torch.linalg.solve(S, means.T).T
    return keys, -0.5 * (keys * means).sum(1)


# ----------------------------------------------------------------------------------------------------------------------
# Exams. No task id: any label seen so far may be the answer

def classify(model, enc, rows, labels):
    """Share of rows [(text, label)] named right by greedy decoding over a trie of all labels seen."""
    end, tree, right = C.specials(enc)[3], torch.tensor(C.trie(enc, labels), device=model.device), 0
    rows = sorted(rows, key=lambda r: len(r[0]))
    for i in range(0, len(rows), 500):
        part = rows[i:i + 500]
        out = generate(model, [C.prompt(enc, text) for text, _ in part], 24, temperature=0, stop=[end], trie=tree, gate=False)
        right += sum(enc.decode([t for t in row if t != end]) == label for row, (_, label) in zip(out, part))
    return right / len(rows)


@torch.no_grad()
def classify_routed(model, enc, rows, labels, k=5):
    """The router proposes, the experts judge: p(label | text) ~ p(topic k | text) p(label | text, the expert that knows it).

    Share of rows named right; labels[i] belongs to detector i. No weight to tune: the k likeliest labels of the topic
    detectors are each scored once, whole, by their own expert.
    """
    end, right = C.specials(enc)[3], 0
    rows = sorted(rows, key=lambda r: len(r[0]))
    for i in range(0, len(rows), 100):
        part = rows[i:i + 100]
        ids, lengths = pad_rows([enc.encode_ordinary(text) for text, _ in part], model.device)
        prior, at = (topic(model, ids, lengths) @ model.keys.T + model.bias).log_softmax(1).topk(min(k, len(labels)), 1)
        asked = [(C.prompt(enc, text), enc.encode_ordinary(labels[j]) + [end])
                 for (text, _), js in zip(part, at.tolist()) for j in js]
        ids, lengths = pad_rows([p + y for p, y in asked], model.device)
        start = torch.tensor([len(p) for p, _ in asked], device=ids.device)
        pos = torch.arange(1, ids.shape[1], device=ids.device)
        h = model.hidden(ids[:, :-1], extra={SLOW: model.owner[at.flatten(), 1]}, gate=False)
        lp = model.logits(h).float().log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        judged = (lp * ((pos >= start[:, None]) & (pos < lengths[:, None]))).sum(1).view_as(prior)
        best = at.gather(1, (prior + judged).argmax(1, keepdim=True))[:, 0].tolist()
        right += sum(labels[b] == label for b, (_, label) in zip(best, part))
    return right / len(rows)


# ----------------------------------------------------------------------------------------------------------------------
# A day and its night

def imagine(model, enc, labels, n, who, longest):
    """n sentences of at most `longest` tokens that the model imagines for each label, expert `who` ({level: expert}) awake:
    [(sentence, label)]."""
    prompts = [C.prompt(enc, label=label) for label in labels]
    out, end = [], C.specials(enc)[3]
    for i in range(0, len(prompts), 8):
        rows = prompts[i:i + 8]
        extra = {level: torch.full((len(rows) * n,), e, device=model.device) for level, e in who.items()} or None
        out += generate(model, rows, longest, n=n, temperature=0.9, stop=[end], extra=extra, gate=False)
    text = [enc.decode([t for t in row if t < enc.n_vocab - len(SPECIAL)]).strip() for row in out]
    return [(s, label) for s, label in zip(text, [label for label in labels for _ in range(n)]) if s]


def class_night(a, model, enc, old_stages, new, day, heard, bar):
    """Wake and sleep of one day of new intents. day: its (text, label)s, seen by the fast level and the router, by day only.

    heard: what the router has heard so far (see `hear`), from the base's own text on. Night: from the teacher, the self whose fast
    level holds the day, dreams of the new intents are distilled into a new expert of the slow level; the fast level is reset.
    a.dreamt_topics (ablation): nothing is heard by day; every night all seen intents are dreamt again, each by the expert that
    knows it, and the router hears these dreams. Returns a log.
    """
    bar.set_description_str("awake")
    wake = study(model, model.unlock(FAST), both_ways(enc, day), {FAST: 0}, a.wake_steps, LR, bar)
    model.settle(FAST)
    bar.set_description_str("dreaming")
    teacher, expert, stages = clone(model), len(old_stages) - 1, [*old_stages, new]
    dreams = imagine(teacher, enc, new, a.class_dreams, {FAST: 0}, a.class_tokens)
    model.reset(FAST)
    bar.set_description_str("seeding")
    slept = study(model, model.unlock(SLOW, seed=expert), both_ways(enc, dreams), {SLOW: expert}, a.class_steps, LR, bar,
                  teacher=(teacher, {FAST: 0}))
    model.settle(SLOW)
    if a.dreamt_topics:
        heard.clear()
        for i, labels in enumerate(old_stages):
            hear(model, enc, heard, imagine(model, enc, labels, a.class_replay, {SLOW: i - 1} if i else {}, a.class_tokens))
    hear(model, enc, heard, dreams if a.dreamt_topics else day)
    at = {label: i for i, label in enumerate(heard["labels"])}
    keys, bias = topic_detectors(heard["means"], heard["cov"])
    model.keys, model.bias, model.owner = model.keys[:0], model.bias[:0], model.owner[:0]
    for i, labels in enumerate(stages):                              # detector k belongs to the k-th label of all stages
        mine = [at[label] for label in labels]
        model.attach(keys[mine], bias[mine], SLOW, i - 1)
    return {"wake_loss": wake, "sleep_loss": slept, "dreams": len(dreams)}


# ----------------------------------------------------------------------------------------------------------------------
# Lives

def over_all(row, stages):
    """Accuracy over all stages seen so far; each weighs as much as it has elements (intents, or rows of its exam)."""
    seen = [(r, len(s)) for r, s in zip(row, stages) if r is not None]
    return sum(r * n for r, n in seen) / sum(n for _, n in seen)


def exam_all(model, enc, rows, stages, i):
    """A row of R: the exam of every stage up to i, each over the labels of all of them."""
    seen = [label for s in stages[:i + 1] for label in s]
    name = classify_routed if len(model.keys) else classify          # only a self that slept has a router
    return [name(model, enc, rows[j], seen) if j <= i else None for j in range(len(stages))]


def bar_of(total, name):
    return tqdm(total=total, desc=name, unit="step", leave=False, mininterval=1.0)


def live(a):
    """The lives `sleep`, `none` and `sft`, the joint bound and a reference without a network; saved as they go."""
    start = time.time()
    if a.method == "absorb":
        sleep.fail("--method=absorb lives in --data=world: what it absorbs must fit the context")
    for number in (signal.SIGINT, signal.SIGTERM):                   # this life is saved every night: Ctrl-C ends it at once
        signal.signal(number, signal.default_int_handler)
    data, stages = C.load(a.data_dir, a.base_intents, 15, a.seed)
    stages = stages[:1 + a.days]
    texts = C.rows_of(data, "train", stages[0])
    enc = encoding(train_bpe([text for text, _ in texts] + stages[0], 2048), "clinc150")
    config = Config(vocab_size=enc.n_vocab, block_size=96, n_head=4, n_embd=128, d_ff=512, ranks=(a.rank, 128, 128))
    docs = lambda labels: both_ways(enc, C.rows_of(data, "train", labels))
    rows = [C.rows_of(data, a.split, labels) for labels in stages]
    everything = [label for s in stages for label in s]
    print(f"CLINC150: {len(stages[0])} intents for the base, then {len(stages) - 1} days of 15; exam on the {a.split} split; "
          f"{torch.get_num_threads()} threads. Expect about 15 minutes on one busy CPU core, and about 0.8 over all intents "
          "after the last night.", flush=True)
    a.lock = store.occupy(a.out_dir, a.resume)
    if not a.resume:
        store.write_json(os.path.join(a.out_dir, "args.json"), sleep.vars_of(a))

    base_path, path = os.path.join(a.out_dir, "base.pt"), os.path.join(a.out_dir, "checkpoint.pt")
    if a.init_from != "scratch" or a.resume and os.path.isfile(base_path):
        source = base_path if os.path.isfile(base_path) else a.init_from
        base, _ = sleep.load(source, a.torch_device)
        if base.config.vocab_size != enc.n_vocab:
            sleep.mismatch(source, base.config.vocab_size, enc.n_vocab)
    else:
        sleep.reseed(a, "weights")
        with bar_of(a.class_base_steps, "base") as b:
            base = study_all(GPT(config).to(a.torch_device), docs(stages[0]), a.class_base_steps, b).requires_grad_(False)
        sleep.save(base_path, base)

    def sleep_life():
        model, R, nights, heard = copy.deepcopy(base), [], [], {}
        if a.resume and os.path.isfile(path):
            model, state = sleep.load(path, a.torch_device)
            R, nights, heard = state["R"], state["nights"], state["heard"]
        if not heard:
            hear(base, enc, heard, texts)
        R = R or [exam_all(model, enc, rows, stages, 0)]
        for i in range(len(R), len(stages)):
            sleep.reseed(a, "night", i)
            t = time.time()
            with bar_of(a.wake_steps + a.class_steps, "night") as b:
                log = class_night(a, model, enc, stages[:i], stages[i], C.rows_of(data, "train", stages[i]), heard, b)
            nights.append({**log, "seconds": time.time() - t})
            R.append(exam_all(model, enc, rows, stages, i))
            sleep.save(path, model, R=R, nights=nights, heard=heard)
            print(f"  night {i}: {len(stages[i])} new intents {R[-1][i]:.3f}, all {sum(map(len, stages[:i + 1]))} seen so far "
                  f"{over_all(R[-1], stages):.3f}", flush=True)
        return R, {"nights": nights, "params_before": base.n_params(), "params_after": model.n_params()}

    def none_life():
        return [exam_all(base, enc, rows, stages, i) for i in range(len(stages))], {}

    def sft_life():
        model, R = copy.deepcopy(base), [exam_all(base, enc, rows, stages, 0)]
        for i in range(1, len(stages)):
            sleep.reseed(a, "sft", i)
            with bar_of(a.wake_steps, f"sft day {i}") as b:
                study_all(model.requires_grad_(True), docs(stages[i]), a.wake_steps, b, 0.01, 0.005)
            R.append(exam_all(model.requires_grad_(False), enc, rows, stages, i))
        return R, {}

    def joint_life():
        sleep.reseed(a, "joint")
        with bar_of(a.class_base_steps * 2, "joint") as b:
            model = study_all(GPT(config).to(a.torch_device), docs(everything), a.class_base_steps * 2, b)
        return [exam_all(model.requires_grad_(False), enc, rows, stages, len(stages) - 1)], {}

    results = {}
    for name, life in {"sleep": sleep_life, "none": none_life, "sft": sft_life, "joint": joint_life}.items():
        if not a.contrast and name != a.method:
            continue
        done = os.path.join(a.out_dir, f"{name}.json")               # a life that is finished is read back, not lived again
        if a.resume and os.path.isfile(done):
            with open(done) as f:
                results[name] = json.load(f)
            continue
        t = time.time()
        R, extra = life()
        results[name] = {"method": name, "R": R, "final": over_all(R[-1], stages),
                         "average_incremental": sum(over_all(r, stages) for r in R) / len(R),
                         "seconds": round(time.time() - t, 1), **extra}
        store.write_json(done, results[name])
        print(f"  {name:6} all {len(everything)} intents after the last night: {results[name]['final']:.3f}   "
              f"({results[name]['seconds']:.0f} s)", flush=True)
    tfidf = C.tfidf_nearest_mean(C.rows_of(data, "train", everything), C.rows_of(data, a.split, everything))
    print(f"  tf-idf nearest mean on the real training text of all intents, no network: {tfidf:.3f}")
    store.write_json(os.path.join(a.out_dir, "summary.json"), {
        "data": "clinc150", "split": a.split, "seed": a.seed, "stages": [len(s) for s in stages], **results,
        "tfidf_nearest_mean": tfidf, "command": a.command, "device": str(a.torch_device), "threads": torch.get_num_threads(),
        "seconds": round(time.time() - start, 1), "versions": {"python": sys.version.split()[0], "torch": torch.__version__}})
