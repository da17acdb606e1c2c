"""The four kernels of model.py, each held against a slow obvious twin or against numbers worked out by hand."""
import math
import random

import pytest
import torch
import torch.nn.functional as F

import model as nanosleep
from model import chunked_divergence, divergence, grouped_experts, levenshtein

LN2, LN3 = math.log(2), math.log(3)


# ----------------------------------------------------------------------------------------------------------------------
# grouped experts

def experts_one_by_one(x, expert, A, B):
    rows = [F.gelu(row @ A[e]) @ B[e] if e < len(A) else torch.zeros_like(row) for row, e in zip(x, expert.tolist())]
    return torch.stack(rows)


SIZES = [(1, 1, 16), (1, 5, 16), (16, 1, 16), (17, 1, 16), (31, 2, 16), (50, 3, 16), (64, 9, 16), (33, 40, 16),
         (13, 4, 1), (100, 7, 5), (5, 3, 64)]


@pytest.mark.parametrize("N, E, tile", SIZES)
@pytest.mark.parametrize("who", ["any", "silent", "crowd"])
def test_grouped_experts_equal_a_loop_over_tokens(N, E, tile, who):
    d, r = 6, 3
    x, A, B = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(N, d), (E, d, r), (E, r, d)])
    expert = {"any": torch.randint(E + 1, (N,)),                     # E is "no expert"
              "silent": torch.full((N,), E),
              "crowd": torch.full((N,), E - 1)}[who]
    weight = torch.randn(N, d, dtype=torch.float64)                  # so that every output has its own gradient
    fast, slow = grouped_experts(x, expert, A, B, tile), experts_one_by_one(x, expert, A, B)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-13)
    assert (fast[expert == E] == 0).all()                            # silent means exactly zero, not small
    ours = torch.autograd.grad((fast * weight).sum(), [x, A, B])
    if (expert == E).all():
        assert all((g == 0).all() for g in ours)
    else:
        theirs = torch.autograd.grad((slow * weight).sum(), [x, A, B])
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


# ----------------------------------------------------------------------------------------------------------------------
# divergences. T = (1/2, 1/4, 1/4) and S = (1/8, 1/8, 3/4); every ratio is made of twos and threes

T = torch.tensor([[1 / 2, 1 / 4, 1 / 4]], dtype=torch.float64).log()
S = torch.tensor([[1 / 8, 1 / 8, 3 / 4]], dtype=torch.float64).log()
FORWARD = 1 / 2 * 2 * LN2 + 1 / 4 * LN2 - 1 / 4 * LN3                # T log(T/S): 0.591781
REVERSE = -1 / 8 * 2 * LN2 - 1 / 8 * LN2 + 3 / 4 * LN3               # S log(S/T): 0.564029


def test_forward_is_kl_of_teacher_to_student_and_reverse_the_other_way():
    assert abs(FORWARD - 0.591781) < 1e-6 and abs(REVERSE - 0.564029) < 1e-6
    assert abs(divergence(T, S, "forward").item() - FORWARD) < 1e-12
    assert abs(divergence(T, S, "reverse").item() - REVERSE) < 1e-12


def test_jsd_against_numbers_worked_out_by_hand():
    # beta = 1/4: M = T/4 + 3S/4 = (7/32, 5/32, 20/32)
    to_T = 1 / 2 * math.log(16 / 7) + 1 / 4 * math.log(8 / 5) + 1 / 4 * math.log(8 / 20)        # KL(T || M)
    to_S = 1 / 8 * math.log(4 / 7) + 1 / 8 * math.log(4 / 5) + 3 / 4 * math.log(24 / 20)        # KL(S || M)
    assert abs(divergence(T, S, "jsd", 0.25).item() - (to_T / 4 + 3 * to_S / 4)) < 1e-12
    # beta = 1/2: M = (5/16, 3/16, 8/16), the usual symmetric divergence
    to_T = 1 / 2 * math.log(8 / 5) + 1 / 4 * math.log(4 / 3) + 1 / 4 * math.log(4 / 8)
    to_S = 1 / 8 * math.log(2 / 5) + 1 / 8 * math.log(2 / 3) + 3 / 4 * math.log(12 / 8)
    assert abs(divergence(T, S, "jsd", 0.5).item() - (to_T + to_S) / 2) < 1e-12


def test_jsd_leans_to_forward_kl_at_beta_0_and_to_reverse_kl_at_beta_1():
    # GKD: JSD / beta -> KL(teacher || student) for beta -> 0, JSD / (1 - beta) -> KL(student || teacher) for beta -> 1
    tiny = 1e-5
    assert abs(divergence(T, S, "jsd", tiny).item() / tiny - FORWARD) < 1e-4
    assert abs(divergence(T, S, "jsd", 1 - tiny).item() / tiny - REVERSE) < 1e-4


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_divergence_is_zero_only_between_equals(kind):
    p, q = torch.randn(2, 20, 9, dtype=torch.float64).log_softmax(-1)
    assert divergence(p, p, kind, 0.3).abs().max() < 1e-14
    assert divergence(p, q, kind, 0.3).min() > 1e-3


