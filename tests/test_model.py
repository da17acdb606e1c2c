"""model.py: what must not change by one bit, what agrees to rounding, and what must be refused."""
import pytest
import torch
import torch.nn.functional as F

from data.engine import behind, new_cache, pad_rows, prefill, take_rows
from data.gate import states
from model import FAST, GPT, SLOW, TRIAL, angles, clone, widen
from tests.small import STYLES, close, expand, far, lively, plain, same_state, tokens

LEVELS = [TRIAL, FAST, SLOW]


def awake(*who):
    """{level: (expert, since)} of three rows; who: (level, experts, positions)."""
    return {level: (torch.tensor(e), torch.tensor(s)) for level, e, s in who}


WOKEN = awake((FAST, [0, -1, 1], [0, 3, 11]), (SLOW, [1, 0, -1], [7, 0, 0]))


# --------------------------------------------------------------------------------------------------
# unlock, settle, discard, reopen, reset

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("make", [plain, lively])
def test_unlock_changes_not_one_bit(make, level, dtype):
    model, ids = make(dtype), tokens(3, 20)
    first_new = model.n_experts(level)                              # 0 in plain, 2 in lively
    forced = awake((level, [0, 1, -1], [0, 4, 0])) if first_new else None
    before, loud = model(ids), model(ids, awake=forced)
    assert make is plain or far(before, loud)
    params = model.unlock(level, n=2)
    assert len(params) == 2 * len(model.remembering()) and all(p.requires_grad for p in params)
    for _ in "live", "settled":                                    # nor does settling the untouched
        assert torch.equal(model(ids), before) and torch.equal(model(ids, awake=forced), loud)
        for new in (first_new, first_new + 1):
            assert torch.equal(model(ids, awake=awake((level, [new] * 3, [0, 2, 19]))), before)
        if not model.live(level):
            break
        model.settle(level)
    assert model.n_experts(level) == first_new + 2


def test_copies_begin_alike_and_another_seed_elsewhere():
    model = plain(hears=0)
    model.unlock(TRIAL, n=3, seed=1)
    for block in model.blocks:
        A = block.levels[TRIAL].A_live
        assert torch.equal(A[0], A[1]) and torch.equal(A[0], A[2]) and A[0].abs().sum() > 0
        assert not torch.equal(A[0],
                               model.blocks[0].levels[TRIAL].A_live[0]) or block is model.blocks[0]
    first = model.live(TRIAL)[0].clone()
    model.discard(TRIAL)
    model.unlock(TRIAL, seed=2)
    assert not torch.equal(model.live(TRIAL)[0][0], first[0])


def test_only_the_live_expert_receives_a_gradient():
    model, ids = lively(torch.float32), tokens(3, 20)
    live = model.unlock(FAST)
    frozen = {k: v.clone() for k, v in model.state_dict().items() if "_live" not in k}
    learn = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in learn} == {id(p) for p in live}
    opt = torch.optim.SGD(learn, lr=0.1)
    for _ in range(2):                                     # B is 0 at first: A learns from step two
        opt.zero_grad()
        logits = model(ids, awake=awake((FAST, [2] * 3, [0] * 3)))
        F.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
        opt.step()
    assert all(p.grad.abs().max() > 0 for p in live)
    assert all(torch.equal(v, frozen[k]) for k, v in model.state_dict().items() if "_live" not in k)
    assert not any(name.endswith((".A", ".B")) for name, _ in model.named_parameters())


def test_settle_keeps_what_was_learnt_and_discard_forgets_it():
    model, ids = lively(), tokens(3, 20)
    third, before = awake((TRIAL, [2] * 3, [0] * 3)), model(ids)
    for end in (model.discard, model.settle):
        for p in model.unlock(TRIAL):
            p.data = torch.randn_like(p)
        learnt = model(ids, awake=third)
        assert far(learnt, before)
        end(TRIAL)
        assert torch.equal(model(ids, awake=third), before if end == model.discard else learnt)
        assert model.live(TRIAL) == [] and model.n_experts(TRIAL) == (2 if end
                                                                      == model.discard else 3)


