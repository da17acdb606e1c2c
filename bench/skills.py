"""
Skills: languages read in a lesson by day, used after the night without it. Do on-policy steps,
imitation and dreaming matter where an answer is a whole sentence?

    python bench/skills.py                 all lives x 5 seeds -> bench/results/skills.json
    python bench/skills.py --nights=2      shorter lives: two languages, one night after another
    python bench/skills.py --search --nights=2          seeds 31 and 32: regimes, and the rates of
                                           rivals; every one of them is stored
    python bench/skills.py --quick         bases, lives, file and table in seconds; a self so small
                                           cannot read, so its nights are undone

After Figure 5 of Language Models Need Sleep (arXiv 2606.03979): continual translation of languages
read in context; what is measured is exact match, and chrF, of sentences that nobody has seen, both
ways. Seed 1 is the one on which all this was made: a table of evidence must not hold it. All lives
of a seed begin from one base; differences are paired by seed. A life that is finished is not lived
again, one that was interrupted goes on. Beside other work, a thread of a CPU takes 5 to 6 minutes
for a base and 45 seconds for a night.
"""
import json
import os
import shlex
import sys
from collections import Counter
from statistics import mean

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import sleep                                                         # noqa: E402
from bench import stats                                              # noqa: E402
from bench.ablations import RATES, RIVALS, SAME, begun, constants, quiet  # noqa: E402
from data import exam, flags, store                                  # noqa: E402
from data.flags import SWITCH, TEXT                                  # noqa: E402

NAME = "skills.py"
LIVES = {  # name: flags and constants of a life
    "sleep": [], "none": ["--method=none"], "sft": ["--method=sft"],
    "gate+sft": SAME, "no on-policy steps": ["--on_policy=0"],
    "no imitation": ["--imitate=0"], "no dreaming": ["--dream=0"],
    "writer alone": ["dream.write=variants.writer_alone"],
    "half on-policy": ["--on_policy=0.5"], "all on-policy late": ["--on_policy=1"],
    "half the steps": ["--seed_steps=225"], "twice the steps": ["--seed_steps=900"],
}
# at the rates of arms.json, the best on people; on languages, too (skills-search.json, seed 1)
RIVAL = {"gate+lora": 0.18, "gate+cartridge": 0.3, "gate+sdft": 0.18}
LIVES |= {name: [*RIVALS[name], f"seed.LR={rate}"] for name, rate in RIVAL.items()}
TWICE = ["--quizzes=8"]                 # what helped most on seed 1; rivals are given it, too
LIVES |= {"twice the exercises": TWICE} | {
    f"{name} (twice the exercises)": [*LIVES[name], *TWICE] for name in ("gate+sft", *RIVAL)}
REGIMES = {  # --search: in each of them the ingredients are taken away, one at a time
    "few exercises": ["--quizzes=1"],
    "twice the exercises": TWICE,
    "short nights": ["--seed_steps=120"],
    "short nights early on-policy": ["--seed_steps=120", "--on_policy=0.5", "seed.LATE=0.3"],
    "few exercises half on-policy": ["--quizzes=1", "--on_policy=0.5"],
    "hot exercises": ["--quizzes=1", "dream.TEMPERATURE=1.2"],
    "hardly any exercises": ["--quizzes=1", "seed.USUAL=2"],
}
PLAIN = {  # --search: what could make the default night's mornings better
    "gate+sft": LIVES["gate+sft"],
    "gate+sft twice the steps": [*LIVES["gate+sft"], "--seed_steps=900"],
    "gate+sft twice both": [*LIVES["gate+sft"], "--seed_steps=900", *TWICE],
    "gate+sft rank 32": [*LIVES["gate+sft"], "--rank=32"],
}
PARTS = {k: LIVES[k] for k in ("gate+sft", "no on-policy steps", "no imitation", "no dreaming")}
SEARCHED = {31, 32}                     # seeds of --search, which may take 1, too; no table shows
                                        # them beside others
STEPS, NIGHT = 1600, 450                # of pretraining; of a night, unless a life says otherwise
WAYS = "into", "from"                   # kinds of the exam: into the language, out of it
FLAGS = {
    "seeds": ("2,3,4,5,6", TEXT, "seeds of weights, languages and sampling, with commas"),
    "nights": (4, (1, 28), "languages of a life, a night each"),
    "only": ("", TEXT, "names of lives, commas between them; nothing: all"),
    "search": (False, SWITCH, "look for a regime in which ingredients matter (seeds 31, 32)"),
    "base": ("", TEXT, "further flags of pretraining, spaces between them (--n_layer=6)"),
    "work": ("out-skills", TEXT, "folder of the lives"),
    "result": (os.path.join(stats.RESULTS, "skills.json"), TEXT, "result file"),
    "quick": (False, SWITCH, "one seed, lives of a self that cannot read yet: nights are undone"),
}
QUICK = {"seeds": "1", "nights": 1, "only": "sleep,none,gate+sft"}
SMALL = ["--n_layer=2", "--n_embd=64", "--pretrain_steps=40", "--quizzes=1", "--seed_steps=10"]


