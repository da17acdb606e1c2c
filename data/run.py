"""
What keeps a run alive, so that the chapters hardly see it: interrupts, closed terminals, errors in
one line, the device, and a generator for each stage. Import it first: torch takes seconds to load.
"""
import errno
import importlib.util
import io
import os
import random
import shlex
import signal
import sys
import time
from contextlib import suppress
from functools import partial

from data import flags


def interrupted(usual, kind, error, trace):
    """In place of sys.excepthook: a Ctrl-C that nobody caught (while torch loads) is one line."""
    if issubclass(kind, KeyboardInterrupt):
        flags.say("interrupted", os.path.basename(sys.argv[0]))
    else:
        usual(kind, error, trace)


def lacking(packages=("torch", "numpy", "tiktoken", "tqdm")):
    """Those of the packages that are not installed; nothing is loaded to find out."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


sys.excepthook = partial(interrupted, sys.excepthook)
if lacking():
    flags.fail(f"not installed: {', '.join(lacking())}. Get what is missing with "
               "pip install -r requirements.txt", os.path.basename(sys.argv[0]))

import torch  # noqa: E402  behind the line above, which is for the seconds that it takes

if not hasattr(torch.optim, "Muon"):
    flags.fail(f"torch {torch.__version__} is too old. Get a newer one with "
               "pip install -r requirements.txt", os.path.basename(sys.argv[0]))

from data import store, team, text  # noqa: E402

NIGHT, PERSON, MORNING, SFT = 80, 47, 19, 75           # what takes as long as so many steps of
DISTILLED, FACTS, WHOLE, MOVED = 0.4, 45, 1.15, 1.05    # pretraining: see `expectation`
STOP = []                               # signals heard: someone wants to stop
LIVING = []                             # folder of the life that this process has begun or resumed


# --------------------------------------------------------------------------------------------------
# Beginning

def begin(argv, doc=""):
    """The flags of this run, checked, with the machine set up for them: a namespace.

    With --resume they are those of the life that goes on, with --ask and --chat those of the life
    that is asked. Beside the flags: a.command, the command that began the life, and
    a.torch_device. Sets, for the whole process: the team, threads, deterministic kernels, autocast
    (--dtype).
    """
    team.start()
    a = flags.parse(argv, doc)
    if a.resume:
        a = flags.resumed(a, argv)
    elif a.ask or a.chat:
        a = flags.asked(a, argv)
    if not getattr(a, "command", ""):
        start = f"torchrun --nproc_per_node={team.SIZE}" if team.SIZE > 1 else "python"
        a.command = shlex.join([*start.split(), "sleep.py", *argv])
    a.torch_device = device_of(a)
    if a.threads:
        torch.set_num_threads(a.threads)
    if a.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.set_autocast_dtype(a.torch_device.type, torch.bfloat16)
    torch.set_autocast_enabled(a.torch_device.type, a.dtype == "bfloat16")
    torch.set_autocast_cache_enabled(False)      # its copies of the weights would never learn
    return a


def device_of(a):
    """The device asked for. Of a team on one machine each process needs a GPU of its own."""
    each = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    found = {"cuda": torch.cuda.is_available() and torch.cuda.device_count() >= each,
             "mps": torch.backends.mps.is_available() and each == 1, "cpu": True}
    if a.device == "auto":
        return torch.device(next(name for name in found if found[name]))
    if not found[a.device]:
        enough = " for each process of the team" if each > 1 else ""
        flags.fail(f"--device={a.device}: there is none on this machine{enough}; use --device=cpu")
    return torch.device(a.device)


def name_of(device):
    """"NVIDIA H200", or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def stage(a, *names, own=False):
    """Seed Python and torch for a stage: each draws from a generator of its own.

    So a killed stage is done again from the last saved one, to the same bits. own: each process of
    the team draws other numbers (its batches); else all draw the same (weights, exams, the gate).
    """
    number = random.Random(f"{a.seed} {names} {team.RANK if own else 0}").getrandbits(48)
    random.seed(number)
    torch.manual_seed(number)


def claim(a):
    """Begin the life in --out_dir, which is locked: from here on there is something to go on with.

    A new life moves an earlier one away and writes args.json. Every process of a team calls it.
    """
    if not a.resume:
        store.shelve(a.out_dir)
        store.write_json(os.path.join(a.out_dir, "args.json"), flags.kept(a))
    LIVING.append(a.out_dir)


# --------------------------------------------------------------------------------------------------
# What to expect

def announce(a, data, start, loss_of):
    """Say what is about to be lived, and how long it will take on this machine.

    start: (the self before pretraining, is it whole?), or None where a life is resumed;
    loss_of(model, ids, weight): the loss of a pretraining step.
    """
    threads = torch.get_num_threads()
    on = f", {threads} thread{'s' * (threads > 1)}" if a.torch_device.type == "cpu" else ""
    print(f"{len(data.days)} day{'s' * (len(data.days) > 1)} of {a.data} on "
          f"{name_of(a.torch_device)}{on}.", flush=True)
    if start is not None and flags.foreign(a) and flags.own_words(a):
        print("Nothing to learn first; nights take as long as there is to study (--plan says how "
              "long).", flush=True)
    elif start is not None:
        print(expectation(a, seconds_a_step(start[0], data, loss_of)), flush=True)


