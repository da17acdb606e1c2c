"""
The flags of sleep.py: what may be asked for, in what range, and what is said when it is not.

`--name=value` on the command line, `a.name` in the code. A wrong one ends the run with one line,
before anything is written. The scripts of bench/ have tables of their own, read by the same code.
"""
import difflib
import json
import os
import shlex
import sys
import textwrap
from types import SimpleNamespace

# what is allowed: words; the least and the greatest number (and a step); None: any text
SWITCH, SHARE, RATE, TEXT = (0, 1), (0.0, 1.0), (0.0, 1000.0), None
COUNT, SOME, SEED = (0, 10 ** 6), (1, 10 ** 6), (-2 ** 62, 2 ** 62)
HEADS, OR_NONE = (32, 16384, 32), (0, 16384, 32)                 # a head is 32 wide
PEOPLE = 4000                                                    # new people a world has room for
WIDTH = 80                                                       # columns of a terminal

GROUPS = {  # heading: {name: (default, allowed, what it does)}
    "the life": {
        "method": ("sleep", ("sleep", "none", "sft"), "what the nights do"),
        "contrast": (1, SWITCH, "1: live none and sft beside sleep, from the same base"),
        "data": ("world", ("world", "text", "languages", "clinc150", "dbpedia", "banking77"),
                 "what is read by day; text: your own notes"),
        "data_dir": ("", TEXT,
                     "folder of the files of --data; none given: data/ and its name. Of text: a "
                     "file NAME.txt a day, blank lines between passages; beside it, if it is to "
                     "have an exam, NAME.tsv: question<TAB>answer, a line each"),
        "days": (7, SOME, "days and nights; of text all files, unless fewer are asked for"),
        "people": (8, SOME, "new people a day (--data=world)"),
        "seed": (1, SEED, "of weights and sampling"),
        "world_seed": (1, SEED, "of the world: who lives in it and what is true of them"),
    },
    "the run": {
        "out_dir": ("out", TEXT, "where checkpoints, log.jsonl, summary.json and life.html go"),
        "resume": (False, SWITCH, "go on with the life in --out_dir, where it was interrupted"),
        "device": ("auto", ("auto", "cpu", "cuda", "mps"), "where to compute"),
        "dtype": ("float32", ("float32", "bfloat16"),
                  "bfloat16: autocast, and foreign weights are held in it"),
        "recompute": (False, SWITCH, "blocks again in the backward pass: less memory, more time"),
        "deterministic": (False, SWITCH, "on a GPU: the same bits every time (slower)"),
        "threads": (0, (0, 4096), "CPU threads; 0: as many as torch likes"),
        "plan": ("", TEXT, "only say what the life would take on a card: h100, or its gigabytes"),
    },
    "a question for the self saved in --out_dir": {
        "chat": (False, SWITCH, "talk to it: tell, ask, let it sleep, ask again"),
        "ask": ("", TEXT, "the question"),
        "context": ("", TEXT, "a passage to read before it"),
    },
    "the self": {
        "init_from": ("scratch", TEXT,
                      "scratch, a checkpoint .pt of nanoSleep, or a folder with the .safetensors, "
                      "config.json and tokenizer of a GPT-2, Llama 3, Qwen 2.5 or 3"),
        "format": ("auto", ("auto", "marks", "own"),
                   "what stands between passage, question and answer: four marks, learnt first; or "
                   "the model's own words, nothing to learn (data/text.py). auto: own for the "
                   "weights of others with --data=text"),
        "arch": ("ours", ("ours", "gpt2", "llama", "qwen3"),
                 "of a self from scratch: ours, or as others are built, without a convolution"),
        "pretrain_steps": (4200, SOME, "steps of 8 documents"),
        "n_layer": (4, (1, 256), "blocks"),
        "n_embd": (128, HEADS, "width; a head is 32 wide"),
        "widen": (0, OR_NONE, "width the self grows to before its life; 0: it does not grow"),
    },
    "the night: Knowledge Seeding": {
        "quizzes": (4, SOME, "documents of questions sampled for each view of a passage"),
        "seed_steps": (0, COUNT, "distillation steps; 0: as many as there are things to learn"),
        "rank": (32, (1, 16384), "rank of a nightly expert"),
        "paper": (False, SWITCH, "the whole night of the paper, dearer and no better here: "
                  "--divergence=forward --on_policy=0.25 --dream=1"),
        "divergence": ("sft", ("forward", "reverse", "jsd", "sft"),
                       "from teacher to student; sft: hard labels instead"),
        "on_policy": (0.0, SHARE, "share of on-policy steps at the end; 0: none"),
        "imitate": (1, SWITCH, "0: no Learning to Imitate"),
        "expand": (1, SWITCH, "0: train all MLP weights instead of a new expert"),
        "gate": (1, SWITCH, "0: one expert that is always awake, protected by replay alone"),
        "replay": (1, SWITCH, "0: no replay dreams"),
    },
    "the night: Dreaming": {
        "dream": (0, SWITCH, "1: a second stage, in which dreams are tried on copies"),
        "writer": (1, SWITCH, "0: the writer of dreams is not trained by ReST-EM"),
        "curriculum": (1, SWITCH, "0: draw dreams evenly, not where progress is possible"),
        "select": ("cosine", ("cosine", "norm", "random"),
                   "importance: cosine to the self-made quiz, or the paper's gradient norm"),
        "budget": (0, COUNT, "dreams a night learns from; 0: all that pass the screen"),
        "random_expert": (0, SWITCH, "1: a random expert is awake in half of the dreams"),
    },
    "levels of memory": {
        "levels": (4, (1, 8), "of memory, fast to slow; each moves into the next slower one"),
        "period": (0, COUNT, "nights from one move of the fast level to the next, say 7; the level "
                   "after it moves every period^2 nights, and so on; 0: never"),
        "directions": (0, COUNT, "in which the gate tells things apart, say 32: less to keep of "
                       "each in a long life; 0: as many as the self is wide"),
    },
}
FLAGS = {name: flag for group in GROUPS.values() for name, flag in group.items()}
PAPER = {"divergence": "forward", "on_policy": 0.25, "dream": 1}        # what --paper stands for
ASKING = {"ask", "context", "chat", "out_dir", "device", "dtype", "deterministic", "threads"}
BESIDE = ("none", "sft")                # lives that --contrast adds, in folders of these names


