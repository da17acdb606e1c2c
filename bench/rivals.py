"""
Rivals with the same arms: nights that are `gate+sft` of bench/ablations.py but for one thing, what
learns or what it learns from. Base, day, quizzes, gate, mishearing, steps and rows a step are those
of seed.night. A life of bench/ablations.py names the functions that take another's place:

    "seed.distil=rivals.sdft"                   inside this life, seed.distil is rivals.sdft

A night's memory stays the two tensors of an expert, A (d, r) and B (r, d) in each upper block, so
all three have as many numbers as an expert (2 d r a block), are unlocked, settled, saved and woken
by the same code; what a block does with them is another thing:

    expert      B gelu(A x), beside the MLP     (ours, [S] 3.2)
    LoRA        x A_i B_i, i = 1..4, of rank r/4, added to queries, keys, values and projection
    cartridge   the columns of A are r keys, the rows of B their values, before the row's own

Written for an architecture like ours: as many heads of keys as of queries, rotary positions.
"""
from functools import partial

import torch
import torch.nn.functional as F

import dream
import seed
from data import team
from data.engine import generate, pad_rows, rows_of, take_rows
from data.gate import MAX_NEW, open_gate
from data.kernels import grouped_experts, muon
from data.quizzes import (answers_of, closed_book, pack, question_mask, take, unpack, words_of)
from dream import VIEWS
from model import FAST, Block, angles, clone, rotate

AVERAGED = 0.02                     # of the student's weights, a step, go into sdft's teacher
SLOTS = 32                          # hidden units of an MLP that sparse learning may change
FORWARD, DISTIL, READER = Block.forward, seed.distil, seed.reader       # as they are at home


# --------------------------------------------------------------------------------------------------
# gate+lora: what learns is a low-rank change of attention (arXiv 2106.09685)

def lora(block, h, at, turn, past=None, mask=None, awake=None):
    """In the place of Block.forward: W + A_e B_e for queries, keys, values and projection, e being
    each token's own expert of the fast level. B = 0 at first: nothing changes."""
    expert, fast = (awake or {}).get(FAST), block.levels[FAST]
    if expert is None or not fast.n_experts:
        return FORWARD(block, h, at, turn, past, mask, awake)
    A, B = fast.experts()
    parts = list(zip(A.chunk(4, 2), B.chunk(4, 1)))                 # (E, d, r/4), (E, r/4, d)

    def changed(some):
        def hook(layer, given, y):
            return y + torch.cat([low_rank(given[0], expert, *ab) for ab in some], -1)
        return hook
    hooks = [block.qkv.register_forward_hook(changed(parts[:3])),
             block.proj.register_forward_hook(changed(parts[3:]))]
    h = block.attend(block.convolve(h, at, past), at, turn, past, mask)
    for hook in hooks:
        hook.remove()
    for i, level in enumerate(block.levels):
        h = level(h, None if i == FAST else awake.get(i))
    return h


def low_rank(x, expert, A, B):
    """x A_e B_e of each token's own e, 0 where e = E: x (B, T, d), A (E, d, r), B (E, r, d).

    By the kernel of experts, which bends: gelu(a) - gelu(-a) = a.
    """
    both = torch.cat([A, -A], 2), torch.cat([B, -B], 1)
    return grouped_experts(x.flatten(0, 1), expert, *both).view_as(x)


# --------------------------------------------------------------------------------------------------
# cartridge: what learns are keys and values before the question (arXiv 2506.06266)

def cartridge(block, h, at, turn, past=None, mask=None, awake=None):
    """In the place of Block.forward: a row's own expert is r keys and values that its tokens, from
    where it wakes on, may attend to."""
    expert, fast = (awake or {}).get(FAST), block.levels[FAST]
    if expert is None or not fast.n_experts:
        return FORWARD(block, h, at, turn, past, mask, awake)
    expert, n = expert.view(h.shape[:2]), fast.n_experts
    row = expert.amin(1).clamp(max=n - 1)                           # n: none
    heads = (block.config.n_head, block.config.head_dim)
    K, V = (t[row] for t in fast.experts())                         # (B, d, r), (B, r, d)
    prefix = K.unflatten(1, heads).mT, V.unflatten(2, heads).transpose(1, 2)     # (B, H, r, D)
    h = block.convolve(h, at, past)
    h = attend_after(block, h, at, turn, past, mask, prefix, expert < n)
    for i, level in enumerate(block.levels):
        h = level(h, None if i == FAST else awake.get(i))
    return h


