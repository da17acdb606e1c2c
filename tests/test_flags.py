"""Whatever is typed or read: taken, or refused in one line. And what keeps a run alive: run.py."""
import errno
import io
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from data import flags, run

ROOT = Path(__file__).resolve().parent.parent
fuzz = settings(max_examples=150, deadline=None, derandomize=True)


def refused(words, says, capsys, **kw):
    with pytest.raises(SystemExit) as stop:
        flags.parse(words, **kw)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and says in said and len(said.splitlines()) == 1, said
    return said


# --------------------------------------------------------------------------------------------------
# Reading

NAMES = st.sampled_from([*flags.FLAGS, "dais", "", "help2", "seed "])
ODD = st.sampled_from(["", "0", "1", "nan", "-1", "1e999", "32", "a\nb", "\udcff", "9" * 5000])
VALUES = st.one_of(st.text(max_size=12), st.integers().map(str), st.floats().map(str), ODD)
WORDS = st.one_of(st.tuples(NAMES, VALUES).map("--{0[0]}={0[1]}".format), st.text(max_size=12),
                  NAMES.map("--{}".format))


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
        assert stop.code == 2 and said.startswith("sleep.py: ") and 20 < len(said) < 300
        assert said.count("\n") == 1
    finally:
        sys.stderr = out


RANGED = [k for k, (_, r, _) in flags.FLAGS.items() if r is not None and not isinstance(r[0], str)]


@pytest.mark.parametrize("name", RANGED)
def test_every_number_has_a_range(name, capsys):
    low, high, *step = flags.FLAGS[name][1]
    wrong = [low - 1, high * 2 + 1, "nan", "x", "", *([low + step[0] + 1] if step else [])]
    for value in wrong:
        with pytest.raises(SystemExit):
            flags.allowed(name, str(value))
    assert len(capsys.readouterr().err.splitlines()) == len(wrong)
    assert flags.allowed(name, str(low)) == low and flags.allowed(name, str(high)) == high


def test_defaults():
    a = flags.parse([])
    for name, (default, range_, text) in flags.FLAGS.items():
        assert getattr(a, name) == default and text
        if range_ is not None:
            shown = str(int(default)) if type(default) is bool else str(default)
            assert flags.value_of(name, shown) == default
    assert len(flags.FLAGS) <= 45
    assert flags.parse(["--data=dbpedia"]).data_dir == os.path.join("data", "dbpedia")
    assert flags.parse(["--data=dbpedia", "--data_dir=x"]).data_dir == "x"


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_names_every_flag_in_lines_of_80_columns(word, capsys):
    with pytest.raises(SystemExit) as stop:
        flags.parse(["--days=2", word], "what it does")
    said = capsys.readouterr().out
    assert stop.value.code == 0 and said.startswith("what it does")
    assert max(map(len, said.splitlines())) <= 80 == flags.WIDTH
    assert all(len(re.findall(rf"^  --{name}\b", said, re.M)) == 1 for name in flags.FLAGS)
    assert all(f"\n{heading}:\n" in said for heading in flags.GROUPS)


@pytest.mark.parametrize("words, says", [
    (["--ask="], "--ask is empty"), (["--ask=  "], "--ask is empty"),
    (["--ask"], "--ask needs a value"), (["--context=Ada lives here."], "--ask"),
    (["--ask=Who?", "--resume"], "--resume"), (["--dais=3"], "did you mean --days=...?"),
    (["days=3"], "did you mean --days"), (["--days"], "--days needs a value: --days=..."),
    (["--n_embd=100"], "multiple of 32"), (["--widen=100"], "multiple of 32"),
    (["--widen=64"], "--widen=64 is narrower"), (["--out_dir="], "--out_dir is empty"),
    (["--n_embd=256", "--widen=128"], "narrower"), (["--people=2000"], "--people=2000: the world"),
    (["--days=3", "--people=2000"], "--days=3 --people=2000: the world"),
    (["--data=word"], "choose one of world"), (["--gate=2"], "between 0 and 1"),
    (["--seed=1.5"], "expected a whole number"), (["--on_policy=much"], "expected a number"),
    (["--data=a\nb"], "--data=a b: choose")])
def test_refused_in_one_line(words, says, capsys):
    said = refused(words, says, capsys)
    typed = " ".join(words)                             # no flag with a number that nobody gave
    assert all(f in typed for f in re.findall(r"--\w+=\d+", said))


def test_wide_enough_and_asked_properly():
    assert flags.parse(["--widen=128"]).widen == 128
    assert flags.parse(["--init_from=a.pt", "--widen=64"]).widen == 64       # its width is its own
    assert flags.parse(["--ask=Who?", "--context=Ada."]).context == "Ada."
    assert flags.parse(["--data=clinc150", "--people=5000"]).people == 5000


