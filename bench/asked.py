"""
A page of questions as a person would type them, put to a self after its life.

    python bench/asked.py --out_dir=out        -> bench/ASKED.md

The people and what is true of them are looked up in the world of that life; the questions are
typed anew. Right and wrong answers stand beside the truth.
"""
import os
import random
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import sleep
from bench import stats
from data import exam, flags, run, text, world

FLAGS = {"out_dir": ("out", flags.TEXT, "folder of the life that is asked"),
         "each": (2, flags.SOME, "questions of each kind")}
PAGE = os.path.join(ROOT, "bench", "ASKED.md")
WAYS = {  # of asking about a fact: what a person might type
    "by name": lambda f, rng: world.question(f.relation, f.name, rng, exam=True),
    "in small letters, without a question mark":
        lambda f, rng: world.question(f.relation, f.name, rng).lower().rstrip("?"),
    "the other way round": lambda f, rng: world.reverse(f, rng, exam=True),
    "described": lambda f, rng: world.question("loves", world.described(f), rng),
}


def questions(self_, told, old, truth, rng, each):
    """[(heading, context, question, what is true)] about people met, old and never met."""
    rows = []
    for heading, way in WAYS.items():
        for f in rng.sample(told, each):
            answer = {"the other way round": f.name,
                      "described": truth[f.name].get("loves", world.UNKNOWN)}.get(heading, f.value)
            rows.append((heading, "", way(f, rng), answer))
    for f in rng.sample(old, each):
        rows.append(("known from birth", "", world.question(f.relation, f.name, rng), f.value))
    for _ in range(each):
        name = world.stranger(self_, rng)
        rows.append(("never met", "", world.question("lives", name, rng), world.UNKNOWN))
    for f in rng.sample(told, each):
        now = f._replace(value=world.new_value("works", rng, []), relation="works")
        rows.append(("with a passage that says otherwise", world.passage([now], rng),
                     world.question("works", f.name, rng), now.value))
    return rows


def page(model, data, rows, about):
    items = [text.Item(context, question, "", "") for _, context, question, _ in rows]
    said = exam.answers(model, data, items)
    lines = ["# Asked as a person would type", "", *about, "",
             "| how | question | it says | where from | true |", "|---|---|---|---|---|"]
    for (heading, context, question, true), (answer, source) in zip(rows, said):
        read = f"*{context.strip()}* " if context else ""
        lines.append(f"| {heading} | {read}{question.strip()} | {answer} | {exam.said_by(source)} "
                     f"| {true.strip()} |")
    return "\n".join(lines) + "\n"


def main(argv):
    o = flags.parse(argv, __doc__, FLAGS, "asked.py")
    a = run.begin([f"--out_dir={o.out_dir}", "--ask=?"])
    data, rng = world.load(a), random.Random("asked")
    model, _ = sleep.load(os.path.join(a.out_dir, "checkpoint.pt"), a.torch_device)
    self_ = world.make_world(a.world_seed, a.days, a.people)
    days = [f for day in self_["days"] for told in day for f in told.facts]
    truth = world.true_of(self_["facts"] + days)
    told = [f for f in days if truth[f.name][f.relation] == f.value and f.relation != "friend"
            and f.name not in self_["old"]]
    old = [f for f in self_["facts"] if truth[f.name][f.relation] == f.value]
    about = [f"`python bench/asked.py`, commit `{stats.commit()}`, after the life "
             f"`sleep.py --seed={a.seed} --world_seed={a.world_seed}` of {a.days} days. "
             "Drawn once; nothing was chosen."]
    with open(PAGE, "w", encoding="utf-8") as f:
        f.write(page(model, data, questions(self_, told, old, truth, rng, o.each), about))
    print(open(PAGE, encoding="utf-8").read())


if __name__ == "__main__":
    flags.guarded(main, "asked.py")
