"""
sleep.py: the life of a language model that sleeps. Flat, in the order of the picture; last chapter of nanoSleep.

    pretrain ─► day 1: wake ─► night 1: seed ► dream ─► morning exam ─► day 2 ...
                reads the day    consolidate   improve    R[i, j]: after night i, exam of day j
                in its context   then reset    by RL      + old knowledge, + reading skill

    python sleep.py                                    the default life, from scratch, with `none` and `sft` beside it
    python sleep.py --days=21 --period=5               a longer one: nightly experts are consolidated every five nights
    python sleep.py --resume --out_dir=out             go on after an interruption
    python sleep.py --ask="Where does Ada Bram live?"  question a saved model
    torchrun --nproc_per_node=4 sleep.py               four processes live one life (data/team.py)
    python sleep.py --help                             every flag
"""
import copy
import errno
import json
import os
import random
import shlex
import signal
import sys
import time
from dataclasses import asdict

import tiktoken
import torch
import torch.nn.functional as F
from tqdm import tqdm

import dream
import seed as seeding
from data import store, team
from data import world as W
from data.bpe import SPECIAL, encoding
from data.flags import FLAGS, fail, parse, resumed
from model import GPT, Config, clone, from_pretrained, generate, pad_rows, prefill
from seed import Marks

VERSION = 2
EVERY = 60                          # steps between two checkpoints inside a stage
ROOM = 64                           # tokens of a context left free for a question and its answer
HELD_OUT = 32                       # dreams of the old self that a night does not learn from: by them it is judged
STOP = []                           # a Ctrl-C was heard: the next `keep` saves and ends the run


def pick_device(a):
    each = int(os.environ.get("LOCAL_WORLD_SIZE", 1))                # processes on this machine: each needs a GPU of its own
    found = {"cpu": True, "cuda": torch.cuda.is_available() and torch.cuda.device_count() >= each,
             "mps": torch.backends.mps.is_available() and each == 1}
    if a.device == "auto":
        return torch.device("cuda" if found["cuda"] else "mps" if found["mps"] else "cpu")
    if not found[a.device]:
        fail(f"--device={a.device}: there is none on this machine{f' for each of {each}' * (each > 1)}; use --device=cpu")
    return torch.device(a.device)


def reseed(a, *stage):
    """Each stage draws from a generator of its own, so a life resumed at a stage is the life that was not interrupted."""
    number = random.Random(f"{a.seed} {stage}").getrandbits(48)
    random.seed(number)
    torch.manual_seed(number)


def begin(a, desk, stage, number):
    """The progress of a stage of tonight: {}, or where it was interrupted (seed.distil has its random numbers then)."""
    reseed(a, number, stage)
    return desk.setdefault(stage, {})


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


def fit(day, room):
    """A day whose passages all fit `room` tokens: a longer one is split between sentences, a longer sentence cut."""
    fitting = []
    for passage in day:
        pieces = [s[i:i + room] for s in passage for i in range(0, len(s), room)]
        part = []
        for piece in pieces:
            if part and sum(map(len, part)) + len(piece) > room:
                fitting, part = fitting + [part], []
            part.append(piece)
        fitting += [part] if part else []
    if len(fitting) > len(day):
        tqdm.write(f"  a passage is longer than {room} tokens: it is read in parts, split between sentences")
    return fitting


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


def descend(model, opts, loss, share, clip=1.0):
    """One clipped step of all weights down the gradient of loss, at `share` of the peak learning rates."""
    for o in opts:
        o.zero_grad()
        for group in o.param_groups:
            group["lr"] = group["peak"] * share
    loss.backward()
    team.sum_gradients(model.parameters())
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    for o in opts:
        o.step()


