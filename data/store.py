"""
What a life leaves on disk, so that no power cut can take it.

A checkpoint is one line, `nanoSleep <sha256 of all that follows>`, and then a torch archive of
tensors, numbers and words: no code (weights_only). It is written beside the old one, synced to the
disk and renamed over it; the old one stays as FILE.before. So at every moment a whole checkpoint
is there, and a damaged one is noticed before anything is touched.
"""
import hashlib
import io
import json
import math
import os
import pickle
import shutil

import torch

from data import team
from data.flags import BESIDE, pasted

try:
    import fcntl                        # not on Windows: there, nobody watches for a second run
except ImportError:
    fcntl = None

MAGIC = b"nanoSleep "
FILES = ("args.json", "base.pt", "pretraining.pt", "checkpoint.pt", "log.jsonl", "life.html",
         "summary.json")
LIMITS = {  # of a checkpoint's config: the least and the most; far more than this code can train
    "vocab_size": (1, 2 ** 20), "block_size": (1, 2 ** 20), "n_layer": (1, 1024),
    "n_head": (1, 1024), "head_dim": (1, 2 ** 14), "n_embd": (1, 2 ** 16), "d_ff": (1, 2 ** 18),
    "n_kv_head": (0, 1024), "conv": (0, 64), "hears": (0, 1024), "norm_eps": (0.0, 1.0),
    "rope_base": (1.0, 1e12)}
RANKS = (1, 2 ** 14)                    # of each level's experts
LEVELS = 16


# --------------------------------------------------------------------------------------------------
# Files

def write(path, data, keep_old=False):
    """Bytes to a file, all or nothing: what was there stays until the new bytes are on the disk."""
    if team.RANK:                                                # one writes for all
        return
    try:
        with open(path + ".tmp", "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        if os.path.exists(path + ".tmp"):
            os.remove(path + ".tmp")                             # half a file only takes room
        raise OSError(e.errno, e.strerror, path) from None
    if keep_old and os.path.exists(path):
        os.replace(path, path + ".before")       # killed between these two lines, `load` finds it
    os.replace(path + ".tmp", path)


def remove(path):
    """Take a checkpoint and the one before it away, if they are there."""
    for name in (path, path + ".before"):
        if team.RANK == 0 and os.path.exists(name):
            os.remove(name)


def write_json(path, data):
    write(path, json.dumps(data, indent=1).encode())


def save(path, content):
    """A checkpoint of any nesting of tensors, numbers, words, lists and dicts; keeps the last."""
    if team.RANK:
        return
    buffer = io.BytesIO()
    torch.save(content, buffer)
    body = buffer.getvalue()
    line = MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n"
    write(path, line + body, keep_old=True)


def load(path, device="cpu"):
    """The content of a checkpoint, or of the one before it where this one is damaged.

    Returns (content, a warning or None). Raises FileNotFoundError if there is none, ValueError if
    none is whole.
    """
    names = [p for p in (path, path + ".before") if os.path.isfile(p)]
    if not names:
        raise FileNotFoundError(f"no checkpoint at {path}")
    wrong = []
    for name in names:
        try:
            return read(name, device), f"{wrong[0]}; going on from {name}" if wrong else None
        except ValueError as e:
            wrong.append(str(e))
    raise ValueError(wrong[0])


def read(path, device="cpu"):
    """One checkpoint file. Raises ValueError where it is not what `save` wrote, or not sane."""
    with open(path, "rb") as f:
        line, body = f.readline(100), f.read()
    if line != MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n":
        raise ValueError(f"{path} is not a checkpoint of nanoSleep or is damaged (its checksum is "
                         "wrong)")
    try:
        content = torch.load(io.BytesIO(body), map_location=device, weights_only=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, EOFError, LookupError, TypeError, AttributeError, ValueError,
            pickle.UnpicklingError) as e:
        if "allocate memory" in str(e):
            raise
        raise ValueError(f"{path} is not a checkpoint of nanoSleep ({type(e).__name__})") from None
    try:
        if isinstance(content, dict) and "model" in content:
            finite(content["model"])
            if "config" in content:
                sane(content["config"], content["model"])
    except ValueError as e:
        raise ValueError(f"{path} is no checkpoint of this model: {e}") from None
    return content


# --------------------------------------------------------------------------------------------------
# What may be loaded

def finite(state):
    """Raises ValueError where {name: tensor} is something else, or a number in it is not finite."""
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise ValueError("its weights are not tensors with names")
    for name, t in state.items():
        if t.is_floating_point() and not torch.isfinite(t).all():
            raise ValueError(f"{name} holds numbers that are not finite")


def sane(config, state=None):
    """Raises ValueError where a checkpoint's config is no config, before anything is allocated.

    config: a dict of Config's fields. state: its weights; no config may ask for more than they are.
    """
    if not isinstance(config, dict):
        raise ValueError("its config is not a table of fields")
    for name, (least, most) in LIMITS.items():
        number, kind = config.get(name, least), type(least)
        if type(number) is not kind or not least <= number <= most:
            raise ValueError(f"its config has a {name} that cannot be")
    ranks = config.get("ranks", ())
    if not isinstance(ranks, (tuple, list)) or len(ranks) > LEVELS or any(
            type(r) is not int or not RANKS[0] <= r <= RANKS[1] for r in ranks):
        raise ValueError("its config has ranks that cannot be")
    scaling = config.get("rope_scaling", ())
    if not isinstance(scaling, (tuple, list)) or len(scaling) not in (0, 4) or any(
            type(x) not in (int, float) or not 0 < x < 1e12 for x in scaling) or (
            scaling and scaling[1] >= scaling[2]):
        raise ValueError("its config has a rope_scaling that cannot be")
    for name in ("rope", "rms", "bias", "qk_norm", "qkv_bias", "qk_gain", "tied", "recompute"):
        if type(config.get(name, True)) is not bool:
            raise ValueError(f"its config has a {name} that is neither true nor false")
    if config.get("act", "gelu") not in ("gelu", "relu2", "swiglu"):
        raise ValueError("its config has an act that cannot be")
    if config.get("scaffold") not in (None, True, False):
        raise ValueError("its config has a scaffold that cannot be")
    if config.get("listens", "name") not in ("name", "text", "first"):
        raise ValueError("its config listens in a way that cannot be")
    if config.get("n_head", 1) % (config.get("n_kv_head", 0) or 1):
        raise ValueError("its config has a n_kv_head that cannot share its heads")
    if state is None:
        return
    d, layers, n_head = (config.get(k, 0) for k in ("n_embd", "n_layer", "n_head"))
    both = n_head + (config.get("n_kv_head", 0) or n_head)           # heads of queries, of keys
    table = config.get("vocab_size", 0) + config.get("block_size", 0) * (not config.get("rope", 1))
    least = d * (table + layers * 2 * (both * config.get("head_dim", 0) + config.get("d_ff", 0)))
    if least > sum(math.prod(t.shape) for t in state.values()):
        raise ValueError("its config is that of a larger model than its weights")


# --------------------------------------------------------------------------------------------------
# One life to a folder

def lock_file(folder):
    return os.path.join(folder, "lock")


def occupy(folder):
    """Keep a second run out of a folder for as long as the file returned is open; moves nothing.

    Raises ValueError if another run is alive there. What a killed `shelve` left is moved, too.
    """
    if team.RANK:
        return None
    for _ in range(100):                                 # until what we hold is what lies there
        os.makedirs(folder, exist_ok=True)
        try:
            f = open(lock_file(folder), "a+", encoding="utf-8", errors="surrogateescape")
        except FileNotFoundError:                                # the folder was just taken away
            continue
        try:
            held(f, folder)
            if os.path.samestat(os.fstat(f.fileno()), os.stat(lock_file(folder))):
                break
        except FileNotFoundError:
            pass
        except ValueError:
            f.close()
            raise
        f.close()
    else:
        raise ValueError(f"{folder} is taken away again and again: choose another --out_dir")
    f.seek(0)
    shelf = f.read(4096)
    if os.path.isdir(shelf) and not os.path.lexists(os.path.join(folder, "args.json")):
        move(folder, shelf)
    elif shelf:                                                  # killed before the first move
        write_shelf(folder, "")
    return f


def write_shelf(folder, shelf):
    """Into the lock file: where the life in this folder is being moved to; nothing: nowhere."""
    with open(lock_file(folder), "w", encoding="utf-8", errors="surrogateescape") as f:
        f.write(shelf)


def held(f, folder):
    """Lock an open file. The system lets go of it even when a process is killed."""
    try:
        if fcntl:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another run is alive in {folder}: wait for it, or choose another "
                         "--out_dir") from None
    except OSError:                     # a file system without locks: nobody watches there
        pass


