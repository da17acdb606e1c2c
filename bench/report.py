"""
Tables and figures of the README, from the committed result files alone.

    python bench/report.py                                 every table, as markdown
    python bench/report.py --pictures                      bench/results/*.png (needs matplotlib)
    python bench/report.py --life=out --out=life.png       the picture of a life of your own
"""
import json
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from bench import ablations, class_incremental, knowledge, stats
from bench.stats import mean, pm, read
from data import flags, topics
from data.flags import SWITCH, TEXT

FLAGS = {  # name: (default, allowed, what it does), as in data/flags.py
    "pictures": (False, SWITCH, "make the figures"),
    "life": ("", TEXT, "picture of the life in this folder (--out_dir of sleep.py)"),
    "out": ("life.png", TEXT, "with --life: where it goes"),
}
STYLE = {"sleep": "k-o", "inca": "k:D", "replay": "k--s", "joint": "k*", "qa_replay": "-^", "ewc": "-v", "sft": ":x", "none": ":",
         "generative_replay": "-^", "distilled_replay": "-s", "sleep_dreamt_router": "k-."}       # black: sleep and who stores


# ----------------------------------------------------------------------------------------------------------------------
# Tables

def dreaming(file):
    print("\n## 24 dreams a night\n\n| selection | seeds | useful among written, night 1 → last | useful among chosen | recall "
          "| old after |\n|---|---|---|---|---|---|")
    for name in dict.fromkeys(r["variant"] for r in file["runs"]):
        runs = [r["nights"] for r in file["runs"] if r["variant"] == name]
        first_last = f"{pm([n[0]['useful_written'] for n in runs], 2)} → {pm([n[-1]['useful_written'] for n in runs], 2)}"
        means = [pm([mean(x[k] for x in n) for n in runs], 2) for k in ("useful_chosen", "recall")]
        print(f"| {name} | {len(runs)} | {first_last} | " + " | ".join(means) + f" | {pm([n[-1]['old'] for n in runs])} |")


def faults(file):
    cost = file["cost"]
    print(f"\n## {file['tried']} faults tried, {file['lost']} lost; checkpoints take {cost['save']:.1%} of the default life, "
          f"looking back {cost['gone_wrong']:.1%}\n\n| fault | what happened | survived |\n|---|---|---|")
    kinds = {}
    for r in file["rows"]:                                           # all kills are one row
        name = "kill -9 in the middle of anything" if r["fault"].startswith("kill") else r["fault"]
        kinds.setdefault((name, r["outcome"]), []).append(r["survived"])
    for (name, outcome), survived in kinds.items():
        print(f"| {name} | {outcome} | {sum(survived)} of {len(survived)} |")


def clinc_life(file):
    print(f"\n## CLINC150 as a life of sleep.py, {file['split']} split, seed {file['seed']}, {file['threads']} threads, "
          f"{file['seconds']:.0f} s\n\n| life | after the last night | mean over nights | seconds |\n|---|---|---|---|")
    for name in ("none", "sft", "sleep", "joint"):
        r = file[name]
        print(f"| {name} | {r['final']:.3f} | {r['average_incremental']:.3f} | {r['seconds']:.0f} |")
    print(f"| tf-idf nearest mean | {file['tfidf_nearest_mean']:.3f} | | |")


def tables():
    known = {"ablations.json": ablations.tables, "knowledge.json": knowledge.tables, "dreaming.json": dreaming,
             "clinc150.json": clinc_life, **{f"classes-{name}.json": class_incremental.tables for name in topics.SETS},
             "faults.json": faults}
    print("# What replicates\n\n" + "\n".join(claims()))
    for name, show in known.items():
        file = read(name)
        if file:
            print(f"\n# {name}: {file.get('command', '')}")
            show(file)


# ----------------------------------------------------------------------------------------------------------------------
# What replicates: claim, the paper's number, ours, verdict, command

def short(text):
    """"+0.99" -> "+.99", and a minus that is one."""
    return re.sub(r"(?<![0-9])0\.", ".", text).replace("-", "−")