def pretrain(a, model, enc, marks, world, progress=None, keep=lambda step, where: None):
    """Short documents first: 1-3 sentences, then 3-5, then 5; questions about the passage alone first, then all styles.

    progress: where an interrupted pretraining stood; keep is told after every step how to find that out.
    """
    reseed(a, "pretrain")
    rng, opts = random.Random(f"{a.seed} documents"), optimizers(model, a.lr_muon, a.lr_adam)
    done = 0
    if progress:
        done = progress["step"]
        rng.setstate(progress["documents"])
        for o, state in zip(opts, progress["opts"]):
            o.load_state_dict(state)
        seeding.set_rng(progress["rng"])
    bar = tqdm(range(done, a.pretrain_steps), desc="pretrain", unit="step", leave=False, mininterval=1.0, initial=done,
               total=a.pretrain_steps)
    for step in bar:
        f = step / a.pretrain_steps
        n, styles = ((1, 3) if f < 0.2 else (3, 5) if f < 0.5 else (5, 5)), ({"qa": 1} if f < 0.3 else W.STYLES)
        docs = [document_ids(enc, marks, *W.document(world, rng, n_facts=rng.randint(*n), styles=styles),
                             weights=(0.2 * (rng.random() < 0.25), 0.6, 1.0)) for _ in range(16)]  # 1 passage in 4 suffices
        ids, weight = pad_documents(docs, model.device)
        count, ids, weight = weight.sum(), ids[team.mine()], weight[team.mine()]
        scored = weight > 0
        logits = model.logits(model.hidden(ids[:, :-1])[scored])
        loss = (F.cross_entropy(logits.float(), ids[:, 1:][scored], reduction="none") * weight[scored]).sum() / count
        descend(model, opts, loss, min(1.0, (step + 1) / 30) * min(1.0, (1 - f) / 0.5 + 0.02))
        if step % 50 == 0:
            bar.set_postfix(loss=f"{team.total(loss.detach()).item():.2f}")
        keep(step + 1, lambda: {"step": step + 1, "documents": rng.getstate(), "opts": [o.state_dict() for o in opts]})
    return model


# ----------------------------------------------------------------------------------------------------------------------
# Night

TRIAL, FAST, SLOW = 0, 1, 2                                           # the memory levels of model.py


def open_gate(a, model, z, views, dreams, marks, number):
    """Open what tonight may change, and teach the router where it may speak. Returns (its level or None, log)."""
    if not a.expand:                                                 # ablation: all MLP weights of the slow level
        return None, {}
    if not a.gate:                                                   # ablation: one expert for all nights, always awake
        if model.blocks[0].levels[SLOW].n_experts:
            model.reopen(SLOW)
        else:
            model.attach(torch.zeros(1, model.config.n_embd), torch.ones(1), SLOW, 0)
            model.unlock(SLOW)
        return SLOW, {}
    keys, detectors, alarms = seeding.recognise(model, seeding.unpack(z), views, a.views, dreams, marks)
    model.attach(*detectors, FAST, model.blocks[0].levels[FAST].n_experts)
    model.unlock(FAST, seed=number)
    return FAST, {"keys": len(keys), "alarms": alarms}


def learners(model, level):
    """The parameters that learn tonight, and no others: live experts, or (level None) all MLPs of the slow level."""
    model.requires_grad_(False)
    mlps = [m for b in model.blocks for m in (b.levels[SLOW].up, b.levels[SLOW].down)]
    params = model.live(level) if level is not None else [p for m in mlps for p in m.parameters()]
    return [p.requires_grad_(True) for p in params]


