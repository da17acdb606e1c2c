"""A night never loses a memory: interrupted nights go on to the same bits, damage is noticed, bad nights are undone, and
nothing that comes from outside (flags, files) ends in a traceback."""
import copy
import errno
import io
import json
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from tqdm import tqdm

import glyphs as G
import seed
import sleep
from data import clinc, flags, store
from data.bpe import load_ranks
from model import GPT, clone, read_safetensors

ROOT = Path(__file__).resolve().parent.parent
QUIET = tqdm(disable=True)
TINY = ["--n_layer=2", "--n_embd=64", "--n_head=2", "--days=2", "--people=2", "--pretrain_steps=130", "--quizzes=1", "--views=1",
        "--replay_dreams=8", "--seed_steps=3", "--dream_steps=2", "--threads=1", "--contrast=0"]
fuzz = settings(max_examples=150, deadline=None, derandomize=True)


def run(*words, hurt=()):
    script = [str(ROOT / "bench" / "faults.py"), *hurt, "--"] if hurt else [str(ROOT / "sleep.py")]
    return subprocess.run([sys.executable, *script, *words], capture_output=True, text=True, timeout=300)


# ----------------------------------------------------------------------------------------------------------------------
# Interrupted, and gone on with

class Cut(Exception):
    """The power is cut."""


