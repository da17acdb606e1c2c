"""
model.py: a transformer with a spectrum of memories.

Chapter one of nanoSleep. A nanoGPT-style decoder whose every block holds, after attention, a chain of feed-forward
memory levels, fast to slow (Nested Learning, arXiv 2512.24695; Language Models Need Sleep, arXiv 2606.03979, Eq. 1-2):

    h <- h + conv(norm h)                 a 3-tap causal convolution: small models learn to read much sooner with it
    h <- h + attention(norm h)            the context: the fastest and most fragile memory
    h <- h + level_0(norm h)              lives for seconds: throw-away experts, each trying out one dream
    h <- h + level_1(norm h)              fast level: empty at first, one low-rank expert a night
    h <- h + level_2(norm h)              slow level: the pretrained MLP and the experts consolidated into it

    level(x) = MLP(x) + B_e phi(A_e x)    e chosen by the router; most tokens choose no expert at all

`unlock` adds an expert without changing the function by one bit, `reset` empties a level, `widen` makes every matrix
wider without changing the function. A plain transformer is the case of one level without experts; GPT-2 is that case.
Four small kernels in plain torch come last. Nothing here knows about sleep: that is chapter two, seed.py.
"""
import copy
import json
import math
import os
import struct
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from data import team


@dataclass
class Config:
    vocab_size: int = 1024
    block_size: int = 192       # longest context in tokens
    n_layer: int = 3
    n_head: int = 3
    head_dim: int = 32          # n_head * head_dim need not equal n_embd, so that widen can move them apart
    n_embd: int = 96
    d_ff: int = 384
    act: str = "relu2"          # or "gelu" (GPT-2)
    rope: bool = True           # rotary positions; False: a learned table (GPT-2)
    rms: bool = True            # RMSNorm; False: LayerNorm (GPT-2)
    bias: bool = False          # biases in linear layers (GPT-2)
    qk_norm: bool = True
    conv: int = 3               # taps of the causal convolution; 0: none (GPT-2)
    norm_eps: float = 1e-5
    ranks: tuple = (32, 32, 96) # expert rank of each memory level, fast to slow; the last level holds the MLP
    window: int = 16            # tokens an expert stays awake after the router recognised something


# ----------------------------------------------------------------------------------------------------------------------
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


