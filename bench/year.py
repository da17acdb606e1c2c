"""
A long life: a night a day for a year, and memories that move from level to level.

    python bench/year.py                                365 days of one person and news, seed 6
    python bench/year.py --days=100 --seeds=6,7,8       three shorter lives
    python bench/year.py --table=1                      only the tables, from the result file
                                                                    -> bench/results/year.json
--kill=1 lives the last night once more, in a copy, killed by the system in its middle.
A life that is finished is not lived again, one that was cut off goes on with the same bits (--work
holds them), and a longer one goes on from the longest shorter one of its seed. It is told how long
it will take before it begins: on a quiet CPU thread a base takes some 8 minutes, a night 25
seconds, and the moves 27 for each night, 62 where those of the second level are among them (from
the 49th night on).

What is measured: the exam about all days every --exam_every mornings and on the ones before, so
that what a move costs can be seen; recall by the age of what is remembered and by the level it
lives in; the seconds of every night and of every move, and the milliseconds of an answer; bits a
parameter. Bits are those of the world: log2 of how many values a fact could have had.
"""
import json
import math
import os
import shlex
import shutil
import signal
import sys
import time
from statistics import median

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import seed as night                                                 # noqa: E402
import sleep                                                         # noqa: E402
from bench import faults, stats                                      # noqa: E402
from bench.ablations import begun                                    # noqa: E402
from bench.tables import levels_of, year                             # noqa: E402
from data import exam, flags, store, world                           # noqa: E402
from data.gate import remember                                       # noqa: E402
from model import FAST                                               # noqa: E402

FLAGS = {
    "days": (365, (1, 10000), "days and nights"),
    "seeds": ("6", flags.TEXT, "seeds of weights and world, with commas"),
    "people": (1, (1, 64), "new people a day, beside the news of three known"),
    "period": (7, flags.COUNT, "nights from move to move of the fast level"),
    "levels": (4, (1, 8), "of memory"),
    "directions": (32, flags.COUNT, "in which the gate tells things apart; 0: as many as it hears"),
    "exam_every": (7, (1, 10000), "mornings from one exam about all days to the next"),
    "base": ("", flags.TEXT, "a base to begin with, {} for the seed; none: a new one"),
    "work": ("out-year", flags.TEXT, "folder of the lives"),
    "result": (os.path.join(stats.RESULTS, "year.json"), flags.TEXT, "result file"),
    "kill": (0, flags.SWITCH, "1: live the last night once more, killed in its middle: same bits?"),
    "table": (0, flags.SWITCH, "1: print the tables of the result file, live nothing"),
}
DIES = "seed.muon:20"                # in which call of which function a night is killed
NAME, ASKED = "year.py", 5          # questions answered one by one for the time of an answer
POSSIBLE = {"born": 28 * len(world.MONTHS), "lives": 99 * len(world.STREETS) * len(world.KINDS),
            "works": len(world.FIRMS) * (len(world.FIRMS) - 1),
            "loves": len(world.LOVES) * (len(world.LOVES) - 1),
            "town": len(world.SIDES) * len(world.PLACES)}            # values of a fact


# --------------------------------------------------------------------------------------------------
# One life, timed

def live(o, number):
    """One life -> its row of the result file."""
    out = folder(o, o.days, number)
    go_on_from_a_shorter(o, number, out)
    base = [f"--init_from={o.base.replace('{}', str(number))}"] * bool(o.base)
    words = [f"--seed={number}", f"--world_seed={number}", f"--days={o.days}", "--threads=1",
             f"--people={o.people}", f"--period={o.period}", f"--levels={o.levels}",
             f"--directions={o.directions}", *base]
    a, data = begun(words, out)
    done = os.path.isfile(os.path.join(out, "base.pt"))
    usual, exam.EVERY = (sleep.NIGHTS["sleep"], night.consolidate), o.exam_every
    clock = Clock(os.path.join(out, "times.jsonl"))
    sleep.NIGHTS["sleep"], night.consolidate = clock.night(usual[0]), clock.move(usual[1])
    try:
        model, seconds = sleep.pretrained(a, None if done else sleep.born(a, data), data)
        summary = sleep.live(a, a.method, model, data, out, seconds)
    finally:
        (sleep.NIGHTS["sleep"], night.consolidate), exam.EVERY = usual, 1
    killed = {"killed": {"night": o.days, "same_bits": gone_on(out, words)}} if o.kill else {}
    model, state = sleep.load(os.path.join(out, "checkpoint.pt"), "cpu")
    return killed | row(o, number, summary, state, model, clock.read(),
               shlex.join(["--init_from=BASE" if w in base else w for w in words]))


