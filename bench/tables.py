"""
Every table of bench/README.md: result files in, lines of markdown out. Nothing is measured here.

In all of them "x ± y" is mean ± standard deviation over seeds, and "+x ± y", with its sign, is a
mean of differences paired by seed and the half-width of its 95 % interval.
"""
import re
from statistics import mean, median

from bench import stats
from bench.stats import pm

DASH = "–"


def short(text):
    """"+0.99" -> "+.99", and a minus that is one."""
    return re.sub(r"(?<![0-9.])0\.(?=[0-9])", ".", text).replace("-", "−")


def table(head, rows):
    """Lines of markdown; every cell a text."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]


def number(values, digits=3):
    return short(pm(values, digits)) or DASH


def paired(differences):
    return short(stats.gap(differences)) if len(differences) > 1 else ""


def chance(p):
    """A p-value as a table has it."""
    return "< .001" if p < 0.001 else short(f"{p:.3f}") if p < 0.1 else short(f"{p:.2f}")


def grouped(runs, key):
    """{value of key: {seed: run}}"""
    found = {}
    for run in runs:
        found.setdefault(run[key], {})[run["seed"]] = run
    return found


def minus(a, b, key):
    """Differences in `key` of two {seed: run}, over the seeds that both have."""
    return [a[seed][key] - b[seed][key] for seed in a if seed in b]


def source(file, seeds=None):
    """The line above a table: command, seeds, commit."""
    seeds = seeds or sorted({r["seed"] for r in file.get("runs", []) if "seed" in r})
    said = [f"`{file['command']}`"]
    if seeds:
        said.append(("seeds " if len(seeds) > 1 else "seed ") + ", ".join(map(str, seeds)))
    where = f"commit `{file['commit']}`" if file.get("commit") else "no commit"
    return " · ".join([*said, f"{where}, {file.get('date', 'no date')}"])


def headed(name, file, lines, seeds=None):
    """A table under the file it is from."""
    return [f"[`{name}`](results/{name}) · {source(file, seeds)}", lines]


def picture(name, words):
    return f"![{words}](results/{name})"


# --------------------------------------------------------------------------------------------------
# Lives

def default_life(file):
    """What to expect of python sleep.py: the lives sleep, sft and none of ablations.json."""
    found = stats.by_life(file)
    keys = ("recall", "ACC", "BWT", "old", "reading", "reversed")
    rows = []
    for name in ("sleep", "sft", "none"):
        cut = [stats.after(run, len(run["R"])) for run in found.get(name, {}).values()]
        if cut:
            rows.append([name, len(cut), *(number([c[key] for c in cut]) for key in keys)])
    return table(["life", "seeds", "recall next morning", "ACC", "BWT", "old people", "reading",
                  "reversed"], rows)


def newcomer(file):
    """One life of each method, and the minutes of its parts on the machine of the file."""
    rows = []
    for run in file["runs"]:
        spent, nights = run["seconds"], run["days"]
        rows.append([run["method"], *(number([run[k]]) for k in ("recall", "ACC", "BWT")),
                     number([run["old_after"]]), number([run["reading_after"]]),
                     f"{spent['pretrain'] / 60:.1f}", f"{spent['night'] / nights:.0f}"])
    return table(["life", "recall next morning", "ACC", "BWT", "old people", "reading",
                  "minutes of pretraining", "seconds a night"], rows)


CROWDED = {"many_people": "**a day of 40 people**", "old": "old, after such a day"}


def week(file, crowd=None):
    """The result files as the rows of a markdown table: mean (least to most) over the seeds.
    crowd: the file of one crowded day."""
    runs = file["runs"]
    end = f"after {runs[0]['days']} nights"
    rows = [f"| all of it, {len(runs)} seeds | next morning | {end} | questions a life |",
            "|---|---|---|---|",
            f"| **what was told, all days** | {span(runs, 'recall')} | {span(runs, 'ACC')} | |"]
    kinds = sorted({kind for run in runs for kind in run["kinds"]})
    for kind in kinds:
        found = [run["kinds"][kind] for run in runs if kind in run["kinds"]]
        n = round(sum(one["n"] for one in found) / len(found))
        cells = f"{span(found, 'next_morning')} | {span(found, 'end')} | {n} |"
        rows.append(f"| {kind.replace('_', ' ')} | {cells}")
    for kind in ("many_people", "old") if crowd else ():
        found = [run["kinds"][kind] for run in crowd["runs"]]
        n = round(sum(one["n"] for one in found) / len(found))
        rows.append(f"| {CROWDED[kind]} | {span(found, 'end')} | | {n} |")
    return rows


def span(runs, key):
    """"0.97 (0.95 to 1.00)" over the runs that have a value."""
    values = [run[key] for run in runs if run[key] is not None]
    if not values:
        return ""
    mean = f"{sum(values) / len(values):.2f}"
    return mean if len(values) < 2 else f"{mean} ({min(values):.2f} to {max(values):.2f})"


def topics(file):
    """What the gate knows of topics, what the experts, and what both: a line a measure."""
    runs = [{**r, "kept a night": mean(kept or 0 for kept in r["kept"]), "undone nights":
             sum(why is not None for why in r["undone"]), "minutes": r["seconds"]["total"] / 60}
            for r in file["runs"]]
    names = {"both": "**gate and experts**", "gate_alone": "gate alone", "experts_alone":
             "experts alone", "old_before": "the base's classes, before", "old_after":
             "the base's classes, at the end", "BWT": "BWT", "kept a night": "dreams kept a night",
             "undone nights": "nights undone, of a life",
             "minutes": "minutes a life, one thread"}
    asked = f"{runs[0]['data']}, {runs[0].get('split', 'test')} rows, {len(runs)} seeds"
    return [f"| {asked} | mean (least to most) |", "|---|---|",
            *(f"| {name} | {span_of(runs, key)} |" for key, name in names.items())]


def counted(topics, counting):
    """Counting rivals beside the night, its gate alone among the rows: one data set of each file.
    p: over the rivals of the table."""
    night = {r["seed"]: r for r in topics["runs"]}
    rows = {"**sleep**": (night, "final"), "its gate alone": (night, "gate_alone")}
    rows |= {name: (seeds, "final") for name, seeds in grouped(counting["runs"], "method").items()}
    gaps = {name: [night[s]["final"] - seeds[s][key] for s in night if s in seeds]
            for name, (seeds, key) in list(rows.items())[1:]}
    gaps = {name: d for name, d in gaps.items() if len(d) > 1}
    gaps = dict(zip(gaps, stats.corrected(list(gaps.values()))))
    lines = []
    for name, (seeds, key) in rows.items():
        runs = list(seeds.values())
        curve = [mean(r["over_nights"]) for r in runs] if key == "final" else []
        lines.append([name, len(runs), number([r[key] for r in runs]), number(curve),
                      *told(gaps.get(name))])
    return table(["method", "seeds", "all classes at the end", "mean over nights",
                  "`sleep` minus this, at the end", "p, Holm", "sleep is"], lines)


def skills(file):
    """How much of a language the morning knows, lesson gone: a line a life and its nights; the seed
    of development, 1, apart."""
    lives = {}
    for run in sorted(file["runs"], key=lambda run: run["seed"] == 1):
        lives.setdefault((run["life"], len(run["R"]), run["seed"] == 1), []).append(run)
    rows = ["| life | nights | seeds | ACC | read | into | from | chrF | old |",
            "|---|---|---|---|---|---|---|---|---|"]
    for (life, nights, _), runs in lives.items():
        ways = [mean(run["final"][way]["exact"] for run in runs) for way in ("into", "from")]
        sound = mean(way["chrf"] for run in runs for way in run["final"].values())
        cells = (mean(run["ACC"] for run in runs), mean(mean(run["in_context"]) for run in runs),
                 *ways, sound, mean(run["old_after"] for run in runs))
        seeds = ", ".join(str(run["seed"]) for run in runs)
        rows.append(f"| {life} | {nights} | {seeds} | {' | '.join(f'{x:.2f}' for x in cells)} |")
    return rows


def skill_gaps(file, nights):
    """{(life, the one it is compared with): (differences in ACC paired by seed, p after Holm)} of
    the lives of so many nights on fresh seeds: each against the whole night, and "gate+sft (few
    exercises)" against "few exercises", the whole night of that regime, and against gate+sft."""
    lives = grouped([r for r in file["runs"] if len(r["R"]) == nights and r["seed"] != 1], "life")

    def others(name):
        part, _, regime = name.rstrip(")").partition(" (")
        return [regime, part] if regime else ["sleep"]
    pairs = [(name, other) for name in lives for other in others(name)
             if other in lives and other != name]
    gaps = stats.corrected([minus(lives[name], lives[other], "ACC") for name, other in pairs])
    return dict(zip(pairs, gaps))


