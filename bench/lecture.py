"""
What bench/LECTURE.md may not say by heart: where each equation stands in the code, and what was
measured. `python bench/report.py` writes both between the marks of that page, `--check` compares.

Nothing is measured here and no chapter is imported: lines are found by parsing the sources.
"""
import ast
import os
import re
import textwrap

from bench import stats, tables
from bench.tables import number, paired, table

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PAGE = os.path.join(ROOT, "bench", "LECTURE.md")
MARK = re.compile(r"<!-- (\w+) -->\n.*?<!-- end -->", re.S)
YEAR = 365                          # nights

MAP = [  # step of the lecture, equation, its source, file: function, the line that computes it
    (2, "level(x) = MLP(x) + B φ(A x)", "[S] Eq. 1-2", "model.py: Level.forward",
     "y = y + grouped_experts("),
    (2, "h ← h + level(h)", "[S] Eq. 1-2", "model.py: Level.forward", "return h + y"),
    (2, "B = 0: nothing changes", "[S] 3.2", "model.py: GPT.unlock", "level_.B_live ="),
    (3, "T: the self with its day in context", "[S] 3.3", "seed.py: hold", "cache, _ = prefill("),
    (3, "D(T‖S) = Σ T (log T − log S)", "GKD, section 2", "seed.py: divergence",
     "return (p.exp() * (p - q)).sum(-1)"),
    (3, "JSD = β D(T‖M) + (1−β) D(S‖M)", "GKD, section 2", "seed.py: divergence",
     "return BETA * kl(teacher, mixed)"),
    (3, "L = (1−λ) E_D D(T‖S) + ...", "GKD, Eq. 1", "seed.py: distil", "loss = off_policy_loss("),
    (3, "... + λ E_{y~S} D(T‖S)", "GKD, Eq. 1", "seed.py: distil", "loss, now = on_policy_loss("),
    (4, "keep q if log p(q given day) − log p(q) > 1 nat", "ours", "data/asking.py: screen",
     "z = take(z._replace(begin=begin,"),
    (4, "the day's word, else memory's", "ours", "data/asking.py: look_up", "if y == unknown:"),
    (5, "W S Wᵀ = 1", "ours", "data/gate.py: whitening", "return torch.linalg.inv("),
    (5, "wake if ‖W x − m‖² < reach", "ours", "data/gate.py: last_within", "fires = (gap < reach)"),
    (5, "reach = min(√(p n), 4 p, 0.9 n)", "ours", "data/gate.py: reach",
     "return torch.stack([(p * n).sqrt()"),
    (6, "r = γ r_sem + (1−γ) r_abs", "[S] 3.3", "seed.py: rewards", "return GAMMA * r_sem"),
    (6, "A_i = r_i − mean of the others", "Kool et al. 2019", "seed.py: leave_one_out",
     "others = ("),
    (6, "∇ E[r] = E[A ∇ log p(y)]", "REINFORCE", "seed.py: policy_loss", "return -(advantage"),
    (6, "w(i) = ‖∇ L(dream i)‖", "[S] 3.4", "dream.py: importance", "return grads.norm(dim=1)"),
    (6, "w(i) = cos(∇ L(dream i), ∇ L(quiz))", "ours", "dream.py: importance",
     "return F.cosine_similarity("),
    (6, "reward 1 if the copy does better", "[S] Eq. 5", "dream.py: learn_to_dream",
     "reward = (gain >"),
    (7, "BWT = 1/(T−1) Σ R[T−1][j] − R[j][j]", "GEM, section 3", "data/exam.py: metrics",
     '"BWT": sum('),
    (7, "undone if more than a quarter of the old has changed", "ours", "data/asking.py: look_back",
     "if moved > MOVED:"),
    (8, "distil the experts of a level into one of the next, then reset", "[S] 2.2, 3.3",
     "seed.py: consolidate", "model.reset(level)"),
]


# --------------------------------------------------------------------------------------------------
# Equation <-> function <-> line