def test_reopened_experts_learn_on_from_where_they_were():
    model, ids = lively(), tokens(3, 20)
    before, live = model(ids, awake=WOKEN), model.reopen(FAST)
    assert torch.equal(model(ids, awake=WOKEN), before) and all(p.requires_grad for p in live)
    for p in live:
        p.data += 0.3 * torch.randn_like(p)
    learnt = model(ids, awake=WOKEN)
    assert far(learnt, before)
    model.settle(FAST)
    assert torch.equal(model(ids, awake=WOKEN), learnt) and model.n_experts(FAST) == 2


def gated(model):
    """The model with two things for each of its two FAST experts and its two SLOW ones."""
    model.metric = torch.randn(5, model.config.n_embd).to(model.metric)
    for level in (FAST, SLOW):
        for expert in range(2):
            model.remember_things(torch.randn(2, 5), torch.rand(2), level, expert)
    return model


def test_reset_empties_a_level_and_nothing_else():
    model, ids = gated(lively()), tokens(3, 20)
    before, state = model(ids, awake=awake((SLOW, [0, 1, -1], [0] * 3))), model.state_dict()
    model.unlock(FAST)
    model.reset(FAST)
    assert model.n_experts(FAST) == 0 and model.n_experts(SLOW) == 2
    assert torch.equal(model(ids, awake=awake((SLOW, [0, 1, -1], [0] * 3))), before)
    assert model.owner.tolist() == [[SLOW, 0]] * 2 + [[SLOW, 1]] * 2
    assert torch.equal(model.things, state["things"][4:]) and torch.equal(model.reach,
                                                                          state["reach"][4:])
    for name, t in model.state_dict().items():
        if f"levels.{FAST}.A" not in name and f"levels.{FAST}.B" not in name and name in state:
            assert name in ("things", "reach", "owner") or torch.equal(t, state[name]), name


def test_load_state_dict_of_more_or_fewer_experts_and_things():
    model, ids = gated(lively(torch.float32)), tokens(3, 20)
    model.unknown = torch.tensor([7, 3])
    state = {name: t.clone() for name, t in model.state_dict().items()}
    more = gated(gated(expand(lively(torch.float32), FAST, 5)))
    for other in (GPT(model.config), more):                 # fresh, or holding too much
        other.load_state_dict(state)
        assert torch.equal(other(ids, awake=WOKEN), model(ids, awake=WOKEN))
        assert same_state(other, model) and other.n_params() == model.n_params()
    single = GPT(model.config)                              # it keeps its own precision
    single.load_state_dict({k: t.double() if t.is_floating_point() else t for k,
                            t in state.items()})
    assert torch.equal(single(ids, awake=WOKEN), model(ids, awake=WOKEN))


def test_a_clone_is_frozen_and_apart():
    model = lively()
    model.unlock(FAST)
    copy = clone(model)
    assert not any(p.requires_grad for p in copy.parameters()) and same_state(copy, model)
    model.live(FAST)[0].data += 1
    assert not same_state(copy, model)


def test_selves_of_a_night_share_what_nobody_writes_into():
    model = lively().requires_grad_(False)
    model.unlock(FAST)
    copy = clone(model, share=True)
    assert copy.wte.weight is model.wte.weight and same_state(copy, model)
    assert copy.live(FAST)[0] is not model.live(FAST)[0]
    model.live(FAST)[0].data += 1
    model.settle(FAST)
    assert not same_state(copy, model) and copy.n_experts(FAST) == model.n_experts(FAST)
    assert clone(model).wte.weight is not model.wte.weight


def test_blocks_computed_again_are_the_same_to_the_bit():
    model, ids = lively(), tokens(3, 12)
    model.requires_grad_(False).unlock(FAST)
    for p in model.live(FAST):
        p.data += 0.1 * torch.randn_like(p)
    kept, grads, newest = {}, {}, model.n_experts(FAST) - 1
    for again in (False, True):
        model.config.recompute, sizes = again, []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t,
                                                      lambda t: t):
            loss = model(ids, awake=awake((FAST, [newest, -1, newest], [0, 3, 5]))).square().mean()
        kept[again] = sum(sizes)
        grads[again] = torch.autograd.grad(loss, model.live(FAST), allow_unused=True)
    assert kept[True] < kept[False] / 2
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(grads[False], grads[True]))
    assert any(g is not None and g.any() for g in grads[True])


