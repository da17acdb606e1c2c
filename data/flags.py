"""
The flags of sleep.py: what may be asked for, in what range, and what is said when it is not.

`--name=value` on the command line, `a.name` in the code. A wrong one ends the run with one line, before anything is written.
"""
import difflib
import json
import os
import sys
from types import SimpleNamespace

SWITCH, SHARE, RATE, TEXT = (0, 1), (0.0, 1.0), (0.0, 1000.0), None
COUNT, SOME, SEED = (0, 10 ** 6), (1, 10 ** 6), (-2 ** 62, 2 ** 62)
F_KINDS = ("forward", "reverse", "jsd")

FLAGS = {  # name: (default, allowed: words, or the least and the greatest number; what it does)
    "method": ("sleep", ("sleep", "none", "sft", "absorb"), "what the nights do"),
    "contrast": (1, SWITCH, "1: live none and sft beside sleep, from the same base"),
    "data": ("world", ("world", "clinc150"), "what is read by day"),
    "data_dir": ("data/clinc150", TEXT, "with --data=clinc150: the folder of train.tsv, val.tsv and test.tsv"),
    "days": (7, SOME, "days and nights of the life"),
    "stop": (0, COUNT, "end the life after this night (the world stays that of --days); 0: live all days"),
    "people": (8, SOME, "new people a day (5 facts each)"),
    "things": (2, (2, 5), "in an answer that is a list (what somebody loves, whom somebody works for)"),
    "seed": (1, SEED, "seed of weights and sampling"),
    "world_seed": (1, SEED, "seed of the world: who lives in it and what is true of them"),
    "out_dir": ("out", TEXT, "where checkpoints, log.jsonl and summary.json go"),
    "resume": (False, SWITCH, "go on with the life in --out_dir, from where it was interrupted"),
    "init_from": ("scratch", TEXT, "scratch, a checkpoint .pt of nanoSleep, or GPT-2's .safetensors file or its folder"),
    "device": ("auto", ("auto", "cpu", "cuda", "mps"), "where to compute"),
    "dtype": ("float32", ("float32", "bfloat16"), "bfloat16: autocast"),
    "deterministic": (False, SWITCH, "on a GPU: only kernels that give the same bits every time (slower)"),
    "threads": (0, (0, 4096), "CPU threads; 0: as many as torch likes"),
    "ask": ("", TEXT, "a question for the model saved in --out_dir"),
    "context": ("", TEXT, "with --ask: a passage to read first"),
    # pretraining
    "pretrain_steps": (900, SOME, "steps of 16 documents"),
    "n_layer": (3, (1, 256), "blocks"), "n_head": (3, (1, 256), "heads of 32"), "n_embd": (96, (8, 16384), "width"),
    "lr_muon": (0.03, RATE, "peak learning rate of matrices (Muon)"),
    "lr_adam": (0.04, RATE, "peak learning rate of embeddings, gains and convolutions (AdamW)"),
    # the night: Knowledge Seeding
    "views": (4, SOME, "shuffled readings of each passage that the teacher averages over"),
    "quizzes": (6, SOME, "documents of questions sampled for each view"),
    "temperature": (0.85, (0.0, 100.0), "of the self that asks itself: higher asks in more ways, and misspells more names"),
    "replay_dreams": (320, COUNT, "documents the old self dreams each night"),
    "seed_steps": (220, SOME, "distillation steps"),
    "seed_lr": (0.18, RATE, "peak learning rate of the new expert (Muon)"),
    "rank": (32, (1, 16384), "rank of a nightly expert"),
    "divergence": ("forward", (*F_KINDS, "sft"), "off-policy F; sft: hard labels instead"),
    "divergence_on": ("reverse", F_KINDS, "on-policy F"),
    "on_policy": (0.25, SHARE, "share of on-policy steps in the last 30 %; 0: none"),
    "alpha": (0.9, SHARE, "weight of the divergence against imitation on policy; --imitate=0 makes it 1"),
    "gamma": (0.5, SHARE, "semantic share of the imitation reward; the rest is lexical"),
    "imitate": (1, SWITCH, "0: no Learning to Imitate"),
    "expand": (1, SWITCH, "0: train all MLP weights instead of a new expert"),
    "gate": (1, SWITCH, "0: one expert that is always awake, protected by replay alone"),
    "replay": (1, SWITCH, "0: no replay dreams"),
    "replay_weight": (8.0, RATE, "weight of the replay loss where there is no gate"),
    "tolerance": (0.5, RATE, "a night that moves the old self's own dreams by more nats a token than this is undone"),
    # the night: Dreaming
    "dream": (1, SWITCH, "0: no second stage"),
    "dreams": (24, SOME, "dreams chosen by importance"),
    "dreams_random": (8, COUNT, "dreams chosen at random beside them"),
    "dream_steps": (20, COUNT, "distillation steps on the chosen dreams"),
    "select": ("cosine", ("cosine", "norm", "random"), "importance: cosine to the self-made quiz, or the paper's gradient norm"),
    "budget": (0, COUNT, "learn only this many dreams a night, chosen by --select; 0: all that pass the screen"),
    "truth": (1, SWITCH, "0: no truth filter, repeats allowed"),
    "random_expert": (0, SWITCH, "1: one extra random expert while dreaming"),
    "writer": (1, SWITCH, "0: the writer of dreams is not trained by ReST-EM"),
    "curriculum": (1, SWITCH, "0: draw dreams evenly instead of where progress is possible"),
    # real text (--data=clinc150)
    "base_intents": (45, SOME, "intents the base is trained on; then 15 new ones a day"),
    "split": ("test", ("test", "val"), "split of the exam"),
    "class_base_steps": (1200, COUNT, "pretraining steps of 32 documents"),
    "wake_steps": (120, SOME, "steps of the fast level on the day's text"),
    "class_steps": (150, SOME, "distillation steps of the night"),
    "class_dreams": (80, SOME, "sentences dreamt for each new intent"),
    "class_tokens": (24, SOME, "tokens of a dreamt sentence at most"),
    "dreamt_topics": (0, SWITCH, "1: the router hears dreams of all intents every night, not the day's text by day"),
    "class_replay": (30, SOME, "sentences dreamt for each old intent, with --dreamt_topics=1"),
    # levels
    "period": (0, COUNT, "every so many nights the fast level is consolidated into one slow expert; 0: never"),
    "rank_slow": (96, (1, 16384), "rank of a slow expert"),
    "slow_steps": (800, SOME, "distillation steps from level to level"),
}


