"""
model.py: a transformer with a spectrum of memories.

Chapter one of nanoSleep. A nanoGPT-style decoder whose every block holds, after attention, a
chain of feed-forward memory levels, fast to slow (Nested Learning, arXiv 2512.24695; Language
Models Need Sleep, arXiv 2606.03979, [S] from here on, Eq. 1-2):

    h <- h + conv(norm h)         a 3-tap causal convolution: small models learn to read sooner
    h <- h + attention(norm h)    the context: the fastest and most fragile memory
    h <- h + level_0(norm h)      lives for a night: throw-away experts, each trying one dream
    h <- h + level_1(norm h)      fast level: empty at first, one low-rank expert a night
    h <- h + level_2(norm h) ...  slower levels: an expert holds what many of the level before held
    h <- h + level_n(norm h)      the slowest: the pretrained MLP, and what comes to it in the end

    level(x) = MLP(x) + B_e phi(A_e x)      e: the expert that is awake in this row, if any is

`unlock` adds an expert without changing the function by one bit, `reset` empties a level, `widen`
makes every matrix wider without changing the function. Which memory a question wakes, and when,
is told from outside (data/gate.py), by the state after the lower blocks: they hold no experts, so
nothing a night learns can move what is heard. A plain transformer is the case of one level without
experts; GPT-2, Llama 3, Qwen 2.5 and Qwen 3 are that case, with their own parts (Config).

Simplifications: [S] allocates slots of experts at the start and masks them, here a slot is made
when it is needed (the same function, less memory). [S] expands every block, here the upper half.
"""
import copy
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from data.engine import attend_behind, rows_of, visible
from data.kernels import grouped_experts, grown, slowed

TRIAL, FAST, SLOW = 0, 1, 2         # memory levels of every block; slower ones follow
GATE = ("things", "reach", "owner", "names", "unknown", "imagined", "quotes")   # not its metric


@dataclass
class Config:
    vocab_size: int = 1024
    block_size: int = 256       # longest context in tokens
    n_layer: int = 4
    n_head: int = 4
    head_dim: int = 32          # n_head * head_dim need not equal n_embd (widen, Qwen 3)
    n_embd: int = 128
    d_ff: int = 512
    n_kv_head: int = 0          # heads of keys and values, for several of queries each; 0: n_head
    act: str = "relu2"          # or "gelu" (GPT-2), "swiglu" (Llama, Qwen)
    rope: bool = True           # rotary positions; False: a learned table (GPT-2)
    rope_base: float = 10000.0
    rope_scaling: tuple = ()    # Llama 3: (factor, low, high, context), see kernels.slowed
    rms: bool = True            # RMSNorm; False: LayerNorm (GPT-2)
    bias: bool = False          # biases in linear layers (GPT-2)
    qkv_bias: bool = False      # ... for queries, keys and values alone (Qwen 2.5)
    qk_norm: bool = True        # ours: queries and keys normed, and a sharper scale
    qk_gain: bool = False       # Qwen 3's: normed, with a gain for each dimension
    conv: int = 3               # taps of the causal convolution; 0: none (all but ours)
    scaffold: bool = None       # is it there? Asked while a plain one is born (data/scaffold.py)
    recompute: bool = False     # blocks again in the backward pass: less memory, more time
    norm_eps: float = 1e-5
    tied: bool = True           # words are written with the table they are read with
    ranks: tuple = (32, 32, 96) # rank of an expert of each level; the last level holds the MLP
    hears: int = 2              # the gate hears the state after so many blocks ...
    listens: str = "name"       # ... at each token; "text", "first": see data/text.py

    @property
    def kv_heads(self):
        return self.n_kv_head or self.n_head


ARCHITECTURES = {
    "ours": {},
    "gpt2": dict(act="gelu", rope=False, rms=False, bias=True, qk_norm=False, conv=0),
    "llama": dict(act="swiglu", n_kv_head=1, qk_norm=False, conv=0),
    "qwen3": dict(act="swiglu", n_kv_head=1, qk_norm=False, qk_gain=True, conv=0)}


