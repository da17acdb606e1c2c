"""
The pictures of bench/README.md, and of a life of your own. Black and white, 7 inches wide, no type
below 9 points: as wide as a page shows them, everything can be read, on a photocopy, too.

Lines are labelled where they end. A band reaches from the worst seed to the best.
"""
import json
import os
from statistics import mean

from bench import stats, tables
from data import flags

WIDTH, DPI, SMALL = 7.0, 150, 9                                      # inches, dots an inch, points
LINES = {  # name: (line, marker, filled, grey level of the line)
    "sleep": ("-", "o", True, "0"), "sft": (":", "X", True, "0.35"), "none": (":", "", True, "0.5"),
    "absorb": ("--", "s", False, "0"), "inca": ("-.", "D", False, "0"),
    "joint": ("", "*", True, "0"), "replay": ("--", "s", False, "0"),
    "qa_replay": ("-", "^", False, "0.35"), "generative_replay": ("-", "^", False, "0.35"),
    "ewc": ("--", "v", True, "0.5")}
CALLED = {"inca": "InCA (keeps text)", "joint": "joint", "replay": "replay of text",
          "qa_replay": "SFT + dream replay", "generative_replay": "generative replay",
          "ewc": "EWC", "none": "nothing", "sft": "fine-tuning"}


def pyplot():
    try:
        import matplotlib
    except ImportError:
        flags.fail("pictures need matplotlib: pip install matplotlib", "report.py")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    plt.rcParams.update({
        "font.size": SMALL + 1, "axes.titlesize": SMALL + 1.5, "axes.labelsize": SMALL + 0.5,
        "xtick.labelsize": SMALL, "ytick.labelsize": SMALL, "legend.fontsize": SMALL,
        "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"})
    return plt


def canvas(height, rows=1, columns=1, **kw):
    """A figure of the page's width and its axes in a list."""
    fig, axes = pyplot().subplots(rows, columns, figsize=(WIDTH, height), layout="constrained",
                                  squeeze=False, **kw)
    return fig, list(axes.flat)


def save(fig, path):
    fig.savefig(path + ".tmp", dpi=DPI, format="png")
    os.replace(path + ".tmp", path)
    pyplot().close(fig)
    return path


# --------------------------------------------------------------------------------------------------
# Lines that are labelled where they end

def apart(places, least):
    """Places (numbers) moved so that no two are nearer than `least`, as little as it takes."""
    order = sorted(range(len(places)), key=places.__getitem__)
    groups = [([i], places[i]) for i in order]                       # (members, their middle)
    merged = True
    while merged:
        merged = False
        for n, ((a, at), (b, bt)) in enumerate(zip(groups, groups[1:])):
            if bt - at < least * (len(a) + len(b)) / 2 - 1e-9:
                middle = mean(places[i] for i in a + b)
                groups[n:n + 2], merged = [(a + b, middle)], True
                break
    moved = list(places)
    for members, middle in groups:
        for n, i in enumerate(members):
            moved[i] = middle + least * (n - (len(members) - 1) / 2)
    return moved


def label_ends(ax, ends, least):
    """ends: [(x, y, text)]; texts to the right of the axes, at least so far apart in y."""
    left, right = ax.get_xlim()
    right += 0.045 * (right - left)
    for (x, y, text), at in zip(ends, apart([y for _, y, _ in ends], least)):
        ax.annotate(text, (x, y), (right, at), va="center", fontsize=SMALL, annotation_clip=False,
                    arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "0.5", "relpos": (0, 0.5),
                                "shrinkA": 1, "shrinkB": 4})


def band(ax, x, worst, best):
    ax.fill_between(x, worst, best, color="0", alpha=0.1, lw=0)
    for edge in (worst, best):                                       # where bands overlap
        ax.plot(x, edge, color="0.65", lw=0.5)


