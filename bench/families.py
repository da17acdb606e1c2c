"""
Are real weights read right? Logits of GPT-2, Llama 3, Qwen 2.5 and Qwen 3 in our one transformer
beside those of `transformers`, on tiny random models that it has written itself.

    python bench/families.py          (needs transformers, safetensors) -> bench/results/families.json

float32: the largest difference of a logit. bfloat16: both round at every step, not in the same
places, so each is held against the same weights in float64 (root of the mean square).
"""
import json
import os
import sys
import tempfile

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from bench import stats                                              # noqa: E402
from data import flags                                               # noqa: E402
from data.engine import new_cache                                    # noqa: E402
from data.weights import from_pretrained                             # noqa: E402
from model import FAST                                               # noqa: E402

FLAGS = {"result": (os.path.join(stats.RESULTS, "families.json"), flags.TEXT, "result file")}
RANKS = (4, 8, 6)
V = 60
FACTS = dict(vocab_size=V, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
             num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=64,
             bos_token_id=0, eos_token_id=0, pad_token_id=0)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
KINDS = {"gpt2": ("GPT2", dict(vocab_size=V, n_positions=64, n_embd=48, n_layer=3, n_head=6,
                               bos_token_id=0, eos_token_id=0)),
         "llama": ("Llama", FACTS | dict(rope_parameters=LLAMA3, tie_word_embeddings=True)),
         "llama untied": ("Llama", FACTS | dict(rope_theta=10000.0, tie_word_embeddings=False)),
         "qwen2": ("Qwen2", FACTS | dict(rope_theta=1e6, tie_word_embeddings=True)),
         "qwen3": ("Qwen3", FACTS | dict(rope_theta=1e6, head_dim=16, rms_norm_eps=1e-6,
                                         tie_word_embeddings=True)),
         "qwen3 untied": ("Qwen3", FACTS | dict(head_dim=6, num_key_value_heads=6))}


def theirs_of(kind, folder):
    """A random tiny model, written to a folder by transformers, in several shards."""
    import transformers
    name, options = KINDS[kind]
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM" if name != "GPT2" else "GPT2LMHeadModel")(
        getattr(transformers, f"{name}Config")(**options)).eval()
    for key, p in model.named_parameters():          # their biases start at 0, their gains at 1
        gain = 1.0 if p.ndim == 1 and "bias" not in key else 0.0
        p.data = gain + 0.15 * torch.randn_like(p)
    model.save_pretrained(folder, max_shard_size="40KB" if kind != "llama" else "1GB")
    return model


def largest(a, b):
    return float((a.double() - b.double()).abs().max())


def cached(model, ids, cuts=(20, 1, 9, 10)):
    cache = new_cache(model, len(ids), ids.shape[1])
    return torch.cat([model(part, cache=cache) for part in ids.split(cuts, 1)], 1)


@torch.no_grad()
def compared(kind, folder):
    """One row of the table: the differences for one family."""
    import transformers
    theirs, ids = theirs_of(kind, folder), torch.randint(V, (3, 40))
    want, model = theirs(ids).logits, from_pretrained(folder, RANKS)
    got = model(ids)
    row = {"largest logit": float(want.abs().max()), "float32": largest(got, want),
           "float32, cached": largest(cached(model, ids), want)}
    low = from_pretrained(folder, RANKS, dtype=torch.bfloat16)
    exact = from_pretrained(folder, RANKS, dtype=torch.bfloat16).double()(ids)
    other = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    for name, logits in (("ours", low(ids)), ("ours, cached", cached(low, ids)),
                         ("transformers", other(ids).logits)):
        row[f"bfloat16, {name}"] = float((logits.double() - exact).square().mean().sqrt())
    zero = torch.zeros(3, dtype=torch.long)
    for m, before in ((model, got), (low, low(ids))):
        m.unlock(FAST)
        same = torch.equal(m(ids, awake={FAST: (zero, zero)}), before)
        row["unlock, same bits"] = row.get("unlock, same bits", True) and same
    return row


def main(argv):
    o = flags.parse(argv, __doc__, FLAGS, "families.py")
    try:
        import transformers
    except ImportError:
        flags.fail("this compares with transformers: pip install transformers safetensors",
                   "families.py")
    rows = {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            rows[kind] = compared(kind, folder)
        print(kind, {k: f"{v:.2g}" if isinstance(v, float) else v for k, v in rows[kind].items()})
    file = stats.provenance("python bench/families.py")
    file["versions"]["transformers"] = transformers.__version__
    with open(o.result, "w", encoding="utf-8") as f:
        json.dump({**file, "rows": rows}, f, indent=1)


if __name__ == "__main__":
    flags.guarded(main, "families.py")
