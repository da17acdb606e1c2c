"""
sleep.py: the life of a language model that sleeps. Flat, in the order of the picture; last chapter of nanoSleep.

    pretrain ─► day 1: wake ─► night 1: seed ► dream ─► morning exam ─► day 2 ...
                reads the day    consolidate   improve    R[i, j]: after night i, exam of day j
                in its context   then reset    by RL      + old knowledge, + reading skill

    python sleep.py                                    the default life, from scratch, with `none` and `sft` beside it
    python sleep.py --days=21 --period=5               a longer one: nightly experts are consolidated every five nights
    python sleep.py --resume --out_dir=out             go on after an interruption
    python sleep.py --ask="Where does Ada Bram live?"  question a saved model
    python sleep.py --help                             every flag
"""
import copy
import difflib
import json
import math
import os
import pickle
import random
import shlex
import sys
import time
from dataclasses import asdict
from types import SimpleNamespace

import tiktoken
import torch
import torch.nn.functional as F
from tqdm import tqdm

import dream
import seed as seeding
from data import world as W
from data.bpe import SPECIAL, encoding
from model import GPT, Config, clone, from_pretrained, generate, pad_rows, prefill
from seed import Marks

VERSION = 1

FLAGS = {  # name: (default, what it does)
    "method": ("sleep", "sleep | none | sft: what the nights do"),
    "contrast": (1, "1: live none and sft beside sleep, from the same base"),
    "data": ("world", "world | clinc150"),
    "data_dir": ("data/clinc150", "with --data=clinc150: the folder of train.tsv, val.tsv and test.tsv"),
    "days": (7, "days and nights of the life"),
    "stop": (0, "end the life after this night (the world stays that of --days); 0: live all days"),
    "people": (8, "new people a day (5 facts each)"),
    "seed": (1, "seed of weights and sampling"),
    "world_seed": (1, "seed of the world: who lives in it and what is true of them"),
    "out_dir": ("out", "where checkpoints, log.jsonl and summary.json go"),
    "resume": (False, "go on with the life in --out_dir"),
    "init_from": ("scratch", "scratch | a checkpoint .pt of nanoSleep | GPT-2 weights (a .safetensors file or its folder)"),
    "device": ("auto", "auto | cpu | cuda | mps"),
    "dtype": ("float32", "float32 | bfloat16 (autocast)"),
    "threads": (0, "CPU threads; 0: as many as torch likes"),
    "ask": ("", "a question for the model saved in --out_dir"),
    "context": ("", "with --ask: a passage to read first"),
    # pretraining
    "pretrain_steps": (900, "steps of 16 documents"),
    "n_layer": (3, "blocks"), "n_head": (3, "heads of 32"), "n_embd": (96, "width"),
    "lr_muon": (0.03, "peak learning rate of matrices (Muon)"),
    "lr_adam": (0.04, "peak learning rate of embeddings, gains and convolutions (AdamW)"),
    # the night: Knowledge Seeding
    "views": (4, "shuffled readings of each passage that the teacher averages over"),
    "quizzes": (6, "documents of questions sampled for each view"),
    "temperature": (0.85, "of the self that asks itself: higher asks in more ways, and misspells more names"),
    "replay_dreams": (320, "documents the old self dreams each night"),
    "seed_steps": (220, "distillation steps"),
    "seed_lr": (0.18, "peak learning rate of the new expert (Muon)"),
    "rank": (32, "rank of a nightly expert"),
    "divergence": ("forward", "off-policy F: forward | reverse | jsd | sft (hard labels)"),
    "divergence_on": ("reverse", "on-policy F: forward | reverse | jsd"),
    "on_policy": (0.25, "share of on-policy steps in the last 30 %; 0: none"),
    "alpha": (0.9, "weight of the divergence against imitation on policy; --imitate=0 makes it 1"),
    "gamma": (0.5, "semantic share of the imitation reward; the rest is lexical"),
    "imitate": (1, "0: no Learning to Imitate"),
    "expand": (1, "0: train all MLP weights instead of a new expert"),
    "gate": (1, "0: one expert that is always awake, protected by replay alone"),
    "replay": (1, "0: no replay dreams"),
    "replay_weight": (8.0, "weight of the replay loss where there is no gate"),
    # the night: Dreaming
    "dream": (1, "0: no second stage"),
    "dreams": (24, "dreams chosen by importance"),
    "dreams_random": (8, "dreams chosen at random beside them"),
    "dream_steps": (20, "distillation steps on the chosen dreams"),
    "select": ("cosine", "importance: cosine (to the self-made quiz) | norm (the paper's) | random"),
    "budget": (0, "learn only this many dreams a night, chosen by --select; 0: all that pass the screen"),
    "truth": (1, "0: no truth filter, repeats allowed"),
    "random_expert": (0, "1: one extra random expert while dreaming"),
    "writer": (1, "0: the writer of dreams is not trained by ReST-EM"),
    "curriculum": (1, "0: draw dreams evenly instead of where progress is possible"),
    # real text (--data=clinc150)
    "base_intents": (45, "intents the base is trained on; then 15 new ones a day"),
    "split": ("test", "split of the exam: test | val"),
    "class_base_steps": (1200, "pretraining steps of 32 documents"),
    "wake_steps": (250, "steps of the fast level on the day's text"),
    "class_steps": (300, "distillation steps of the night"),
    "class_dreams": (160, "sentences dreamt for each new intent"),
    "class_replay": (60, "sentences dreamt for each old intent, for the router"),
    # levels
    "period": (0, "every so many nights the fast level is consolidated into one slow expert; 0: never"),
    "rank_slow": (96, "rank of a slow expert"),
    "slow_steps": (800, "distillation steps from level to level"),
}