def curves(ax, lives, x, names=None, least=6.5):
    """lives: {name: [curve of a seed]} over x; shorter curves are its last points (joint: one).

    The spread over seeds is a band, or bars side by side where more than four bands would overlap.
    """
    ends, wide = [], max(x) - min(x)
    for i, (name, seeds) in enumerate(lives.items()):
        line, marker, filled, grey = LINES.get(name, ("-", "", True, "0"))
        at = list(x)[-len(seeds[0]):]
        y = [mean(points) for points in zip(*seeds)]
        if len(seeds) > 1 and len(at) > 1:
            worst, best = [min(p) for p in zip(*seeds)], [max(p) for p in zip(*seeds)]
            if len(lives) > 4:
                at = [place + 0.01 * wide * (i - len(lives) / 2) for place in at]
                ax.vlines(at, worst, best, color=grey, lw=0.8, clip_on=False)
            else:
                band(ax, at, worst, best)
        ax.plot(at, y, line, color=grey, marker=marker, ms=9 if marker == "*" else 5, lw=1.3,
                mfc=grey if filled else "w", clip_on=False)
        ends.append((at[-1], y[-1], (names or CALLED).get(name, name)))
    room = 0.5 if not wide else 0.05 * wide if len(lives) > 4 else 0.0
    ax.set(xticks=list(x), xlim=(min(x) - room, max(x) + max(room, 0.03 * wide)))
    label_ends(ax, ends, least)


def so_far(R):
    """Per cent known of all days met so far, a number a night."""
    return [100 * mean(r for r in row if r is not None) for row in R]


# --------------------------------------------------------------------------------------------------
# A life

def shade(share):
    """Grey of a share of facts known, 0 black to 1 white; between 1 and .9 as far as .9 and .5."""
    return (1 - share) ** 0.45


def matrix(ax, R, title):
    """R[i][j]: exam of day j after night i; the number in each cell, black where all is known."""
    n = len(R[0])
    size = SMALL if n < 25 else SMALL - 2
    for i, row in enumerate(R):
        for j, share in enumerate(row):
            if share is not None:
                square(ax, j, i, share, f"{100 * share:.0f}", size)
    if n > 5:                                                        # where no exam is: the scale
        ax.text(n - 4.7, 0, "scale", ha="right", va="center", fontsize=SMALL)
        for x, share in enumerate((1.0, 0.9, 0.5, 0.0)):
            square(ax, n - 4 + x, 0, share, f"{100 * share:.0f}", size)
    ticks = range(0, n, 1 if n < 15 else 3)
    ax.set(xlim=(-0.5, n - 0.5), ylim=(len(R) - 0.5, -0.5), aspect="equal", title=title,
           xlabel="exam of day", ylabel="after night", xticks=ticks,
           xticklabels=[t + 1 for t in ticks], yticks=[t for t in ticks if t < len(R)],
           yticklabels=[t + 1 for t in ticks if t < len(R)])
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)


def square(ax, x, y, share, text, size):
    grey = shade(share)
    ax.add_patch(pyplot().Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, fc=str(grey), ec="0.5",
                                    lw=0.5))
    ax.text(x, y, text, ha="center", va="center", fontsize=size, color="w" if grey < 0.5 else "k")


def dots(ax, kinds, title):
    """kinds: {name: {"next_morning", "end", "n"}}: open next morning, full at the end."""
    for y, (name, k) in enumerate(reversed(kinds.items())):
        first, last = (None if k.get(x) is None else 100 * k[x] for x in ("next_morning", "end"))
        if first is not None and last is not None:
            ax.plot([first, last], [y, y], "-", color="0.6", lw=1)
        if first is not None:
            ax.plot(first, y, "o", color="k", mfc="w", ms=7, clip_on=False)
        if last is not None:
            ax.plot(last, y, "o", color="k", ms=4.5, clip_on=False)
    ax.set(yticks=range(len(kinds)), xlim=(-2, 102), ylim=(-0.6, len(kinds) - 0.4),
           xlabel="% right", title=title)
    ax.set_yticklabels([f"{name} ({k['n']})" for name, k in reversed(kinds.items())])
    ax.grid(axis="x", color="0.88")


