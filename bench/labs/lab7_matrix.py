"""
Lab 7: measure BWT, and read an R matrix.

    python bench/labs/lab7_matrix.py

QUESTION. R[i][j] is the share of what was told on day j that is known in the morning after night i
(None where the day is still to come). Two lives end with the same ACC: has one of them forgotten,
or did it never learn? Which numbers tell?

    ACC         1/T     sum_j R[T-1][j]                         GEM, arXiv 1706.08840, section 3
    BWT         1/(T-1) sum_{j<T-1} (R[T-1][j] - R[j][j])       the same
    forgetting  1/(T-1) sum_{j<T-1} max_{i<T-1} R[i][j] - R[T-1][j]      arXiv 1801.10112, section 3

WRITE `bwt` and `read_life` below, at most 4 and 8 lines. A life "never learns" if less than a tenth
of each day, on average, is known the next morning (recall, the mean of the diagonal); it "forgets"
if at the end less than half of that is left; else it "remembers".

THE NUMBER: of the 70 lives of fourteen methods in bench/results/knowledge.json, those of which your
BWT is exact and your reading right. Goal: all 70. Then two lives of four days are lived in the
village, and your functions read them. Half a minute, the base included.

OBSERVE. BWT of a life that never learns is 0, and so is that of one that never forgets: BWT alone
says nothing. How far from -ACC can it be? Look for columns that rise: a later night may help an
earlier day. In data/exam.py: metrics, show.
"""
import os
import sys

sys.path.insert(0, os.path.abspath(os.path.join(__file__, "..", "..", "..")))
import sleep                                                         # noqa: E402
from bench import baselines, stats                                   # noqa: E402
from bench.labs import common                                        # noqa: E402
from data import exam, text                                          # noqa: E402
from model import clone                                              # noqa: E402

WORDS = ("never learns", "forgets", "remembers")
DAYS, TOKENS, LR = 4, 60_000, 3e-3  # of the lives in the village; a night's of the rival


def bwt(R):
    """Backward transfer of a lower-triangular R (lists, None above the diagonal)."""
    # --- your code: at most 4 lines ---
    raise NotImplementedError("the last row minus the diagonal, over all days but the last, "
                              "at most 4 lines")


def read_life(R):
    """One of WORDS."""
    # --- your code: at most 8 lines ---
    raise NotImplementedError("recall and ACC tell which of the three words it is, "
                              "at most 8 lines")


def measure(o):
    runs = [run for run in stats.read("knowledge.json")["runs"] if run["method"] != "joint"]
    right, wrong = 0, []
    for run in runs:
        true, found, word = exam.metrics(run["R"]), bwt(run["R"]), read_life(run["R"])
        if abs(found - true["BWT"]) < 1e-9 and word == reading(true):
            right += 1
        else:
            wrong.append(f"first wrong: {run['method']}, seed {run['seed']}: BWT {found:+.3f}, it "
                         f"is {true['BWT']:+.3f}; {word!r}, it is {reading(true)!r}")
    seen = wrong[:1]
    for method in dict.fromkeys(run["method"] for run in runs):
        R = next(run["R"] for run in runs if run["method"] == method)
        seen.append(f"  {method:10} BWT {bwt(R):+.2f}  ACC {exam.metrics(R)['ACC']:.2f}  "
                    f"{read_life(R)}")
    if right == len(runs):
        seen += in_the_village(o)
    return common.Result(right, f"all {len(runs)}", right == len(runs), seen)


def reading(metrics):
    """What the page says, by data/exam.py."""
    if metrics["recall"] < 0.1:
        return "never learns"
    return "forgets" if metrics["ACC"] < metrics["recall"] / 2 else "remembers"


def in_the_village(o):
    """Two lives of four days, one that sleeps, one that learns its own quizzes with all weights."""
    data, _ = common.load_village(o, DAYS)
    lives = {"sleep": a_night_of_sleep, "fine-tuning on its own quizzes": a_night_of_quizzes}
    seen = []
    for name, night in lives.items():
        model, R = common.base(o, data), []
        for i in range(DAYS):
            model = night(clone(model), data, i)
            row = [common.known(model, data, data.exams(j, i)) for j in range(i + 1)]
            R.append(row + [None] * (DAYS - i - 1))
        old = common.known(model, data, data.always["old"])
        seen.append(f"\n{name}: BWT {bwt(R):+.2f}, it {read_life(R)}; the old {old:.2f}")
        seen += ["   " + "".join("      " if r is None else f"{r:6.2f}" for r in row) for row in R]
    return seen


def a_night_of_sleep(model, data, i):
    return sleep.asleep(common.night_flags(), model, sleep.wake(data, i, [])[0], data.marks, i)[0]


def a_night_of_quizzes(model, data, i):
    """bench/baselines.py: qa. Without usable quizzes the night changes nothing."""
    passages = [text.sentences(data.enc, p) for p in data.days[i].passages]
    try:
        baselines.qa(model, passages, data.marks, {}, TOKENS, LR)
    except sleep.seed.RestlessNight:
        pass
    return model.requires_grad_(False)


if __name__ == "__main__":
    common.run(measure, __doc__, __file__)
