"""
Weights of others: GPT-2, Llama 3, Qwen 2.5 and Qwen 3 (dense), from .safetensors files.

Files are mapped, not read: a tensor costs memory where it is copied into the model, one at a time.
Whatever is in a file or beside it, it becomes a model of model.py or one line that says why not.
"""
import json
import math
import mmap
import os
import re
import struct

import torch

from data import store

KINDS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
         "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
         "U8": torch.uint8, "BOOL": torch.bool}
LAYERS = 1024                           # more blocks than any of them has
FAMILIES = {"gpt2": "GPT-2", "llama": "Llama", "qwen2": "Qwen 2", "qwen3": "Qwen 3"}
FIELDS = {"vocab_size": "vocab_size", "block_size": "max_position_embeddings",      # ours: theirs
          "n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_embd": "hidden_size",
          "d_ff": "intermediate_size", "norm_eps": "rms_norm_eps"}
GPT2_FIELDS = {"vocab_size": "vocab_size", "block_size": "n_positions", "n_layer": "n_layer",
               "n_head": "n_head", "n_embd": "n_embd"}
SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
INDEX = "model.safetensors.index.json"


def from_pretrained(path, ranks=(32,), n_head=None, extra_tokens=0, dtype=torch.float32):
    """Weights of a family (a .safetensors file, or a folder of them) as a GPT of model.py.

    ranks: of the experts of each memory level, the last one holds the MLP. n_head: of a GPT-2
    without config.json; none given: one head per 64 dimensions, as in every released one.
    extra_tokens: rows added to the vocabulary, each the mean of all rows. dtype: of the model,
    whatever that of the files is. Raises FileNotFoundError or ValueError.
    """
    path, files = files_of(os.fspath(path))
    headers = [read_safetensors(file) for file in files]        # mapped: nothing is read as yet
    family = "GPT-2"
    try:
        fields = json_beside(path, "config.json")
        kind = fields.get("model_type", "gpt2")
        if not isinstance(kind, str) or kind not in FAMILIES:
            raise ValueError(f"its model_type {str(kind)[:40]!r} is none of {', '.join(FAMILIES)}")
        family = FAMILIES[kind]
        shapes = shapes_in(headers)
        config, plan = (gpt2 if kind == "gpt2" else llama)(fields, shapes, n_head, len(ranks) - 1)
        for name, (_, _, shape, _) in plan.items():
            check(shapes, name, shape)
        config |= {"vocab_size": config["vocab_size"] + extra_tokens, "ranks": tuple(ranks)}
        store.sane(config)
        return filled(config, plan, headers, extra_tokens, dtype)
    except ValueError as e:
        raise ValueError(f"{path} holds no whole {family}: {e}") from None


def config_in(path, ranks=(32,), extra_tokens=0):
    """The Config of the model in a folder, from its config.json alone: no weights need be there.
    Raises FileNotFoundError or ValueError."""
    from model import ARCHITECTURES, Config
    path = os.path.join(path, "config.json")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no {path}: put the config.json of a GPT-2, Llama or Qwen there")
    try:
        fields = json_beside(path, "config.json")
        if fields.get("model_type") == "gpt2":
            sizes = {ours: fields.get(theirs) for ours, theirs in GPT2_FIELDS.items()}
            d_ff, head = fields.get("n_inner") or 4 * sizes["n_embd"], sizes["n_embd"]
            config = {**sizes, "d_ff": d_ff, "head_dim": head // sizes["n_head"],
                      **ARCHITECTURES["gpt2"]}
        else:
            config = llama_config(fields)
        config |= {"vocab_size": config["vocab_size"] + extra_tokens, "ranks": tuple(ranks)}
        store.sane(config)
        return Config(**config)
    except (ValueError, TypeError, ZeroDivisionError) as e:
        raise ValueError(f"{path} is not that of a GPT-2, Llama or Qwen: {e}") from None