def said(differences):
    """The verdict where the paper says that these differences are above zero."""
    m, half = stats.interval(differences)
    return "yes" if m - half > 0 else "**the reverse**" if m + half < 0 else "**no effect seen**"


def against(rival):
    """Sleep minus a rival, ACC after the last night (knowledge.json)."""
    def measured(files):
        runs = {(r["method"], r["seed"]): r["ACC"] for r in (files["knowledge.json"] or {"runs": []})["runs"]}
        pairs = [(runs["sleep", s], x) for (m, s), x in runs.items() if m == rival and ("sleep", s) in runs]
        d = [a - b for a, b in pairs]
        if len(d) > 1:
            means = "{:.3f} against {:.3f}".format(*map(mean, zip(*pairs)))
            return f"ACC after 7 days {means}: {short(stats.gap(d))}", said(d)
    return measured


def without(ingredient):
    """The lives that lack it minus those that have it, in the default life and in every regime (ablations.json)."""
    def measured(files):
        found, parts, verdicts = ablations.by_life(files["ablations.json"] or {"runs": []}), [], []
        for name, (group, nights, *_) in ablations.LIVES.items():
            if name.split(" (")[0] == ingredient and name in found:
                d = ablations.differences(found, name, nights, "ACC")
                if len(d) > 1:
                    parts.append(f"{'default life' if group == 'ingredients' else group} {short(stats.gap(d))}")
                    verdicts.append(stats.verdict(d).split(":")[0])
        if parts:
            whole = "; ".join(dict.fromkeys(verdicts))
            return "without it: " + ", ".join(parts), "yes" if whole == "helps" else f"**{whole}**"
    return measured


def minus(a, b, nights=2):
    """Life a minus life b, ACC after so many nights (ablations.json)."""
    def measured(files):
        found, last = ablations.by_life(files["ablations.json"] or {"runs": []}), lambda r: ablations.after(r, nights)["ACC"]
        d = [last(r) - last(found[b][s]) for s, r in found.get(a, {}).items() if s in found.get(b, {})]
        if len(d) > 1:
            return f"ACC, {a} minus {b}: {short(stats.gap(d))}", said(d)
    return measured


def classes(*rivals):
    """Sleep minus its rivals, all classes at the end (classes-*.json)."""
    def measured(files):
        parts, verdicts = [], []
        for name in topics.SETS:
            runs = {(r["method"], r["seed"]): r["final"] for r in (files[f"classes-{name}.json"] or {"runs": []})["runs"]}
            for rival in rivals:
                d = [runs["sleep", s] - x for (m, s), x in runs.items() if m == rival and ("sleep", s) in runs]
                if len(d) > 1:
                    parts.append(f"{name}: sleep minus {rival} {short(stats.gap(d))}")
                    verdicts.append(f"{name}, {rival}: {said(d)}")
        if parts:
            return ", ".join(parts), "; ".join(verdicts)
    return measured