def fail(message):
    print(f"sleep.py: {message}", file=sys.stderr)
    raise SystemExit(2)


def parse(argv):
    """--name=value flags onto FLAGS. Anything else is refused with the nearest valid flag."""
    args = {k: v for k, (v, _) in FLAGS.items()}
    for word in argv:
        if word in ("-h", "--help"):
            print(__doc__ + "\nflags:\n" + "\n".join(f"  --{k}={v!s:<9} {text}" for k, (v, text) in FLAGS.items()))
            raise SystemExit(0)
        name, eq, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in FLAGS:
            near = difflib.get_close_matches(name, FLAGS, 1, 0.4)
            fail(f"unknown flag {word!r}" + (f": did you mean --{near[0]}=...?" if near else "") + " (--help lists all)")
        kind = type(FLAGS[name][0])
        if kind is bool and not eq:
            value = "1"
        elif not eq:
            fail(f"--{name} needs a value: --{name}={FLAGS[name][0]}")
        try:
            args[name] = {"0": False, "1": True}[value] if kind is bool else kind(value)
            if kind is float and not math.isfinite(args[name]):
                raise ValueError
        except (ValueError, KeyError):
            fail(f"--{name}={value}: expected {'0 or 1' if kind is bool else 'a whole number' if kind is int else 'a number'}")
    return SimpleNamespace(**args)


def check(a):
    """Impossible values end here, before anything is written."""
    for name, low in {"days": 1, "people": 1, "pretrain_steps": 1, "n_layer": 1, "n_head": 1, "n_embd": 8, "views": 1,
                      "quizzes": 1, "seed_steps": 1, "rank": 1, "rank_slow": 1, "slow_steps": 1, "dreams": 1}.items():
        if getattr(a, name) < low:
            fail(f"--{name}={getattr(a, name)}: must be at least {low}")
    for name in ("threads", "stop", "budget", "replay_dreams", "dream_steps", "dreams_random", "period", "seed_lr",
                 "lr_muon", "lr_adam", "base_intents", "class_base_steps", "wake_steps", "class_steps", "class_dreams",
                 "class_replay", "replay_weight", "temperature"):
        if getattr(a, name) < 0:
            fail(f"--{name}={getattr(a, name)}: must not be negative")
    for name, options in {"method": ("sleep", "none", "sft"), "data": ("world", "clinc150"), "split": ("test", "val"),
                          "device": ("auto", "cpu", "cuda", "mps"),
                          "dtype": ("float32", "bfloat16"), "divergence": ("forward", "reverse", "jsd", "sft"),
                          "divergence_on": ("forward", "reverse", "jsd"), "select": ("cosine", "norm", "random")}.items():
        if getattr(a, name) not in options:
            fail(f"--{name}={getattr(a, name)}: choose one of {', '.join(options)}")
    for name in ("alpha", "gamma", "on_policy"):
        if not 0 <= getattr(a, name) <= 1:
            fail(f"--{name}={getattr(a, name)}: must lie between 0 and 1")
    for name in ("contrast", "imitate", "expand", "gate", "replay", "dream", "truth", "random_expert", "writer", "curriculum"):
        if getattr(a, name) not in (0, 1):
            fail(f"--{name}={getattr(a, name)}: expected 0 or 1")
    if max(a.days, 28) * a.people > 4000:
        fail(f"--days={a.days} --people={a.people}: the world has room for 4000 new people")


