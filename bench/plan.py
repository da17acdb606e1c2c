"""
What real models would take: `--plan` for models whose configuration is public, on a card of 24 and
one of 80 GB, and the one part of it that is no shape, measured: the FLOPs of a whole night.

    python bench/plan.py                        the table, and bench/results/plan.json
    python bench/plan.py --base=out             ... and a measured night of that life's base
    python bench/plan.py --random=1             a night of a random GPT-2 of 124M: gpt2_night.json
"""
import json
import os
import random
import resource
import sys
import time
from contextlib import ExitStack
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import dream
import seed
import sleep
from bench import stats
from data import asking, flags, gate, plan, weights, world
from data.quizzes import pack, unpack
from model import ARCHITECTURES, GPT, Config

RANDOM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results", "gpt2_night.json")
RESULT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results", "plan.json")
FLAGS = {"base": ("", flags.TEXT, "folder of a default life, of whose base a night is measured"),
         "random": (0, flags.SWITCH, "1: only the night of a random GPT-2 of 124M parameters"),
         "steps": (30, (1, 10 ** 6), "of distillation in that night"),
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
    if a.random:
        return random_night(a.steps)
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
    """A life (--paper) of this model in bfloat16 on this card, printed and as numbers."""
    a = flags.parse([f"--plan={card}", "--dtype=bfloat16", "--paper"])
    data, c = world.load(a), config_of(name, (32, 32, 96))
    print(f"\n{name}: ", end="")
    return plan.show(a, data, c)


def measured(folder):
    """One whole night of a base under torch's own count, beside the plan's."""
    a = flags.parse(["--paper"])
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


def random_night(steps):
    """A GPT-2 of 124M random weights lives a whole night, timed -> bench/results/gpt2_night.json.

    It cannot ask: the questions of the exam stand in for its own, and nothing is screened or
    rejected. All else is `seed.night` as it is: dreams are written, the teacher reads, the gate
    opens, the expert learns, dreams are tried and learnt, the self looks back.
    """
    a = flags.parse([f"--seed_steps={steps}", "--paper"])
    data, took = world.load(a), {}
    torch.manual_seed(0), random.seed(0)
    model = GPT(Config(vocab_size=50257 + 4, block_size=1024, n_layer=12, n_head=12, head_dim=64,
                       n_embd=768, d_ff=3072, hears=10, **ARCHITECTURES["gpt2"]))
    model.requires_grad_(False)
    day = sleep.wake(data, 0, [])[0]
    day = day._replace(passages=day.passages[:2])
    z = exam_as_quizzes(data, len(day.passages))
    gate.fit_metric(model, gate.heard(model, z, data.marks), z.thing)
    parts = {"screen": lambda *_: z, "look_up": stand_in_targets, "look_back": nothing_to_say}
    inside = {"thing_by_thing": lambda teacher, z, day, marks: (z, day, {}),
              "ask_everything": lambda teacher, z, marks: z}
    timed = {"distil": "learning", "open_gate": "the gate", "hold": "reading"}
    dreamt = {"write": "dreaming of the day", "learn_to_dream": "trying dreams"}
    with ExitStack() as undo:
        for where, names in ((seed, parts), (asking, inside)):
            for name, new in names.items():
                undo.enter_context(mock.patch.object(where, name, new))
        for where, names in ((seed, timed), (dream, dreamt)):
            for name, what in names.items():
                same = clocked(getattr(where, name), what, took)
                undo.enter_context(mock.patch.object(where, name, same))
        log = clocked(seed.night, "the night", took)(model, day, data.marks, a)
    row = {"parameters": model.n_params(), "passages": len(day.passages), "quizzes": len(z.ids),
           "steps": steps, "seconds": {k: round(v, 1) for k, v in took.items()},
           "gigabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20, 2),
           "KL": log["kl"] if "kl" in log else None, "loss": log["loss"]}
    file = {**stats.provenance(f"python bench/plan.py --random=1 --steps={steps}"), **row}
    print(json.dumps(row))
    with open(RANDOM, "w") as f:
        json.dump(file, f, indent=1)


def clocked(function, what, took):
    """The same function, the seconds of its calls added to took[what]."""
    def call(*args, **kw):
        began = time.time()
        result = function(*args, **kw)
        took[what] = took.get(what, 0.0) + time.time() - began
        return result
    return call


def exam_as_quizzes(data, passages):
    """The questions of the first day, each about the third and fourth of its words."""
    pairs = [(i % passages, (*data.marks.ask, *data.enc.encode_ordinary(x.question),
                             *data.marks.answer),
              (*data.enc.encode_ordinary(x.answer), data.marks.end))
             for i, x in enumerate(data.exams(0, 0))]
    z = pack(pairs, "cpu")
    four, never = torch.full_like(z.start, 4), torch.zeros_like(z.ids) > 0
    return z._replace(begin=four - 1, end=four, thing=z.passage, wording=never)


def stand_in_targets(teacher, z, marks, teach):
    """What the teacher says of each answer, whatever it is."""
    z = z._replace(recalled=torch.zeros_like(z.thing, dtype=torch.bool))
    return asking.with_targets(z, teach, asking.READINGS)


def nothing_to_say(model, cold, z, teacher, day, marks):
    """The look back without its judgement: the new self answers every quiz."""
    gate.remember(model, marks, [q for _, q, _ in unpack(z)])
    return {}


if __name__ == "__main__":
    flags.guarded(main, "plan.py")
