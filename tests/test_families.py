"""Llama, Qwen 2.5 and Qwen 3: logits are transformers' own, in float32 and bfloat16, and what is
wrong with a folder of weights is one line."""
import json
import shutil

import pytest
import torch
from hypothesis import given, settings, strategies as st

import sleep
from bench.families import FACTS, KINDS, LLAMA3, V, cached, largest, theirs_of
from data.engine import behind, generate, prefill
from data.weights import INDEX, from_pretrained, read_safetensors
from model import FAST
from tests.small import same_state

transformers = pytest.importorskip("transformers")

@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """{kind: (their model, its folder)}, made when first asked for."""
    made = {}

    def get(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind.replace(" ", "-"))
            made[kind] = theirs_of(kind, folder), folder
        return made[kind]
    return get


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_float32_logits_are_those_of_transformers(kind, written):
    (theirs, folder), ids = written(kind), torch.randint(V, (3, 40))
    assert (folder / INDEX).exists() == (kind != "llama")
    want, model = theirs(ids).logits, from_pretrained(folder, ranks=(4, 8, 6))
    got = model(ids)
    assert want.abs().max() > 1                         # else anything would be close
    assert largest(got, want) < 1e-5, largest(got, want)      # 3.5e-6 is the largest seen
    assert largest(cached(model, ids), want) < 1e-5
    params = model.unlock(FAST)                         # not one bit moves, until it has learnt
    awake = {FAST: (torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.long))}
    assert torch.equal(model(ids, awake=awake), got)
    for p in params:
        p.data += 0.3 * torch.randn_like(p)
    assert largest(model(ids, awake=awake), got) > 0.1 and torch.equal(model(ids), got)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_as_exact_as_that_of_transformers(kind, written):
    """Both round at every step, not in the same places. So the yardstick is the same weights in
    float64: we may be no further from it than theirs, by more than a half."""
    (_, folder), ids = written(kind), torch.randint(V, (3, 40))
    model = from_pretrained(folder, ranks=(4, 8, 6), dtype=torch.bfloat16)
    assert all(p.dtype is torch.bfloat16 for p in model.parameters())
    exact = from_pretrained(folder, ranks=(4, 8, 6), dtype=torch.bfloat16).double()(ids)
    low = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    got, want = model(ids), low(ids).logits
    ours, other = (float((x.double() - exact).square().mean().sqrt()) for x in (got, want))
    assert 0 < ours < 1.5 * other, (ours, other)
    assert largest(got, exact) < 0.03 * exact.abs().max()
    assert largest(cached(model, ids), exact) < 0.03 * exact.abs().max()
    model.unlock(FAST)
    awake = {FAST: (torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.long))}
    assert torch.equal(model(ids, awake=awake), got)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_what_is_written_is_what_transformers_writes(kind, written):
    """Greedy decoding behind a prompt, alone and shared by several rows."""
    theirs, folder = written(kind)
    model, prompt = from_pretrained(folder), torch.randint(1, V, (1, 12))
    want = theirs.generate(prompt, max_new_tokens=20, do_sample=False, eos_token_id=None)[0, 12:]
    for n in (1, 3):
        got = generate(model, prompt.tolist(), 20, n=n, temperature=0)
        assert got == [want.tolist()] * n
    cache, _ = prefill(model, prompt.tolist())
    out = model(want[None].expand(2, -1), cache=behind(model, cache, 2, 20))
    assert largest(out[:, :-1], theirs(torch.cat([prompt, want[None]], 1)).logits[:, 12:-1]) < 1e-5


@torch.no_grad()
def test_new_words_are_the_mean_of_all_words(written):
    for kind in ("llama", "llama untied"):
        theirs, folder = written(kind)
        ids = torch.randint(V, (2, 9))
        got, want = from_pretrained(folder, extra_tokens=4)(ids), theirs(ids).logits
        assert largest(got[..., :V], want) < 1e-5
        assert largest(got[..., V:], want.mean(-1, keepdim=True).expand(-1, -1, 4)) < 1e-5


def test_a_checkpoint_keeps_the_precision_of_its_weights(written, tmp_path):
    for dtype in (torch.float32, torch.bfloat16):
        model = from_pretrained(written("qwen3")[1], ranks=(4, 8, 6), dtype=dtype)
        model.unlock(FAST), model.settle(FAST)
        model.metric = torch.randn(5, 48)
        sleep.save(str(tmp_path / "c.pt"), model)
        again, _ = sleep.load(str(tmp_path / "c.pt"), "cpu")
        assert again.blocks[1].levels[FAST].A.dtype is again.wte.weight.dtype is dtype
        assert torch.equal(again.metric, model.metric) and same_state(again, model)


def test_a_file_is_mapped_not_read(written):
    """Tensors are views of one map: as far from each other as in the file."""
    _, folder = written("llama")
    path = folder / "model.safetensors"
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8:8 + size])
    tensors = read_safetensors(path)
    starts = {t.data_ptr() - header[name]["data_offsets"][0] for name, t in tensors.items()}
    assert len(starts) == 1 and len(tensors) > 20


