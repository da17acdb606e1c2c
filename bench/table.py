"""The tables of the README, from the committed result files alone:  python bench/table.py"""
import json
import os
from statistics import mean, stdev

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results")


def read(name):
    path = os.path.join(HERE, name)
    return json.load(open(path)) if os.path.isfile(path) else None


def pm(values, digits=3):
    sd = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{sd}"


def after(run, n):
    """A life cut after night n: recall (mornings after), ACC, BWT, old, reading, reversed, seconds a night."""
    R, nights = [row[:n] for row in run["R"][:n]], run["nights"][:n]
    took = [sum(x["seconds"].values()) if isinstance(x.get("seconds"), dict) else 0.0 for x in nights]
    return {"recall": mean(R[i][i] for i in range(n)), "ACC": mean(R[-1]),
            "BWT": mean(R[-1][j] - R[j][j] for j in range(n - 1)) if n > 1 else 0.0,
            "old": nights[-1]["old"], "reading": nights[-1]["reading"], "reversed": mean(x["reversed"] for x in nights),
            "s/night": mean(took)}


def row(name, lives, n):
    cut = [after(r, n) for r in lives]
    cells = [pm([c[k] for c in cut], 1 if k == "s/night" else 3) for k in cut[0]]
    return f"| {name} | {n} | {len(cut)} | " + " | ".join(cells) + " |"


def main():
    head = ("| life | nights | seeds | recall next morning | ACC | BWT | old | reading | reversed | s/night |\n"
            "|---|---|---|---|---|---|---|---|---|---|")
    week, life = read("week.json"), read("life.json")
    if week:
        print("## the default life\n" + head)
        for name in ("sleep", "none", "sft"):
            runs = [r for r in week["runs"] if r["variant"] == name]
            print(row(name, runs, len(runs[0]["R"])))
    if life:
        lives = {}
        for r in life["runs"]:
            lives.setdefault(r["variant"], []).append(r)
        print("\n## one ingredient taken away, paired with `sleep` of the same seed and length\n" + head)
        without = {name: min(len(r["R"]) for r in runs) for name, runs in lives.items()
                   if name not in ("sleep", "none", "sft") and not name.startswith("three")}
        for n in sorted(set(without.values())):
            print(row("sleep", lives["sleep"], n))
            whole = {r["seed"]: after(r, n)["ACC"] for r in lives["sleep"]}
            for name in (k for k, length in without.items() if length == n):
                print(row(name.replace("_", " "), lives[name], n))
                print(f"  paired difference in ACC: {pm([after(r, n)['ACC'] - whole[r['seed']] for r in lives[name]])}")
        print("\n## three weeks\n" + head.replace("s/night |", "s/night | parameters |") + "---|")
        for name in lives:
            if name.startswith("three"):
                params = f" {mean(r['params_after'] for r in lives[name]):,.0f} |"
                print(row(name.replace("_", " "), lives[name], min(len(r["R"]) for r in lives[name])) + params)
    dreams = read("dreaming.json")
    if dreams:
        print("\n## 24 dreams a night\n| selection | seeds | useful among written, night 1 → last | useful among chosen "
              "| recall | old after |\n|---|---|---|---|---|---|")
        names = list(dict.fromkeys(r["variant"] for r in dreams["runs"]))
        for name in names:
            runs = [r["nights"] for r in dreams["runs"] if r["variant"] == name]
            first_last = f"{pm([n[0]['useful_written'] for n in runs], 2)} → {pm([n[-1]['useful_written'] for n in runs], 2)}"
            means = [pm([mean(x[k] for x in n) for n in runs], 2) for k in ("useful_chosen", "recall")]
            print(f"| {name} | {len(runs)} | {first_last} | " + " | ".join(means) + f" | {pm([n[-1]['old'] for n in runs], 3)} |")
    faults = read("faults.json")
    if faults:
        print(f"\n## {faults['tried']} faults tried, {faults['lost']} lost; checkpoints take {faults['cost']['save']:.1%} of the "
              f"default life, looking back {faults['cost']['gone_wrong']:.1%}\n| fault | what happened | survived |\n|---|---|---|")
        kinds = {}
        for r in faults["rows"]:                                     # all kills are one row
            name = "kill -9 in the middle of anything" if r["fault"].startswith("kill") else r["fault"]
            kinds.setdefault((name, r["outcome"]), []).append(r["survived"])
        for (name, outcome), survived in kinds.items():
            print(f"| {name} | {outcome} | {sum(survived)} of {len(survived)} |")
    clinc = read("clinc150.json")
    if clinc:
        print(f"\n## CLINC150, {clinc['split']} split, seed {clinc['seed']}, {clinc['threads']} threads, "
              f"{clinc['seconds']:.0f} s\n"
              "| life | after the last night | mean over nights | seconds |\n|---|---|---|---|")
        for name in ("none", "sft", "sleep", "joint"):
            r = clinc[name]
            print(f"| {name} | {r['final']:.3f} | {r['average_incremental']:.3f} | {r['seconds']:.0f} |")
        print(f"| tf-idf nearest mean | {clinc['tfidf_nearest_mean']:.3f} | | |")


if __name__ == "__main__":
    main()
