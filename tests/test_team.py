"""A team of processes lives the life of one: rows, losses, gradients, random numbers, a night, and the real script."""
import copy
import json
import math
import multiprocessing
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

import dream
import glyphs as G
import seed
import sleep
from data import team
from data import store
from data import world as W
from model import GPT, Config, clone, generate
from test_seed import MARKS, little

ROOT = Path(__file__).resolve().parent.parent
QUIZZES = [(0, (1, 9, 8, 2), (7, 3)), (0, (1, 9, 2), (6, 5, 3)), (1, (1, 4, 4, 4, 2), (8, 3)), (1, (1, 12, 13, 2), (14, 3)),
           (1, (1, 12, 2), (14, 15, 16, 3))]


def member(rank, size, port, work, pipe):
    try:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size),
                          MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        team.start()
        pipe.send_bytes(pickle.dumps((work(), None)))
        team.end()
    except BaseException:
        pipe.send_bytes(pickle.dumps((None, traceback.format_exc())))


def of_a_team(work, size=2, limit=240):
    """[what work() returned in each of `size` forked processes that are a team]. None of them is left behind."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    pipes = [fork.Pipe(duplex=False) for _ in range(size)]
    members = [fork.Process(target=member, args=(r, size, port, work, pipes[r][1])) for r in range(size)]
    try:
        for p in members:
            p.start()
        end, got = time.time() + limit, []
        for p, (pipe, _) in zip(members, pipes):
            assert pipe.poll(max(0, end - time.time())), "a process of the team says nothing: deadlock?"
            got.append(pickle.loads(pipe.recv_bytes()))
    finally:
        for p in members:
            p.join(1 if sys.exc_info()[0] is None else 0)
            p.kill()
    assert not any(error for _, error in got), "\n".join(error for _, error in got if error)
    return [result for result, _ in got]


def seeded(work):
    """work() after the same seeds in every process and alone; with it, whether all generators ended in the same state."""
    def run():
        random.seed(3), torch.manual_seed(3)
        return work(), random.random(), torch.rand(1)
    return run


def close(a, b, tolerance):
    return a.shape == b.shape and torch.allclose(a, b, atol=tolerance, rtol=tolerance, equal_nan=True)


def near(a, b, share):
    """As a whole, not number by number: Adam and Muon turn a rounded zero into a whole step."""
    return a.shape == b.shape and (a.double() - b.double()).norm() <= share * b.double().norm()


def wide_awake(model):
    """A live expert of level 1 that is always awake and says something."""
    params = model.unlock(1)
    model.attach(torch.zeros(1, model.config.n_embd), torch.ones(1).double(), 1, 0)
    torch.manual_seed(1)
    for p in params:
        torch.nn.init.normal_(p, std=0.3)
    return params


# ----------------------------------------------------------------------------------------------------------------------
# Rows, sums, and the same random numbers

@pytest.mark.parametrize("size", [2, 3])
def test_rows_are_shared_out_and_come_back_in_order(size):
    def work():
        out, numbers = [], torch.arange(10.0).view(5, 2)
        for n in (5, 3, 1, 0):
            part = list(range(n))[team.mine()]
            count = team.total(torch.ones(n)[team.mine()].sum())
            out.append((team.gather(part), team.gather(numbers[:n][team.mine()], n), len(part), float(count)))
        with_grad, without = torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(2))
        (with_grad * (team.RANK + 1)).sum().backward()
        team.sum_gradients([with_grad, without])
        return out, with_grad.grad.tolist(), without.grad, team.anyone(team.RANK == size - 1), team.anyone(False)
    whole = of_a_team(work, size)
    for rank, (out, grad, none, one, nobody) in enumerate(whole):
        for n, (rows, tensor, own, count) in zip((5, 3, 1, 0), out):
            assert rows == list(range(n)) and torch.equal(tensor, torch.arange(10.0).view(5, 2)[:n]) and count == n
            assert own == len(range(rank, n, size))
        assert grad == [[size * (size + 1) / 2] * 3] * 2 and none is None and one and not nobody


def test_alone_nothing_is_copied_and_nothing_is_sent():
    t, rows = torch.ones(3, requires_grad=True), [1, 2]
    assert team.total(t) is t and team.gather(rows) is rows and rows[team.mine()] == rows and not team.anyone([])


@pytest.mark.parametrize("prompts,n,temperature", [(5, 3, 1.0), (3, 1, 1.0), (1, 3, 0.8), (1, 1, 1.0), (4, 2, 0)])
def test_a_team_writes_the_rows_of_one_and_draws_the_same_numbers(prompts, n, temperature):
    model = little().double()
    wide_awake(model)
    texts = [[0, 5 + i, *range(9, 9 + i)] for i in range(prompts)]
    who = {0: torch.full((prompts * n,), -1), 1: (torch.arange(prompts) % 2 - 1).repeat_interleave(n)}
    work = seeded(lambda: [generate(model, texts, 30, n=n, temperature=temperature, stop=range(1, most), extra=who, gate=gate)
                           for most, gate in ((30, True), (8, False))])                       # soon done, and late
    alone = work()
    assert [len(r) for rows in alone[0] for r in rows] and len({len(r) for r in alone[0][1]}) > (prompts * n > 1) * 1
    for one in of_a_team(work):
        assert one == alone


# ----------------------------------------------------------------------------------------------------------------------
# The losses of the night, their gradients, and what dreams are worth. float64: equal to 1e-6 (log-probabilities are float32)

@pytest.mark.parametrize("rows", [5, 1])
def test_the_losses_of_a_team_are_those_of_one(rows):
    student, teacher = little().double(), little(seed_=1).double()
    params = wide_awake(student)
    teach = seed.reader(teacher, seed.blank(teacher, MARKS))
    z = seed.with_targets(seed.pack(QUIZZES, "cpu"), [teach])
    z["wording"] = z["asks"].new_ones(z["ids"].shape) & (torch.arange(z["ids"].shape[1]) < 3)
    index = torch.tensor([4, 0, 2, 1, 3])[:rows]

    def learnt(loss):
        for p, g in zip(params, torch.autograd.grad(loss, params)):
            p.grad = g
        team.sum_gradients(params)
        return torch.cat([team.total(loss.detach()).view(1), *(p.grad.flatten() for p in params)])

    def work():
        off = [learnt(seed.off_policy_loss(student, z, index, MARKS, 1, kind, 0.5, min(rows, 3)))
               for kind in ("forward", "sft")]
        on, seen = seed.on_policy_loss(student, z, index, teach, MARKS, 4, "reverse", 0.5, 0.6, 0.5, 2, 8)
        return [*off, learnt(on), torch.stack([seen[k].double() for k in ("reward", "spread", "kl")])]
    alone = seeded(work)()
    assert all(t.abs().sum() > 0.1 for t in alone[0])
    for one in of_a_team(seeded(work)):
        assert one[1:] == alone[1:] and all(close(a, b, 1e-6) for a, b in zip(one[0], alone[0]))


def test_steps_of_seeding_with_replay():
    """Both kinds of steps and, as in a night without a gate, a loss on replay dreams; float64 weights after 12 steps."""
    teacher = little(seed_=1).double()
    teach = seed.reader(teacher, seed.blank(teacher, MARKS))
    z = seed.with_targets(seed.pack(QUIZZES, "cpu"), [teach])
    bank = seed.replay_bank(teacher, [[0, 11, 12, 1, 9, 2, 7, 3], [0, 1, 9, 2, 7, 3], [0, 5, 1, 6, 2, 3]], MARKS)

    def work():
        student = little().double()
        params, saved = wide_awake(student), []
        log = seed.distil(student, params, z, teach, MARKS, 1, steps=12, lr=0.02, batch=9, on_policy=0.6, late=0.3, bank=bank,
                          head=teacher.wte.weight, keep=lambda progress: saved.append(progress["step"]))
        return [*(p.detach() for p in params), torch.tensor([log[k] for k in sorted(log)])], sorted(log), saved
    alone = seeded(work)()
    assert alone[0][1] == ["kl", "loss", "reward", "spread"]
    for one in of_a_team(seeded(work)):
        assert one[1:] == alone[1:] and one[0][1:] == alone[0][1:]
        assert all(close(a, b, 1e-5) for a, b in zip(one[0][0], alone[0][0]))


@pytest.mark.parametrize("dreams", [5, 3, 1])
def test_a_team_finds_the_same_dreams_worth_learning(dreams):
    z, quiz = seed.pack(QUIZZES[:dreams], "cpu"), seed.pack(QUIZZES[2:4], "cpu")
    views, reward = [[0, 11, 12], [0, 21, 22]], torch.tensor([1.0, 0, 1, 1, 0])[:dreams]

    def work():
        model = little().double()
        worth = [dream.importance(model, 0, z, quiz, MARKS, s, chunk=2) for s in ("norm", "cosine")]
        gain = dream.trials(model, 0, z, quiz, MARKS)
        loss = dream.rest_em(model, 0, z, views, 1, MARKS, reward, steps=3, batch=3)
        return [*worth, gain, torch.tensor(loss), *(b.levels[0].B for b in model.blocks)]
    alone = seeded(work)()
    for one in of_a_team(seeded(work)):
        assert one[1:] == alone[1:] and all(close(a, b, 1e-5) for a, b in zip(one[0], alone[0]))


def test_a_few_steps_of_pretraining():
    """float32; torch's Muon rounds to bfloat16 (8 bits), so two roundings of a sum may end 1e-2 of a step of 0.03 apart."""
    a, enc, world = sleep.parse(["--pretrain_steps=3"]), W.load_tokenizer(), W.make_world(1)
    marks = seed.Marks(*(enc.encode_single_token(s) for s in sleep.SPECIAL))

    def work():
        model = GPT(Config(vocab_size=enc.n_vocab, n_layer=2, n_head=2, n_embd=64, d_ff=128))
        return sleep.pretrain(a, model, enc, marks, world).state_dict()
    alone, both = seeded(work)(), of_a_team(seeded(work))
    assert both[0][1:] == both[1][1:] == alone[1:]
    for k, t in alone[0].items():
        assert torch.equal(both[0][0][k], both[1][0][k]) and close(both[0][0][k], t, 3e-4), k


