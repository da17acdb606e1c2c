"""
Knowledge incorporation, as SEAL (arXiv 2506.10943) and Language Models Need Sleep (arXiv
2606.03979) measure it on SQuAD: a self reads passages, sleeps, and is asked without them.

    python bench/squad.py --init_from=FOLDER --dtype=bfloat16       -> bench/results/squad.json
    python bench/squad.py --init_from=FOLDER --plan=h100            only what that would take
    python bench/squad.py --passages=world --init_from=out/base.pt  on the embedded world: a proof
    python bench/squad.py --quick                                   does everything run? a minute

n = 1: each passage by itself, from the base anew; n = all: all of them, one self, some a night.
A line of --passages: {"context", "questions": [{"question", "answer"}], maybe "title"}, as JSON.

    context        the base with the passage before it: no memory, a bound
    base           the base without it
    sft            next-token loss on the passages of the night, their sentences shuffled
    implications   the same on passages and implications: five lists a passage that the self writes
                   as in SEAL, or those of --edits=FILE: {"context_sha", "completions"} a line
    gate+sft       the night with hard labels: --divergence=sft --on_policy=0 --dream=0
    sleep          the night as it is

Equal, as in bench/baselines.py: the base, the passages, the tokens that go through the learner
(--tokens=0: as many as sleep's own nights took for these passages), Adam with warm-up and linear
decay for the rivals, Muon for experts. sft and implications learn a LoRA of --rank on all linear
layers, merged afterwards, as SEAL does; the nights an expert of --rank each. So many tokens may be
too many for sft: search its --lr and --tokens on other passages (train_rl_contexts.jsonl). What a
night could not learn is read again in the next; after the last night nothing is in the context.

An answer is graded by exact match, F1 (SQuAD v1.1) and "the true answer stands in it". A judge of
your own, --judge=COMMAND, gets a line {"question", "gold", "answer"} each on stdin and prints a
line 1 or 0 each; it may come later, for all answers are kept. Questions and true answers with no
room in an exam (data/gate.py: MAX_NEW) count as wrong; how many there are is said.

The answers of every self go to the result file at once, a self of several nights is saved every
night: the same command goes on where it stood, with more methods, another n or a judge, too.
"""
import json
import math
import os
import random
import re
import shlex
import sys
import time
from types import SimpleNamespace

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from data import run                                                 # first: torch takes seconds

import torch
from tqdm import tqdm

import sleep
from bench import baselines as B
from bench import stats
from bench.squad_text import (NAME, PAPER, edits_in, from_world, grade, judge, passages_in, sha,
                              table, text_of)
from data import exam, flags, plan, store, team, text, textfiles, weights
from data.engine import generate
from data.gate import MAX_NEW
from model import clone

METHODS = ("context", "base", "sleep", "gate+sft", "sft", "implications")
LEARN = METHODS[2:]                                         # sleep first: the others spend as much
LABELS = {"divergence": "sft", "on_policy": 0.0, "dream": 0}         # gate+sft
LISTS, IMPLIED, DOCS = 5, 256, 8    # of implications a passage; tokens of one; documents a step
LONGEST = 1024                      # tokens of a passage and its question, where the self has room
USUAL = 100_000                     # tokens a passage where there is no sleep to be equal to
PROMPT = ("Let's read the following passage and produce a list of implications derived directly or "
          "indirectly from the content.\n\nPassage:\n", "\n\nImplications:\n")       # as SEAL's
BEGIN = ("<|begin_of_text|>", "<|endoftext|>", "<|bos|>")  # of a text: Llama; GPT-2, Qwen; ours
APART = ("method", "contrast", "data", "data_dir", "days", "people", "out_dir", "resume", "chat",
         "ask", "context", "paper")         # flags of sleep.py that mean nothing here
SHARED = {name: (flags.PAPER.get(name, flag[0]), *flag[1:])        # sleep: the whole night
          for name, flag in flags.FLAGS.items() if name not in APART}