def night(a, model, day, marks, number, bar, teacher=None, desk=None, keep=None):
    """One night. day: passages as lists of sentences of ids, the teacher's context; nothing else is ever seen of the day.

    Changes the model in place; when it returns, the context is gone. teacher: the self before sleep, if the model is no
    longer that. desk: {}, or what an interrupted night had on its desk; keep(progress) is called wherever the night could go
    on from there. All that was sampled lies on the desk; what follows from it is computed again. Returns (log, {"seed": s,
    "dream": s}).
    """
    start = time.time()
    teacher, desk, keep = teacher or clone(model), {} if desk is None else desk, keep or (lambda progress=None: None)
    if not any(day):
        raise seeding.RestlessNight("the day was empty")
    if "dreamt" not in desk:                                         # 1. the self that holds the day asks itself
        reseed(a, number, "asking")
        bar.set_description_str("asking itself")
        desk["views"] = seeding.views_of(day, marks, a.views, random)
        desk["dreamt"] = dream.write_dreams(teacher, desk["views"], a.views, marks, a.quizzes, 64,
                                            writer=TRIAL if a.writer else None, temperature=a.temperature,
                                            random_level=FAST if a.random_expert else None)
        bar.set_description_str("replay dreams")
        desk["replay"] = seeding.dream_replay(teacher, marks, HELD_OUT + a.replay_dreams * a.replay, 120)
        keep()
    views, dreamt, replay = desk["views"], desk["dreamt"], desk["replay"][HELD_OUT:]
    cache, _ = prefill(teacher, views, gate=False)                   # the day in the fast memory
    teach = seeding.reader(teacher, cache, a.views)
    z = seeding.screen(teacher, dreamt, cache, a.views, marks)
    log = {"dreamt": len(dreamt), "kept": len(z["ids"])}

    if "level" not in desk:                                          # 2. an expert more, and where it may speak
        reseed(a, number, "gate")
        bar.set_description_str("gate")
        memories = []                                                # earlier nights, dreamt by the experts that hold them
        for memory, n in ((FAST, 16), (SLOW, 64)):
            experts = list(range(teacher.blocks[0].levels[memory].n_experts))
            memories += seeding.dream_memories(teacher, memory, experts, marks, n) if replay and experts else []
        old = replay + [[marks.bos, *q, *an] for _, q, an in memories]
        desk["level"], desk["found"] = open_gate(a, model, z, views, old, marks, number)
        keep()
    level, params = desk["level"], learners(model, desk["level"])
    log.update(desk["found"])
    if level == FAST:
        awake = seeding.awake(model, z, FAST, model.blocks[0].levels[FAST].n_experts - 1, marks)
        if not awake.any():
            raise seeding.RestlessNight("the new expert sleeps through every question: nothing to learn")
        z = seeding.subset({**z, "wording": seeding.wording(model, z, marks)}, awake)
        log["awake"] = float(awake.float().mean())

    bar.set_description_str("seeding")                               # 3. the teacher is distilled into the student
    kw = dict(divergence=a.divergence, divergence_on=a.divergence_on, on_policy=a.on_policy, gamma=a.gamma, bar=bar,
              alpha=a.alpha if a.imitate else 1.0, keep=keep)
    if replay and level != FAST:                                     # without a gate only replay protects what is old
        kw.update(bank=seeding.replay_bank(teacher, replay, marks), head=teacher.wte.weight, replay_weight=a.replay_weight)
    if a.budget:                                                     # a night that may learn from few dreams must choose
        reseed(a, number, "choosing")
        pool = seeding.with_targets(seeding.pack(dreamt, model.device), [teach])
        z = dream.choose_dreams(teacher, TRIAL, pool, z, marks, teach, a.select, a.truth, a.budget, 0)
    lr = a.seed_lr if a.expand else a.seed_lr / 5                     # a whole MLP wants smaller steps than a new expert
    steps = a.seed_steps * max(1, round(len(day) / a.people))        # two days in one night: twice the work
    log.update(seeding.distil(model, params, z, teach, marks, level, steps=steps, lr=lr,
                              progress=begin(a, desk, "seeding", number), **kw))
    seconds = {"seed": time.time() - start}

    start = time.time()
    if a.dream:                                                      # 4. the self learns which dreams make it better
        if "dream" not in desk:
            reseed(a, number, "dreaming")
            bar.set_description_str("dreaming")
            few = torch.randperm(len(dreamt))[:192].tolist()
            pool = seeding.with_targets(seeding.pack([dreamt[i] for i in few], model.device), [teach])
            quiz = seeding.subset(z, torch.randperm(len(z["ids"]), device=model.device)[:32])
            _, learnt = dream.learn_to_dream(model, teacher, TRIAL, pool, quiz, views, a.views, marks, teach, a.select,
                                             a.truth, a.dreams, a.dreams_random, writer=a.writer)
            p = dream.known(model, z, marks)                         # self-play: asked with the day, answered without it
            desk["weights"] = dream.progress(p) if a.curriculum else None
            desk["rehearse"] = dream.rehearsal(model, kw["bank"], kw["head"]) if a.curriculum and "bank" in kw else None
            desk["dream"] = learnt
            keep()
        if desk["rehearse"] is not None:
            kw["bank"]["draw"] = desk["rehearse"]
        seen = seeding.distil(model, params, z, teach, marks, level, steps=a.dream_steps, weights=desk["weights"], lr=lr / 2,
                              progress=begin(a, desk, "rehearsing", number), **kw)
        log["dream"] = {**desk["dream"], **seen}
    log.update(knew=float(dream.known(teacher, z, marks).mean()), knows=float(dream.known(model, z, marks).mean()))
    seconds["dream"] = time.time() - start
    if level is not None:
        model.settle(level)
    model.requires_grad_(False)
    return log, seconds