@torch.no_grad()
def filled(config, plan, headers, extra_tokens, dtype):
    """A model of this config (a dict) with the tensors that the plan names, a shard at a time."""
    from model import GPT, Config, Norm
    with torch.device("meta"):                                   # no time for random weights
        model = held_in(GPT(Config(**config)), dtype)
    model = model.to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.zero_()
    for norm in (m for m in model.modules() if isinstance(m, Norm)):     # faster levels start empty
        norm.weight.fill_(1.0)
        norm.bias is None or norm.bias.zero_()
    ours = dict(model.named_parameters())
    for tensors in headers:
        for name, t in tensors.items():
            if plain(name) in plan:
                to, first, _, turned = plan[plain(name)]
                t = t.T if turned else t
                place = ours[to][first:first + len(t)].copy_(t)
                if not torch.isfinite(place).all():
                    raise ValueError(f"{plain(name)} holds numbers that are not finite")
        tensors.clear()                                          # this shard is no longer needed
    if extra_tokens:
        for table in (t for t in (model.wte, model.head) if t is not None):
            table.weight[-extra_tokens:] = table.weight[:-extra_tokens].float().mean(0)
    return model


def held_in(model, dtype):
    """The model with its weights and experts in this precision; the gate's distances want all
    their digits and stay in float32."""
    model = model.to(dtype)
    for name in ("metric", "things", "reach"):
        setattr(model, name, getattr(model, name).float())
    return model


# --------------------------------------------------------------------------------------------------
# Files

def files_of(path):
    """The file or folder that errors name, and the .safetensors files: (path, [path])."""
    folder, path = path, os.path.join(path, "model.safetensors") if os.path.isdir(path) else path
    if os.path.isfile(path):
        return path, [path]
    if not os.path.isfile(os.path.join(folder, INDEX)):
        raise FileNotFoundError(f"no weights at {path}: put model.safetensors (or its shards and "
                                "their index) and config.json of a GPT-2, Llama or Qwen there")
    path = os.path.join(folder, INDEX)
    try:
        names = json_beside(path, INDEX)["weight_map"].values()
        for name in names:
            if not isinstance(name, str) or os.path.basename(name) != name:
                raise ValueError(f"{str(name)[:60]!r} is no file name")
            if not os.path.isfile(os.path.join(folder, name)):
                raise ValueError(f"the shard {name[:60]} is not there")
    except (KeyError, AttributeError):
        raise ValueError(f"{path} is not an index: it has no weight_map") from None
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None
    return path, [os.path.join(folder, name) for name in sorted(set(names))]


def json_beside(path, name):
    """The table of fields in a JSON file in the folder of `path`, {} where there is none."""
    side = os.path.join(os.path.dirname(path), name)
    if not os.path.isfile(side):
        return {}
    try:
        with open(side, encoding="utf-8") as f:
            fields = json.load(f)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"the {name} beside it is not JSON ({type(e).__name__})") from None
    if not isinstance(fields, dict):
        raise ValueError(f"the {name} beside it is not a table of fields")
    return fields