def test_tomorrows_rank():
    model = plain()
    before = tokens(3, 20)
    was = model(before)
    model.set_ranks((2, 3, 5))
    model.unlock(FAST)
    assert model.live(FAST)[0].shape == (1, 48, 3) and torch.equal(model(before), was)
    model.settle(FAST)
    model.set_ranks((9, 3, 5))                              # what holds nothing may change
    with pytest.raises(ValueError, match="rank 3, not 4"):
        model.set_ranks((9, 4, 5))


def test_more_levels_or_fewer_are_the_same_self():
    model, ids = plain(), tokens(3, 20)
    was = model(ids)
    model.set_ranks((2, 3, 4, 5, 6))
    assert len(model.blocks[0].levels) == 5 and model.blocks[0].levels[-1].up is not None
    assert [level.rank for level in model.blocks[1].levels] == [2, 3, 4, 5, 6]
    assert torch.equal(model(ids), was)
    state = model.state_dict()
    again = GPT(model.config).to(was.dtype)
    again.load_state_dict(state)
    assert torch.equal(again(ids), was)
    model.set_ranks((2, 3))
    assert len(model.blocks[0].levels) == 2 and torch.equal(model(ids), was)
    model.unlock(FAST), model.settle(FAST)
    with pytest.raises(ValueError, match="in the last of its 2 levels"):
        model.set_ranks((2, 3, 4))


def test_a_level_may_grow_in_rank_and_what_it_holds_does_not_change():
    model, ids = lively(), tokens(3, 20)
    model.settle(SLOW)
    E, rank = model.n_experts(SLOW), model.config.ranks[SLOW]
    who = awake((SLOW, [0, 1, -1], [0] * 3))
    before = model(ids, awake=who)
    model.unlock(SLOW, rank=rank + 3)
    assert model.live(SLOW)[0].shape[-1] == rank + 3 == model.config.ranks[SLOW]
    assert torch.allclose(model(ids, awake=who), before, atol=1e-5)
    model.settle(SLOW)
    model.unlock(SLOW, rank=1)                              # it never shrinks while it holds one
    assert model.config.ranks[SLOW] == rank + 3 and model.n_experts(SLOW) == E + 2
    model.reset(SLOW)
    model.unlock(SLOW, rank=1)
    assert model.config.ranks[SLOW] == 1 and model.live(SLOW)[0].shape[-1] == 1


# --------------------------------------------------------------------------------------------------
# awake, since

def test_an_expert_runs_from_its_position_on():
    model, ids = lively(n_layer=1), tokens(3,
                                           20)           # one block: no token sees another's expert
    old, always_on = model(ids), model(ids, awake=awake((FAST, [1] * 3, [0] * 3)))
    got = model(ids, awake=awake((FAST, [1] * 3, [0, 12, 20])))
    close(got[0], always_on[0])
    assert torch.equal(got[1, :12], old[1, :12]) and torch.equal(got[2], old[2])
    close(got[1, 12:], always_on[1, 12:])
    assert (got[1, 12:] != old[1, 12:]).any(-1).all()


def test_what_comes_before_an_expert_wakes_is_as_it_was():
    model, ids = lively(), tokens(3, 20)
    got, old = model(ids, awake=awake((SLOW, [0, 1, 1], [5, 9, 20]))), model(ids)
    for row, since in enumerate([5, 9, 20]):
        assert torch.equal(got[row, :since], old[row, :since])
        assert since == 20 or far(got[row, since:], old[row, since:])


@pytest.mark.parametrize("level", LEVELS)
def test_nobody_awake_is_the_function_without_experts(level):
    model, ids = lively(), tokens(3, 20)
    assert torch.equal(model(ids, awake=awake((level, [-1] * 3, [0] * 3))), model(ids))
    assert torch.equal(model(ids, awake={}), model(ids))
    none = plain()
    none.load_state_dict({k: t for k, t in model.state_dict().items()
                          if not k.endswith((".A", ".B"))}, strict=False)
    assert torch.equal(none(ids), model(ids))


