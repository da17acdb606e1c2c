"""The README says what the result files say, and names only what is there."""
import importlib
import json
import re
from pathlib import Path
from statistics import mean

from bench import stats, tables

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "bench" / "results"
PLACES = {"model": "model", "seed": "seed", "dream": "dream", "sleep": "sleep",
          "gate": "data.gate", "asking": "data.asking", "kernels": "data.kernels"}


def test_it_can_be_read_in_one_sitting():
    assert len(TEXT.splitlines()) <= 220


def test_what_to_expect_is_the_result_file():
    lines = TEXT.splitlines()
    for row in tables.week(stats.read("week.json"), stats.read("crowd.json")):
        assert row in lines, row


def test_the_tour_names_functions_that_exist():
    tour = TEXT.split("## The tour")[1].split("\n## ")[0]
    found = re.findall(r"`(\w+)\.(\w+(?:\.\w+)?)`", tour)
    named = [(place, name) for place, name in found if place in PLACES and name not in ("py", "gate.py")]
    assert len(named) > 30
    for place, name in named:
        thing = importlib.import_module(PLACES[place])
        for part in name.split("."):
            assert hasattr(thing, part), f"{place}.{name}"
            thing = getattr(thing, part)


def test_every_file_and_script_it_names_is_there():
    for path in set(re.findall(r"(?:bench|data|tests)/[a-z0-9_/-]+\.(?:py|json|png|md)", TEXT)):
        assert (ROOT / path).is_file(), path


def test_no_result_holds_the_path_of_a_machine():
    for path in RESULTS.glob("*.json"):
        found = re.search(r"(?:^|[\s=\"])/(?:tmp|home|root|work|Users)/", path.read_text())
        assert not found, path


def test_the_ingredients_it_quotes():
    found = stats.by_life(json.loads((RESULTS / "ingredients.json").read_text()))
    for start, names in (("| What carries it?", ("one expert", "open router", "reverse KL")),
                         ("| On-policy steps", ("24 dreams", "random selection (24 dreams)",
                                                "gradient norm (24 dreams)"))):
        row = next(line for line in TEXT.splitlines() if line.startswith(start))
        for name in names:
            acc = mean(run["ACC"] for run in found[name].values())
            assert f" {acc:.2f}".replace("0.", ".") in row, (name, acc)
    m, half = stats.interval(stats.differences(found, "on-policy 1 (warm student)"))
    assert f"{m:.2f} ± {half:.2f}".replace("0.", ".").replace("-", "−") in row


def test_the_regime_and_the_rivals_it_quotes():
    def row(start):
        return next(line for line in TEXT.splitlines() if line.startswith(start))
    file, said = json.loads((RESULTS / "skills.json").read_text()), row("| Skills?")
    for nights, names in ((2, ("few exercises", "gate+sft (few exercises)",
                               "no dreaming (few exercises)")),
                          (7, ("sleep", "gate+sft", "twice the exercises",
                               *(f"{rival} (twice the exercises)" for rival in
                                 ("gate+sft", "gate+lora", "gate+cartridge"))))):
        for name in names:
            acc = mean(run["ACC"] for run in file["runs"] if run["life"] == name
                       and len(run["R"]) == nights and run["seed"] != 1)
            assert f" {acc:.2f}".replace("0.", ".") in said, (name, acc)
    week = tables.skill_gaps(file, 7)
    more, few = "gate+sft (twice the exercises)", "gate+sft (few exercises)"
    for pair in ((more, "gate+sft"), (more, "twice the exercises"), ("gate+sft", "sleep")):
        assert stats.gap(week[pair][0]).replace("0.", ".").replace("-", "−") in said, pair
    gap, p = tables.skill_gaps(file, 2)[few, "few exercises"]
    m, half = stats.interval([-d for d in gap])
    assert f"+{m:.3f} ± {half:.3f}, p = {p:.2f} after Holm".replace("0.", ".") in said
    gap, p = week[more, "gate+sft"]
    assert f"{stats.gap(gap)} (p = {p:.2f} after Holm)".replace("0.", ".") in said, p
    arms = stats.by_life(json.loads((RESULTS / "arms.json").read_text()))
    for name, digits in (("gate+lora", 3), ("gate+cartridge", 2), ("gate+sdft", 2)):
        acc = mean(run["ACC"] for run in arms[name].values())
        assert f" {acc:.{digits}f}".replace("0.", ".") in row("| Does a plain rival"), (name, acc)


def test_the_trial_it_quotes():
    found = stats.by_life(json.loads((RESULTS / "trial.json").read_text()))
    gap = stats.gap(stats.differences(found, "gate+sft"))
    assert gap.replace("0.", ".").replace("-", "−") in TEXT, gap