# --------------------------------------------------------------------------------------------------
# What is wrong is named

def copy_of(written, tmp_path, kind="qwen3"):
    folder = tmp_path / "copy"
    shutil.copytree(written(kind)[1], folder)
    return folder


def change(folder, name="config.json", **fields):
    path = folder / name
    old = json.loads(path.read_text())
    new = {k: v for k, v in (old | fields).items() if v != "gone"}
    path.write_text(json.dumps(new))


CONFIGS = [("model_type", "mamba"), ("model_type", [1]), ("hidden_size", "gone"),
           ("hidden_size", 64), ("hidden_size", "48"), ("hidden_size", -1), ("vocab_size", 61),
           ("vocab_size", 10 ** 30), ("num_hidden_layers", 2), ("num_hidden_layers", 4),
           ("num_hidden_layers", True), ("num_attention_heads", 0), ("num_attention_heads", 5),
           ("num_key_value_heads", 4), ("num_key_value_heads", [2]), ("head_dim", 8),
           ("head_dim", 15), ("head_dim", "x"), ("intermediate_size", 81), ("rms_norm_eps", None),
           ("rms_norm_eps", "small"), ("hidden_act", "gelu"), ("attention_bias", True),
           ("use_sliding_window", True), ("tie_word_embeddings", False),
           ("tie_word_embeddings", "no"), ("max_position_embeddings", 0),
           ("rope_parameters", [1]), ("rope_parameters", {"rope_type": "yarn"}),
           ("rope_parameters", {"rope_type": ["llama3"]}), ("rope_parameters", {"rope_theta": "b"}),
           ("rope_parameters", {"rope_theta": float("nan")}),
           ("rope_parameters", LLAMA3 | {"factor": None}),
           ("rope_parameters", LLAMA3 | {"factor": 0}),
           ("rope_parameters", LLAMA3 | {"low_freq_factor": 4.0})]


@pytest.mark.parametrize("name, value", CONFIGS, ids=str)
def test_a_config_that_cannot_be_is_one_line(name, value, written, tmp_path):
    folder = copy_of(written, tmp_path)
    from_pretrained(folder)
    change(folder, **{name: value})
    with pytest.raises(ValueError, match=r"holds no whole (Qwen 3|GPT-2): ") as e:
        from_pretrained(folder)
    assert len(str(e.value)) < 400 and "\n" not in str(e.value)


def test_shards_that_do_not_fit_are_named(written, tmp_path):
    folder = copy_of(written, tmp_path)
    index, first = json.loads((folder / INDEX).read_text()), sorted(folder.glob("*.safetensors"))[0]
    for wrong, says in (({"weight_map": 3}, "no weight_map"),
                        ({"weight_map": {"w": 1}}, "file name"),
                        ({"weight_map": {"w": "../x.safetensors"}}, "file name"),
                        ({"weight_map": {"w": "x.safetensors"}}, "is not there")):
        change(folder, INDEX, **wrong)
        with pytest.raises(ValueError, match=says):
            from_pretrained(folder)
    (folder / INDEX).write_text("[1]")
    with pytest.raises(ValueError, match="table of fields"):
        from_pretrained(folder)
    few = {k: v for k, v in index["weight_map"].items() if v != first.name}
    (folder / INDEX).write_text(json.dumps({"weight_map": few}))
    with pytest.raises(ValueError, match="is missing"):
        from_pretrained(folder)
    (folder / INDEX).write_text(json.dumps(index))
    shutil.copy(first, folder / "again.safetensors")
    change(folder, INDEX, weight_map=index["weight_map"] | {"w": "again.safetensors"})
    with pytest.raises(ValueError, match="is there twice"):
        from_pretrained(folder)
    (folder / INDEX).write_text(json.dumps(index))
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{first.name} is not a valid safetensors file"):
        from_pretrained(folder)


JUNK = st.one_of(st.none(), st.booleans(), st.integers(-2 ** 70, 2 ** 70), st.floats(),
                 st.text(max_size=5), st.lists(st.integers(0, 3), max_size=2),
                 st.dictionaries(st.sampled_from([*LLAMA3]), st.floats() | st.integers(),
                                 max_size=5))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from([*FACTS, "head_dim", "rms_norm_eps", "rope_parameters",
                                        "rope_theta", "rope_scaling", "tie_word_embeddings",
                                        "hidden_act", "model_type"]), JUNK, min_size=1, max_size=3))
def test_any_config_is_read_or_refused_in_one_line(written, tmp_path_factory, fields):
    folder = tmp_path_factory.getbasetemp() / "any-config"
    if not folder.exists():
        shutil.copytree(written("qwen3")[1], folder)
        shutil.copy(folder / "config.json", folder / "sound.json")
    shutil.copy(folder / "sound.json", folder / "config.json")
    change(folder, **fields)
    try:
        assert from_pretrained(folder).config.n_layer == 3
    except ValueError as e:
        assert "holds no whole" in str(e) and "\n" not in str(e)
