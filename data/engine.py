"""
Reading into a cache, and sampling from it: what every decoder needs and no chapter is about.

    cache, logits = prefill(model, prompts)          read once
    rows = generate(model, prompts, max_new, n=4)    a prompt is shared by its samples, not copied
"""
import torch

from data.kernels import HOST


def rows_of(pos):
    return torch.arange(pos.shape[0], device=pos.device)[:, None]


def new_cache(model, batch, length):
    """Room for `length` tokens of `batch` rows: keys, values, and the inputs of the convolution.

    len (B,): tokens each row has read; max: the most of them; start (B,): how many of these stand
    in a prefix that is shared with other rows (see `behind`).
    """
    c, zeros = model.config, model.wte.weight.new_zeros
    before = length + c.conv - 1 if c.conv else 0           # no convolution: nothing to keep for it
    blocks = [{"k": zeros(batch, c.kv_heads, length, c.head_dim),
               "v": zeros(batch, c.kv_heads, length, c.head_dim),
               "x": zeros(batch, before, c.n_embd)} for _ in model.blocks]
    none = torch.zeros(batch, dtype=torch.long, device=model.device)
    return {"blocks": blocks, "len": none, "start": none, "max": 0}


def visible(cache, pos, end):
    """What each token of a cached row may attend to: (B, 1, T, keys), causal, prefixes included."""
    own = end - cache.get("prefix", 0)
    at = pos - cache["start"][:, None]
    mask = (torch.arange(own, device=pos.device) <= at[:, :, None])[:, None]
    if "shared" not in cache:
        return mask
    mask = torch.cat([cache["shared"].expand(-1, -1, pos.shape[1], -1), mask], -1)
    return torch.zeros(mask.shape, device=pos.device).masked_fill(~mask, -torch.inf)


def take_rows(cache, rows, room=0):
    """A new cache whose rows are cache[rows], with room for more tokens. Copies."""
    def more(t, dim):
        if not room or not t.shape[dim]:
            return t[rows]
        shape = list(t.shape)
        shape[dim] = room
        return torch.cat([t[rows], t.new_zeros(shape)[rows]], dim)
    blocks = [{"k": more(b["k"], 2), "v": more(b["v"], 2), "x": more(b["x"], 1)}
              for b in cache["blocks"]]
    return {"blocks": blocks, "max": cache["max"], "len": cache["len"][rows],
            "start": cache["start"][rows]}


def behind(model, cache, n, room):
    """A new cache of n rows behind each row of `cache`, which they read where it lies."""
    many = torch.arange(len(cache["len"]), device=model.device).repeat_interleave(n)
    new, taps = new_cache(model, len(many), room), max(model.config.conv - 1, 0)
    border = cache["len"][:, None] + torch.arange(taps, device=model.device)
    for own, old in zip(new["blocks"], cache["blocks"]):
        own["x"][:, :taps] = old["x"][rows_of(border), border][many]   # it looks over the border
        own["prefix"] = [old[name][:, :, :cache["max"]] for name in "kv"]
    shared = torch.arange(cache["max"], device=model.device) < cache["len"][:, None]
    return {**new, "max": cache["max"], "prefix": cache["max"], "len": cache["len"][many],
            "start": cache["len"][many], "shared": shared[many][:, None, None]}


def pad_rows(rows, device="cpu", pad=0):
    """Lists of token ids -> (ids (B, T) right-padded, lengths (B,))."""
    lengths = torch.tensor([len(r) for r in rows], dtype=torch.long)
    ids = torch.full((len(rows), max([1, *map(len, rows)])), pad, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, :len(row)] = torch.tensor(row, dtype=torch.long)
    return ids.to(device), lengths.to(device)


@torch.no_grad()
def prefill(model, rows, awake=None, before=None):
    """Read rows (lists of ids) into a cache -> (cache, logits after each row (B, V)).

    before: (cache, row (B,)): what has been read before, a row of another cache for each.
    """
    ids, lengths = pad_rows(rows, model.device)
    cache = take_rows(*before, ids.shape[1]) if before else new_cache(model, *ids.shape)
    h = model.hidden(ids, cache=cache, lengths=lengths, awake=awake)
    return cache, model.logits(h[rows_of(ids)[:, 0], lengths - 1])