def attend_after(block, h, at, turn, past, mask, prefix, sees):
    """Block.attend with keys and values (B, H, r, D) in front, for tokens where sees (B, T)."""
    c, T = block.config, h.shape[1]
    qkv = block.qkv(block.norm(h)).unflatten(-1, (3 * c.n_head, c.head_dim)).transpose(1, 2)
    q, k, v = qkv.chunk(3, 1)                                       # (B, H, T, D)
    q, k = (rotate(F.rms_norm(x, x.shape[-1:]) if c.qk_norm else x, *turn) for x in (q, k))
    own = torch.ones(T, T, dtype=torch.bool, device=h.device).tril()[None, None]
    if past is not None:
        past["k"][rows_of(at), :, at] = k.transpose(1, 2).to(past["k"].dtype)
        past["v"][rows_of(at), :, at] = v.transpose(1, 2).to(past["v"].dtype)
        shared = past.get("prefix", [k[:, :, :0], v[:, :, :0]])     # what rows have in common
        end, n = mask.shape[-1] - shared[0].shape[2], len(h) // len(shared[0])
        k, v = (torch.cat([t.repeat_interleave(n, 0), past[name][:, :, :end]], 2)
                for name, t in zip("kv", shared))
        own = mask if mask.dtype is torch.bool else mask == 0
    seen = sees[:, None, :, None].expand(-1, -1, -1, prefix[0].shape[2])
    k, v = (torch.cat([t.to(x.dtype), x], 2) for t, x in zip(prefix, (k, v)))
    y = F.scaled_dot_product_attention(
        q, k, v, attn_mask=torch.cat([seen, own.expand(len(h), -1, -1, -1)], -1),
        scale=c.head_dim ** -0.5 * (2.0 if c.qk_norm else 1.0))
    return h + block.proj(y.transpose(1, 2).flatten(2))


def open_cartridge(model, z, teacher, heard_by_day, marks, a):
    """In the place of gate.open_gate: the new keys and values begin as those of the first tokens of
    the day's longest reading (the paper's best start), moved to stand before <bos>."""
    level, z = open_gate(model, z, teacher, heard_by_day, marks, a)
    row, held = int(teacher.cache["len"].argmax()), teacher.cache
    for block, past in zip(model.blocks, held["blocks"]):
        fast = block.levels[FAST]
        if fast.A_live is not None:
            n, r = min(fast.rank, int(held["len"][row])), fast.rank
            back = torch.full((1, 1), -r, device=model.device)
            k, v = (past[name][row, :, :n] for name in "kv")        # (H, n, D)
            k = rotate(k, *angles(back, k.shape[-1], k.dtype, model.config.rope_base))[0]
            fast.A_live.data[0, :, :n] = k.mT.flatten(0, 1).to(fast.A_live)
            fast.B_live.data[0, :n] = v.transpose(0, 1).flatten(1).to(fast.B_live)
    return level, z


def adam(params, momenta, loss, step, steps, lr):
    """In the place of seed.descend, with its warm-up and fall: Adam, for Muon knows matrices, not
    keys. momenta: the list that seed.distil keeps for its optimizer, from the first step on."""
    if step == 0:
        momenta[:] = [torch.optim.Adam(params)]
    opt, = momenta
    for p, grad in zip(params, torch.autograd.grad(loss, params)):
        p.grad = grad
    team.average_gradients(params)
    opt.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / seed.WARMUP) * (1 - 0.95 * step / steps)
    opt.step()


# --------------------------------------------------------------------------------------------------
# sdft: what it learns from is itself, shown the answer (arXiv 2601.19897)

def reader(teacher):
    """In the place of seed.reader: the same, and it says who reads."""
    teach = READER(teacher)
    teach.teacher = teacher
    return teach


def sdft(student, params, z, teach, marks, level, steps, a, weights=None, bank=None):
    """In the place of seed.distil: its loss is `demonstrated`, the teacher's weights follow."""
    usual, teacher = seed.off_policy_loss, clone(student)
    seed.off_policy_loss = partial(demonstrated, teacher, teach.teacher)
    try:
        return DISTIL(student, params, z, teach, marks, level, steps, a, weights, bank)
    finally:
        seed.off_policy_loss = usual


def follow(teacher, student, level):
    """Exponential moving average: teacher <- (1 - AVERAGED) teacher + AVERAGED student."""
    for slow, fast in zip(teacher.live(level), student.live(level)):
        slow.data.lerp_(fast.data, AVERAGED)