def life_in(folder):
    """The files of a life in a folder and of those beside it: paths in it, args.json first."""
    names = [os.path.join(sub, name + end) for sub in ("", *BESIDE) for name in FILES
             for end in ("", ".before", ".tmp")]
    return [name for name in names if os.path.lexists(os.path.join(folder, name))]


def shelve(folder):
    """Move an earlier life out of a folder that we occupy; every process of a team calls it.

    To be called when all that the new life begins from is loaded, right before its first file is
    written. The lock stays where it is and is never let go. It holds the name of the new place
    until all is there, so that a killed move is finished by the next run.
    """
    team.anyone(False)                                           # all have loaded what they need
    found = [] if team.RANK else life_in(folder)
    if not found:
        return
    shelf = place_for(folder)
    write_shelf(folder, shelf)
    move(folder, shelf)
    shown = min(shelf, os.path.relpath(shelf), key=len)
    again = f" (to go on with it: {pasted(resume=True, out_dir=shown)})"
    print(f"{folder} held an earlier life: it is now {shown}{again * (found[0] == 'args.json')}")


def place_for(folder):
    """A new folder for an earlier life: FOLDER.1, or inside it where none can be made beside it."""
    real = os.path.realpath(folder)
    places = [real + ".", os.path.join(real, "earlier.")]
    if os.path.ismount(real):                                    # beside it is another disk
        places = places[1:]
    reason = None
    for place in places:
        number = 1
        while os.path.lexists(f"{place}{number}"):
            number += 1
        try:
            os.mkdir(f"{place}{number}")
            return f"{place}{number}"
        except OSError as e:
            reason = e.strerror
    raise ValueError(f"{folder} holds an earlier life, and there is no place to keep it "
                     f"({reason}): choose another --out_dir")


def move(folder, shelf):
    """All files of the life in a folder to the shelf, args.json first; then nothing is pending."""
    for name in life_in(folder):
        os.makedirs(os.path.dirname(os.path.join(shelf, name)), exist_ok=True)
        shutil.move(os.path.join(folder, name), os.path.join(shelf, name))
    write_shelf(folder, "")
