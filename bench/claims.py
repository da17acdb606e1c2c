"""
What replicates? Each claim of Language Models Need Sleep (arXiv 2606.03979): its number, ours, and
a verdict. p-values are those of the file's own table, corrected there (Holm).
"""
from statistics import mean

from bench import stats
from bench.tables import beaten, grouped, short, table

# Each of these is given the result files, {name: file}, and returns a list of
# (where, text, differences, p after Holm); positive differences speak for the claim.


def beats(rival):
    """Sleep minus a rival, ACC after the last night (knowledge.json)."""
    def measured(files):
        lives = grouped(files["knowledge.json"]["runs"], "method")
        ours, theirs = (mean(r["ACC"] for r in lives[m].values()) for m in ("sleep", rival))
        text = f"ACC {ours:.3f} against {theirs:.3f}: "
        return [("", text, *beaten(files["knowledge.json"], "ACC")[rival])]
    return measured


def newest(files, life):
    """(a file that has this life, what to say of it): of the present nights, or the first edition.
    life: its name in a table, without its regime."""
    for name, said in (("ingredients.json", ""), ("ablations.json", "first edition: ")):
        if any(life in (row["name"], row["life"]) for row in stats.compared(files[name])):
            return files[name], said
    raise KeyError(life)


def needs(ingredient):
    """With it minus without it: the whole night, and every regime where it was taken away."""
    def measured(files):
        file, said = newest(files, ingredient)
        return [(row["regime"], said, [-d for d in row["differences"]], row["p"])
                for row in stats.compared(file) if row["life"] == ingredient]
    return measured


def better(life, other, n=2):
    """One life minus another, ACC after night n; p as one more row of the file's table."""
    def measured(files):
        file, said = newest(files, life)
        others = [row["differences"] for row in stats.compared(file)
                  if (row["name"], row["against"]) != (life, other)]
        d = stats.differences(stats.by_life(file), life, other=other, n=n)
        return [("", said, *stats.corrected([*others, d])[-1])]
    return measured


def beats_in_classes(rival):
    """Sleep minus a rival on all classes after the last night (classes-*.json)."""
    def measured(files):
        return [(file["data"], "", *beaten(file, "final")[rival])
                for name, file in files.items() if name.startswith("classes-")]
    return measured


SQUAD = "SQuAD, n = 1 / n = 200, Table 3"
CLAIMS = [  # (claim, the paper's number, what measures it)
    ("Sleep keeps what fine-tuning loses", f"48.1 / 44.3 against 33.4 / 32.0 ({SQUAD})",
     beats("sft")),
    ("Sleep is better than SEAL", f"48.1 / 44.3 against 46.7 / 43.2 ({SQUAD})", beats("seal")),
    ("Sleep is better than GRPO", "79.2 against 76.4 (AIME-24, Qwen3-8B, Table 2)", beats("grpo")),
    ("Sleep is better than OPSD, self-distillation without expansion",
     "79.2 against 76.6 (Table 1)", beats("opsd")),
    ("Test-time training is no substitute", "80 against 10 (few-shot ARC, Table 4)", beats("ttt")),
    ("Expansion helps", "79.2, without 78.2 (Table 1)", needs("no expansion")),
    ("Imitation helps", "79.2, without 76.8 (Table 1)", needs("no imitation")),
    ("The semantic reward helps", "79.2, without 78.9; 69.0, without 69.2 (Table 1)",
     needs("lexical reward only")),
    ("Dreaming helps", f"48.9 / 46.2, without 35.7 / 36.2 ({SQUAD})", needs("no dreaming")),
    ("Dreams chosen by the norm of their gradient beat random ones",
     f"48.9 / 46.2, without 47.1 / 45.2 ({SQUAD})",
     better("gradient norm (24 dreams)", "random selection (24 dreams)")),
    ("One random expert while dreaming helps", f"48.9 / 46.2, without 48.0 / 44.7 ({SQUAD})",
     better("random expert (24 dreams)", "24 dreams")),
    ("More levels help: nightly experts move into a slower one",
     f"2 levels 48.1 / 44.3, 4 levels 48.9 / 46.2 ({SQUAD})",
     better("every 2 nights", "sleep", 4)),
    ("New classes: sleep is better than EWC", "on all three sets (Figure 3)",
     beats_in_classes("ewc")),
    ("New classes: sleep is better than InCA (its first step)", "on all three sets (Figure 3)",
     beats_in_classes("inca")),
    ("Replay dreams of the old self help", "not ablated", needs("no replay")),
    ("A gate helps (ours)", "an open router", needs("no gate")),
]


def said(differences, p):
    """"yes", "the reverse", "not certain" or "no effect seen"."""
    found = stats.effect(differences, p)
    if found:
        return "yes" if found > 0 else "**the reverse**"
    if found is None:
        return "not certain, " + ("for it" if mean(differences) > 0 else "against it")
    return "**no effect seen**"


def together(parts):
    """The verdict on a claim that was measured in several places.

    Where nothing was seen it says which effect these seeds would have shown.
    """
    words = [said(d, p) for _, _, d, p in parts]
    could = [stats.detectable(d) for (_, _, d, _), word in zip(parts, words) if "seen" in word]
    span = " to ".join(f"{x:.3f}" for x in sorted({min(could), max(could)})) if could else ""
    power = short(f" ({span} would show)") if could else ""
    if len(set(words)) == 1:
        return words[0] + power
    return "; ".join(f"{where}: {word}" for (where, *_), word in zip(parts, words)) + power


def rows(files):
    """[(claim, the paper, ours, verdict)], every text as the table has it."""
    lines = []
    for claim, paper, measured in CLAIMS:
        parts = measured(files)
        ours = [(where + (", " if text else " ")) * (len(parts) > 1) + short(text + stats.gap(d))
                for where, text, d, _ in parts]
        lines.append((claim, paper, ", ".join(ours), together(parts)))
    return lines


def what_replicates(files):
    return table(["claim", "the paper", "ours: for the claim, 95 % interval",
                  "does it replicate?"], rows(files))
