"""
sleep.py: the life of a language model that sleeps. Flat, in the order of the
picture; the last chapter of nanoSleep.

    pretrain ─► day 1: wake ─► night 1: seed ► dream ─► exam ─► day 2 ...
                reads the day,  consolidate, improve    R[i, j]: after night i,
                in its context  then reset   by RL      of day j; old; reading

    python sleep.py                                    the default life
    python sleep.py --paper                            its nights as the paper has them: dreaming
    python sleep.py --resume --out_dir=out             go on where it stopped
    python sleep.py --ask="Where does Ada Bram live?"  question a saved self
    python sleep.py --chat                             tell, sleep, ask again
    python sleep.py --data=text --data_dir=NOTES       days of your own: data/textfiles.py
    torchrun --nproc_per_node=2 sleep.py               processes, one life
    python sleep.py --help                             every flag
"""
from data import run                                        # first: it makes a Ctrl-C one line

import math
import os
import sys
import time
from dataclasses import asdict

import torch
import torch.nn.functional as F
from tqdm import tqdm

import seed
from data import (chat, classes, diary, exam, flags, gate, kernels, languages, notes, plan,
                  scaffold, store, team, text, textfiles, weights, world)
from model import ARCHITECTURES, FAST, SLOW, GPT, Config, clone, widen

VERSION = 4                         # of the checkpoints
BATCH = 8                           # documents a pretraining step
LR_MUON, LR_ADAM = 0.02, 0.03       # peak rates: matrices inside the blocks; all the rest
RISE, FALL = 30, 0.6                # steps of warm-up; the last share, in which the rates fall
KEEP = 300                          # steps between two half-way checkpoints of pretraining
SFT_STEPS, SFT_LR = 60, 1e-3        # method sft: what most people would do
STUDIOUS = 4                        # times the rank, where days are studied
ROOM = 96                           # tokens of a context left free for a question and its answer
CROWDED = 16                        # passages that one expert can hold
PATIENCE = 3                        # nights that a passage is tried before it is given up


def main(argv):
    a = run.begin(argv, __doc__)
    data = DATA[a.data](a)
    if a.plan:
        return plan.show(a, data, config_of(a, data))
    if a.ask:
        model, _ = load(os.path.join(a.out_dir, "checkpoint.pt"), a.torch_device)
        return exam.question(fits(model, data, a.out_dir), data, a)
    if a.chat:
        model, _ = load(chat.begins(a), a.torch_device)
        return chat.talk(a, fits(model, data, a.out_dir), data, asleep, save)
    a.lock = store.occupy(a.out_dir)
    born_already = a.resume and os.path.isfile(os.path.join(a.out_dir, "base.pt"))
    model = None if born_already else born(a, data)         # all that can fail comes first
    run.claim(a)                                            # an earlier life is moved away
    run.announce(a, data, model, document_loss)
    base, seconds = pretrained(a, model, data)
    lives = [(a.method, a.out_dir)]
    if a.contrast and a.method == "sleep":
        lives += [(name, os.path.join(a.out_dir, name)) for name in flags.BESIDE]
    summaries = [live(a, name, base, data, folder, seconds) for name, folder in lives]
    diary.report(summaries, a, data)


DATA = {"world": world.load, "text": textfiles.load, "languages": languages.load,
        **dict.fromkeys(classes.TABLES, classes.load)}


# --------------------------------------------------------------------------------------------------
# Birth: weights, and what is known before the first day

def config_of(a, data):                                         # of a self from scratch
    length = data.block_size + 4 * text.spelt(data.marks)           # three questions, <bos>, <ask>
    return Config(vocab_size=data.enc.n_vocab, block_size=length, n_layer=a.n_layer,
                  n_head=a.n_embd // 32, n_embd=a.n_embd, d_ff=4 * a.n_embd,
                  ranks=ranks_of(a, data), listens=data.listen, **ARCHITECTURES[a.arch])


