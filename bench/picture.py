"""
The picture of a life, from bench/results/week.json (or a summary.json): what is known of which day after which night, and
the lives beside it. Needs matplotlib (pip install matplotlib).

    python bench/picture.py                                  bench/results/week.json -> bench/results/life.png
    python bench/picture.py --life=out --out=life.png        one life of your own
"""
import json
import os
import sys

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))


def read(life):
    """{method: [summary]} of a result file, or of the lives under an out_dir."""
    if os.path.isdir(life):
        paths = [os.path.join(life, d, "summary.json") for d in ("", "none", "sft")]
        runs = [{"variant": s["method"], **s} for s in (json.load(open(p)) for p in paths if os.path.isfile(p))]
    else:
        runs = json.load(open(life))["runs"]
    found = {name: [r for r in runs if r["variant"] == name and len(r["R"]) > 1] for name in ("sleep", "sft", "none")}
    if not found["sleep"]:
        raise SystemExit(f"picture.py: no life of method sleep in {life}")
    return found


def heat_map(ax, run):
    R = np.array([[np.nan if r is None else 100 * r for r in row] for row in run["R"]])
    ax.imshow(R, cmap="Greys", vmin=0, vmax=250)
    for i, j in zip(*np.where(~np.isnan(R))):
        ax.text(j, i, f"{R[i, j]:.0f}", ha="center", va="center", fontsize=8)
    ax.set(xlabel="exam of day", ylabel="after night", title=f"What is known (%), seed {run['seed']}",
           xticks=range(len(R)), yticks=range(len(R)),
           xticklabels=range(1, len(R) + 1), yticklabels=range(1, len(R) + 1))


def all_days(run):
    return [100 * np.mean([r for r in row if r is not None]) for row in run["R"]]


def lines(ax, lives):
    for name, style in {"sleep": "k-o", "sft": "k--s", "none": "k:^"}.items():
        y = np.array([all_days(r) for r in lives[name]])
        if len(y):
            x = np.arange(1, y.shape[1] + 1)
            ax.plot(x, y.mean(0), style, markersize=4, label=name)
            ax.fill_between(x, y.min(0), y.max(0), color="0.8")
    ax.set(xlabel="after night", ylabel="% of the facts of all days so far", ylim=(-4, 104),
           title=f"Days met so far ({len(lives['sleep'])} seeds, band: all)")
    ax.legend(frameon=False)


def main(life=os.path.join(HERE, "results/week.json"), out=os.path.join(HERE, "results/life.png")):
    lives = read(life)
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    heat_map(axes[0], min(lives["sleep"], key=lambda r: r["seed"]))
    lines(axes[1], lives)
    fig.savefig(out, dpi=110)
    print(out)


if __name__ == "__main__":
    main(**dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:]))