# --------------------------------------------------------------------------------------------------
# Saying so

def say(message, script="sleep.py"):
    """One line on stderr, whatever the message holds; if stderr is closed or full, nothing."""
    line = "".join(c if c.isprintable() else " " for c in f"{script}: {message}")
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass


def fail(message, script="sleep.py"):
    say(message, script)
    raise SystemExit(2)


def typed(name, text):
    """A flag as it was typed, short enough for one line."""
    return f"--{name}={text if len(text) <= 60 else text[:57] + '...'}"


def pasted(**flags):
    """Flags that a person can paste into a shell: pasted(resume=True, out_dir="my out")."""
    return shlex.join(f"--{k}" if v is True else f"--{k}={v}" for k, v in flags.items())


def described(groups):
    """The flags as --help shows them: {heading: {name: flag}} -> lines of at most WIDTH columns."""
    lines = []
    for heading, flags in groups.items():
        lines += ["", f"{heading}:"]
        for name, (default, allowed_, text) in flags.items():
            words = allowed_ and isinstance(allowed_[0], str)
            text += f" ({' | '.join(allowed_)})" if words else ""
            left = f"--{name}" if type(default) is bool else f"--{name}={default}"
            right = textwrap.wrap(text, WIDTH - 28)
            lines += [f"  {left:<25} {right[0]}", *(" " * 28 + more for more in right[1:])]
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------
# Reading them

def given(argv):
    """{name: text} of the words on the command line, known flags or not; the last one counts."""
    parts = [word.removeprefix("--").partition("=") for word in argv]
    return {name: text if eq else "1" for name, eq, text in parts}