PAPER = "n = 1 / n = 200 passages, SQuAD, Table 3"
ABLATE, KNOW = "`python bench/ablations.py`", "`python bench/knowledge.py`"
CLAIMS = [  # (claim, the paper's number, files -> (ours, verdict) or None, command)
    ("Sleep keeps what fine-tuning loses", f"48.1 / 44.3 against 33.4 / 32.0 ({PAPER})", against("sft"), KNOW),
    ("Sleep is better than SEAL", f"48.1 / 44.3 against 46.7 / 43.2 ({PAPER})", against("seal"), KNOW),
    ("Sleep is better than GRPO", "79.2 against 76.4 (AIME-24, Qwen3-8B, Table 2)", against("grpo"), KNOW),
    ("Sleep is better than OPSD, self-distillation without expansion", "79.2 against 76.6 (Table 1)", against("opsd"), KNOW),
    ("Test-time training is no substitute", "80 against 10 (few-shot ARC, Table 4)", against("ttt"), KNOW),
    ("Expansion helps", "79.2, without 78.2 (Table 1)", without("no expansion"), ABLATE),
    ("Imitation helps", "79.2, without 76.8 (Table 1)", without("no imitation"), ABLATE),
    ("The semantic reward helps", "79.2, without 78.9; 69.0, without 69.2 (Table 1)", without("lexical reward only"), ABLATE),
    ("Dreaming helps", f"48.9 / 46.2, without 35.7 / 36.2 ({PAPER})", without("no dreaming"), ABLATE),
    ("Choosing dreams by the norm of their gradient helps", f"48.9 / 46.2, without 47.1 / 45.2 ({PAPER})",
     minus("gradient norm (24 dreams)", "random selection (24 dreams)"), ABLATE),
    ("One random expert while dreaming helps", f"48.9 / 46.2, without 48.0 / 44.7 ({PAPER})",
     minus("random expert (24 dreams)", "24 dreams"), ABLATE),
    ("More memory levels help: nightly experts move into a slower one", f"2 levels 48.1 / 44.3, 4 levels 48.9 / 46.2 ({PAPER})",
     minus("every 2 nights", "sleep", 4), ABLATE),
    ("Class-incremental: sleep is better than EWC and InCA (its first step)", "in this order on all three sets (Figure 3)",
     classes("ewc", "inca"), "`python bench/class_incremental.py`"),
    ("Replay dreams of the old self", "not ablated", without("no replay"), ABLATE),
    ("A gate (ours)", "an open router", without("no gate"), ABLATE),
]


def claims():
    """The table of the README, a row a claim."""
    files = {name: read(name) for name in ("ablations.json", "knowledge.json", *(f"classes-{n}.json" for n in topics.SETS))}
    head = ["claim", "the paper", "ours (95 % interval, paired by seed)", "does it replicate?", "command"]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for claim, paper, measured, command in CLAIMS:
        ours, verdict = measured(files) or ("not measured yet", "")
        rows.append(f"| {claim} | {paper} | {ours} | {verdict} | {command} |")
    return rows


# ----------------------------------------------------------------------------------------------------------------------
# Figures. Black, white and markers: they must survive a photocopier

def so_far(R):
    """Per cent right over all days met so far, a number a night."""
    return [100 * mean(r for r in row if r is not None) for row in R]


def heat_map(ax, R, title):
    import numpy as np
    shown = np.array([[np.nan if r is None else 100 * r for r in row] for row in R])
    ax.imshow(shown, cmap="Greys", vmin=0, vmax=250)
    for i, j in zip(*np.where(~np.isnan(shown))):
        ax.text(j, i, f"{shown[i, j]:.0f}", ha="center", va="center", fontsize=8)
    ticks = dict(xticks=range(len(R)), yticks=range(len(R)), xticklabels=range(1, len(R) + 1), yticklabels=range(1, len(R) + 1))
    ax.set(xlabel="exam of day", ylabel="after night", title=title, **ticks)


def over_nights(ax, lives, title, first=1):
    """lives: {name: [curve of each seed]}; mean, and a band from the worst seed to the best."""
    import numpy as np
    nights = max(len(c) for curves in lives.values() for c in curves)
    for name, curves in lives.items():
        y, style = np.array(curves), STYLE.get(name, "-")
        x = np.arange(nights - y.shape[1], nights) + first           # joint training has only the last night
        color, marks = "k" if "k" in style else "0.45", style.replace("k", "")
        ax.plot(x, y.mean(0), marks, color=color, markersize=8 if "*" in style else 4, label=name)
        ax.fill_between(x, y.min(0), y.max(0), color="0.85", linewidth=0)
    ax.set(xlabel="after night", ylabel="% right, all days so far", ylim=(-4, 104), title=title,
           xticks=range(first, nights + first))
    ax.legend(frameon=False, fontsize=7)