def test_the_whole_night_of_the_paper_is_one_flag():
    usual, whole = flags.parse([]), flags.parse(["--paper"])
    assert (usual.divergence, usual.on_policy, usual.dream) == ("sft", 0, 0)
    assert (whole.divergence, whole.on_policy, whole.dream) == ("forward", 0.25, 1)
    differ = {k for k in flags.FLAGS if getattr(usual, k) != getattr(whole, k)}
    assert differ == {"paper", *flags.PAPER}
    assert flags.parse(["--on_policy=1", "--paper", "--dream=0"]).on_policy == 1
    assert flags.parse(["--on_policy=1", "--paper", "--dream=0"]).dream == 0
    for name, value in flags.PAPER.items():
        assert flags.value_of(name, str(value)) == value
        assert f"--{name}={value}" in flags.FLAGS["paper"][2]


def test_a_script_of_bench_brings_its_own_flags(capsys):
    own = {"n": (5, flags.SOME, "how many"), "quick": (0, flags.SWITCH, "fewer"),
           "out": ("x", flags.TEXT, "where")}
    assert flags.parse(["--quick=1"], "", own, "b.py", quick={"n": 2}).n == 2
    assert flags.parse(["--quick=1", "--n=3"], "", own, "b.py", quick={"n": 2}).n == 3
    assert refused(["--days=3"], "unknown flag", capsys, flags=own, script="b.py")[:5] == "b.py:"
    assert flags.numbers("1,2,30", "seeds", "b.py") == [1, 2, 30]
    for text in ("", "1,", "a", "-1", "1" * 5000):
        with pytest.raises(SystemExit):
            flags.numbers(text, "seeds", "b.py")
    for wrong in (OSError("no file"), ValueError("two\nlines"), KeyboardInterrupt()):
        def main(argv):
            raise wrong
        capsys.readouterr()
        with pytest.raises(SystemExit):
            flags.guarded(main, "b.py")
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_is_pasted_is_one_word_of_the_shell():
    line = flags.pasted(resume=True, out_dir="my out; rm -rf $HOME", ask="it's 5?")
    assert shlex.split(line) == ["--resume", "--out_dir=my out; rm -rf $HOME", "--ask=it's 5?"]


# --------------------------------------------------------------------------------------------------
# The flags of a life that has begun

def begun(folder, *words):
    """args.json as a life with these flags writes it."""
    a = flags.parse([*words, f"--out_dir={folder}"])
    a.command = "python sleep.py " + " ".join(words)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "args.json").write_text(json.dumps(flags.kept(a)))
    return a


def test_a_life_goes_on_with_its_flags_and_its_command(tmp_path, capsys):
    begun(tmp_path, "--days=3", "--on_policy=0", "--deterministic")
    words = ["--resume", f"--out_dir={tmp_path}"]
    a = flags.resumed(flags.parse(words), words)
    assert (a.days, a.on_policy, a.deterministic, a.resume) == (3, 0.0, True, True)
    assert a.command == "python sleep.py --days=3 --on_policy=0 --deterministic"
    for more, says in ((["--days=4"], "leave out --days"), (["--out_dir=none here"], "nothing to")):
        with pytest.raises(SystemExit):
            flags.resumed(flags.parse(words + more), words + more)
        assert says in capsys.readouterr().err


ALL = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-2 ** 70, 2 ** 70), st.floats(),
                             st.text(max_size=5)),
                   lambda inner: st.lists(inner, max_size=3)
                   | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6)


@fuzz
@given(ALL, st.sampled_from([*flags.FLAGS, "command", "a flag of tomorrow"]))
def test_any_args_file_is_read_or_refused_in_one_line(tmp_path_factory, content, name):
    folder = tmp_path_factory.getbasetemp() / "args"
    good = flags.kept(begun(folder))
    words = [f"--out_dir={folder}", "--resume"]
    old, sys.stderr = sys.stderr, io.StringIO()
    try:
        for data in (content, {**good, name: content},
                     {k: v for k, v in good.items() if k != name}):
            sys.stderr = io.StringIO()
            (folder / "args.json").write_text(json.dumps(data))
            try:
                a = flags.resumed(flags.parse(words), words)
                assert a.resume is True
                assert all(type(getattr(a, k)) is type(flags.FLAGS[k][0]) for k in flags.FLAGS)
            except SystemExit as stop:
                said = sys.stderr.getvalue()
                assert stop.code == 2 and "args.json" in said and said.count("\n") == 1
    finally:
        sys.stderr = old