def through_a_file(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.fixture(scope="module")
def base():
    return G.base(G.make(), steps=140)


def a_night(base, a, day, stop_at=None, saved=None):
    """A night that is cut at the stop_at-th save; saved: what it left. Returns (the self, what it left or None)."""
    model, desk = copy.deepcopy(base), {}
    if saved is not None:
        model.load_state_dict(saved["model"])
        desk = saved["desk"]
    left, calls = {}, [0]

    def keep(progress=None):
        calls[0] += 1
        if progress is not None:
            progress["rng"] = seed.rng_state()
        if calls[0] == stop_at:
            left.update(through_a_file({"model": model.state_dict(), "desk": desk}))
            raise Cut
    try:
        sleep.night(a, model, day, G.MARKS, 0, QUIET, clone(base), desk, keep)
    except Cut:
        return model, left
    return model, None


@pytest.mark.parametrize("switches", [[], ["--gate=0"], ["--expand=0"], ["--budget=4"]])
def test_a_night_cut_anywhere_ends_in_the_same_bits(base, switches):
    """After asking, after the gate, inside seeding, after the dreams, inside the last steps."""
    a = sleep.parse(["--replay_dreams=32", "--seed_steps=12", "--dream_steps=3", "--quizzes=3", "--views=2", "--dreams=4",
                     "--dreams_random=2", "--on_policy=0.5", *switches])
    day = G.passages(G.make().new[:2], random.Random(0))
    whole, _ = a_night(base, a, day)
    for stop_at in (1, 2, 5, 14, 15, 17) if not switches else (7, 15):
        _, left = a_night(base, a, day, stop_at)
        assert left is not None, f"the night has no save number {stop_at}"
        torch.manual_seed(99), random.seed(99)                       # a new process: other random numbers
        again, _ = a_night(base, a, day, saved=left)
        for name, t in whole.state_dict().items():
            assert torch.equal(t, again.state_dict()[name]), (stop_at, name)


def test_a_consolidation_cut_in_the_middle_ends_in_the_same_bits(base):
    a = sleep.parse(["--replay_dreams=32", "--seed_steps=60", "--dream_steps=0", "--quizzes=4", "--views=2", "--dream=0"])
    night_owl, _ = a_night(base, a, G.passages(G.make().new[:2], random.Random(0)))

    def consolidated(stop_at=None, saved=None):
        model, progress = copy.deepcopy(night_owl), {}
        if saved is not None:
            model.load_state_dict(saved["model"])
            progress = saved["progress"]
        left = {}

        def keep(progress):
            progress["rng"] = seed.rng_state()
            if progress["step"] == stop_at:
                left.update(through_a_file({"model": model.state_dict(), "progress": progress}))
                raise Cut
        torch.manual_seed(5), random.seed(5)                         # as sleep.begin does at every stage
        try:
            seed.consolidate(model, sleep.FAST, sleep.SLOW, G.MARKS, steps=10, progress=progress, keep=keep)
        except Cut:
            return left
        return model.state_dict()
    whole, again = consolidated(), consolidated(saved=consolidated(stop_at=6))
    assert whole.keys() == again.keys() and all(torch.equal(whole[k], again[k]) for k in whole)


def test_the_desk_of_a_night_holds_no_text_but_the_dreams(base):
    """What an interrupted night keeps of the day are its contexts and dreams; when the night is over, live() clears the desk."""
    a = sleep.parse(["--replay_dreams=8", "--seed_steps=2", "--dream_steps=1", "--quizzes=3", "--views=2"])
    _, left = a_night(base, a, G.passages(G.make().new[:2], random.Random(0)), stop_at=2)
    assert set(left["desk"]) == {"views", "dreamt", "replay", "level", "found"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A tiny life that nobody disturbed: untrained, its nights are restless, but every file is written."""
    out = tmp_path_factory.mktemp("whole") / "out"
    r = run(*TINY, f"--out_dir={out}")
    assert r.returncode == 0, r.stderr
    return out


@pytest.mark.parametrize("where", ["sleep.descend:125", "store.write:9:between"])
def test_the_real_script_killed_anywhere_goes_on_to_the_same_bits(whole, tmp_path, where):
    """kill -9 in pretraining, and in a night between the two renames of a write (bench/faults.py has thirty more)."""
    out = tmp_path / "out"
    assert run(*TINY, f"--out_dir={out}", hurt=[f"--die={where}"]).returncode == -9
    r = run("--resume", f"--out_dir={out}")
    assert r.returncode == 0, r.stderr
    for name in ("base.pt", "checkpoint.pt"):
        a, b = (store.load(str(folder / name))[0] for folder in (out, whole))
        assert a["model"].keys() == b["model"].keys() and a.get("R") == b.get("R")
        assert all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])
    assert not (out / "pretraining.pt").exists()


@pytest.mark.parametrize("how", ["nan", "noise", "rate"])
def test_a_sabotaged_night_costs_nothing_but_itself(base, monkeypatch, how):
    """Night 1 learns NaN, ends in noise, or learns at a thousandfold rate; night 2 is sound and has both days in its context."""
    a = sleep.parse(["--replay_dreams=96", "--seed_steps=70", "--dream_steps=4", "--quizzes=4", "--views=3", "--dreams=4",
                     "--dreams_random=2", "--people=2"])
    things, muon = G.make().new, seed.muon

    def mad(params, momenta, lr):
        muon(params, momenta, lr * 1000 if how == "rate" else lr)
        if how == "nan":
            params[0].data[0] = float("nan")
        elif how == "noise":
            for p in params:
                torch.nn.init.normal_(p)
    model, state, old = copy.deepcopy(base), {"pending": []}, G.recall(base, G.make().old)
    for i, bad in enumerate((True, False)):
        monkeypatch.setattr(seed, "muon", mad if bad else muon)
        yesterday, day = clone(model), G.passages(things[2 * i:2 * i + 2], random.Random(i))
        model, log = sleep.asleep(a, model, yesterday, state, {"day": day}, G.MARKS, i, QUIET, lambda progress=None: None)
        if bad and how != "rate":
            assert "undone" in log and state["pending"] == day
            assert all(torch.equal(t, yesterday.state_dict()[k]) for k, t in model.state_dict().items())
        if bad:
            relearnt = "undone" in log                               # Muon's steps are bounded: a wild night may learn a little
            assert relearnt or how == "rate"
    assert "undone" not in log and state["pending"] == [] and G.recall(model, things if relearnt else things[2:]) > 0.7
    assert G.recall(model, G.make().old) == old and all(torch.isfinite(t).all() for t in model.state_dict().values())


@pytest.mark.parametrize("day", [[], [[]]])
def test_an_empty_day_is_a_restless_night(base, day):
    with pytest.raises(seed.RestlessNight, match="empty"):
        sleep.night(sleep.parse([]), copy.deepcopy(base), day, G.MARKS, 0, QUIET)


def test_what_makes_a_night_be_undone(base):
    dreams, log = seed.dream_replay(base, G.MARKS, 8, 40), {"knew": 0.1, "knows": 0.9}
    judge = lambda new, log: sleep.gone_wrong(base, new, dreams, G.MARKS, log, 0.5)
    assert judge(clone(base), log) is None and log["drift"] == pytest.approx(0, abs=1e-6)
    assert "no better" in judge(clone(base), {"knew": 0.5, "knows": 0.5})
    mad, gone = clone(base), clone(base)
    mad.blocks[0].proj.weight[0, 0] = float("nan")
    gone.wte.weight.mul_(-1)
    assert "not a finite" in judge(mad, log) and "moved by" in judge(gone, log)


# ----------------------------------------------------------------------------------------------------------------------
# Files

def test_a_checkpoint_and_the_one_before_it(tmp_path):
    path = tmp_path / "c.pt"
    for i in range(3):
        store.save(str(path), {"i": i, "t": torch.arange(4)})
    assert store.load(str(path))[0]["i"] == 2 and store.read(str(path) + ".before")["i"] == 1
    sound = path.read_bytes()
    for bad in (sound[:-9], sound[:200] + bytes([sound[200] ^ 4]) + sound[201:], b"", b"not a checkpoint"):
        path.write_bytes(bad)
        content, warning = store.load(str(path))
        assert content["i"] == 1 and "damaged" in warning and path.read_bytes() == bad
    (tmp_path / "c.pt.before").write_bytes(sound[:99])
    with pytest.raises(ValueError, match="damaged"):
        store.load(str(path))


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    store.save(str(path), {"i": 1})
    before = path.read_bytes()

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.save(str(path), {"i": 2})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_a_checkpoint_executes_nothing(tmp_path):
    """A pickle that would write a file, behind a right checksum: refused, and nothing is written."""
    import hashlib
    import os
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)
    body = pickle.dumps(Evil())
    (tmp_path / "c.pt").write_bytes(store.MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    with pytest.raises(ValueError):
        store.load(str(tmp_path / "c.pt"))
    assert not (tmp_path / "pwned").exists()


def test_one_run_at_a_time(tmp_path):
    ours = store.occupy(str(tmp_path / "out"))
    for resume in (False, True):
        with pytest.raises(ValueError, match="another run is alive"):
            store.occupy(str(tmp_path / "out"), resume)
    ours.close()
    store.occupy(str(tmp_path / "out")).close()


def test_live_experts_survive_a_checkpoint():
    from model import Config
    model = GPT(Config(vocab_size=40, n_embd=16, n_head=1, head_dim=8, d_ff=16, n_layer=2, ranks=(4, 4, 4)))
    for p in model.unlock(1, seed=3):
        torch.nn.init.normal_(p)
    other = GPT(model.config)
    other.load_state_dict(through_a_file(model.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(model.live(1), other.live(1))) and len(other.live(1)) == 4
    other.load_state_dict(GPT(model.config).state_dict())
    assert other.live(1) == []


# ----------------------------------------------------------------------------------------------------------------------
# Whatever is typed or read: one line, never a traceback

NAMES = st.sampled_from(list(flags.FLAGS) + ["dais", "", "help2", "seed "])
VALUES = st.one_of(st.text(max_size=12), st.integers().map(str), st.floats().map(str), st.sampled_from(["", "0", "1", "nan", "-1", "1e999"]))
WORDS = st.one_of(st.tuples(NAMES, VALUES).map(lambda t: f"--{t[0]}={t[1]}"), st.text(max_size=12), NAMES.map(lambda n: f"--{n}"))


@fuzz
@given(st.lists(WORDS, max_size=4))
def test_any_command_line_is_taken_or_refused_in_one_line(words):
    out, sys.stderr = sys.stderr, io.StringIO()
    try:
        a = flags.parse([w for w in words if w not in ("-h", "--help")])
        for name, (default, *_) in flags.FLAGS.items():
            assert type(getattr(a, name)) is type(default)
    except SystemExit as stop:
        said = sys.stderr.getvalue()
        assert stop.code == 2 and said.startswith("sleep.py: ") and len(said) > 20
    finally:
        sys.stderr = out


@pytest.mark.parametrize("name", [n for n, (v, r, _) in flags.FLAGS.items() if r is not None and not isinstance(r[0], str)])
def test_every_number_has_a_range(name, capsys):
    low, high = flags.FLAGS[name][1]
    for value in (low - 1, high * 2 + 1, "nan", "x", ""):
        with pytest.raises(SystemExit):
            flags.allowed(name, str(value))
    assert len(capsys.readouterr().err.splitlines()) == 5


def refuses(read, path, *kinds):
    """read(path) succeeds or raises one of the kinds with the file's name; nothing else."""
    try:
        read(path)
    except kinds as e:
        assert Path(path).name in str(e)


@fuzz
@given(st.binary(max_size=80), st.integers(0, 400), st.binary(max_size=3))
def test_any_bytes_are_no_checkpoint(tmp_path_factory, start, at, change):
    folder = tmp_path_factory.getbasetemp()
    path = folder / "fuzzed.pt"
    store.save(str(path), {"x": torch.ones(3), "y": [1, (2, "z")]})
    sound = path.read_bytes()
    for data in (start, start + sound, sound[:at] + change + sound[at + len(change):], sound[:at]):
        path.write_bytes(data)
        if data != sound:
            with pytest.raises(ValueError):
                store.read(str(path))


JUNK = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-2 ** 70, 2 ** 70), st.floats(), st.text(max_size=5)),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6)
SIZES = st.one_of(st.integers(-2, 40), st.sampled_from([2 ** 31, 2 ** 63, 2 ** 64, 10 ** 30]), st.floats(), st.booleans(), JUNK)
TENSOR = st.fixed_dictionaries({"dtype": st.one_of(st.sampled_from(["F32", "I64", "BF16", "U8", "BOOL", "F99"]), JUNK),
                                "shape": st.lists(SIZES, max_size=3) | JUNK, "data_offsets": st.lists(SIZES, max_size=3) | JUNK})