def lived(folder):
    """{method: [summary]} of a folder of sleep.py, and of the lives that were lived beside it."""
    found = {}
    for beside in ("", "none", "sft"):
        path = os.path.join(folder, beside, "summary.json")
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as f:
                summary = json.load(f)
            found[beside or summary.get("method", "sleep")] = [summary]
    if not found:
        flags.fail(f"no life in {folder}: expected {os.path.join(folder, 'summary.json')}",
                   "report.py")
    return found


def life_picture(lives, path):
    """What is known of which day after which night, and beside it all days met so far.

    lives: a folder of sleep.py, or {name: [run]} with "R" (and "seed", "kinds") in each run, the
    life to show first; or one R-matrix. Returns the path.
    """
    if isinstance(lives, str):
        lives = lived(lives)
    if not isinstance(lives, dict):
        lives = {"sleep": [{"R": lives}]}
    name, runs = next(iter(lives.items()))
    shown = min(runs, key=lambda r: r.get("seed", 0))
    kinds, wide = shown.get("kinds") or {}, len(shown["R"][0]) > 10
    plt = pyplot()
    heights = ([7.4, 2.8] if wide else [3.3]) + [0.8 + 0.27 * len(kinds)] * bool(kinds)
    fig = plt.figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    grid = fig.add_gridspec(len(heights), 1 if wide else 2, height_ratios=heights,
                            **({} if wide else {"width_ratios": [1, 1]}))
    seed = f", seed {shown['seed']}" if "seed" in shown else ""
    matrix(fig.add_subplot(grid[0, 0]), shown["R"], f"{name}: % known{seed}")
    ax = fig.add_subplot(grid[1, 0] if wide else grid[0, 1])
    curves(ax, {who: [so_far(r["R"]) for r in some] for who, some in lives.items()},
           range(1, len(shown["R"]) + 1), {})
    if wide:
        ax.set_xticks(range(1, len(shown["R"]) + 1, 2))
    title = "All days met so far" + (f", {len(runs)} seeds" if len(runs) > 1 else "")
    ax.set(xlabel="after night", ylabel="% known", ylim=(-3, 103), title=title)
    if kinds:
        dots(fig.add_subplot(grid[-1, :]), kinds,
             "Kinds of questions (number): next morning ○, at the end ●")
    return save(fig, path)


# --------------------------------------------------------------------------------------------------
# Sleep against others, and the ablations

SHOWN = ("sleep", "inca", "joint", "replay", "qa_replay", "generative_replay", "ewc", "sft", "none")


def world_picture(file, path):
    """All days so far after each night, the embedded world (knowledge.json)."""
    lives = {}
    for name in SHOWN:
        R = [r["R"] for r in file["runs"] if r["method"] == name]
        if R:
            lives[name] = [so_far(r if r[0][0] is not None else r[-1:]) for r in R]
    fig, (ax,) = canvas(3.6)
    nights = max(len(c) for seeds in lives.values() for c in seeds)
    curves(ax, lives, range(1, nights + 1), least=6)
    ax.set(xlabel="after night", ylabel="% known, all days so far", ylim=(-3, 103),
           title=f"The embedded world, {seeds_of(file)} seeds")
    return save(fig, path)


def seeds_of(file):
    return len({r["seed"] for r in file["runs"]})


def classes_picture(file, path):
    """All classes so far after each night (classes-*.json); night 0: the base alone."""
    lives = {}
    for name in SHOWN:
        seeds = [r["over_nights"] for r in file["runs"] if r["method"] == name]
        if seeds:
            lives[name] = [[100 * x for x in curve] for curve in seeds]
    fig, (ax,) = canvas(3.6)
    nights = max(len(c) for seeds in lives.values() for c in seeds)
    curves(ax, lives, range(nights), {**CALLED, "inca": "InCA, the router alone"}, least=6)
    ax.set(xlabel="after night", ylabel="% right, all classes so far", ylim=(-3, 103),
           title=f"{file['data']}, {seeds_of(file)} seeds")
    return save(fig, path)


