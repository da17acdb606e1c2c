"""
Weights of others: GPT-2's, from a .safetensors file.

Whatever is in the file or beside it, it becomes a model of model.py or one line that says why not.
"""
import json
import math
import os
import re
import struct

import torch

KINDS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
         "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
         "U8": torch.uint8, "BOOL": torch.bool}
LAYERS = 1024                           # more blocks than any GPT-2 has


def read_safetensors(path):
    """{name: tensor} of a .safetensors file. No pickle.

    The file: 8 bytes of length, a JSON header, raw little-endian tensors. Raises ValueError, naming
    the file, if sizes or offsets do not agree with each other or with the file.
    """
    try:
        with open(path, "rb") as f:
            total = os.fstat(f.fileno()).st_size
            size = struct.unpack("<Q", f.read(8))[0]
            if size > total - 8:
                raise ValueError("the header is longer than the file")
            header = json.loads(f.read(size))
            body = bytearray(f.read())
        if not isinstance(header, dict):
            raise ValueError("the header is not a table of tensors")
        header.pop("__metadata__", None)
        tensors, spans = {}, []
        for name, info in header.items():
            tensors[name], span = tensor_in(body, name[:60], info)
            spans.append(span)
        spans.sort()
        if any(end > begin for (_, end), (begin, _) in zip(spans, spans[1:])):
            raise ValueError("tensors overlap")
        return tensors
    except struct.error:
        raise ValueError(f"{path} is not a valid safetensors file: it is too short") from None
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} is not a valid safetensors file: {e}") from None


def tensor_in(body, name, info):
    """One tensor of a header, and where it lies in the body: (tensor, (start, end))."""
    try:
        dtype, shape, (start, end) = KINDS[info["dtype"]], info["shape"], info["data_offsets"]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(f"tensor {name} is described wrongly") from None
    if not isinstance(shape, list) or any(type(n) is not int for n in (*shape, start, end)):
        raise ValueError(f"tensor {name} has no shape or no place")
    count = math.prod(shape)
    inside = 0 <= start <= end <= len(body) and end - start == count * dtype.itemsize
    if min([0, *shape]) < 0 or max([0, *shape]) >= 2 ** 63 or not inside:
        raise ValueError(f"tensor {name} lies outside the file or has the wrong size")
    if not count:
        try:
            return torch.empty(shape, dtype=dtype), (start, end)
        except RuntimeError:                                     # [0, 2 ** 62, 2 ** 62]
            raise ValueError(f"tensor {name} has a shape that cannot be") from None
    flat = torch.frombuffer(body, dtype=dtype, count=count, offset=start)
    return flat.reshape(shape).clone(), (start, end)