@torch.no_grad()
def gone_wrong(old, new, dreams, marks, log, tolerance):
    """Why this night must be undone, or None (ours). There is no ground truth: the self before sleep is the judge.

    A weight is no number; or what the old self dreams (dreams the night did not learn from) has moved by more than `tolerance`
    nats a token, mean KL(old || new); or the new self answers the quizzes of the day no better than the old one without it
    (by less than 0.05 in mean p of the whole answer): then the night would only cost the day. The drift goes into log.
    """
    if not all(torch.isfinite(t).all() for t in new.state_dict().values()):
        return "a weight is not a finite number"
    bank = seeding.replay_bank(old, dreams, marks)
    log["drift"] = float(seeding.replay_drift(new, bank, old.wte.weight, slice(None)).mean())
    if not log["drift"] <= tolerance:
        return f"the old self's dreams moved by {log['drift']:.2f} nats a token, more than {tolerance}"
    return None if log["knows"] > log["knew"] + 0.05 else "the day is known no better than before"


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
            "forgetting": sum(max(R[i][j] for i in range(j, T - 1)) - last[j] for j in past) / (T - 1) if T > 1 else 0.0,
            "recall": sum(R[i][i] for i in range(T)) / T}


def save(path, model, **info):
    """Weights and where the life stands: never half a checkpoint, and the one before it is kept (data/store.py)."""
    store.save(path, {"version": VERSION, "config": asdict(model.config), "model": model.state_dict(), **info})


def load(path, device="cpu"):
    """A checkpoint of nanoSleep -> (model, everything else). One clear line if it is none; a damaged one stays as it is."""
    try:
        data, warning = store.load(path, device)
        if data["version"] != VERSION:
            fail(f"{path} is a checkpoint of version {data['version']}, this is version {VERSION}: live the life again")
        model = GPT(Config(**data["config"])).to(device)
        model.load_state_dict(data.pop("model"))
    except FileNotFoundError:
        fail(f"no checkpoint at {path}: run a life first, or name its folder with --out_dir")
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as e:
        what = e if isinstance(e, ValueError) else f"{path} is no checkpoint of this model"
        fail(f"{what}: restore it or live the life again")
    if warning:
        print(f"sleep.py: {warning}", file=sys.stderr)
    return model.requires_grad_(False).eval(), {k: v for k, v in data.items() if k not in ("version", "config", "args")}


def asleep(a, model, yesterday, state, desk, marks, i, bar, keep):
    """A night, the move of the fast level into the slow one where its period ends, and a look back. Returns (self, log).

    A night gone wrong is undone: the self wakes as yesterday's, and the day stays in its context for the next night.
    """
    log, seconds, undone = {}, {}, None
    try:
        if "night" not in desk:
            desk["night"] = night(a, model, state["pending"] + desk["day"], marks, i, bar, yesterday, desk, keep)
            keep()
        log, seconds = desk["night"]
        if a.period and (i + 1) % a.period == 0:
            t = time.time()
            bar.set_description_str("consolidating")
            log["consolidated"] = seeding.consolidate(model, FAST, SLOW, marks, steps=a.slow_steps, lr=a.seed_lr, keep=keep,
                                                      progress=begin(a, desk, "consolidating", i))
            seconds["seed"] += time.time() - t
        undone = gone_wrong(yesterday, model, desk["replay"][:HELD_OUT], marks, log, a.tolerance)
    except seeding.RestlessNight as e:
        undone = str(e)
    state["pending"] = desk["day"] if undone else []
    if undone:
        model, log = clone(yesterday), {**log, "undone": undone}
        bar.write(f"  night {i + 1} is undone: {undone}")
    return model, {**log, "seconds": seconds}