def seconds_a_step(model, data, loss_of, steps=2):
    """How long a step of pretraining takes here: a few are tried, nothing is learnt or drawn."""
    params = list(model.requires_grad_(True).parameters())
    for step in range(steps + 1):                                   # the first one warms up
        if step == 1:
            began = time.time()
        docs = [data.document(random.Random(8 * step + i), 0.5) for i in range(8)]
        loss = loss_of(model, *text.pad_documents(docs))
        grads = torch.autograd.grad(loss, params, allow_unused=True)
        float(grads[0].sum())                                       # waits for the device
    return WHOLE * (time.time() - began) / steps


def expectation(a, step):
    """One sentence: how long this run will take if a step of pretraining takes `step` seconds.

    In such steps a night takes NIGHT and PERSON for each person told of, a morning MORNING (from
    the seconds of a CPU in bench/results/week-paper.json and crowd.json), a night of sft SFT; a
    step of distillation DISTILLED, of which a person brings FACTS. WHOLE: a step for its loss and
    gradient. A move takes MOVED of the nights that are moved (moves.json beside week.json).
    """
    born = 0 if flags.whole(a) else step * a.pretrain_steps
    if a.data != "world":
        return f"Expect {spoken(born)} of pretraining; nights take as long as there is to study."
    nights = {"none": 0, "sft": SFT, "sleep": NIGHT + PERSON * a.people}
    if a.seed_steps:
        nights["sleep"] += DISTILLED * (a.seed_steps - FACTS * a.people)
    lives = [a.method, *flags.BESIDE] if a.contrast and a.method == "sleep" else [a.method]
    night = step * nights[a.method]
    spent = sum(step * a.days * (nights[name] + MORNING) for name in lives)
    if a.method == "sleep" and a.period and a.levels > 1:
        spent += night * MOVED * (a.days // a.period * a.period)
    parts = [f"{spoken(born)} of pretraining"] * (born > 0.5)
    parts += [f"{spoken(night)} a night"] * (a.method == "sleep")
    return f"Expect about {spoken(born + spent)} in all" + (f": {', '.join(parts)}." if parts
                                                            else ".")


def spoken(seconds):
    """90 -> "1.5 minutes", 7 -> "7 seconds", 9000 -> "2.5 hours"."""
    for unit, name, most in ((1, "second", 90), (60, "minute", 90 * 60), (3600, "hour", 1e30)):
        if seconds < most:
            many = seconds / unit
            shown = f"{many:.0f}" if unit == 1 or many >= 9.5 else f"{many:.1f}".removesuffix(".0")
            return f"{shown} {name}{'s' * (shown != '1')}"


# --------------------------------------------------------------------------------------------------
# Ending

def wants_to_stop():
    """Has anyone in the team been asked to stop? To be asked by all, where all is saved."""
    return team.anyone(STOP)


def on_interrupt(number, frame):
    """The first Ctrl-C (or SIGTERM) lets the stage finish and be saved, the second does not wait.

    Nothing is printed through Python here: it may be in the middle of printing.
    """
    if STOP:
        raise KeyboardInterrupt
    STOP.append(number)
    with suppress(OSError):
        if team.RANK == 0:
            os.write(2, b"\nfinishing this stage and saving it (once more to end at once)\n")


class Lossy(io.FileIO):
    """A terminal, pipe or file that may break or fill up: what is printed is lost, the life not."""
    def write(self, data):
        try:
            written = super().write(data)
        except OSError:
            written = None
        return len(data) if written is None else written


def unbreakable():
    """Printing can no longer end a run: closed or full streams, terminals that know only ASCII."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:                          # else the next file opened would be our stdout
            os.open(os.devnull, os.O_RDWR)
    for number, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        if old is not getattr(sys, f"__{name}__"):               # somebody watches: a test
            continue
        encoding = getattr(old, "encoding", None) or "utf-8"
        pipe = io.BufferedWriter(Lossy(number, "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(pipe, encoding, "replace", line_buffering=True))


def guarded(main):
    """main(argv), where whatever can go wrong outside this program ends in one line and exit 2."""
    unbreakable()
    STOP.clear()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_interrupt)
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        flags.fail("interrupted" + how_to_go_on())
    except OSError as e:
        what = f"{e.filename}: {e.strerror}" if e.filename and e.strerror else str(e)
        full = e.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        flags.fail(what + how_to_go_on("what was saved is whole, make room and " if full else ""))
    except (RuntimeError, MemoryError, ValueError) as e:
        flags.fail(one_line(e))
    finally:
        team.end()


def one_line(e):
    """What an error means to the person who runs this. A mistake of ours is raised again."""
    if isinstance(e, ValueError):
        return str(e)
    if team.broken(e):
        return "another process of the team has ended" + how_to_go_on()
    if isinstance(e, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(e):
        return "out of memory: lower --people, --quizzes, --n_layer or --n_embd"
    raise e


def how_to_go_on(first=""):
    """The flags that go on with the life of this run, if it has begun, as the end of a line."""
    if not LIVING:
        return ""
    return f": {first}go on with {flags.pasted(resume=True, out_dir=LIVING[-1])}"
