"""
What a life leaves on disk, so that no power cut can take it.

A checkpoint is one line, `nanoSleep <sha256 of all that follows>`, and then a torch archive of tensors, numbers and words: no
code (weights_only). It is written beside the old one, synced to the disk and renamed over it; the old one stays as FILE.before.
So at every moment a whole checkpoint is there, and a damaged one is noticed before anything is touched.
"""
import hashlib
import io
import json
import os
import pickle

import torch

from data import team

try:
    import fcntl                                                     # not on Windows: there, nobody watches for a second run
except ImportError:
    fcntl = None

MAGIC = b"nanoSleep "


def write(path, data, keep_old=False):
    """Bytes to a file, all or nothing: what was there stays until the new bytes are safe on the disk (then as FILE.before)."""
    if team.RANK:                                                    # one writes for all
        return
    try:
        with open(path + ".tmp", "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
    except OSError:
        if os.path.exists(path + ".tmp"):
            os.remove(path + ".tmp")                                 # half a file on a full disk only takes room
        raise
    if keep_old and os.path.exists(path):
        os.replace(path, path + ".before")                           # a kill between these two lines: `load` finds FILE.before
    os.replace(path + ".tmp", path)


def write_json(path, data):
    write(path, json.dumps(data, indent=1).encode())


def save(path, content):
    """A checkpoint of any nesting of tensors, numbers, words, lists, tuples and dicts; the one before it is kept."""
    if team.RANK:
        return
    buffer = io.BytesIO()
    torch.save(content, buffer)
    body = buffer.getvalue()
    write(path, MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body, keep_old=True)


def load(path, device="cpu"):
    """The content of a checkpoint, or of the one before it where this one is damaged -> (content, a warning or None).

    Raises FileNotFoundError if there is none, ValueError if none is whole.
    """
    names = [p for p in (path, path + ".before") if os.path.isfile(p)]
    if not names:
        raise FileNotFoundError(f"no checkpoint at {path}")
    wrong = []
    for name in names:
        try:
            return read(name, device), (f"{wrong[0]}; going on from {name}" if wrong else None)
        except ValueError as e:
            wrong.append(str(e))
    raise ValueError(wrong[0])


def read(path, device="cpu"):
    """One checkpoint file. Raises ValueError where it is not what `save` wrote."""
    with open(path, "rb") as f:
        line, body = f.readline(100), f.read()
    if line != MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n":
        raise ValueError(f"{path} is not a checkpoint of nanoSleep or is damaged (its checksum is wrong)")
    try:
        return torch.load(io.BytesIO(body), map_location=device, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as e:
        raise ValueError(f"{path} is not a checkpoint of nanoSleep ({type(e).__name__})") from None


def lock(folder):
    """Keep a second run out of this folder for as long as the file returned is open. Raises ValueError if one is in it."""
    f = open(os.path.join(folder, "lock"), "w")
    try:
        if fcntl:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)            # the system lets go of it even when a process is killed
    except OSError:
        f.close()
        raise ValueError(f"another run is alive in {folder}: wait for it, or choose another --out_dir") from None
    return f


def occupy(folder, resume=False):
    """Make a folder ours: no second run may write there, and an earlier life is kept under another name. Returns the lock."""
    if team.RANK:
        return None
    os.makedirs(folder, exist_ok=True)
    ours = lock(folder)
    if resume or not os.path.isfile(os.path.join(folder, "args.json")):
        return ours
    ours.close()
    n = 1
    while os.path.exists(f"{folder}.{n}"):
        n += 1
    os.rename(folder, f"{folder}.{n}")
    print(f"{folder} held an earlier life: it is now {folder}.{n} (to go on with it: --resume --out_dir={folder}.{n})")
    return occupy(folder)
