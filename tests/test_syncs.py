"""The hot loops never wait for the device, and never mix two: run on a pretended GPU, where nothing
has a value, every op that would have to tell the host something is an error; and counted on the
CPU, where it is not."""
from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import (DataDependentOutputException,
                                           DynamicOutputShapeException, FakeTensorMode)
from torch.utils._python_dispatch import TorchDispatchMode

import seed
from data import kernels
from data.engine import behind, generate, new_cache, prefill, sample, take_rows
from data.quizzes import Quizzes
from model import FAST, GPT, SLOW, Config
from tests.small import MARKS, STYLES, V, lively

GPU = "cuda" if torch.backends.cuda.is_built() else "meta"     # a CPU build cannot say cuda at all
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique_dim",
         "_unique2", "unique_consecutive", "unique_dim_consecutive", "repeat_interleave.Tensor"}


class Waiting(TorchDispatchMode):
    """Counts what makes the host wait for a device: values, and shapes that depend on them."""
    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__ if func.__name__ in WAITS else func._schema.name.removeprefix("aten::")
        if name in WAITS:
            self.seen[name] += 1
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        if any(t is not None and t.dtype is torch.bool for t in indices):
            self.seen[f"boolean {name}"] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def waits(monkeypatch):
    """A Waiting mode; lists of numbers, which pass by the dispatcher, are counted as well."""
    mode, usual = Waiting(), torch.Tensor.tolist

    def tolist(t):
        mode.seen["tolist"] += 1
        return usual(t)
    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    return mode


def quizzes(n=12, T=10, A=3, device="cpu"):
    ids = torch.randint(4, V, (n, T), device=device)
    start = torch.full((n,), 6, device=device)
    target = torch.randn(n, A, V, device=device).log_softmax(-1)
    zero = torch.zeros_like(start)
    return Quizzes(ids, start, start + A, zero, zero + 2, zero + 4, ids > V // 2, zero, zero > 0,
                   zero + 2, target)


def awake(n, device="cpu"):
    expert = torch.arange(n, device=device) % 3 - 1
    return {FAST: (expert, torch.zeros_like(expert)), SLOW: (expert, expert + 3)}


def one_step(model, kind):
    """A step of distillation: loss, gradient, Muon."""
    params = model.unlock(FAST)
    momenta = [torch.zeros_like(p) for p in params]
    z = quizzes(device=model.device)
    loss = seed.off_policy_loss(model, z, MARKS, FAST, kind)
    seed.descend(params, momenta, loss, 0, 10, 0.1)
    return loss


def steps(model, cache, token, awake, n=4):
    """The body of `generate`."""
    for _ in range(n):
        logits = model.logits(model.hidden(token[:, None], cache=cache, awake=awake)[:, 0])
        token = sample(logits, 0.8, 5, None)
    return token


# --------------------------------------------------------------------------------------------------
# On a pretended GPU

def pretended(style, **options):
    """A model with two experts on two levels, on a GPU that is not there."""
    with torch.device(GPU):
        small = dict(vocab_size=V, block_size=64, n_layer=2, n_head=4, head_dim=16, n_embd=48,
                     d_ff=100, ranks=(4, 8, 6), hears=1)
        model = GPT(Config(**{**small, **STYLES[style], **options})).requires_grad_(False).eval()
    for level in (FAST, SLOW):
        model.unlock(level, 2)
        model.settle(level)
    return model


@pytest.mark.parametrize("style", STYLES)
def test_nothing_waits_on_a_gpu_and_no_device_is_mixed(style):
    with FakeTensorMode():
        model = pretended(style)
        assert model.device.type == GPU and model.n_experts(FAST) == 2
        ids = torch.randint(V, (3, 20), device=GPU)
        assert model(ids, awake=awake(3, GPU)).device.type == GPU
        for kind in ("forward", "reverse", "jsd", "sft"):
            assert one_step(model, kind).device.type == GPU
            model.discard(FAST)
        rows = [[5, 6, 7], [8, 9]]
        cache, logits = prefill(model, rows, awake(2, GPU))
        many = torch.arange(4, device=GPU) // 2
        for rows in (behind(model, cache, 2, 8), take_rows(cache, many, 8)):
            token = steps(model, rows, sample(logits[many], 1.0, 0, None), awake(4, GPU))
            assert token.device.type == GPU and token.shape == (4,)


def test_a_pretended_gpu_notices():
    """The tests above can fail."""
    with FakeTensorMode():
        x = torch.ones(3, device=GPU)
        with pytest.raises(DataDependentOutputException):
            x.sum().item()
        with pytest.raises(DataDependentOutputException):
            x.sum().tolist()
        for wait in (lambda: x.nonzero(), lambda: x[x > 0]):
            with pytest.raises(DynamicOutputShapeException):
                wait()
        with pytest.raises(RuntimeError, match="device"):
            x + torch.ones(3)


# --------------------------------------------------------------------------------------------------
# Counted

def test_the_count_sees_what_waits(waits):
    x = torch.ones(4)
    with waits:
        x.sum().item(), x[x > 0], x.nonzero(), x.tolist(), bool((x > 0).all())
        x[x > 2] = x[x > 2]
        float(x.sum()), torch.equal(x, x), x.unique(dim=0)
    assert waits.seen == {"_local_scalar_dense": 3, "boolean index": 2, "nonzero": 1, "tolist": 1,
                          "boolean index_put_": 1, "equal": 1, "unique_dim": 1}


@pytest.mark.parametrize("style", ["ours", "qwen"])
def test_hot_loops_do_not_wait(style, waits, monkeypatch):
    """On the CPU, with grouped_experts told to count tiles as on a GPU."""
    model, n = lively(torch.float32, n_layer=2, **STYLES[style]), 6
    monkeypatch.setattr(kernels, "HOST", ())
    token, who = torch.randint(V, (n,)), awake(n)
    cache = new_cache(model, n, 20)
    with waits:
        model.hidden(torch.randint(V, (n, 9)), awake=who)
        steps(model, cache, token, who, 8)
        for kind in ("forward", "sft"):
            one_step(model, kind)
            model.discard(FAST)
    assert waits.seen == {}


def test_sampling_looks_once_in_eight_steps(waits, monkeypatch):
    """Whether all rows have ended; and the rows are lists at the end, once."""
    monkeypatch.setattr(kernels, "HOST", ())
    model = lively(torch.float32)
    with waits:
        rows = generate(model, [[5, 6], [7]], 24, n=3, awake=awake(2))
    assert [len(row) for row in rows] == [24] * 6
    assert waits.seen == {"_local_scalar_dense": 2, "tolist": 1}
