"""
Small kernels in plain torch, for any device, without a host sync. Each has a slow, obvious twin
in tests/test_kernels.py.
"""
import math

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

HOST = ("cpu",)                         # devices whose values the host has at hand


def grouped_experts(x, expert, A, B, tile=16):
    """B_e gelu(A_e x) for each token's own expert e; the cost does not grow with the experts.

    x (N, d); expert (N,) in 0..E, E for none (those rows are exactly 0); A (E, d, r); B (E, r, d)
    -> (N, d). Tokens are sorted by expert, in all ways of computing it.
    """
    if x.shape[0] == 0 or A.shape[0] == 0:
        return torch.zeros_like(x)
    order = expert.argsort(stable=True)
    if x.device.type in HOST:
        y = expert_by_expert(x[order], expert, A, B)
    else:
        y = in_tiles(x[order], expert[order], A, B, tile)
    return torch.zeros_like(x).index_put((order,), y.to(x.dtype))


def expert_by_expert(x, expert, A, B):
    """The tokens x (N, d), sorted by expert: two matmuls for each expert. Only where the host has
    the counts at hand: a GPU would wait for it. No weight is copied: for one expert of rank 773
    three to five times as fast as tiles, of rank 32 twice."""
    count = torch.bincount(expert, minlength=len(A) + 1).tolist()
    *mine, rest = x.split(count)
    y = [F.gelu(part @ a) @ b for part, a, b in zip(mine, A.unbind(), B.unbind())]
    return torch.cat([*y, torch.zeros_like(rest)])


def in_tiles(x, expert, A, B, tile):
    """The tokens x (N, d) with their experts (N,), both sorted, laid out in tiles of `tile` rows
    that belong to one expert each: two batched matmuls over tiles. The number of tiles is bounded
    by shapes alone, so the device never has to tell the host anything."""
    N, E = x.shape[0], A.shape[0]
    count = (expert[:, None] == torch.arange(E, device=x.device)).sum(0)    # (E,) tokens each
    room = (count + tile - 1) // tile * tile                                # whole tiles
    first, begin = count.cumsum(0) - count, room.cumsum(0) - room
    tiles = N // tile + min(E, N) + 1
    e = expert.clamp(max=E - 1)
    place = begin[e] + torch.arange(N, device=x.device) - first[e]
    slot = torch.where(expert < E, place, tiles * tile - 1)
    some = (expert < E)[:, None]
    laid = x.new_zeros(tiles * tile, x.shape[1]).index_put((slot,), x * some)
    starts = torch.arange(tiles, device=x.device) * tile
    whose = torch.searchsorted(room.cumsum(0), starts, right=True).clamp(max=E - 1)
    inner = F.gelu(torch.bmm(laid.view(tiles, tile, -1), A[whose]))
    y = torch.bmm(inner, B[whose]).flatten(0, 1)
    return torch.where(some, y[slot], 0.0)


def in_chunks(loss, hidden, target, chunk=1024):
    """loss(hidden (n, d), target (n, ...)) -> (n,), a chunk of rows at a time; -> (N,).

    Chunks are computed again in the backward pass, so N x V numbers never stand in memory.
    """
    if len(hidden) <= chunk:                                # one chunk: nothing would be saved
        return loss(hidden, target)
    parts = zip(hidden.split(chunk), target.split(chunk))
    return torch.cat([checkpoint(loss, h, t, use_reentrant=False) for h, t in parts])


def levenshtein(a, b, len_a, len_b):
    """Edit distances of a batch: a (N, La), b (N, Lb) token ids, true lengths (N,) -> (N,) long.

    The usual table D[i, j] by its antidiagonals d = i + j: each depends only on the two before,
    so a diagonal of the whole batch is three calls. The table is transposed (pairs last) and its
    numbers are as small as the lengths allow.
    """
    (N, La), Lb = a.shape, b.shape[1]
    small = torch.uint8 if La + Lb < 255 else torch.int32
    a, b = a.T.int().contiguous(), b.T.flip(0).int().contiguous()
    pair, total, out = torch.arange(N, device=a.device), len_a + len_b, torch.zeros_like(len_a)
    new, one, two = torch.zeros(3, La + 1, N, dtype=small, device=a.device)  # new[i] = D[i, d - i]
    for d in range(La + Lb + 1):
        new, one, two = two, new, one
        low, high = max(1, d - Lb), min(La + 1, d)                           # 1 <= i, 1 <= d - i
        if low < high:
            differ = a[low - 1:high - 1] != b[Lb - d + low:Lb - d + high]
            swap = two[low - 1:high - 1] + differ.to(small)
            gap = torch.minimum(one[low - 1:high - 1], one[low:high]) + 1
            torch.minimum(gap, swap, out=new[low:high])
        new[0] = d
        if d <= La:
            new[d] = d
        out = torch.where(total == d, new[len_a, pair].long(), out)
    return out


@torch.no_grad()
def muon(params, momenta, lr, beta=0.95):
    """Muon (Jordan et al. 2024) on matrices (..., m, n): lr times the nearest matrix whose singular
    values are all alike. Every direction of a low-rank expert then learns at the same speed: half
    the steps that Adam needs. momenta is written."""
    for p, momentum in zip(params, momenta):
        momentum.mul_(beta).add_(p.grad)
        g = p.grad + beta * momentum
        flat = g.shape[-2] <= g.shape[-1]
        g = g if flat else g.mT
        g = g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-12)
        for _ in range(5):                                          # Newton-Schulz iterations
            gram = g @ g.mT
            g = 3.4445 * g + (2.0315 * gram @ gram - 4.775 * gram) @ g
        p.sub_(lr * (g if flat else g.mT))


class Muon(torch.optim.Optimizer):
    """`muon` as an optimizer of matrices (m, n), with the step size of torch.optim.Muon, but without
    its rounding to bfloat16: on a CPU that has no instructions for that, a step of torch's took
    14 times as long (bench/results/speed.json). A weight without a gradient stays."""
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                tall = max(1.0, p.shape[0] / p.shape[1])
                muon([p], [momentum], group["lr"] * tall ** 0.5)


def slowed(freq, factor, low, high, context):
    """Llama 3 in a context `factor` times as long: frequencies that turn less than `low` times in
    the old one are slowed by the factor, those of more than `high` turns stay, others between."""
    stays = ((context * freq / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
    return freq * (stays + (1 - stays) / factor)


def grown(t, shape, gen, std, noise=0.0):
    """A tensor of a larger shape with t in its corner, zero elsewhere, or random (noise 1)."""
    big = torch.randn(shape, generator=gen).to(t) * (noise * std)
    big[tuple(slice(size) for size in t.shape)] = t
    return big