def angles(pos, dim, like, base=10000.0):
    """Rotary positions (Su et al. 2021): cos and sin (B, 1, T, dim/2) of absolute positions pos (B, T)."""
    freq = base ** (-torch.arange(dim // 2, device=pos.device, dtype=torch.float32) / (dim // 2))
    angle = pos[:, None, :, None].float() * freq
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def rotate(x, cos, sin):
    """x (B, H, T, D) turned by its positions' angles."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Level(nn.Module):
    """One memory level: its MLP (if it has one) plus routed low-rank experts B_e gelu(A_e x) ([S] section 3.2).

    A (E, n_embd, r) and B (E, r, n_embd) are buffers: an expert that has slept once is frozen. The experts being learnt
    this night are the parameters A_live, B_live (n, ...), numbered E, E+1, ...: nothing else can move.
    """
    def __init__(self, config, rank, mlp):
        super().__init__()
        d = config.n_embd
        self.act, self.rank = config.act, rank
        self.norm = Norm(d, config)
        self.up = nn.Linear(d, config.d_ff, bias=config.bias) if mlp else None
        self.down = nn.Linear(config.d_ff, d, bias=config.bias) if mlp else None
        self.register_buffer("A", torch.zeros(0, d, rank))
        self.register_buffer("B", torch.zeros(0, rank, d))
        self.A_live = self.B_live = None

    @property
    def n_experts(self):
        return len(self.A) + (0 if self.A_live is None else len(self.A_live))

    def forward(self, h, expert=None):
        """h (B, T, n_embd); expert (B*T,) the expert of each token, n_experts for 'none' -> (B, T, n_embd)."""
        if self.up is None and (expert is None or self.n_experts == 0):
            return h
        x, y = self.norm(h), 0
        if self.up is not None:
            y = self.up(x)
            y = self.down(F.relu(y) * y if self.act == "relu2" else F.gelu(y, approximate="tanh"))
        if expert is not None and self.n_experts:
            A, B = self.A, self.B
            if self.A_live is not None:
                A, B = torch.cat([A, self.A_live]), torch.cat([B, self.B_live])
            y = y + grouped_experts(x.flatten(0, 1), expert, A, B).view_as(h)
        return h + y


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, inner = config, config.n_head * config.head_dim
        if config.conv:
            self.norm_conv = Norm(config.n_embd, config)
            self.conv = nn.Parameter(torch.randn(config.n_embd, config.conv) / 2)  # zeros here learn to read much later
        self.norm = Norm(config.n_embd, config)
        self.qkv = nn.Linear(config.n_embd, 3 * inner, bias=config.bias)
        self.proj = nn.Linear(inner, config.n_embd, bias=config.bias)
        last = len(config.ranks) - 1
        self.levels = nn.ModuleList(Level(config, r, mlp=(i == last)) for i, r in enumerate(config.ranks))

    def convolve(self, h, at, past=None):
        """h (B, T, n_embd). past: this block's part of the cache, written in place at `at` (B, T)."""
        if not self.config.conv:
            return h
        x, taps, T = self.norm_conv(h), self.config.conv - 1, h.shape[1]
        if past is None:
            x = F.pad(x, (0, 0, taps, 0))
        else:                                                        # the cache keeps taps zeros before position 0
            past["x"][rows_of(at), at + taps] = x.to(past["x"].dtype)
            before = at[:, :1] + torch.arange(taps, device=h.device)
            x = past["x"][rows_of(at), torch.cat([before, at + taps], 1)]
        return h + sum(x[:, i:i + T] * self.conv[:, i] for i in range(taps + 1))

    def attend(self, h, at, turn, past=None, mask=None, own=None):
        c, (B, T, _) = self.config, h.shape
        qkv = self.qkv(self.norm(h)).view(B, T, 3 * c.n_head, c.head_dim).transpose(1, 2)
        qk, v = qkv.split([2 * c.n_head, c.n_head], 1)               # (B, 2H, T, D) and (B, H, T, D)
        if c.qk_norm:
            qk = F.rms_norm(qk, (c.head_dim,))
        if c.rope:
            qk = rotate(qk, *turn)
        q, k = qk.chunk(2, 1)
        if past is not None:
            past["k"][rows_of(at), :, at] = k.transpose(1, 2).to(past["k"].dtype)
            past["v"][rows_of(at), :, at] = v.transpose(1, 2).to(past["v"].dtype)
            k, v = past["k"][:, :, :own], past["v"][:, :, :own]
        scale = c.head_dim ** -0.5 * (2.0 if c.qk_norm else 1.0)    # normalised q, k alone cannot attend sharply enough
        if past is not None and "prefix" in past:
            y = attend_behind(q, k, v, mask, past["prefix"], scale)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
        return h + self.proj(y.transpose(1, 2).flatten(2))


def attend_behind(q, k, v, mask, prefix, scale):
    """Attention where every n rows have one prefix in common, which is not copied for each of them.

    q (P*n, H, T, D); prefix: k, v (P, H, S, D) of the prefixes; k, v (P*n, H, L, D) of the rows' own tokens; mask
    (P*n, 1, T, S+L) for both, 0 or -inf. One softmax over both. Returns (P*n, H, T, D).
    """
    (P, H, S, _), (N, _, T, _) = prefix[0].shape, q.shape
    together = lambda t: t.view(P, N // P, H, T, -1).transpose(1, 2).reshape(P, H, N // P * T, -1)     # the rows of a prefix
    apart = lambda t: t.view(P, H, N // P, T, -1).transpose(1, 2).reshape(N, H, T, -1)
    q = q * scale
    scores = torch.cat([apart(together(q) @ prefix[0].mT), q @ k.mT], -1) + mask             # the mask is float32 at least
    p = scores.softmax(-1).to(v.dtype)
    return apart(together(p[..., :S]) @ prefix[1]) + p[..., S:] @ v


def rows_of(pos):
    return torch.arange(pos.shape[0], device=pos.device)[:, None]


# ----------------------------------------------------------------------------------------------------------------------
# The model

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = None if config.rope else nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = Norm(config.n_embd, config)
        # the router: linear detectors, each owned by one expert of one level (seed.py trains them, then they are frozen)
        self.register_buffer("keys", torch.zeros(0, config.n_embd))
        self.register_buffer("bias", torch.zeros(0))
        self.register_buffer("owner", torch.zeros(0, 2, dtype=torch.long))        # (level, expert) of each detector
        for p in self.parameters():
            if p.ndim == 2 and p.shape[1] > 8:
                nn.init.normal_(p, std=0.02 if p is self.wte.weight else p.shape[1] ** -0.5)
        for block in self.blocks:                                    # residual writers start at zero: identity blocks
            nn.init.zeros_(block.proj.weight)
            nn.init.zeros_(block.levels[-1].down.weight)

    @property
    def device(self):
        return self.wte.weight.device

    def n_params(self):
        """Everything the model has to remember: weights, experts and detectors."""
        return sum(t.numel() for t in [*self.parameters(), *self.buffers()] if t.is_floating_point())

    def hidden(self, idx, cache=None, lengths=None, extra=None, gate=True):
        """Final hidden states (B, T, n_embd) for tokens idx (B, T); logits are `model.logits(hidden)`.

        cache: from `new_cache`; it is written in place and grows by lengths (B,), the true lengths of right-padded rows.
        extra: {level: (B,)} an expert for each row (-1: none) wherever the router itself stays silent ([S] 3.4).
        gate: False keeps the router shut: the self without its nightly experts.
        """
        B, T = idx.shape
        steps = torch.arange(T, device=idx.device)
        pos = steps.expand(B, T) if cache is None else cache["len"][:, None] + steps
        end = T if cache is None else cache["max"] + T
        if end > self.config.block_size:
            raise ValueError(f"{end} tokens do not fit a context of {self.config.block_size}: shorten the text")
        at, mask, own = pos, None, None
        if cache is not None:
            at, own = pos - cache["start"][:, None], end - cache["prefix"]                      # without a shared prefix
            mask = (torch.arange(own, device=idx.device) <= at[:, :, None])[:, None]            # (B, 1, T, own)
            if "shared" in cache:
                mask = torch.cat([cache["shared"].expand(-1, -1, T, -1), mask], -1)
                mask = torch.zeros(mask.shape, device=idx.device).masked_fill(~mask, -torch.inf)
        h = self.wte(idx)
        if self.wpe is not None:
            h = h + self.wpe(pos)
        turn = angles(pos[:1] if cache is None else pos, self.config.head_dim, h) if self.config.rope else None
        for i, block in enumerate(self.blocks):
            past = None if cache is None else cache["blocks"][i]
            h = block.convolve(h, at, past)
            if i == 0:
                choice = self.route(h, pos, cache, lengths, extra, gate)
            h = block.attend(h, at, turn, past, mask, own)
            for level, expert in zip(block.levels, choice):
                h = level(h, expert)
        if cache is not None:
            cache["len"] = cache["len"] + (T if lengths is None else lengths)
            cache["max"] = end
        return self.norm(h)

    def logits(self, h):
        return h @ self.wte.weight.T

    def forward(self, idx, **kw):
        return self.logits(self.hidden(idx, **kw))

    def features(self, h):
        """What the router sees: the first block's convolution, normalised without a gain.

        That is a fixed point in space for each run of `conv` tokens, whatever came before, so a linear detector can pick one
        such run out of all others (a matched filter: no other point of the sphere has as large a product with it).
        """
        return F.rms_norm(h, h.shape[-1:], eps=self.config.norm_eps)

    def route(self, h, pos, cache, lengths, extra, gate):
        """The expert of every token, per level: a list of (B*T,) or None where a level has nothing to route.

        The gate is hard and has a memory (ours; [S] leaves the router open): a detector recognises something new at one
        token (the end of a name), the memory is needed some tokens later (the answer). So the expert that fired last
        stays awake for `window` tokens; where nothing fired, no expert runs and the old function is exactly the old one.
        """
        levels = self.blocks[0].levels
        if not any(level.n_experts for level in levels) or not gate and extra is None:
            return [None] * len(levels)
        B, T = pos.shape
        silent = torch.full((B, T), -1, device=pos.device)
        level, expert = silent, silent
        if gate and len(self.keys):
            score, unit = (self.features(h).detach() @ self.keys.T + self.bias).max(-1)           # (B, T)
            fired = torch.where(score > 0, pos, -1)
            if cache is not None:                                    # what fired before these tokens
                fired, unit = torch.cat([cache["fired"], fired], 1), torch.cat([cache["unit"], unit], 1)
            fired, at = fired.cummax(1)
            unit = unit.gather(1, at)
            if cache is not None:
                last = torch.full_like(cache["fired"], T) if lengths is None else lengths[:, None]
                cache["fired"], cache["unit"] = fired.gather(1, last), unit.gather(1, last)
                fired, unit = fired[:, 1:], unit[:, 1:]
            awake = (fired >= 0) & (pos - fired < self.config.window)
            level = torch.where(awake, self.owner[unit, 0], -1)
            expert = torch.where(awake, self.owner[unit, 1], -1)
        choice = []
        for i in range(len(levels)):
            mine = torch.where(level == i, expert, -1)
            if extra is not None and i in extra:
                mine = torch.where(level == -1, extra[i][:, None], mine)
            choice.append(torch.where(mine < 0, levels[i].n_experts, mine).flatten())
        return choice

    # -- memory: unlock, settle, reset ---------------------------------------------------------------------------------

    def unlock(self, level, n=1, seed=0):
        """Add n live experts to a level of every block; B = 0, so not one bit of the function changes ([S] 3.2).

        Returns the live parameters, the only ones a night trains. They stay live until `settle` or `discard`. [S] allocates
        slots at the start and masks them; here a slot is made when it is needed: the same function, less memory.
        """
        gen = torch.Generator().manual_seed(seed)
        for block in self.blocks:
            lev, d = block.levels[level], self.config.n_embd
            A = torch.randn(1, d, lev.rank, generator=gen) * d ** -0.5             # the same A for all n: see dream.py
            lev.A_live = nn.Parameter(A.to(lev.A).repeat(n, 1, 1))
            lev.B_live = nn.Parameter(torch.zeros_like(lev.A_live).transpose(1, 2).contiguous())
        return self.live(level)

    def set_ranks(self, ranks):
        """The rank of tomorrow's experts, a number a level. Raises ValueError where a level holds experts of another rank."""
        for block in self.blocks:
            for lev, rank in zip(block.levels, ranks):
                if lev.n_experts and rank != lev.rank:
                    raise ValueError(f"the model holds experts of rank {lev.rank}, not {rank}: they cannot be mixed")
                if rank != lev.rank:
                    d, lev.rank = self.config.n_embd, rank
                    lev.A, lev.B = lev.A.new_zeros(0, d, rank), lev.B.new_zeros(0, rank, d)
        self.config.ranks = tuple(ranks)

    def reopen(self, level):
        """Make the settled experts of a level live again (the writer of dream.py learns a little every night)."""
        for block in self.blocks:
            lev = block.levels[level]
            lev.A_live, lev.B_live = nn.Parameter(lev.A.clone()), nn.Parameter(lev.B.clone())
            lev.A, lev.B = lev.A[:0], lev.B[:0]
        return self.live(level)

    def live(self, level):
        return [p for b in self.blocks for p in (b.levels[level].A_live, b.levels[level].B_live) if p is not None]

    def settle(self, level):
        """Freeze the live experts of a level."""
        for block in self.blocks:
            lev = block.levels[level]
            lev.A, lev.B = torch.cat([lev.A, lev.A_live.detach()]), torch.cat([lev.B, lev.B_live.detach()])
            lev.A_live = lev.B_live = None

    def discard(self, level):
        for block in self.blocks:
            block.levels[level].A_live = block.levels[level].B_live = None

    def attach(self, keys, bias, level, expert):
        """Give detectors keys (U, n_embd), bias (U,) to an expert of a level."""
        self.keys, self.bias = torch.cat([self.keys, keys.to(self.keys)]), torch.cat([self.bias, bias.to(self.bias)])
        self.owner = torch.cat([self.owner, torch.tensor([[level, expert]], device=self.device).repeat(len(keys), 1)])

    def reset(self, level, heir=None):
        """Empty a level (synaptic pruning): its experts go; their detectors too, or to the heir (level, expert)."""
        for block in self.blocks:
            lev = block.levels[level]
            lev.A, lev.B, lev.A_live, lev.B_live = lev.A[:0], lev.B[:0], None, None
        mine = self.owner[:, 0] == level
        if heir is not None:
            self.owner = torch.where(mine[:, None], torch.tensor(heir, device=self.device), self.owner)
        else:
            self.keys, self.bias, self.owner = self.keys[~mine], self.bias[~mine], self.owner[~mine]

    def load_state_dict(self, state, **kw):
        for name, buffer in list(self.named_buffers()):              # experts and detectors: as many as were saved
            if name in state:
                owner, leaf = self.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
                setattr(owner, leaf, torch.zeros_like(state[name], dtype=buffer.dtype, device=buffer.device))
        for i, block in enumerate(self.blocks):                      # live ones of an interrupted night, too
            for j, lev in enumerate(block.levels):
                for leaf in ("A_live", "B_live"):
                    saved = state.get(f"blocks.{i}.levels.{j}.{leaf}")
                    setattr(lev, leaf, None if saved is None else nn.Parameter(torch.zeros_like(saved, device=self.device)))
        return super().load_state_dict(state, **kw)


def clone(model):
    """A frozen copy: the self before sleep."""
    twin = copy.deepcopy(model).eval()
    return twin.requires_grad_(False)


# ----------------------------------------------------------------------------------------------------------------------
# Cache and sampling

def new_cache(model, batch, length):
    """Room for `length` tokens of `batch` rows: keys and values, the convolution's inputs, and the router's memory.

    len: tokens each row has read; max: the most of them; start, prefix: how many of these stand in a prefix (see `behind`).
    """
    c, like = model.config, model.wte.weight
    blocks = [{"k": like.new_zeros(batch, c.n_head, length, c.head_dim), "v": like.new_zeros(batch, c.n_head, length, c.head_dim),
               "x": like.new_zeros(batch, length + max(c.conv - 1, 0), c.n_embd)} for _ in range(c.n_layer)]
    none = torch.full((batch, 1), -1, device=model.device)
    zero = torch.zeros(batch, dtype=torch.long, device=model.device)
    return {"blocks": blocks, "len": zero, "start": zero, "max": 0, "prefix": 0, "fired": none, "unit": none.clamp(min=0)}


def take_rows(cache, rows, room=0):
    """A new cache whose rows are cache[rows] (so one prefix can serve many rows), with room for more tokens. Copies; the cache
    must not stand behind another one."""
    def pad(t, dim):
        if not room:
            return t[rows]
        new = t.new_zeros(*cache["len"][rows].shape, *t.shape[1:dim], t.shape[dim] + room, *t.shape[dim + 1:])
        new.narrow(dim, 0, t.shape[dim]).copy_(t[rows])
        return new
    blocks = [{"k": pad(b["k"], 2), "v": pad(b["v"], 2), "x": pad(b["x"], 1)} for b in cache["blocks"]]
    return {"blocks": blocks, "max": cache["max"], "prefix": 0, **{k: cache[k][rows] for k in ("len", "start", "fired", "unit")}}


def behind(model, cache, n, room):
    """A new cache of n rows behind each row of `cache`, with room for more tokens: they read it where it lies."""
    many = torch.arange(len(cache["len"]), device=model.device).repeat_interleave(n)
    new, taps = new_cache(model, len(many), room), max(model.config.conv - 1, 0)
    border = cache["len"][:, None] + torch.arange(taps, device=model.device)
    for own, old in zip(new["blocks"], cache["blocks"]):
        own["x"][:, :taps] = old["x"][rows_of(border), border][many]  # the convolution looks back over the border
        own["prefix"] = [old[k][:, :, :cache["max"]] for k in "kv"]
    shared = torch.arange(cache["max"], device=model.device) < cache["len"][:, None]
    return {**new, "max": cache["max"], "prefix": cache["max"], "shared": shared[many][:, None, None],
            **{k: cache[k][many] for k in ("len", "fired", "unit")}, "start": cache["len"][many]}


def pad_rows(rows, device="cpu", fill=0):
    """Lists of token ids -> (ids (B, T) right-padded, lengths (B,))."""
    lengths = torch.tensor([len(r) for r in rows])
    ids = torch.full((len(rows), max(1, int(lengths.max()) if len(rows) else 1)), fill)
    for i, r in enumerate(rows):
        ids[i, :len(r)] = torch.tensor(r, dtype=torch.long)
    return ids.to(device), lengths.to(device)


@torch.no_grad()
def prefill(model, rows, **kw):
    """Read rows (lists of ids) into a fresh cache. Returns (cache, logits after each row's last token (B, V))."""
    ids, lengths = pad_rows(rows, model.device)
    cache = new_cache(model, *ids.shape)
    h = model.hidden(ids, cache=cache, lengths=lengths, **kw)
    return cache, model.logits(h[rows_of(ids)[:, 0], lengths - 1])


@torch.no_grad()
def generate(model, prompts, max_new, n=1, temperature=1.0, top_k=0, stop=(), generator=None, cache=None, trie=None,
             extra=None, gate=True):
    """Continue each prompt n times. prompts: lists of token ids; returns a list of len(prompts)*n lists of new ids.

    A prompt's keys and values are computed once and shared by its n samples. cache: a prefix of one row per prompt.
    temperature 0 is greedy. stop: ids that end a row (kept as its last token). trie: a table (states, V) of next states,
    -1 where a token is not allowed; its sequences end in a stop id. extra: {level: (len(prompts)*n,)} as in GPT.hidden, the same
    for the n samples of a prompt. In a team (data/team.py) each process writes its share of the rows, and all get all of them.
    """
    if not all(prompts):
        raise ValueError("an empty prompt: give at least the mark that begins a text")
    ids, lengths = pad_rows(prompts, model.device)
    rows, mine = len(prompts) * n, team.mine()
    many = torch.arange(len(prompts), device=model.device).repeat_interleave(n)[mine]
    once = {k: v.view(-1, n)[:, 0] for k, v in extra.items()} if extra else None
    cache = new_cache(model, *ids.shape) if cache is None else take_rows(cache, slice(None), ids.shape[1])
    h = model.hidden(ids, cache=cache, lengths=lengths, extra=once, gate=gate)
    logits = model.logits(h[torch.arange(len(prompts), device=model.device), lengths - 1])[many]
    share, rest = divmod(n, team.SIZE)
    cache = behind(model, cache, share, max_new) if share > 1 and not rest else take_rows(cache, many, max_new)
    extra = {k: v[mine] for k, v in extra.items()} if extra else extra
    state = torch.zeros(len(many), dtype=torch.long, device=model.device)
    done = torch.zeros(len(many), dtype=torch.bool, device=model.device)
    stops = torch.tensor(list(stop), dtype=torch.long, device=model.device)
    out = []
    for step in range(max_new):
        if trie is not None:
            logits = logits.masked_fill((trie[state] < 0) & ~done[:, None], -torch.inf)
        if temperature == 0:
            token = logits.argmax(-1)
        else:
            logits = logits / temperature
            if top_k:
                logits = logits.masked_fill(logits < logits.topk(min(top_k, logits.shape[-1]))[0][:, -1:], -torch.inf)
            cdf = logits.float().softmax(-1).cumsum(-1)              # one random number a row, not one a word
            u = 1 - torch.rand(rows, 1, generator=generator, device=cdf.device)[mine]      # in (0, 1]: p = 0 is never drawn
            token = torch.searchsorted(cdf, u * cdf[:, -1:])[:, 0]
        if trie is not None:
            state = torch.where(done, state, trie[state, token])
        out.append(torch.where(done, -1, token))
        done = done | (token[:, None] == stops).any(1)
        if step == max_new - 1 or (step % 8 == 7 and not team.anyone(not done.all())):         # one look in eight steps
            break
        logits = model.logits(model.hidden(token[:, None], cache=cache, extra=extra, gate=gate)[:, 0])
    out = torch.stack(out, 1).tolist() if out else [[] for _ in many]
    return team.gather([[t for t in row if t >= 0] for row in out])


# ----------------------------------------------------------------------------------------------------------------------
# Wider, and from GPT-2

def widen(model, n_embd=None, n_head=None, d_ff=None, seed=0):
    """A wider model of exactly the same function (Composable function-preserving expansions, arXiv 2308.06103).

    The new residual dimensions are always zero at first: new columns of the embedding and of all that writes into the
    residual are zero. RMSNorm then divides by a mean over more dimensions, so its gain grows by sqrt(d/D) and its eps by
    d/D. New heads and hidden units are written by zero rows. All that *reads* the new dimensions is random, and the gains
    are not zero: zero both and no gradient would ever reach them. Raises ValueError for LayerNorm or for shrinking.
    """
    old = model.config
    if any(level.A_live is not None for block in model.blocks for level in block.levels):
        raise ValueError("widen found live experts: settle or discard them first")
    new = replace(old, n_embd=n_embd or old.n_embd, n_head=n_head or old.n_head, d_ff=d_ff or old.d_ff)
    if not old.rms:
        raise ValueError("widen needs RMSNorm: LayerNorm subtracts a mean that new dimensions would change")
    if new.n_embd < old.n_embd or new.n_head < old.n_head or new.d_ff < old.d_ff:
        raise ValueError(f"widen cannot shrink: n_embd {old.n_embd}, n_head {old.n_head}, d_ff {old.d_ff} are the least")
    ratio = old.n_embd / new.n_embd
    new.norm_eps = old.norm_eps * ratio
    wide = GPT(new).to(device=model.device, dtype=model.wte.weight.dtype)
    gen = torch.Generator().manual_seed(seed)

    def grow(t, shape, noise=0.0):
        big = torch.randn(shape, generator=gen).to(t) * (noise * old.n_embd ** -0.5)
        big[tuple(slice(size) for size in t.shape)] = t
        return big

    D, like, state = new.n_embd, wide.state_dict(), {}
    for name, t in model.state_dict().items():
        leaf, shape = name.rpartition(".")[2], like[name].shape
        if ".qkv." in name:                                          # q, k and v each grow by whole heads
            state[name] = grow(t.view(3, -1, *t.shape[1:]), [3, shape[0] // 3, *shape[1:]], noise=1).flatten(0, 1)
        elif "norm" in name and leaf == "weight":
            state[name] = torch.cat([t, t.new_ones(D - old.n_embd)]) * ratio ** 0.5
        elif leaf == "A":                                            # readers, like up: random where they read zeros
            state[name] = grow(t, [len(t), D, t.shape[2]], noise=1)
        elif leaf == "B":
            state[name] = grow(t, [*t.shape[:2], D])
        elif name == "keys":
            state[name] = grow(t * ratio ** 0.5, [len(t), D])
        elif name in ("bias", "owner"):
            state[name] = t
        else:
            state[name] = grow(t, shape, noise=float(".up." in name))
    wide.load_state_dict(state)
    return wide


def read_safetensors(path):
    """{name: tensor} of a .safetensors file: 8 bytes of length, a JSON header, raw little-endian tensors. No pickle.

    Raises ValueError, naming the file, if sizes or offsets do not agree with each other or with the file.
    """
    kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
             "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}
    try:
        with open(path, "rb") as f:
            total = os.fstat(f.fileno()).st_size
            size = struct.unpack("<Q", f.read(8))[0]
            if size > total - 8:
                raise ValueError("the header is longer than the file")
            header = json.loads(f.read(size))
            body = bytearray(f.read())
        tensors, spans = {}, []
        for name, info in header.items():
            if name == "__metadata__":
                continue
            dtype, shape, (start, end) = kinds[info["dtype"]], info["shape"], info["data_offsets"]
            count = math.prod(shape)
            if min([0, *shape]) < 0 or not 0 <= start <= end <= len(body) or end - start != count * dtype.itemsize:
                raise ValueError(f"tensor {name} lies outside the file or has the wrong size")
            spans.append((start, end))
            tensors[name] = (torch.frombuffer(body, dtype=dtype, count=count, offset=start) if count
                             else torch.empty(0, dtype=dtype)).reshape(shape).clone()
        spans.sort()
        if any(end > begin for (_, end), (begin, _) in zip(spans, spans[1:])):
            raise ValueError("tensors overlap")
        return tensors
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError) as e:
        raise ValueError(f"{path} is not a valid safetensors file: {e}") from None


def from_pretrained(path, ranks=(32,), n_head=None, extra_tokens=0):
    """GPT-2 weights (a .safetensors file, or a folder with model.safetensors) as a GPT of this file.

    n_head: from config.json beside the file, else one head per 64 dimensions, as in every released GPT-2. extra_tokens:
    rows added to the vocabulary, each the mean of all rows.
    """
    if os.path.isdir(path):
        path = os.path.join(path, "model.safetensors")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no GPT-2 weights at {path}: put model.safetensors (and config.json) of gpt2 there")
    t = {k.removeprefix("transformer."): v for k, v in read_safetensors(path).items()}
    for name in ("wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias", "h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight"):
        if name not in t:
            raise ValueError(f"{path} holds no GPT-2: {name} is missing")
    vocab, d = t["wte.weight"].shape
    side = os.path.join(os.path.dirname(path), "config.json")
    if n_head is None and os.path.isfile(side):
        with open(side) as f:
            n_head = json.load(f).get("n_head")
    n_head = n_head or max(1, d // 64)
    layers = 1 + max(int(k.split(".")[1]) for k in t if k.startswith("h."))
    config = Config(vocab_size=vocab + extra_tokens, block_size=len(t["wpe.weight"]), n_layer=layers, n_head=n_head,
                    head_dim=d // n_head, n_embd=d, d_ff=t["h.0.mlp.c_fc.weight"].shape[1], act="gelu", rope=False,
                    rms=False, bias=True, qk_norm=False, conv=0, ranks=tuple(ranks))
    model, slow = GPT(config), f"levels.{len(ranks) - 1}."
    names = {"ln_1.": "norm.", "ln_2.": slow + "norm.", "attn.c_attn.": "qkv.", "attn.c_proj.": "proj.",
             "mlp.c_fc.": slow + "up.", "mlp.c_proj.": slow + "down."}
    more = t["wte.weight"].float().mean(0).expand(extra_tokens, d)
    state = {"wte.weight": torch.cat([t["wte.weight"].float(), more]), "wpe.weight": t["wpe.weight"],
             "norm.weight": t["ln_f.weight"], "norm.bias": t["ln_f.bias"]}
    for i in range(layers):
        for theirs, ours in names.items():
            for leaf in ("weight", "bias"):
                if f"h.{i}.{theirs}{leaf}" not in t:
                    raise ValueError(f"{path} holds no whole GPT-2: h.{i}.{theirs}{leaf} is missing")
                w = t[f"h.{i}.{theirs}{leaf}"]
                state[f"blocks.{i}.{ours}{leaf}"] = w.T if w.ndim == 2 else w           # their Conv1D is transposed
    try:
        model.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)          # faster levels start empty
    except RuntimeError as e:
        raise ValueError(f"{path}: {str(e).splitlines()[1].strip()}") from None
    return model


# ----------------------------------------------------------------------------------------------------------------------
# Kernels: small, plain torch, any device, no host sync. Each has a slow obvious twin in tests/

def grouped_experts(x, expert, A, B, tile=16):
    """B_e gelu(A_e x) for each token's own expert e, at a cost that does not grow with the number of experts.

    x (N, d); expert (N,) in 0..E, E for none (those rows are exactly 0); A (E, d, r); B (E, r, d) -> (N, d).
    Tokens are sorted by expert and laid out in tiles of `tile` rows that belong to one expert each, then it is two batched
    matmuls over tiles. The number of tiles is bounded by shapes alone, so the device never has to tell the host anything.
    """
    N, E = x.shape[0], A.shape[0]
    order = expert.argsort(stable=True)
    mine = expert[order]
    count = (expert[:, None] == torch.arange(E, device=x.device)).sum(0)                     # (E,) tokens per expert
    room = (count + tile - 1) // tile * tile                                                 # rounded up to whole tiles
    first, begin = count.cumsum(0) - count, room.cumsum(0) - room
    tiles = N // tile + min(E, N) + 1
    if x.device.type == "cpu":                                       # nobody waits: as many as there are
        tiles = int(room.sum()) // tile + 1
    e = mine.clamp(max=E - 1)
    slot = torch.where(mine < E, begin[e] + torch.arange(N, device=x.device) - first[e], tiles * tile - 1)
    laid = x.new_zeros(tiles * tile, x.shape[1]).index_put((slot,), x[order] * (mine < E)[:, None])
    owner = torch.searchsorted(room.cumsum(0), torch.arange(tiles, device=x.device) * tile, right=True).clamp(max=E - 1)
    y = torch.bmm(F.gelu(torch.bmm(laid.view(tiles, tile, -1), A[owner])), B[owner]).flatten(0, 1)
    y = torch.where((mine < E)[:, None], y[slot], 0.0).to(x.dtype)
    return torch.zeros_like(x).index_put((order,), y)


def divergence(teacher, student, kind="forward", beta=0.5):
    """Divergence of each row's two distributions, given as log-probabilities (N, V) -> (N,), in nats.

    forward: KL(teacher || student); reverse: KL(student || teacher); jsd: the generalised Jensen-Shannon divergence of GKD
    (arXiv 2306.13649, Eq. 1), beta KL(T || M) + (1 - beta) KL(S || M) with M = beta T + (1 - beta) S.
    """
    kl = lambda p, q: (p.exp() * (p - q)).sum(-1)
    if kind == "forward":
        return kl(teacher, student)
    if kind == "reverse":
        return kl(student, teacher)
    if kind == "jsd" and not 0 < beta < 1:
        raise ValueError(f"beta = {beta}: the JSD needs 0 < beta < 1; its end points, scaled, are forward and reverse KL")
    if kind != "jsd":
        raise ValueError(f"unknown divergence {kind!r}: choose forward, reverse or jsd")
    mix = torch.logaddexp(teacher + math.log(beta), student + math.log(1 - beta))
    return beta * kl(teacher, mix) + (1 - beta) * kl(student, mix)


def chunked_divergence(hidden, head, teacher, kind="forward", beta=0.5, chunk=1024, teacher_head=None, temperature=1.0):
    """`divergence` of N positions without ever holding N x V numbers: chunks are recomputed in the backward pass.

    hidden (N, d) and head (V, d) give the student's logits. teacher: log-probabilities (N, V), or, with teacher_head
    (V, d'), hidden states (N, d'). Peak memory: chunk x V, whatever N is. Returns (N,).
    """
    def part(h, t):
        student = F.log_softmax((h @ head.T).float() / temperature, -1)
        if teacher_head is not None:
            t = F.log_softmax((t @ teacher_head.T).float() / temperature, -1)
        return divergence(t, student, kind, beta)
    if len(hidden) <= chunk:                                         # one chunk: recomputing it would save nothing
        return part(hidden, teacher)
    parts = zip(hidden.split(chunk), teacher.split(chunk))
    return torch.cat([checkpoint(part, h, t, use_reentrant=False) for h, t in parts])


def levenshtein(a, b, len_a, len_b):
    """Edit distances of a whole batch: a (N, La), b (N, Lb) token ids, true lengths (N,) -> (N,) long.

    The usual table D[i, j] by its antidiagonals d = i + j: a whole one depends only on the two before it, so a diagonal of the
    whole batch is three calls. The table is transposed (pairs last) and its numbers are as small as the lengths allow.
    """
    (N, La), Lb = a.shape, b.shape[1]
    small = torch.uint8 if La + Lb < 255 else torch.int32
    a, b = a.T.int().contiguous(), b.T.flip(0).int().contiguous()
    pair, total, out = torch.arange(N, device=a.device), len_a + len_b, torch.zeros_like(len_a)
    new, one, two = torch.zeros(3, La + 1, N, dtype=small, device=a.device)                  # new[i] = D[i, d - i]
    for d in range(La + Lb + 1):
        new, one, two = two, new, one
        lo, hi = max(1, d - Lb), min(La + 1, d)                                              # 1 <= i and 1 <= d - i
        if lo < hi:
            swap = two[lo - 1:hi - 1] + (a[lo - 1:hi - 1] != b[Lb - d + lo:Lb - d + hi]).to(small)
            torch.minimum(torch.minimum(one[lo - 1:hi - 1], one[lo:hi]) + 1, swap, out=new[lo:hi])
        new[0] = d
        if d <= La:
            new[d] = d
        out = torch.where(total == d, new[len_a, pair].long(), out)
    return out