def skill_table(file, nights):
    """The lines of `skill_gaps`."""
    return table([f"{nights} nights", "compared with", "ACC minus that", "p, Holm", "this life is"],
                 [[*pair, *told(gap)] for pair, gap in skill_gaps(file, nights).items()])


def skills_tried(file):
    """Every life of the search of bench/skills.py: a line each."""
    rows = [[run["life"], run["seed"], len(run["R"]), short(f"{run['ACC']:.3f}"),
             *(short(f"{x:.2f}") for x in (mean(run["in_context"]),
                                           *(way["exact"] for way in run["final"].values()),
                                           run["old_after"]))] for run in file["runs"]]
    return table(["life", "seed", "nights", "ACC", "read", "into", "from", "old"], rows)


def out_of(file):
    """How often the self asked itself, night after night, for a sentence out of the language, of
    the dreams that its notes hold: a line a life and seed, the longest lives of usual exercises."""
    many = max(len(run["R"]) for run in file["runs"])
    runs = [run for run in file["runs"] if len(run["R"]) == many and run["life"] != "sft"
            and "exercises" not in run["life"] and "asked" in run["nights"][0]]
    lines = [[run["life"], run["seed"], *(f"{n['asked']['from']['sentence']} of "
                                          f"{sum(sum(x.values()) for x in n['asked'].values())}"
                                          for n in run["nights"])]
             for run in sorted(runs, key=lambda run: (run["life"], run["seed"]))]
    return table(["life", "seed", *(f"night {i + 1}" for i in range(many))], lines)


def span_of(runs, key):
    values = [r[key] for r in runs]
    digits = 3 if max(map(abs, values)) < 2 else 0
    least, most, m = (f"{x:.{digits}f}" for x in (min(values), max(values), mean(values)))
    return m if len(values) < 2 else f"{m} ({least} to {most})"