def searched():
    """{name: flags and constants} of --search: each regime, and each with a part taken away; the
    plain night with more of a thing; rivals at every rate."""
    found = dict(PLAIN)
    for regime, words in REGIMES.items():
        found[regime] = words
        found |= {f"{part} ({regime})": words + more for part, more in PARTS.items()}
    return found | {f"{name} {rate}": [*RIVALS[name], f"seed.LR={rate}"]
                    for name in RIVAL for rate in RATES[name]}


def against(name):
    """The life that one is compared with; None for the first of its regime, none and sft."""
    regime = name.partition(" (")[2].rstrip(")")
    if regime:
        return regime
    if name in PLAIN or name.partition(" ")[0] in RIVAL:
        return "gate+sft" if name != "gate+sft" else "sleep"
    return None if name in {"sleep", "none", "sft", *REGIMES} else "sleep"


# --------------------------------------------------------------------------------------------------
# chrF

def grams(text, n):
    """How often each run of n characters occurs, spaces left out."""
    text = "".join(text.split())
    return Counter(text[i:i + n] for i in range(len(text) - n + 1))


def chrf(said, right, longest=6, beta=2.0):
    """chrF (Popovic 2015) of a sentence, in [0, 1]: (1 + b^2) P R / (b^2 P + R) of the mean
    precision and recall of character n-grams, n = 1 .. 6, of those n that any text is long for."""
    precision, recall = [], []
    for n in range(1, longest + 1):
        mine, theirs = grams(said, n), grams(right, n)
        both = sum((mine & theirs).values())
        if mine or theirs:
            precision.append(both / max(1, sum(mine.values())))
            recall.append(both / max(1, sum(theirs.values())))
    P, R = (mean(x) if x else 0.0 for x in (precision, recall))
    return (1 + beta ** 2) * P * R / (beta ** 2 * P + R) if P * R else 0.0


# --------------------------------------------------------------------------------------------------
# One life

def parse(argv):
    o = flags.parse(argv, __doc__, FLAGS, NAME, QUICK)
    o.seeds = flags.numbers(o.seeds, "seeds", NAME)
    if o.search:
        o.seeds = [s for s in o.seeds if s in {1, *SEARCHED}] or sorted(SEARCHED)
    elif SEARCHED & set(o.seeds):
        flags.fail("--seeds: 31 and 32 are for --search alone", NAME)
    o.lives = searched() if o.search else LIVES | searched()
    names = o.only.split(",") if o.only else list(o.lives if o.search else LIVES)
    for name in names:
        if name not in o.lives:
            flags.fail(f"--only: there is no {name!r}; lives: {', '.join(o.lives)}", NAME)
    o.names = [n for n in o.lives if n in names or n in {against(name) for name in names}]
    if o.result == FLAGS["result"][0] and (o.quick or o.search):
        where, file = (o.work, "quick") if o.quick else (stats.RESULTS, "skills-search")
        o.result = os.path.join(where, f"{file}.json")
    return o


def folder(o, name, seed):
    name = "".join(c if c.isalnum() else "_" for c in name)
    return os.path.join(o.work, f"{name}-{seed}-{o.nights}{'-quick' * o.quick}")


def words_of(o, name, seed):
    """(flags of sleep.py, constants as module.NAME=number) of one life."""
    words = ["--data=languages", f"--seed={seed}", f"--world_seed={seed}", f"--days={o.nights}",
             "--threads=1", "--contrast=0", "--paper", f"--pretrain_steps={STEPS}",
             f"--seed_steps={NIGHT}", *o.base.split(), *(SMALL if o.quick else [])]
    more = o.lives[name]
    return words + [w for w in more if w[0] == "-"], [w for w in more if w[0] != "-"]


def base_of(o, seed):
    """The base of all lives of a seed: (its path, the flags it was made with); made if need be."""
    words = [w for w in words_of(o, next(iter(o.lives)), seed)[0] if "--days" not in w]
    made = ("--data", "--seed", "--world", "--threads", "--n_", "--pretrain")
    words = [w for w in words if w.startswith(made) and not w.startswith("--seed_")]
    out = os.path.join(o.work, f"base-{seed}{'-quick' * o.quick}")
    with quiet():
        a, data = begun(words, out)
        path = os.path.join(out, "base.pt")
        sleep.pretrained(a, None if os.path.isfile(path) else sleep.born(a, data), data)
    return path, words


def final_exam(model, data, nights):
    """Of the last self: {way: {"exact", "chrf"}} over the sentences of all days, lesson gone.

    exact: the whole answer; chrf: of what stands behind the words said aloud, the translation.
    """
    found = {}
    for way in WAYS:
        items = [x for j in range(nights) for x in data.exams(j, nights - 1) if x.kind == way]
        said = [text for text, _ in exam.answers(model, data, items)]
        right = [x.answer.strip() for x in items]
        found[way] = {"exact": mean(s == r for s, r in zip(said, right)),
                      "chrf": mean(chrf(s.rpartition(":")[2], r.rpartition(":")[2])
                                   for s, r in zip(said, right)), "n": len(items)}
    return found


