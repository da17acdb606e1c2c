"""--plan: what it predicts from shapes is what small runs do, and what models are published as."""
import json
import re

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import seed
from bench.plan import KNOWN, RESULT, config_of, main
from data import flags, plan, world
from data.engine import generate, new_cache
from data.quizzes import Quizzes
from data.text import pad_documents
from data.weights import config_in
from model import ARCHITECTURES, FAST, GPT, Config
from sleep import document_loss
from tests.small import MARKS, STYLES

SIZES = dict(vocab_size=600, block_size=64, n_layer=4, n_head=4, head_dim=32, n_embd=96, d_ff=320,
             ranks=(16, 16, 48))
KINDS = {name: {**STYLES[name], "n_head": 4, "head_dim": 32} for name in ("ours", "gpt2", "llama",
                                                                        "qwen")}
ROWS, T, A = plan.ROWS + plan.FORCED, 20, 6


def made(kind, **options):
    torch.manual_seed(0)
    return GPT(Config(**{**SIZES, **KINDS[kind], **options})).requires_grad_(False)


def within(got, want, share):
    assert abs(got / want - 1) < share, (got, want, got / want)


def counted(function):
    """FLOPs of a call. Attention in plain matrix products: the CPU's own kernel is not counted."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as count:
        function()
    return count.get_total_flops()


def distilling(model):
    """The loss of a step of distillation with the shapes that the plan assumes."""
    ids, V = torch.randint(4, 600, (plan.ROWS, T)), model.config.vocab_size
    start, zero = torch.full((plan.ROWS,), T - A), torch.zeros(plan.ROWS, dtype=torch.long)
    z = Quizzes(ids, start, start + A, zero, zero + 2, zero + 4, ids < 0, zero, zero > 0, zero,
                torch.randn(plan.ROWS, A, V).log_softmax(-1))
    return seed.off_policy_loss(model, z, MARKS, FAST, "forward")


def kept_for_backward(function, model):
    """Bytes that autograd keeps, each storage once; the weights themselves are not counted."""
    weights = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept = {}

    def keep(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = t, storage.nbytes()  # t: held, so that no address comes back
        return t
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = function()
    assert loss.requires_grad
    return sum(size for _, size in kept.values())


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_experts_and_caches_are_exact(kind):
    for options in ({}, {"ranks": (16,)}, {"tied": False}, {"n_layer": 1}, {"conv": 2}):
        model = made(kind, **options)
        assert plan.parameters(model.config) == model.n_params()
        level = min(1, len(model.config.ranks) - 1)
        model.unlock(level)
        assert plan.expert(model.config) == sum(p.numel() for p in model.live(level))
        cache = new_cache(model, 3, 17)
        size = sum(t.nbytes for block in cache["blocks"] for t in block.values())
        assert plan.cache(model.config, 3, 17, 4) == size


def test_published_models_have_the_published_numbers_of_weights():
    assert plan.parameters(config_of("Qwen3-1.7B")) == 1_720_574_976
    assert plan.parameters(config_of("Llama-3.2-1B")) == 1_235_814_400
    for name in KNOWN:
        with torch.device("meta"):
            model = GPT(config_of(name))
        assert plan.parameters(model.config) == model.n_params()


@pytest.mark.parametrize("kind", KINDS)
def test_flops_are_those_of_measured_steps(kind):
    model, ids = made(kind), torch.randint(600, (5, 40))
    within(plan.forward(model.config, 5 * 40, 40, 5 * 40), counted(lambda: model(ids)), 0.01)
    found = counted(lambda: generate(model, [[5] * 20] * 4, 16))
    reading = plan.forward(model.config, 4 * 20, 20, 4)
    writing = plan.forward(model.config, 4 * 15, 28, 4 * 15)
    within(reading + writing, found, 0.02)
    params = model.unlock(FAST)
    found = counted(lambda: torch.autograd.grad(distilling(model), params))
    words = plan.ROWS * A + plan.FORCED * T
    within(plan.step(model.config, ROWS, T, words), found, 0.03)
    model.discard(FAST), model.requires_grad_(True)
    docs = [(torch.randint(600, (41,)).tolist(), [0.0] + [1.0, 0.0] * 20) for _ in range(8)]
    found = counted(lambda: document_loss(model, *pad_documents(docs)).backward())
    within(plan.step(model.config, 8, 40, 160, everything=True), found, 0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_step_keeps_is_what_autograd_keeps(kind):
    """Within a fifth: kernels of other devices keep other things."""
    model = made(kind)
    model.unlock(FAST)
    words = plan.ROWS * A + plan.FORCED * T
    kept = kept_for_backward(lambda: distilling(model), model)
    within(plan.activations(model.config, ROWS * T, words, 4), kept, 0.2)
    model.discard(FAST), model.requires_grad_(True)
    docs = [(torch.randint(600, (41,)).tolist(), [0.0] + [1.0, 0.0] * 20) for _ in range(8)]
    kept = kept_for_backward(lambda: document_loss(model, *pad_documents(docs)), model)
    within(plan.activations(model.config, 8 * 40, 160, 4, True), kept, 0.2)


def shown(capsys, c, *words):
    a = flags.parse(list(words))
    plan.show(a, world.load(a), c)
    said = capsys.readouterr().out
    return said, [float(x) for x in re.findall(r"minutes +([\d.]+) GB", said)]


def test_a_plan_is_printed_for_any_card(capsys):
    qwen = config_of("Qwen3-1.7B")
    small, gigabytes = shown(capsys, qwen, "--plan=24", "--dtype=bfloat16")
    assert "1,720,574,976 weights of 2 bytes in 28 blocks" in small and "24 GB, as fast as" in small
    large, same = shown(capsys, qwen, "--plan=h100", "--dtype=bfloat16")
    assert gigabytes == same and small.count("DOES NOT FIT") >= large.count("DOES NOT FIT")
    _, twice = shown(capsys, qwen, "--plan=h100")
    assert all(1.2 < b / a <= 2 for a, b in zip(gigabytes, twice))
    ours, tiny = shown(capsys, Config(vocab_size=1204), "--plan=24")
    assert max(tiny) < 1 and "DOES NOT FIT" not in ours
    for wrong in ("titan", "0", "-3", "nan", "1e9"):
        with pytest.raises(SystemExit):
            shown(capsys, qwen, f"--plan={wrong}")
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_folder_needs_only_its_config(tmp_path, capsys):
    gpt2 = dict(model_type="gpt2", vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12,
                n_head=12)
    for fields, weights in ((KNOWN["Llama-3.2-1B"], 1_235_814_400), (gpt2, 124_439_808)):
        (tmp_path / "config.json").write_text(json.dumps(fields))
        c = config_in(tmp_path)
        assert plan.parameters(c) == weights                # as published
        said, _ = shown(capsys, Config(), "--plan=h200", f"--init_from={tmp_path}")
        more = c.n_embd * (4 + 2 * c.n_layer * (2 if c.bias else 1))    # marks, two more levels
        assert f"{weights + more:,} weights of 4 bytes" in said
    for fields in ({"model_type": "gpt2"}, gpt2 | {"n_head": 0}, gpt2 | {"n_embd": "x"}, {}, [1],
                   {"model_type": "qwen3"}, KNOWN["Qwen3-1.7B"] | {"hidden_size": None}):
        (tmp_path / "config.json").write_text(json.dumps(fields))
        with pytest.raises(ValueError, match="config.json"):
            config_in(tmp_path)
    with pytest.raises(FileNotFoundError, match="no .*config.json"):
        config_in(tmp_path / "none")


def test_the_bench_writes_its_table(tmp_path, capsys):
    main([f"--result={tmp_path / 'plan.json'}"])
    rows = json.loads((tmp_path / "plan.json").read_text())["rows"]
    assert len(rows) == 4 and all(row["a night"]["GB"] > 1 for row in rows.values())
    kept = json.loads(open(RESULT, encoding="utf-8").read())
    assert kept["rows"] == rows      # what is quoted is what is printed
    night = kept["a night, measured"]
    assert 0.67 < night["planned"] / night["TFLOP"] < 1.5
    assert 0.67 < night["quizzes planned"] / night["quizzes"] < 1.5


def test_every_architecture_can_be_planned(capsys):
    for arch in ARCHITECTURES.values():
        said, gigabytes = shown(capsys, Config(**arch), "--plan=80")
        assert len(gigabytes) == 2 and min(gigabytes) > 0