MACHINE = ("device", "deterministic", "threads", "plan")             # no result depends on these
BORN = ("seed", "world_seed", "dtype", "rank", *flags.GROUPS["the self"])     # the base on these
FLAGS = {  # name: (default, allowed, what it does); those in SHARED beside them
    "passages": ("data/squad_seal/eval200.jsonl", flags.TEXT, "a .jsonl file of passages and "
                 "questions; world: those of the embedded world, for a self born in it"),
    "n": ("1,all", flags.TEXT, "passages that one self reads, with commas; all: every one"),
    "methods": (",".join(METHODS), flags.TEXT, "which, with commas"),
    "passages_a_night": (8, (1, 10 ** 4), "of a self that reads more than one"),
    "limit": (0, flags.COUNT, "only the first so many passages; 0: all"),
    "edits": ("", flags.TEXT, "ready-made implications, a .jsonl file; none: the self writes them"),
    "tokens": (0, (0, 10 ** 12), "a passage, for sft and implications; 0: as many as sleep took"),
    "lr": (1e-3, flags.RATE, "peak learning rate of sft and implications"),
    "judge": ("", flags.TEXT, "a command that grades, too"),
    "work": ("out-squad", flags.TEXT, "folder of the base, and of selves of several nights"),
    "result": (os.path.join(stats.RESULTS, "squad.json"), flags.TEXT, "result file"),
    "quick": (False, flags.SWITCH, "two passages of the world, a small self"),
}
QUICK = {"passages": "world", "limit": 2, "passages_a_night": 1, "n_layer": 2, "n_embd": 64,
         "pretrain_steps": 400, "quizzes": 1, "seed_steps": 20, "threads": 1, "tokens": 4000}


def parse(argv):
    """(own flags, those of sleep.py with the machine set up for them: run.begin)."""
    if {"-h", "--help"} & set(argv):
        flags.parse(["-h"], f"{__doc__}\nAnd all flags of sleep.py about the self and its nights.",
                    FLAGS, NAME)
    o = flags.parse(argv, "", {**SHARED, **FLAGS}, NAME, QUICK)
    wrong = [m for m in o.methods.split(",") if m not in METHODS]
    if wrong:
        flags.fail(f"--methods: there is no {wrong[0][:40]!r}: {', '.join(METHODS)}", NAME)
    o.methods = [m for m in METHODS if m in o.methods.split(",")]
    if o.quick and o.result == FLAGS["result"][0]:
        o.result = os.path.join(o.work, "quick.json")
    a = run.begin([f"--{k}={int(v) if v is True or v is False else v}" for k, v in
                   ((k, getattr(o, k)) for k in SHARED)])
    a.data = "text"                                         # texts of others, for all that ask
    if team.SIZE > 1:
        flags.fail("one process only: share the methods out, with a --work and --result each", NAME)
    return o, a


def groups_of(n, passages):
    """The passages of each self, n consecutive ones: (n, [[passage]]). n: as it was typed."""
    total = len(passages)
    size = total if n == "all" else int(n) if n.isdecimal() and len(n) < 9 else 0
    if not 0 < size <= total or total % size:
        flags.fail(f"--n={n[:40]}: {total} passages can be shared out by all, by 1, or by what "
                   f"divides {total}", NAME)
    return size, [passages[k:k + size] for k in range(0, total, size)]


# --------------------------------------------------------------------------------------------------
# Nights

def days_of(o, method, group):
    """The passages of each day, of those that one self reads: [[passage]]."""
    size = o.passages_a_night if method in LEARN else len(group)
    return [group[k:k + size] for k in range(0, len(group), size)]


