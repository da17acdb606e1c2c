"""bench/README.md says what the result files say; statistics by hand; pictures of a made-up life."""
import ast
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bench import claims, figures, lecture, report, stats, tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PAGE = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")


# --------------------------------------------------------------------------------------------------
# The page

def test_the_page_is_what_the_result_files_say(capsys):
    report.main(["--check"])
    assert "is what the result files say" in capsys.readouterr().out


def test_a_page_that_differs_is_refused_with_its_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "README.md").write_text(PAGE.replace("## What replicates", "## Whatever"))
    monkeypatch.setattr(report, "PAGE", str(tmp_path / "README.md"))
    shutil.copy(lecture.PAGE, tmp_path / "LECTURE.md")               # written to, too
    monkeypatch.setattr(lecture, "PAGE", str(tmp_path / "LECTURE.md"))
    with pytest.raises(SystemExit) as e:
        report.main(["--check"])
    line = PAGE[:PAGE.index("## What replicates")].count("\n") + 1
    err = capsys.readouterr().err
    assert e.value.code == 1 and f"first in line {line}:" in err and err.count("\n") == 1
    report.main([])
    assert (tmp_path / "README.md").read_text() == PAGE


def test_a_changed_number_changes_the_page():
    files = report.read_all()
    life = next(r for r in files["ablations.json"]["runs"] if r["life"] == "sleep")
    life["R"][-1][0] = 0.0
    assert report.page(files) != PAGE


def test_every_file_script_and_picture_it_names_is_there():
    for path in re.findall(r"\]\((results/[^)]+)\)", PAGE):
        assert (ROOT / "bench" / path).is_file(), path
    for path in re.findall(r"(?:bench|tests)/[a-z0-9_]+\.py", PAGE):
        assert (ROOT / path).is_file(), path


def test_every_result_file_names_its_command_commit_and_date_and_is_on_the_page():
    for path in RESULTS.glob("*.json"):
        file = json.loads(path.read_text(encoding="utf-8"))
        for part in [file] if "command" in file else file.values():    # a part a kind
            begins = "python bench/|OMP_NUM_THREADS=1 python sleep.py"
            assert re.match(begins, part["command"]), path
            assert re.fullmatch(r"[0-9a-f]{7,}(\+changes)?", part["commit"]), path
            assert re.fullmatch(r"\d{4}-\d\d-\d\d", part["date"]), path
        assert path.name in PAGE
        assert not re.search(r"(?:^|[\s=\"])/(?:tmp|home|root|work|Users)/", path.read_text()), path


def test_the_report_imports_no_chapter_and_no_bench_that_measures():
    seen, todo = set(), ["report"]
    while todo:
        name = todo.pop()
        seen.add(name)
        tree = ast.parse((ROOT / "bench" / f"{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            words = [a.name for a in node.names] if isinstance(
                node, (ast.Import, ast.ImportFrom)) else []
            module = getattr(node, "module", "") or ""
            assert not {"sleep", "seed", "dream", "model", "torch"} & {*words, module}, name
            if module.startswith("bench"):
                inner = [module[6:]] if module != "bench" else words
                todo += [w for w in inner if w not in seen]
    assert seen == {"report", "arc_table", "claims", "figures", "lecture", "neighbours", "stats",
                    "tables"}


@pytest.mark.parametrize("words, says", [
    (["--life=nowhere"], "no life in nowhere"), (["--chek"], "--check")])
def test_bad_flags_get_one_line(words, says, capsys):
    with pytest.raises(SystemExit) as e:
        report.main(words)
    err = capsys.readouterr().err
    assert e.value.code == 2 and says in err and err.count("\n") == 1


# --------------------------------------------------------------------------------------------------
# Statistics, by hand and by the tables of a textbook

def test_interval_by_hand():
    m, half = stats.interval([1.0, 2.0, 3.0])
    assert m == 2.0 and half == pytest.approx(4.3027 * 1.0 / 3 ** 0.5, abs=1e-3)
    assert math.isnan(stats.interval([1.0])[1])                      # one seed has no interval
    assert stats.pm([1.0, 2.0, None, 3.0], 2) == "2.00 ± 1.00"
    assert stats.pm([None]) == "" and stats.pm([0.5], 1) == "0.5"
    assert stats.gap([1.0, 2.0, 3.0]) == "+2.000 ± 2.484"


@pytest.mark.parametrize("df, share, t", [
    (1, 0.95, 12.7062), (2, 0.95, 4.3027), (4, 0.95, 2.7764), (9, 0.95, 2.2622), (30, 0.95, 2.0423),
    (4, 0.60, 0.9410), (4, 0.99, 4.6041)])
def test_student_t_as_printed_in_textbooks(df, share, t):
    assert stats.quantile(share, df) == pytest.approx(t, abs=1e-4)
    assert stats.within(t, df) == pytest.approx(share, abs=1e-4)


def test_p_values_by_hand():
    assert stats.p_value([1.0, 2.0, 3.0]) == pytest.approx(0.0742, abs=1e-4)       # t = 3.464
    assert stats.p_value([-1.0, 1.0]) == pytest.approx(1.0)
    assert stats.p_value([0.0, 0.0]) == stats.p_value([0.3]) == 1.0
    assert stats.p_value([0.2, 0.2, 0.2]) == 0.0


def test_holm_by_hand():
    """.01 x 4; .02 x 3; then .03 x 2 = .06, which is no smaller than that; .5 x 1."""
    assert stats.holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert stats.holm([0.04, 0.05]) == pytest.approx([0.08, 0.08])                 # never falls
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0] and stats.holm([]) == []


