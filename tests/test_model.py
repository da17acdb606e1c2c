"""The mathematics of model.py: what must not change by one bit, what agrees to rounding, and what must be refused."""
import json
import struct

import pytest
import torch
import torch.nn.functional as F

from model import GPT, Config, behind, clone, from_pretrained, generate, new_cache, pad_rows, prefill, read_safetensors, \
    take_rows, widen

V = 40
STYLES = {"ours": {}, "gpt2": dict(act="gelu", rope=False, rms=False, bias=True, qk_norm=False, conv=0)}


def plain(dtype=torch.float64, **options):
    """A small model with random weights everywhere: gains, biases and convolutions too. Nothing is 0 or 1 by luck."""
    small = dict(vocab_size=V, block_size=48, n_layer=2, n_head=3, head_dim=16, n_embd=48, d_ff=100, ranks=(4, 8))
    model = GPT(Config(**{**small, "window": 4, **options})).to(dtype).requires_grad_(False)
    for name, p in model.named_parameters():
        gain = "norm" in name and name.endswith("weight")
        p.copy_(1 + 0.3 * torch.randn_like(p) if gain else 0.2 * torch.randn_like(p))
    return model


def expand(model, level, n, loudness=0.3):
    """n settled experts with random weights."""
    model.unlock(level, n=n)
    for block in model.blocks:
        live = block.levels[level]
        live.A_live.data = 0.3 * torch.randn_like(live.A_live)
        live.B_live.data = loudness * torch.randn_like(live.B_live)
    model.settle(level)


def lively(dtype=torch.float64, **options):
    """plain, with two experts on each level and detectors that now and then fire for each of them."""
    model = plain(dtype, **options)
    for level in (0, 1):
        expand(model, level, 2)
        for expert in (0, 1):
            model.attach(torch.randn(1, 48) / 48 ** 0.5, torch.tensor([-1.7]), level, expert)
    return model


def tokens(*shape):
    return torch.randint(V, shape)


def close(a, b, tol=1e-11):
    torch.testing.assert_close(a, b, rtol=0, atol=tol)


def far(a, b):
    """Outputs that really differ: else a test of equality would hold for a model in which nothing happens."""
    return (a - b).abs().max() > 0.1


# ----------------------------------------------------------------------------------------------------------------------
# unlock, settle, discard, reset

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("make", [plain, lively])
def test_unlock_changes_not_one_bit(make, level, dtype):
    model, ids = make(dtype), tokens(3, 20)
    first_new = model.blocks[0].levels[level].n_experts             # 0 in plain, 2 in lively
    forced = {level: torch.arange(3) % max(1, first_new) if first_new else torch.full((3,), -1)}
    before, before_forced = model(ids), model(ids, extra=forced)
    assert make is plain or far(before, before_forced) and far(before, model(ids, gate=False))
    model.unlock(level, n=2)
    for _ in "live", "settled":                                      # settling the untouched changes nothing either
        assert torch.equal(model(ids), before)
        assert torch.equal(model(ids, extra=forced), before_forced)
        for new in (first_new, first_new + 1):
            assert torch.equal(model(ids, extra={level: torch.full((3,), new)}), before)
        if not model.live(level):
            break
        model.settle(level)
    if make is plain:                                                # a detector that wakes an empty expert
        model.attach(torch.randn(5, 48), torch.zeros(5), level, 1)
        assert torch.equal(model(ids), before)
    assert model.blocks[0].levels[level].n_experts == first_new + 2