def night_of(method, o, data, today, tokens):
    """A night as in sleep.NIGHTS. today: its passages; tokens: a passage, for the rivals."""
    def sft(a, model, day, marks, i):
        def loss():
            return B.text_loss(model, random.choices(day.passages, k=DOCS), marks)
        return model, B.learn_low_rank(model, loss, tokens * len(today), o.lr, a.rank)

    def implications(a, model, day, marks, i):
        if o.edits:
            lists = [one for p in today for one in o.edits[p["context"]]]
        else:
            lists = implied(model, data, day.passages)
        more = [[point] for one in lists for point in points(data, one)]
        model, log = sft(a, model, day._replace(passages=day.passages + more), marks, i)
        return model, {**log, "implied": len(more)}

    def labels(a, model, day, marks, i):
        return sleep.asleep(SimpleNamespace(**{**vars(a), **LABELS}), model, day, marks, i)
    return {"sleep": sleep.asleep, "gate+sft": labels, "sft": sft,
            "implications": implications}.get(method, sleep.awake_all_night)


def implied(model, data, passages):
    """Lists of implications as texts, LISTS a passage, that the self writes: a continuation of
    PROMPT; none where the context has no room for one."""
    special = {s: data.enc.encode_single_token(s) for s in data.enc.special_tokens_set}
    first = [special[s] for s in BEGIN if s in special][:1]
    begin, end = (data.enc.encode_ordinary(part) for part in PROMPT)
    prompts = [first + begin + [t for s in passage for t in s] + end for passage in passages]
    room = model.config.block_size - max(map(len, prompts))
    if room < MAX_NEW:
        return []
    special = set(special.values())
    rows = generate(model, prompts, min(IMPLIED, room), n=LISTS, stop=special)
    return [data.enc.decode([t for t in row if t not in special]) for row in rows]


def points(data, implications):
    """The lines of a list of implications as ids, without their numbers; as long as there is
    room."""
    lines = (re.sub(r"^\s*(\d+[.)]|[-*])", "", line).strip() for line in implications.split("\n"))
    return [data.enc.encode_ordinary(" " + line)[:data.block_size - 1] for line in lines if line]


def counted(night, a, model, day, marks, i):
    """A night, and in its log the tokens that went through the model with gradients on."""
    trained, began = [], time.time()

    def count(module, args, out):
        trained.append(args[0].numel() * torch.is_grad_enabled())
    handle = model.wte.register_forward_hook(count)
    new, log = night(a, model, day, marks, i)
    handle.remove()
    new.wte._forward_hooks.clear()                           # a clone has taken it along
    kept = {k: log[k] for k in ("kept", "known", "moved", "undone", "loss", "implied") if k in log}
    return new, {**kept, "lost": log.get("lost", []), "trained": sum(trained),
                 "seconds": round(time.time() - began, 2)}


def lived(o, a, method, base, data, group, tokens):
    """One self from the base on through the nights of a group of passages: what the file says.

    Of several nights it is saved every night in the work folder, and picked up there. "next": what
    it said about the passages of each night the morning after, "asked": about all in the end."""
    days = days_of(o, method, group)
    data = data._replace(days=[text.Day([text_of(p) for p in today], []) for today in days])
    folder = os.path.join(o.work, f"{o.key}-{method}-{len(group)}-{group[0]['number']}")
    path = os.path.join(folder, "checkpoint.pt")
    model, state = clone(base), {"pending": [], "nights": [], "next": []}
    if len(days) > 1 and any(os.path.isfile(path + end) for end in ("", ".before")):
        model, state = sleep.load(path, a.torch_device)
    for i in range(len(state["nights"]), len(days)):
        run.stage(a, method, len(group), group[0]["number"], i)
        day, tried = sleep.wake(data, i, state["pending"])
        night = night_of(method, o, data, days[i], tokens)
        model, log = counted(night, a, model, day, data.marks, i)
        state["pending"] = sleep.left_over(day, log, tried)
        state["nights"].append({**log, "lost": len(log["lost"])})
        if len(days) > 1:
            state["next"] += asked(model, data, days[i])
            os.makedirs(folder, exist_ok=True)
            sleep.save(path, model, **state)
    return {"passages": [p["number"] for p in group], "nights": state["nights"],
            "next": state["next"], "asked": asked(model, data, group, method == "context")}