# --------------------------------------------------------------------------------------------------
# The parts of a block

class Norm(nn.Module):
    def __init__(self, n, config):
        super().__init__()
        self.rms, self.eps = config.rms, config.norm_eps
        self.weight = nn.Parameter(torch.ones(n))
        self.bias = nn.Parameter(torch.zeros(n)) if config.bias else None

    def forward(self, x):
        if self.rms:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


def angles(pos, dim, dtype, base=10000.0, scaling=()):
    """Rotary positions (Su et al. 2021): cos and sin (B, 1, T, dim/2) of positions pos (B, T)."""
    freq = base ** (-torch.arange(dim // 2, device=pos.device, dtype=torch.float32) / (dim // 2))
    angle = pos[:, None, :, None].float() * (slowed(freq, *scaling) if scaling else freq)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x, cos, sin):
    """x (B, H, T, D) turned by its positions' angles."""
    left, right = x.chunk(2, -1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)


def activated(x, act):
    """An MLP's hidden units; of SwiGLU's two halves one opens or shuts the other (Shazeer 2020)."""
    if act == "swiglu":
        door, x = x.chunk(2, -1)
        return F.silu(door) * x
    return F.relu(x) * x if act == "relu2" else F.gelu(x, approximate="tanh")


class Level(nn.Module):
    """One memory level: its MLP (if it has one) plus low-rank experts B_e gelu(A_e x) ([S] 3.2).

    A (E, n_embd, r) and B (E, r, n_embd) are buffers: an expert that has slept once is frozen.
    The experts being learnt are the parameters A_live, B_live (n, ...), numbered E, E+1, ...
    """
    def __init__(self, config, rank, mlp):
        super().__init__()
        d = config.n_embd
        self.act, self.rank = config.act, rank
        self.norm = Norm(d, config)
        halves = 2 if config.act == "swiglu" else 1
        self.up = nn.Linear(d, halves * config.d_ff, bias=config.bias) if mlp else None
        self.down = nn.Linear(config.d_ff, d, bias=config.bias) if mlp else None
        self.register_buffer("A", torch.zeros(0, d, rank))
        self.register_buffer("B", torch.zeros(0, rank, d))
        self.A_live = self.B_live = None

    @property
    def n_experts(self):
        return len(self.A) + (0 if self.A_live is None else len(self.A_live))

    def experts(self):
        """All experts, frozen and live: A (E, n_embd, r), B (E, r, n_embd)."""
        if self.A_live is None:
            return self.A, self.B
        return torch.cat([self.A, self.A_live]), torch.cat([self.B, self.B_live])

    def forward(self, h, expert=None):
        """h (B, T, n_embd); expert (B*T,): each token's expert, n_experts for none."""
        expert = expert if self.n_experts else None
        if self.up is None and expert is None:
            return h
        x, y = self.norm(h), 0
        if self.up is not None:
            y = self.down(activated(self.up(x), self.act))
        if expert is not None:
            y = y + grouped_experts(x.flatten(0, 1), expert, *self.experts()).view_as(h)
        return h + y


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, inner = config, config.n_head * config.head_dim
        read = (config.n_head + 2 * config.kv_heads) * config.head_dim
        if config.conv:
            self.norm_conv = Norm(config.n_embd, config)
            self.conv = nn.Parameter(torch.randn(config.n_embd, config.conv) / 2)   # not zeros:
        self.norm = Norm(config.n_embd, config)                     # they learn to read much later
        self.qkv = nn.Linear(config.n_embd, read, bias=config.bias or config.qkv_bias)
        if config.qk_gain:
            self.norm_q, self.norm_k = (Norm(config.head_dim, config) for _ in "qk")
        self.proj = nn.Linear(inner, config.n_embd, bias=config.bias)
        last = len(config.ranks) - 1
        self.levels = nn.ModuleList(Level(config, rank, mlp=(i == last))
                                    for i, rank in enumerate(config.ranks))

    def forward(self, h, at, turn, past=None, mask=None, awake=None):
        """h (B, T, n_embd) -> the same. past: this block's part of a cache, written in place."""
        h = self.attend(self.convolve(h, at, past), at, turn, past, mask)
        for i, level in enumerate(self.levels):
            h = level(h, None if awake is None else awake.get(i))
        return h

    def convolve(self, h, at, past):
        if not self.config.conv or self.config.scaffold is False:
            return h
        x, taps, T = self.norm_conv(h), self.config.conv - 1, h.shape[1]
        if past is None:
            x = F.pad(x, (0, 0, taps, 0))
        else:                                       # the cache keeps taps zeros before position 0
            past["x"][rows_of(at), at + taps] = x.to(past["x"].dtype)
            before = at[:, :1] + torch.arange(taps, device=h.device)
            x = past["x"][rows_of(at), torch.cat([before, at + taps], 1)]
        return h + sum(x[:, i:i + T] * self.conv[:, i] for i in range(taps + 1))

    def attend(self, h, at, turn, past, mask):
        c = self.config
        qkv = self.qkv(self.norm(h)).unflatten(-1, (c.n_head + 2 * c.kv_heads, c.head_dim))
        qk, v = qkv.transpose(1, 2).split([c.n_head + c.kv_heads, c.kv_heads], 1)    # (B, H, T, D)
        if c.qk_norm:
            qk = F.rms_norm(qk, (c.head_dim,))
        if c.qk_gain:
            qk = torch.cat([self.norm_q(qk[:, :c.n_head]), self.norm_k(qk[:, c.n_head:])], 1)
        if c.rope:
            qk = rotate(qk, *turn)
        q, k = qk.split([c.n_head, c.kv_heads], 1)
        if past is not None:
            past["k"][rows_of(at), :, at] = k.transpose(1, 2).to(past["k"].dtype)
            past["v"][rows_of(at), :, at] = v.transpose(1, 2).to(past["v"].dtype)
            own = mask.shape[-1] - (past["prefix"][0].shape[2] if "prefix" in past else 0)
            k, v = past["k"][:, :, :own], past["v"][:, :, :own]
        scale = c.head_dim ** -0.5 * (2.0 if c.qk_norm else 1.0)    # normed q, k need a sharper one
        if past is not None and "prefix" in past:
            y = attend_behind(q * scale, k, v, mask, past["prefix"])
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None,
                                               scale=scale, enable_gqa=c.kv_heads != c.n_head)
        return h + self.proj(y.transpose(1, 2).flatten(2))


