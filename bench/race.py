"""
How bench/speed.py races competitors, and what one would use instead of nanoSleep. Nothing is
installed from here: a peer that is missing is named with how to get it.
"""
import ctypes
import importlib
import importlib.util
import os
import statistics
import tempfile
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

from data.weights import from_pretrained
from model import GPT, Config

PEERS = {"transformers": "pip install transformers", "trl": "pip install trl",
         "rapidfuzz": "pip install rapidfuzz", "torchaudio": "pip install torchaudio",
         "fla": "pip install flash-linear-attention einops",
         "bench.recurrence": "not in this copy of nanoSleep",
         "avalanche": "pip install avalanche-lib, in an environment of its own: it pulls another "
                      "torch"}


def clock(o):
    """The wall's; with one CPU thread the processor's, which does not run while other jobs do."""
    return process_time if o.device == "cpu" and o.threads == 1 else time.perf_counter


def process_time():
    """CPU seconds of this process and of the children it waited for."""
    t = os.times()
    return time.process_time() + t.children_user + t.children_system


def seconds(o, run):
    """Seconds of one call, to the end of what the device does for it."""
    now = clock(o)
    wait(o)
    start = now()
    run()
    wait(o)
    return now() - start


def wait(o):
    if o.device == "cuda":
        torch.cuda.synchronize()


def race(o, what, work, unit, runs, rounds=None, warm=1, scale=None, **more):
    """Run the competitors in turn, ours first, `warm` rounds unseen and then `rounds`; the median
    counts. work: units done in one run. scale: a competitor does one scale-th of it. Returns one
    line of the table (its goals are in bench/tables.py).
    """
    rounds, scale = rounds or o.rounds, scale or {}
    times = {name: [] for name in runs}
    for _ in range(rounds + warm):
        for name, run in runs.items():
            times[name].append(seconds(o, run) * scale.get(name, 1))
    median = {name: statistics.median(t[warm:]) for name, t in times.items()}
    ours = median[next(iter(runs))]
    return {"what": what, "rounds": rounds, "unit": unit, "seconds": median,
            "range": {k: [min(t[warm:]), max(t[warm:])] for k, t in times.items()},
            "rate": {k: work / t for k, t in median.items()},
            "times_ours": {k: t / ours for k, t in median.items()}, **more}


def peak_bytes(o, run):
    """(most memory that one call holds above what was held before, or None where the system does
    not tell; its result)."""
    if o.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        return torch.cuda.max_memory_allocated() - before, result
    try:
        ctypes.CDLL(None).malloc_trim(0)                     # glibc: give back what was freed,
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")                                     # and forget the highest mark
        before = held("VmRSS")
    except (OSError, AttributeError, TypeError):
        return None, run()
    result = run()
    return held("VmHWM") - before, result