def line_of(place, code):
    """The number of the one line of a function ("file.py: Class.name") that holds this code.

    Raises ValueError where there is no such function, or not exactly one such line.
    """
    path, _, name = place.partition(": ")
    with open(os.path.join(ROOT, path), encoding="utf-8") as f:
        source = f.read()
    node = ast.parse(source)
    for part in name.split("."):
        node = next((n for n in node.body if getattr(n, "name", None) == part), None)
        if node is None:
            raise ValueError(f"bench/lecture.py: {path} has no {name}")
    lines = source.splitlines()
    found = [i for i in range(node.lineno, node.end_lineno + 1) if code in lines[i - 1]]
    if len(found) != 1:
        raise ValueError(f"bench/lecture.py: {len(found)} lines of {place} hold {code!r}, not one")
    return found[0]


def the_map():
    """The table of MAP, each line as a link to where it stands now."""
    rows = []
    for step, equation, source, place, code in MAP:
        path, _, name = place.partition(": ")
        line = line_of(place, code)
        rows.append([step, equation, source, f"`{name}`", f"[{path}:{line}](../{path}#L{line})"])
    return "\n".join(table(["step", "equation", "from", "function", "line"], rows))


# --------------------------------------------------------------------------------------------------
# What was measured: a paragraph a step, each number from a file of bench/results

def of(name, file):
    return f"[`{name}`](results/{name}), {seeds_in(file)}commit `{file['commit']}`"


def seeds_in(file):
    n = len({run["seed"] for run in file["runs"]})
    return f"{n} seed{'s' * (n > 1)}, "


def forgets(files):
    file = files["knowledge.json"]
    lives = tables.grouped(file["runs"], "method")
    gaps = tables.beaten(file, "ACC")
    ours, sft, qa = (number([r["ACC"] for r in lives[m].values()]) for m in ("sleep", "sft", "qa"))
    return (f"*Measured* ({of('knowledge.json', file)}). ACC after seven days: fine-tuning on the "
            f"day's text {sft}, on quizzes about it {qa}, sleep {ours}; sleep minus fine-tuning "
            f"{paired(gaps['sft'][0])}, minus the quizzes {paired(gaps['qa'][0])} (95 % intervals, "
            "paired by seed).")


def without(files, *names):
    """The paired differences of some lives, in words: of ingredients.json where it has them,
    else of the first edition."""
    said, left = [], list(names)
    for name, what in (("ingredients.json", ""), ("ablations.json", "first edition, ")):
        file = files[name]
        rows = {row["name"]: row for row in stats.compared(file)}
        here, left = [n for n in left if n in rows], [n for n in left if n not in rows]
        if here:
            seen = "; ".join(difference(rows[n]) for n in here)
            said.append(f"*Measured* ({what}{of(name, file)}; ACC minus that of the same life "
                        f"unchanged, paired by seed): {seen}.")
    return " ".join(said)


def difference(row):
    seen = stats.effect(row["differences"], row["p"])
    word = "" if seen else ", not certain" if seen is None else ", no effect seen"
    return f"{row['name']} {paired(row['differences'])}{word}"


def rival(files):
    file = files["trial.json"]
    rows = {row["name"]: row for row in stats.compared(file)}
    d = rows["gate+sft"]["differences"]
    return (f"*Measured* ({of('trial.json', file)}). Expert, gate and fine-tuning on the self's "
            f"own quizzes, nothing else, minus the whole night, ACC after {rows['gate+sft']['nights']} "
            f"nights, {len(d)} seeds: {paired(d)}; that it lies within {tables.MARGIN} of it: p = "
            f"{stats.equivalent(d, tables.MARGIN):.3f} (two one-sided tests).")


def expansion(files):
    return without(files, "no expansion", "rank 4", "rank 64")


def direction(files):
    return without(files, "reverse KL", "SFT instead of KL (short nights)")