def pick_device(a):
    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if a.device == "auto":
        return torch.device("cuda" if found["cuda"] else "mps" if found["mps"] else "cpu")
    if not found[a.device]:
        fail(f"--device={a.device}: there is none on this machine; use --device=cpu")
    return torch.device(a.device)


def reseed(a, *stage):
    """Each stage draws from a generator of its own, so a life resumed at a stage is the life that was not interrupted."""
    number = random.Random(f"{a.seed} {stage}").getrandbits(48)
    random.seed(number)
    torch.manual_seed(number)


# ----------------------------------------------------------------------------------------------------------------------
# Text in and out

def document_ids(enc, marks, text, chain, weights=(0.05, 0.3, 1.0)):
    """A document as ids and the weight of each id in the loss: passage, question, answer."""
    ids, weight = [marks.bos], [0.0]
    for words, before, after, w in [(text, [], [], weights[0]), *(part for q, a in chain for part in (
            (q, [marks.ask], [marks.answer], weights[1]), (a, [], [marks.end], weights[2])))]:
        part = before + enc.encode_ordinary(words) + after
        ids, weight = ids + part, weight + [w] * len(part)
    return ids, weight


def pad_documents(docs, device):
    """[(ids, weights)] -> ids (B, T), weight (B, T-1) of each predicted token."""
    ids, _ = pad_rows([d[0] for d in docs], device)
    weight = torch.zeros(ids.shape)
    for i, (_, w) in enumerate(docs):
        weight[i, :len(w)] = torch.tensor(w, dtype=torch.float)
    return ids, weight.to(device)[:, 1:]


def sentences(enc, text):
    """A passage as a list of sentences, each a list of ids."""
    parts = [p.strip() for p in text.replace("?", "?\n").replace("!", "!\n").replace(".", ".\n").split("\n")]
    return [enc.encode_ordinary(" " + p) for p in parts if p]


def answer(model, enc, marks, items, max_new=16):
    """Greedy answers to [(context or '', question, ...)]."""
    prompts = [[marks.bos] + enc.encode_ordinary(c) + [marks.ask] + enc.encode_ordinary(q) + [marks.answer] for c, q, *_ in items]
    out = []
    for i in range(0, len(prompts), 512):
        out += generate(model, prompts[i:i + 512], max_new, temperature=0, stop=[marks.end])
    return [enc.decode([t for t in row if t not in marks]) for row in out]


def exam(model, enc, marks, items):
    """Share of answers that match as a whole."""
    given = answer(model, enc, marks, items)
    return sum(g.strip() == a.strip() for g, (_, _, a) in zip(given, items)) / len(items)


# ----------------------------------------------------------------------------------------------------------------------
# Pretraining: old people, chit-chat, and reading about strangers

def optimizers(model, lr_muon, lr_adam):
    """Muon for the matrices inside the blocks, AdamW for embeddings, gains and convolutions."""
    inner = {id(p) for n, p in model.blocks.named_parameters() if p.ndim == 2 and not n.endswith("conv")}
    rest = [p for p in model.parameters() if id(p) not in inner]
    opts = [torch.optim.Muon([p for p in model.parameters() if id(p) in inner], lr=lr_muon, weight_decay=0.0),
            torch.optim.AdamW(rest, lr=lr_adam, betas=(0.9, 0.95), weight_decay=0.0)]
    for group in (g for o in opts for g in o.param_groups):
        group["peak"] = group["lr"]
    return opts


def descend(model, opts, loss, share):
    """One clipped step of all weights down the gradient of loss, at `share` of the peak learning rates."""
    for o in opts:
        o.zero_grad()
        for group in o.param_groups:
            group["lr"] = group["peak"] * share
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for o in opts:
        o.step()


