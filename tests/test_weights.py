"""Weights of others: GPT-2's logits are transformers' own, and no file ends in a traceback."""
import json
import struct
import time

import pytest
import torch
from hypothesis import given, settings, strategies as st

from data.weights import from_pretrained, read_safetensors

V, D = 40, 48
fuzz = settings(max_examples=80, deadline=None, derandomize=True)


def close(a, b, tol=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=tol)


# --------------------------------------------------------------------------------------------------
# GPT-2, written by transformers itself

def gpt2(folder, n_embd=D, n_head=4):
    """A random tiny GPT-2 in a folder, written by transformers; its logits for some tokens."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=V, n_positions=32, n_embd=n_embd, n_layer=3, n_head=n_head, bos_token_id=0,
        eos_token_id=0)).eval()
    for name, p in theirs.named_parameters():    # their biases start at 0, their gains at 1
        gain = 1.0 if "ln_" in name and "weight" in name else 0.0
        p.data = gain + 0.2 * torch.randn_like(p)
    theirs.save_pretrained(folder, safe_serialization=True)
    ids = torch.randint(V, (3, 32))
    with torch.no_grad():
        return ids, theirs(ids).logits


@pytest.mark.parametrize("ranks", [(8,), (4, 8)])
def test_gpt2_gives_the_logits_of_transformers(tmp_path, ranks):
    ids, want = gpt2(tmp_path)
    model = from_pretrained(tmp_path, ranks=ranks)
    assert model.config.n_head == 4                                  # from config.json
    with torch.no_grad():
        close(model(ids), want)
        model.unlock(0)
        close(model(ids), want)
        more = from_pretrained(tmp_path, ranks=ranks, extra_tokens=3)(ids)
        close(more[..., :V], want)                             # new words leave the old ones alone
        close(more[..., V:], want.mean(-1, keepdim=True).expand(-1, -1, 3), 1e-5)


def test_gpt2_without_config_has_a_head_for_every_64_dimensions(tmp_path):
    ids, want = gpt2(tmp_path, n_embd=128, n_head=2)
    (tmp_path / "config.json").unlink()
    with torch.no_grad():
        close(from_pretrained(tmp_path / "model.safetensors")(ids), want, 2e-5)


def test_safetensors_of_every_kind_are_read(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
             torch.int16, torch.int8, torch.uint8, torch.bool]
    want = {str(kind): (100 * torch.randn(3, 5)).to(kind) for kind in kinds}
    want |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4)}
    save_file(want, tmp_path / "all.safetensors", metadata={"format": "pt"})
    got = read_safetensors(tmp_path / "all.safetensors")
    assert got.keys() == want.keys()
    assert all(got[k].dtype == t.dtype and torch.equal(got[k], t) for k, t in want.items())


# --------------------------------------------------------------------------------------------------
# The format

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
    "a shape beyond all numbers": raw({"w": info(shape=(0, 2 ** 62, 2 ** 62), offsets=(0, 0))}),
    "a shape of truths": raw({"w": info(shape=(True, 6))}),
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
    assert read_safetensors(path)["w"].shape == (2, 3)           # the same file, sound
    path.write_bytes(CORRUPT[what])
    for read in (read_safetensors, from_pretrained):
        with pytest.raises(ValueError, match=r"bad\.safetensors"):
            read(path)


# --------------------------------------------------------------------------------------------------
# A GPT-2 that is not whole

def by_hand(folder, change=None, drop=(), config=None, layers=2):
    """A tiny GPT-2 written without any library. change: {name: tensor} in place of its own."""
    shapes = {"wte.weight": (V, D), "wpe.weight": (32, D), "ln_f.weight": (D,), "ln_f.bias": (D,)}
    for i in range(layers):
        for name, shape in {"ln_1": (D,), "ln_2": (D,), "attn.c_attn": (D, 3 * D),
                            "attn.c_proj": (D, D), "mlp.c_fc": (D, 100),
                            "mlp.c_proj": (100, D)}.items():
            shapes[f"h.{i}.{name}.weight"], shapes[f"h.{i}.{name}.bias"] = shape, shape[-1:]
    state = {name: 0.2 * torch.randn(shape) for name, shape in shapes.items()} | (change or {})
    kinds = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.float16: "F16"}
    header, body = {}, b""
    for name, t in state.items():
        if name not in drop:
            data = t.contiguous().numpy().tobytes()
            header[name] = info(t.shape, (len(body), len(body) + len(data)), kinds[t.dtype])
            body += data
    path = folder / "model.safetensors"
    path.write_bytes(raw(header, body))
    if config is not None:
        (folder / "config.json").write_text(config if type(config) is str else json.dumps(config))
    return path


def test_a_gpt2_written_by_hand_is_read(tmp_path):
    ids = torch.randint(V, (2, 32))
    half = from_pretrained(by_hand(tmp_path, {"ln_f.bias": torch.ones(D).half()}))
    assert half.norm.bias.dtype is torch.float32 and half(ids).shape == (2, 32, V)
    assert half.config.n_head == 1 and half.config.n_layer == 2 and half.config.d_ff == 100
    model = from_pretrained(by_hand(tmp_path, config={"n_head": 6}), ranks=(2, 3), extra_tokens=4)
    assert (model.config.n_head, model.config.head_dim) == (6, 8)
    assert model(ids).shape == (2, 32, V + 4) and from_pretrained(tmp_path, n_head=3) is not None


INCOMPLETE = ["wte.weight", "wpe.weight", "ln_f.bias", "h.1.mlp.c_fc.weight", "h.0.ln_2.bias",
              "h.0.mlp.c_fc.weight"]


@pytest.mark.parametrize("lost", INCOMPLETE)
def test_an_incomplete_gpt2_is_named(lost, tmp_path):
    by_hand(tmp_path, drop=[lost])
    with pytest.raises(ValueError, match=rf"model\.safetensors .*{lost} is missing"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("name, shape", [
    ("h.1.mlp.c_fc.weight", (D, 7)), ("wte.weight", (V,)), ("wte.weight", (0, D)),
    ("wte.weight", ()), ("wpe.weight", (32, D + 1)), ("h.0.attn.c_attn.weight", (3 * D, D)),
    ("ln_f.weight", (D, 1)), ("h.0.mlp.c_fc.weight", (D, 0))])
def test_a_tensor_of_another_shape_is_named(name, shape, tmp_path):
    by_hand(tmp_path, {name: torch.zeros(shape)})
    with pytest.raises(ValueError, match=r"model\.safetensors .*has the shape"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_no_numbers_are_named(bad, tmp_path):
    w = torch.zeros(D, D, dtype=torch.float64)
    w[3, 4] = bad                                                # 1e300: infinite in float32
    by_hand(tmp_path, {"h.1.attn.c_proj.weight": w})
    with pytest.raises(ValueError, match=r"h\.1\.attn\.c_proj\.weight holds numbers that"):
        from_pretrained(tmp_path)
    by_hand(tmp_path, {"ln_f.bias": torch.zeros(D, dtype=torch.int64)})
    with pytest.raises(ValueError, match=r"ln_f\.bias does not hold real numbers"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("name", [
    "h.999999999.ln_1.weight", "h.3.ln_1.weight", "h.x.ln_1.weight", "h.-1.ln_1.weight",
    "h.01.ln_1.weight", "h." + "9" * 5000 + ".ln_1.weight", "h.", "h.1",
    "transformer.h.77.ln_1.bias"])
def test_blocks_out_of_order_are_refused_at_once(name, tmp_path):
    by_hand(tmp_path, {name: torch.zeros(D)})
    start = time.time()
    with pytest.raises(ValueError, match=r"model\.safetensors .*block") as e:
        from_pretrained(tmp_path)
    assert time.time() - start < 5 and len(str(e.value)) < 400


@pytest.mark.parametrize("config", [
    [], "[1", "null", "7", "\"n_head\"", "\xff", '{"n_head":' * 50000, {"n_head": "4"},
    {"n_head": 4.0}, {"n_head": True}, {"n_head": 0}, {"n_head": -4}, {"n_head": 5},
    {"n_head": 10 ** 30}, {"n_head": [4]}])
def test_a_config_of_the_wrong_kind_is_refused(config, tmp_path):
    by_hand(tmp_path, config=config)
    if config == "\xff":
        (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"model\.safetensors holds no .*(config|width)"):
        from_pretrained(tmp_path)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*model\.safetensors"):
        from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no weights at .*gpt2-xl"):
        from_pretrained(tmp_path / "gpt2-xl")


# --------------------------------------------------------------------------------------------------
# Any header at all

JUNK = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-2 ** 70, 2 ** 70), st.floats(),
                              st.text(max_size=5)),
                    lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6)
SIZES = st.one_of(st.integers(-2, 40), st.sampled_from([0, 2 ** 31, 2 ** 62, 2 ** 64, 10 ** 30]),
                  st.floats(), st.booleans(), JUNK)
DTYPES = st.one_of(st.sampled_from(["F32", "I64", "BF16", "U8", "BOOL", "F99"]), JUNK)
TENSOR = st.fixed_dictionaries({"dtype": DTYPES, "shape": st.lists(SIZES, max_size=3) | JUNK,
                                "data_offsets": st.lists(SIZES, max_size=3) | JUNK})
NAMES = st.sampled_from(["w", "v", "__metadata__"])


@fuzz
@given(st.dictionaries(NAMES, TENSOR | JUNK, max_size=3) | JUNK, st.binary(max_size=64),
       st.one_of(st.none(), st.integers(0, 2 ** 64 - 1)))
def test_any_safetensors_header_is_bounds_checked(tmp_path_factory, header, body, size):
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(raw(header, body, size))
    try:
        read_safetensors(str(path))
    except ValueError as e:
        assert "fuzzed.safetensors" in str(e)


@fuzz
@given(st.integers(0, 2000), st.binary(min_size=1, max_size=4))
def test_a_gpt2_with_changed_bytes_is_read_or_refused(tmp_path_factory, at, change):
    folder = tmp_path_factory.getbasetemp() / "changed"
    folder.mkdir(exist_ok=True)
    path = folder / "model.safetensors"
    sound = path.read_bytes() if path.exists() else by_hand(folder, layers=1).read_bytes()
    try:
        path.write_bytes(sound[:at] + change + sound[at + len(change):])
        assert from_pretrained(path).config.n_layer == 1
    except ValueError as e:
        assert "model.safetensors" in str(e)
    finally:
        path.write_bytes(sound)