def gates(files):
    said = [without(files, "no gate", "open router", "one expert")]
    for name, file in files["topics.json"].items():
        both, alone = (number([r[key] for r in file["runs"]]) for key in ("both", "gate_alone"))
        said.append(f"Topics, {name} ({of('topics.json', file)}): gate and experts {both}, the "
                    f"gate alone {alone}.")
    return " ".join(said)


def dreams(files):
    parts = ("no dreaming", "no imitation", "no on-policy steps", "no curriculum")
    chosen = ("gradient norm", "random selection", "chance and truth")
    return without(files, *(f"{part} (short nights)" for part in parts),
                   *(f"{how} (24 dreams)" for how in chosen))


def mornings(files):
    file = files["week.json"]
    runs = file["runs"]
    first, end = tables.span(runs, "recall"), tables.span(runs, "ACC")
    kinds = {kind: tables.span([run["kinds"][kind] for run in runs], "end")
             for kind in ("reversed", "typed", "described", "two_hops")}
    others = "; ".join(f"{kind.replace('_', ' ')} {span}" for kind, span in kinds.items())
    return (f"*Measured* ({of('week.json', file)}; mean, worst and best seed). Of what was told, "
            f"known the next morning {first}, after seven nights {end}. Counted apart: {others}.")


def year(files):
    runs, night = files["week.json"]["runs"], files["speed.json"]["night cpu"]
    times = night["lines"][0]["times_ours"]
    grown = sum((r["params_after"] - r["params_before"]) / r["days"] for r in runs) / len(runs)
    return (f"*Known.* {of('week.json', files['week.json'])}: a life of seven nights; it grows by "
            f"{grown:,.0f} numbers a night, so {YEAR} such nights would be "
            f"{YEAR * grown / 1e6:.0f} million beside {runs[0]['params_before'] / 1e6:.2f} "
            "(multiplied, not measured). "
            f"[`speed.json`](results/speed.json), commit `{night['commit']}`, one round: night 100 "
            f"costs {times['night 100']:.2f} of night 2. " + long_life(files["year.json"]))


def long_life(file):
    """The longest life that was lived, in two sentences."""
    r = max(file["runs"], key=lambda r: (r["days"], r["seed"]))
    grown, held = tables.added(r), tables.moved(r)
    return (f"*Measured* ({of('year.json', file)}): {r['days']} nights, a new person and news of "
            f"three a day, {held} moves: ACC {r['ACC']:.2f}, BWT {r['BWT']:+.2f}, what it knew "
            f"before {r['old_after']:.2f}. {r['facts']} facts, {r['bits']:,.0f} bits, are held in "
            f"{grown:,} numbers of experts and gate: {r['bits'] / grown:.3f} bits a number.")


FOUND = {"forgets": forgets, "expansion": expansion, "direction": direction, "gates": gates,
         "dreams": dreams, "rival": rival, "mornings": mornings, "year": year}


# --------------------------------------------------------------------------------------------------
# The page

def filled(text, files):
    """The page with everything between its marks as it is now. Raises ValueError for a mark of
    which nothing is known, or where one is missing."""
    seen = set(re.findall(r"<!-- (\w+) -->\n", text)) - {"end"}
    known = {"map", *FOUND}
    if seen != known:
        what = ", ".join(sorted(seen ^ known))
        raise ValueError(f"bench/LECTURE.md and bench/lecture.py differ in their marks: {what}")

    def now(mark):
        name = mark[1]
        body = the_map() if name == "map" else wrapped(short_minus(FOUND[name](files)))
        return f"<!-- {name} -->\n{body}\n<!-- end -->"
    return MARK.sub(now, text)


def short_minus(text):
    return re.sub(r"(?<=[ (])-(?=[.\d])", "−", text)


def wrapped(text):
    """A paragraph in lines of at most 100 columns where it can be broken."""
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def page(files):
    """bench/LECTURE.md as it should be."""
    with open(PAGE, encoding="utf-8") as f:
        return filled(f.read(), files)