def year_picture(run, path):
    """A long life: recall by the age of a day, over all mornings on which all days were asked (mean
    of a week of ages; band: worst and best morning), and bits a parameter of each level, of its
    experts, on the last night on which it had any; bits are shared out by days."""
    fig, (left, right) = canvas(2.6, 1, 2, width_ratios=[3, 2])
    of_age = {}
    for morning, row in run["R"].items():
        weeks = {}
        for j, share in enumerate(row):
            if share is not None:
                weeks.setdefault((int(morning) - 1 - j) // 7, []).append(share)
        for week, shares in weeks.items():
            of_age.setdefault(week, []).append(mean(shares))
    ages = [7 * week + 3.5 for week in sorted(of_age)]
    recalls = [of_age[week] for week in sorted(of_age)]
    band(left, ages, [min(x) for x in recalls], [max(x) for x in recalls])
    left.plot(ages, [mean(x) for x in recalls], "-ok", markersize=4)
    left.set(xlabel="age of the memory, days", ylim=(0, 1.05), title="recall")
    found = {}
    for t in run["times"]:
        where = tables.levels_of(t["night"], [m for m in run["moves"] if m[0] <= t["night"]])
        for k, (experts, parameters) in enumerate(t["experts"], 1):
            if experts:
                days = sum(level == k for level in where)
                found[k] = run["bits"] / run["days"] * days / parameters
    right.plot(list(found), list(found.values()), "ok", markersize=5)
    right.set(xlabel="level of memory", xticks=sorted(found), ylim=(0, None),
              xlim=(0.5, max(found) + 0.5), title="bits a parameter")
    return save(fig, path)


def forest(rows, path, title):
    """rows of stats.compared: mean and 95 % interval of each difference, and what it means."""
    places, names, heads, y, nights = [], [], [], 0.0, 0
    for i, row in enumerate(rows):
        if i == 0 or row["regime"] != rows[i - 1]["regime"]:
            nights = row["nights"]
            heads.append((y, f"{row['regime']}, {nights} night" + "s" * (nights > 1)))
            y += 1.0
        places.append(y)
        names.append(row["life"] + f", {row['nights']} nights" * (row["nights"] != nights))
        y += 1.4 if i + 1 < len(rows) and row["regime"] != rows[i + 1]["regime"] else 1.0
    fig, (ax,) = canvas(0.9 + 0.205 * y)
    for row, y in zip(rows, places):
        m, half = stats.interval(row["differences"])
        ax.errorbar(m, y, xerr=half, fmt="o", color="k", ms=5, capsize=2.5, lw=1.1,
                    mfc="k" if row["effect"] else "w")
        ax.text(1.02, y, tables.judged(row).replace("*", ""), va="center", fontsize=SMALL,
                transform=ax.get_yaxis_transform())
    for at, head in heads:
        ax.text(-0.02, at, head, ha="right", va="center", weight="bold", fontsize=SMALL,
                transform=ax.get_yaxis_transform())
    ax.axvline(0, color="0.5", lw=0.8)
    ax.grid(axis="x", color="0.9")
    ax.locator_params(axis="x", nbins=5)
    ax.set(yticks=places, ylim=(max(places) + 0.7, -0.7), title=title)
    fig.supxlabel("ACC minus that of the same life with it, 95 % interval; ● certain after Holm",
                  fontsize=SMALL + 0.5)
    ax.set_yticklabels(names)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return save(fig, path)


# --------------------------------------------------------------------------------------------------
# The neighbours

PASSES = [("-", "o", True, "●"), ("--", "s", False, "□"), (":", "^", True, "▲"),
          ("-.", "D", False, "◇")]


def depth(ax, lines, guess, title, xlabel, least):
    """lines: {label: [accuracies of a seed]}: a line an N; bars: worst and best seed."""
    ends = []
    for i, (label, seeds) in enumerate(sorted(lines.items(), reverse=True)):
        line, marker, filled, sign = PASSES[i % len(PASSES)]
        y = [mean(x) for x in zip(*seeds)]
        x = [k + 0.05 * (i - 1) for k in range(1, len(y) + 1)]
        spread = list(zip(*((m - min(v), max(v) - m) for m, v in zip(y, zip(*seeds)))))
        ax.errorbar(x, y, spread, fmt=line + marker, color="k", ms=5, capsize=2.5, lw=1.2,
                    mfc="k" if filled else "w", elinewidth=0.8, clip_on=False)
        ends.append((x[-1], y[-1], f"{sign} {label.split(',')[0]}"))
    ax.plot(range(1, len(guess) + 1), guess, color="0.6", lw=2.5, zorder=0)
    ends.append((len(guess), guess[-1], "guessing"))
    ax.set(title=title, xlabel=xlabel, xticks=range(1, len(guess) + 1), ylabel="accuracy",
           xlim=(0.8, len(guess) + 0.25))
    label_ends(ax, ends, least)


def recurrence_picture(file, parts, path):
    """parts: [(task, "equal CPU" | "equal steps", title, x label)]: accuracy against depth."""
    fig, axes = canvas(3.2, 1, len(parts), sharey=True)
    low = 0.4 if parts[0][0].startswith("rule") else 0.0
    for ax, (task, kind, title, xlabel) in zip(axes, parts):
        lines = {label: seeds for label, seeds in
                 tables.recurrence_lines(file["runs"], task).items() if label.endswith(kind)}
        depth(ax, lines, file["guess"][task], title, xlabel, 0.065 * (1.03 - low))
        ax.set(ylim=(low, 1.03))
    for ax in axes[1:]:
        ax.set(ylabel="")
    return save(fig, path)


def map_picture(file, path):
    """absorber.py, map: classes that were in Y (full) and only in X (open), a row a method."""
    found = tables.by_method(tables.absorbed(file, "map"))
    found.pop("hidden, highest rate", None)
    rows = []
    for name, seeds in found.items():
        pair = [[s[key] for s in seeds if s.get(key) is not None] for key in ("covered",
                                                                              "uncovered")]
        rows.append((tables.NAMES.get(name, name), *pair))
    rows.sort(key=lambda row: mean(row[1]) + mean(row[2]))
    fig, (ax,) = canvas(0.9 + 0.26 * len(rows))
    for y, (_, covered, uncovered) in enumerate(rows):
        ax.plot([mean(uncovered), mean(covered)], [y, y], color="0.6", lw=1, zorder=0)
        spot(ax, uncovered, y, "w", 7.5)
        spot(ax, covered, y, "k", 5)
    ax.axvline(1 / 8, color="0.5", lw=1, ls=":")
    ax.text(1 / 8 + 0.01, len(rows) - 0.45, "chance", fontsize=SMALL, color="0.3")
    ax.set(yticks=range(len(rows)), xlim=(0, 1.02), ylim=(-0.6, len(rows) - 0.1))
    ax.set_yticklabels([name.replace(", the model", ",\nthe model") for name, *_ in rows])
    fig.supxlabel("accuracy when X and Y are gone:  ● class was in Y   ○ class was only in X",
                  fontsize=SMALL + 0.5)
    ax.grid(axis="x", color="0.9")
    return save(fig, path)


def spot(ax, values, y, fill, size):
    m = mean(values)
    ax.errorbar(m, y, xerr=[[m - min(values)], [max(values) - m]], fmt="o", color="k",
                mfc=fill, ms=size, lw=0.8, clip_on=False)


STREAM = {  # name in the file: (label, line, marker, filled, grey); the others are in the table
    "full": ("all in context", "-", "s", False, "0.5"),
    "hidden": ("hidden states", "-", "o", True, "0"),
    "logits": ("token distributions", "--", "^", False, "0"),
    "truncation": ("nothing is done", ":", "", True, "0.5")}


def stream_picture(file, path):
    """absorber.py, stream: accuracy on a class against how long ago it left the window."""
    found, ends = tables.by_method(tables.absorbed(file, "stream")), []
    fig, (ax,) = canvas(3.4)
    for name, (label, line, marker, filled, grey) in STREAM.items():
        seeds = [s["by_class"][5::-1] for s in found[name]]
        y = [mean(x) for x in zip(*seeds)]
        band(ax, range(1, 7), *([worst(x) for x in zip(*seeds)] for worst in (min, max)))
        ax.plot(range(1, 7), y, line, marker=marker, color=grey, ms=5, clip_on=False,
                mfc=grey if filled else "w")
        ends.append((6, y[-1], label))
    ax.set(xlabel="slides ago (6: was never in a Y)", ylabel="accuracy", xlim=(1, 6.1),
           ylim=(0, 1.03), title=f"Classes that have left the window, {len(seeds)} seeds")
    label_ends(ax, ends, 0.085)
    return save(fig, path)


def absorber_life_picture(file, others, path):
    """absorber.py: time a token behind n tokens, and a life of absorbing nights beside others."""
    found = tables.absorbed(file, "latency")
    fig, (left, right) = canvas(3.2, 1, 2)
    n, ends = [row["n"] for row in found[0]["rows"]], []
    for key, label, style in (("full_ms", "in context", "-o"), ("absorbed_ms", "absorbed", "--s")):
        y = [mean(x) for x in zip(*([row[key] for row in r["rows"]] for r in found))]
        left.plot(n, y, style, color="k", mfc="k" if style == "-o" else "w", ms=5, clip_on=False)
        ends.append((n[-1], y[-1], label))
    left.set(xlabel="tokens n behind it", ylabel="ms a token", ylim=(0, None), title="Latency",
             xlim=(0, n[-1] * 1.04), xticks=[0, n[-1] // 2, n[-1]])
    label_ends(left, ends, 0.4)
    lives = {name: [so_far(r["R"]) for r in runs]
             for name, runs in tables.absorber_lives(file, others).items()}
    curves(right, lives, range(1, max(len(c[0]) for c in lives.values()) + 1), {}, 7)
    right.set(xlabel="after night", ylabel="% known, all days so far", ylim=(-3, 103),
              title="Nights")
    return save(fig, path)


# --------------------------------------------------------------------------------------------------
# All of them

def everything(files, folder):
    """Every picture of bench/README.md; yields the paths."""
    def at(name):
        return os.path.join(folder, name)
    yield life_picture({"sleep": files["week.json"]["runs"]}, at("week.png"))
    lives = {run["method"]: [run] for run in files["newcomer.json"]["runs"]}
    yield life_picture(lives, at("life.png"))
    yield world_picture(files["knowledge.json"], at("rivals-world.png"))
    for name in ("clinc150", "dbpedia"):
        yield classes_picture(files[f"classes-{name}.json"], at(f"rivals-{name}.png"))
    longest = max(files["year.json"]["runs"], key=lambda r: (r["days"], r["seed"]))
    yield year_picture(longest, at("year.png"))
    yield forest(stats.compared(files["ingredients.json"]), at("ingredients.png"),
                 "The whole night without it, or changed")
    rows = stats.compared(files["ablations.json"])
    default = [row for row in rows if row["against"] in ("sleep", "24 dreams")]
    regimes = [row for row in rows if row not in default]
    yield forest(default, at("ablations.png"), "The default life without it, or changed")
    yield forest(regimes, at("ablations-regimes.png"), "Where there is more room for an effect")
    yield recurrence_picture(files["recurrence.json"], [
        ("khop", "equal CPU", "k-th successor, equal CPU time", "hops k"),
        ("khop", "equal steps", "equal steps", "hops k")], at("recurrence.png"))
    yield recurrence_picture(files["recurrence.json"], [
        ("rule110_small", "equal CPU", "Rule 110, 1 row of 16", "steps t"),
        ("rule110", "equal CPU", "4 rows of 24", "steps t")], at("recurrence-rule110.png"))
    yield map_picture(files["absorber.json"], at("absorber.png"))
    yield stream_picture(files["absorber.json"], at("absorber-stream.png"))
    yield absorber_life_picture(files["absorber.json"], files["ablations.json"],
                                at("absorber-life.png"))
