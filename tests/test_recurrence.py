"""Offline recurrence: the kernel against its loop, Algorithm 1 against itself spelled out, the
tasks against slow twins, and the real script on a few steps."""
import json

import pytest
import torch
import torch.nn.functional as F

from bench import recurrence as R
from bench import tables


# --------------------------------------------------------------------------------------------------
# the kernel

def inputs(L, dtype=torch.float64, B=2, H=3, K=8, V=5, S=True):
    draw = lambda *shape: torch.randn(*shape, dtype=dtype, requires_grad=True)
    x = [draw(B, H, L, K), draw(B, H, L, K), draw(B, H, L, V), draw(B, H, L), draw(B, H, L)]
    return x + ([draw(B, H, V, K)] if S else [])


def outputs(f, x, **kw):
    """o, the last S, and the gradients of something that needs both."""
    q, k, v, a, b, *S = x
    o, end = f(q, F.normalize(k, dim=-1), v, F.logsigmoid(a), b.sigmoid(), *S, **kw)
    weight = torch.linspace(-1, 1, o.numel(), dtype=torch.float64).view_as(o)
    return [o, end, *torch.autograd.grad((o * weight).sum() + end.double().sin().sum(), x)]


@pytest.mark.parametrize("L, chunk", [(1, 32), (13, 32), (31, 32), (32, 32), (33, 32), (131, 32),
                                      (24, 1), (50, 7)])