def pretrain(a, model, enc, marks, world):
    """Short documents first: 1-3 sentences, then 3-5, then 5; questions about the passage alone first, then all styles."""
    reseed(a, "pretrain")
    rng, opts = random.Random(f"{a.seed} documents"), optimizers(model, a.lr_muon, a.lr_adam)
    bar = tqdm(range(a.pretrain_steps), desc="pretrain", unit="step", leave=False, mininterval=1.0)
    for step in bar:
        f = step / a.pretrain_steps
        n, styles = ((1, 3) if f < 0.2 else (3, 5) if f < 0.5 else (5, 5)), ({"qa": 1} if f < 0.3 else W.STYLES)
        docs = [document_ids(enc, marks, *W.document(world, rng, n_facts=rng.randint(*n), styles=styles),
                             weights=(0.2 * (rng.random() < 0.25), 0.6, 1.0)) for _ in range(16)]  # 1 passage in 4 suffices
        ids, weight = pad_documents(docs, model.device)
        keep = weight > 0
        logits = model.logits(model.hidden(ids[:, :-1])[keep])
        loss = (F.cross_entropy(logits.float(), ids[:, 1:][keep], reduction="none") * weight[keep]).sum() / weight.sum()
        descend(model, opts, loss, min(1.0, (step + 1) / 30) * min(1.0, (1 - f) / 0.5 + 0.02))
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.2f}")
    return model


# ----------------------------------------------------------------------------------------------------------------------
# Night

TRIAL, FAST, SLOW = 0, 1, 2                                           # the memory levels of model.py


def who_learns(a, model, z, views, dreams, marks, number):
    """Open what tonight may change. Returns (level or None, parameters, the quizzes it can learn, log)."""
    model.requires_grad_(False)
    if not a.expand:                                                 # ablation: all MLP weights of the slow level
        mlp = [m for b in model.blocks for m in (b.levels[SLOW].up, b.levels[SLOW].down)]
        return None, [p.requires_grad_(True) for m in mlp for p in m.parameters()], z, {}
    if not a.gate:                                                   # ablation: one expert for all nights, always awake
        if model.blocks[0].levels[SLOW].n_experts:
            return SLOW, model.reopen(SLOW), z, {}
        model.attach(torch.zeros(1, model.config.n_embd), torch.ones(1), SLOW, 0)
        return SLOW, model.unlock(SLOW), z, {}
    keys, detectors, alarms = seeding.recognise(model, seeding.unpack(z), views, a.views, dreams, marks)
    expert = model.blocks[0].levels[FAST].n_experts
    params = model.unlock(FAST, seed=number)
    model.attach(*detectors, FAST, expert)
    awake = seeding.awake(model, z, FAST, expert, marks)
    if not awake.any():
        raise seeding.RestlessNight("the new expert sleeps through every question: nothing to learn")
    z = seeding.subset({**z, "wording": seeding.wording(model, z, marks)}, awake)
    return FAST, params, z, {"keys": len(keys), "alarms": alarms, "awake": float(awake.float().mean())}


