"""Two processes live one life: the same step, the same dreams, the same bits."""
import json
import random

import torch

import dream
import seed
import sleep
from data import asking, gate, run, store, team
from data.quizzes import unpack
from model import FAST, clone
from tests import glyphs as G
from tests.small import MARKS, little, of_a_team
from tests.test_seed import blank, quizzes, settings


def numbers(params):
    return [p.detach().clone() for p in params]


def all_equal(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


def test_a_step_is_the_mean_of_what_each_has_seen():
    """Each draws a batch of its own; the step is that of both batches together."""
    docs = [([0, 11, 1, 9, 2, 7, 3], [0.0, 0.1, 0.3, 0.3, 0.3, 1.0, 1.0]),
            ([0, 1, 8, 2, 6, 3, 5], [0.0, 0.3, 0.3, 0.1, 0.3, 1.0, 1.0])]

    def step(batch):
        model = little().requires_grad_(True)
        loss = sleep.document_loss(model, *sleep.text.pad_documents(batch))
        sleep.descend(model, sleep.optimizers(model), loss, 1.0)
        return numbers(model.parameters())
    alone = step(docs)                                     # the weights of both documents are alike
    first, second = of_a_team(lambda: step([docs[team.RANK]]))
    assert all_equal(first, second)
    for ours, theirs in zip(alone, first):
        assert torch.allclose(ours, theirs, atol=1e-4)
    assert not all_equal(numbers(little().parameters()), first)


def test_distillation_of_a_team_ends_in_the_same_bits():
    """Even where each has other random numbers, and so draws other quizzes."""
    def work():
        student, teacher = little(), little(seed=1)
        student.unlock(FAST)
        z, a = quizzes(teacher), settings("--on_policy=0.5")
        params = seed.learners(student, FAST)
        random.seed(0), torch.manual_seed(team.RANK)
        seed.distil(student, params, z, seed.reader(blank(teacher)), MARKS, FAST, 8, a)
        return numbers(params)
    first, second = of_a_team(work)
    assert all_equal(first, second) and any(p.abs().sum() > 0 for p in first)


def test_what_must_be_the_same_is_sent_by_the_first():
    """Dreams and choices, even of a process that draws other numbers."""
    def work():
        model = little()
        torch.manual_seed(team.RANK), random.seed(team.RANK)
        z = quizzes()
        teacher = seed.hold(model, sleep.text.Day([[[11], [12]]], []), MARKS)
        return [dream.replay(model, MARKS, 5), dream.write(teacher, MARKS, 8),
                unpack(dream.choose_dreams(model, z, z, MARKS, None, "random", 2, 1)),
                gate.invent(model, MARKS, 8)]
    first, second = of_a_team(work)
    assert first == second and first[0]


def test_a_night_of_a_team_is_the_same_for_both():
    world, base = G.make(), clone(G.shared_base())
    day = G.day(world.new[:2])

    def work():
        seed.STEPS, seed.DREAM_STEPS, asking.KNOWN = 4, 4, 0.0
        asking.MOVED, asking.HELD_OUT, gate.ALSO_ASKED, gate.INVENTED = 1.0, 8, 60, 40
        dream.POOL, dream.CHOSEN, dream.AT_RANDOM, dream.WRITER_STEPS = 12, 3, 1, 2
        random.seed(0), torch.manual_seed(0)
        log = seed.night(base, day, G.MARKS, settings("--on_policy=0.5", "--quizzes=1"))
        return log, [t for t in base.state_dict().values()]
    (log, first), (other, second) = of_a_team(work)
    own = {"loss", "kl", "reward", "spread", "writer_loss"}      # means over each process's own batches
    shared = {k: v for k, v in log.items() if k not in own}
    assert shared == {k: v for k, v in other.items() if k not in own} and log["kept"] > 0
    assert all(torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) for a, b in zip(first, second))


TINY = ["--n_layer=1", "--n_embd=32", "--days=1", "--people=2", "--pretrain_steps=12",
        "--quizzes=1",
        "--seed_steps=2", "--rank=4", "--threads=1", "--contrast=0"]


def test_a_tiny_life_of_two(tmp_path, capfd):
    """The real script: one writes, both hold the same self."""
    torch.use_deterministic_algorithms(False)               # loads much: once, before the forks
    out = tmp_path / "out"

    def work():
        bases = []
        usual = sleep.clone

        def keep(model, share=False):
            bases.append([t.clone() for t in model.state_dict().values()])
            return usual(model)
        sleep.clone = keep
        sleep.main([*TINY, f"--out_dir={out}"])
        return bases
    first, second = of_a_team(work)
    assert len(first) == len(second) >= 1
    assert all(all_equal(a, b) for a, b in zip(first, second))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["processes"] == 2
    assert summary["command"].startswith("torchrun --nproc_per_node=2")
    assert store.load(str(out / "base.pt"))[1] is None
    assert capfd.readouterr().out.count("pretrained") == 1


def test_stages_are_shared_and_batches_are_not():
    def work():
        a = settings()
        run.stage(a, "night", 1)
        same = torch.rand(2).tolist(), random.random()
        run.stage(a, "pretrain", 1, own=True)
        return same, random.random()
    (same, mine), (too, theirs) = of_a_team(work)
    assert same == too and mine != theirs