def fail(message, script="sleep.py"):
    print(f"{script}: {message}", file=sys.stderr)
    raise SystemExit(2)


def parse(argv, doc="", flags=FLAGS, script="sleep.py", quick=None):
    """--name=value flags -> a namespace. Anything else is refused with the nearest valid flag, before anything is written.

    flags: {name: (default, allowed, what it does)}, those of sleep.py or of a script of bench/. quick: the defaults that
    --quick puts in their place.
    """
    given = {}
    for word in argv:
        if word in ("-h", "--help"):
            lines = (f"  {f'--{k}={v}':<26} {text}{choices(r)}" for k, (v, r, text) in flags.items())
            print(doc + "\nflags:\n" + "\n".join(lines))
            raise SystemExit(0)
        name, eq, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in flags:
            near = difflib.get_close_matches(name, flags, 1, 0.4)
            fail(f"unknown flag {word!r}" + (f": did you mean --{near[0]}=...?" if near else "") + " (--help lists all)", script)
        if not eq and type(flags[name][0]) is not bool:
            fail(f"--{name} needs a value: --{name}={flags[name][0]}", script)
        given[name] = allowed(name, value if eq else "1", flags, script)
    args = {**{k: v for k, (v, *_) in flags.items()}, **(quick if quick and given.get("quick") else {}), **given}
    if flags is FLAGS and max(args["days"], 28) * args["people"] > 4000:
        fail(f"--days={args['days']} --people={args['people']}: the world has room for 4000 new people")
    return SimpleNamespace(**args)


def choices(range_):
    return f" ({' | '.join(range_)})" if range_ and isinstance(range_[0], str) else ""


def allowed(name, text, flags=FLAGS, script="sleep.py"):
    """The value of a flag, of the type of its default and inside its range: words, two numbers, or None (any text)."""
    default, range_, _ = flags[name]
    kind = type(default)
    if range_ is None:
        return text
    if kind is str:
        return text if text in range_ else fail(f"--{name}={text}: choose one of {', '.join(range_)}", script)
    try:
        number = int(text) if kind is bool else kind(text)
    except ValueError:
        fail(f"--{name}={text}: expected {'a number' if kind is float else 'a whole number'}", script)
    if not range_[0] <= number <= range_[1]:                         # false for nan, too
        fail(f"--{name}={text}: must lie between {range_[0]} and {range_[1]}", script)
    return kind(number)


def numbers(text, name, script, least=0):
    """"1,2,3" -> [1, 2, 3]."""
    if not all(word.isdecimal() and int(word) >= least for word in text.split(",")):
        fail(f"--{name}={text}: expected whole numbers from {least} on, with commas between them", script)
    return [int(word) for word in text.split(",")]


def guarded(main, script):
    """main(argv) of a script of bench/ that keeps what it has finished: whatever can go wrong outside it ends in one line."""
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        fail("interrupted: run the same command again, finished lives are kept", script)
    except (OSError, ValueError) as e:
        fail(str(e), script)


def resumed(a, argv):
    """The flags of the life in --out_dir. They were checked when it began; a damaged file is refused."""
    path = os.path.join(a.out_dir, "args.json")
    if not os.path.isfile(path):
        fail(f"nothing to resume in {a.out_dir}: no args.json there; start a life without --resume")
    given = {w[2:].partition("=")[0] for w in argv} - {"resume", "out_dir"}
    if given:
        fail(f"--resume goes on with the flags the life was started with: leave out --{sorted(given)[0]}")
    try:
        with open(path) as f:
            old = json.load(f)
        old = {k: allowed(k, str(int(old[k]) if isinstance(old[k], bool) else old[k])) for k in FLAGS}
    except (ValueError, KeyError, TypeError) as e:
        fail(f"{path} is damaged ({type(e).__name__}: {e}): restore it or live the life again")
    return SimpleNamespace(**{**old, "resume": True, "out_dir": a.out_dir})
