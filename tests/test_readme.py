"""The README says what the result files say."""
import json
import re
from pathlib import Path

import pytest

from bench.ablations import after
from bench.stats import pm

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "bench" / "results"


def cell(values):
    """.991 ± .005, as the README writes it."""
    return re.sub(r"(?<![0-9])0\.", ".", pm(values)).replace("-", "−")


@pytest.mark.parametrize("name", ["sleep", "sft", "none"])
def test_the_default_life(name):
    lives = [r for r in json.loads((RESULTS / "week.json").read_text())["runs"] if r["variant"] == name]
    cut = [after(r, 7) for r in lives]
    row = next(line for line in TEXT.splitlines() if line.replace("*", "").startswith(f"| {name} | "))
    cells = [c.strip() for c in row.replace("*", "").strip("|").split("|")][1:]
    assert len(lives) == 5 and cells == [cell([c[k] for c in cut]) for k in ("recall", "ACC", "BWT", "old", "reading", "reversed")]


def test_clinc150():
    found = json.loads((RESULTS / "clinc150.json").read_text())
    for name in ("none", "sft", "sleep", "joint"):
        row = next(line for line in TEXT.splitlines() if re.match(rf"\| \**{name}\b.*\| \**\.\d+\** \|", line))
        assert f"{found[name]['final']:.3f}"[1:] in row, name


def test_every_file_and_script_it_names_is_there():
    for path in set(re.findall(r"(?:bench|data|tests)/[a-z0-9_/]+\.(?:py|json|png)", TEXT)):
        assert (ROOT / path).is_file(), path


def test_no_result_holds_the_path_of_a_machine():
    for path in RESULTS.glob("*.json"):
        assert not re.search(r"(?:^|[\s=\"])/(?:tmp|home|root|work|Users)/", path.read_text()), path