def judged(row):
    """An ablation in words: what its ingredient does, or what these seeds could have seen."""
    m, words = mean(row["differences"]), ("worse", "better")
    if not row.get("tested", True):
        return "no test: all are rewarded alike"
    if row["life"].startswith("no "):                                # a word about the ingredient
        words = ("helps", "hurts")
    if row["effect"]:
        return short(f"**{words[m > 0]}: {abs(m):.3f}**")
    if row["effect"] is None:
        return "not certain"
    could = stats.detectable(row["differences"])
    return short(f"no effect seen ({could:.3f} would show)")


def ablations(file):
    found = stats.by_life(file)
    head = ["regime", "life", "nights", "ACC", "minus the same with it", "p, Holm", "verdict",
            "old people", "next morning, reversed questions among them"]
    rows, regime = [], None
    for row in stats.compared(file):
        whole, n = row["against"], row["nights"]
        if row["regime"] != regime:                                # first, the life they lack it in
            regime = row["regime"]
            rows.append([regime, f"**{whole}**", n, last_acc(found, whole, n), "", "", "",
                         last_acc(found, whole, n, "old"),
                         last_acc(found, whole, n, "recall_both")])
        rows.append([regime, row["life"], n, last_acc(found, row["name"], n),
                     paired(row["differences"]), chance(row["p"]), judged(row),
                     last_acc(found, row["name"], n, "old"),
                     last_acc(found, row["name"], n, "recall_both")])
    if all(row[-1] == DASH for row in rows):                       # of an older bench
        return table(head[:-1], [row[:-1] for row in rows])
    return table(head, rows)


MARGIN = 0.03                           # of ACC, said before the plain rival had lived


def plain_rival(file):
    """The whole night against expert, gate and labels alone, by kind of question."""
    found = stats.by_life(file)
    ours, rival = found["sleep"], found["gate+sft"]
    seeds = sorted(set(ours) & set(rival))
    head = ["after the last night", "sleep", "gate+sft", "gate+sft minus sleep", "questions a life"]
    rows = []
    for key in ("ACC", "recall", "BWT"):
        a, b = ([life[s][key] for s in seeds] for life in (ours, rival))
        rows.append([key, number(a), number(b), paired([y - x for x, y in zip(a, b)]), ""])
    a, b = ([stats.both(life[s]) for s in seeds] for life in (ours, rival))
    rows.append(["ACC over forward and reversed", number(a), number(b),
                 paired([y - x for x, y in zip(a, b)]), ""])
    for kind in sorted(ours[seeds[0]]["kinds"]):
        a, b = ([life[s]["kinds"][kind]["end"] for s in seeds] for life in (ours, rival))
        asked = round(mean(ours[s]["kinds"][kind]["n"] for s in seeds))
        rows.append([kind.replace("_", " "), number(a), number(b),
                     paired([y - x for x, y in zip(a, b)]), asked])
    a, b = ([life[s]["seconds"]["night"] / len(life[s]["R"]) for s in seeds]
            for life in (ours, rival))
    rows.append(["seconds a night", number(a, 0), number(b, 0), "", ""])
    same = stats.equivalent([rival[s]["ACC"] - ours[s]["ACC"] for s in seeds], MARGIN)
    return table(head, rows), same


def fought(file):
    """Rivals with the same arms: each by itself, minus gate+sft and minus the whole night.

    p: of all these differences, corrected together. No effect seen: beside it, what would show.
    """
    found = stats.by_life(file)
    names = ["sleep", "gate+sft", *(n for n in found if group_of(found, n) == "rivals")]
    pairs = [(n, other) for n in names for other in ("gate+sft", "sleep")
             if names.index(n) > names.index(other) and n != other]
    gaps = {pair: stats.differences(found, *pair[:1], other=pair[1]) for pair in pairs}
    gaps = {pair: d for pair, d in gaps.items() if len(d) > 1}
    holm = dict(zip(gaps, stats.corrected(list(gaps.values()))))
    head = ["night", "rate", "ACC", "BWT", "with reversed", "seconds a night",
            "minus gate+sft", "p, Holm", "verdict", "minus sleep", "p, Holm", "verdict"]
    return table(head, [[n, *alone(found[n], stats.nights_of(found, n)),
                         *(cell for other in ("gate+sft", "sleep")
                           for cell in told(holm.get((n, other))))] for n in names if n in found])


def group_of(found, life):
    return next(iter(found[life].values())).get("group")


def alone(seeds, n):
    """The first cells of a rival's row: rate, ACC, BWT, ACC with reversed questions, seconds."""
    runs = list(seeds.values())
    cut = [stats.after(run, n) for run in runs]
    rates = sorted({run["rate"] for run in runs if run.get("rate")})
    spent = [run["seconds"]["night"] / len(run["R"]) for run in runs]
    return [short(", ".join(map(str, rates))), number([c["ACC"] for c in cut]),
            number([c["BWT"] for c in cut]), number([stats.both(run) for run in runs]),
            number(spent, 0)]


def told(gap):
    """Three cells of a difference (differences, p): interval, p, what is to be thought of it."""
    if gap is None:
        return "", "", ""
    d, p = gap
    found = stats.effect(d, p)
    words = (f"**{'better' if found > 0 else 'worse'}**" if found else "not certain"
             if found is None else f"no effect seen ({stats.detectable(d):.3f} would show)")
    return paired(d), chance(p), short(words)