def parse(argv, doc="", flags=FLAGS, script="sleep.py", quick=None):
    """--name=value flags -> a namespace; anything else is refused, with the nearest valid flag.

    flags: {name: (default, allowed, what it does)}, those of sleep.py or of a script of bench/.
    quick: the defaults that --quick puts in their place, as --paper does those of PAPER.
    """
    if {"-h", "--help"} & set(argv):
        print(doc + "\n" + described(GROUPS if flags is FLAGS else {"flags": flags}))
        raise SystemExit(0)
    for word in argv:
        name, eq, _ = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in flags:
            near = difflib.get_close_matches(name[:60], flags, 1, 0.4)
            hint = f": did you mean --{near[0]}=...?" if near else ""
            fail(f"unknown flag {word[:60]!r}{hint} (--help lists all)", script)
        if not eq and type(flags[name][0]) is not bool:
            fail(f"--{name} needs a value: --{name}=...", script)
    asked_for = {k: allowed(k, text, flags, script) for k, text in given(argv).items()}
    defaults = {k: default for k, (default, *_) in flags.items()}
    short = {"quick": quick or {}, "paper": PAPER}          # flags that stand for others
    instead = {k: v for name, many in short.items() if asked_for.get(name)
               for k, v in many.items() if k in flags}
    a = SimpleNamespace(**{**defaults, **instead, **asked_for})
    if flags is FLAGS:
        together(a, asked_for)
        if a.data == "text" and "days" not in asked_for:
            a.days = SOME[1]                                    # as many as there are, or will be
        if a.data != "world" and not a.data_dir:
            a.data_dir = os.path.join("data", a.data)
    return a


def foreign(a):
    """Are these weights of others (--init_from=FOLDER)?"""
    path = getattr(a, "init_from", "scratch")
    return path != "scratch" and not path.endswith(".pt")


def own_words(a):
    """Does the self live in its model's own words (data/text.py)?"""
    form = getattr(a, "format", "auto")
    return form == "own" or form == "auto" and foreign(a) and a.data == "text"


def whole(a):
    """Is there nothing to learn before the first day: neither to read nor the marks?"""
    return a.init_from.endswith(".pt") or foreign(a) and own_words(a)


def together(a, asked_for):
    """Refuse what is allowed flag by flag but makes no sense together. asked_for: flags given."""
    for name in ("ask", "out_dir", "init_from", "data_dir"):
        if name in asked_for and not asked_for[name].strip():
            fail(f"--{name} is empty: give it a value or leave it out")
    if "context" in asked_for and not a.ask:
        fail("--context is read before a question: give one with --ask")
    if a.chat and (a.ask or a.resume):
        fail("--chat talks to a saved self: leave out --ask and --resume")
    if a.ask and a.resume:
        fail("--ask questions a saved self, --resume goes on with its life: leave out one of them")
    if a.init_from == "scratch" and 0 < a.widen < a.n_embd:
        fail(f"{typed('widen', str(a.widen))} is narrower than the self it grows from (--n_embd)")
    if a.data == "text" and not (a.data_dir or a.ask or a.chat):
        fail("--data=text reads a folder of notes, a day a file: name it with --data_dir")
    if a.format == "own" and a.data not in ("world", "text"):
        fail(f"--format=own is for --data=world and text; {a.data} is learnt with marks")
    if a.period and (a.data not in ("world", "text") or not a.gate or not a.expand):
        fail(f"{typed('period', str(a.period))} moves memories of what has a name, each behind its "
             "gate: only with --data=world or text, --gate=1 and --expand=1")
    if a.directions and (a.data not in ("world", "text") or not a.gate):
        fail(f"{typed('directions', str(a.directions))} are those in which the gate tells names "
             "apart: only with --data=world or text and --gate=1")
    days = {"world": max(a.days, 28), "text": 28}.get(a.data, 0)
    if days * a.people > PEOPLE:
        said = " ".join(typed(k, str(asked_for[k])) for k in ("days", "people") if k in asked_for)
        fail(f"{said}: the world has no room for so many people")


def value_of(name, text, flags=FLAGS):
    """The value of a flag, of the type of its default. Raises ValueError if it is not allowed."""
    default, range_, _ = flags[name]
    kind, said = type(default), typed(name, text)
    if range_ is None:
        return text
    if kind is str:
        if text not in range_:
            raise ValueError(f"{said}: choose one of {', '.join(range_)}")
        return text
    try:
        number = int(text) if kind is bool else kind(text)
    except ValueError:
        what = "a number" if kind is float else "a whole number"
        raise ValueError(f"{said}: expected {what}") from None
    least, most, *step = range_
    if not least <= number <= most:                              # false for nan, too
        raise ValueError(f"{said}: must lie between {least} and {most}")
    if step and number % step[0]:
        raise ValueError(f"{said}: must be a multiple of {step[0]}")
    return kind(number)