def test_only_the_live_expert_receives_a_gradient():
    model, ids = lively(torch.float32), tokens(3, 20)
    live = model.unlock(1)
    frozen = {k: v.clone() for k, v in model.state_dict().items() if "_live" not in k}
    opt = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    assert {id(p) for g in opt.param_groups for p in g["params"]} == {id(p) for p in live} and len(live) == 2 * 2
    for _ in range(2):                                               # B is 0 at first: A learns from the second step
        opt.zero_grad()
        F.cross_entropy(model(ids, extra={1: torch.full((3,), 2)}).flatten(0, 1), ids.flatten()).backward()
        opt.step()
    assert all(p.grad.abs().max() > 0 for p in live)
    assert all(torch.equal(v, frozen[k]) for k, v in model.state_dict().items() if "_live" not in k)
    named = dict(model.named_parameters())                           # the settled ones could not learn if asked to
    assert not any(name.endswith((".A", ".B")) or name in ("keys", "bias") for name in named)


def test_settle_keeps_what_was_learnt_and_discard_forgets_it():
    model, ids = lively(), tokens(3, 20)
    before, third = model(ids), {0: torch.full((3,), 2)}
    for end in (model.discard, model.settle):
        for p in model.unlock(0):
            p.data = torch.randn_like(p)
        live = model(ids, extra=third)
        assert far(live, before)
        end(0)
        assert torch.equal(model(ids, extra=third), before if end == model.discard else live)
        assert model.live(0) == []


def test_reopened_experts_learn_on_from_where_they_were():
    model, ids = lively(), tokens(3, 20)
    before, live = model(ids), model.reopen(1)
    assert torch.equal(model(ids), before) and len(live) == 2 * 2 and all(p.requires_grad for p in live)
    for p in live:
        p.data += 0.3 * torch.randn_like(p)
    learnt = model(ids)
    assert far(learnt, before)
    model.settle(1)
    assert torch.equal(model(ids), learnt) and model.blocks[0].levels[1].n_experts == 2


def test_reset_empties_a_level():
    model, ids = plain(), tokens(3, 20)
    expand(model, 1, 1)
    model.attach(torch.randn(1, 48), torch.tensor([-3.0]), 1, 0)
    before, state = model(ids), model.state_dict()
    expand(model, 0, 3)
    model.attach(torch.randn(4, 48), torch.zeros(4), 0, 2)
    model.unlock(0)
    assert far(model(ids), before)
    model.reset(0)
    assert model.blocks[0].levels[0].n_experts == 0 and torch.equal(model(ids), before)
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())    # the other level is whole


def test_reset_with_an_heir_keeps_routing():
    model, ids = plain(), tokens(3, 20)
    expand(model, 1, 2)
    heir = clone(model)
    expand(model, 0, 3)
    for expert in range(3):
        keys, bias = torch.randn(1, 48) / 48 ** 0.5, torch.tensor([-1.5])
        model.attach(keys, bias, 0, expert)
        heir.attach(keys, bias, 1, 1)                                # as if it had been the heir's from the start
    assert far(model(ids), heir(ids)) and far(heir(ids), heir(ids, gate=False))
    model.reset(0, heir=(1, 1))
    assert torch.equal(model(ids), heir(ids))


def test_load_state_dict_restores_experts_and_detectors():
    model, ids = lively(torch.float32), tokens(3, 20)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    more = lively(torch.float32)
    expand(more, 1, 5)
    more.attach(torch.randn(7, 48), torch.randn(7), 1, 3)
    for other in (GPT(model.config), more):                          # into a fresh model, or one that holds too much
        other.load_state_dict(state)
        assert torch.equal(other(ids), model(ids)) and other.n_params() == model.n_params()
        assert all(torch.equal(t, state[name]) for name, t in other.state_dict().items())
    double = GPT(model.config)
    double.load_state_dict({name: t.double() if t.is_floating_point() else t for name, t in state.items()})
    assert torch.equal(double(ids), model(ids))                      # the model, experts too, keeps its own precision


# ----------------------------------------------------------------------------------------------------------------------
# the hard gate

BELL = (1, 2)                                                        # tokens that detectors know