def searched(file):
    """Every try of a rate: mean ACC over the validation seeds, and what was taken."""
    rows = []
    for life in dict.fromkeys(r["life"] for r in file["search"]):
        mine = [r for r in file["search"] if r["life"] == life]
        taken = {r.get("rate") for r in file["runs"] if r["life"] == life}
        for rate in sorted({r["rate"] for r in mine}):
            tries = [r for r in mine if r["rate"] == rate]
            rows.append([life, short(f"{rate:g}"), tries[0]["nights"],
                         *(number([r[k] for r in tries]) for k in ("ACC", "recall", "old")),
                         "taken" if rate in taken else ""])
    return table(["night", "rate", "nights", "ACC", "recall", "old", ""], rows)


def rewarded(file):
    """The reward of every life with on-policy steps, and how it differs among the rollouts of one
    prompt, which is all that can be learnt from."""
    found, rows = stats.by_life(file), []
    for name, seeds in found.items():
        runs = list(seeds.values())
        if stats.spread(runs) is not None:
            rewards = [night["reward"] for run in runs for night in run["nights"]
                       if "reward" in night]
            rows.append([name, number([mean(rewards)]), number([stats.spread(runs)])])
    return table(["life", "reward", "spread"], rows)


def last_acc(found, name, n, key="ACC"):
    return number([stats.after(run, n)[key] for run in found[name].values()])


def beaten(file, key):
    """{rival: (sleep - rival in `key`, a number a seed; p after Holm over all rivals)}"""
    lives = grouped(file["runs"], "method")
    gaps = {name: minus(lives["sleep"], seeds, key) for name, seeds in lives.items()
            if name != "sleep" and len(seeds) > 1}
    return dict(zip(gaps, stats.corrected(list(gaps.values()))))


def fair_fight(file):
    """Sleep against the other ways to spend the night (knowledge.json)."""
    lives = grouped(file["runs"], "method")
    head = ["method", "may see", "n = 1", "recall", "ACC", "BWT", "old", "reading", "reversed",
            "CPU s a night", "`sleep` minus this, ACC", "p, Holm"]
    rows, gaps = [], beaten(file, "ACC")
    for name, seeds in lives.items():
        runs = list(seeds.values())
        single = [mean(s["recall"] for s in r["single"]) for r in runs if "single" in r]
        cpu = [mean(night["cpu"] for night in r["nights"]) for r in runs]
        cells = {key: number([r[key] for r in runs], 3 if key == "ACC" else 2)
                 for key in ("recall", "ACC", "BWT", "old", "reading", "reversed")}
        rows.append([f"**{name}**" if name == "sleep" else name, runs[0]["sees"],
                     number(single, 2), *cells.values(), number(cpu, 1), *versus(gaps, name)])
    return table(head, rows)


def versus(gaps, name):
    """The last two cells of a rival's row."""
    if name not in gaps:
        return "", ""
    differences, p = gaps[name]
    return paired(differences), chance(p)


def classes(file, counting=None):
    """Class-incremental learning (classes-*.json), and what needs no network. counting: the same
    set in counting.json, whose rivals are rows of this table, too."""
    file = {**file, "runs": file["runs"] + (counting or {"runs": []})["runs"]}
    lives, seeds = grouped(file["runs"], "method"), {r["seed"] for r in file["runs"]}
    head = ["method", "keeps", "all classes at the end", "mean over nights", "the base's classes",
            "forgetting", "CPU s a night", "`sleep` minus this, at the end", "p, Holm"]
    rows, gaps = [], beaten(file, "final")
    for name, mine in lives.items():
        runs = list(mine.values())
        few = f" (seed {runs[0]['seed']})" if len(runs) == 1 else f" ({len(runs)} seeds)"
        cells = [number([r.get(key) for r in runs])
                 for key in ("final", "average_incremental", "base_kept", "forgetting")]
        rows.append([("**sleep**" if name == "sleep" else name) + few * (len(runs) < len(seeds)),
                     runs[0]["keeps"], *cells, number([r["cpu_a_night"] for r in runs], 0),
                     *versus(gaps, name)])
    for name in dict.fromkeys(k for r in file["references"] for k in r if k != "seed"):
        found = [r[name] for r in file["references"] if name in r]
        rows.append([name, "all text at once, no network", number(found)] + [""] * 6)
    return table(head, rows)


# --------------------------------------------------------------------------------------------------
# Speed and faults

GOALS = {  # (row of speed.py, competitor): least (theirs / ours), agreed on before it was measured
    ("train", "plain PyTorch"): 1.0, ("train", "transformers"): 1.5,
    ("sample", "transformers"): 4.0, ("distil", "trl GKDTrainer"): 3.0,
    ("kl", "all logits"): 1 / 1.3, ("levenshtein", "Python"): 100.0,
    ("delta", "token loop"): 8.0, ("delta", "fla, naive, no gate"): 1.0,
    ("ewc", "avalanche EWCPlugin, batch 32"): 1.0, ("ewc", "avalanche EWCPlugin, batch 1"): 1.0,
    ("life", "an older copy"): 1.0}
FLAT = 1.15                     # "night": the time of night 100 over that of night 2, at most


def speed(file):
    """speed.json: a row a competitor; how often our time fits into theirs, and the goal."""
    rows = []
    for key, part in file.items():
        name, device = key.split()
        for line in part["lines"]:
            ours, *others = line["seconds"]
            for other in others:
                times = line["times_ours"][other]
                words = f"{times:.2f}" if times < 20 else f"{times:.0f}"
                rows.append([line["what"], device, thousandths(line["seconds"][ours]), other,
                             words, goal(name, other, times), f"`{part['commit']}`"])
    head = ["what", "on", "ours", "against", "their time / ours", "goal", "commit"]
    return table(head, [[short(cell) if i in (4, 5) else cell for i, cell in enumerate(row)]
                        for row in rows])