def test_a_question_goes_to_the_life_in_the_folder(tmp_path, capsys):
    begun(tmp_path, "--data=clinc150", "--n_layer=2")

    def asked(*words):
        words = ["--ask=Who?", *words]
        return flags.asked(flags.parse(words), words)
    here = f"--out_dir={tmp_path}"
    a = asked(here, "--threads=2", "--context=Ada.")
    assert (a.data, a.n_layer, a.threads, a.ask, a.context) == ("clinc150", 2, 2, "Who?", "Ada.")
    assert asked(here, "--data=clinc150").out_dir == str(tmp_path)
    assert asked(f"--out_dir={tmp_path}/none").n_layer == 2              # a life beside it
    assert asked(f"--out_dir={tmp_path}/other", "--n_layer=3").n_layer == 3
    for word in ("--data=world", "--days=3", "--data_dir=elsewhere"):
        with pytest.raises(SystemExit):
            asked(here, word)
        assert f"leave out {word.partition('=')[0]}" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------
# What keeps a run alive

def test_begin_sets_up_the_machine(tmp_path):
    threads = torch.get_num_threads()
    try:
        a = run.begin(["--device=cpu", "--dtype=bfloat16", "--threads=1", "--out_dir=my out"])
        assert a.torch_device.type == "cpu" and torch.get_num_threads() == 1
        assert a.command.endswith("--threads=1 '--out_dir=my out'")
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16
    finally:
        run.begin(["--device=cpu"])
        torch.set_num_threads(threads)
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32
    begun(tmp_path, "--days=3")
    assert run.begin(["--resume", f"--out_dir={tmp_path}"]).command == "python sleep.py --days=3"


def test_a_device_that_is_not_there(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SystemExit):
        run.device_of(flags.parse(["--device=cuda"]))
    assert "for each process" in capsys.readouterr().err
    assert run.device_of(flags.parse([])).type == "cpu"


def test_each_stage_draws_from_a_generator_of_its_own(monkeypatch):
    a = SimpleNamespace(seed=1)

    def drawn(*names, **kw):
        run.stage(a, *names, **kw)
        return random.random(), float(torch.rand(1))
    first = drawn("night", 3)
    assert drawn("night", 4) != first and drawn("night", 3) == first
    assert drawn("night", 3, own=True) == first                  # alone, it is the same
    monkeypatch.setattr(run.team, "RANK", 1)
    assert drawn("night", 3) == first and drawn("night", 3, own=True) != first


def test_the_first_interrupt_asks_and_the_second_ends(monkeypatch):
    said = []
    monkeypatch.setattr(run.os, "write", lambda fd, line: said.append(line))
    try:
        assert not run.wants_to_stop()
        run.on_interrupt(signal.SIGTERM, None)
        assert run.wants_to_stop() and len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            run.on_interrupt(signal.SIGINT, None)
    finally:
        run.STOP.clear()


@pytest.mark.parametrize("error, says", [
    (KeyboardInterrupt(), "interrupted: go on with --resume '--out_dir=my out'"),
    (OSError(errno.ENOSPC, "No space left on device", "out/base.pt"),
     "out/base.pt: No space left on device: what was saved is whole, make room and go on with"),
    (FileNotFoundError("no checkpoint"), "no checkpoint"), (ValueError("one\ntwo"), "one two"),
    (MemoryError(), "out of memory: lower"), (torch.OutOfMemoryError("GPU"), "out of memory"),
    (RuntimeError("can't allocate memory"), "out of memory")])