def night(a, model, day, marks, number, bar):
    """One night. day: passages as lists of sentences of ids, the teacher's context; nothing else is ever seen of the day.

    Changes the model in place; when it returns, the context is gone. Returns (log, {"seed": s, "dream": s}).
    """
    start = time.time()
    teacher = clone(model)                                           # the self before sleep ...
    views = seeding.views_of(day, marks, a.views, random)
    cache, _ = prefill(teacher, views, gate=False)                   # ... with the day in its fast memory
    teach = seeding.reader(teacher, cache, a.views)
    bar.set_description_str("asking itself")
    dreamt = dream.write_dreams(teacher, views, a.views, marks, a.quizzes, 64, writer=TRIAL if a.writer else None,
                                random_level=FAST if a.random_expert else None, temperature=a.temperature)
    z = seeding.screen(teacher, dreamt, cache, a.views, marks)
    log = {"dreamt": len(dreamt), "kept": len(z["ids"])}
    bar.set_description_str("replay dreams")
    replay = seeding.dream_replay(teacher, marks, a.replay_dreams, 120) if a.replay and a.replay_dreams else []
    memories = []                                                    # earlier nights, dreamt again by the experts that hold them
    for memory, n in ((FAST, 16), (SLOW, 64)):
        experts = list(range(teacher.blocks[0].levels[memory].n_experts))
        memories += seeding.dream_memories(teacher, memory, experts, marks, n) if replay and experts else []
    old = replay + [[marks.bos, *q, *an] for _, q, an in memories]
    bar.set_description_str("seeding")
    level, params, z, found = who_learns(a, model, z, views, old, marks, number)
    kw = dict(divergence=a.divergence, divergence_on=a.divergence_on, on_policy=a.on_policy, gamma=a.gamma, bar=bar,
              alpha=a.alpha if a.imitate else 1.0)
    if replay and not (a.expand and a.gate):                         # without a gate only replay protects what is old
        kw.update(bank=seeding.replay_bank(teacher, replay, marks), head=teacher.wte.weight, replay_weight=a.replay_weight)
    if a.budget:                                                     # a night that may learn from few dreams must choose
        pool = seeding.with_targets(seeding.pack(dreamt, model.device), [teach])
        z = dream.choose_dreams(teacher, TRIAL, pool, z, marks, teach, a.select, a.truth, a.budget, 0)
    lr = a.seed_lr if a.expand else a.seed_lr / 5                     # a whole MLP wants smaller steps than a new expert
    log.update(found, **seeding.distil(model, params, z, teach, marks, level, steps=a.seed_steps, lr=lr, **kw))
    seconds = {"seed": time.time() - start}

    start = time.time()
    if a.dream:
        bar.set_description_str("dreaming")
        few = torch.randperm(len(dreamt))[:192].tolist()
        pool = seeding.with_targets(seeding.pack([dreamt[i] for i in few], model.device), [teach])
        quiz = seeding.subset(z, torch.randperm(len(z["ids"]), device=model.device)[:32])
        _, log["dream"] = dream.learn_to_dream(model, teacher, TRIAL, pool, quiz, views, a.views, marks, teach, a.select,
                                               a.truth, a.dreams, a.dreams_random, writer=a.writer)
        p = dream.known(model, z, marks)                             # self-play: asked with the day, answered without it
        log["known"] = float(p.mean())
        if a.dream_steps:
            weights = dream.progress(p) if a.curriculum else None
            if a.curriculum and "bank" in kw:
                kw["bank"]["draw"] = dream.rehearsal(model, kw["bank"], kw["head"])
            log["dream"].update(seeding.distil(model, params, z, teach, marks, level, steps=a.dream_steps, weights=weights,
                                               lr=lr / 2, **kw))
    seconds["dream"] = time.time() - start
    if level is not None:
        model.settle(level)
    model.requires_grad_(False)
    return log, seconds


def fine_tune(a, model, day, marks, bar, steps=60, lr=1e-3):
    """Method sft: next-token loss on the day's text, all weights. What most people would do."""
    model.requires_grad_(True)
    opt = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    for _ in range(steps):
        ids, lengths = pad_rows(seeding.views_of(day, marks, 1, random), model.device)
        keep = torch.arange(1, ids.shape[1], device=ids.device) < lengths[:, None]
        loss = F.cross_entropy(model.logits(model.hidden(ids[:, :-1])[keep]).float(), ids[:, 1:][keep])
        opt.zero_grad()
        loss.backward()
        opt.step()
        bar.update(1)
    model.requires_grad_(False)
    return {"loss": float(loss.detach())}


# ----------------------------------------------------------------------------------------------------------------------
# Life

def metrics(R):
    """ACC, BWT and forgetting of a lower-triangular R[i][j] (null above the diagonal), after the last night."""
    T, last = len(R), R[-1]
    past = range(T - 1)
    return {"ACC": sum(last) / T,
            "BWT": sum(last[j] - R[j][j] for j in past) / (T - 1) if T > 1 else 0.0,
            "forgetting": sum(max(R[i][j] for i in range(j, T)) - last[j] for j in past) / (T - 1) if T > 1 else 0.0,
            "recall": sum(R[i][i] for i in range(T)) / T}


def save(path, model, **info):
    """Weights and where the life stands, written beside the old file and then renamed over it: never half a checkpoint."""
    torch.save({"version": VERSION, "config": asdict(model.config), "model": model.state_dict(), **info}, path + ".tmp")
    with open(path + ".tmp", "rb") as f:
        os.fsync(f.fileno())
    os.replace(path + ".tmp", path)


