"""What lies on the disk survives, what is damaged or mad is refused, a folder holds one life."""
import errno
import hashlib
import itertools
import json
import multiprocessing
import os
import pickle
import socket
import sys
import time
import traceback
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from data import flags, run, store, team

fuzz = settings(max_examples=150, deadline=None, derandomize=True)
FORK = multiprocessing.get_context("fork")


# --------------------------------------------------------------------------------------------------
# Checkpoints

def test_a_checkpoint_and_the_one_before_it(tmp_path):
    path = tmp_path / "c.pt"
    for i in range(3):
        store.save(str(path), {"i": i, "t": torch.arange(4)})
    assert store.load(str(path))[0]["i"] == 2 and store.read(str(path) + ".before")["i"] == 1
    sound = path.read_bytes()
    flipped = sound[:200] + bytes([sound[200] ^ 4]) + sound[201:]
    for bad in (sound[:-9], flipped, b"", b"not a checkpoint"):
        path.write_bytes(bad)
        content, warning = store.load(str(path))
        assert content["i"] == 1 and "damaged" in warning and path.read_bytes() == bad
    (tmp_path / "c.pt.before").write_bytes(sound[:99])
    with pytest.raises(ValueError, match="damaged"):
        store.load(str(path))
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        store.load(str(tmp_path / "other.pt"))


def test_killed_between_two_renames(tmp_path):
    path = tmp_path / "c.pt"
    store.save(str(path), {"i": 1})
    os.replace(path, f"{path}.before")
    assert store.load(str(path))[0]["i"] == 1


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    store.save(str(path), {"i": 1})
    before = path.read_bytes()

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space.*c\.pt") as e:
        store.save(str(path), {"i": 2})
    assert e.value.errno == errno.ENOSPC
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def behind_a_checksum(path, body):
    line = store.MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n"
    path.write_bytes(line + body)


def test_a_checkpoint_executes_nothing(tmp_path):
    """A pickle that would make a folder, behind a right checksum."""
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)
    behind_a_checksum(tmp_path / "c.pt", pickle.dumps(Evil()))
    with pytest.raises(ValueError):
        store.load(str(tmp_path / "c.pt"))
    assert not (tmp_path / "pwned").exists()


@fuzz
@given(st.binary(max_size=80), st.integers(0, 400), st.binary(max_size=3))
def test_any_bytes_are_no_checkpoint(tmp_path_factory, start, at, change):
    path = tmp_path_factory.getbasetemp() / "fuzzed.pt"
    store.save(str(path), {"x": torch.ones(3), "y": [1, (2, "z")]})
    sound = path.read_bytes()
    changed = sound[:at] + change + sound[at + len(change):]
    for data in (start, start + sound, changed, sound[:at]):
        path.write_bytes(data)
        if data != sound:
            with pytest.raises(ValueError):
                store.read(str(path))
    behind_a_checksum(path, start)
    with pytest.raises(ValueError, match=r"fuzzed\.pt"):
        store.read(str(path))


# --------------------------------------------------------------------------------------------------
# Sane, or refused before anything is allocated

def a_model():
    from model import GPT, Config
    model = GPT(Config(vocab_size=40, n_embd=32, n_head=1, d_ff=16, n_layer=2, ranks=(4, 4, 4)))
    model.unlock(1)
    model.settle(1)
    return model


def test_a_sound_model_is_sane_and_every_field_is_bounded(tmp_path):
    model = a_model()
    config, state = asdict(model.config), model.state_dict()
    store.sane(config, state)
    bounded = {*store.LIMITS, "ranks", "rope", "rms", "bias", "qk_norm", "act", "listens",
               "qkv_bias", "qk_gain", "tied", "rope_scaling", "scaffold", "recompute"}
    assert set(config) <= bounded                    # a new field of Config needs a limit here
    store.save(str(tmp_path / "c.pt"), {"config": config, "model": state})
    assert store.load(str(tmp_path / "c.pt"))[1] is None