def life_picture(plt, lives, path):
    """lives: {name: [run]}: what is known of which day after which night, and the lives beside it."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    first = min(lives["sleep"], key=lambda r: r["seed"])
    heat_map(axes[0], first["R"], f"What is known (%), seed {first['seed']}")
    over_nights(axes[1], {name: [so_far(r["R"]) for r in runs] for name, runs in lives.items() if runs},
                f"Days met so far ({len(lives['sleep'])} seed{'s' * (len(lives['sleep']) > 1)}, band: all)")
    fig.savefig(path, dpi=110)
    print(path)


def rivals_picture(plt, files, path):
    """The same from knowledge.json, and all classes seen so far from classes-*.json."""
    fig, axes = plt.subplots(1, len(files), figsize=(4.6 * len(files), 3.8), layout="constrained", squeeze=False)
    for ax, (title, lives, first) in zip(axes[0], files):
        over_nights(ax, lives, title, first)
    fig.savefig(path, dpi=110)
    print(path)


def forest(plt, file, path):
    """Paired differences in ACC with 95 % intervals: full markers where zero lies outside, open ones where it does not."""
    found, rows = ablations.by_life(file), []
    for name, (group, _, _, against) in ablations.LIVES.items():
        if name in found and against in found:
            n = min(len(r["R"]) for r in found[name].values())
            d = ablations.differences(found, name, n, "ACC")
            if len(d) > 1:
                rows.append((name, *stats.interval(d), f"{n} nights" if n > 1 else "1 night"))
    fig, ax = plt.subplots(figsize=(8, 0.24 * len(rows) + 1), layout="constrained")
    for y, (name, m, half, nights) in enumerate(reversed(rows)):
        fill = "k" if abs(m) > half else "w"
        ax.errorbar(m, y, xerr=half, fmt="o", color="k", markersize=5, markerfacecolor=fill, capsize=2, lw=1)
    ax.axvline(0, color="0.6", lw=0.8)
    ax.set(yticks=range(len(rows)), xlabel="ACC without it (or changed) minus ACC with it; paired by seed, 95 % interval")
    ax.set_yticklabels([f"{name}, {nights}" for name, _, _, nights in reversed(rows)], fontsize=7)
    fig.savefig(path, dpi=110)
    print(path)


def pictures():
    plt = pyplot()
    at = lambda name: os.path.join(stats.RESULTS, name)
    file = read("ablations.json")
    if file:
        lives = {name: list(ablations.by_life(file).get(name, {}).values()) for name in ("sleep", "sft", "none")}
        life_picture(plt, lives, at("life.png"))
        forest(plt, file, at("ablations.png"))
    panels = []
    shown = ["sleep", "inca", "replay", "joint", "qa_replay", "ewc", "sft", "none", "generative_replay", "sleep_dreamt_router"]
    knows = read("knowledge.json")
    if knows:
        panels.append((f"The embedded world, {len({r['seed'] for r in knows['runs']})} seeds",
                       {m: [so_far(r["R"] if m != "joint" else r["R"][-1:]) for r in knows["runs"] if r["method"] == m]
                        for m in shown if any(r["method"] == m for r in knows["runs"])}, 1))
    for name in topics.SETS:
        file = read(f"classes-{name}.json")
        if file:
            panels.append((f"{name}, test rows, {len({r['seed'] for r in file['runs']})} seeds",
                           {m: [[100 * x for x in r["over_nights"]] for r in file["runs"] if r["method"] == m]
                            for m in shown if any(r["method"] == m for r in file["runs"])}, 0))
    if panels:
        rivals_picture(plt, panels, at("rivals.png"))


def pyplot():
    try:
        import matplotlib
    except ImportError:
        flags.fail("pictures need matplotlib: pip install matplotlib", "report.py")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    return plt


def main(argv):
    o = flags.parse(argv, __doc__, FLAGS, "report.py")
    if o.life:
        paths = {name: os.path.join(o.life, "" if name == "sleep" else name, "summary.json") for name in ("sleep", "sft", "none")}
        if not os.path.isfile(paths["sleep"]):
            flags.fail(f"no life in {o.life}: expected {paths['sleep']}", "report.py")
        lives = {name: [json.load(open(path))] for name, path in paths.items() if os.path.isfile(path)}
        return life_picture(pyplot(), lives, o.out)
    return pictures() if o.pictures else tables()


if __name__ == "__main__":
    main(sys.argv[1:])