def born(a, data):
    """The self before pretraining, or whole from --init_from: (model, is it whole?)."""
    config = config_of(a, data)
    run.stage(a, "weights")
    if flags.foreign(a):
        new, dtype = 4 * (not flags.own_words(a)), getattr(torch, a.dtype)     # the four marks
        model = weights.from_pretrained(a.init_from, config.ranks, extra_tokens=new, dtype=dtype)
    elif a.init_from == "scratch":
        model = scaffold.newborn(config)
    else:
        model, _ = load(a.init_from, "cpu")
        model.set_ranks(config.ranks)
    model = fits(model, data, a.init_from).to(a.torch_device)
    learnt = len(model.metric)
    if a.directions and learnt not in (0, min(a.directions, model.config.n_embd)):
        flags.fail(f"{a.init_from} tells things apart in {learnt} directions, learnt "
                   f"once: leave out --directions={a.directions}")
    model.config.recompute = a.recompute
    if a.widen:
        model = widen(model, n_embd=a.widen, n_head=a.widen // 32, d_ff=4 * a.widen)
    return model, flags.whole(a)                            # else the format has to be learnt first


def ranks_of(a, data):
    """Ranks of the experts of each level, that of throw-away copies first; a studied day is more
    than the context could hold. A move gives a slower level what it needs."""
    fast = a.rank * (STUDIOUS if data.listen == "text" else 1)
    return a.rank, fast, *[3 * a.rank] * max(1, a.levels - 1)


def fits(model, data, source):
    if model.config.vocab_size != data.enc.n_vocab:
        flags.fail(f"{source} has a vocabulary of {model.config.vocab_size} tokens, the tokenizer "
                   f"of --data={data.name} has {data.enc.n_vocab}: they do not belong together")
    return model


def pretrained(a, start, data):
    """(base, seconds it took): the self before its first day. With --resume, as far as it came."""
    path, half = (os.path.join(a.out_dir, name) for name in ("base.pt", "pretraining.pt"))
    if start is None:
        base, info = load(path, a.torch_device)
        return base, info["seconds"]
    (model, whole), began = start, time.time()
    if not whole:
        pretrain(a, model, data, half)
    model.requires_grad_(False).eval()
    if not len(model.metric):
        run.stage(a, "listening")
        gate.learn_to_listen(model, data.marks, data.heard, a.directions)
    seconds = time.time() - began
    save(path, model, seconds=seconds)
    store.remove(half)
    print(f"pretrained {model.n_params():,} parameters in {seconds:.0f} s", flush=True)
    return model, seconds


def pretrain(a, model, data, half):
    """Learn to read, to ask, and what the old people are like. Every KEEP steps it is saved.

    Documents are a function of the step, so what was saved goes on to the same bits.
    """
    opts, first = optimizers(model.requires_grad_(True)), 0
    if a.resume and os.path.isfile(half):
        saved, info = load(half, a.torch_device)
        model.load_state_dict(saved.state_dict())
        first = info["step"]
        for opt, state in zip(opts, info["opts"]):
            opt.load_state_dict(state)
    bar = tqdm(range(first, a.pretrain_steps), desc="pretrain", unit="step", leave=False,
               initial=first, total=a.pretrain_steps, mininterval=1.0)
    for step in bar:
        if step % KEEP == 0:
            if step > first:
                save(half, model, step=step, opts=[opt.state_dict() for opt in opts])
            if run.wants_to_stop():
                raise KeyboardInterrupt
            run.stage(a, "pretrain", step, own=True)
        share = step / a.pretrain_steps
        docs = [data.document(run.random, share) for _ in range(BATCH)]
        scaffold.stand(model, step, a.pretrain_steps)
        loss = document_loss(model, *text.pad_documents(docs))
        descend(model, opts, loss, min(1.0, (step + 1) / RISE, (1 - share) / FALL + 0.02))
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.2f}")
    scaffold.take_down(model)


