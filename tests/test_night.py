"""A whole night on a world that seed.py and dream.py cannot know: other tokens, other templates, other marks (glyphs.py)."""
import copy
import random
import re
from pathlib import Path

import pytest
import torch

import dream
import glyphs as G
import seed
from data import world as W
from model import clone
from sleep import FAST, SLOW, TRIAL, night, parse
from tqdm import tqdm

FLAGS = ["--replay_dreams=96", "--seed_steps=70", "--dream_steps=10", "--quizzes=4", "--views=3", "--dreams=6",
         "--dreams_random=2"]
QUIET = tqdm(disable=True)


@pytest.fixture(scope="module")
def world():
    return G.make()


@pytest.fixture(scope="module")
def base(world):
    return G.base(world, steps=140)


@pytest.fixture(scope="module")
def two_nights(world, base):
    """(the self after each of two nights, the logs)."""
    random.seed(0), torch.manual_seed(0)
    model, selves, logs = copy.deepcopy(base), [], []
    for i in range(2):
        log, _ = night(parse(FLAGS), model, G.passages(world.new[2 * i:2 * i + 2], random), G.MARKS, i, QUIET)
        selves.append(clone(model))
        logs.append(log)
    return selves, logs


def test_the_base_reads_and_remembers_but_does_not_know_the_new(world, base):
    strangers = [G.thing(random.Random(i)) for i in range(40)]
    assert G.recall(base, strangers, read=True) > 0.9
    assert G.recall(base, world.old) > 0.9
    assert G.recall(base, world.new) < 0.2


def test_two_nights_in_a_world_without_english(world, base, two_nights):
    selves, logs = two_nights
    assert G.recall(selves[0], world.new[:2]) > 0.8
    assert G.recall(selves[1], world.new) > 0.8                      # both days, after the second night
    assert G.recall(selves[1], world.old) == G.recall(base, world.old)
    assert all(log["keys"] >= 2 for log in logs)


def test_nothing_old_moved_by_one_bit(world, base, two_nights):
    """All weights of the base are as before, and where no detector fires the function is bit-equal."""
    after = two_nights[0][1]
    for name, p in base.named_parameters():
        assert torch.equal(p, after.get_parameter(name)), name
    rng = random.Random(1)
    rows = [[G.MARKS.bos] + G.quiz(t, k, rng)[0] for t in world.old for k in range(G.PROPERTIES)]
    ids = torch.tensor(rows)
    assert torch.equal(base(ids), after(ids))
    new = torch.tensor([[G.MARKS.bos] + G.quiz(world.new[0], 0, rng)[0]])
    assert not torch.equal(base(new), after(new))


def test_the_first_nights_expert_is_untouched_by_the_second(two_nights):
    first, second = two_nights[0]
    for a, b in zip(first.blocks, second.blocks):
        assert torch.equal(a.levels[FAST].A[0], b.levels[FAST].A[0]) and torch.equal(a.levels[FAST].B[0], b.levels[FAST].B[0])


def test_old_experts_dream_of_their_own_night(world, two_nights):
    """Nothing of a night is stored, yet its expert asks about its things and about no others."""
    model = two_nights[0][1]
    dreams = seed.dream_memories(model, FAST, [0, 1], G.MARKS, 64)
    z = seed.pack(dreams, "cpu")
    awake = seed.awake(model, z, FAST, z["passage"], G.MARKS)
    for e, things in enumerate((world.new[:2], world.new[2:])):
        asked = [(q[2] - G.NAME, q[3] - G.REST) for (who, q, _), on in zip(dreams, awake.tolist()) if on and who == e]
        mine, others = {t[0] for t in things}, {t[0] for t in world.new if t not in things}
        assert sum(name in mine for name in asked) > 0.3 * len(asked) and not others & set(asked)


def test_levels_many_nights_become_one_expert_of_the_slow_level(world, base, two_nights):
    torch.manual_seed(0)
    model = copy.deepcopy(two_nights[0][1])
    detectors = len(model.keys)
    seen, n = seed.consolidate(model, FAST, SLOW, G.MARKS, steps=120)
    assert model.blocks[0].levels[FAST].n_experts == 0 and model.blocks[0].levels[SLOW].n_experts == 1
    assert len(model.keys) == detectors and (model.owner == torch.tensor([SLOW, 0])).all()
    assert n >= 8
    assert G.recall(model, world.new) > 0.8
    assert G.recall(model, world.old) == G.recall(base, world.old)


def test_the_day_is_gone_after_the_night(world, two_nights):
    """The model object holds weights, experts and detectors; no token of the day, no cache."""
    model = two_nights[0][1]
    assert all(t.is_floating_point() or name == "owner" for name, t in model.state_dict().items())
    assert not any("cache" in k or "day" in k for k in vars(model))


@pytest.mark.parametrize("flags", [["--expand=0"], ["--gate=0"], ["--replay=0"], ["--divergence=jsd"], ["--divergence=sft"],
                                   ["--dream=0"], ["--imitate=0"], ["--on_policy=0"], ["--budget=4"],
                                   ["--select=norm", "--truth=0"], ["--random_expert=1"]])
def test_every_switch_runs(world, base, flags):
    random.seed(0), torch.manual_seed(0)
    model = copy.deepcopy(base)
    short = ["--replay_dreams=24", "--seed_steps=8", "--dream_steps=4", "--quizzes=4", "--views=2", "--dreams=4",
             "--dreams_random=2"]
    for i in range(2):
        log, _ = night(parse(short + flags), model, G.passages(world.new[2 * i:2 * i + 2], random), G.MARKS, i, QUIET)
    assert log["kept"] > 0 and all(torch.isfinite(p).all() for p in model.parameters())
    moved = any(not torch.equal(p, base.get_parameter(n)) for n, p in model.named_parameters())
    assert moved == ("--expand=0" in flags)
    assert not any(b.levels[x].A_live is not None for b in model.blocks for x in (TRIAL, FAST, SLOW))


def test_a_night_in_bfloat16(world, base):
    """Under autocast as sleep.py opens it: no cache, or the copies of the weights would never see the night's learning."""
    random.seed(0), torch.manual_seed(0)
    model = copy.deepcopy(base)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        night(parse(FLAGS), model, G.passages(world.new[:2], random), G.MARKS, 0, QUIET)
        assert G.recall(model, world.new[:2]) > 0.8 and G.recall(model, world.old) > 0.9


def test_sleeping_code_knows_no_world():
    """seed.py and dream.py import nothing of data/ but team (processes, no text), and hold no word of the world's templates."""
    words = {w for r in W.RELATIONS.values() for group in r[1:] for text in group for w in re.findall(r"[A-Za-z]{5,}", text)}
    words |= set(W.FIRST + W.FIRMS + W.PLACES + W.STREETS + W.MONTHS)
    for chapter in (seed, dream):
        source = Path(chapter.__file__).read_text()
        code = "\n".join(line.split("#")[0] for line in re.sub(r'"""(?s:.*?)"""', "", source).splitlines())
        assert re.findall(r"^ *((?:from|import) .*data.*?) *$", code, re.M) == ["from data import team"]
        found = {w for w in words if re.search(rf"['\" ]{w}['\" ]", code)}
        assert not found, found