def test_rows_do_not_meet():
    model, ids = lively(), tokens(3, 20)
    together = model(ids, awake=WOKEN)
    for i in range(3):
        alone = {k: (e[i:i + 1], s[i:i + 1]) for k, (e, s) in WOKEN.items()}
        close(together[i], model(ids[i:i + 1], awake=alone)[0])


def test_an_expert_is_a_low_rank_mlp_beside_the_level():
    """level(x) = MLP(x) + B_e gelu(A_e x), by hand."""
    level = lively().blocks[1].levels[SLOW]
    h = torch.randn(2, 3, 48, dtype=torch.float64)
    x = level.norm(h)
    mlp = level.down(F.relu(level.up(x)).square())
    who = torch.tensor([0, 1, 2, 2, 1, 0])
    more = [F.gelu(row @ level.A[e]) @ level.B[e] if e < 2 else torch.zeros(48)
            for row, e in zip(x.flatten(0, 1), who)]
    close(level(h, who), h + mlp + torch.stack(more).view_as(h))
    close(level(h), h + mlp)


def test_stopping_early_gives_the_state_between_blocks():
    model, ids = lively(), tokens(3, 20)
    h = model.hidden(ids, blocks=1)
    at = torch.arange(20)[None]
    close(model.norm(model.blocks[1](h, at, angles(at, 16, h.dtype))), model.hidden(ids))
    heard = states(model, ids)                              # hears = 1
    close(heard, h / (h.square().mean(-1, keepdim=True) + model.config.norm_eps).sqrt())


# --------------------------------------------------------------------------------------------------
# widen

SIZES = [dict(n_embd=83), dict(n_head=5), dict(d_ff=257), dict(n_embd=83, n_head=5, d_ff=257)]
BIASED = dict(act="gelu", rope=False, bias=True, qk_norm=False, conv=0, norm_eps=1e-2)
SWIGLU = dict(act="swiglu", qk_norm=False, conv=0, tied=False, qkv_bias=True)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("options", [{}, BIASED, SWIGLU], ids=["ours", "biased", "swiglu"])
def test_widen_keeps_the_function_and_what_the_gate_hears(size, options):
    model, ids = gated(lively(**options)), tokens(3, 30)
    wide = widen(model, **size)
    assert all(getattr(wide.config, k) == v for k, v in size.items())
    assert far(model(ids), model(ids, awake=WOKEN))
    close(wide(ids), model(ids), 1e-12)
    close(wide(ids, awake=WOKEN), model(ids, awake=WOKEN), 1e-12)
    for who in (model, wide):                               # distances to things
        who.heard = torch.cdist(states(who, ids) @ who.metric.T, who.things[None])
    assert far(model.heard[:, 0], model.heard[:, 1])
    close(wide.heard, model.heard, 1e-9)
    assert torch.equal(wide.reach, model.reach) and torch.equal(wide.owner, model.owner)