def thousandths(seconds):
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def goal(name, other, times):
    if name == "night" and other == "night 100":
        return f"≤ {FLAT} " + ("met" if times <= FLAT else "missed")
    least = GOALS.get((name, other))
    if least is None:
        return ""
    return f"≥ {least:.3g} " + ("met" if times >= least else "missed")


def plan(file):
    """plan.json: a row a model and card."""
    rows = []
    for name, row in file["rows"].items():
        for what in ("learning to read", "a night"):
            part = row[what]
            largest = max((k for k in part if k not in ("minutes", "GB", "fits")), key=part.get)
            rows.append([name, what, f"{part['minutes']:.1f}", f"{part['GB']:.1f}",
                         "yes" if part["fits"] else "no", f"{largest}: {part[largest]:.1f}"])
    return table(["model, card", "what", "minutes", "GB", "fits", "most of it, GB"], rows)


def families(file):
    """families.json: a row a family."""
    columns = ["largest logit", "float32", "float32, cached", "bfloat16, ours",
               "bfloat16, ours, cached", "bfloat16, transformers"]
    return table(["family", *columns, "after unlock"],
                 [[kind, *(f"{row[c]:.2g}" for c in columns),
                   "same bits" if row["unlock, same bits"] else "other bits"]
                  for kind, row in file["rows"].items()])


def squad_world(file):
    """squad_world.json: a row a method, a column each way of reading the passages."""
    ways = list(file["runs"])
    methods = list(dict.fromkeys(m for way in ways for m in file["runs"][way]))

    def share(units):
        asked = [row["em"] for unit in units for row in unit["asked"]]
        return f"{sum(asked) / len(asked):.2f} of {len(asked)}"
    return table(["", *(f"n = {way}" for way in ways)],
                 [[m, *(share(file["runs"][way][m]) for way in ways)] for m in methods])


def arches(files):
    """arch-*.json: a row an architecture, of its default lives."""
    keys = {"old_before": "old, before", "reading_before": "reading, before", "recall": "morning",
            "ACC": "ACC", "BWT": "BWT", "old_after": "old, after", "reading_after": "reading, after"}
    rows = [[name, str(len(file["runs"])), *(span(file["runs"], key) for key in keys)]
            for name, file in files.items()]
    return table(["architecture", "seeds", *keys.values()], rows)


def faults(file):
    kinds = {}
    for r in file["rows"]:                                           # all kills are one row
        kill = r["fault"].startswith("kill")
        name = "kill -9 in the middle of anything" if kill else r["fault"]
        kinds.setdefault((name, r["outcome"]), []).append(r["survived"])
    return table(["fault", "what happened", "survived"],
                 [[*key, f"{sum(survived)} of {len(survived)}"] for key, survived in kinds.items()])


# --------------------------------------------------------------------------------------------------
# The neighbour recurrence.py: {"task", "variant", "n_passes", "seed", "curve", "accuracy": {N: []}}

LOOPS = {"state": "no hidden loop", "reset": "S reset before the last pass",
         "transformer": "transformer, no S"}


def at_equal_steps(runs):
    """{(N, seed): accuracy} at the last point that the curves of all hybrid runs of a seed have."""
    found = {}
    for seed in {r["seed"] for r in runs}:
        mine = [r for r in runs if r["seed"] == seed and r["curve"]]
        step = min((r["curve"][-1]["step"] for r in mine), default=0)
        for r in mine:
            points = {p["step"]: p["accuracy"] for p in r["curve"]}
            found[r["n_passes"], seed] = points[step]
    return found


def recurrence_lines(runs, task):
    """{label: [accuracies of a seed]}: equal CPU, equal steps, parts of the loop, other N."""
    mine = [r for r in runs if r["task"] == task]
    hybrid = sorted((r for r in mine if r["variant"] == "hybrid"), key=lambda r: r["n_passes"])
    lines = {}
    for r in hybrid:
        own = r["accuracy"][str(r["n_passes"])]
        lines.setdefault(f"N={r['n_passes']}, equal CPU", []).append(own)
    for (n, _), accuracy in sorted(at_equal_steps(hybrid).items()):
        lines.setdefault(f"N={n}, equal steps", []).append(accuracy)
    for r in mine:
        if r["variant"] in LOOPS:
            label = f"N={r['n_passes']}, {LOOPS[r['variant']]}"
            label = LOOPS["transformer"] if r["variant"] == "transformer" else label
            lines.setdefault(label, []).append(r["accuracy"][str(r["n_passes"])])
    for r in hybrid:
        for n in r["accuracy"]:
            if int(n) != r["n_passes"]:
                label = f"N={r['n_passes']}, tested with N={n}"
                lines.setdefault(label, []).append(r["accuracy"][n])
    return lines


def recurrence(file, task, deep="k"):
    """Accuracy at each depth, a row a run (other N at test time: of the largest N only)."""
    most = max(r["n_passes"] for r in file["runs"])
    lines = {label: seeds for label, seeds in recurrence_lines(file["runs"], task).items()
             if "tested with" not in label or label.startswith(f"N={most},")}
    depths = range(1, len(next(iter(lines.values()))[0]) + 1)
    rows = [[label, *(number(x, 2) for x in zip(*seeds))] for label, seeds in lines.items()]
    guess = [short(f"{x:.2f}") for x in file["guess"][task]]
    return table(["run", *(f"{deep} = {k}" for k in depths)],
                 rows + [["the best constant answer", *guess]])