# ----------------------------------------------------------------------------------------------------------------------
# Whole nights, and the real script

def test_a_night_of_a_team_is_that_of_one():
    """Asking, router, both kinds of steps, dreaming and consolidation: the same dreams, the same memories afterwards."""
    world = G.make()
    base = G.base(world, steps=120)
    a = sleep.parse(["--replay_dreams=48", "--seed_steps=40", "--dream_steps=6", "--quizzes=4", "--views=2", "--dreams=5",
                     "--dreams_random=2", "--on_policy=0.5"])

    def work():
        random.seed(0), torch.manual_seed(0)
        model, desk = copy.deepcopy(base), {}
        log, _ = sleep.night(a, model, G.passages(world.new[:2], random), G.MARKS, 0, tqdm(disable=True), None, desk)
        recall, night = G.recall(model, world.new[:2]), clone(model).state_dict()
        sleep.reseed(a, "consolidating")
        _, n = seed.consolidate(model, sleep.FAST, sleep.SLOW, G.MARKS, steps=6)
        return (desk["dreamt"], desk["replay"], recall, n), log, night, model.state_dict()
    (said, log, night, later), team_of_two = work(), of_a_team(work)
    assert said[2] > 0.5                                             # there is something to compare
    for one in team_of_two:
        assert one[0] == said
        assert all(math.isclose(one[1][k], v, rel_tol=0.02, abs_tol=1e-3) for k, v in log.items() if k != "dream")
        for mine, first, alone in zip(one[2:], team_of_two[0][2:], (night, later)):
            for k, t in alone.items():                               # every process wakes with the same bits
                assert torch.equal(mine[k], first[k]) and near(mine[k], t, 0.02), k