def asked(model, data, passages, read=False):
    """What a self says to the questions of passages, graded: a row each. read: with the passage
    before it. What has no room is not asked: "said" is None."""
    rows, items = [], []
    for p in passages:
        before = text_of(p) if read else ""
        for k, x in enumerate(p["questions"]):
            parts = before, " " + x["question"].strip(), " " + x["answer"].strip()
            context, question, gold = (len(data.enc.encode_ordinary(part)) for part in parts)
            fits = context + question <= data.block_size - MAX_NEW - 4 and gold < MAX_NEW
            rows.append({"passage": p["number"], "question": k, "said": None})
            items.append(text.Item(*parts, "") if fits else None)
    said = iter(exam.answers(model, data, [item for item in items if item]))
    truth = [x["answer"] for p in passages for x in p["questions"]]
    for row, item, gold in zip(rows, items, truth):
        row["said"] = next(said)[0] if item else None
        row.update(grade(row["said"], gold))
    return rows


# --------------------------------------------------------------------------------------------------
# The base, and what to expect

def settings_of(o, a, passages):
    """What all answers of a result file have in common; no name of a folder."""
    files = {"passages": sha(json.dumps(passages)), "edits": sha(json.dumps(o.edits)),
             "init_from": os.path.basename(os.path.normpath(a.init_from))}
    own = ("passages_a_night", "limit", "tokens", "lr")
    return {**{k: getattr(a, k) for k in SHARED if k not in MACHINE}, **files,
            **{k: getattr(o, k) for k in own}}


def base_folder(o, a):
    """Of the base of these flags and these weights, in the work folder."""
    paths = [a.init_from]
    if os.path.isdir(a.init_from):
        paths = sorted(os.path.join(a.init_from, name) for name in os.listdir(a.init_from))
    files = [(os.path.abspath(p), os.path.getmtime(p)) for p in paths if os.path.exists(p)]
    return os.path.join(o.work, f"base-{sha(json.dumps([[getattr(a, k) for k in BORN], files]))}")


def card_of(a, c, data, model):
    """The card of --plan, or this one, or this CPU: there a step of pretraining is tried."""
    if a.plan:
        return plan.card_of(a.plan)
    if a.torch_device.type == "cuda":
        found = torch.cuda.get_device_properties(a.torch_device).total_memory
        return plan.card_of(f"{found / plan.GB:.0f}")
    seconds = run.seconds_a_step(model, data, sleep.document_loss)
    model.requires_grad_(False)
    tflops = plan.step(c, 8, 160, 8 * 80, True) / seconds / 1e12
    return plan.Card(run.name_of(a.torch_device), math.inf, tflops / plan.MFU, 50)


def expectation(o, a, c, card, enc, selves):
    """One sentence, by data/plan.py. c: the Config; selves: [(method, passages)] to be lived; the
    rivals learn from as many tokens as sleep."""
    size, minutes, most = 2 if a.dtype == "bfloat16" else 4, 0.0, 0.0
    read = {p["context"]: text.sentences(enc, text_of(p)) for _, group in selves for p in group}
    days = [day for m, group in selves if m in LEARN for day in days_of(o, m, group)]
    for day in days:
        told, length = plan.size_of([[read[p["context"]] for p in day]])
        night = plan.night(c, len(day), told, min(length, LONGEST), a, size)
        minutes += plan.minutes(c, card, size, sum(night.flops.values()), night.steps, night.looks)
        most = max(most, sum(night.bytes.values()) / plan.GB)
    return (f"{len(selves)} selves, {len(days)} nights: expect about {run.spoken(60 * minutes)} "
            f"on {card.name}, and up to {most:.1f} GB")


