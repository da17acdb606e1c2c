"""
When choosing matters: nights that may learn from 24 dreams only. Which selection finds the useful ones, and does the writer
learn?

    python bench/dreaming.py      about 10 minutes of one CPU core; needs the bases of bench/ablations.py (or --bases=...)

useful: a correct question-and-answer about a person of the day (judged here, with the world; no night ever sees this). share of
all dreams written, share of the 24 chosen, and the recall they buy, for every night. -> bench/results/dreaming.json
"""
import copy
import json
import os
import random
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import torch
from tqdm import tqdm

import dream
import seed
import sleep
from data import world as W

VARIANTS = {
    "cosine x truth, writer learns": [],
    "gradient norm, writer learns (the paper)": ["--select=norm", "--truth=0"],
    "cosine x truth, writer, random expert": ["--random_expert=1"],
    "random": ["--select=random", "--truth=0", "--writer=0"],
}


def useful(enc, people, dreams):
    """Share of dreams that ask a known question about their passage's person and answer it right."""
    right = set()
    for i, p in enumerate(people):
        for k, relation in W.RELATIONS.items():
            right |= {(i, " " + q.format(n=p["name"], v=p[k]), " " + p[k]) for q in relation.asked + relation.exam}
    text = [(p, enc.decode(list(q[1:-1])), enc.decode(list(a[:-1]))) for p, q, a in dreams]
    return sum(t in right for t in text) / max(1, len(text))


def life(flags, base, world, number, nights, enc, marks):
    a = sleep.parse(["--budget=24", "--dream_steps=0", f"--seed={number}", *flags])
    model, rows, seen = copy.deepcopy(base), [], {}
    write, choose = dream.write_dreams, dream.choose_dreams

    def watched_write(*args, **kw):
        seen["written"] = write(*args, **kw)
        return seen["written"]

    def watched_choose(*args, **kw):
        chosen = choose(*args, **kw)
        seen.setdefault("chosen", seed.unpack(chosen))               # the first choice of a night is what it learns from
        return chosen
    dream.write_dreams, dream.choose_dreams = watched_write, watched_choose
    try:
        for i in range(nights):
            people = world["days"][i]
            sleep.reseed(a, "sleep", i, "night")
            seen.clear()
            day = [sleep.sentences(enc, W.passage(p, random)[0]) for p in people]
            yesterday, restless = copy.deepcopy(model), False
            try:
                sleep.night(a, model, day, marks, i, tqdm(disable=True))
            except seed.RestlessNight:                               # as in sleep.py: wake up as yesterday's self
                model, restless = yesterday, True
            rng = random.Random(i)
            rows.append({"written": len(seen["written"]), "useful_written": useful(enc, people, seen["written"]),
                         "useful_chosen": useful(enc, people, seen.get("chosen", [])), "restless": restless,
                         "recall": sleep.exam(model, enc, marks, W.exam(people, rng)),
                         "old": sleep.exam(model, enc, marks, W.exam(world["old"], rng))})
    finally:
        dream.write_dreams, dream.choose_dreams = write, choose
    return rows


def main(seeds="1,2,3", nights="3", bases="out-ablations/sleep-{}/base.pt", threads="1",
         result=os.path.join(ROOT, "bench/results/dreaming.json")):
    torch.set_num_threads(int(threads))
    enc = W.load_tokenizer()
    marks = seed.Marks(*(enc.encode_single_token(s) for s in sleep.SPECIAL))
    done = json.load(open(result))["runs"] if os.path.isfile(result) else []
    for number in map(int, seeds.split(",")):
        base, _ = sleep.load(bases.format(number))
        world = W.make_world(number)
        for name, flags in VARIANTS.items():
            if any(r["variant"] == name and r["seed"] == number for r in done):
                continue
            start = time.time()
            rows = life(flags, base, world, number, int(nights), enc, marks)
            done.append({"variant": name, "seed": number, "nights": rows, "seconds": round(time.time() - start, 1)})
            with open(result, "w") as f:
                json.dump({"command": f"python bench/dreaming.py --nights={nights}", "budget": 24, "threads": int(threads),
                           "versions": {"torch": torch.__version__}, "device": "cpu", "runs": done}, f, indent=0)
            shown = (f"{r['useful_written']:.2f}/{r['useful_chosen']:.2f}/{r['recall']:.2f}" for r in rows)
            print(f"seed {number}  {name:42}" + "  ".join(shown), flush=True)


if __name__ == "__main__":
    main(**dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:]))