def document_loss(model, ids, weight):
    """Weighted next-token loss. ids (B, T), weight (B, T-1) on the CPU: no waiting for a device."""
    at = weight.flatten().nonzero()[:, 0]                   # only what is scored becomes logits
    ids, at, w = (t.to(model.device) for t in (ids, at, weight.flatten()[at]))
    h = model.hidden(ids[:, :-1]).flatten(0, 1)[at]
    nll = F.cross_entropy(model.logits(h).float(), ids[:, 1:].flatten()[at], reduction="none")
    return (nll * w).sum() / w.sum()


def optimizers(model):
    """Muon for the matrices inside the blocks, AdamW for embeddings, gains and convolutions; a
    tenth of its rate for biases and learned positions, a third for the words beside these."""
    inner, slow, others = [], [], []
    for name, p in model.named_parameters():
        matrix = name.startswith("blocks.") and p.ndim == 2 and "conv" not in name
        gentle = name.endswith("bias") or name == "wpe.weight"
        (inner if matrix else slow if gentle else others).append(p)
    rate = LR_ADAM / 3 if getattr(model, "wpe", None) else LR_ADAM
    groups = [{"params": others, "lr": rate}, {"params": slow, "lr": LR_ADAM / 10}]
    if inner[0].is_cuda:                # torch's rounds to bfloat16, which many a CPU is slow at
        muon = torch.optim.Muon(inner, lr=LR_MUON, weight_decay=0.0)
    else:
        muon = kernels.Muon(inner, lr=LR_MUON)
    opts = [muon, torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)]
    for group in (group for opt in opts for group in opt.param_groups):
        group["peak"] = group["lr"]
    return opts


def descend(model, opts, loss, share, clip=1.0):
    """One clipped step of all weights down the gradient, at a share of the peak rates."""
    for opt in opts:
        opt.zero_grad()
        for group in opt.param_groups:
            group["lr"] = group["peak"] * share
    loss.backward()
    team.average_gradients(model.parameters())
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    for opt in opts:
        opt.step()


# --------------------------------------------------------------------------------------------------
# A life: days, nights, mornings