def planned(o, a, groups, passages):
    """--plan: what a day and its night take (data/plan.py), and how long all of it."""
    days = [text.Day([text_of(p) for p in day], []) for day in days_of(o, "sleep", passages)]
    data = textfiles.newborn(a)._replace(days=days)
    c = sleep.config_of(a, data)
    if a.init_from != "scratch":
        c = weights.config_in(a.init_from, c.ranks, len(data.marks))
    plan.show(a, data, c)
    selves = [(m, group) for some in groups.values() for m in o.methods for group in some]
    print(expectation(o, a, c, card_of(a, c, data, None), data.enc, selves))


def born(o, a):
    """(data, base): the self before the first passage, made once for a work folder."""
    a.out_dir, a.resume = base_folder(o, a), True
    os.makedirs(a.out_dir, exist_ok=True)
    a.lock = store.occupy(a.out_dir)
    data = textfiles.newborn(a)
    done = os.path.isfile(os.path.join(a.out_dir, "base.pt"))
    start = None if done else sleep.born(a, data)
    if start and not start[1]:
        print("the base learns to read and to ask first, as in sleep.py", flush=True)
    base, _ = sleep.pretrained(a, start, data)
    return data._replace(block_size=min(LONGEST, base.config.block_size)), base


# --------------------------------------------------------------------------------------------------
# The file

def opened(o, argv, settings):
    """The result file to go on with, its provenance renewed; one of other settings is refused."""
    shown = [re.sub(r"^--(init_from|passages|edits|judge)=.*/", r"--\1=", w) for w in argv
             if not w.startswith(("--work", "--result", "--device", "--threads"))]
    file = stats.read(os.path.abspath(o.result)) or {"settings": settings, "runs": {}}
    other = [k for k in settings if file.get("settings", {}).get(k) != settings[k]]
    if other:
        flags.fail(f"{o.result} holds answers of other settings ({', '.join(other)}): name another "
                   "--result, or take the file away", NAME)
    return {**file, **stats.provenance(shlex.join(["python", "bench/squad.py", *shown]))}


def tokens_for(o, runs, k):
    """Tokens a passage for a rival: as asked for, or as many as the same self took that slept."""
    slept = runs.get("sleep", [])[k:k + 1]
    took = [sum(night["trained"] for night in one["nights"]) // len(one["passages"])
            for one in slept]
    return o.tokens or next((t for t in took if t), USUAL)


def main(argv):
    o, a = parse(argv)
    passages = from_world(a, o.limit) if o.passages == "world" else passages_in(o.passages, o.limit)
    passages = [{**p, "number": k} for k, p in enumerate(passages)]
    o.edits = edits_in(o.edits, passages) if o.edits else {}
    groups = dict(groups_of(n, passages) for n in o.n.split(","))
    settings = settings_of(o, a, passages)
    o.key = sha(json.dumps([settings, base_folder(o, a)]))
    if a.plan:
        return planned(o, a, groups, passages)
    file = opened(o, argv, settings)
    todo = [(n, m, k) for n in groups for m in o.methods for k in range(
        len(file["runs"].get(str(n), {}).get(m, [])), len(groups[n]))]
    if todo:
        data, base = born(o, a)
        selves = [(m, groups[n][k]) for n, m, k in todo]
        card = card_of(a, base.config, data, base)
        print(expectation(o, a, base.config, card, data.enc, selves), flush=True)
    bar = tqdm(total=sum(len(groups[n][k]) for n, _, k in todo), unit="passage", mininterval=1.0)
    for n, m, k in todo:
        runs = file["runs"].setdefault(str(n), {})
        unit = lived(o, a, m, base, data, groups[n][k], tokens_for(o, runs, k))
        runs.setdefault(m, []).append({**unit, "commit": stats.commit()})
        store.write_json(o.result, file)
        bar.update(len(groups[n][k]))
    bar.close()
    for n in groups:
        if o.judge:
            judge(o.judge, file["runs"][str(n)], passages)
        print("\n".join(table(n, file["runs"][str(n)], METHODS)))
    store.write_json(o.result, file)
    print(PAPER)


if __name__ == "__main__":
    flags.guarded(main, NAME)