def test_whatever_goes_wrong_outside_is_one_line(error, says, monkeypatch, capsys):
    def main(argv):
        raise error
    monkeypatch.setattr(run, "LIVING", ["my out"])
    monkeypatch.setattr(run, "unbreakable", lambda: None)
    monkeypatch.setattr(run.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as stop:
        run.guarded(main)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and says in said and len(said.splitlines()) == 1


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    def main(argv):
        raise RuntimeError("shapes do not match")
    monkeypatch.setattr(run, "unbreakable", lambda: None)
    monkeypatch.setattr(run.signal, "signal", lambda *_: None)
    with pytest.raises(RuntimeError, match="shapes"):
        run.guarded(main)


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from data import run
from tqdm import tqdm
def main(argv):
    with open({path!r}, "w") as f:
        for i in tqdm(range(3), mininterval=0):
            print("day \\u2500\\u25ba", i, "x" * 20000)
            print("noise", file=sys.stderr)
        f.write("whole")
run.guarded(main)
"""


@pytest.mark.parametrize("streams", [">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full",
                                     "2>&1 | true", ">/dev/null 2>/dev/null"])
def test_a_closed_or_full_terminal_costs_nothing(streams, tmp_path):
    """And one that knows only ASCII, which all of them are here."""
    if "full" in streams and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    path, script = tmp_path / "life", tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT), path=str(path)))
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(script))}"
    line = f"{{ {command}; echo $? >{shlex.quote(str(tmp_path / 'code'))}; }} {streams}"
    r = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=120,
                       env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (tmp_path / "code").read_text().strip() == "0" and path.read_text() == "whole"
    assert r.stderr == "" and "Traceback" not in r.stdout


def test_ctrl_c_while_torch_loads_is_one_line(tmp_path):
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    code = ("import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "from data import run")              # a job in the background would not hear a Ctrl-C
    r = subprocess.run([sys.executable, "-c", code], capture_output=True,
                       text=True, timeout=60, cwd=ROOT,
                       env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert r.returncode and r.stderr.strip().endswith("interrupted")
    assert len(r.stderr.splitlines()) == 1


# --------------------------------------------------------------------------------------------------
# The first minutes

def test_missing_packages_are_named_with_the_command_that_installs_them():
    """The real script in a Python that has none of them (-S: no site-packages)."""
    r = subprocess.run([sys.executable, "-S", "-E", str(ROOT / "sleep.py")], capture_output=True,
                       text=True, timeout=60)
    assert r.returncode == 2 and len(r.stderr.splitlines()) == 1, r.stderr
    for words in ("sleep.py: ", "torch", "numpy", "tiktoken", "tqdm",
                  "pip install -r requirements.txt"):
        assert words in r.stderr
    assert run.lacking() == [] and run.lacking(("os", "no_such_package")) == ["no_such_package"]


def minutes(words, step=0.1):
    """The estimate for the whole life, in minutes, when a step of pretraining takes 0.1 s."""
    said = run.expectation(flags.parse(words), step)
    assert len(said) <= 80 and said.count("Expect") == 1
    many, unit = re.search(r"([\d.]+) (second|minute|hour)", said).groups()
    return float(many) * {"second": 1 / 60, "minute": 1, "hour": 60}[unit]


def test_what_to_expect_follows_the_flags_and_the_machine():
    """The table of README: 7.5 minutes of pretraining and 49 seconds a night (0.107 s a step)."""
    said = run.expectation(flags.parse(["--contrast=0"]), 448.5 / 4200)
    assert said.endswith("in all: 7.5 minutes of pretraining, 49 seconds a night.")
    alone = minutes(["--contrast=0"], 448.5 / 4200)
    assert alone == pytest.approx(804 / 60, rel=0.05)
    assert alone < minutes(["--contrast=0", "--period=5"], 448.5 / 4200)
    usual = minutes([])
    assert minutes([], 0.2) == pytest.approx(2 * usual, rel=0.05)
    assert minutes(["--contrast=0"]) < usual < minutes(["--days=14"]) < minutes(["--days=28"])
    assert minutes(["--people=16"]) > 1.2 * usual > usual > minutes(["--pretrain_steps=2000"])
    assert minutes(["--init_from=base.pt"]) < minutes(["--init_from=FOLDER"]) == usual
    assert minutes(["--method=none"]) < minutes(["--method=sft"]) < minutes(["--contrast=0"])
    assert minutes(["--seed_steps=40", "--contrast=0"]) < minutes(["--contrast=0"])
    assert "study" in run.expectation(flags.parse(["--data=clinc150"]), 0.1)
    assert [run.spoken(s) for s in (1, 7, 90, 600, 9000)] == [
        "1 second", "7 seconds", "1.5 minutes", "10 minutes", "2.5 hours"]


def test_trying_how_fast_the_machine_is_learns_and_draws_nothing():
    model = torch.nn.Linear(3, 3)
    before, state = model.weight.detach().clone(), (torch.get_rng_state(), random.getstate())
    data = SimpleNamespace(document=lambda rng, share: ([rng.randrange(3)] * 4, [1.0] * 4))

    def loss_of(model, ids, weight):
        return (model(ids[:, :3].float()) * weight).sum()
    assert 0 < run.seconds_a_step(model, data, loss_of) < 10
    assert torch.equal(model.weight, before) and model.weight.grad is None
    assert torch.equal(torch.get_rng_state(), state[0]) and random.getstate() == state[1]


@pytest.mark.parametrize("words", [["--data=clinc150"], ["--data=languages"], ["--gate=0"]])
def test_directions_where_nothing_is_told_apart_are_refused_in_one_line(words, capsys):
    with pytest.raises(SystemExit):
        flags.parse([*words, "--directions=32"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--directions=32" in said


@pytest.mark.parametrize("words", [["--data=clinc150"], ["--data=languages"], ["--gate=0"],
                                   ["--expand=0"]])
def test_a_period_where_nothing_can_move_is_refused_in_one_line(words, capsys):
    flags.parse(words)
    with pytest.raises(SystemExit):
        flags.parse([*words, "--period=5"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--period=5" in said