def test_unknown_divergence_is_refused():
    with pytest.raises(ValueError, match="sideways"):
        divergence(T, S, "sideways")


# ----------------------------------------------------------------------------------------------------------------------
# the same, chunk by chunk

N, V, DIM, CHUNK = 23, 31, 12, 7                                     # 23 positions: three whole chunks and a rest


def hidden_head_and_teacher(teacher_has_head):
    hidden, head = torch.randn(N, DIM, requires_grad=True), torch.randn(V, DIM, requires_grad=True)
    if teacher_has_head:                                             # a teacher of another width
        return hidden, head, torch.randn(N, 5), torch.randn(V, 5)
    return hidden, head, torch.randn(N, V).log_softmax(-1), None


@pytest.mark.parametrize("teacher_has_head", [False, True])
@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_chunked_divergence_equals_the_whole(teacher_has_head, kind, temperature):
    hidden, head, teacher, teacher_head = hidden_head_and_teacher(teacher_has_head)
    target = (teacher @ teacher_head.T / temperature).log_softmax(-1) if teacher_has_head else teacher
    whole = divergence(target, (hidden @ head.T / temperature).log_softmax(-1), kind, 0.3)
    parts = chunked_divergence(hidden, head, teacher, kind, 0.3, CHUNK, teacher_head, temperature)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    weight = torch.rand(N)                                           # every position its own weight, as under a mask
    for ours, theirs in zip(torch.autograd.grad((parts * weight).sum(), [hidden, head]),
                            torch.autograd.grad((whole * weight).sum(), [hidden, head])):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("teacher_has_head", [False, True])
def test_chunked_divergence_holds_one_chunk_at_a_time(teacher_has_head, monkeypatch):
    hidden, head, teacher, teacher_head = hidden_head_and_teacher(teacher_has_head)
    given = {t.untyped_storage().data_ptr() for t in (hidden, head, teacher)}
    rows, kept = [], []

    def spy(t, s, *rest):
        rows.append(len(s))
        return divergence(t, s, *rest)

    def keep(t):                                                     # what autograd stores beside its inputs
        kept.append(0 if t.untyped_storage().data_ptr() in given else t.numel())
        return t
    monkeypatch.setattr(nanosleep, "divergence", spy)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        chunked_divergence(hidden, head, teacher, chunk=CHUNK, teacher_head=teacher_head).sum().backward()
    assert max(rows) == CHUNK and sum(rows) == 2 * N                 # once forward, once more in the backward pass
    assert sum(kept) < CHUNK * V                                     # nothing as large as a chunk waits in between


# ----------------------------------------------------------------------------------------------------------------------
# edit distance

def edit_distance(a, b):
    """The usual table, cell by cell."""
    D = [[i + j for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            D[i][j] = min(D[i - 1][j] + 1, D[i][j - 1] + 1, D[i - 1][j - 1] + (a[i - 1] != b[j - 1]))
    return D[-1][-1]


def batch(rows, width):
    """Rows behind which lies junk that could well match: only the lengths say where a row ends."""
    junk = torch.randint(3, (len(rows), width))
    for line, row in zip(junk, rows):
        line[:len(row)] = torch.tensor(row, dtype=torch.long)
    return junk, torch.tensor([len(row) for row in rows])


def test_levenshtein_of_known_words():
    words = [("kitten", "sitting", 3), ("flaw", "lawn", 2), ("", "abc", 3), ("abc", "", 3), ("", "", 0), ("a", "a", 0)]
    (a, len_a), (b, len_b) = (batch([list(map(ord, w[side])) for w in words], 8) for side in (0, 1))
    assert levenshtein(a, b, len_a, len_b).tolist() == [w[2] for w in words]


@pytest.mark.parametrize("width_a, width_b", [(9, 9), (3, 12), (12, 3), (0, 4), (4, 0), (0, 0)])
def test_levenshtein_equals_the_table_on_ragged_pairs(width_a, width_b):
    row = lambda width: [random.randrange(3) for _ in range(random.randint(0, width))]
    pairs = [(row(width_a), row(width_b)) for _ in range(60)]
    (a, len_a), (b, len_b) = (batch([p[side] for p in pairs], w) for side, w in ((0, width_a), (1, width_b)))
    assert levenshtein(a, b, len_a, len_b).tolist() == [edit_distance(*p) for p in pairs]
