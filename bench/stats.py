"""
What the benches share: result files, where they come from, and the statistics of a table.

Everything is paired by seed. A list of differences gives a mean with a 95 % interval (Student's t),
a p-value, and the effect that these seeds would have shown with a probability of 80 %. A table of
many differences is corrected after Holm: of all its true zeros together, at most one time in twenty
will any be called an effect.
"""
import functools
import json
import math
import os
import platform
import subprocess
import sys
import time
from statistics import mean, stdev

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RESULTS = os.path.join(ROOT, "bench", "results")


# --------------------------------------------------------------------------------------------------
# Result files

def read(name):
    """A result file of bench/results (or anywhere, by its path), or None if it is not made yet."""
    path = name if os.path.dirname(name) else os.path.join(RESULTS, name)
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def there(path):
    """A result file that a table is to be made of. Raises FileNotFoundError."""
    file = read(os.path.abspath(path))
    if file is None:
        raise FileNotFoundError(f"no {path} yet: run without --table")
    return file


def provenance(command):
    """What every result file says of itself: {"command", "commit", "date", "versions", "threads"}.

    commit: of the working copy, "+changes" behind it if files other than results differ from it,
    None without git.
    threads: None where torch has not been imported.
    """
    torch = sys.modules.get("torch")
    versions = {"python": platform.python_version()}
    if torch:
        versions["torch"] = torch.__version__
    return {"command": command, "commit": commit(), "date": time.strftime("%Y-%m-%d"),
            "versions": versions, "threads": torch.get_num_threads() if torch else None}


def commit(folder=ROOT):
    """Short name of the commit that is checked out in this folder; see `provenance`."""
    def git(*words):
        ran = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True)
        return ran.stdout.strip() if ran.returncode == 0 else None
    try:
        top = git("rev-parse", "--show-toplevel")
        if not top or not os.path.samefile(top, folder):             # inside a foreign checkout
            return None
        name = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "-uno", "--", ".", ":!bench/results")
        return name + "+changes" if name and changed else name
    except OSError:
        return None


# --------------------------------------------------------------------------------------------------
# Numbers as a table shows them

def pm(values, digits=3):
    """"mean ± standard deviation" of the values that are there; one value stands alone."""
    values = [v for v in values if v is not None]
    sd = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{sd}" if values else ""


def gap(differences):
    """"+0.020 ± 0.010": mean and half-width of the 95 % interval."""
    return "{:+.3f} ± {:.3f}".format(*interval(differences))


# --------------------------------------------------------------------------------------------------
# Student's t

def within(t, df):
    """P(|T| < t) of Student's t with df degrees of freedom: the integral of cos^(df-1), Simpson."""
    angle, steps = math.atan(t / df ** 0.5), 400
    scale = 2 * math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.pi ** 0.5
    weights = [1] + [4, 2] * (steps // 2 - 1) + [4, 1]
    total = sum(w * math.cos(i * angle / steps) ** (df - 1) for i, w in enumerate(weights))
    return scale * total * angle / steps / 3


@functools.cache
def quantile(share, df):
    """The t with P(|T| < t) = share: bisection."""
    low, high = 0.0, 1.0
    while within(high, df) < share:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, df) < share else (low, middle)
    return high


def interval(values):
    """Mean and half-width of the 95 % interval (Student's t); half is nan for a single value."""
    n = len(values)
    if n < 2:
        return mean(values), float("nan")
    return mean(values), quantile(0.95, n - 1) * stdev(values) / n ** 0.5


def p_value(differences):
    """Two-sided p of "the true mean is zero"; 1 where nothing differs or there is one value."""
    n = len(differences)
    if n < 2 or not any(differences):
        return 1.0
    spread = stdev(differences)
    if spread == 0:                                                  # the same in every seed
        return 0.0
    return max(0.0, 1 - within(abs(mean(differences)) * n ** 0.5 / spread, n - 1))