@torch.no_grad()
def generate(model, prompts, max_new, n=1, temperature=1.0, top_k=0, stop=(), generator=None,
             trie=None, awake=None, before=None, forms=()):
    """Continue each prompt (a list of ids) n times: len(prompts) * n lists of new ids.

    A prompt is read once and shared by its n samples. temperature 0 is greedy. stop: ids that end
    a row, kept as its last token. trie: a table (states, V) of next states, -1 where a token is
    not allowed; its sequences end in a stop id. awake: as in GPT.hidden, a row a prompt. before:
    what has been read before the prompts, see `prefill`. forms: marks that follow one another; of
    each its first id is for the model to say, and is then no stop; the rest is spelt out behind it
    and comes on top of max_new. Raises ValueError for an empty prompt.
    """
    if not all(prompts):
        raise ValueError("an empty prompt: give at least the mark that begins a text")
    if not prompts:
        return []
    many = torch.arange(len(prompts), device=model.device).repeat_interleave(n)
    script, first = script_of(forms, model.device)
    max_new += len(script) - 1 - len(forms)
    cache, logits = prefill(model, prompts, awake, before)
    cache = behind(model, cache, n, max_new) if n > 1 else take_rows(cache, many, max_new)
    awake = {level: (expert[many], since[many]) for level, (expert, since) in (awake or {}).items()}
    stops = torch.tensor(list(stop), dtype=torch.long, device=model.device)
    state, at = torch.zeros_like(many), torch.zeros_like(many)
    done = torch.zeros(len(many), dtype=torch.bool, device=model.device)
    logits, out = logits[many], []
    # a GPU waits for each look at `done`; where words are drawn, as many are drawn on any device
    look = 1 if model.device.type in HOST and temperature == 0 else 8
    for step in range(max_new):
        if trie is not None:
            logits = logits.masked_fill((trie[state] < 0) & ~done[:, None], -torch.inf)
        token = sample(logits, temperature, top_k, generator)
        if trie is not None:
            state = torch.where(done, state, trie[state, token])
        token = torch.where(first[at], token, script[at])
        scripted = token == script[at]
        out.append(torch.where(done, -1, token))
        done = done | (token[:, None] == stops).any(1) & ~scripted
        at = at + scripted
        if step == max_new - 1 or (step % look == look - 1 and done.all()):
            break
        logits = model.logits(model.hidden(token[:, None], cache=cache, awake=awake)[:, 0])
    rows = torch.stack(out, 1).tolist() if out else [[] for _ in many]
    return [[t for t in row if t >= 0] for row in rows]


def script_of(forms, device):
    """Marks that follow one another, as ids, behind them one that is never said; and where each
    begins: (S,) both."""
    rows = [[*form] for form in forms] + [[-1]]
    first = [i == 0 for row in rows for i in range(len(row))]
    return torch.tensor(sum(rows, []), device=device), torch.tensor(first, device=device)


def sample(logits, temperature, top_k, generator):
    """One token a row from logits (B, V) at a temperature (0: the likeliest): (B,)."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k:
        least = logits.topk(min(top_k, logits.shape[-1]))[0][:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    cdf = logits.float().softmax(-1).cumsum(-1)             # one random number a row, not a word
    u = 1 - torch.rand(len(cdf), 1, generator=generator, device=cdf.device)     # (0, 1]: p = 0 is
    return torch.searchsorted(cdf, u * cdf[:, -1:])[:, 0]                       # never drawn


def attend_behind(q, k, v, mask, prefix):
    """Attention where every n rows have one prefix in common, which is not copied for each.

    q (P*n, G*H, T, D), scaled; prefix: keys and values (P, H, S, D), each for G heads of queries;
    k, v (P*n, H, L, D) of the rows' own tokens; mask (P*n, 1, T, S+L), 0 or -inf. One softmax over
    both. -> (P*n, G*H, T, D).
    """
    (P, H, S, _), shape, G = prefix[0].shape, q.shape, q.shape[1] // k.shape[1]
    q = q.reshape(shape[0], H, G * shape[2], -1)            # heads of one key: as further tokens
    mask = mask[:, :, None].expand(-1, -1, G, -1, -1).flatten(2, 3)
    N, _, T, _ = q.shape

    def together(t):                                        # the rows of a prefix side by side
        return t.view(P, N // P, H, T, -1).transpose(1, 2).reshape(P, H, N // P * T, -1)

    def apart(t):
        return t.view(P, H, N // P, T, -1).transpose(1, 2).reshape(N, H, T, -1)
    scores = torch.cat([apart(together(q) @ prefix[0].mT), q @ k.mT], -1) + mask
    p = scores.softmax(-1).to(v.dtype)
    return (apart(together(p[..., :S]) @ prefix[1]) + p[..., S:] @ v).reshape(shape)