def allowed(name, text, flags=FLAGS, script="sleep.py"):
    """value_of, where a wrong value ends the run in one line."""
    try:
        return value_of(name, text, flags)
    except ValueError as e:
        fail(str(e), script)


def numbers(text, name, script, least=0):
    """"1,2,3" -> [1, 2, 3]."""
    words = text.split(",")
    if not all(w.isdecimal() and len(w) < 20 and int(w) >= least for w in words):
        fail(f"{typed(name, text)}: expected whole numbers from {least} on, with commas between "
             "them", script)
    return [int(w) for w in words]


def guarded(main, script):
    """main(argv) of a script of bench/, which keeps what it has finished: any failure is a line."""
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        fail("interrupted: run the same command again, finished lives are kept", script)
    except (OSError, ValueError) as e:
        fail(str(e), script)


# --------------------------------------------------------------------------------------------------
# The flags of a life that has begun: args.json in its folder

def kept(a):
    """What args.json holds: every flag, and the command that began the life."""
    return {**{k: getattr(a, k) for k in FLAGS}, "command": a.command}


def recalled(path):
    """The flags (and the command) in an args.json, checked again. A damaged file is refused."""
    try:
        with open(path, encoding="utf-8") as f:
            old = json.load(f)
        if not isinstance(old, dict) or not isinstance(old.get("command", ""), str):
            raise ValueError("it does not hold flags")
    except (ValueError, RecursionError) as e:
        fail(f"{path} is damaged ({type(e).__name__}: {e}): restore it or live the life again")
    later = {"chat": False, "plan": "", "format": "auto", "recompute": False, "paper": False}
    old = {**later, **old}                                  # of a life begun before there were any
    lacking, unknown = sorted(set(FLAGS) - set(old)), sorted(set(old) - set(FLAGS) - {"command"})
    if lacking or unknown:
        what = f"has no --{lacking[0]}" if lacking else f"has --{unknown[0][:40]}"
        fail(f"{path} {what}: another version of nanoSleep wrote it; live the life again")
    try:
        for name, (default, *_) in FLAGS.items():
            if type(old[name]) is not type(default):
                raise ValueError(f"--{name} is {type(old[name]).__name__}")
            text = str(int(old[name])) if type(default) is bool else str(old[name])
            value_of(name, text)
    except ValueError as e:
        fail(f"{path} is damaged ({e}): restore it or live the life again")
    return old


def resumed(a, argv):
    """The flags of the life in --out_dir: they were checked when it began."""
    path = os.path.join(a.out_dir, "args.json")
    if not os.path.isfile(path):
        fail(f"nothing to resume in {a.out_dir}: no args.json there; start a life without --resume")
    more = sorted(set(given(argv)) - {"resume", "out_dir"})
    if more:
        fail(f"--resume goes on with the flags the life began with: leave out --{more[0]}")
    return SimpleNamespace(**{**recalled(path), "resume": True, "out_dir": a.out_dir})


def asked(a, argv):
    """--ask: the flags of the life that is asked, with the question and the device of today.

    A life beside another (out/none) has its flags in the folder above. Without an args.json (a
    checkpoint alone in a folder) the flags of the command line count.
    """
    above, name = os.path.split(os.path.abspath(a.out_dir))
    places = [a.out_dir, above] if name in BESIDE else [a.out_dir]
    paths = [os.path.join(place, "args.json") for place in places]
    path = next((p for p in paths if os.path.isfile(p)), None)
    if path is None:
        return a
    old = recalled(path)
    for name in sorted(set(given(argv)) - ASKING):
        if getattr(a, name) != old[name]:
            fail(f"{path} says {pasted(**{name: old[name]})}: leave out --{name}, or name the "
                 "folder of the life you mean with --out_dir")
    today = {k: getattr(a, k) for k in ASKING}
    return SimpleNamespace(**{**old, **today, "resume": False})