def load(path, device="cpu"):
    """A checkpoint of nanoSleep -> (model, everything else). One clear line if it is none."""
    if not os.path.isfile(path):
        fail(f"no checkpoint at {path}: run a life first, or name its folder with --out_dir")
    try:
        data = torch.load(path, map_location=device, weights_only=True)
        if data["version"] != VERSION:
            fail(f"{path} is a checkpoint of version {data['version']}, this is version {VERSION}: live the life again")
        model = GPT(Config(**data["config"])).to(device)
        model.load_state_dict(data.pop("model"))
    except (RuntimeError, KeyError, TypeError, ValueError, EOFError, AttributeError, OSError, pickle.UnpicklingError) as e:
        fail(f"{path} is not a checkpoint of nanoSleep or is damaged ({type(e).__name__}): restore it or live the life again")
    return model.requires_grad_(False).eval(), {k: v for k, v in data.items() if k not in ("version", "config", "args")}


def show(R, people, name):
    """R as a person reads it: a row a morning, a column a day, per cent right."""
    print(f"\n{name}: per cent of the {5 * people} facts of each day known in the morning after each night")
    print("            " + "".join(f"{'day ' + str(j + 1):>8}" for j in range(len(R[-1]))))
    for i, row in enumerate(R):
        print(f"  night {i + 1:>2}  " + "".join(f"{'' if r is None else round(100 * r):>8}" for r in row))