def read_safetensors(path):
    """{name: tensor} of a .safetensors file, views of the mapped file. No pickle.

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
            body = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)     # never written back
        if not isinstance(header, dict):
            raise ValueError("the header is not a table of tensors")
        header.pop("__metadata__", None)
        tensors, spans = {}, []
        for name, info in header.items():
            tensors[name], span = tensor_in(body, 8 + size, name[:60], info)
            spans.append(span)
        spans.sort()
        if any(end > begin for (_, end), (begin, _) in zip(spans, spans[1:])):
            raise ValueError("tensors overlap")
        return tensors
    except struct.error:
        raise ValueError(f"{path} is not a valid safetensors file: it is too short") from None
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} is not a valid safetensors file: {e}") from None


def tensor_in(body, first, name, info):
    """One tensor of a header and where it lies: (tensor, (start, end)). body[first:]: all data."""
    try:
        dtype, shape, (start, end) = KINDS[info["dtype"]], info["shape"], info["data_offsets"]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(f"tensor {name} is described wrongly") from None
    if not isinstance(shape, list) or any(type(n) is not int for n in (*shape, start, end)):
        raise ValueError(f"tensor {name} has no shape or no place")
    count = math.prod(shape)
    inside = 0 <= start <= end <= len(body) - first and end - start == count * dtype.itemsize
    if min([0, *shape]) < 0 or max([0, *shape]) >= 2 ** 63 or not inside:
        raise ValueError(f"tensor {name} lies outside the file or has the wrong size")
    if not count:
        try:
            return torch.empty(shape, dtype=dtype), (start, end)
        except RuntimeError:                                     # [0, 2 ** 62, 2 ** 62]
            raise ValueError(f"tensor {name} has a shape that cannot be") from None
    at = first + start
    if at % dtype.itemsize:                                      # not aligned: copied
        body, at = bytearray(body[at:first + end]), 0
    return torch.frombuffer(body, dtype=dtype, count=count, offset=at).reshape(shape), (start, end)


def plain(name):
    return name.removeprefix("transformer.")


def shapes_in(headers):
    """{name: (shape, is it of real numbers?)} of all shards. Raises ValueError for a name twice."""
    shapes = {}
    for tensors in headers:
        for name, t in tensors.items():
            if plain(name) in shapes:
                raise ValueError(f"{name[:60]} is there twice")
            shapes[plain(name)] = tuple(t.shape), t.is_floating_point()
    return shapes


def check(shapes, name, shape):
    """Raises ValueError unless there is a tensor of this name and shape, of real numbers."""
    if name not in shapes:
        raise ValueError(f"{name} is missing")
    found, real = shapes[name]
    if found != shape:
        raise ValueError(f"{name} has the shape {found}, not {shape}")
    if not real:
        raise ValueError(f"{name} does not hold real numbers")


def layers_of(shapes, stem):
    """How many blocks the names stem0. to stem(n-1). stand for. Raises ValueError for gaps."""
    blocks = set()
    for name in (k for k in shapes if k.startswith(stem)):
        number = re.match(r"(0|[1-9][0-9]{0,9})\.", name[len(stem):])
        if not number:
            raise ValueError(f"{name[:60]} is in no block")
        blocks.add(int(number[1]))
    if not blocks or max(blocks) >= LAYERS or len(blocks) <= max(blocks):
        raise ValueError(f"its blocks are not {stem}0, {stem}1, ... without gaps, "
                         f"{LAYERS} at the most")
    return len(blocks)


# --------------------------------------------------------------------------------------------------
# Families: (a config as a dict, a plan {their name: (our name, first row, shape, turned?)})

def gpt2(fields, shapes, n_head, slow):
    """GPT-2: its sizes are those of its tables, its linear layers (in, out). slow: the MLP's level.
    """
    layers, (vocab, context, d, d_ff) = layers_of(shapes, "h."), sizes_of(shapes)
    beside = fields.get("n_head")
    if beside is not None and (type(beside) is not int or beside < 1):
        raise ValueError("the config.json beside it has an n_head that is no whole number from 1")
    n_head = n_head or beside or max(1, d // 64)
    if d % n_head:
        raise ValueError(f"its width {d} cannot be shared by {n_head} heads")
    names = {"ln_1": ("norm", (d,)), "ln_2": (f"levels.{slow}.norm", (d,)),
             "attn.c_attn": ("qkv", (d, 3 * d)), "attn.c_proj": ("proj", (d, d)),
             "mlp.c_fc": (f"levels.{slow}.up", (d, d_ff)),
             "mlp.c_proj": (f"levels.{slow}.down", (d_ff, d))}
    plan = {"wte.weight": ("wte.weight", 0, (vocab, d), False),
            "wpe.weight": ("wpe.weight", 0, (context, d), False)}
    plan |= {f"ln_f.{leaf}": (f"norm.{leaf}", 0, (d,), False) for leaf in ("weight", "bias")}
    for i in range(layers):
        for theirs, (ours, shape) in names.items():
            plan[f"h.{i}.{theirs}.weight"] = (f"blocks.{i}.{ours}.weight", 0, shape, len(shape) > 1)
            plan[f"h.{i}.{theirs}.bias"] = (f"blocks.{i}.{ours}.bias", 0, shape[-1:], False)
    return dict(vocab_size=vocab, block_size=context, n_layer=layers, n_head=n_head,
                head_dim=d // n_head, n_embd=d, d_ff=d_ff, act="gelu", rope=False, rms=False,
                bias=True, qk_norm=False, conv=0), plan


def sizes_of(shapes):
    """GPT-2's (vocabulary, context, width, hidden units of an MLP), from three tables."""
    tables = ("wte.weight", "wpe.weight", "h.0.mlp.c_fc.weight")
    for name in tables:
        if name not in shapes:
            raise ValueError(f"{name} is missing")
        if len(shapes[name][0]) != 2 or not math.prod(shapes[name][0]):
            raise ValueError(f"{name} has the shape {shapes[name][0]}, not that of a table")
    (vocab, d), (context, _), (_, d_ff) = (shapes[name][0] for name in tables)
    return vocab, context, d, d_ff