def live(o, name, seed):
    """One life -> its row of the result file. R[i][j]: exact match of language j after night i."""
    base, _ = base_of(o, seed)
    words, changed = words_of(o, name, seed)
    with quiet(), constants(changed):
        a, data = begun([*words, f"--init_from={base}"], folder(o, name, seed))
        model, seconds = sleep.pretrained(a, sleep.born(a, data), data)
        s = sleep.live(a, a.method, model, data, a.out_dir, seconds)
        model, state = sleep.load(os.path.join(a.out_dir, "checkpoint.pt"), "cpu")
        final = final_exam(model, data, o.nights)
    read = [exam.share(graded, ["in_context"]) for graded in state["graded"]]
    command = " ".join(["python sleep.py", shlex.join(words), "--init_from=BASE", *changed])
    keys = ("R", "ACC", "BWT", "recall", "old_before", "old_after", "reading_before", "kinds",
            "params_before", "params_after", "seconds", "device")
    nights = [{**night, "asked": asked_for(book)}
              for night, book in zip(state["nights"], state["notes"])]
    return {"life": name, "seed": seed, "search": o.search, **stats.provenance(command),
            **{k: s[k] for k in keys}, "in_context": read, "final": final, "nights": nights}


def asked_for(book):
    """What the self asked itself that night, of those of its dreams that the notes hold: how many
    {way: {"sentence", "word"}}."""
    found = {way: {"sentence": 0, "word": 0} for way in WAYS}
    for question, _ in (book or {}).get("asked", {}).get("some", []):
        way, _, text = question.partition(":")
        kind = "sentence" if len(text.split()) > 2 else "word"
        found["from" if way.startswith("From") else "into"][kind] += 1
    return found


# --------------------------------------------------------------------------------------------------
# All of them

def shown(file, names):
    """The table of a result file, as lines: a row a life, its paired difference corrected."""
    found = {}
    for run in file["runs"]:
        found.setdefault(run["life"], {})[run["seed"]] = run
    lines = [f"{'life':44}{'ACC':>16}{'of reading':>11}{'into':>7}{'from':>7}{'chrF':>7}{'old':>6}"
             f"{'undone':>8}"]
    gaps = {}
    for name in (n for n in names if n in found):
        runs = list(found[name].values())
        share = mean(r["ACC"] / max(mean(r["in_context"]), 1e-9) for r in runs)
        ways = [mean(r["final"][way]["exact"] for r in runs) for way in WAYS]
        sound = mean(r["final"][way]["chrf"] for r in runs for way in WAYS)
        old = mean(r["old_after"] for r in runs)
        undone = sum("undone" in night for r in runs for night in r["nights"])
        lines.append(f"{name:44}{stats.pm([r['ACC'] for r in runs]):>16}{share:11.2f}"
                     f"{ways[0]:7.2f}{ways[1]:7.2f}{sound:7.2f}{old:6.2f}{undone:8}")
        other = found.get(against(name), {})
        pairs = [(run["ACC"], other[seed]["ACC"]) for seed, run in found[name].items()
                 if seed in other]
        if len(pairs) > 1:
            gaps[name] = [mine - theirs for mine, theirs in pairs]
    for (name, d), (_, p) in zip(gaps.items(), stats.corrected(list(gaps.values()))):
        lines.append(f"{name} minus {against(name)}: {stats.gap(d)}, p after Holm {p:.3f}, "
                     f"{stats.detectable(d):.3f} would have shown")
    return lines


def main(argv):
    o = parse(argv)
    os.makedirs(o.work, exist_ok=True)
    file = stats.read(os.path.abspath(o.result)) or {"runs": []}
    done = {(r["life"], r["seed"], len(r["R"])) for r in file["runs"]}
    said = [w for w in argv if not w.startswith(("--work", "--result"))]
    mine = shlex.join(["python", "bench/skills.py", *said])
    earlier = [c for c in file.get("command", "").split("; ") if c not in ("", mine)]
    file |= stats.provenance("; ".join([*earlier, mine]))
    os.environ["TQDM_DISABLE"] = "1"
    for seed in o.seeds:
        for name in o.names:
            if (name, seed, o.nights) not in done:
                run = json.loads(json.dumps(live(o, name, seed)))
                file["runs"].append(run)
                store.write_json(os.path.abspath(o.result), file)
                print(f"{name}, seed {seed}: ACC {run['ACC']:.3f}, read "
                      f"{mean(run['in_context']):.3f}, {run['seconds'].get('night', 0):.0f} s of "
                      "nights", flush=True)
    same = {**file, "runs": [r for r in file["runs"] if len(r["R"]) == o.nights]}
    print("\n".join(shown(same, o.names)))


if __name__ == "__main__":
    flags.guarded(main, NAME)
