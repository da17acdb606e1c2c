"""The kernels, each held against a slow obvious twin."""
import math
import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from data import kernels
from data.engine import attend_behind, pad_rows
from data.kernels import grouped_experts, grown, in_chunks, levenshtein, slowed

fuzz = settings(max_examples=60, deadline=None, derandomize=True)


# --------------------------------------------------------------------------------------------------
# Grouped experts

def experts_one_by_one(x, expert, A, B):
    rows = [F.gelu(row @ A[e]) @ B[e] if e < len(A) else torch.zeros_like(row)
            for row, e in zip(x, expert.tolist())]
    return torch.stack(rows)


SIZES = [(1, 1, 16), (16, 1, 16), (17, 1, 16), (31, 2, 16), (64, 9, 16), (33, 40, 16), (13, 4, 1),
         (100, 7, 5), (5, 3, 64)]


@pytest.mark.parametrize("N, E, tile", SIZES)
@pytest.mark.parametrize("who", ["any", "silent", "crowd"])
@pytest.mark.parametrize("host", [("cpu",), ()], ids=["expert by expert", "in tiles"])
def test_grouped_experts_equal_a_loop_over_tokens(N, E, tile, who, host, monkeypatch):
    monkeypatch.setattr(kernels, "HOST", host)
    d, r = 6, 3
    x, A, B = (torch.randn(s, dtype=torch.float64, requires_grad=True)
               for s in [(N, d), (E, d, r), (E, r, d)])
    expert = {"any": torch.randint(E + 1, (N,)),                     # E is "no expert"
              "silent": torch.full((N,), E),
              "crowd": torch.full((N,), E - 1)}[who]
    weight = torch.randn(N, d, dtype=torch.float64)          # so that every output has its gradient
    fast, slow = grouped_experts(x, expert, A, B, tile), experts_one_by_one(x, expert, A, B)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-13)
    assert (fast[expert == E] == 0).all()                            # exactly zero, not small
    ours = torch.autograd.grad((fast * weight).sum(), [x, A, B])
    if (expert == E).all():
        assert all((g == 0).all() for g in ours)
    else:
        theirs = torch.autograd.grad((slow * weight).sum(), [x, A, B])
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_without_experts_nothing_is_added():
    x = torch.randn(5, 6)
    y = grouped_experts(x, torch.zeros(5, dtype=torch.long), torch.zeros(0, 6, 2),
                        torch.zeros(0, 2, 6))
    assert y.shape == x.shape and (y == 0).all()


# --------------------------------------------------------------------------------------------------
# In chunks

def squares(h, t):
    return ((h @ h.T[:,
                     :3]).square().sum(1) * t).sum(-1) if t.ndim == 1 else (h * t).square().sum(1)


@pytest.mark.parametrize("n", [1, 7, 8, 23])
def test_chunks_are_the_whole_and_so_are_their_gradients(n):
    h = torch.randn(n, 5, dtype=torch.float64, requires_grad=True)
    t, weight = torch.randn(n, 5, dtype=torch.float64), torch.rand(n, dtype=torch.float64)
    parts, whole = in_chunks(squares, h, t, chunk=7), squares(h, t)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-13)
    ours, theirs = (torch.autograd.grad((y * weight).sum(), h)[0] for y in (parts, whole))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_chunks_hold_one_chunk_at_a_time():
    h, head, t = torch.randn(23, 12, requires_grad=True), torch.randn(31, 12), torch.zeros(23)
    rows, kept = [], []

    def loss(h, t):
        rows.append(len(h))
        return (h @ head.T).logsumexp(-1) + t

    def keep(x):                                            # what autograd stores beside its inputs
        given = {y.untyped_storage().data_ptr() for y in (h, head, t)}
        kept.append(0 if x.untyped_storage().data_ptr() in given else x.numel())
        return x
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        in_chunks(loss, h, t, chunk=7).sum().backward()
    assert max(rows) == 7 and sum(rows) == 2 * 23            # once forward, once more backward
    assert sum(kept) < 7 * 31                                # nothing as large as a chunk waits


# --------------------------------------------------------------------------------------------------
# Attention behind a shared prefix

@fuzz
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4),
       st.integers(0, 3),
       st.integers(0, 10 ** 6))
def test_attention_behind_a_prefix_is_attention_to_both(P, n, S, T, before, seed):
    torch.manual_seed(seed)
    H, D, L = 2, 4, before + T
    draw = torch.randn
    q, k, v = (draw(P * n, H, t, D, dtype=torch.float64) for t in (T, L, L))
    prefix = [draw(P, H, S, D, dtype=torch.float64) for _ in range(2)]
    mask = torch.zeros(P * n, 1, T, S + L, dtype=torch.float64)
    mask = mask.masked_fill(torch.rand(mask.shape) < 0.3, -torch.inf)
    mask[..., -1] = 0                                        # each sees something
    got = attend_behind(q, k, v, mask, prefix)
    both = [torch.cat([p.repeat_interleave(n, 0), own], 2) for p, own in zip(prefix, (k, v))]
    want = F.scaled_dot_product_attention(q, *both, attn_mask=mask, scale=1.0)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_heads_that_share_keys_behind_a_prefix():
    """Heads 0 to 2 read the first of keys, 3 to 5 the second, as if each had its own."""
    P, n, H, G, S, L, T, D = 2, 3, 2, 3, 5, 4, 2, 8
    q = torch.randn(P * n, G * H, T, D, dtype=torch.float64)
    k, v = torch.randn(2, P * n, H, L, D, dtype=torch.float64)
    prefix = torch.randn(2, P, H, S, D, dtype=torch.float64)
    mask = torch.zeros(P * n, 1, T, S + L).masked_fill(torch.rand(P * n, 1, T, S + L) < 0.3,
                                                       -torch.inf).double()
    mask[..., -1] = 0
    own = [t.repeat_interleave(G, -3) for t in (k, v, *prefix)]
    got, want = attend_behind(q, k, v, mask, prefix), attend_behind(q, *own[:2], mask, own[2:])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