def steps(file, task):
    """"N=1: 1587 steps in 36.1 CPU s (68,676 parameters)", a text a hybrid run."""
    said = []
    for n in sorted({r["n_passes"] for r in file["runs"] if r["task"] == task}):
        mine = [r for r in file["runs"]
                if (r["task"], r["n_passes"], r["variant"]) == (task, n, "hybrid")]
        if mine:
            said.append(f"N={n}: {mean(r['steps'] for r in mine):.0f} steps in "
                        f"{mean(r['cpu_seconds'] for r in mine):.0f} CPU s")
    return said


# --------------------------------------------------------------------------------------------------
# The neighbour absorber.py: {"task", "seed", "result": {method: {measure: number}}}

NAMES = {
    "full": "full context", "truncation": "truncation",
    "hidden": "hidden states, all layers (Absorber)", "last layer": "hidden states, last layer",
    "logits": "token distributions (KL)", "labels": "cross-entropy on Y's labels",
    "ttt": "TTT on X", "ttt items": "TTT on X, item by item",
    "hidden, highest rate": "hidden states, the highest rate for all",
    "hidden, Y pair by pair": "hidden states, Y pair by pair (ours)",
    "hidden, pair by pair, the model writes 4x Y":
        "the same, the model writes 4 times as much Y (ours)"}


def absorbed(file, task):
    """The results of a task, one for each seed."""
    return [r["result"] for r in file["runs"] if r["task"] == task]


def measured(rows, columns, first="", digits=2):
    """rows: {name: [a dict a seed]}; columns: {key: title}; a dash where no seed has a number."""
    lines = [[NAMES.get(name, name), *(number([s.get(key) for s in seeds], digits)
                                       for key in columns)] for name, seeds in rows.items()]
    return table([first, *columns.values()], lines)


def by_method(found):
    return {k: [r[k] for r in found] for k in found[0] if isinstance(found[0][k], dict)}


def absorber_map(file):
    rows = by_method(absorbed(file, "map"))
    rows.pop("hidden, highest rate", None)
    return measured(rows, {"all": "all classes", "covered": "in Y", "uncovered": "not in Y",
                           "window_uncovered": "not in Y, Y still in context",
                           "new_map": "another map in context", "taken": "steps"})


def absorber_sizes(file):
    found = absorbed(file, "map")
    sizes = sorted({r["m"] for r in found[0]["n_m"]})
    rows = {f"n = {n}": [{r["m"]: r["all"] for r in seed["n_m"] if r["n"] == n} for seed in found]
            for n in sorted({r["n"] for r in found[0]["n_m"]})}
    return measured(rows, {m: f"m = {m}" for m in sizes})


def absorber_stream(file):
    return measured(by_method(absorbed(file, "stream")), {
        "gone": "gone, was in a Y", "never in Y": "gone, never in a Y",
        "in the window": "in the window"})


def absorber_world(file):
    return measured(by_method(absorbed(file, "world")), {
        "recall": "recall", "reading": "reading another passage", "old": "old", "taken": "steps"})


def absorber_latency(file):
    rows = {}
    for seeds in zip(*(r["rows"] for r in absorbed(file, "latency"))):
        rows[f"{seeds[0]['n']:,}"] = [{**r, "cache": r["full_bytes"] / 2 ** 10,
                                       "kept": r["absorbed_bytes"] / 2 ** 10} for r in seeds]
    head = {"full_ms": "in context, ms a token", "absorbed_ms": "absorbed, ms a token",
            "cache": "cache in context, KiB", "kept": "cache absorbed, KiB",
            "absorb_seconds": "seconds to absorb"}
    return measured(rows, head, "tokens n", 1)


def absorber_lives(file, others):
    """{name: [life]}: absorb from absorber.json, the lives beside it from ablations.json."""
    found, lives = stats.by_life(others), {"absorb": absorbed(file, "life")}
    lives.update({name: list(found.get(name, {}).values()) for name in ("none", "sft", "sleep")})
    return {name: runs for name, runs in lives.items() if runs}


def absorber_life(file, others):
    rows = {name: [stats.after(r, len(r["R"])) for r in runs]
            for name, runs in absorber_lives(file, others).items()}
    return measured(rows, {"recall": "recall next morning", "ACC": "ACC", "BWT": "BWT",
                           "old": "old", "reading": "reading"}, "life", 3)


# --------------------------------------------------------------------------------------------------
# The labs

def labs(file):
    """labs.json: what each solution reaches, and how long it takes."""
    return table(["lab", "file", "number", "goal", "seconds"],
                 [[f"{run['lab']}. {run['title']}", f"`{run['file']}`", f"{run['number']:.3g}",
                   run["goal"], f"{run['seconds']:.1f}"] for run in file["runs"]])


# --------------------------------------------------------------------------------------------------
# A year

