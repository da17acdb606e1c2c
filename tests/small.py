"""Tiny models with random weights, and other things that several tests need."""
import multiprocessing
import os
import pickle
import random
import socket
import sys
import time
import traceback
from pathlib import Path

import torch

from data import team
from data.text import Marks
from model import GPT, Config

ROOT = Path(__file__).resolve().parent.parent
MARKS = Marks(bos=(0,), ask=(1,), answer=(2,), end=3)
V = 40
STYLES = {"ours": {},
          "gpt2": dict(act="gelu", rope=False, rms=False, bias=True, qk_norm=False, conv=0),
          "two taps": dict(conv=2, rope=False),
          "llama": dict(act="swiglu", n_kv_head=1, qk_norm=False, conv=0, tied=False, rope_base=5e5,
                        rope_scaling=(8.0, 1.0, 4.0, 16)),
          "qwen": dict(act="swiglu", n_kv_head=2, n_head=4, qk_norm=False, conv=0, qkv_bias=True,
                       qk_gain=True, head_dim=8)}


def plain(dtype=torch.float64, **options):
    """A small model with random weights everywhere: gains, biases and convolutions too. Nothing is
    0 or 1 by luck."""
    small = dict(vocab_size=V, block_size=64, n_layer=2, n_head=3, head_dim=16, n_embd=48, d_ff=100,
                 ranks=(4, 8, 6), hears=1)
    model = GPT(Config(**{**small, **options})).to(dtype).requires_grad_(False).eval()
    for name, p in model.named_parameters():
        gain = "norm" in name and name.endswith("weight")
        p.copy_(1 + 0.3 * torch.randn_like(p) if gain else 0.2 * torch.randn_like(p))
    return model


def expand(model, level, n, loudness=0.3):
    """n settled experts with random weights."""
    model.unlock(level, n=n)
    for block in model.remembering():
        live = block.levels[level]
        live.A_live.data = 0.3 * torch.randn_like(live.A_live)
        live.B_live.data = loudness * torch.randn_like(live.B_live)
    model.settle(level)
    return model


def lively(dtype=torch.float64, **options):
    """plain, with two loud experts on each level."""
    model = plain(dtype, **options)
    for level in range(3):
        expand(model, level, 2)
    return model


def little(seed=0, **options):
    """float32, as small as can be."""
    torch.manual_seed(seed)
    small = dict(block_size=256, n_head=2, head_dim=8, n_embd=16, d_ff=32, ranks=(4, 4, 4))
    return plain(torch.float32, **{**small, **options})


def tokens(*shape):
    return torch.randint(V, shape)


def close(a, b, tol=1e-11):
    torch.testing.assert_close(a, b, rtol=0, atol=tol)


def far(a, b):
    """Outputs that really differ: else a test of equality would hold where nothing happens."""
    return (a - b).abs().max() > 0.1


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


# --------------------------------------------------------------------------------------------------
# Processes

def member(rank, size, port, work, pipe):
    try:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank),
                          LOCAL_WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1",
                          MASTER_PORT=str(port))
        torch.set_num_threads(1)
        random.seed(0), torch.manual_seed(0)
        team.start()
        pipe.send_bytes(pickle.dumps((work(), None)))
        team.end()
    except BaseException:
        pipe.send_bytes(pickle.dumps((None, traceback.format_exc())))


def of_a_team(work, size=2, limit=120):
    """[what work() returned in each of `size` forked processes that are a team]. None of them is
    left behind."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    pipes = [fork.Pipe(duplex=False) for _ in range(size)]
    members = [fork.Process(target=member, args=(r, size, port, work, pipes[r][1]))
               for r in range(size)]
    try:
        for p in members:
            p.start()
        end, got = time.time() + limit, []
        for pipe, _ in pipes:
            assert pipe.poll(max(0, end - time.time())), "a process says nothing: a deadlock?"
            got.append(pickle.loads(pipe.recv_bytes()))
    finally:
        for p in members:
            p.join(5)
            p.kill()
    assert not any(error for _, error in got), got
    return [result for result, _ in got]


ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
PYTHON = sys.executable