WRONG = [("n_layer", 10 ** 9), ("n_layer", 600), ("n_layer", 0), ("n_layer", -1), ("n_layer", 2.0),
         ("n_layer", True), ("n_layer", "2"), ("n_layer", None), ("vocab_size", 10 ** 30),
         ("vocab_size", 10 ** 6), ("n_embd", 60000), ("d_ff", 200000), ("n_head", 1000),
         ("head_dim", 0), ("block_size", 2 ** 40), ("conv", 10 ** 6), ("norm_eps", float("nan")),
         ("norm_eps", 7), ("ranks", 5), ("ranks", [2 ** 40]), ("ranks", [4] * 10 ** 4),
         ("ranks", ["4"]), ("n_kv_head", 7), ("rope_base", 0.0), ("rope_base", float("nan")),
         ("rope_scaling", 5), ("rope_scaling", [8.0, 1.0]), ("rope_scaling", [8.0, 0.0, 4.0, 16]),
         ("rope_scaling", ["8"] * 4), ("tied", 1), ("rope", 1), ("act", "tanh"), ("act", ["gelu"])]


@pytest.mark.parametrize("name, value", WRONG)
def test_an_absurd_config_is_refused_at_once(name, value, tmp_path):
    model, path = a_model(), tmp_path / "c.pt"
    config = {**asdict(model.config), name: value}
    store.save(str(path), {"config": config, "model": model.state_dict()})
    start = time.time()
    with pytest.raises(ValueError, match=r"c\.pt is no checkpoint of this model: its config"):
        store.load(str(path))
    assert time.time() - start < 5
    for config in (None, [], "config"):
        with pytest.raises(ValueError, match="config"):
            store.sane(config)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(bad, tmp_path):
    path, sound = tmp_path / "c.pt", {"w": torch.ones(3), "n": torch.arange(3)}
    store.save(str(path), {"i": 1, "model": sound})
    store.save(str(path), {"i": 2, "model": {**sound, "w": torch.tensor([1, bad])}})
    content, warning = store.load(str(path))
    assert content["i"] == 1 and "w holds numbers that are not finite" in warning
    for state in ([1], {"w": 1}, None):
        with pytest.raises(ValueError, match="not tensors"):
            store.finite(state)


# --------------------------------------------------------------------------------------------------
# One life to a folder

def live_in(folder, name="a life", args=True):
    """The files of a life of this name, and of one beside it."""
    os.makedirs(os.path.join(folder, "none"), exist_ok=True)
    names = ["checkpoint.pt", "base.pt.before", "none/checkpoint.pt", *["args.json"] * args]
    for path in names:
        with open(os.path.join(folder, path), "w") as f:
            f.write(name)
    return sorted(names)


def lives(folder):
    """{file: the life it is of} in a folder."""
    return {name: open(os.path.join(folder, name)).read() for name in store.life_in(folder)}


def test_one_run_at_a_time(tmp_path):
    out = str(tmp_path / "out")
    with store.occupy(out):
        live_in(out)
        for _ in range(2):
            with pytest.raises(ValueError, match="another run is alive"):
                store.occupy(out)
        store.shelve(out)
        with pytest.raises(ValueError, match="another run is alive"):    # while and after it moves
            store.occupy(out)
    store.occupy(out).close()


def test_a_folder_is_occupied_without_moving_what_is_there(tmp_path):
    live_in(tmp_path)
    store.occupy(str(tmp_path)).close()
    assert set(lives(tmp_path).values()) == {"a life"} and not os.path.exists(f"{tmp_path}.1")


@pytest.mark.parametrize("args", [True, False])
@pytest.mark.parametrize("how", ["out", "out/", "./out//", ".", "link", "link/"])
def test_an_earlier_life_is_kept_however_the_folder_is_named(how, args, tmp_path, monkeypatch,
                                                             capsys):
    """Three lives one after another: each is kept. Files that are not ours stay where they are."""
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    (tmp_path / "link").symlink_to(out)
    (out / "notes.txt").write_text("mine")
    monkeypatch.chdir(out if how == "." else out.parent if "link" not in how else tmp_path)
    for n in range(3):
        with store.occupy(how):
            store.shelve(how)
            files = live_in(how, f"life {n}", args)
    assert lives(out) == dict.fromkeys(files, "life 2")
    assert lives(f"{out}.1") == dict.fromkeys(files, "life 0")
    assert lives(f"{out}.2") == dict.fromkeys(files, "life 1")
    assert (out / "notes.txt").read_text() == "mine" and (tmp_path / "link").is_symlink()
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and all(("--resume --out_dir=" in line) == args for line in said)