def test_the_effect_that_would_show_by_hand():
    """Five seeds of standard deviation .02: (2.7764 + .9410) x .02 / sqrt(5)."""
    d = [0.02 * x / 2.5 ** 0.5 for x in (-2, -1, 0, 1, 2)]
    assert stats.stdev(d) == pytest.approx(0.02, abs=1e-6)
    assert stats.detectable(d) == pytest.approx(0.03325, abs=1e-4)
    assert math.isnan(stats.detectable([1.0]))


def test_two_one_sided_tests_by_hand():
    """Five seeds, mean .01, standard deviation .02: t = (margin - .01) sqrt(5) / .02, and one side
    of Student's t with 4 degrees of freedom is .025 beyond 2.7764."""
    d = [0.01 + 0.02 * x / 2.5 ** 0.5 for x in (-2, -1, 0, 1, 2)]
    margin = 0.01 + 2.7764 * 0.02 / 5 ** 0.5
    assert stats.equivalent(d, margin) == pytest.approx(0.025, abs=1e-4)
    assert stats.equivalent([-x for x in d], margin) == pytest.approx(0.025, abs=1e-4)
    assert stats.equivalent(d, 0.01) == pytest.approx(0.5) and stats.equivalent(d, 0.005) > 0.5
    assert stats.equivalent([0.0, 0.0], 0.01) == 0.0 and stats.equivalent([0.0], 0.01) == 1.0


def test_effects_are_certain_only_after_the_correction():
    d = [-0.4, -0.5, -0.45]
    assert stats.effect(d, 0.01) == -1 and stats.effect([-x for x in d], 0.01) == 1
    assert stats.effect(d, 0.2) is None and stats.effect([-0.1, 0.1, 0.05], 1.0) == 0


@pytest.mark.parametrize("differences, says", [
    ([-0.4, -0.5, -0.45], "helps: 0.450"), ([0.1, 0.12, 0.11], "hurts: 0.110"),
    ([-0.1, 0.1, 0.05], "no effect seen"), ([0.0, 0.0, 0.0], "no effect seen"),
    ([-0.4], "one seed")])
def test_verdicts_of_one_difference(differences, says):
    assert stats.verdict(differences) == says


def test_provenance_names_command_commit_and_date(tmp_path):
    said = stats.provenance("python bench/x.py")
    assert set(said) == {"command", "commit", "date", "versions", "threads"}
    assert said["command"] == "python bench/x.py" and "python" in said["versions"]
    assert said["commit"] is None or re.fullmatch(r"[0-9a-f]+(\+changes)?", said["commit"])
    assert stats.commit(str(tmp_path)) is None                       # not the top of a checkout


def test_a_commit_has_changes_when_code_differs_not_when_results_do(tmp_path):
    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", *words],
                       check=True, capture_output=True)
    results = tmp_path / "bench" / "results"
    results.mkdir(parents=True)
    for file in (results / "x.json", tmp_path / "model.py"):
        file.write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    (results / "x.json").write_text("2")
    assert "+" not in stats.commit(str(tmp_path))
    (tmp_path / "model.py").write_text("2")
    assert stats.commit(str(tmp_path)).endswith("+changes")


# --------------------------------------------------------------------------------------------------
# Tables of hand-made lives

def hand_made(life, seed, R, group="ingredients", **night):
    nights = [{"old": 1.0, "reading": 0.9, "reversed": 0.0, **night} for _ in R]
    return {"life": life, "group": group, "seed": seed, "R": R, "nights": nights}


THREE = [[1.0, None, None], [1.0, 0.9, None], [0.0, 0.0, 0.0]]