def moved_week(moves, week):
    """moves.json beside week.json: the same seeds and bases, with and without the move."""
    ours, alone = ({r["seed"]: r for r in file["runs"]} for file in (moves, week))
    seeds = [seed for seed in ours if seed in alone]
    shares = {"ACC": "ACC", "BWT": "BWT", "old_after": "old", "reading_after": "reading"}
    rows = [[name, [alone[s][key] for s in seeds], [ours[s][key] for s in seeds]]
            for key, name in shares.items()]
    rows += [[kind.replace("_", " "), *([lives[s]["kinds"][kind]["end"] for s in seeds]
                                        for lives in (alone, ours))]
             for kind in ("reversed", "typed", "described", "not_told")]
    grown = [mean(lives[s]["params_after"] - lives[s]["params_before"] for s in seeds)
             for lives in (alone, ours)]
    spent = [mean(lives[s]["seconds"]["night"] for s in seeds) for lives in (alone, ours)]
    lines = [[name, number(a), number(b), paired([y - x for x, y in zip(a, b)])]
             for name, a, b in rows]
    return table(["", "nights alone", "with the move", "paired"],
                 [*lines, ["parameters added", *(f"{n:,.0f}" for n in grown), ""],
                  ["seconds of all nights", *(f"{n:,.0f}" for n in spent), ""]])


SIZE = ("bits_a_parameter", "steps", "wordings")      # what sizes.py tries
AGES = {"yesterday": (1, 1), "a week": (2, 7), "a month": (8, 31), "a quarter": (32, 91),
        "half a year": (92, 183), "longer": (184, 10 ** 9)}         # nights since


def year(file):
    """Lives of year.py: what is left of them, by age, by level; what a move costs."""
    runs = sorted(file["runs"], key=lambda r: (-r["days"], r["levels"], r["seed"]))
    lines = table(["days", "seed", "levels", "directions", "facts", "ACC", "BWT", "old", "reading",
                   "never met", "undone", "parameters added", "bits a parameter", "code"],
                  [[r["days"], r["seed"], r["levels"], r.get("directions") or "all", r["facts"],
                    f"{r['ACC']:.3f}",
                    f"{r['BWT']:+.3f}", f"{r['old_after']:.3f}", f"{r['reading_after']:.3f}",
                    strangers(r), r["undone"], f"{added(r):,}", f"{r['bits'] / added(r):.3f}",
                    of_code(r)] for r in runs])
    lines += [""] + table(["days", "seed", *AGES],
                          [[r["days"], r["seed"], *by_age(r).values()] for r in runs])
    lines += [""] + table(["days", "seed", "level", "days that live there", "recall at the end",
                           "experts", "parameters"], [line for r in runs for line in by_level(r)])
    lines += [""] + table(["days", "seed", "second nights", "last nights", "a move, a night of it",
                           "an answer then", "an answer now"], [pace(r) for r in runs])
    lines += [f"\nKilled in the middle of night {r['killed']['night']} and gone on with (seed "
              f"{r['seed']}): {'the same bits' if r['killed']['same_bits'] else '**other bits**'}."
              for r in runs if "killed" in r]
    same = ("seed", "people", "period", "levels", "directions")
    longest = {tuple(r.get(k) for k in same): r for r in reversed(runs)}.values()
    lines += [""] + table(["directions", "from level", "moves", "undone", "before",
                           "after, same days"],
                          costs(list(longest)))          # a longer life holds the shorter
    return lines + [""] + table(["seed", "a slow level moves in night", "old, the morning before",
                                 "the morning after"],
                                [line for r in longest for line in born_with(r)])


def sizes(file):
    """Moves of sizes.py: the same memories in experts of fewer parameters, learnt in fewer steps."""
    tried = {}
    for r in file["runs"]:
        tried.setdefault(tuple(r[k] for k in SIZE), []).append(r)
    before = {r["seed"]: r for r in tried.pop((None, None, None))}
    lines = [["before", "", "", "", "", "", *known_of(before.values()), "", ""]]
    for size, runs in sorted(tried.items()):
        made = [r for r in runs if "undone" not in r]
        gaps = [r["recall"] - before[r["seed"]]["recall"] for r in made]
        cost = [f"{mean(r[k] for r in made):.0f}" if made else "-" for k in ("rank", "seconds")]
        lines.append([*size, f"{len(made)} of {len(runs)}", *cost, *known_of(made),
                      f"{min(gaps):+.3f}" if gaps else "-",
                      stats.gap(gaps) if len(gaps) > 1 else "-"])
    return table(["bits a parameter", "steps a fact", "wordings a thing", "made", "rank", "seconds",
                  "recall", "reversed", "old", "never met", "worst seed", "minus before"], lines)


def known_of(runs):
    return [f"{mean(there([r[k] for r in runs])):.3f}" if runs else "-"
            for k in ("recall", "reversed", "old", "never_met")]