# --------------------------------------------------------------------------------------------------
# Rotary frequencies of a longer context

def test_slowed_frequencies_by_the_words_of_their_definition():
    factor, low, high, context = 8.0, 1.0, 4.0, 64
    freq = torch.logspace(0, -4, 40, dtype=torch.float64)
    for f, got in zip(freq.tolist(), slowed(freq, factor, low, high, context).tolist()):
        turns = context * f / (2 * math.pi)                 # in the context it was trained in
        share = (turns - low) / (high - low)
        want = f if turns > high else f / factor if turns < low else (
            share * f + (1 - share) * f / factor)
        assert got == pytest.approx(want, rel=1e-12)


def test_a_grown_tensor_holds_the_old_one_in_its_corner():
    gen, t = torch.Generator().manual_seed(0), torch.randn(2, 3)
    for noise in (0.0, 1.0):
        big = grown(t, (4, 5), gen, 0.5, noise)
        assert torch.equal(big[:2, :3], t) and (big[2:].abs().max() > 0) == bool(noise)


# --------------------------------------------------------------------------------------------------
# Edit distance

def edit_distance(a, b):
    """The usual table, cell by cell."""
    D = [[i + j for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            swap = D[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            D[i][j] = min(D[i - 1][j] + 1, D[i][j - 1] + 1, swap)
    return D[-1][-1]


def batch(rows, width):
    """Rows behind which lies junk that could well match: only the lengths say where a row ends."""
    junk = torch.randint(3, (len(rows), width))
    for line, row in zip(junk, rows):
        line[:len(row)] = torch.tensor(row, dtype=torch.long)
    return junk, torch.tensor([len(row) for row in rows])


def test_levenshtein_of_known_words():
    words = [("kitten", "sitting", 3), ("flaw", "lawn", 2), ("", "abc", 3), ("abc", "", 3),
             ("", "", 0),
             ("a", "a", 0)]
    (a, len_a), (b, len_b) = (batch([list(map(ord, w[side])) for w in words], 8) for side in (0, 1))
    assert levenshtein(a, b, len_a, len_b).tolist() == [w[2] for w in words]


WORDS = st.lists(st.integers(0, 2), max_size=9)


@fuzz
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=8), st.integers(0, 3),
       st.integers(0, 3))
def test_levenshtein_equals_the_table(pairs, room_a, room_b):
    (a, len_a), (b, len_b) = (
        batch([p[side] for p in pairs], max(len(p[side]) for p in pairs) + room)
        for side, room in ((0, room_a), (1, room_b)))
    assert levenshtein(a, b, len_a, len_b).tolist() == [edit_distance(*p) for p in pairs]


def test_levenshtein_of_long_rows():
    """Longer than what a byte counts."""
    pairs = [([random.randrange(3) for _ in range(random.randint(100, 170))] for _ in range(2))
             for _ in range(3)]
    pairs = [tuple(p) for p in pairs] + [([0] * 170, [1] * 170)]
    (a, len_a), (b, len_b) = (pad_rows([p[side] for p in pairs]) for side in (0, 1))
    assert levenshtein(a, b, len_a, len_b).tolist() == [edit_distance(*p) for p in pairs]


# --------------------------------------------------------------------------------------------------
# The optimizer of a base

def stepped(opt, p, grads, state=None):
    if state:
        opt.load_state_dict(state)
    for grad in grads:
        p.grad = grad.clone()
        opt.step()
    return opt.state_dict()


@pytest.mark.parametrize("shape", [(40, 8), (8, 40), (24, 24)])
def test_muon_is_that_of_torch_without_its_rounding(shape):
    grads = [torch.randn(shape) for _ in range(4)]
    ours, theirs, without = (torch.nn.Parameter(torch.zeros(shape)) for _ in range(3))
    stepped(kernels.Muon([ours, without], lr=0.1), ours, grads)
    stepped(torch.optim.Muon([theirs], lr=0.1, weight_decay=0.0), theirs, grads)
    assert (ours - theirs).abs().max() < 0.03 * theirs.abs().max()          # bfloat16: 8 bits
    assert F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.999
    assert not torch.equal(ours, theirs) and not without.any()              # no gradient, no step


def test_muon_goes_on_from_a_saved_state_with_the_same_bits():
    grads = [torch.randn(6, 4) for _ in range(4)]
    whole, parted = (torch.nn.Parameter(torch.zeros(6, 4)) for _ in range(2))
    stepped(kernels.Muon([whole], lr=0.1), whole, grads)
    half = stepped(kernels.Muon([parted], lr=0.1), parted, grads[:2])
    again = torch.nn.Parameter(parted.detach().clone())
    stepped(kernels.Muon([again], lr=0.1), again, grads[2:], half)
    assert torch.equal(whole, again)