@fuzz
@given(st.dictionaries(st.sampled_from(["w", "v", "__metadata__"]), TENSOR | JUNK, max_size=3) | JUNK, st.binary(max_size=64),
       st.one_of(st.none(), st.integers(0, 2 ** 64 - 1)))
def test_any_safetensors_header_is_bounds_checked(tmp_path_factory, header, body, size):
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + body)
    refuses(read_safetensors, str(path), ValueError)


@fuzz
@given(st.binary(max_size=200))
def test_any_bytes_as_text_files(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    for name, read in (("train.tsv", lambda p: clinc.read_split(str(Path(p).parent), "train")), ("x.tiktoken", load_ranks)):
        (folder / name).write_bytes(data)
        refuses(read, str(folder / name), ValueError)


@fuzz
@given(JUNK)
def test_any_args_file_is_read_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / "args"
    folder.mkdir(exist_ok=True)
    good = {k: v for k, (v, *_) in flags.FLAGS.items()}
    for data in (content, {**good, "days": content}):
        (folder / "args.json").write_text(json.dumps(data))
        a = flags.parse([f"--out_dir={folder}", "--resume"])
        try:
            assert flags.resumed(a, [f"--out_dir={folder}", "--resume"]).resume is True
        except SystemExit as stop:
            assert stop.code == 2


@fuzz
@given(st.lists(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=30), max_size=6), max_size=4), st.integers(1, 25))
def test_a_passage_too_long_is_split_and_nothing_is_lost(day, room):
    parts = sleep.fit(day, room)
    assert [t for p in parts for s in p for t in s] == [t for p in day for s in p for t in s]
    assert all(0 < sum(map(len, p)) <= room for p in parts)
    if all(sum(map(len, p)) <= room for p in day):
        assert parts == [p for p in day if p]                        # nothing to split: sentences stay whole


@fuzz
@given(st.text(max_size=60))
def test_no_text_is_lost_by_the_tokenizer(text):
    from data import world
    enc = world.load_tokenizer()
    assert enc.decode(enc.encode_ordinary(text)) == text


def test_out_of_memory_names_the_flags(tmp_path):
    r = run("--n_embd=16384", f"--out_dir={tmp_path / 'big'}", hurt=["--memory"])
    assert r.returncode == 2 and "out of memory: lower" in r.stderr and "Traceback" not in r.stderr