def show(R, people, name):
    """R as a person reads it: a row a morning, a column a day, per cent right."""
    print(f"\n{name}: per cent of the {5 * people} facts of each day known in the morning after each night")
    print("            " + "".join(f"{'day ' + str(j + 1):>8}" for j in range(len(R[-1]))))
    for i, row in enumerate(R):
        print(f"  night {i + 1:>2}  " + "".join(f"{'' if r is None else round(100 * r):>8}" for r in row))


def live(a, method, base, enc, marks, world, out_dir, seconds):
    """One life: days, nights, mornings. Saves after every stage, and picks up where the last save was."""
    os.makedirs(out_dir, exist_ok=True)
    path, log_path = os.path.join(out_dir, "checkpoint.pt"), os.path.join(out_dir, "log.jsonl")
    rng = random.Random(f"exam {a.world_seed}")
    held_out = [W.stranger(world, rng) for _ in range(40)]
    exams = {"old": W.exam(world["old"], rng), "reading": W.exam(held_out, rng, context=True)}
    days = [(W.exam(people, rng), W.exam(people, rng, reverse=True)) for people in world["days"]]
    ask = lambda items: exam(model, enc, marks, items)
    if a.resume and (os.path.isfile(path) or os.path.isfile(path + ".before")):
        model, state = load(path, a.torch_device)
        desk, yesterday = state.pop("desk"), clone(model)
        yesterday.load_state_dict(state.pop("yesterday"))
        print(f"{method}: going on {'in' if desk else 'after'} night {len(state['R']) + bool(desk)}")
    else:
        model, desk = copy.deepcopy(base).requires_grad_(False), {}
        yesterday = clone(model)
        state = {"R": [], "nights": [], "seconds": {**seconds, "wake": 0.0, "seed": 0.0, "dream": 0.0, "exam": 0.0},
                 "params_before": model.n_params(), "pending": []}
        t = time.time()
        state["before"] = {k: ask(v) for k, v in exams.items()}
        state["seconds"]["exam"] += time.time() - t
    note = lambda: store.write(log_path, "".join(json.dumps(n) + "\n" for n in state["nights"]).encode())
    note()

    def keep(progress=None):
        """Save where the life stands: after every stage, every 60 steps inside one, and when someone wants to stop."""
        stop = team.anyone(STOP)                                     # all stop at the same step
        if progress is not None:
            if progress["step"] % EVERY and not stop:
                return
            progress["rng"] = seeding.rng_state()
        save(path, model, yesterday=yesterday.state_dict(), desk=desk, **state)
        if stop:
            raise KeyboardInterrupt

    took = state["seconds"]
    done = len(state["R"])
    last_night = min(a.days, a.stop or a.days)
    steps = {"sleep": a.seed_steps + a.dream * a.dream_steps, "sft": 60}.get(method, 0)
    bar = tqdm(total=(last_night - done) * steps or None, desc=method, unit="step", leave=False, mininterval=1.0,
               disable=method == "none")
    for i in range(done, last_night):
        # day: wake. The model reads; what it has read stands in its context
        t = time.time()
        if not desk:
            reseed(a, method, i, "day")
            passages = [W.passage(p, random)[0] for p in world["days"][i]]
            desk["day"] = fit([sentences(enc, text) for text in passages], model.config.block_size - ROOM)
            desk["context"] = ask([(passages[n // 5], q, an) for n, (_, q, an) in enumerate(days[i][0])])
            yesterday = clone(model)
            took["wake"] += time.time() - t
            keep()
        # night: sleep
        t = time.time()
        if method == "sleep" and "log" not in desk:
            model, desk["log"] = asleep(a, model, yesterday, state, desk, marks, i, bar, keep)
            for stage in [k for k in desk if k not in ("day", "context", "log")]:
                del desk[stage]
            for k, v in desk["log"]["seconds"].items():
                took[k] += v
            keep()
        elif method == "sft":
            reseed(a, method, i, "night")
            desk["log"] = fine_tune(a, model, desk["day"], marks, bar)
            took["seed"] += time.time() - t
        elif method == "absorb":                                     # a neighbour's night: Absorber LLM
            from bench import absorber
            reseed(a, method, i, "night")
            desk["log"] = absorber.night(a, model, desk["day"], marks, i, bar)
            took["seed"] += time.time() - t
        # morning: exam
        t = time.time()
        row = [ask(days[j][0]) if j <= i else None for j in range(last_night)]
        morning = {"night": i + 1, "in_context": desk["context"], "recall": row[i], "reversed": ask(days[i][1]),
                   **{k: ask(v) for k, v in exams.items()}, "params": model.n_params(), **desk.get("log", {})}
        took["exam"] += time.time() - t
        state["R"].append(row)
        state["nights"].append(morning)
        desk.clear()                                                 # the context is gone
        note()
        keep()
        bar.write(f"  {method} {i + 1:>2}: read {morning['in_context']:.2f} in context, next morning {row[i]:.2f} without it; "
                  f"all days {sum(row[:i + 1]) / (i + 1):.2f}, old {morning['old']:.2f}, reading {morning['reading']:.2f}")
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
               "device": str(a.torch_device), "threads": torch.get_num_threads(), "processes": team.SIZE}
    store.write_json(os.path.join(out_dir, "summary.json"), summary)
    return summary


def vars_of(a):
    return {k: getattr(a, k) for k in FLAGS}


def born(a, enc, marks, world, half=None):
    """The base every life starts from: from scratch, from a checkpoint, or from GPT-2 with the four marks added.

    half: where the half-pretrained base is kept; with --resume it goes on from there.
    """
    config = Config(vocab_size=enc.n_vocab, n_layer=a.n_layer, n_head=a.n_head, n_embd=a.n_embd, d_ff=4 * a.n_embd,
                    ranks=(a.rank, a.rank, a.rank_slow))
    progress = None
    if a.resume and half and os.path.isfile(half):
        model, progress = load(half, a.torch_device)
        model.requires_grad_(True)
    elif a.init_from == "scratch":
        reseed(a, "weights")
        model = GPT(config)
    elif a.init_from.endswith(".pt"):
        model, _ = load(a.init_from)
        if model.config.vocab_size != enc.n_vocab:
            mismatch(a.init_from, model.config.vocab_size, enc.n_vocab)
        try:
            model.set_ranks(config.ranks)
        except ValueError as e:
            fail(f"--init_from={a.init_from}: {e}")
        return model.to(a.torch_device)
    else:
        try:
            model = from_pretrained(a.init_from, config.ranks, extra_tokens=len(marks))
        except (OSError, ValueError) as e:
            fail(f"--init_from={a.init_from}: {e}")
        if model.config.vocab_size != enc.n_vocab:
            mismatch(a.init_from, model.config.vocab_size - len(marks), enc.n_vocab - len(marks))

    def keep(step, where):
        stop = team.anyone(STOP)
        if half and (stop or step % (2 * EVERY) == 0):
            save(half, model, **where(), rng=seeding.rng_state())
            if stop:
                raise KeyboardInterrupt
    return pretrain(a, model.to(a.torch_device), enc, marks, world, progress, keep)


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
    team.start()
    a = parse(argv, __doc__)
    if a.resume:                                                     # the flags of the life that was interrupted
        a = resumed(a, argv)
    start = f"torchrun --nproc_per_node={team.SIZE}" if team.SIZE > 1 else "python"
    a.command = f"{start} sleep.py " + " ".join(shlex.quote(w) for w in argv)
    a.torch_device = pick_device(a)
    if a.threads:
        torch.set_num_threads(a.threads)
    if a.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    # no cache: one context holds the whole life, and autocast's copies of the weights would never see them learn
    with torch.autocast(a.torch_device.type, torch.bfloat16, enabled=a.dtype == "bfloat16", cache_enabled=False):
        if a.data == "clinc150":
            if team.SIZE > 1:
                fail("--data=clinc150 is lived by one process: start it with python, not torchrun")
            from bench import clinc150                               # the life on real text is a chapter of its own
            return clinc150.live(a)
        enc = tokenizer(a)
        marks = Marks(*(enc.encode_single_token(s) for s in SPECIAL))
        if a.ask:
            return question(a, enc, marks)
        run(a, enc, marks)


def question(a, enc, marks):
    """--ask: what the saved model answers, without and (if given) with a passage in its context."""
    path = os.path.join(a.out_dir, "checkpoint.pt")
    model, _ = load(path, a.torch_device)
    if model.config.vocab_size != enc.n_vocab:
        mismatch(path, model.config.vocab_size, enc.n_vocab)
    room = model.config.block_size - 32 - len(enc.encode_ordinary(a.ask))
    if room < 1:
        fail(f"--ask is too long: {len(enc.encode_ordinary(a.ask))} tokens, there is room for {model.config.block_size - 33}")
    parts = [""] if not a.context.strip() else ["", *fit([sentences(enc, a.context)], room)]
    for part in parts:
        context = enc.decode([t for s in part for t in s]) if part else ""
        text = answer(model, enc, marks, [(context, " " + a.ask.strip(), "")])[0].strip()
        print(("with the passage in context: " if context else "from memory: ") + text)


def run(a, enc, marks):
    start = time.time()
    world = W.make_world(a.world_seed, n_days=a.days, n_people=a.people, things=a.things)
    base_path, args_path = os.path.join(a.out_dir, "base.pt"), os.path.join(a.out_dir, "args.json")
    half = os.path.join(a.out_dir, "pretraining.pt")
    a.lock = store.occupy(a.out_dir, a.resume)
    if not a.resume:
        store.write_json(args_path, vars_of(a))
    print(f"{a.days} days x {a.people} people x 5 facts on {a.torch_device}, {torch.get_num_threads()} threads. Expect, on two "
          f"quiet CPU cores: pretraining about 1 minute, a night 12 to 15 seconds; recall about 0.98 every morning.")
    if a.resume and os.path.isfile(base_path):
        base, info = load(base_path, a.torch_device)
    else:
        t = time.time()
        base, info = born(a, enc, marks, world, half), {}
        info["pretrain"] = time.time() - t
        save(base_path, base, **info)
        for name in (half, half + ".before"):
            if os.path.exists(name) and not team.RANK:
                os.remove(name)
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


def on_interrupt(number, frame):
    """The first Ctrl-C (or a cluster's SIGTERM) lets the step finish and be saved; the second does not wait."""
    if STOP:
        raise KeyboardInterrupt
    STOP.append(number)
    print("\nfinishing this step and saving (once more to end at once)", file=sys.stderr, flush=True)


def guarded(argv):
    """main, where whatever can go wrong outside this program ends in one line."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_interrupt)
    try:
        main(argv)
    except KeyboardInterrupt:
        fail("interrupted: go on with --resume and the same --out_dir")
    except (OSError, ValueError) as e:
        full = isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EFBIG)
        fail(f"{e}" + (" (what was saved is whole: make room, then --resume goes on from there)" if full else ""))
    except (RuntimeError, MemoryError) as e:
        if team.broken(e):
            fail("another process of the team has ended: go on with --resume and the same --out_dir")
        if isinstance(e, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(e):
            fail("out of memory: lower --people, --quizzes, --replay_dreams, --n_layer or --n_embd")
        raise
    finally:
        team.end()


if __name__ == "__main__":
    guarded(sys.argv[1:])
