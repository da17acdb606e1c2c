"""The life on real text: its router of whole texts, and the real script on a tiny folder in CLINC150's layout."""
import json
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from bench import clinc150
from model import GPT, Config, pad_rows, widen

ROOT = Path(__file__).resolve().parent.parent


def test_topic_detectors_are_the_nearest_mean_by_mahalanobis():
    torch.manual_seed(0)
    x, label = torch.randn(90, 5, dtype=torch.float64), torch.arange(90) % 3
    x = x @ torch.randn(5, 5, dtype=torch.float64) + 2 * label[:, None]
    mean = torch.stack([x[label == k].mean(0) for k in range(3)])
    keys, bias = clinc150.topic_detectors(mean, (x - mean[label]).T @ (x - mean[label]) / 90, shrink=0.0)
    inverse = torch.linalg.inv((x - mean[label]).T @ (x - mean[label]) / 90)
    y = torch.randn(50, 5, dtype=torch.float64) * 4
    gap = y[:, None] - mean
    distance = torch.einsum("nkd,de,nke->nk", gap, inverse, gap)
    score = y @ keys.T + bias                                        # = (y' S^-1 y - distance) / 2 for every k
    assert torch.allclose(score - score[:, :1], (distance[:, :1] - distance) / 2, atol=1e-9)


def test_a_topic_is_the_mean_direction_of_a_text_and_survives_widening():
    torch.manual_seed(0)
    model = GPT(Config(vocab_size=50, n_embd=32, n_head=2, head_dim=16, d_ff=64, ranks=(4, 4, 4))).double()
    texts = [torch.randint(50, (n,)).tolist() for n in (7, 2, 5)]
    ids, lengths = pad_rows(texts)
    ids = torch.where(torch.arange(ids.shape[1]) < lengths[:, None], ids, torch.randint(50, ids.shape))  # padding is not heard
    for ours, text in zip(clinc150.topic(model, ids, lengths), texts):
        mean = sum(F.normalize(model.wte.weight[t], dim=0) for t in text)
        assert torch.allclose(F.normalize(ours, dim=0), F.normalize(mean, dim=0))
    model.attach(clinc150.topic(model, ids, lengths).detach(), torch.zeros(3), 1, 0)
    score = lambda m: clinc150.topic(m, ids, lengths) @ m.keys.T
    assert torch.allclose(score(widen(model, n_embd=43)), score(model))


def test_a_tiny_life_on_a_folder_and_resume(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    things = ["card", "music", "flight", "weather", "alarm", "recipe"]
    for split, n in (("train", 6), ("val", 2), ("test", 2)):
        rows = [f"{verb} the {t} {i}\task_{t}" for t in things for i in range(n) for verb in ("find", "show me")]
        (data / f"{split}.tsv").write_text("text\tintent\n" + "\n".join(rows) + "\n")
    command = [sys.executable, str(ROOT / "sleep.py"), "--data=clinc150", f"--data_dir={data}", f"--out_dir={out}",
               "--base_intents=3", "--days=1",
               "--class_base_steps=3", "--wake_steps=3", "--class_steps=3", "--class_dreams=3", "--class_replay=3", "--threads=1"]
    r = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert r.returncode == 0, r.stderr
    s = json.loads((out / "summary.json").read_text())
    assert s["stages"] == [3, 3] and s["sleep"]["R"][0][1] is None
    for name in ("sleep", "none", "sft", "joint"):
        assert 0 <= s[name]["final"] <= 1
    (out / "sleep.json").unlink()                                    # as if it had ended before the last line was written
    (out / "sft.json").unlink()
    r = subprocess.run(command[:2] + ["--resume", f"--out_dir={out}"], capture_output=True, text=True, timeout=240)
    assert r.returncode == 0, r.stderr
    again = json.loads((out / "summary.json").read_text())
    assert all(again[k]["R"] == s[k]["R"] for k in ("sleep", "none", "sft", "joint"))