@pytest.mark.parametrize("S", [True, False])
def test_chunks_equal_the_loop_over_tokens(L, chunk, S):
    x = inputs(L, S=S)
    for ours, slow in zip(outputs(R.gated_delta, x, chunk=chunk), outputs(R.gated_delta_loop, x)):
        torch.testing.assert_close(ours, slow, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype, atol", [(torch.float32, 2e-5), (torch.bfloat16, 0.06)])
def test_chunks_in_low_precision(dtype, atol):
    x = inputs(77, dtype)
    exact = outputs(R.gated_delta_loop, [t.detach().double().requires_grad_() for t in x])
    ours = outputs(R.gated_delta, x)
    assert ours[0].dtype == dtype and ours[1].dtype == torch.float32
    assert all(g.dtype == dtype for g in ours[2:])
    for a, b in zip(ours, exact):  # relative to the size of the whole tensor
        assert (a.double() - b).norm() <= atol * b.norm()


def test_under_autocast_the_chunks_stay_in_float32():
    q, k, v, a, b, S = inputs(40, torch.float32)
    x = q, F.normalize(k, dim=-1), v, F.logsigmoid(a), b.sigmoid(), S
    with torch.autocast("cpu", torch.bfloat16):
        assert (q @ k.mT).dtype == torch.bfloat16
        o, end = R.gated_delta(*x)
    assert all(torch.equal(*pair) for pair in zip((o, end), R.gated_delta(*x)))


def test_strong_forgetting_overflows_nowhere():
    """e^(G_t - G_i) for i > t would be e^900; masked after exp, its gradient would be nan."""
    q, k, v, a, b, S = inputs(64)
    log_a = -20 * a.sigmoid() - 20
    o, end = R.gated_delta(q, k, v, log_a, b.sigmoid(), S)
    slow, slow_end = R.gated_delta_loop(q, k, v, log_a, b.sigmoid(), S)
    torch.testing.assert_close(o, slow, rtol=0, atol=1e-10)
    torch.testing.assert_close(end, slow_end, rtol=0, atol=1e-10)
    grads = torch.autograd.grad(o.sum() + end.sum(), [q, k, v, a, b, S])
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("f", [R.gated_delta, R.gated_delta_loop])
def test_the_delta_rule_by_hand(f):
    """Keys (1,0) and (0,1): a value is read back, halved by a = 1/2, replaced by b = 1, half
    replaced by b = 1/2."""
    key = torch.tensor([[1.0, 0], [0, 1]], dtype=torch.float64)
    k, q = key[[0, 1, 0, 0]], key[[0, 0, 0, 0]]
    v = torch.tensor([[4.0], [7], [10], [2]], dtype=torch.float64)
    a = torch.tensor([1, 0.5, 1, 1], dtype=torch.float64)
    b = torch.tensor([1, 1, 1, 0.5], dtype=torch.float64)
    o, S = f(q[None, None], k[None, None], v[None, None], a.log()[None, None], b[None, None])
    assert o.flatten().tolist() == pytest.approx([4, 2, 10, 6])
    assert S.flatten().tolist() == pytest.approx([6, 7])


def test_the_state_is_handed_on():
    q, k, v, a, b, S = (t.detach() for t in inputs(45))
    a, b = F.logsigmoid(a), b.sigmoid()
    whole, end = R.gated_delta(q, k, v, a, b, S)
    first, middle = R.gated_delta(*(t[:, :, :19] for t in (q, k, v, a, b)), S)
    second, last = R.gated_delta(*(t[:, :, 19:] for t in (q, k, v, a, b)), middle)
    torch.testing.assert_close(torch.cat([first, second], 2), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(last, end, rtol=0, atol=1e-12)


# --------------------------------------------------------------------------------------------------
# Algorithm 1

def reader(kinds="ad", window=5, **kw):
    model = R.Reader(20, 20, 9, width=16, heads=2, kinds=kinds, window=window, **kw).double()
    for block in model.blocks:  # as after some training: new blocks are the identity
        torch.nn.init.normal_(block.proj.weight, std=0.3)
        torch.nn.init.normal_(block.down.weight, std=0.3)
    return model


def tokens(L, n=3):
    return torch.randint(20, (n, L, 2))


@pytest.mark.parametrize("loop", ["both", "state", "reset"])
def test_algorithm_1_spelled_out(loop):
    model, x, asked = reader(), tokens(10), tokens(4)
    attention, delta = model.blocks
    S = None
    for part in (x[:, :5], x[:, 5:]):  # two windows, three passes each, no cache between them
        e = model.embed(part)
        before = S
        h1, S1 = delta(attention(e, None, 5)[0], S, 5)
        h2, S2 = delta(attention(e if loop == "state" else R.norm(h1) + e, None, 5)[0], S1, 5)
        last = attention(e if loop == "state" else R.norm(h2) + e, None, 5)[0]
        h3, S = delta(last, before if loop == "reset" else S2, 5)
    h, _ = delta(attention(model.embed(asked), None, 5)[0], S, 5)
    assert torch.equal(model(x, asked, 3, loop), model.head(R.norm(h)))


def test_hard_eviction_leaves_a_transformer_with_nothing():
    model, asked = reader("aa"), tokens(4)
    assert torch.equal(model(tokens(10), asked, 4), model(tokens(10), asked, 1))
    hybrid = reader()
    assert (hybrid(tokens(10), asked, 1) - hybrid(tokens(10), asked, 1)).abs().max() > 0.01


def test_sliding_eviction_with_one_pass_is_attention_over_the_last_tokens():
    model, x, asked = reader("ada", window=5, eviction="slide"), tokens(13), tokens(4)
    whole, _ = model.one_pass(model.embed(torch.cat([x, asked], 1)), [None] * 3)
    # angles are float32
    want = model.head(R.norm(whole[:, -4:]))
    torch.testing.assert_close(model(x, asked, 1), want, rtol=0, atol=1e-6)
    moved = x.clone()
    moved[:, 9:] = tokens(4)  # the transformer sees the last four tokens, no others
    plain = reader("a", window=5, eviction="slide")
    assert not torch.equal(plain(x, asked, 1), plain(moved, asked, 1))
    moved = x.clone()
    moved[:, :9] = tokens(9)
    assert torch.equal(plain(x, asked, 1), plain(moved, asked, 1))


def test_gradients_run_through_all_passes():
    model, x, asked = reader(), tokens(5), tokens(4)
    loss = lambda: F.cross_entropy(model(x, asked, 3).flatten(0, 1), torch.arange(12) % 9)
    for p in (model.blocks[0].qkv.weight, model.blocks[1].qkv.weight, model.blocks[1].gates.bias,
              model.first.weight):
        i = p.grad = torch.autograd.grad(loss(), p)[0]
        at = i.abs().argmax()
        with torch.no_grad():
            p.view(-1)[at] += 1e-5
            up = loss()
            p.view(-1)[at] -= 2e-5
            down = loss()
            p.view(-1)[at] += 1e-5
        assert abs((up - down) / 2e-5 - i.flatten()[at]) < 1e-7 * max(1, abs(i.flatten()[at]))
        assert abs(i.flatten()[at]) > 1e-4


# --------------------------------------------------------------------------------------------------
# the tasks

@pytest.mark.parametrize("lesson", [None, 3])
def test_khop_by_walking(lesson):
    context, asked, answer, depth = R.khop(50, 7, 4, lesson=lesson)
    for edges, questions, answers in zip(context.tolist(), asked.tolist(), answer.tolist()):
        ahead = dict(edges)
        assert sorted(ahead) == sorted(ahead.values()) == list(range(7))
        for (node, hop), right, k in zip(questions, answers, depth.tolist()):
            assert hop == 7 + k - 1
            for _ in range(k):
                node = ahead[node]
            assert node == right
    in_turn, in_lesson = [1, 1, 2, 2, 3, 3, 4, 4], [1, 1, 2, 2, 3, 3, 3, 3]
    assert sorted(depth.tolist()) == (in_turn if lesson is None else in_lesson)
    assert len({tuple(map(tuple, edges)) for edges in context.tolist()}) == 50


@pytest.mark.parametrize("lesson", [None, 2])
def test_rule_110_by_its_table(lesson):
    table = {"111": 0, "110": 1, "101": 1, "100": 0, "011": 1, "010": 1, "001": 1, "000": 0}
    context, asked, answer, depth = R.rule110(30, 2, 9, 4, lesson=lesson)
    for cells, questions, answers in zip(context.tolist(), asked.tolist(), answer.tolist()):
        assert [place for place, _ in cells] == list(range(18))
        for (row, hop), right, t in zip(questions, answers, depth.tolist()):
            x = [bit for _, bit in cells[9 * (row - 18):9 * (row - 17)]]
            assert hop == 1 + t
            for _ in range(t):
                x = [table[f"{x[i - 1]}{x[i]}{x[(i + 1) % 9]}"] for i in range(9)]
            assert x[0] == right
    in_turn, in_lesson = [1, 1, 2, 2, 3, 3, 4, 4], [1, 1, 1, 1, 2, 2, 2, 2]
    assert sorted(depth.tolist()) == (in_turn if lesson is None else in_lesson)


# --------------------------------------------------------------------------------------------------
# the script

@pytest.mark.parametrize("flag, says", [
    ("--window=0", "--window=0: must lie between 1"),
    ("--hops=13", "cycle of 13 nodes"), ("--pases=1", "did you mean --passes"),
    ("--passes=0", "--passes=0: whole numbers"), ("--passes=1,x", "whole numbers"),
    ("--nodes=many", "whole number"),
    ("--heads=5", "--width"), ("--task=chess", "khop"),
    ("--eviction=none", "hard, slide"), ("--cpu=nan", "--cpu=nan")])
def test_bad_flags_get_one_line(flag, says, capsys):
    with pytest.raises(SystemExit) as stop:
        R.parse([flag])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.count("\n") == 1 and says in message


def test_a_tiny_bench_saves_resumes_and_refuses_other_settings(tmp_path, capsys):
    out = tmp_path / "sub" / "r.json"
    flags = ["--quick", "--steps=20", "--every=10", "--exam=8", "--batch=2",
             "--task=khop,rule110_small", f"--out={out}"]
    R.main(flags)
    said = capsys.readouterr().out
    assert "minutes" in said and "| N=4, equal steps |" in said
    first = json.loads(out.read_text())
    assert [(x["task"], x["variant"], x["n_passes"]) for x in first["runs"]] == [
        ("khop", "hybrid", 1), ("khop", "hybrid", 4), ("khop", "transformer", 1),
        ("khop", "state", 4), ("khop", "reset", 4), ("rule110_small", "hybrid", 1),
        ("rule110_small", "hybrid", 4), ("rule110_small", "transformer", 1)]
    for x in first["runs"]:
        assert x["steps"] == 20 and [p["step"] for p in x["curve"]] == [10, 20]
    assert first["kernel"]["speed_up"] > 1
    assert first["command"].startswith("python bench/recurrence.py --quick")
    assert set(first["versions"]) == {"python", "torch"} and first["settings"]["threads"] == 1
    assert first["threads"] == 1 and {"commit", "date"} <= set(first)
    kept = [x for x in first["runs"] if x["variant"] != "reset"]
    first["runs"][0]["accuracy"]["1"][0] = 0.123  # a finished run is not run again ...
    out.write_text(json.dumps({**first, "runs": kept}))
    R.main(flags)
    again = json.loads(out.read_text())
    assert capsys.readouterr().out.startswith("1 runs")
    assert again["runs"][0]["accuracy"]["1"][0] == 0.123
    one, two = (next(x for x in y["runs"] if x["variant"] == "reset") for y in (first, again))
    # ... a repeated one is the same
    assert one["accuracy"] == two["accuracy"] and one["steps"] == two["steps"]
    assert [p["accuracy"] for p in one["curve"]] == [p["accuracy"] for p in two["curve"]]
    before = out.read_bytes()
    with pytest.raises(SystemExit) as stop:
        R.main([*flags, "--nodes=9"])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.count("\n") == 1
    assert "another --nodes (13)" in message and out.read_bytes() == before


def test_one_pass_learns_the_edges_in_seconds():
    a = R.parse(["--quick", "--steps=60", "--batch=16", "--every=30", "--task=khop",
                 "--nodes=6", "--hops=2"])
    run = R.train(a, "khop", "hybrid", 1, 1)
    assert run["accuracy"]["1"][0] > 0.6 and run["steps"] == 60      # guessing: 1/5


def test_equal_steps_are_read_where_the_slowest_run_stopped():
    def run(n, *points):
        curve = [{"step": s, "accuracy": [x]} for s, x in points]
        return {"seed": 1, "n_passes": n, "curve": curve}
    runs = [run(1, (50, 0.1), (100, 0.2), (150, 0.9)), run(4, (50, 0.5), (100, 0.6))]
    assert tables.at_equal_steps(runs) == {(1, 1): [0.2], (4, 1): [0.6]}