def from_pretrained(path, ranks=(32,), n_head=None, extra_tokens=0):
    """GPT-2 weights (a .safetensors file, or a folder with model.safetensors) as a GPT of model.py.

    ranks: of the experts of each memory level, the last one holds the MLP. n_head: from config.json
    beside the file, else one head per 64 dimensions, as in every released GPT-2. extra_tokens: rows
    added to the vocabulary, each the mean of all rows. Raises FileNotFoundError or ValueError.
    """
    from model import GPT, Config
    if os.path.isdir(path):
        path = os.path.join(path, "model.safetensors")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no GPT-2 weights at {path}: put model.safetensors (and "
                                "config.json) of gpt2 there")
    t = {k.removeprefix("transformer."): v for k, v in read_safetensors(path).items()}
    try:
        layers, sizes = layers_of(t), sizes_of(t)
        vocab, context, d, d_ff = sizes
        for name, shape in expected(layers, *sizes).items():
            check(t, name, shape)
        n_head = n_head or heads_beside(path) or max(1, d // 64)
        if d % n_head:
            raise ValueError(f"its width {d} cannot be shared by {n_head} heads")
    except ValueError as e:
        raise ValueError(f"{path} holds no whole GPT-2: {e}") from None
    config = Config(vocab_size=vocab + extra_tokens, block_size=context, n_layer=layers,
                    n_head=n_head, head_dim=d // n_head, n_embd=d, d_ff=d_ff, act="gelu",
                    rope=False, rms=False, bias=True, qk_norm=False, conv=0, ranks=tuple(ranks))
    model = GPT(config)
    model.load_state_dict(renamed(t, layers, len(ranks) - 1, extra_tokens), strict=False)
    return model                                                 # faster levels start empty


def layers_of(t):
    """How many blocks the names h.0. to h.(n-1). stand for. Raises ValueError for gaps."""
    blocks = set()
    for name in (k for k in t if k.startswith("h.")):
        number = re.match(r"h\.(0|[1-9][0-9]{0,9})\.", name)
        if not number:
            raise ValueError(f"{name[:60]} is in no block")
        blocks.add(int(number[1]))
    if not blocks or max(blocks) >= LAYERS or len(blocks) <= max(blocks):
        raise ValueError("its blocks are not h.0, h.1, ... without gaps, "
                         f"{LAYERS} at the most")
    return len(blocks)


def sizes_of(t):
    """(vocabulary, context, width, hidden units of an MLP), from three tables."""
    tables = ("wte.weight", "wpe.weight", "h.0.mlp.c_fc.weight")
    for name in tables:
        if name not in t:
            raise ValueError(f"{name} is missing")
        if t[name].ndim != 2 or not t[name].numel():
            raise ValueError(f"{name} has the shape {tuple(t[name].shape)}, not that of a table")
    (vocab, d), (context, _), (_, d_ff) = (t[name].shape for name in tables)
    return vocab, context, d, d_ff


def expected(layers, vocab, context, d, d_ff):
    """{name: shape} of a whole GPT-2. Its linear layers are (in, out)."""
    shapes = {"wte.weight": (vocab, d), "wpe.weight": (context, d), "ln_f.weight": (d,),
              "ln_f.bias": (d,)}
    for i in range(layers):
        shapes |= {f"h.{i}.ln_{k}.{leaf}": (d,) for k in (1, 2) for leaf in ("weight", "bias")}
        for name, (n_in, n_out) in {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d),
                                    "mlp.c_fc": (d, d_ff), "mlp.c_proj": (d_ff, d)}.items():
            shapes |= {f"h.{i}.{name}.weight": (n_in, n_out), f"h.{i}.{name}.bias": (n_out,)}
    return shapes


def check(t, name, shape):
    """Raises ValueError unless t holds a tensor of this name and shape, of finite numbers."""
    if name not in t:
        raise ValueError(f"{name} is missing")
    found = tuple(t[name].shape)
    if found != shape:
        raise ValueError(f"{name} has the shape {found}, not {shape}")
    if not t[name].is_floating_point():
        raise ValueError(f"{name} does not hold real numbers")
    if not torch.isfinite(t[name].float()).all():
        raise ValueError(f"{name} holds numbers that are not finite")


def heads_beside(path):
    """n_head of the config.json beside the weights, or None where there is none."""
    side = os.path.join(os.path.dirname(path), "config.json")
    if not os.path.isfile(side):
        return None
    try:
        with open(side, encoding="utf-8") as f:
            config = json.load(f)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"the config.json beside it is not JSON ({type(e).__name__})") from None
    if not isinstance(config, dict):
        raise ValueError("the config.json beside it is not a table of fields")
    n_head = config.get("n_head")
    if n_head is not None and (type(n_head) is not int or n_head < 1):
        raise ValueError("the config.json beside it has an n_head that is no whole number from 1")
    return n_head


def renamed(t, layers, slow, extra_tokens):
    """GPT-2's tensors under the names of model.py, in float32. slow: the level of the MLP."""
    words = t["wte.weight"].float()
    more = words.mean(0).expand(extra_tokens, -1)
    state = {"wte.weight": torch.cat([words, more]), "wpe.weight": t["wpe.weight"],
             "norm.weight": t["ln_f.weight"], "norm.bias": t["ln_f.bias"]}
    names = {"ln_1": "norm", "ln_2": f"levels.{slow}.norm", "attn.c_attn": "qkv",
             "attn.c_proj": "proj", "mlp.c_fc": f"levels.{slow}.up",
             "mlp.c_proj": f"levels.{slow}.down"}
    for i in range(layers):
        for theirs, ours in names.items():
            for leaf in ("weight", "bias"):
                w = t[f"h.{i}.{theirs}.{leaf}"]
                turned = w.T if w.ndim == 2 else w               # their Conv1D is transposed
                state[f"blocks.{i}.{ours}.{leaf}"] = turned
    return {name: w.float() for name, w in state.items()}