def strangers(run):
    """How many of the questions about people never met get "I do not know", in the end and, where
    the file has it, in the middle of the life."""
    end, nights = f"{run['never_met_after']:.3f}", run.get("never_met", ())
    half = nights[len(nights) // 2] if len(nights) else None
    return end if half is None else f"{end} ({half:.3f} in the middle)"


def of_code(run):
    """The code that lived each stretch of a life."""
    parts = [f"{code} from night {night}" for night, code in run.get("commits", ())]
    return parts[0].split()[0] if len(parts) == 1 else ", ".join(parts) or run.get("commit", "-")


def added(run):
    """Parameters of all experts and of the gate."""
    last = run["times"][-1]
    return max(1, sum(n for _, n in last["experts"]) + last["gate"])


def moved(run):
    """How many moves from level to level were made, and not undone."""
    return sum("undone" not in move for _, move in run["moves"])


def by_age(run):
    """{age: recall} of what is so old on the last morning."""
    days, last = run["days"], list(run["R"].values())[-1]
    ages = {name: there([last[j] for j in range(days) if least <= days - j <= most])
            for name, (least, most) in AGES.items()}
    return {name: f"{mean(found):.3f}" if found else "-" for name, found in ages.items()}


def there(shares):
    return [share for share in shares if share is not None]


def by_level(run):
    last, held = list(run["R"].values())[-1], run["times"][-1]["experts"]
    for k, (experts, parameters) in enumerate(held, 1):
        mine = there([last[j] for j, level in enumerate(run["lives_in"]) if level == k])
        yield [run["days"], run["seed"], k, run["lives_in"].count(k),
               f"{mean(mine):.3f}" if mine else "-", experts, f"{parameters:,}"]


def levels_of(days, moves):
    """The level in which each day's memories live in the end, counted from 1; [(night, log)]."""
    where = [1] * days
    for number, move in moves:
        if "undone" not in move:
            where = [k + 1 if d < number and k == move["level"] else k
                     for d, k in enumerate(where)]                  # model.FAST is 1
    return where


def pace(run):
    """Seconds of a night without its moves, in the beginning and in the end; of moves, a night."""
    alone = [t["seconds"] - sum(t["moves"]) for t in run["times"]]
    answers, few = [t["answer_ms"] or 0 for t in run["times"]], max(1, len(alone) // 10)
    return [run["days"], run["seed"], f"{median(alone[1:1 + few]):.1f} s",
            f"{median(alone[-few:]):.1f} s",
            f"{sum(sum(t['moves']) for t in run['times']) / len(alone):.1f} s",
            f"{median(answers[:few]):.0f} ms", f"{median(answers[-few:]):.0f} ms"]


def costs(runs):
    """A line a gate and a level: its moves, and recall of the same days before and after them
    (paired)."""
    moves = {}
    for r in runs:
        for night, m in r["moves"]:
            key = r.get("directions") or "all", m["level"]
            moves.setdefault(key, []).append((r, night, m))
    for (directions, level), mine in sorted(moves.items(), key=str):
        pairs = [pair for r, n, m in mine if "undone" not in m for pair in moved_days(r, n, level)]
        before, gaps = [b for b, _ in pairs], [a - b for b, a in pairs]
        yield [directions, level, len(mine), sum("undone" in m for _, _, m in mine),
               f"{mean(before):.3f}" if before else "-",
               paired(gaps) if len(gaps) > 1 else "-"]


def born_with(run):
    """A line for each night in which a slow level moves: what was known before the first day."""
    nights = sorted({n for n, m in run["moves"] if m["level"] > 1}) if "old" in run else ()
    return [[run["seed"], n, *(f"{run['old'][at]:.3f}" for at in (n - 2, n - 1))] for n in nights]


def moved_days(run, night, level):
    """[(before, after)] of the days that moved in a night, where all were asked on both mornings."""
    first = night - run["period"] ** level + 1                      # the days of that period
    R = run["R"]
    if str(night) not in R or str(night - 1) not in R:
        return []
    pairs = [(R[str(night - 1)][j], R[str(night)][j]) for j in range(max(0, first - 1), night - 1)]
    return [(b, a) for b, a in pairs if b is not None and a is not None]


def over(runs, k):
    """Mean, least and greatest of what runs have under k."""
    each = [r[k] for r in runs]
    return f"{mean(each):.2f} ({min(each):.2f} to {max(each):.2f})"


def haystacks(file):
    """Haystacks of haystack.py: a line for each length and each chain of levels, over seeds. bits:
    what a parameter of a slower expert is to hold; it was .2 before it was written down."""
    rows, names = {}, ("levels", "period", "room", "window", "needles", "tokens", "bits")
    for r in file["runs"]:
        rows.setdefault(tuple(({"bits": 0.2} | r)[k] for k in names), []).append(r)
    return table([*names[:-1], "bits a parameter", "seeds", "sleep", "window alone", "told", "old",
                  "needles kept as news",
                  "hay kept", "nights"],
                 [[*key[:2], key[2] or "any", *key[3:], len(runs),
                   *(over(runs, k) for k in ("sleep", "window_alone", "told", "old")),
                   f"{mean(r['needles_kept'] for r in runs) / key[4]:.2f}",
                   f"{sum(r['hay_kept'] for r in runs) / sum(r['lines'] for r in runs):.1%}",
                   f"{mean(r['nights'] for r in runs):.1f}"]
                  for key, runs in sorted(rows.items())])


def babilong(file):
    """Stories of babilong.py: a line for each task and each length, over seeds."""
    rows, names = {}, ("task", "tokens", "longest", "window")
    for r in file["runs"]:
        rows.setdefault(tuple(r[k] for k in names), []).append(r)
    return table(["task", "tokens", "sentences at most", "window", "seeds", "stories", "sleep",
                  "window alone", "told", "guess", "story kept as news", "hay kept", "nights"],
                 [[*key, len(runs), sum(r["stories"] for r in runs),
                   *(over(runs, k) for k in ("sleep", "window_alone", "told", "guess")),
                   f"{mean(r['story_kept'] for r in runs):.2f}",
                   f"{mean(r['hay_kept'] for r in runs):.1%}",
                   f"{mean(r['nights'] for r in runs):.1f}"]
                  for key, runs in sorted(rows.items())])
