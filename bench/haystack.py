"""
Needles in a haystack many contexts long: read once, slept on, asked at the end.

    python bench/haystack.py                        2,000 to 100,000 tokens, three seeds
    python bench/haystack.py --levels=1 --room=2    the slowest level keeps two experts
    python bench/haystack.py --table=1              the table  -> bench/results/haystack.json

MK-NIAH of RULER (arXiv 2404.06654) as in Figure 4 of Language Models Need Sleep (arXiv 2606.03979),
in the embedded world: a needle is a fact about somebody never met, hay is small talk and what the
self has always known. Lines come one by one. In its context the self keeps what is news to it: a
line of which it asks itself what it mostly answers otherwise without the line (`is_news`; no truth
is seen). When the context is full, it sleeps, as in sleep.py, and every --period nights the levels
move. It is asked at the end, with an empty context.

    sleep          the self that has slept
    window alone   the pretrained self with the last of the haystack in its context: no memory
    told           the pretrained self with the needle itself in its context: how well it reads

--room=N: of the experts of the slowest level only the newest N are kept (0: all): then it matters
how many levels there are and how slow the slowest is. A haystack that was read is not read again.
"""
import os
import random
import shlex
import sys
import time

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from tqdm import tqdm                                                # noqa: E402

import dream                                                         # noqa: E402
import seed as night                                                 # noqa: E402
import sleep                                                         # noqa: E402
from bench import stats                                              # noqa: E402
from bench.ablations import begun                                    # noqa: E402
from bench.tables import haystacks                                   # noqa: E402
from data import asking, exam, flags, notes, run, store, world       # noqa: E402
from data.gate import MAX_NEW, remember                              # noqa: E402
from data.quizzes import unpack                                      # noqa: E402
from data.text import Day                                            # noqa: E402
from model import FAST, clone                                        # noqa: E402

FLAGS = {
    "tokens": ("2000,10000,100000", flags.TEXT, "lengths of the haystacks, with commas"),
    "needles": (32, (1, 100), "facts about people never met, in each"),
    "levels": (4, (1, 8), "of memory"),
    "period": (2, flags.COUNT, "nights from move to move of the fast level; 0: none moves"),
    "room": (0, flags.COUNT, "experts that the slowest level keeps; 0: all"),
    "window": (64, (32, world.BLOCK - sleep.ROOM), "tokens of news that are slept on at a time"),
    "seeds": ("6,7,8", flags.TEXT, "seeds of base, life and haystack, with commas"),
    "base": ("", flags.TEXT, "a base to begin with, {} for the seed; none: a new one"),
    "work": ("out-haystack", flags.TEXT, "folder of the bases"),
    "result": (os.path.join(stats.RESULTS, "haystack.json"), flags.TEXT, "result file"),
    "table": (0, flags.SWITCH, "1: print the table of the result file, read nothing"),
    "quick": (False, flags.SWITCH, "one small haystack: does everything run?"),
}
QUICK = {"tokens": "300", "needles": 3, "seeds": "1"}
SMALL = ["--n_layer=2", "--n_embd=64", "--pretrain_steps=300", "--quizzes=1", "--seed_steps=20"]
NAME = "haystack.py"
LINES, OFTEN = 64, 2                # looked at together; documents of questions on each view of one
SAME = ("seed", "tokens", "needles", "levels", "period", "room", "window")   # what names a haystack


# --------------------------------------------------------------------------------------------------
# Reading

def read(model, lines, news, marks, a, o, in_order=False):
    """The self reads lines [ids], keeps those that are `news`, and sleeps whenever its context is
    full -> (self, logs of the nights). A night undone is tried once more; what a night has read
    and could not learn is not read again. in_order: the lines of a night are one text, and are not
    shuffled as sentences are."""
    context, logs = [], []
    for line, new in [*zip(lines, news), ([], True)]:               # behind the last it sleeps
        if not new:
            continue
        full = sum(map(len, context)) + len(line) > o.window
        if context and (full or not line):
            told = [sum(context, [])] if in_order else context
            model, log = slept(model, told, marks, a, o, len(logs))
            logs, context = [*logs, log], []
        context.append(line)
    return model, logs