def demonstrated(teacher, held, student, z, marks, level, kind):
    """In the place of seed.off_policy_loss: E_{y ~ student(x)} KL(student(y|x) || teacher(y|x, c)).

    c, the demonstration: the passage, then the quiz with its answer; behind it the question again.
    The student mishears, the teacher does not. Questions are learnt as in off_policy_loss.
    """
    follow(teacher, student, level)
    misheard = z._replace(ids=seed.mishear(z, marks, student.config.vocab_size))
    awake, asked = seed.new_expert(student, level, z.since), unpack(misheard)
    ys = generate(student, [[*marks.bos, *q] for _, q, _ in asked], MAX_NEW, stop=[marks.end],
                  awake=awake)
    said = pack([(p, q, tuple(y)) for (p, q, _), y in zip(asked, ys)], student.device)
    shown = pack([(p, (*q, *d, *q), tuple(y)) for (p, q, d), y in zip(unpack(z), ys)],
                 student.device)
    h = answers_of(said, student.hidden(closed_book(said, marks), awake=awake)[:, len(marks.bos):])
    log_s = F.log_softmax(student.logits(h).float(), -1)
    log_t = with_demonstration(teacher, held, shown, z.since + shown.start - z.start, level)
    mask = words_of(said._replace(target=log_t))
    kl = (seed.divergence(log_t, log_s, "reverse") * mask).sum() / mask.sum()
    forced = take(misheard, slice(0, seed.FORCED))
    return kl + seed.ASK_WEIGHT * asking(student, forced, marks, level)


@torch.no_grad()
def with_demonstration(teacher, held, shown, since, level):
    """Log-probabilities (N, A, V) of the answers of quizzes `shown`, behind a reading of their
    passage. since (N,): where the expert wakes, counted from a <bos> right before them."""
    view = torch.randint(VIEWS, shown.passage.shape, device=shown.passage.device)
    room = take_rows(held.held, shown.passage * VIEWS + view, shown.ids.shape[1])
    awake = seed.new_expert(teacher, level, since + room["len"] - 1)
    h = answers_of(shown, teacher.hidden(shown.ids, cache=room, awake=awake)[:, :-1])
    return F.log_softmax(teacher.logits(h).float(), -1)


def asking(student, forced, marks, level):
    """-log p(word) of the questions, the expert awake from <bos> on, as in seed.off_policy_loss."""
    awake = seed.new_expert(student, level, torch.zeros_like(forced.start))
    logits = student(closed_book(forced, marks), awake=awake)[:, len(marks.bos):].float()
    nll = F.cross_entropy(logits.transpose(1, 2), forced.ids[:, 1:], reduction="none")
    mask = question_mask(forced, marks)
    return (nll * mask).sum() / mask.sum()


# --------------------------------------------------------------------------------------------------
# sparse: what learns are the slots that today uses and the old does not (arXiv 2510.15103)

def sparse(student, params, z, teach, marks, level, steps, a, weights=None, bank=None):
    """In the place of seed.distil, with --expand=0: SLOTS hidden units of each upper MLP learn.

    The paper has memory layers of a million slots; here a slot is a hidden unit of the pretrained
    MLP, its key a row of `up`, its value a column of `down` (arXiv 2012.14913). SLOTS of them have
    as many numbers as an expert. No gate: slots are shared, that few are touched is what protects.
    Chosen once a night, by TF-IDF: how often the night's quizzes use a unit, against in how many
    documents the self dreams of old it is used.
    """
    ids, length = pad_rows(dream.replay(student, marks, seed.REPLAYED), student.device)
    today, old = (accesses(student, *rows) for rows in ((closed_book(z, marks), z.length),
                                                        (ids, length)))
    masks = []
    for block, now, before in zip(student.blocks, today, old):
        some = tf_idf(now.sum(0), (before > 0).sum(0), len(ids)).topk(SLOTS)[1]
        on = torch.zeros(now.shape[1], 1, device=ids.device)
        on[some] = float(any(block is upper for upper in student.remembering()))
        masks += [on, on.T]                                         # of up, of down
    usual, seed.muon = seed.muon, partial(muon_some, masks)
    try:
        return DISTIL(student, params, z, teach, marks, level, steps, a, weights, bank)
    finally:
        seed.muon = usual


def tf_idf(now, old, n):
    """A unit's share of today's uses (U,) times log((n + 1) / (documents of n that use it + 1))."""
    return now / now.sum() * torch.log((n + 1) / (old + 1))


@torch.no_grad()
def accesses(model, ids, length):
    """How often each row of ids (N, T) uses each hidden unit of a block's MLP: [(N, d_ff)]. A word
    uses the SLOTS units it excites most, as it would read its nearest keys of a memory layer."""
    found, words = [], torch.arange(ids.shape[1], device=ids.device) < length[:, None]
    for block in model.blocks:
        used = []

        def hook(layer, given, x):
            used.append(torch.zeros_like(x).scatter(-1, x.topk(SLOTS, -1)[1], 1.0))
        handle = block.levels[-1].up.register_forward_hook(hook)
        for part in ids.split(64):
            model.hidden(part)
        handle.remove()
        found.append((torch.cat(used) * words[..., None]).sum(1))
    return found


def muon_some(masks, params, momenta, lr):
    """kernels.muon, where a mask is 1: rows and columns of zeros stay as they are."""
    for p, mask in zip(params, masks):
        p.grad.mul_(mask)
    muon(params, momenta, lr)