def llama(fields, shapes, n_head, slow):
    """Llama 3, Qwen 2.5, Qwen 3: their sizes are those of config.json, and are checked."""
    c = llama_config(fields)
    if layers_of(shapes, "model.layers.") != c["n_layer"]:
        raise ValueError(f"its config.json says {c['n_layer']} blocks, it holds others")
    d, D, d_ff = c["n_embd"], c["head_dim"], c["d_ff"]
    q, kv, up = c["n_head"] * D, c["n_kv_head"] * D, f"levels.{slow}.up"
    rows = {"self_attn.q_proj": ("qkv", 0, q), "self_attn.k_proj": ("qkv", q, kv),
            "self_attn.v_proj": ("qkv", q + kv, kv), "mlp.gate_proj": (up, 0, d_ff),
            "mlp.up_proj": (up, d_ff, d_ff)}
    plan = {"model.embed_tokens.weight": ("wte.weight", 0, (c["vocab_size"], d), False),
            "model.norm.weight": ("norm.weight", 0, (d,), False)}
    if not c["tied"]:
        plan["lm_head.weight"] = ("head.weight", 0, (c["vocab_size"], d), False)
    for i in range(c["n_layer"]):
        own = {f"{k}.weight": (f"{to}.weight", at, (n, d)) for k, (to, at, n) in rows.items()}
        own |= {"self_attn.o_proj.weight": ("proj.weight", 0, (d, q)),
                "mlp.down_proj.weight": (f"levels.{slow}.down.weight", 0, (d, d_ff)),
                "input_layernorm.weight": ("norm.weight", 0, (d,)),
                "post_attention_layernorm.weight": (f"levels.{slow}.norm.weight", 0, (d,))}
        if c["qkv_bias"]:
            own |= {f"{k}.bias": ("qkv.bias", at, (n,)) for k, (to, at, n) in rows.items()
                    if to == "qkv"}
        if c["qk_gain"]:
            own |= {f"self_attn.{k}_norm.weight": (f"norm_{k}.weight", 0, (D,)) for k in "qk"}
        plan |= {f"model.layers.{i}.{theirs}": (f"blocks.{i}.{ours}", at, shape, False)
                 for theirs, (ours, at, shape) in own.items()}
    return c, plan


def llama_config(fields):
    """config.json of a Llama or Qwen as a dict of our Config's fields. Raises ValueError for what
    is missing, absurd, or of a kind that model.py does not compute."""
    lacking = [theirs for theirs in FIELDS.values() if theirs not in fields]
    if lacking:
        raise ValueError(f"its config.json has no {lacking[0]}")
    c = {ours: fields[theirs] for ours, theirs in FIELDS.items()}
    c |= {"n_kv_head": fields.get("num_key_value_heads") or c["n_head"],
          "head_dim": fields.get("head_dim") or 0,
          "rope_base": 10000.0, "act": "swiglu", "qk_norm": False, "conv": 0,
          "tied": fields.get("tie_word_embeddings", False),
          "qkv_bias": fields.get("model_type") == "qwen2",
          "qk_gain": fields.get("model_type") == "qwen3"}
    for name in ("n_embd", "n_head", "n_kv_head"):
        if type(c[name]) is not int or c[name] < 1:
            raise ValueError(f"its config has a {name} that cannot be")
    c["head_dim"] = c["head_dim"] or c["n_embd"] // c["n_head"]
    wrong = {"hidden_act": fields.get("hidden_act", "silu") != "silu"}
    wrong |= {name: bool(fields.get(name)) for name in ("attention_bias", "mlp_bias",
                                                        "use_sliding_window")}
    if any(wrong.values()):
        name = next(name for name, is_wrong in wrong.items() if is_wrong)
        raise ValueError(f"its {name} {str(fields[name])[:40]!r} is not supported")
    c |= rope_of(fields)
    store.sane(c)
    if c["head_dim"] % 2:
        raise ValueError("its config has a head_dim that cannot be halved")
    return c


def rope_of(fields):
    """{"rope_base", "rope_scaling"}, from either of the two ways config.json has told them in."""
    told = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(told, dict):
        raise ValueError("its config has a rope_scaling that cannot be")
    base = told.get("rope_theta", fields.get("rope_theta", 10000.0))
    kind = told.get("rope_type", told.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(f"its rope_type {str(kind)[:40]!r} is not supported: default or llama3")
    if type(base) not in (int, float) or not 1 <= base <= 1e12:
        raise ValueError("its config has a rope_theta that cannot be")
    scaling = [told.get(name) for name in SCALING] if kind == "llama3" else []
    return {"rope_base": float(base), "rope_scaling": tuple(scaling)}