def slept(model, context, marks, a, o, i):
    for tried in range(2):
        run.stage(a, f"haystack {tried}", i)
        notes.begin([])
        model, log = sleep.asleep(a, model, Day([context], []), marks, i)
        if "undone" not in log:
            break
    slowest = FAST + o.levels - 1
    while o.room and model.n_experts(slowest) > o.room:
        forget_oldest(model, slowest)
    return model, log


def forget_oldest(model, level):
    """The first expert of a level goes, and what the gate knows of it."""
    for level_ in (block.levels[level] for block in model.blocks):
        level_.A, level_.B = level_.A[1:], level_.B[1:]
    oldest = torch.tensor([level, 0], device=model.owner.device)
    kept = ~(model.owner == oldest).all(1)
    model.things, model.reach = model.things[kept], model.reach[kept]
    model.owner = model.owner[kept]
    model.owner[model.owner[:, 0] == level, 1] -= 1


@torch.no_grad()
def is_news(model, lines, marks, a):
    """[True where the self, with that line alone in its context, asks itself what it mostly answers
    otherwise than without], of lines [ids]. By the pretrained self, each line once."""
    found, unknown = [], tuple(model.unknown.tolist())
    for k in tqdm(range(0, len(lines), LINES), desc="reading", unit="batch", leave=False):
        run.stage(a, "news", k)
        some = lines[k:k + LINES]
        teacher = night.hold(model, Day([[line] for line in some], []), marks)
        try:
            z = asking.screen(teacher, dream.write(teacher, marks, OFTEN), marks)
        except night.RestlessNight:
            found += [False] * len(some)
            continue
        pairs = unpack(z)
        inside = asking.read(teacher, pairs, marks)
        outside = remember(model, marks, [q for _, q, _ in pairs], MAX_NEW)
        said = [[] for _ in some]                       # of each line: is it otherwise without it?
        for (p, _, _), y, (was, _) in zip(pairs, inside, outside):
            said[p] += [tuple(y) != tuple(was)] * (tuple(y) != unknown)
        found += [2 * sum(new) > len(new) for new in said]
    return found


# --------------------------------------------------------------------------------------------------
# Haystacks

def needles(made, n, rng):
    """n facts about people never met; no friends, whose names would be keys as well as values.
    Raises ValueError where the world has not so many."""
    unmet = [f for day in made["days"] for told in day if told.kind in world.DAY
             for f in told.facts if f.relation != "friend"]
    if n > len(unmet):
        raise ValueError(f"--needles={n}: this world has {len(unmet)}")
    return rng.sample(unmet, n)