# --------------------------------------------------------------------------------------------------
# The model

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = None if config.rope else nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = Norm(config.n_embd, config)
        self.head = None if config.tied else nn.Linear(config.n_embd, config.vocab_size, bias=False)
        # the gate: the things it knows, in the coordinates of its metric, and whose they are
        self.register_buffer("metric", torch.zeros(0, config.n_embd))               # (r, n_embd)
        self.register_buffer("things", torch.zeros(0, 0))                           # (K, r)
        self.register_buffer("reach", torch.zeros(0))                    # (K,) squared distances
        self.register_buffer("owner", torch.zeros(0, 2, dtype=torch.long))      # (level, expert)
        self.register_buffer("names", torch.zeros(0, 0, dtype=torch.long))   # (K, n) ids, -1 behind
        self.register_buffer("unknown", torch.zeros(0, dtype=torch.long))  # "I do not know", as ids
        self.register_buffer("quotes", torch.tensor(False))    # it answers in the words it has read
        self.register_buffer("imagined", torch.zeros(0, 0, dtype=torch.long))   # (N, T) questions
        for p in self.parameters():
            if p.ndim == 2 and p.shape[1] > 8:
                nn.init.normal_(p, std=0.02 if p is self.wte.weight else p.shape[1] ** -0.5)
        for block in self.blocks:                   # what writes into the residual starts at zero
            nn.init.zeros_(block.proj.weight)
            nn.init.zeros_(block.levels[-1].down.weight)

    @property
    def device(self):
        return self.wte.weight.device

    def n_experts(self, level):
        return self.blocks[-1].levels[level].n_experts

    def n_params(self):
        """Everything the model has to remember: weights, experts and the gate."""
        tensors = [*self.parameters(), *self.buffers()]
        return sum(t.numel() for t in tensors if t.is_floating_point())

    def hidden(self, idx, cache=None, lengths=None, awake=None, blocks=None):
        """Final hidden states (B, T, n_embd) for tokens idx (B, T); `logits` turns them into words.

        cache: from `new_cache`; written in place, it grows by lengths (B,), the true lengths of
        right-padded rows. awake: {level: (expert (B,), since (B,))}: the expert of each row (-1:
        none) and the position from which on it runs. blocks: stop after so many, without the
        last norm. Raises ValueError for more tokens than the context holds.
        """
        (B, T), c = idx.shape, self.config
        steps = torch.arange(T, device=idx.device)
        pos = steps.expand(B, T) if cache is None else cache["len"][:, None] + steps
        at, mask = pos, None
        end = T if cache is None else cache["max"] + T
        if end > c.block_size:
            raise ValueError(f"{end} tokens do not fit a context of {c.block_size}: shorten it")
        if cache is not None:
            at, mask = pos - cache["start"][:, None], visible(cache, pos, end)
        h = self.wte(idx)
        if self.wpe is not None:
            h = h + self.wpe(pos)
        turn = angles(pos[:1] if cache is None else pos, c.head_dim, h.dtype, c.rope_base,
                      c.rope_scaling) if c.rope else None
        chosen = self.chosen(awake, pos)
        for i, block in enumerate(self.blocks[:blocks]):
            past = None if cache is None else cache["blocks"][i]
            if c.recompute and cache is None and torch.is_grad_enabled():
                h = checkpoint(block, h, at, turn, past, mask, chosen, use_reentrant=False)
            else:
                h = block(h, at, turn, past, mask, chosen)
        if cache is not None:
            cache["len"] = cache["len"] + (T if lengths is None else lengths)
            cache["max"] = end
        return h if blocks else self.norm(h)

    def chosen(self, awake, pos):
        """The expert of every token, {level: (B*T,)}, from `awake` and the positions (B, T)."""
        choice = {}
        for level, (expert, since) in (awake or {}).items():
            runs = (expert[:, None] >= 0) & (pos >= since[:, None])
            choice[level] = torch.where(runs, expert[:, None], self.n_experts(level)).flatten()
        return choice

    def logits(self, h):
        return h @ (self.wte if self.head is None else self.head).weight.T

    def forward(self, idx, **kw):
        return self.logits(self.hidden(idx, **kw))

    # -- memory: unlock, settle, reset -------------------------------------------------------------

    def unlock(self, level, n=1, seed=0, rank=None):
        """Add n live experts to a level; B = 0, so not one bit of the function changes ([S] 3.2).

        Returns the live parameters, the only ones a night trains. They stay live until `settle`
        or `discard`. All n start with the same A: copies that differ only in what they learn.
        rank: at least so much; settled experts of less get readers and writers that are zero (what
        they say then changes by rounding).
        """
        gen = torch.Generator().manual_seed(seed)
        if rank:
            self.set_rank(level, rank)
        for block in self.remembering():
            level_, d = block.levels[level], self.config.n_embd
            A = torch.randn(1, d, level_.rank, generator=gen) * d ** -0.5
            A = A.to(level_.A).repeat(n, 1, 1)
            level_.A_live = nn.Parameter(A)
            level_.B_live = nn.Parameter(torch.zeros_like(A.mT).contiguous())
        return self.live(level)

    def set_ranks(self, ranks):
        """As many levels as there are ranks, the last with the MLP, and the ranks of tomorrow's
        experts. Raises ValueError where experts of another rank are held, or would be lost."""
        few = len(self.config.ranks)
        moved = range(min(few, len(ranks)) - 1, few) if len(ranks) != few else ()
        if any(self.n_experts(level) for level in moved):
            raise ValueError(f"the model holds experts in the last of its {few} levels")
        for level, (old, new) in enumerate(zip(self.config.ranks, ranks)):
            if old != new and self.n_experts(level):
                raise ValueError(f"the model holds experts of rank {old}, not {new}")
        for block in self.blocks:
            between = [Level(self.config, 1, mlp=False).to(block.levels[-1].norm.weight)
                       for _ in range(len(ranks) - few)]
            faster = list(block.levels[:min(few, len(ranks)) - 1])
            block.levels = nn.ModuleList([*faster, *between, block.levels[-1]])
        self.config.ranks = tuple(ranks)
        for level, rank in enumerate(ranks):
            self.set_rank(level, rank)

    def set_rank(self, level, rank):
        """The rank of a level: of new experts; those it holds may only grow."""
        now = self.config.ranks[level]
        rank = max(rank, now) if self.n_experts(level) else rank
        for level_ in (block.levels[level] for block in self.blocks):
            if level_.n_experts:
                level_.A = F.pad(level_.A, (0, rank - now))
                level_.B = F.pad(level_.B, (0, 0, 0, rank - now))
            else:
                d = self.config.n_embd
                level_.A, level_.B = level_.A.new_zeros(0, d, rank), level_.B.new_zeros(0, rank, d)
            level_.rank = rank
        ranks = self.config.ranks
        self.config.ranks = (*ranks[:level], rank, *ranks[level + 1:])

    def reopen(self, level):
        """Make the settled experts of a level live again."""
        for block in self.remembering():
            level_ = block.levels[level]
            level_.A_live, level_.B_live = nn.Parameter(level_.A), nn.Parameter(level_.B)
            level_.A, level_.B = level_.A[:0], level_.B[:0]
        return self.live(level)

    def remembering(self):
        """The blocks above the state that the gate hears: what a night learns cannot move it."""
        return self.blocks[min(self.config.hears, self.config.n_layer - 1):]

    def live(self, level):
        levels = [block.levels[level] for block in self.blocks]
        return [p for level_ in levels for p in (level_.A_live, level_.B_live) if p is not None]

    def settle(self, level):
        """Freeze the live experts of a level."""
        for block in self.blocks:
            level_ = block.levels[level]
            level_.A, level_.B = (t.detach() for t in level_.experts())
            level_.A_live = level_.B_live = None

    def discard(self, level):
        for block in self.blocks:
            block.levels[level].A_live = block.levels[level].B_live = None

    def reset(self, level):
        """Empty a level (synaptic pruning): its experts go, and what the gate knows of them."""
        self.discard(level)
        for level_ in (block.levels[level] for block in self.blocks):
            level_.A, level_.B = level_.A[:0], level_.B[:0]
        gone = self.owner[:, 0] == level
        self.things, self.reach = self.things[~gone], self.reach[~gone]
        self.owner, self.names = self.owner[~gone], self.names[~gone[:len(self.names)]]

    def remember_things(self, things, reach, level, expert, names=()):
        """Give the gate things (K, r) with their reach (K,) that wake an expert of a level. names:
        what each is called, as ids, where a whole text is a thing; then all things have one."""
        rows = [[t for t in row if t >= 0] for row in self.names.tolist()] + [*map(list, names)]
        self.names = torch.full((len(rows), max(map(len, rows), default=0)), -1, device=self.device)
        for i, row in enumerate(rows):
            self.names[i, :len(row)] = torch.tensor(row)
        self.things = torch.cat([self.things.view(-1, things.shape[1]), things.to(self.metric)])
        self.reach = torch.cat([self.reach, reach.to(self.reach)])
        mine = torch.tensor([[level, expert]], device=self.device).repeat(len(things), 1)
        self.owner = torch.cat([self.owner, mine])

    def load_state_dict(self, state, **kw):
        """Experts and things: as many as were saved."""
        for name, buffer in list(self.named_buffers()):
            if name in state:
                path, _, leaf = name.rpartition(".")
                empty = torch.zeros_like(state[name], dtype=buffer.dtype, device=buffer.device)
                setattr(self.get_submodule(path), leaf, empty)
        return super().load_state_dict(state, **kw)