def test_an_empty_folder_has_nothing_to_keep(tmp_path, capsys):
    with store.occupy(str(tmp_path / "out")):
        store.shelve(str(tmp_path / "out"))
    assert os.listdir(tmp_path) == ["out"] and capsys.readouterr().out == ""


def test_where_nothing_can_be_made_beside_a_folder(tmp_path, monkeypatch):
    out = str(tmp_path / "out")
    monkeypatch.setattr(store.os.path, "ismount", lambda path: path == out)
    live_in(out, "first")
    with store.occupy(out):
        store.shelve(out)
    assert not lives(out) and set(lives(f"{out}/earlier.1").values()) == {"first"}
    live_in(out, "second")

    def denied(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", path)
    monkeypatch.setattr(store.os, "mkdir", denied)
    with store.occupy(out):
        with pytest.raises(ValueError, match=r"no place to keep it \(Permission denied\)"):
            store.shelve(out)
    assert set(lives(out).values()) == {"second"}


def test_a_killed_move_is_finished_by_the_next_run(tmp_path, monkeypatch):
    """Killed at every point: no file is lost, and none of the two lives gets files of the other."""
    real = store.shutil.move
    for n in range(6):
        out, calls = str(tmp_path / f"out{n}"), itertools.count()

        def mortal(src, dst, calls=calls, last=n):
            if next(calls) == last:
                raise KeyboardInterrupt
            return real(src, dst)
        files = live_in(out)
        with store.occupy(out):
            monkeypatch.setattr(store.shutil, "move", mortal)
            if n < len(files):
                with pytest.raises(KeyboardInterrupt):
                    store.shelve(out)
            monkeypatch.setattr(store.shutil, "move", real)
        assert {**lives(out), **lives(f"{out}.1")} == dict.fromkeys(files, "a life")
        with store.occupy(out):                      # killed before the first move: all stays
            whole = out if n in (0, 4, 5) else f"{out}.1"
            assert lives(whole) == dict.fromkeys(files, "a life")
            store.shelve(out)
            assert not lives(out)
            live_in(out, "another")
        with store.occupy(out):
            assert set(lives(out).values()) == {"another"}


def test_a_folder_taken_away_while_it_is_locked(tmp_path, monkeypatch):
    """What we lock must be what lies there: another process may have moved the folder meanwhile."""
    out, real, moved = str(tmp_path / "out"), store.held, []

    def held(f, folder):
        if len(moved) < 3:
            moved.append(f"{out}-{len(moved)}")
            os.rename(out, moved[-1])
        real(f, folder)
    monkeypatch.setattr(store, "held", held)
    with store.occupy(out) as f:
        assert len(moved) == 3
        assert os.path.samestat(os.fstat(f.fileno()), os.stat(store.lock_file(out)))


def contender(out, barrier, rounds, pipe):
    """In a process of its own: wants the folder in every round, and begins a life if it gets it."""
    sys.stdout = open(os.devnull, "w")
    won = []
    for n in range(rounds):
        barrier.wait(60)
        try:
            lock = store.occupy(out)
            store.shelve(out)
            live_in(out, f"round {n} of {os.getpid()}")
            won.append(n)
        except ValueError as e:
            lock = None
            if "another run is alive" not in str(e):
                raise
        barrier.wait(60)
        if lock:
            lock.close()
    pipe.send(won)


def test_two_processes_300_times_in_one_folder(tmp_path):
    out, barrier, pipes = str(tmp_path / "out"), FORK.Barrier(2), [FORK.Pipe(False) for _ in "ab"]
    both = [FORK.Process(target=contender, args=(out, barrier, 300, pipe)) for _, pipe in pipes]
    for p in both:
        p.start()
    try:
        assert all(pipe.poll(100) for pipe, _ in pipes)
        won = [pipe.recv() for pipe, _ in pipes]
    finally:
        for p in both:
            p.join(5)
            p.kill()
    assert sorted(won[0] + won[1]) == list(range(300))           # one each round, and only one
    kept = [lives(folder) for folder in [out, *(f"{out}.{n}" for n in range(1, 300))]]
    assert not os.path.exists(f"{out}.300")
    assert all(len(files) == 4 and len(set(files.values())) == 1 for files in kept)
    assert len({files["args.json"] for files in kept}) == 300


def test_a_life_is_claimed_only_when_it_begins(tmp_path, monkeypatch):
    out = str(tmp_path / "out")
    monkeypatch.setattr(run, "LIVING", [])
    live_in(out)
    a = flags.parse([f"--out_dir={out}", "--days=3"])
    a.command = "python sleep.py --days=3"
    assert run.how_to_go_on() == ""
    with store.occupy(out):
        run.claim(a)
        assert json.load(open(f"{out}/args.json"))["days"] == 3
        assert set(lives(f"{out}.1").values()) == {"a life"}
    assert "--resume" in run.how_to_go_on()
    with store.occupy(out):
        run.claim(SimpleNamespace(resume=True, out_dir=out))
    assert os.path.exists(f"{out}/args.json") and not os.path.exists(f"{out}.2")


# --------------------------------------------------------------------------------------------------
# A team

def member(rank, size, port, work, pipe):
    try:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank),
                          LOCAL_WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1",
                          MASTER_PORT=str(port))
        team.start()
        pipe.send((work(), None))
        team.end()
    except BaseException:
        pipe.send((None, traceback.format_exc()))