def hay_of(made, rng):
    """Lines of hay: small talk, and each old fact in one wording."""
    facts = [world.passage([fact], rng) for fact in made["facts"]]
    return [" " + " ".join(said) for said in world.CHAT] * (len(facts) // len(world.CHAT)) + facts


def one(o, a, base, data, judged, key, rng):
    """One haystack -> its row of the result file. judged: {line: is it news?}, filled."""
    made = world.make_world(a.world_seed)
    facts, hay = needles(made, o.needles, rng), hay_of(made, random.Random(a.world_seed))
    lines, size = [], 0
    while size < key["tokens"]:
        lines.append(rng.choice(hay))
        size += len(data.enc.encode_ordinary(lines[-1]))
    mine = [world.passage([fact], rng) for fact in facts]
    for line in mine:
        lines.insert(rng.randrange(len(lines) + 1), line)
    fresh, began = [line for line in dict.fromkeys(lines) if line not in judged], time.time()
    ids = {line: data.enc.encode_ordinary(line) for line in lines}
    judged |= zip(fresh, is_news(base, [ids[line] for line in fresh], data.marks, a))
    looked = time.time() - began
    model = clone(base, share=True)
    model.set_ranks(sleep.ranks_of(a, data))
    model, logs = read(model, [ids[line] for line in lines], [judged[line] for line in lines],
                       data.marks, a, o)
    asked = [world.ask(fact, "needle", rng) for fact in facts]
    last = [t for line in lines for t in ids[line]][-(world.BLOCK - sleep.ROOM):]
    inside = [x._replace(context=data.enc.decode(last)) for x in asked]
    told = [x._replace(context=line) for x, line in zip(asked, mine)]
    moves = [move for log in logs for move in log.get("moves", ())]
    return {"sleep": exam.share(exam.sit(model, data, asked)),
            "window_alone": exam.share(exam.sit(base, data, inside)),
            "told": exam.share(exam.sit(base, data, told)),
            "old": exam.share(exam.sit(model, data, data.always["old"])),
            "needles_kept": sum(judged[line] for line in mine), "lines": len(lines),
            "hay_kept": sum(judged[line] for line in lines)
            - sum(judged[line] for line in mine),
            "bits": night.BITS, "nights": len(logs), "undone": sum("undone" in log for log in logs),
            "moves": len(moves), "moves_undone": sum("undone" in move for move in moves),
            "seconds_reading": round(looked, 1), "seconds": round(time.time() - began, 1),
            "experts": [model.n_experts(level) for level in range(FAST, len(model.config.ranks))]}


def from_base(o, number):
    """(flags of sleep.py, base, data) of a seed; a base that is not named is made once."""
    folder = os.path.join(o.work, f"base{number}" + "-quick" * o.quick)
    named = [f"--init_from={o.base.replace('{}', str(number))}"] * bool(o.base)
    words = [f"--seed={number}", f"--world_seed={number}", "--threads=1", f"--levels={o.levels}",
             f"--period={o.period}", *SMALL * o.quick, *named]
    a, data = begun(words, folder)
    done = os.path.isfile(os.path.join(folder, "base.pt"))
    base, _ = sleep.pretrained(a, None if done else sleep.born(a, data), data)
    return a, base, data


def live(o, argv):
    """All haystacks that are not in the result file yet."""
    seeds, lengths = (flags.numbers(getattr(o, k), k, NAME) for k in ("seeds", "tokens"))
    file = stats.read(os.path.abspath(o.result)) or {"runs": []}
    done = [{k: r[k] for k in SAME} for r in file["runs"]]
    keys = [{"seed": s, "tokens": n, **{k: getattr(o, k) for k in SAME[2:]}}
            for s in seeds for n in lengths]
    todo = [key for key in keys if key not in done]
    print(f"{len(todo)} haystacks: expect about {3 * len(todo)} minutes on a quiet CPU thread and "
          "8 for each base that is not there; cut it off when you like, it goes on", flush=True)
    kept = [w for w in argv if not w.startswith(("--work", "--result", "--base"))]
    command = shlex.join(["python", "bench/haystack.py", *kept])

    def rows_of(number, keys):
        (a, base, data), judged = from_base(o, number), {}
        for key in keys:
            rng = random.Random(f"haystack {number} {key['tokens']}")
            yield one(o, a, base, data, judged, key, rng)
    fill(file, o.result, command, todo, rows_of)


def fill(file, path, command, todo, rows_of):
    """Add a row for each key of todo, seed by seed, and save it as soon as it is there. rows_of
    (seed, its keys) yields them in this order."""
    bar = tqdm(total=len(todo), unit="row", mininterval=1.0)
    for number in dict.fromkeys(key["seed"] for key in todo):
        keys = [key for key in todo if key["seed"] == number]
        for key, row in zip(keys, rows_of(number, keys)):
            file["runs"].append({**key, "command": command, "commit": stats.commit(), **row})
            file |= stats.provenance("; ".join(dict.fromkeys(r["command"] for r in file["runs"])))
            store.write_json(path, file)
            bar.update()
    bar.close()


def main(argv):
    o = flags.parse(argv, __doc__, FLAGS, NAME, QUICK)
    if o.quick and o.result == FLAGS["result"][0]:
        o.result = os.path.join(o.work, "quick.json")
    if not o.table:
        live(o, argv)
    print("\n".join(haystacks(stats.there(o.result))))


if __name__ == "__main__":
    flags.guarded(main, NAME)