def gone_on(out, words):
    """Has a life whose last night was killed, and that went on, the same weights, bit for bit? In a
    copy of its folder, from the evening before."""
    copy = faults.fresh(os.path.dirname(out), os.path.basename(out) + "-killed")
    shutil.copytree(out, copy)
    a = flags.parse([*words, "--contrast=0"])
    a.command = shlex.join(words)
    store.write_json(os.path.join(copy, "args.json"), flags.kept(a))
    os.replace(os.path.join(copy, "checkpoint.pt.before"), os.path.join(copy, "checkpoint.pt"))
    code, _, said = faults.call(["--resume", f"--out_dir={copy}"], [f"--die={DIES}"])
    if code != -signal.SIGKILL:
        raise ValueError(f"the last night was not killed: exit {code} {said}")
    code, said = faults.resume(copy)
    same = code == 0 and faults.equal(*(faults.weights(f)["model"] for f in (out, copy)))
    shutil.rmtree(copy)
    return same


def folder(o, days, number):
    return os.path.join(os.path.abspath(o.work), f"days{days}-people{o.people}-period{o.period}-"
                        f"levels{o.levels}-directions{o.directions}-seed{number}")


def go_on_from_a_shorter(o, number, out):
    """A longer life begins with the days of a shorter one: where it has not begun, it goes on from
    the longest that --work holds. The world's days do not depend on how many there are."""
    shorter = [f for f in (folder(o, days, number) for days in range(o.days - 1, 0, -1))
               if os.path.isfile(os.path.join(f, "checkpoint.pt"))]
    if shorter and not os.path.isfile(os.path.join(out, "checkpoint.pt")):
        os.makedirs(out, exist_ok=True)
        for name in ("base.pt", "times.jsonl", "checkpoint.pt"):            # this one last
            if os.path.isfile(os.path.join(shorter[0], name)):
                part, whole = os.path.join(out, name + ".part"), os.path.join(out, name)
                shutil.copy(os.path.join(shorter[0], name), part)
                os.replace(part, whole)                             # never half a file


class Clock:
    """The seconds of each night and of its moves, in a file of a line a night, so that a life that
    goes on tomorrow has those of yesterday. A life is the same to the last bit without it."""
    def __init__(self, path):
        self.path, self.moves, self.commit = path, [], stats.commit()

    def night(self, asleep):
        def timed(a, model, day, marks, i):
            self.moves, began = [], time.time()
            model, log = asleep(a, model, day, marks, i)
            line = {"night": i + 1, "seconds": time.time() - began, "moves": self.moves,
                    "commit": self.commit, "answer_ms": self.answer(model, marks), **weights_of(model)}
            with open(self.path, "a", encoding="utf-8") as f:
                f.write(json.dumps(line) + "\n")
            return model, log
        return timed

    def move(self, consolidate):
        def timed(*args):
            began = time.time()
            try:
                return consolidate(*args)
            finally:
                self.moves.append(time.time() - began)
        return timed

    def answer(self, model, marks):
        """Milliseconds of an answer, questions one by one: the median of a few."""
        took = []
        for q in [q for q in model.imagined.tolist() if q][:ASKED]:
            began = time.time()
            remember(model, marks, [tuple(t for t in q if t >= 0)])
            took.append(1000 * (time.time() - began))
        return median(took) if took else None

    def read(self):
        """[line] a night; of a night that was lived again, the last."""
        with open(self.path, encoding="utf-8") as f:
            lines = [json.loads(line) for line in f]
        return list({line["night"]: line for line in lines}.values())