def live(a, method, base, data, folder, pretraining):
    """One life from the base on; saved every morning, and picked up there. Returns its summary."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "checkpoint.pt")
    if a.resume and any(os.path.isfile(path + end) for end in ("", ".before")):
        model, state = load(path, a.torch_device)
    else:
        model = clone(base, share=method == "sleep" and a.expand)
        before = {k: exam.share(exam.sit(model, data, v), [k]) for k, v in data.always.items()}
        state = {"R": [], "nights": [], "graded": [], "pending": [], "before": before,
                 "params": model.n_params(), "seconds": {"pretrain": pretraining}}
        save(path, model, **state)
    for i in tqdm(range(len(state["R"]), len(data.days)), desc=method, unit="night", leave=False):
        run.stage(a, method, i)
        day, state["pending"] = wake(data, i, state["pending"])
        notes.begin(state["pending"])
        model, log = spend(state["seconds"], "night", NIGHTS[method], a, model, day, data.marks, i)
        state["pending"] = left_over(day, log, state["pending"])
        morning = spend(state["seconds"], "exam", examine, model, data, i)
        remember_morning(state, log, morning, method)
        diary.note(state, model, data)
        save(path, model, **state)
        diary.publish(folder, state, method)                # log.jsonl and life.html
        if run.wants_to_stop():
            raise KeyboardInterrupt
    summary = summarise(a, method, model, state)
    store.write_json(os.path.join(folder, "summary.json"), summary)
    return summary


def spend(seconds, what, function, *args):
    """Call a function and add the time it takes to seconds[what]."""
    began = time.time()
    result = function(*args)
    seconds[what] = seconds.get(what, 0.0) + time.time() - began
    return result


def wake(data, i, pending):
    """The day is read: what was left over of earlier days, oldest first, then what is new.

    Returns (Day, [(passage, nights it was tried)]); a passage is a list of sentences of ids.
    """
    today = [text.sentences(data.enc, passage) for passage in data.days[i].passages]
    pending = [] if data.days[i].study else pending      # what was studied is gone with the day
    tried = pending + [(p, 0) for p in text.fit(today, data.block_size - ROOM)]
    return data.days[i]._replace(passages=[p for p, _ in tried]), tried


def left_over(day, log, tried):
    """What a night could not learn stays in the context for the next; it is given up aloud."""
    lost = [(tried[n][0], tried[n][1] + 1) for n in log.get("lost", [])]
    given_up = [p for p, nights in lost if nights >= PATIENCE]
    if given_up:
        tqdm.write(f"  given up after {PATIENCE} nights: {len(given_up)} passages that the self "
                   "could not learn (log.jsonl says in which nights)")
    log["given_up"] = len(given_up)
    return [(p, nights) for p, nights in lost if nights < PATIENCE]


def asleep(a, model, day, marks, i):
    """Method sleep: a night, and where a period ends the moves from level to level.

    A night gone wrong is undone: the self wakes as yesterday's, the day stays in its context.
    """
    yesterday = clone(model, a.expand)
    try:
        log = in_cycles(a, model, day, marks)
    except (seed.RestlessNight, torch.linalg.LinAlgError) as e:
        tqdm.write(f"  night {i + 1} is undone: {e}")
        return yesterday, {"undone": str(e), "lost": list(range(len(day.passages)))}
    return move_levels(a, model, log, marks, i)


def move_levels(a, model, log, marks, i):
    """Every --period^k nights the k-th level moves into the next slower one ([S] 2.2).

    A move gone wrong is undone: the level keeps its experts until its next period ends.
    """
    for level in range(FAST, len(model.config.ranks) - 1) if may_move(a, model) else ():
        if (i + 1) % a.period ** (level - FAST + 1):
            break
        before = clone(model, share=True)
        try:
            move = seed.consolidate(model, level, marks, a)
        except (seed.RestlessNight, torch.linalg.LinAlgError) as e:
            tqdm.write(f"  level {level} stays as it is after night {i + 1}: {e}")
            model, move = before, {"level": level, "undone": str(e)}
        log["moves"] = [*log.get("moves", []), move]
        if "undone" in move:
            break                                           # what is slower waits for it
    return model, log


def may_move(a, model):
    """Are there levels to move between? Things are asked about by name: topics and skills stay."""
    return a.period and a.levels > 1 and model.config.listens == "name"


def in_cycles(a, model, day, marks):
    """A crowded day is slept on in several cycles of a night, each with an expert of its own."""
    if day.study or len(day.passages) <= CROWDED:
        return seed.night(model, day, marks, a)
    n, logs = math.ceil(len(day.passages) / CROWDED), []
    bounds = [len(day.passages) * k // n for k in range(n + 1)]
    for first, last in zip(bounds, bounds[1:]):
        log = seed.night(model, day._replace(passages=day.passages[first:last]), marks, a)
        logs.append({**log, "lost": [first + p for p in log["lost"]]})
    kept = sum(log["kept"] for log in logs)
    known = sum(log["known"] * log["kept"] for log in logs) / kept
    lost = [p for log in logs for p in log["lost"]]
    return {**logs[-1], "cycles": n, "kept": kept, "known": known, "lost": lost}


def fine_tune(a, model, day, marks, i):
    """Method sft: next-token loss on the day's text, all weights."""
    opt = torch.optim.AdamW(model.requires_grad_(True).parameters(), lr=SFT_LR, weight_decay=0.0)
    if day.study:
        model.reset(SLOW)                                   # it has no gate: the things of the base
    for _ in range(SFT_STEPS):
        views = seed.dream.views_of(day.passages, marks, run.random, 1)
        docs = run.random.sample(day.study, min(seed.BATCH, len(day.study)))
        docs = docs or [(view, [1.0] * len(view)) for view in views]
        loss = document_loss(model, *text.pad_documents(docs))
        opt.zero_grad()
        loss.backward()
        team.average_gradients(model.parameters())
        opt.step()
    model.requires_grad_(False)
    return model, {"loss": float(loss.detach())}