def with_bells(n_layer, owners, dtype=torch.float64, window=5):
    """(old, model): model has loud experts, and detectors that bell i wakes owners[i]; old is the self before them.

    The first block's convolution and attention are silent, so the router sees bare embeddings and knows every bell.
    """
    model = plain(dtype, n_layer=n_layer, window=window)
    model.blocks[0].proj.weight.zero_()
    model.blocks[0].conv.zero_()
    old = clone(model)
    expand(model, 0, 2, loudness=50)
    expand(model, 1, 2, loudness=50)
    for bell, (level, expert) in zip(BELL, owners):
        model.attach(model.features(model.wte.weight[[bell]]) / 48, torch.tensor([-0.7]), level, expert)
    return old, model


def without_bells(*shape):
    return torch.randint(3, V, shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_the_router_is_silent_the_old_function_is_exact(dtype):
    old, model = with_bells(2, [(0, 0), (1, 1)], dtype)
    ids = without_bells(3, 20)
    assert torch.equal(model(ids), old(ids))
    ids[0, 8] = BELL[0]
    new, old = model(ids), old(ids)
    assert torch.equal(new[1:], old[1:]) and torch.equal(new[0, :8], old[0, :8])
    assert (new[0, 8:] != old[0, 8:]).any(-1).all()
    assert torch.equal(model(ids, gate=False), old)                  # the gate shut by hand


@pytest.mark.parametrize("window", [1, 5])
@pytest.mark.parametrize("level", [0, 1])
def test_the_gate_stays_open_for_window_tokens(level, window):
    old, model = with_bells(1, [(level, 0), (level, 1)], window=window)          # one block: no token sees another
    ids = without_bells(1, 30)
    ids[0, 3] = ids[0, 15] = ids[0, 17] = BELL[0]                    # the last bell rings while the gate may be open
    changed = (model(ids) != old(ids)).any(-1)[0].nonzero().flatten().tolist()
    assert changed == sorted({*range(3, 3 + window), *range(15, 15 + window), *range(17, 17 + window)})


@pytest.mark.parametrize("owners", [[(0, 0), (0, 1)], [(0, 1), (1, 0)], [(1, 1), (0, 1)]])
def test_the_expert_that_fired_last_wins(owners):
    _, model = with_bells(1, owners)
    ids = without_bells(1, 12)
    ids[0, 2], ids[0, 5] = BELL                                      # the second rings within the first one's window
    first, second = (model(ids, gate=False, extra={level: torch.tensor([e])})[0] for level, e in owners)
    assert far(first[2:10], second[2:10])
    close(model(ids)[0, 2:5], first[2:5])
    close(model(ids)[0, 5:10], second[5:10])


def test_a_forced_expert_speaks_only_where_the_router_is_silent():
    old, model = with_bells(1, [(0, 0), (1, 1)])
    ids = without_bells(2, 12)
    ids[:, 4] = BELL[0]
    out = model(ids, extra={1: torch.tensor([0, -1])})
    close(out[0, 4:9], model(ids)[0, 4:9])                           # awake: the router's choice, on every level
    silent = [*range(4), *range(9, 12)]
    close(out[0, silent], model(ids, gate=False, extra={1: torch.tensor([0, 0])})[0, silent])
    assert torch.equal(out[1], model(ids)[1]) and torch.equal(out[1, silent], old(ids)[1, silent])       # -1: none


# ----------------------------------------------------------------------------------------------------------------------
# widen

SIZES = [dict(n_embd=83), dict(n_head=5), dict(d_ff=257), dict(n_embd=83, n_head=5, d_ff=257)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("options", [{}, dict(act="gelu", rope=False, bias=True, qk_norm=False, conv=0, norm_eps=1e-2)],
                         ids=["ours", "biased"])
def test_widen_keeps_the_function(size, options):
    model, ids = lively(**options), tokens(3, 30)
    wide = widen(model, **size)
    assert all(getattr(wide.config, k) == v for k, v in size.items())
    forced = {0: torch.tensor([0, 1, -1]), 1: torch.tensor([1, -1, 0])}
    assert far(model(ids), model(ids, gate=False)) and far(model(ids), model(ids, extra=forced))
    close(wide(ids), model(ids), 1e-12)
    close(wide(ids, extra=forced), model(ids, extra=forced), 1e-12)


def test_widen_leaves_no_saddle():
    old = lively()
    wide, ids = widen(old, n_embd=83, n_head=5, d_ff=257).requires_grad_(True), tokens(4, 30)
    opt = torch.optim.SGD(wide.parameters(), lr=0.1)
    for _ in range(3):                                               # writers move, then what they feed, then its gain
        opt.zero_grad()
        F.cross_entropy(wide(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        opt.step()
    small = dict(old.named_parameters())
    for name, p in wide.named_parameters():
        split = (lambda t: t.view(3, -1, t.shape[-1])) if "qkv" in name else (lambda t: t)      # q, k and v grow apart
        grad, was = split(p.grad), split(small[name]).shape
        for dim, size in enumerate(was):                             # the new part along each dimension that grew
            new = grad.narrow(dim, size, grad.shape[dim] - size)
            assert new.numel() == 0 or new.abs().max() > 1e-9, f"no gradient reaches what is new in {name}"


def test_widen_refuses_layernorm_and_shrinking():
    with pytest.raises(ValueError, match="RMSNorm"):
        widen(plain(**STYLES["gpt2"]), n_embd=64)
    for size in (dict(n_embd=47), dict(n_head=2), dict(d_ff=99)):
        with pytest.raises(ValueError, match="shrink"):
            widen(plain(), **size)


# ----------------------------------------------------------------------------------------------------------------------
# the cache

@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("cuts", [1, 7, [5, 1, 14, 2, 8]], ids=str)
def test_cache_equals_no_cache(style, cuts):
    model, ids = lively(**STYLES[style]), tokens(3, 30)
    assert far(model(ids), model(ids, gate=False))                   # experts are at work on both sides of the cuts
    for kw in ({}, {"gate": False}, {"extra": {0: torch.tensor([0, -1, 1]), 1: torch.tensor([1, 0, -1])}}):
        cache = new_cache(model, 3, 30)
        parts = torch.cat([model(part, cache=cache, **kw) for part in ids.split(cuts, 1)], 1)
        close(parts, model(ids, **kw))


@pytest.mark.parametrize("style", STYLES)
def test_cache_with_ragged_rows(style):
    model = lively(**STYLES[style])
    lengths = [[5, 1, 9], [2, 0, 1], [1, 8, 1], [4, 4, 4]]           # three texts, four pieces each, one of them empty
    texts, cache = [[], [], []], new_cache(model, 3, 24)
    for piece in lengths:
        rows = [tokens(n).tolist() for n in piece]
        ids, n = pad_rows(rows)
        padding = torch.arange(ids.shape[1]) >= n[:, None]
        out = model(torch.where(padding, tokens(*ids.shape), ids), cache=cache, lengths=n)     # any junk may be padding
        for text, row, ours in zip(texts, rows, out):
            text += row
            if row:
                close(ours[:len(row)], model(torch.tensor([text]))[0, -len(row):])


@pytest.mark.parametrize("style", STYLES)
def test_a_shared_prefix_serves_several_rows(style):
    model = lively(**STYLES[style])
    prefixes = [tokens(n).tolist() for n in (9, 4)]
    cache, logits = prefill(model, prefixes)
    for prefix, ours in zip(prefixes, logits):
        close(ours, model(torch.tensor([prefix]))[0, -1])
    for rows in ([0, 1, 1, 0], [1, 0]):                              # twice: the first use leaves the prefix as it was
        many, more = take_rows(cache, torch.tensor(rows), room=8), tokens(len(rows), 8)
        out = torch.cat([model(part, cache=many) for part in more.split([3, 1, 4], 1)], 1)
        for i, row in enumerate(rows):
            whole = torch.tensor([prefixes[row] + more[i].tolist()])
            close(out[i], model(whole)[0, -8:])


@pytest.mark.parametrize("style", STYLES)
def test_rows_behind_a_prefix_read_it_where_it_lies(style):
    model = lively(**STYLES[style])
    prefixes, extra = [tokens(n).tolist() for n in (9, 1, 4)], torch.tensor([1, 1, -1, -1, 0, 0])
    for kw in ({}, {"gate": False}, {"extra": {1: extra}}):
        once = {"extra": {1: extra[::2]}} if "extra" in kw else kw
        cache, _ = prefill(model, prefixes, **once)
        for cuts in ([8], [1] * 8, [3, 1, 4]):                       # the prefix stays as it was and serves again
            rows, more = behind(model, cache, 2, room=8), tokens(6, 8)
            out = torch.cat([model(part, cache=rows, **kw) for part in more.split(cuts, 1)], 1)
            for i in range(6):
                who = {"extra": {1: extra[i:i + 1]}} if "extra" in kw else kw
                close(out[i], model(torch.tensor([prefixes[i // 2] + more[i].tolist()]), **who)[0, -8:])
            assert all(a.data_ptr() == b["k"].data_ptr() for a, b in
                       ((own["prefix"][0], old) for own, old in zip(rows["blocks"], cache["blocks"])))


def test_too_long_a_text_is_refused():
    model, ids = lively(), tokens(2, 49)                             # block_size is 48
    model(ids[:, :48])
    with pytest.raises(ValueError, match="49 tokens"):
        model(ids)
    cache = new_cache(model, 2, 49)
    model(ids[:, :48], cache=cache)
    with pytest.raises(ValueError, match="49 tokens"):
        model(ids[:, 48:], cache=cache)
    with pytest.raises(ValueError, match="do not fit"):
        generate(model, ids[:, :45].tolist(), 10)


# ----------------------------------------------------------------------------------------------------------------------
# sampling

def naive(model, prompt, steps, **kw):
    """Greedy decoding as one would write it first: no cache, no batch."""
    text = list(prompt)
    for _ in range(steps):
        text.append(model(torch.tensor([text]), **kw)[0, -1].argmax().item())
    return text[len(prompt):]


PROMPTS = [[3, 4, 5, 6, 7, 8], [9], [10, 11, 12]]


@pytest.mark.parametrize("style", STYLES)
def test_greedy_generate_equals_the_naive_loop(style):
    model = lively(**STYLES[style])
    want = [naive(model, p, 20) for p in PROMPTS]
    assert generate(model, PROMPTS, 20, temperature=0) == want
    shut = [naive(model, p, 20, gate=False) for p in PROMPTS]
    assert generate(model, PROMPTS, 20, temperature=0, gate=False) == shut and shut != want
    who = [1, -1, 0]
    forced = [naive(model, p, 20, extra={1: torch.tensor([e])}) for p, e in zip(PROMPTS, who)]
    extra = {1: torch.tensor(who).repeat_interleave(2)}              # one entry a row: two samples of each prompt
    assert generate(model, PROMPTS, 20, n=2, temperature=0, extra=extra) == [f for f in forced for _ in range(2)]
    assert forced != want


def test_generate_continues_a_cached_prefix():
    model, prefixes = lively(), [[1, 2, 3, 4], [5, 6], [7]]
    cache, _ = prefill(model, prefixes)
    for _ in range(2):                                               # the prefix stays as it was and serves again
        ours = generate(model, PROMPTS, 12, n=2, temperature=0, cache=cache)
        assert ours[::2] == ours[1::2] == [naive(model, a + b, 12) for a, b in zip(prefixes, PROMPTS)]


def test_n_samples_share_one_reading_of_the_prompt(monkeypatch):
    model, shapes = lively(), []
    hidden = GPT.hidden
    spy = lambda self, idx, **kw: shapes.append(tuple(idx.shape)) or hidden(self, idx, **kw)
    monkeypatch.setattr(GPT, "hidden", spy)
    shared = generate(model, PROMPTS, 6, n=4, generator=torch.Generator().manual_seed(1))
    assert shapes == [(3, 6)] + [(12, 1)] * 5                        # three prompts are read once; twelve rows go on
    apart = generate(model, [p for p in PROMPTS for _ in range(4)], 6, generator=torch.Generator().manual_seed(1))
    assert shared == apart and len({tuple(row) for row in shared[:4]}) > 1


def test_temperature_and_top_k():
    model, prompt, n = lively(), [3, 4, 5], 8000
    logits = model(torch.tensor([prompt]))[0, -1]
    best, order = logits.topk(4)
    drawn = torch.tensor(generate(model, [prompt], 1, n=n, temperature=0.7, top_k=4))[:, 0]
    share = (drawn[:, None] == order).sum(0) / n
    assert share.sum() == 1                                          # nothing outside the four best
    assert (share - (best / 0.7).softmax(-1)).abs().max() < 0.03     # five standard deviations at 8000 draws
    assert (best / 0.7).softmax(-1).sub(best.softmax(-1)).abs().max() > 0.06     # another temperature would show


def test_stop_tokens_end_a_row_and_only_that_row():
    model = lively()
    free = [naive(model, p, 20) for p in PROMPTS]
    stop = {free[0][2], free[1][9]}
    want = [row[:next((i + 1 for i, t in enumerate(row) if t in stop), 20)] for row in free]
    assert len(want[0]) <= 3 and len({len(row) for row in want}) > 1
    assert generate(model, PROMPTS, 20, temperature=0, stop=stop) == want
    assert generate(model, PROMPTS, 0) == [[], [], []]


def test_a_trie_allows_only_its_sequences():
    model, end = lively(), 39
    allowed = [(5, 6, 7, end), (5, 6, end), (5, 8, end), (9, end)]
    table, states = [[-1] * V], {(): 0}
    for sequence in allowed:
        for i, token in enumerate(sequence):
            if sequence[:i + 1] not in states:
                states[sequence[:i + 1]] = len(table)
                table.append([-1] * V)
            table[states[sequence[:i]]][token] = states[sequence[:i + 1]]
    trie = torch.tensor(table)
    drawn = generate(model, PROMPTS, 6, n=40, temperature=3.0, stop=[end], trie=trie)
    assert {tuple(row) for row in drawn} == set(allowed)             # all of them and nothing else, short and long
    for row, prompt in zip(generate(model, PROMPTS, 6, temperature=0, stop=[end], trie=trie), PROMPTS):
        text, state = list(prompt), 0
        while text[-1] != end:                                       # the best allowed token, one at a time
            logits = model(torch.tensor([text]))[0, -1].masked_fill(trie[state] < 0, -torch.inf)
            text.append(logits.argmax().item())
            state = table[state][text[-1]]
        assert row == text[len(prompt):]


# ----------------------------------------------------------------------------------------------------------------------
# from GPT-2

def gpt2(folder, n_embd=48, n_head=4):
    """A random tiny GPT-2 in a folder, written by transformers itself; its logits for some tokens."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=V, n_positions=32, n_embd=n_embd, n_layer=3, n_head=n_head, bos_token_id=0, eos_token_id=0)).eval()
    for name, p in theirs.named_parameters():                        # their biases start at 0, their gains at 1
        p.data = (1.0 if "ln_" in name and "weight" in name else 0.0) + 0.2 * torch.randn_like(p)
    theirs.save_pretrained(folder, safe_serialization=True)
    ids = tokens(3, 32)
    with torch.no_grad():
        return ids, theirs(ids).logits


@pytest.mark.parametrize("ranks", [(8,), (4, 8)])
def test_gpt2_gives_the_logits_of_transformers(tmp_path, ranks):
    ids, want = gpt2(tmp_path)
    model = from_pretrained(tmp_path, ranks=ranks)
    assert model.config.n_head == 4                                  # from config.json
    with torch.no_grad():
        close(model(ids), want, 1e-5)
        model.unlock(0)
        close(model(ids), want, 1e-5)
        more = from_pretrained(tmp_path, ranks=ranks, extra_tokens=3)(ids)
        close(more[..., :V], want, 1e-5)                             # new words leave the old ones alone
        close(more[..., V:], want.mean(-1, keepdim=True).expand(-1, -1, 3), 1e-5)


def test_gpt2_without_config_has_a_head_for_every_64_dimensions(tmp_path):
    ids, want = gpt2(tmp_path, n_embd=128, n_head=2)
    (tmp_path / "config.json").unlink()
    with torch.no_grad():
        close(from_pretrained(tmp_path / "model.safetensors")(ids), want, 2e-5)


def test_safetensors_of_every_kind_are_read(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
             torch.int8, torch.uint8, torch.bool]
    want = {str(kind): (100 * torch.randn(3, 5)).to(kind) for kind in kinds}
    want |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4)}
    save_file(want, tmp_path / "all.safetensors", metadata={"format": "pt"})
    got = read_safetensors(tmp_path / "all.safetensors")
    assert got.keys() == want.keys()
    assert all(got[k].dtype == t.dtype and torch.equal(got[k], t) for k, t in want.items())


def raw(header, body=bytes(24), size=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if size is None else size) + header + body


def info(shape=(2, 3), offsets=(0, 24), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


CORRUPT = {
    "empty file": b"",
    "no whole length": b"\x01\x00\x00",
    "body truncated": raw({"w": info()})[:-1],
    "header truncated": raw({"w": info()}, b"")[:-9],
    "header longer than the file": raw({"w": info()}, size=10 ** 15),
    "header length off by one": raw({"w": info()}, size=len(json.dumps({"w": info()})) - 1),
    "not JSON": raw(b"{'w': 1}"),
    "not text": raw(b"\xff\xfe\x00"),
    "JSON bomb": raw(b'{"w":' * 50000),
    "no dictionary": raw(["w"]),
    "no tensor": raw({"w": 7}),
    "no offsets": raw({"w": {"dtype": "F32", "shape": [2, 3]}}),
    "offsets outside": raw({"w": info(offsets=(8, 32))}),
    "offsets below zero": raw({"w": info(offsets=(-24, 0))}),
    "offsets reversed": raw({"w": info(offsets=(24, 0))}),
    "offsets of another size": raw({"w": info(shape=(2, 2))}),
    "a negative shape": raw({"w": info(shape=(-2, -3))}),
    "a shape of words": raw({"w": info(shape=("2", "3"))}),
    "unknown dtype": raw({"w": info(dtype="F33")}),
    "overlap": raw({"w": info(), "v": info()}),
    "overlap beside a hole": raw({"w": info(), "v": info(offsets=(12, 36))}, bytes(48)),
}


@pytest.mark.parametrize("what", CORRUPT)
def test_a_corrupt_safetensors_file_is_named(what, tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(raw({"w": info()}))
    assert read_safetensors(path)["w"].shape == (2, 3)               # the same file, sound
    path.write_bytes(CORRUPT[what])
    for read in (read_safetensors, from_pretrained):
        with pytest.raises(ValueError, match=r"bad\.safetensors"):
            read(path)


def test_an_incomplete_gpt2_is_named(tmp_path):
    save_file, path = pytest.importorskip("safetensors.torch").save_file, tmp_path / "model.safetensors"
    gpt2(tmp_path)
    whole = read_safetensors(path)
    for lost in ("transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.bias",
                 "transformer.h.1.mlp.c_fc.weight"):
        save_file({k: v for k, v in whole.items() if k != lost}, path)
        with pytest.raises(ValueError, match=r"model\.safetensors.*" + lost.removeprefix("transformer.")):
            from_pretrained(tmp_path)
    save_file({**whole, "transformer.h.1.mlp.c_fc.weight": torch.zeros(48, 7)}, path)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        from_pretrained(tmp_path)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no GPT-2 weights at .*model\.safetensors"):
        from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no GPT-2 weights at .*gpt2-xl"):
        from_pretrained(tmp_path / "gpt2-xl")