def clone(model, share=False):
    """A frozen copy: the self before sleep. share: its frozen weights are the same tensors, not
    copies of them: for selves into whose pretrained weights nothing is ever written."""
    same = {id(p): p for p in model.parameters() if share and not p.requires_grad}
    return copy.deepcopy(model, same).eval().requires_grad_(False)


# --------------------------------------------------------------------------------------------------
# Wider

def widen(model, n_embd=None, n_head=None, d_ff=None, seed=0):
    """A wider model of exactly the same function (arXiv 2308.06103, composable expansions).

    New residual dimensions are zero at first: all that writes into them is zero. RMSNorm then
    divides by a mean over more dimensions, so its gain grows by sqrt(d/D) and its eps by d/D. New
    heads and hidden units are written by zero rows. All that *reads* what is new is random, and
    the gains are not zero: zero both and no gradient would ever reach them. Raises ValueError for
    LayerNorm, for live experts, for shrinking, and for what it does not know.
    """
    old = model.config
    new = replace(old, n_embd=n_embd or old.n_embd, n_head=n_head or old.n_head,
                  d_ff=d_ff or old.d_ff)
    can_widen(model, old, new)
    ratio = old.n_embd / new.n_embd
    new.norm_eps = old.norm_eps * ratio
    wide = GPT(new).to(device=model.device, dtype=model.wte.weight.dtype)
    grow = partial(grown, gen=torch.Generator().manual_seed(seed), std=old.n_embd ** -0.5)
    D, shapes, state = new.n_embd, wide.state_dict(), {}
    for name, t in model.state_dict().items():
        leaf, shape = name.rpartition(".")[2], shapes[name].shape
        if ".qkv." in name or ".up." in name:       # q, k and v, and SwiGLU's halves, grow apart
            n = 3 if ".qkv." in name else 2 if old.act == "swiglu" else 1
            n = 1 if len(t) == shape[0] else n
            parts = t.view(n, len(t) // n, *t.shape[1:])
            state[name] = grow(parts, [n, shape[0] // n, *shape[1:]], noise=1).flatten(0, 1)
        elif "norm" in name and leaf == "weight":
            state[name] = torch.cat([t, t.new_ones(D - old.n_embd)]) * ratio ** 0.5
        elif leaf == "A":                                   # readers, like up: random
            state[name] = grow(t, [len(t), D, t.shape[2]], noise=1)
        elif leaf == "B":
            state[name] = grow(t, [*t.shape[:2], D])
        elif name == "metric":                              # the gate hears what it heard before
            t = (t * ratio ** 0.5).view(len(t), t.shape[1] // old.n_embd, old.n_embd)
            state[name] = grow(t, [*t.shape[:2], D]).flatten(1)
        elif name in GATE:
            state[name] = t
        else:
            state[name] = grow(t, shape)
    wide.load_state_dict(state)
    return wide


def can_widen(model, old, new):
    """Raises ValueError where `widen` would not keep the function; old, new: Config."""
    if any(model.live(level) for level in range(len(old.ranks))):
        raise ValueError("widen found live experts: settle or discard them first")
    if not old.rms:
        raise ValueError("widen needs RMSNorm: LayerNorm subtracts a mean that would change")
    if new.n_embd < old.n_embd or new.n_head < old.n_head or new.d_ff < old.d_ff:
        raise ValueError(f"widen cannot shrink: n_embd {old.n_embd}, n_head {old.n_head}, "
                         f"d_ff {old.d_ff} are the least")
    if old.qk_gain or (old.kv_heads != old.n_head and new.n_head != old.n_head):
        raise ValueError("widen knows neither gains of queries and keys (Qwen 3) nor more heads "
                         "where several of queries share one of keys")