def awake_all_night(a, model, day, marks, i):
    """Method none: the context ends, the day is forgotten."""
    return model, {}


NIGHTS = {"sleep": asleep, "sft": fine_tune, "none": awake_all_night}      # a bench may add its own


# --------------------------------------------------------------------------------------------------
# Morning

def examine(model, data, i):
    """The exams of the days so far as they are true today, and what is asked every morning."""
    asked = range(i + 1) if exam.of_all_days(i, len(data.days)) else [i]
    days = {j: exam.sit(model, data, data.exams(j, i)) for j in asked}
    return days, exam.sit(model, data, [x for items in data.always.values() for x in items])


def remember_morning(state, log, morning, method):
    """Write a morning's exams into the state of the life, and print a line."""
    (days, always), i = morning, len(state["R"])
    row = [exam.share(days[j]) if j in days else None for j in range(i + 1)]
    state["R"].append(row + [None] * (len(state["R"][0]) - len(row) if state["R"] else 0))
    state["graded"] = [*state["graded"][:i], dict(days[i])]
    if len(days) > i:
        state["end"] = [dict(graded) for graded in [*days.values(), always]]
    others = {k: exam.share(always, [k]) for k in state["before"]}
    state["nights"].append({"night": i + 1, "recall": row[-1], **others, **log})
    tqdm.write(f"  {method} {i + 1:>2}: {exam.in_a_line(row, others)}")


def summarise(a, method, model, state):
    R = [row + [None] * (len(state["R"]) - len(row)) for row in state["R"]]
    last = state["nights"][-1]
    known = {k: {f"{k}_before": v, f"{k}_after": last[k]} for k, v in state["before"].items()}
    seconds = {k: round(v, 2) for k, v in state["seconds"].items()}
    return {"method": method, "data": a.data, "seed": a.seed, "world_seed": a.world_seed,
            "days": len(R), "R": R, **exam.metrics(R),
            **{k: v for pair in known.values() for k, v in pair.items()},
            "kinds": exam.kinds_of(state["graded"], state["end"]),
            "params_before": state["params"], "params_after": model.n_params(),
            "seconds": {**seconds, "total": round(sum(seconds.values()), 2)}, "command": a.command,
            "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
            "device": run.name_of(a.torch_device), "threads": torch.get_num_threads(),
            "processes": team.SIZE}


# --------------------------------------------------------------------------------------------------
# Checkpoints

def save(path, model, **info):
    """Weights and where the life stands: never half a checkpoint, the one before is kept."""
    store.save(path, {"version": VERSION, "config": asdict(model.config),
                      "model": model.state_dict(), **info})


def load(path, device):
    """A checkpoint -> (model, all else). One clear line if it is none; the file stays as it is."""
    try:
        data, warning = store.load(path, device)
        if data["version"] != VERSION:
            flags.fail(f"{path} is of version {data['version']}, this is version {VERSION}: live "
                       "the life again")
        model = weights.held_in(GPT(Config(**data["config"])), data["model"]["wte.weight"].dtype)
        model.load_state_dict(data.pop("model"))
    except FileNotFoundError:
        flags.fail(f"no checkpoint at {path}: run a life first, or name its folder with --out_dir")
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as e:
        what = e if isinstance(e, ValueError) else f"{path} is no checkpoint of this model"
        flags.fail(f"{what}: restore it or live the life again")
    if warning:
        flags.say(warning)
    model.to(device).requires_grad_(False).eval()
    return model, {k: v for k, v in data.items() if k not in ("version", "config")}


if __name__ == "__main__":
    run.guarded(main)