TINY = ["--n_layer=1", "--n_embd=64", "--n_head=2", "--days=1", "--people=2", "--pretrain_steps=24", "--quizzes=1", "--views=1",
        "--replay_dreams=8", "--seed_steps=3", "--dream_steps=2", "--threads=1", "--contrast=0"]


def torchrun(*words):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(ROOT / "sleep.py")]
    return subprocess.Popen([*launch, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})


def ended(p, limit=240):
    """(exit code, stdout, stderr); whatever still runs after `limit` seconds is killed."""
    try:
        out, err = p.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        p.terminate()                                                # torchrun takes its processes with it
        out, err = p.communicate(timeout=60)
        pytest.fail(f"torchrun did not end:\n{out}\n{err}")
    return p.returncode, out, err


def test_torchrun_is_interrupted_goes_on_and_lives_the_life_of_one(tmp_path, capfd):
    both, alone = tmp_path / "both", tmp_path / "alone"
    p = torchrun(*TINY, f"--out_dir={both}")
    while not (both / "args.json").exists() and p.poll() is None:
        time.sleep(0.02)
    p.send_signal(signal.SIGINT)                                     # torchrun hands a Ctrl-C on to all
    code, out, err = ended(p)
    assert code and err.count("interrupted: go on with --resume") == 1 and err.count("finishing this step") == 1, err
    assert (both / "pretraining.pt").exists() and "pretrained" not in out
    of_a_team(lambda: sleep.main(["--resume", f"--out_dir={both}"]))
    sleep.main([*TINY, f"--out_dir={alone}"])
    said = capfd.readouterr().out
    assert said.count("pretrained") == said.count("sleep  1: read") == 2                     # one of the team, and the one
    a, b = (json.loads((x / "summary.json").read_text()) for x in (alone, both))
    assert a["R"] == b["R"] and (a["processes"], b["processes"]) == (1, 2)
    a, b = (store.load(str(x / "base.pt"))[0]["model"] for x in (alone, both))
    assert all(near(b[k], a[k], 0.02) for k in a), {k: float((a[k] - b[k]).norm() / a[k].norm()) for k in a if a[k].numel()}


def test_what_one_process_alone_can_do(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SystemExit):
        sleep.pick_device(sleep.parse(["--device=cuda"]))
    assert sleep.pick_device(sleep.parse([])).type == "cpu"