def of_a_team(work, size=2, limit=60):
    """What work() returned in each of `size` forked processes that are a team."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    pipes = [FORK.Pipe(duplex=False) for _ in range(size)]
    members = [FORK.Process(target=member, args=(r, size, port, work, pipes[r][1]))
               for r in range(size)]
    try:
        for p in members:
            p.start()
        assert all(pipe.poll(limit) for pipe, _ in pipes), "someone says nothing: a deadlock?"
        got = [pipe.recv() for pipe, _ in pipes]
    finally:
        for p in members:
            p.join(2)
            p.kill()
    assert not any(error for _, error in got), got
    return [result for result, _ in got]


@pytest.mark.parametrize("size", [2, 3])
def test_a_team_averages_shares_and_agrees(size, tmp_path):
    live_in(tmp_path / "out")

    def work():
        run.stage(SimpleNamespace(seed=1), "weights")
        same = float(torch.rand(1))
        run.stage(SimpleNamespace(seed=1), "batch", own=True)
        own = float(torch.rand(1))
        shapes = [(2, 3), (2,), (4,), ()]
        params = [torch.nn.Parameter(torch.zeros(s)) for s in shapes]
        by_all, by_one, _, half = params
        half.data = half.data.bfloat16()
        loss = by_all.sum() * (team.RANK + 1) + half
        (loss + by_one.sum() if team.RANK == 1 else loss).sum().backward()
        team.average_gradients(iter(params))
        grads = [None if p.grad is None else (p.grad.tolist(), str(p.grad.dtype)) for p in params]
        said = team.share({"dreams": [[1, 2], [3]]} if team.RANK == 0 else None)
        lock = store.occupy(str(tmp_path / "out"))
        store.shelve(str(tmp_path / "out"))
        store.save(str(tmp_path / f"{team.RANK}.pt"), {"i": 1})
        return (same, grads, said, team.anyone(team.RANK == size - 1), team.anyone(False)), own, \
            lock is None
    got = of_a_team(work, size)
    same, grads, said, one, nobody = got[0][0]
    assert all(g[0] == got[0][0] for g in got) and len({own for _, own, _ in got}) == size
    mean = (size + 1) / 2
    assert grads[0] == ([[mean] * 3] * 2, "torch.float32") and grads[2] is None
    assert grads[1][0] == pytest.approx([1 / size] * 2) and grads[3] == (1.0, "torch.bfloat16")
    assert said == {"dreams": [[1, 2], [3]]} and one and not nobody
    assert [g[2] for g in got] == [False] + [True] * (size - 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.pt", "out", "out.1"]


def test_alone_nothing_is_sent_and_nothing_is_touched():
    p, thing = torch.nn.Parameter(torch.ones(2)), [1]
    p.sum().backward()
    grad = p.grad
    team.average_gradients([p])
    assert p.grad is grad and team.share(thing) is thing and not team.anyone([])
    assert not team.broken(RuntimeError("Connection closed"))
