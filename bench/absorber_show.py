"""
The tables and the picture of bench/absorber.py, from the committed result files alone:

    python bench/absorber_show.py            prints the tables; with matplotlib also bench/results/absorber.png
    python bench/absorber_show.py --result=out-absorber/quick.json --picture=quick.png
"""
import json
import os
import sys
from statistics import mean

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from bench import stats
from bench.ablations import after
from bench.stats import RESULTS, pm
NAMES = {"full": "full context", "truncation": "truncation", "hidden": "hidden states, all layers (Absorber)",
         "last layer": "hidden states, last layer", "logits": "token distributions (KL)", "labels": "cross-entropy on Y's labels",
         "ttt": "TTT on X", "ttt items": "TTT on X, item by item",
         "hidden, highest rate": "hidden states, the highest rate for all",
         "hidden, Y pair by pair": "hidden states, Y pair by pair (ours)",
         "hidden, pair by pair, the model writes 4x Y": "the same, the model writes 4 times as much Y (ours)"}
BARS = {"full": "full", "truncation": "trunc.", "hidden": "hidden", "last layer": "last\nlayer", "logits": "logits",
        "labels": "labels", "ttt": "TTT", "ttt items": "TTT\nitems", "hidden, Y pair by pair": "hidden,\nY cut",
        "hidden, pair by pair, the model writes 4x Y": "4x Y,\nown"}
LINES = {"full": ("0.6", "-", "s"), "truncation": ("0.6", ":", "x"), "hidden": ("k", "-", "o"), "logits": ("k", "--", "^"),
         "labels": ("k", ":", "v"), "ttt": ("0.4", "-.", "d"), "ttt items": ("k", "-.", "*"), "last layer": ("0.4", "--", "<")}


def results(runs, task):
    """The results of a task, one for each seed."""
    return [r["result"] for r in runs if r["task"] == task]


def cell(found, digits=2):
    """Mean and standard deviation over seeds; a dash where no seed has the number."""
    found = [x for x in found if x is not None]
    return pm(found, digits) if found else "–"


def table(rows, columns, first="", digits=2):
    """rows: {name: [a dict for each seed]}; columns: {key: title}."""
    print(f"| {first} | " + " | ".join(columns.values()) + " |\n|---|" + "---|" * len(columns))
    for name, seeds in rows.items():
        print(f"| {NAMES.get(name, name)} | " + " | ".join(cell([s.get(k) for s in seeds], digits) for k in columns) + " |")


def by_method(found):
    return {k: [r[k] for r in found] for k in found[0] if isinstance(found[0][k], dict)}


def lives(runs):
    """{name: [life]}: absorb from this result file, the others from the default life's."""
    known = {"absorb": results(runs, "life")}
    others = (stats.read("ablations.json") or {"runs": []})["runs"]
    return {**known, **{name: [r for r in others if r["life"] == name] for name in ("none", "sft", "sleep")}}


def tables(runs):
    found = results(runs, "map")
    if found:
        print(f"## map: nothing but the question in context ({len(found)} seeds)\n")
        table(by_method(found), {"all": "all classes", "covered": "in Y", "uncovered": "not in Y", "window_uncovered":
                                 "not in Y, Y still in context", "new_map": "another map in context", "taken": "steps"})
        print("\n## map: accuracy against n (pairs in X) and m (pairs in Y), hidden states\n")
        sizes = sorted({r["m"] for r in found[0]["n_m"]})
        rows = {f"n = {n}": [{r["m"]: r["all"] for r in seed["n_m"] if r["n"] == n} for seed in found]
                for n in sorted({r["n"] for r in found[0]["n_m"]})}
        table(rows, {m: f"m = {m}" for m in sizes})
    found = results(runs, "stream")
    if found:
        print(f"\n## stream: after six slides ({len(found)} seeds)\n")
        table(by_method(found), {"gone": "gone, was in a Y", "never in Y": "gone, never in a Y",
                                 "in the window": "in the window"})
    found = results(runs, "world")
    if found:
        print(f"\n## world: a passage absorbed, then asked about ({len(found)} seeds)\n")
        table(by_method(found), {"recall": "recall", "reading": "reading another passage", "old": "old", "taken": "steps"})
    found = results(runs, "latency")
    if found:
        print(f"\n## latency ({len(found)} runs)\n")
        kib = lambda r: {**r, "kb": r["full_bytes"] / 2 ** 10, "flat_kb": r["absorbed_bytes"] / 2 ** 10}
        rows = {f"{row[0]['n']:,}": [kib(r) for r in row] for row in zip(*(r["rows"] for r in found))}
        table(rows, {"full_ms": "in context, ms a token", "absorbed_ms": "absorbed, ms a token", "kb": "cache in context, KiB",
                     "flat_kb": "cache absorbed, KiB", "absorb_seconds": "seconds to absorb"}, "tokens n", 1)
    known = lives(runs)
    if known["absorb"]:
        nights = min(len(r["R"]) for r in known["absorb"])
        print(f"\n## {nights} nights\n")
        rows = {name: [{**after(r, nights), "more": r["params_after"] - r["params_before"],
                        "s/night": (r["seconds"]["seed"] + r["seconds"]["dream"]) / len(r["R"])} for r in some]
                for name, some in known.items() if some}
        table(rows, {"recall": "recall next morning", "ACC": "ACC", "BWT": "BWT", "old": "old", "reading": "reading",
                     "s/night": "s a night", "more": "extra parameters"}, "life", 3)
        for r in known["absorb"]:
            print(f"\nR of absorb, seed {r['seed']}:")
            for row in r["R"]:
                print("    " + " ".join("    " if x is None else f"{x:.2f}" for x in row))


