"""The README says what the result files say."""
import json
import re
from pathlib import Path

import pytest

from bench import ablations, report, stats
from bench.ablations import after
from bench.stats import pm

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "bench" / "results"


def cell(values):
    """.991 ± .005, as the README writes it."""
    return report.short(pm(values))


@pytest.mark.parametrize("name", ["sleep", "sft", "none"])
def test_the_default_life(name):
    lives = [r for r in json.loads((RESULTS / "ablations.json").read_text())["runs"] if r["life"] == name]
    cut = [after(r, 7) for r in lives]
    row = next(line for line in TEXT.splitlines() if line.replace("*", "").startswith(f"| {name} | "))
    cells = [c.strip() for c in row.replace("*", "").strip("|").split("|")][1:]
    columns = ("recall", "ACC", "BWT", "old", "reading", "reversed")
    assert len(lives) == 5 and cells == [cell([c[k] for c in cut]) for k in columns]


def test_clinc150():
    found = json.loads((RESULTS / "clinc150.json").read_text())["sleep"]
    words = f"{found['final']:.3f} of all 150 intents after the last night, {found['average_incremental']:.3f} on average"
    assert report.short(words) in " ".join(TEXT.split())


def test_every_file_and_script_it_names_is_there():
    for path in set(re.findall(r"(?:bench|data|tests)/[a-z0-9_/]+\.(?:py|json|png)", TEXT)):
        assert (ROOT / path).is_file(), path


def test_no_result_holds_the_path_of_a_machine():
    for path in RESULTS.glob("*.json"):
        assert not re.search(r"(?:^|[\s=\"])/(?:tmp|home|root|work|Users)/", path.read_text()), path


def test_what_replicates_is_the_table_of_report():
    lines = TEXT.splitlines()
    for row in report.claims():
        assert row in lines, row


def test_the_fair_fight():
    runs = {}
    for r in json.loads((RESULTS / "knowledge.json").read_text())["runs"]:
        runs.setdefault(r["method"], {})[r["seed"]] = r["ACC"]
    for name, acc in runs.items():
        row = next(line for line in TEXT.splitlines() if re.match(rf"\| \**{name}\** \| (the|all|nothing)", line))
        assert f"| {cell(list(acc.values()))} |" in row and len(acc) == 5
        if name != "sleep":
            gap = report.short(stats.gap([runs["sleep"][s] - x for s, x in acc.items()]))
            assert row.endswith(f"| {gap} |"), (row, gap)


def test_every_ablation():
    found = ablations.by_life(json.loads((RESULTS / "ablations.json").read_text()))
    held = 0
    for name, (group, _, _, against) in ablations.LIVES.items():
        if len(found.get(name, ())) == len(found.get(against, ())) == 5:   # a life short of seeds is no result yet
            n = min(len(r["R"]) for r in found[name].values())
            d = ablations.differences(found, name, n, "ACC")
            gap, word = report.short(stats.gap(d)), report.short(ablations.judged(name, d))
            rows = [line for line in TEXT.splitlines() if f"| {name.split(' (')[0]} | {n} |" in line and f"| {gap} |" in line]
            assert len(d) == 5 and any(word in line for line in rows), (name, gap, word)
            held += 1
    assert held >= 42
    lost, half = stats.interval([-x for x in ablations.differences(found, "no replay (more nights)", 5, "old")])
    assert report.short(f"{lost:.3f} ± {half:.3f}") in TEXT


@pytest.mark.parametrize("name", ["clinc150", "dbpedia"])
def test_new_topics(name):
    section, lives = TEXT.split("## New topics every day")[1].split("\n## ")[0], {}
    for r in json.loads((RESULTS / f"classes-{name}.json").read_text())["runs"]:
        assert r["split"] == "test"
        lives.setdefault(r["method"], {})[r["seed"]] = r["final"]
    assert len(lives["sleep"]) == 3 and len(lives) > 8
    for method, final in lives.items():
        rows = [line for line in section.splitlines() if re.match(rf"\| \**{method}\**( \(.*\))? \|", line)]
        assert any(f" | {cell(list(final.values()))} |" in line for line in rows), method
        if method != "sleep" and len(final) == 3:
            gap = report.short(stats.gap([lives["sleep"][s] - x for s, x in final.items()]))
            assert any(line.endswith(f"| {gap} |") for line in rows), (method, gap)