def held(key):
    """A line of what the system knows of this process, in bytes."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(key)) * 1024


def gap(a, b):
    """Largest absolute difference: do two competitors compute the same?"""
    return float((a.float() - b.float()).abs().max())


def amp(o):
    return torch.autocast(o.device, torch.bfloat16, enabled=o.dtype == torch.bfloat16)


def peer(o, name, module=None):
    """A peer's module, or None; then it is on record how to install it, or why it does not
    import."""
    try:
        return importlib.import_module(module or name)
    except Exception as e:                                   # a broken peer takes no others along
        there = importlib.util.find_spec(name)
        why = f"does not import: {type(e).__name__}: {e}"[:150]
        o.absent[name] = why if there else PEERS[name]


# --------------------------------------------------------------------------------------------------
# One GPT-2 three times: ours, PyTorch's own modules, transformers'

class PlainBlock(nn.Module):
    """What nanoGPT would write."""
    def __init__(self, d, heads):
        super().__init__()
        self.heads, self.norm, self.norm2 = heads, nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, h):
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2)
                   for t in self.qkv(self.norm(h)).chunk(3, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.proj(y.transpose(1, 2).flatten(2))
        return h + self.down(F.gelu(self.up(self.norm2(h)), approximate="tanh"))


class Plain(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.wte = nn.Embedding(c.vocab_size, c.n_embd)
        self.wpe = nn.Embedding(c.block_size, c.n_embd)
        self.blocks = nn.Sequential(*(PlainBlock(c.n_embd, c.n_head) for _ in range(c.n_layer)))
        self.norm = nn.LayerNorm(c.n_embd)

    def forward(self, idx):
        h = self.wte(idx) + self.wpe(torch.arange(idx.shape[1], device=idx.device))
        return self.norm(self.blocks(h)) @ self.wte.weight.T


def gpt2(n_layer, d, context, vocab=1024):
    """GPT-2 as a case of model.py."""
    head = 64 if d >= 768 else 32
    return Config(vocab_size=vocab, block_size=context, n_layer=n_layer, n_head=d // head,
                  head_dim=head, n_embd=d, d_ff=4 * d, act="gelu", rope=False, rms=False, bias=True,
                  qk_norm=False, conv=0, ranks=(32,))


def trio(o, c, number=1):
    """(ours, plain, transformers' or None) with the same random weights."""
    torch.manual_seed(number)
    ours, plain, hf, theirs = GPT(c), Plain(c), None, peer(o, "transformers")
    for p in ours.parameters():
        nn.init.normal_(p, mean=float(p.ndim == 1), std=0.02)
    if theirs:
        hf = theirs.GPT2LMHeadModel(theirs.GPT2Config(
            vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer,
            n_head=c.n_head, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None,
            eos_token_id=None, pad_token_id=0))
        with tempfile.TemporaryDirectory() as folder:
            hf.save_pretrained(folder)
            ours = from_pretrained(folder)
        hf = hf.to(o.device).eval()
    same = {k.replace("levels.0.norm", "norm2").replace("levels.0.", ""): v
            for k, v in ours.state_dict().items()}
    plain.load_state_dict({k: same[k] for k in plain.state_dict()})
    return ours.to(o.device), plain.to(o.device), hf


def gkd_trainer(o, gkd, student, teacher, new):
    """TRL's trainer wants a tokenizer and a data set, although no text is ever tokenized here."""
    names = ("datasets", "transformers", "tokenizers")
    sets, hf, tokenizers = (importlib.import_module(name) for name in names)
    vocabulary = {f"<{i}>": i for i in range(student.config.vocab_size)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "<0>"))
    tok = hf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<0>", eos_token="<0>")
    tok.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    said = {"messages": [[{"role": "user", "content": "a"}] * 2]}
    text = sets.Dataset(sets.table.InMemoryTable.from_pydict(said), fingerprint="none")
    args = gkd.GKDConfig(tempfile.mkdtemp(), lmbda=1.0, beta=1.0, temperature=1.0,
                         max_new_tokens=new, learning_rate=1e-4, use_cpu=o.device == "cpu",
                         bf16=o.dtype == torch.bfloat16, gradient_checkpointing=False,
                         report_to="none")
    t = gkd.GKDTrainer(student, teacher, args, processing_class=tok, train_dataset=text)
    for config in (t.generation_config, t.model.generation_config):
        config.eos_token_id = None                           # all rows run to their end
    t.create_optimizer()
    t.current_gradient_accumulation_steps = 1                # set by train(), which is not called
    return t


def edit_distance(a, b):
    """The textbook's table, row by row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def fisher_of_batches(model, x, y, batch):
    """One backward pass a batch. batch 1: the Fisher information; more: the mean gradient squared,
    as avalanche does."""
    total = {k: torch.zeros_like(p) for k, p in model.named_parameters()}
    for a, b in zip(x.split(batch), y.split(batch)):
        grads = torch.autograd.grad(F.cross_entropy(model(a), b), list(model.parameters()))
        for t, g in zip(total.values(), grads):
            t += g.square() * batch / len(x)
    return total


def fla_delta_rule(o):
    """fla's chunkwise delta rule in plain torch: (q, k, v, beta) -> outputs, or None."""
    spec = importlib.util.find_spec("fla")
    if spec is None or peer(o, "einops") is None:
        o.absent["fla"] = PEERS["fla"]
        return None
    folder = spec.submodule_search_locations[0]              # the package itself wants triton
    path = os.path.join(folder, "ops", "delta_rule", "naive.py")
    spec = importlib.util.spec_from_file_location("fla_naive", path)
    naive = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(naive)

    def rule(q, k, v, beta):
        return naive.delta_rule_chunkwise(q, k, v, beta)[0]
    return rule