def line(ax, x, series, name, label):
    import numpy as np
    y, (color, style, mark) = np.array(series), LINES[name]
    ax.errorbar(x, y.mean(0), y.std(0, ddof=1) if len(y) > 1 else None, color=color, ls=style, marker=mark, ms=5, lw=1.2,
                capsize=2, label=label)


def picture(runs, path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
    fig, axes = plt.subplots(2, 2, figsize=(10, 7.4), layout="constrained")
    found = results(runs, "map")
    if found:
        ax, names = axes[0, 0], [k for k in BARS if k in found[0]]
        for shift, (key, label, look) in enumerate((("covered", "class was in Y", dict(color="0.35")),
                                                    ("uncovered", "class was only in X", dict(color="white", hatch="///")))):
            y = np.array([[r[k][key] if r[k][key] is not None else np.nan for k in names] for r in found])
            ax.bar(np.arange(len(names)) + 0.4 * shift - 0.2, y.mean(0), 0.38, edgecolor="k", label=label, capsize=2,
                   yerr=y.std(0, ddof=1) if len(y) > 1 else None, **look)
        ax.axhline(1 / 8, color="k", lw=0.8, ls=":")
        ax.set(title="map: X and Y are gone, every class is asked", ylabel="accuracy (dotted: chance)", ylim=(0, 1.3),
               xticks=range(len(names)))
        ax.set_xticklabels([BARS[k] for k in names], fontsize=8)
        ax.legend(frameon=False, ncols=2, loc="upper center")
    found = results(runs, "stream")
    if found:
        ax = axes[0, 1]
        for name in ("full", "hidden", "last layer", "logits", "labels", "ttt", "ttt items", "truncation"):
            line(ax, range(1, 7), [r[name]["by_class"][5::-1] for r in found], name, name)
        ax.set(title="stream: classes that have left the window", xlabel="slides ago (6: was never in a Y)", ylabel="accuracy",
               ylim=(0, 1.42))
        ax.legend(frameon=False, ncols=3, loc="upper center", fontsize=8)
    found = results(runs, "latency")
    if found:
        ax, n = axes[1, 0], [row["n"] for row in found[0]["rows"]]
        for name, key, label in (("full", "full_ms", "in context"), ("hidden", "absorbed_ms", "absorbed")):
            line(ax, n, [[row[key] for row in r["rows"]] for r in found], name, label)
        ax.set(title="latency behind n tokens", xlabel="n", ylabel="ms a token", ylim=(0, None))
        ax.legend(frameon=False)
    known = lives(runs)
    ax = axes[1, 1]
    for name, style in {"absorb": "hidden", "sleep": "full", "sft": "ttt", "none": "truncation"}.items():
        known_days = [[mean(x for x in row if x is not None) for row in r["R"]] for r in known.get(name, [])]
        if known_days and known["absorb"]:
            nights = min(map(len, known_days))
            line(ax, range(1, nights + 1), [d[:nights] for d in known_days], style, name)
    ax.set(title="lives: facts of all days so far", xlabel="after night", ylabel="share known", ylim=(-0.04, 1.1))
    if known["absorb"]:
        ax.legend(frameon=False)
    fig.savefig(path, dpi=110)
    print(f"\n{path}")


def main(result=os.path.join(RESULTS, "absorber.json"), picture_to=os.path.join(RESULTS, "absorber.png")):
    with open(result) as f:
        runs = json.load(f)["runs"]
    tables(runs)
    try:
        picture(runs, picture_to)
    except ImportError:
        print("no picture: pip install matplotlib")


if __name__ == "__main__":
    words = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
    main(**{"picture_to" if k == "picture" else k: v for k, v in words.items()})