def weights_of(model):
    """{"experts": [(experts, parameters)] of each level of memory, "gate": parameters}."""
    levels = range(FAST, len(model.config.ranks))
    held = [[block.levels[level] for block in model.blocks] for level in levels]
    return {"experts": [(many[-1].n_experts, sum(x.A.numel() + x.B.numel() for x in many))
                        for many in held],
            "gate": model.things.numel() + model.reach.numel()}


# --------------------------------------------------------------------------------------------------
# What is known of it

def row(o, number, summary, state, model, times, command):
    """The row of a life in the result file. R: only the mornings on which all days were asked."""
    whole = [i for i in range(o.days) if (i + 1) % o.exam_every in (0, o.exam_every - 1)]
    whole = sorted({*whole, o.days - 1})
    keys = ("ACC", "BWT", "recall", "old_before", "old_after", "reading_before", "reading_after",
            "never_met_after", "kinds", "params_before", "params_after", "seconds")
    nights_of = {}                                                  # of the code that lived them
    for t in times:
        nights_of.setdefault(t.pop("commit", None), []).append(t["night"])
    moves = [(n["night"], m) for n in state["nights"] for m in n.get("moves", ())]
    told = bits_told(number, o)
    return {"days": o.days, "seed": number, "people": o.people, "period": o.period,
            "levels": o.levels, "directions": o.directions,
            **stats.provenance("python sleep.py " + command),
            **{k: summary[k] for k in keys if k in summary},
            "R": {i + 1: summary["R"][i][:i + 1] for i in whole},
            "next_morning": [r[i] for i, r in enumerate(summary["R"])],
            "commits": [[min(nights), code] for code, nights in nights_of.items()],
            **{k: [night.get(k) for night in state["nights"]] for k in ("never_met", "old")},
            "lives_in": levels_of(o.days, moves), "moves": moves, "facts": told[0],
            "bits": told[1], "undone": sum("undone" in n for n in state["nights"]),
            "given_up": sum(n.get("given_up", 0) for n in state["nights"]),
            "times": [{k: round(v, 3) if isinstance(v, float) else v for k, v in t.items()}
                      for t in times]}


def bits_told(number, o):
    """(facts, bits) of all that was told and is true in the end, without what was known before."""
    made = world.make_world(number, o.days, o.people)
    before = world.true_of(made["facts"])
    told = [f for day in made["days"] for t in day for f in t.facts]
    true = {(name, relation): value for name, facts in world.true_of(told).items()
            for relation, value in facts.items()}
    new = {key: v for key, v in true.items() if before.get(key[0], {}).get(key[1]) != v}
    people = len(made["taken"])
    return len(new), sum(math.log2(POSSIBLE.get(relation, people)) for _, relation in new)


def main(argv):
    o = flags.parse(argv, __doc__, FLAGS, NAME)
    seeds = flags.numbers(o.seeds, "seeds", NAME)
    if not o.table:
        second = o.period and o.levels > 2 and o.days >= o.period ** 2
        a_day = 92 if second else 55                                    # seconds
        hours = len(seeds) * (0.15 + o.days * a_day / 3600)
        print(f"{len(seeds)} lives of {o.days} days: expect about {hours:.1f} hours on a quiet CPU "
              "thread; cut it off when you like, it goes on", flush=True)
        for number in seeds:
            file = stats.read(os.path.abspath(o.result)) or {"runs": []}
            same = {"days": o.days, "seed": number, "people": o.people, "period": o.period,
                    "levels": o.levels, "directions": o.directions}
            file["runs"] = [r for r in file["runs"] if {k: r.get(k, 0) for k in same} != same]
            file["runs"].append(live(o, number))
            kept = [w for w in argv if not w.startswith(("--work", "--result", "--base"))]
            file |= stats.provenance(shlex.join(["python", "bench/year.py", *kept]))
            store.write_json(o.result, file)
    print("\n".join(year(stats.there(o.result))))


if __name__ == "__main__":
    flags.guarded(main, NAME)