def test_widen_leaves_no_saddle():
    old = lively()
    wide, ids = widen(old, n_embd=83, n_head=5, d_ff=257).requires_grad_(True), tokens(4, 30)
    opt = torch.optim.SGD(wide.parameters(), lr=0.1)
    for _ in range(3):                              # writers, what they feed, its gain
        opt.zero_grad()
        F.cross_entropy(wide(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        opt.step()
    small, heard = dict(old.named_parameters()), 0
    for name, p in wide.named_parameters():
        if p.grad is None:                          # the norms of levels where nobody is awake
            assert ".levels." in name and f".levels.{SLOW}." not in name
            continue
        def split(t):                               # q, k and v grow apart
            return t.view(3, -1, t.shape[-1]) if "qkv" in name else t
        grad, was = split(p.grad), split(small[name]).shape
        for dim, size in enumerate(was):            # the new part along each dimension that grew
            new = grad.narrow(dim, size, grad.shape[dim] - size)
            heard += 1
            assert new.numel() == 0 or new.abs().max() > 1e-9, f"no gradient in new {name}"
    assert heard > 20


def test_widen_refuses_what_it_cannot():
    with pytest.raises(ValueError, match="RMSNorm"):
        widen(plain(**STYLES["gpt2"]), n_embd=64)
    with pytest.raises(ValueError, match="Qwen 3"):
        widen(plain(**STYLES["qwen"]), d_ff=128)
    with pytest.raises(ValueError, match="share one of keys"):
        widen(plain(**STYLES["llama"]), n_head=4)
    grouped, ids = plain(**STYLES["llama"]), tokens(2, 20)
    close(widen(grouped, n_embd=83, d_ff=257)(ids), grouped(ids), 1e-12)
    for size in (dict(n_embd=47), dict(n_head=2), dict(d_ff=99)):
        with pytest.raises(ValueError, match="shrink"):
            widen(plain(), **size)
    model = plain()
    model.unlock(FAST)
    with pytest.raises(ValueError, match="live"):
        widen(model, n_embd=64)


# --------------------------------------------------------------------------------------------------
# The cache

@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("cuts", [1, 7, [5, 1, 14, 2, 8]], ids=str)
def test_cache_equals_no_cache(style, cuts):
    model, ids = lively(**STYLES[style]), tokens(3, 30)
    assert far(model(ids), model(ids, awake=WOKEN))         # experts are at work across the cuts
    for who in (None, WOKEN):
        cache = new_cache(model, 3, 30)
        parts = torch.cat([model(part, cache=cache, awake=who) for part in ids.split(cuts, 1)], 1)
        close(parts, model(ids, awake=who))


@pytest.mark.parametrize("style", STYLES)
def test_cache_with_ragged_rows(style):
    model = lively(**STYLES[style])
    lengths = [[5, 1, 9], [2, 0, 1], [1, 8, 1], [4, 4, 4]]  # three texts in four pieces, one empty
    texts, cache = [[], [], []], new_cache(model, 3, 24)
    for piece in lengths:
        rows = [tokens(n).tolist() for n in piece]
        ids, n = pad_rows(rows)
        padding = torch.arange(ids.shape[1]) >= n[:, None]
        junk = torch.where(padding, tokens(*ids.shape), ids)            # any junk may be padding
        out = model(junk, cache=cache, lengths=n, awake=WOKEN)
        for i, (text, row, ours) in enumerate(zip(texts, rows, out)):
            text += row
            if row:
                who = {k: (e[i:i + 1], s[i:i + 1]) for k, (e, s) in WOKEN.items()}
                close(ours[:len(row)], model(torch.tensor([text]), awake=who)[0, -len(row):])


@pytest.mark.parametrize("style", STYLES)
def test_a_shared_prefix_serves_several_rows(style):
    model = lively(**STYLES[style])
    prefixes = [tokens(n).tolist() for n in (9, 4)]
    who = awake((FAST, [0, 1], [3, 12]), (SLOW, [-1, 0], [0, 2]))
    cache, logits = prefill(model, prefixes, who)
    copied = take_rows(cache, torch.tensor([0, 0, 1, 1]), room=8)
    shared = behind(model, cache, 2, 8)
    more = tokens(4, 8)
    twice = {k: (e.repeat_interleave(2), s.repeat_interleave(2)) for k, (e, s) in who.items()}
    for i, prefix in enumerate(prefixes):
        mine = {k: (e[i:i + 1], s[i:i + 1]) for k, (e, s) in who.items()}
        close(logits[i], model(torch.tensor([prefix]), awake=mine)[0, -1])
    for rows in (copied, shared):
        out = torch.cat([model(part, cache=rows, awake=twice) for part in more.split([3, 1, 4], 1)],
                        1)
        for i in range(4):
            mine = {k: (e[i:i + 1], s[i:i + 1]) for k, (e, s) in twice.items()}
            whole = torch.tensor([prefixes[i // 2] + more[i].tolist()])
            close(out[i], model(whole, awake=mine)[0, -8:])
    for own, old in zip(shared["blocks"], cache["blocks"]):
        assert own["prefix"][0].data_ptr() == old["k"].data_ptr()       # read where it lies
    assert cache["len"].tolist() == [9, 4]                  # the prefix is as it was


def test_too_long_a_text_is_refused():
    model, ids = lively(), tokens(2, 65)                    # block_size is 64
    model(ids[:, :64])
    with pytest.raises(ValueError, match="65 tokens"):
        model(ids)
    cache = new_cache(model, 2, 65)
    model(ids[:, :64], cache=cache)
    with pytest.raises(ValueError, match="65 tokens"):
        model(ids[:, 64:], cache=cache)