def test_ablations_pair_by_seed_cut_to_the_shorter_life_and_sort():
    runs = [hand_made("sleep", s, THREE) for s in (1, 2, 3)]
    runs += [hand_made("no gate", s, [[1.0, None], [0.5, 0.4 + s / 100]]) for s in (1, 2, 3)]
    runs += [hand_made("no mask", s, [[1.0, None], [0.9, 1.0]]) for s in (2, 3)]
    runs += [hand_made("few", s, [[0.5]], "few") for s in (1, 2)]
    runs += [hand_made("no gate (few)", s, [[0.25 * s]], "few") for s in (1, 2)]
    rows = stats.compared({"runs": runs})
    assert [(r["regime"], r["name"], r["against"], r["nights"]) for r in rows] == [
        ("default", "no gate", "sleep", 2), ("default", "no mask", "sleep", 2),
        ("few", "no gate (few)", "few", 1)]
    assert rows[0]["differences"] == pytest.approx([-0.495, -0.49, -0.485])
    assert rows[0]["p"] == pytest.approx(3 * stats.p_value(rows[0]["differences"]))
    said = tables.ablations({"runs": runs})
    assert said[2] == "| default | **sleep** | 2 | .950 ± .000 |  |  |  | 1.000 ± .000 |"
    assert ("| default | no gate | 2 | .460 ± .005 | −.490 ± .012 | < .001 | **helps: .490** | "
            "1.000 ± .000 |") in said
    assert "would show" in said[-1] and len(said) == 7


def test_a_claim_that_was_measured_in_two_places():
    seen, zero = [0.4, 0.5, 0.45], [-0.1, 0.1, 0.05]
    assert claims.together([("here", "", seen, 0.01)]) == "yes"
    assert claims.together([("here", "", [-x for x in seen], 0.01)]) == "**the reverse**"
    assert claims.together([("here", "", seen, 0.3)]) == "not certain, for it"
    words = claims.together([("here", "", seen, 0.01), ("there", "", zero, 1.0)])
    assert words.startswith("here: yes; there: **no effect seen** (.")
    assert "to" not in words.split("(")[1]                           # one place, one number


def test_speed_goals_are_judged():
    assert tables.goal("sample", "transformers", 3.9) == "≥ 4 missed"
    assert tables.goal("sample", "transformers", 4.1) == "≥ 4 met"
    assert tables.goal("night", "night 100", 1.2) == "≤ 1.15 missed"
    assert tables.goal("train", "own architecture, Muon", 1.2) == ""


# --------------------------------------------------------------------------------------------------
# Pictures

def test_labels_are_moved_apart_as_little_as_it_takes():
    assert figures.apart([0.0, 10.0], 3) == [0.0, 10.0]
    assert figures.apart([1.0, 0.0], 3) == [2.0, -1.0]               # the order stays
    assert figures.apart([0.0, 1.0, 2.0], 2) == [-1.0, 1.0, 3.0]
    assert figures.apart([5.0, 5.0, 0.0], 2) == [4.0, 6.0, 0.0]


def test_the_scale_tells_90_from_100():
    grey = [figures.shade(x) for x in (1.0, 0.98, 0.9, 0.5, 0.0)]
    assert grey[0] == 0 and grey[-1] == 1 and all(b - a > 0.15 for a, b in zip(grey, grey[1:]))


@pytest.mark.parametrize("days", [1, 3, 12])
def test_the_picture_of_a_tiny_life(days, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    R = [[0.9 if j <= i else None for j in range(days)] for i in range(days)]
    life = {"method": "sleep", "seed": 1, "R": R}
    if days == 3:
        life["kinds"] = {"moved house": {"next_morning": 0.9, "end": 0.5, "n": 40},
                         "nobody knows": {"next_morning": 1.0, "end": None, "n": 8}}
    (tmp_path / "none").mkdir()
    (tmp_path / "summary.json").write_text(json.dumps(life))
    (tmp_path / "none" / "summary.json").write_text(json.dumps({**life, "method": "none"}))
    report.main([f"--life={tmp_path}", f"--out={tmp_path}/life.png"])
    assert (tmp_path / "life.png").stat().st_size > 5000
    assert "life.png" in capsys.readouterr().out
    figures.life_picture(R, str(tmp_path / "bare.png"))
    assert (tmp_path / "bare.png").is_file()


def test_every_picture_is_made_from_the_result_files(tmp_path):
    pytest.importorskip("matplotlib")
    made = [Path(p).name for p in figures.everything(report.read_all(), str(tmp_path))]
    assert sorted(made) == sorted(p.name for p in RESULTS.glob("*.png"))
    assert all(f"results/{name}" in PAGE for name in made)
