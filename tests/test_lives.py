"""Tiny lives of every architecture, and of foreign weights with a tokenizer of their own."""
import json

import pytest
import torch

import sleep
from data import store, world
from data.weights import from_pretrained
from model import ARCHITECTURES, GPT, Config
from tests.test_sleep import forked

TINY = ["--n_layer=2", "--n_embd=64", "--days=1", "--people=2", "--pretrain_steps=64",
        "--quizzes=2", "--seed_steps=2", "--rank=4", "--threads=1", "--contrast=0"]


def lived(out, *words):
    code, said = forked(*TINY, f"--out_dir={out}", *words)
    assert code == 0, said
    nights = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert len(nights) == 1 and not any("undone" in n for n in nights), nights
    assert all(n["kept"] > 0 and n["loss"] > 0 for n in nights)
    return Config(**store.load(str(out / "checkpoint.pt"))[0]["config"])


@pytest.mark.parametrize("arch", ["gpt2"])      # Llama's and Qwen 3's parts: the foreign life below
def test_a_tiny_life_of_another_architecture(arch, tmp_path, monkeypatch):
    monkeypatch.setattr(sleep, "LR_ADAM", 0.09)             # in 64 steps it has to learn something
    config = lived(tmp_path / "out", f"--arch={arch}")
    assert all(getattr(config, k) == v for k, v in ARCHITECTURES[arch].items())
    model = GPT(config)
    assert (arch == "gpt2") == (model.wpe is not None)
    heads = model.blocks[0].qkv.weight.shape[0] // config.head_dim
    assert heads == (6 if arch == "gpt2" else 4)            # 2 of queries, 1 of keys, 1 of values


def test_a_tiny_life_of_foreign_weights_with_their_tokenizer(tmp_path):
    """A random Qwen 3 and a tokenizer made of the world's words, as they would be downloaded."""
    tokenizers, transformers = map(pytest.importorskip, ("tokenizers", "transformers"))
    from tests.test_tokenizer import KINDS, QWEN_SPLIT
    before, folder = tokenizers.pre_tokenizers, tmp_path / "weights"
    t = tokenizers.Tokenizer(tokenizers.models.BPE())
    t.normalizer = tokenizers.normalizers.NFC()
    t.pre_tokenizer = before.Sequence([
        before.Split(tokenizers.Regex(QWEN_SPLIT), "isolated"),
        before.ByteLevel(add_prefix_space=False, use_regex=False)])
    texts = [world.passage(world.some_facts({"taken": ()}, world.new_name(world.dice(i)),
                                            world.dice(i)), world.dice(i)) for i in range(300)]
    t.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(
        vocab_size=1000, show_progress=False, initial_alphabet=before.ByteLevel.alphabet()))
    t.add_special_tokens(KINDS["qwen"][3])
    theirs = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(
        vocab_size=1024, hidden_size=64, intermediate_size=128, num_hidden_layers=2, head_dim=32,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512))
    theirs.save_pretrained(folder)
    t.save(str(folder / "tokenizer.json"))
    config = lived(tmp_path / "low", f"--init_from={folder}", "--dtype=bfloat16")
    assert config.vocab_size == 1028 and config.qk_gain and not config.tied
    kept = store.load(str(tmp_path / "low" / "checkpoint.pt"))[0]["model"]
    assert kept["wte.weight"].dtype is torch.bfloat16 and kept["metric"].dtype is torch.float32
    code, said = forked(f"--out_dir={tmp_path / 'low'}", "--ask=Where does Ada Bram live?")
    assert code == 0 and "(from" in said, said
    (folder / "tokenizer.json").unlink()                    # the world's own does not fit
    code, said = forked(*TINY, f"--init_from={folder}", f"--out_dir={tmp_path / 'new'}")
    assert code == 2 and "they do not belong together" in said and len(said.splitlines()) == 1
    torch.manual_seed(0)
    assert from_pretrained(folder).config.n_kv_head == 1
