"""
What real models would take: `--plan` for models whose configuration is public, on a card of 24 and
one of 80 GB, and the one part of it that is no shape, measured: the FLOPs of a whole night.

    python bench/plan.py                        the table, and bench/results/plan.json
    python bench/plan.py --base=out             ... and a measured night of that life's base
"""
import json
import os
import random
import sys

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import seed
import sleep
from bench import stats
from data import flags, plan, weights, world
from model import Config

RESULT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results", "plan.json")
FLAGS = {"base": ("", flags.TEXT, "folder of a default life, of whose base a night is measured"),
         "result": (RESULT, flags.TEXT, "where the numbers go")}
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
KNOWN = {  # config.json as their makers publish it (huggingface.co/Qwen, huggingface.co/meta-llama)
    "Qwen3-1.7B": dict(model_type="qwen3", vocab_size=151936, hidden_size=2048,
                       intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16,
                       num_key_value_heads=8, head_dim=128, max_position_embeddings=40960,
                       rms_norm_eps=1e-6, rope_theta=1000000, tie_word_embeddings=True),
    "Llama-3.2-1B": dict(model_type="llama", vocab_size=128256, hidden_size=2048,
                         intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
                         num_key_value_heads=8, head_dim=64, max_position_embeddings=131072,
                         rms_norm_eps=1e-5, rope_theta=500000.0, rope_scaling=LLAMA3,
                         tie_word_embeddings=True)}


def config_of(name, ranks=(32,)):
    return Config(**weights.llama_config(KNOWN[name]), ranks=ranks)


def main(argv):
    a = flags.parse(argv, __doc__, FLAGS, "plan.py")
    command = "python bench/plan.py" + " --base=out" * bool(a.base)
    file = {**stats.provenance(command), "rows": {}}
    for name in KNOWN:
        for card in ("24", "80"):
            file["rows"][f"{name}, {card} GB"] = planned(name, card)
    if a.base:
        file["a night, measured"] = measured(a.base)
        print(json.dumps(file["a night, measured"]))
    with open(a.result, "w") as f:
        json.dump(file, f, indent=1)


def planned(name, card):
    """A default life of this model in bfloat16 on this card, printed and as numbers."""
    a = flags.parse([f"--plan={card}", "--dtype=bfloat16"])
    data, c = world.load(a), config_of(name, (32, 32, 96))
    print(f"\n{name}: ", end="")
    return plan.show(a, data, c)


def measured(folder):
    """One default night of a base under torch's own count, beside the plan's."""
    a = flags.parse([])
    data, (model, _) = world.load(a), sleep.load(os.path.join(folder, "base.pt"), "cpu")
    day, _ = sleep.wake(data, 0, [])
    random.seed(0), torch.manual_seed(0)
    with FlopCounterMode(display=False) as count:
        log = seed.night(model, day, data.marks, a)
    told, length = plan.size_of([day.passages])
    want = plan.night(model.config, len(day.passages), told, length, a, 4)
    return {"TFLOP": count.get_total_flops() / 1e12, "planned": sum(want.flops.values()) / 1e12,
            "quizzes": log["kept"], "quizzes planned": want.quizzes,
            "parts planned": {k: v / 1e12 for k, v in want.flops.items()}}


if __name__ == "__main__":
    flags.guarded(main, "plan.py")