def live(a, method, base, enc, marks, world, out_dir, seconds):
    """One life: days, nights, mornings. Saves after every night and picks up after the last one saved."""
    os.makedirs(out_dir, exist_ok=True)
    path = os.path.join(out_dir, "checkpoint.pt")
    rng = random.Random(f"exam {a.world_seed}")
    held_out = [W.stranger(world, rng) for _ in range(40)]
    exams = {"old": W.exam(world["old"], rng), "reading": W.exam(held_out, rng, context=True)}
    days = [(W.exam(people, rng), W.exam(people, rng, reverse=True)) for people in world["days"]]
    ask = lambda items: exam(model, enc, marks, items)
    if a.resume and os.path.isfile(path):
        model, state = load(path, a.torch_device)
        print(f"{method}: going on after night {len(state['R'])}")
        with open(os.path.join(out_dir, "log.jsonl"), "w") as f:      # a line too many if the end came before the save
            f.writelines(json.dumps(n) + "\n" for n in state["nights"])
    else:
        model = copy.deepcopy(base).requires_grad_(False)
        state = {"R": [], "nights": [], "seconds": {**seconds, "wake": 0.0, "seed": 0.0, "dream": 0.0, "exam": 0.0},
                 "params_before": model.n_params()}
        t = time.time()
        state["before"] = {k: ask(v) for k, v in exams.items()}
        state["seconds"]["exam"] += time.time() - t
        open(os.path.join(out_dir, "log.jsonl"), "w").close()
    took = state["seconds"]
    done = len(state["R"])
    last_night = min(a.days, a.stop or a.days)
    bar = tqdm(total=(last_night - done) * (a.seed_steps + a.dream * a.dream_steps if method == "sleep" else 60), desc=method,
               unit="step", leave=False, mininterval=1.0, disable=method == "none")
    for i in range(done, last_night):
        # day: wake. The model reads; what it has read stands in its context
        t = time.time()
        reseed(a, method, i, "day")
        passages = [W.passage(p, random)[0] for p in world["days"][i]]
        day = [sentences(enc, text) for text in passages]
        context = ask([(passages[n // 5], q, an) for n, (_, q, an) in enumerate(days[i][0])])
        took["wake"] += time.time() - t
        # night: sleep
        reseed(a, method, i, "night")
        log = {}
        if method == "sleep":
            yesterday, spent, t = clone(model), {}, time.time()
            try:
                log, spent = night(a, model, day, marks, i, bar)
                t = time.time()
                if a.period and (i + 1) % a.period == 0:
                    bar.set_description_str("consolidating")
                    log["consolidated"] = seeding.consolidate(model, FAST, SLOW, marks, steps=a.slow_steps, lr=a.seed_lr)
            except seeding.RestlessNight as e:                       # wake up as yesterday's self
                model, log = yesterday, {**log, "restless": str(e)}
                bar.write(f"  night {i + 1}: {e}")
            spent["seed"] = spent.get("seed", 0.0) + time.time() - t
            for k, v in spent.items():
                took[k] += v
            log["seconds"] = spent
        elif method == "sft":
            t = time.time()
            log = fine_tune(a, model, day, marks, bar)
            took["seed"] += time.time() - t
        del day                                                      # the context is gone
        # morning: exam
        t = time.time()
        row = [ask(days[j][0]) if j <= i else None for j in range(last_night)]
        morning = {"night": i + 1, "in_context": context, "recall": row[i], "reversed": ask(days[i][1]),
                   **{k: ask(v) for k, v in exams.items()}, "params": model.n_params(), **log}
        took["exam"] += time.time() - t
        state["R"].append(row)
        state["nights"].append(morning)
        with open(os.path.join(out_dir, "log.jsonl"), "a") as f:
            f.write(json.dumps(morning) + "\n")
        save(path, model, args=vars_of(a), **state)
        bar.write(f"  {method} {i + 1:>2}: read {context:.2f} in context, next morning {row[i]:.2f} without it; all days "
                  f"{sum(row[:i + 1]) / (i + 1):.2f}, old {morning['old']:.2f}, reading {morning['reading']:.2f}")
    bar.close()
    last = state["nights"][-1]
    took["total"] = sum(took[k] for k in ("pretrain", "wake", "seed", "dream", "exam"))
    summary = {"method": method, "seed": a.seed, "world_seed": a.world_seed, "days": a.days, "R": state["R"],
               **metrics(state["R"]),
               "old_before": state["before"]["old"], "old_after": last["old"], "reading_before": state["before"]["reading"],
               "reading_after": last["reading"], "reversed": [n["reversed"] for n in state["nights"]],
               "params_before": state["params_before"], "params_after": last["params"],
               "seconds": {k: round(v, 2) for k, v in took.items()},
               "command": a.command, "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
               "device": str(a.torch_device), "threads": torch.get_num_threads()}
    write_json(os.path.join(out_dir, "summary.json"), summary)
    return summary


def write_json(path, data):
    with open(path + ".tmp", "w") as f:
        json.dump(data, f, indent=1)
    os.replace(path + ".tmp", path)


def vars_of(a):
    return {k: getattr(a, k) for k in FLAGS}


def born(a, enc, marks, world):
    """The base every life starts from: from scratch, from a checkpoint, or from GPT-2 with the four marks added."""
    config = Config(vocab_size=enc.n_vocab, n_layer=a.n_layer, n_head=a.n_head, n_embd=a.n_embd, d_ff=4 * a.n_embd,
                    ranks=(a.rank, a.rank, a.rank_slow))
    if a.init_from == "scratch":
        reseed(a, "weights")
        model = GPT(config)
    elif a.init_from.endswith(".pt"):
        model, _ = load(a.init_from)
        if model.config.vocab_size != enc.n_vocab:
            mismatch(a.init_from, model.config.vocab_size, enc.n_vocab)
        return model.to(a.torch_device)
    else:
        try:
            model = from_pretrained(a.init_from, config.ranks, extra_tokens=len(marks))
        except (OSError, ValueError) as e:
            fail(f"--init_from={a.init_from}: {e}")
        if model.config.vocab_size != enc.n_vocab:
            mismatch(a.init_from, model.config.vocab_size - len(marks), enc.n_vocab - len(marks))
    return pretrain(a, model.to(a.torch_device), enc, marks, world)


def mismatch(path, vocab, wanted):
    fail(f"{path} has a vocabulary of {vocab} tokens, the tokenizer has {wanted}: they do not belong together")


def tokenizer(a):
    if a.init_from == "scratch" or a.init_from.endswith(".pt"):
        return W.load_tokenizer()
    try:
        gpt2 = tiktoken.get_encoding("gpt2")                         # the only download of nanoSleep, and only on this path
    except Exception as e:
        fail(f"--init_from={a.init_from} needs tiktoken's gpt2 encoding, which could not be fetched ({type(e).__name__})")
    return encoding(gpt2._mergeable_ranks, "gpt2", gpt2._pat_str, first=gpt2.n_vocab)


def main(argv):
    a = parse(argv)
    check(a)
    if a.resume:                                                     # the flags of the life that was interrupted
        a = resumed(a, argv)
    a.command = "python sleep.py " + " ".join(shlex.quote(w) for w in argv)
    a.torch_device = pick_device(a)
    if a.threads:
        torch.set_num_threads(a.threads)
    # no cache: one context holds the whole life, and autocast's copies of the weights would never see them learn
    with torch.autocast(a.torch_device.type, torch.bfloat16, enabled=a.dtype == "bfloat16", cache_enabled=False):
        if a.data == "clinc150":
            from bench import clinc150                               # the life on real text is a chapter of its own
            return clinc150.live(a)
        enc = tokenizer(a)
        marks = Marks(*(enc.encode_single_token(s) for s in SPECIAL))
        if a.ask:
            return question(a, enc, marks)
        run(a, enc, marks)


def question(a, enc, marks):
    """--ask: what the saved model answers, without and (if given) with a passage in its context."""
    model, _ = load(os.path.join(a.out_dir, "checkpoint.pt"), a.torch_device)
    room = model.config.block_size - 32 - len(enc.encode_ordinary(a.ask))
    if len(enc.encode_ordinary(a.context)) > room:
        fail(f"--context is too long: {len(enc.encode_ordinary(a.context))} tokens, there is room for {max(0, room)}")
    for context in [""] + [" " + a.context.strip()] * bool(a.context.strip()):
        text = answer(model, enc, marks, [(context, " " + a.ask.strip(), "")])[0].strip()
        print(("with the passage in context: " if context else "from memory: ") + text)


def resumed(a, argv):
    path = os.path.join(a.out_dir, "args.json")
    if not os.path.isfile(path):
        fail(f"nothing to resume in {a.out_dir}: no args.json there; start a life without --resume")
    with open(path) as f:
        old = json.load(f)
    given = {w[2:].partition("=")[0] for w in argv} - {"resume", "out_dir"}
    if given:
        fail(f"--resume goes on with the flags the life was started with: leave out --{sorted(given)[0]}")
    return SimpleNamespace(**{**old, "resume": True, "out_dir": a.out_dir})


def make_room(out_dir):
    """An earlier life in out_dir is kept under another name."""
    if os.path.isfile(os.path.join(out_dir, "args.json")):
        n = 1
        while os.path.exists(f"{out_dir}.{n}"):
            n += 1
        os.rename(out_dir, f"{out_dir}.{n}")
        print(f"{out_dir} held an earlier life: it is now {out_dir}.{n} (to go on with it: --resume --out_dir={out_dir}.{n})")
    os.makedirs(out_dir, exist_ok=True)


def run(a, enc, marks):
    start = time.time()
    world = W.make_world(a.world_seed, n_days=a.days, n_people=a.people)
    base_path, args_path = os.path.join(a.out_dir, "base.pt"), os.path.join(a.out_dir, "args.json")
    if not a.resume:
        make_room(a.out_dir)
        write_json(args_path, vars_of(a))
    print(f"{a.days} days x {a.people} people x 5 facts on {a.torch_device}, {torch.get_num_threads()} threads. Expect, on two "
          f"quiet CPU cores: pretraining about 1 minute, a night 12 to 15 seconds; recall about 0.98 every morning.")
    if a.resume and os.path.isfile(base_path):
        base, info = load(base_path, a.torch_device)
    else:
        t = time.time()
        base, info = born(a, enc, marks, world), {}
        info["pretrain"] = time.time() - t
        save(base_path, base, **info)
        print(f"pretrained {base.n_params():,} parameters in {info['pretrain']:.0f} s")
    beside = ("none", "sft") if a.contrast and a.method == "sleep" else ()
    lives = [(a.method, a.out_dir)] + [(m, os.path.join(a.out_dir, m)) for m in beside]
    summaries = [live(a, method, base, enc, marks, world, folder, {"pretrain": info["pretrain"]}) for method, folder in lives]
    show(summaries[0]["R"], a.people, summaries[0]["method"])
    print(f"\n{'':8}{'recall':>8}{'ACC':>8}{'BWT':>8}{'old':>8}{'reading':>9}{'reversed':>10}{'parameters':>12}{'seconds':>9}")
    for s in summaries:
        print(f"{s['method']:8}{s['recall']:8.3f}{s['ACC']:8.3f}{s['BWT']:+8.3f}{s['old_after']:8.3f}{s['reading_after']:9.3f}"
              f"{sum(s['reversed']) / len(s['reversed']):10.3f}{s['params_after']:12,}"
              f"{s['seconds']['total'] - s['seconds']['pretrain']:9.1f}")
    p = world["days"][0][0]
    print(f"\n{time.time() - start:.0f} s in all; {a.out_dir}/summary.json has the numbers. Ask it yourself:\n"
          f"  python sleep.py --out_dir={a.out_dir} --ask=\"Where does {p['name']} live?\"      (it is {p['lives']})")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        fail("interrupted: go on with --resume and the same --out_dir")
    except (OSError, ValueError) as e:
        fail(str(e))