def holm(p_values):
    """Holm's step-down correction (1979): p-values of one table -> corrected ones, same order.

    The smallest of m is multiplied by m, the next by m - 1 ...; none may be below the one before.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        corrected[i] = largest
    return corrected


def detectable(differences):
    """The effect that as many seeds of this spread show (95 % interval) with 80 % probability.

    (t.95 + t.60) s / sqrt(n), two-sided quantiles: the usual approximation. nan for one value.
    """
    n = len(differences)
    if n < 2:
        return float("nan")
    return (quantile(0.95, n - 1) + quantile(0.60, n - 1)) * stdev(differences) / n ** 0.5


def equivalent(differences, margin):
    """p of two one-sided tests (TOST): "the true mean lies outside +-margin" is refused below .05.

    Each side is Student's t of the mean against its bound; the larger p counts. 1 for one value.
    """
    n = len(differences)
    if n < 2:
        return 1.0
    spread, found = stdev(differences), mean(differences)
    if spread == 0:
        return 0.0 if abs(found) < margin else 1.0
    t = (margin - abs(found)) * n ** 0.5 / spread
    outside = (1 - within(abs(t), n - 1)) / 2
    return outside if t > 0 else 1 - outside


def corrected(differences):
    """[differences of one table] -> [(differences, its p-value after Holm)]."""
    return list(zip(differences, holm([p_value(d) for d in differences])))


def effect(differences, p):
    """-1 or 1, the sign of an effect; 0: none was seen; None: not certain.

    p: corrected over its table (see `holm`), an effect if it is below .05. Not certain: the 95 %
    interval of this difference alone leaves out zero, the corrected p says that it may be chance.
    """
    m, half = interval(differences)
    if p < 0.05:
        return 1 if m > 0 else -1
    return None if abs(m) > half else 0


def verdict(differences):
    """What an ingredient does, from (life without it - life with it): of one difference alone.

    helps: the whole 95 % interval lies below zero; hurts: above. A table of many uses `effect`.
    """
    m, half = interval(differences)
    if half != half:
        return "one seed"
    if m + half < 0:
        return f"helps: {-m:.3f}"
    return f"hurts: {m:.3f}" if m - half > 0 else "no effect seen"


# --------------------------------------------------------------------------------------------------
# Lives in ablations.json: {"life", "group", "seed", "R", "nights": [a dict a night]}

REGIMES = {  # group in the file: its name in a table, in this order
    "ingredients": "default", "rivals": "rivals with the same arms",
    "warm student": "on-policy from a warm student", "imitation": "all on-policy",
    "levels": "levels", "more nights": "more nights", "rank": "rank",
    "24 dreams": "24 dreams a night", "few quizzes": "few quizzes",
    "longer answers": "longer answers", "poor reader": "poor reader",
    "short nights": "short nights"}
APART = {"contradicted_context", "not_told", "never_met", "described", "two_hops", "typed",
         "changed_old_value", "false_unknown", "old", "reading", "reversed"}    # not in ACC
ABOUT_REWARD = ("imitation", "alpha", "reward", "judge")            # lives that change what it does
SPREAD = 0.01                       # of the reward among a prompt's rollouts: less says nothing


def after(run, n):
    """What is measured on a life, cut after night n. R[i][j]: exam of day j after night i."""
    R, nights = [row[:n] for row in run["R"][:n]], run["nights"][:n]
    took = [sum(x["seconds"].values()) for x in nights if isinstance(x.get("seconds"), dict)]
    moved = [R[-1][j] - R[j][j] for j in range(n - 1)]
    asked = [x["both"] for x in nights if x.get("both") is not None]     # reversed ones, too
    return {"recall_both": mean(asked) if asked else None, "recall": mean(R[i][i] for i in range(n)), "ACC": mean(R[-1]),
            "BWT": mean(moved) if moved else 0.0, "old": nights[-1]["old"],
            "reading": nights[-1]["reading"], "reversed": mean(x["reversed"] for x in nights),
            "undone": sum("undone" in x for x in nights), "s/night": mean(took) if took else 0.0}


def both(run):
    """ACC over forward and reversed questions together, each question counted once, after the last
    night; None for a life of an older bench, which has no kinds."""
    asked = [kind for name, kind in (run.get("kinds") or {}).items()
             if name == "reversed" or name not in APART]
    n = sum(kind["n"] for kind in asked)
    return sum(kind["end"] * kind["n"] for kind in asked) / n if n else None


def spread(runs):
    """Mean deviation of the reward among the rollouts of one prompt, None if there was no reward:
    where all are rewarded alike, nothing is learnt from it."""
    seen = [night["spread"] for run in runs for night in run["nights"] if "spread" in night]
    return mean(seen) if seen else None


def tested(found, life):
    """Can this life say anything of what it changes? Not of the reward, if that is always alike."""
    name, rewards = base_of(life), spread(list(found[life].values()))
    return rewards is None or rewards >= SPREAD or not any(w in name for w in ABOUT_REWARD)


def by_life(file):
    """{life: {seed: run}} of a result file, {} for None."""
    found = {}
    for run in (file or {"runs": []})["runs"]:
        found.setdefault(run["life"], {})[run["seed"]] = run
    return found


def against(found, life):
    """The life that this one is compared with, None for the first of its regime (and none, sft).

    "no imitation (few quizzes)" is compared with "few quizzes", a rival with the same arms with the
    plain one, all others with "sleep".
    """
    run = next(iter(found[life].values()))
    if run.get("group") == "rivals":
        return "gate+sft" if "gate+sft" in found else None
    if life in (run.get("group"), "sleep", "none", "sft"):
        return None
    regime = life.partition(" (")[2].rstrip(")")
    return regime if regime in found else "sleep" if "sleep" in found else None


def base_of(life):
    """"no imitation (few quizzes)" -> "no imitation"."""
    return life.partition(" (")[0]


def nights_of(found, life):
    return min(len(run["R"]) for run in found[life].values())


def differences(found, life, key="ACC", other=None, n=None):
    """(life - the life it is compared with) in `key`, a number a seed that has lived both.

    Both are cut after the same night: n, or the last one of this life.
    """
    other, n = other or against(found, life), n or nights_of(found, life)
    pairs = [(run, found[other][seed]) for seed, run in found.get(life, {}).items()
             if seed in found.get(other, {})]
    return [after(a, n)[key] - after(b, n)[key] for a, b in pairs]


def compared(file):
    """Every paired difference in ACC of ablations.json, corrected after Holm over all of them.

    Rows {"name" (in the file), "life" (without its regime), "against", "regime", "nights",
    "differences", "tested", "p", "effect"}: regimes in the order of REGIMES, inside a regime from
    the greatest loss to the greatest gain. What could not be `tested` is no row of the correction.
    """
    found, rows = by_life(file), []
    for life in found:
        d = differences(found, life) if against(found, life) else []
        if len(d) > 1:
            group = next(iter(found[life].values()))["group"]
            rows.append({"name": life, "life": base_of(life), "against": against(found, life),
                         "regime": group, "nights": nights_of(found, life), "differences": d,
                         "tested": tested(found, life), "p": 1.0, "effect": 0})
    counted = [row for row in rows if row["tested"]]
    for row, (d, p) in zip(counted, corrected([row["differences"] for row in counted])):
        row.update(p=p, effect=effect(d, p))
    order = list(dict.fromkeys([*REGIMES, *(row["regime"] for row in rows)]))
    rows.sort(key=lambda row: (order.index(row["regime"]), mean(row["differences"])))
    return [{**row, "regime": REGIMES.get(row["regime"], row["regime"])} for row in rows]
