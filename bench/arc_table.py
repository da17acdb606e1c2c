"""
The numbers of bench/arc.py as a table beside the papers' ([S] = Language Models Need Sleep, arXiv
2606.03979; SEAL, arXiv 2506.10943). Nothing is measured here.
"""
from bench import stats
from bench.tables import table

METHODS = ("icl", "ttt", "tuned", "dream", "sleep")
PAPERS = {  # success in per cent, Llama-3.2-1B-Instruct, 8 held-out tasks of ARC-AGI-1
    "icl": "0 (SEAL, [S])",
    "ttt": "10 ([S], by our notes: not sure; SEAL's table has no such row)",
    "tuned": "",
    "dream": "20 (SEAL, [S]: TTT + self-edit without RL)",
    "sleep": "72.5 (SEAL), 80 ([S])"}


def shown(values):
    """Mean and half of the 95 % interval over seeds, in per cent."""
    m, half = stats.interval([100 * v for v in values])
    return f"{m:.1f}" + (f" ± {half:.1f}" if half == half else "")


def rows(file):
    """Success, any attempt and majority of each method, over seeds, beside the papers'."""
    runs = list(file["seeds"].values())
    return table(["% of held-out tasks", "success", "any attempt", "majority", "the papers'"],
                 [[m, *(shown([r["success"][m][k] for r in runs])
                        for k in ("success", "any", "vote")), PAPERS[m]] for m in METHODS])


def differences(file):
    """What sleep has more than the others that learn, paired by seed."""
    said = []
    for other in METHODS[1:-1]:
        d = [r["success"]["sleep"]["success"] - r["success"][other]["success"]
             for r in file["seeds"].values()]
        apart = ", ".join(f"{100 * x:+.1f}" for x in d)
        said.append(f"sleep - {other}: {shown(d)} (by seed {apart})")
    return said


def seeds(file):
    """What each seed looked at, kept, dreamt and rejected, a line each."""
    said = []
    for s, r in file["seeds"].items():
        trials = ", ".join(f"{t['rejected']} of {t['dreams']}" for t in r["trials"])
        said.append(f"seed {s}: of {r['looked']} tasks {r['too long']} are too long for the "
                    f"context (unsolved), {100 * r['icl of all']:.0f} % are solved in it, "
                    f"{r['learnable']} more are learnable; {len(r['chosen']['train'])} to train, "
                    f"{len(r['chosen']['held'])} held out; dreams rejected a round: {trials}")
    return said + [f"seed {s}: the filter left nothing to learn"
                   for s in file.get("nothing learnable", [])]


def told(file):
    """The result file as a text."""
    if not file["seeds"]:
        return "\n".join(["no seed is finished", *seeds(file)])
    return "\n".join([*rows(file), "", *differences(file), *seeds(file)])
