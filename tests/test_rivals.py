"""Rivals with the same arms and ingredients otherwise: each on a toy, its arithmetic by hand; the
search of their rates; two ways to count."""
from collections import Counter
from math import log
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import dream
import seed
from bench import ablations as A
from bench import counting, rivals, stats, tables, variants
from data import asking
from data.engine import generate, prefill, take_rows
from data.gate import EVERYWHERE
from data.quizzes import pack, take
from model import FAST, clone
from tests.small import MARKS, V, expand, far, little, tokens

DAY = SimpleNamespace(passages=[[[10, 11, 12, 9], [10, 13, 14, 9]],
                                [[20, 21, 22, 9], [20, 23, 24, 9]]], study=[])
PAIRS = [(0, (1, 30, 10, 2), (11, 12, 3)), (0, (1, 31, 10, 2), (13, 14, 3)),
         (1, (1, 30, 20, 2), (21, 22, 3)), (1, (1, 31, 20, 2), (23, 24, 3))]
PLAIN = SimpleNamespace(on_policy=0, divergence="sft", expand=1, imitate=0)
EVERY = {"lora": A.LORA, "cartridge": ["model.Block.forward=rivals.cartridge"]}


def toy():
    model = little(n_embd=32, n_head=4, ranks=(4, 8, 4))
    model.metric = torch.eye(32)
    return model


def a_day(model):
    """Teacher, and quizzes whose answers it is sure of: a random self could not read."""
    teacher = seed.hold(model, DAY, MARKS)
    z = pack(PAIRS, "cpu")
    target = torch.full((4, 3, V), 1e-4).log()
    for i, (_, _, y) in enumerate(PAIRS):
        target[i, torch.arange(3), list(y)] = 0.0
    return teacher, z._replace(
        target=target, since=torch.zeros_like(z.start), thing=z.passage,
        recalled=torch.zeros(4, dtype=torch.bool), wording=torch.zeros_like(z.ids).bool())


def awake(model, expert=0, rows=4, since=0):
    return {FAST: (torch.full((rows,), expert), torch.full((rows,), since))}


# --------------------------------------------------------------------------------------------------
# LoRA and cartridge

def test_a_lora_changes_nothing_at_first_and_then_queries_keys_values_and_projection():
    model, ids = toy(), tokens(4, 9)
    before = model.hidden(ids)
    model.unlock(FAST)
    with A.constants(A.LORA):
        assert torch.equal(model.hidden(ids, awake=awake(model)), before)
        model.settle(FAST)
        changed = expand(model, FAST, 1, loudness=1.0).hidden(ids, awake=awake(model, 1))
        asleep = model.hidden(ids, awake=awake(model, -1))
    block, merged = model.blocks[1].levels[FAST], clone(model)
    parts = [a @ b for a, b in zip(block.A[1].chunk(4, 1), block.B[1].chunk(4, 0))]
    merged.blocks[1].qkv.weight.data += torch.cat([p.T for p in parts[:3]])
    merged.blocks[1].proj.weight.data += parts[3].T
    assert torch.allclose(changed, merged.hidden(ids), atol=1e-5) and far(changed, before)
    assert torch.allclose(asleep, before, atol=1e-6)


def test_rows_of_a_cartridge_see_its_keys_from_where_it_wakes():
    """By hand: one softmax over the prefix and the row's own past."""
    model, ids = expand(toy(), FAST, 2), tokens(4, 7)
    block, seen, plain = model.blocks[1], {}, model.hidden(ids)
    with A.constants(EVERY["cartridge"]):
        now = model.hidden(ids, awake=awake(model, 1, since=3))
        block.proj.register_forward_hook(lambda m, x, y: seen.update(y=x[0]))
        block.qkv.register_forward_hook(lambda m, x, y: seen.update(qkv=y))
        model.hidden(ids, awake=awake(model, 1, since=3))
    level = block.levels[FAST]
    assert torch.allclose(now[:, :3], plain[:, :3], atol=1e-6) and far(now[:, 3:], plain[:, 3:])
    q, k, v = (t.view(4, 7, 4, 8) for t in seen["qkv"].chunk(3, -1))
    turn = rivals.angles(torch.arange(7)[None], 8, q.dtype)
    q, k = (rivals.rotate(F.rms_norm(t, (8,)).transpose(1, 2), *turn) for t in (q, k))
    K, U = level.A[1].view(4, 8, 8), level.B[1].view(8, 4, 8)      # (H, D, r), (r, H, D)
    for head, t in ((0, 5), (3, 3)):
        score = torch.cat([q[0, head, t] @ K[head], k[0, head, :t + 1] @ q[0, head, t]])
        values = torch.cat([U[:, head], v[0, :t + 1, head]])
        want = (score * 2 / 8 ** 0.5).softmax(0) @ values
        assert torch.allclose(seen["y"][0, t].view(4, 8)[head], want, atol=1e-5)


@pytest.mark.parametrize("kind", EVERY)
def test_reading_at_once_is_reading_word_by_word(kind):
    model, rows = expand(toy(), FAST, 3), tokens(2, 6).tolist()
    who = {FAST: (torch.tensor([2, 0]), torch.tensor([1, 4]))}
    with A.constants(EVERY[kind]):
        want = model(torch.tensor(rows), awake=who)[:, -1]
        cache = take_rows(prefill(model, [row[:3] for row in rows], who)[0], slice(0, 2), 3)
        later = [model(torch.tensor(rows)[:, t:t + 1], cache=cache, awake=who)[:, 0]
                 for t in (3, 4, 5)]
        assert torch.allclose(later[-1], want, atol=1e-5)
        shared = generate(model, rows, 4, n=3, temperature=0, awake=who)   # behind one prefix
        assert shared[0] == shared[1] == generate(model, rows, 4, temperature=0, awake=who)[0]


def test_a_cartridge_begins_as_the_days_first_tokens_before_the_row(monkeypatch):
    """What attends to it attends as to the reading itself, 8 tokens further on."""
    model = toy()
    teacher, z = a_day(model)

    def opened(model, z, *args):
        model.unlock(FAST)
        return FAST, z
    monkeypatch.setattr(rivals, "open_gate", opened)
    rivals.open_cartridge(model, z, teacher, (), MARKS, None)
    row, fast = int(teacher.cache["len"].argmax()), model.blocks[1].levels[FAST]
    k, v = (teacher.cache["blocks"][1][name][row, :, :8] for name in "kv")
    assert torch.equal(fast.B_live[0], v.transpose(0, 1).flatten(1))
    q, end = torch.randn(4, 8), torch.full((1, 1), 20)
    far_on = rivals.rotate(q[None, :, None], *rivals.angles(end, 8, q.dtype))[0, :, 0]
    here = rivals.rotate(q[None, :, None], *rivals.angles(end - 8, 8, q.dtype))[0, :, 0]
    K = fast.A_live[0].view(4, 8, 8)                                # (H, D, r)
    for i in range(8):
        assert torch.allclose((far_on * k[:, i]).sum(-1), (here * K[..., i]).sum(-1), atol=1e-4)


@pytest.mark.parametrize("name", ["gate+lora", "gate+lora KL", "gate+cartridge", "gate+sdft"])
def test_every_rival_learns_its_quizzes_with_as_many_numbers_as_an_expert(name, monkeypatch):
    model = toy()
    teacher, z = a_day(model)
    monkeypatch.setattr(rivals, "with_demonstration", sure)
    monkeypatch.setattr(rivals, "MAX_NEW", 3)
    words = [w for w in A.RIVALS[name] if w[0] != "-" and "open_gate" not in w]
    with A.constants([*words, "seed.BATCH=8", "seed.MISHEARD=0", "seed.LR=0.2"]):
        params = model.unlock(FAST)
        assert sum(p.numel() for p in params) == 2 * 32 * 8          # 2 d r, one upper block
        before = seed.knows(model, z, MARKS, FAST)
        log_ = seed.distil(model, params, z, seed.reader(teacher), MARKS, FAST, 40, PLAIN)
        after = seed.knows(model, z, MARKS, FAST)
    assert (after > 20 * before).all() and log_["loss"] > 0         # three nats of a random self
    assert seed.off_policy_loss.__module__ == "seed"                # as it was


def sure(teacher, held, shown, since, level):
    """A teacher who would say the demonstrated answer, whatever the student has said."""
    width = int((shown.length - shown.start).max())
    log_t = torch.full((len(shown.ids), max(width, 3), V), 1e-4).log()
    for i, ids in enumerate(shown.ids.tolist()):
        log_t[i, torch.arange(3), ids[4:7]] = 0.0
    return log_t[:, :width]


# --------------------------------------------------------------------------------------------------
# Self-distillation with demonstrations

def test_the_teachers_weights_are_a_moving_average_by_hand():
    teacher, student = toy(), toy()
    for model in (teacher, student):
        model.unlock(FAST)
    teacher.requires_grad_(False)
    (a, b), (c, d) = teacher.live(FAST), student.live(FAST)
    with torch.no_grad():
        a.fill_(1.0), b.fill_(0.0), c.fill_(2.0), d.fill_(5.0)
        for _ in range(2):
            rivals.follow(teacher, student, FAST)
    keep = 1 - rivals.AVERAGED
    assert torch.allclose(a, torch.full_like(a, 2 - keep ** 2))
    assert torch.allclose(b, torch.full_like(b, 5 * (1 - keep ** 2)))
    assert torch.equal(c, torch.full_like(c, 2.0))


def test_the_demonstration_stands_between_the_passage_and_the_question():
    """The teacher's distribution is that of the whole text, read at once, its expert awake in the
    last question alone."""
    model = expand(toy(), FAST, 1)
    teacher, z = a_day(clone(toy()))
    one = take(z, slice(2, 3))
    (_, q, d), y = PAIRS[2], (21, 7, 3)
    shown = pack([(1, (*q, *d, *q), y)], "cpu")
    torch.manual_seed(0)
    got = rivals.with_demonstration(model, teacher, shown, 2 + shown.start - one.start, FAST)
    torch.manual_seed(0)
    view = int(torch.randint(dream.VIEWS, (1,)))
    head = [*teacher.readings[dream.VIEWS + view], *q, *d]
    text = torch.tensor([[*head, *q, *y]])
    who = awake(model, 0, 1, since=len(head) + 1)                   # 2, counted from <bos>
    want = F.log_softmax(model(text[:, :-1], awake=who), -1)[:, len(head) + len(q) - 1:]
    assert got.shape == (1, 3, V) and torch.allclose(got, want, atol=1e-4)


# --------------------------------------------------------------------------------------------------
# Sparse memory

def test_a_slot_counts_where_today_uses_it_and_the_old_does_not():
    now, old = torch.tensor([6.0, 3, 1]), torch.tensor([9, 0, 0])
    got = rivals.tf_idf(now, old, 9)
    assert got.tolist() == pytest.approx([0.0, 0.3 * log(10), 0.1 * log(10)], abs=1e-6)


def test_only_the_chosen_units_of_upper_mlps_learn(monkeypatch):
    model = toy()
    teacher, z = a_day(model)
    monkeypatch.setattr(rivals, "SLOTS", 3)
    monkeypatch.setattr(dream, "replay", lambda *args: [[0, 5, 6, 7], [0, 8, 9]])
    old, usual = clone(model), seed.muon
    used, = rivals.accesses(model, torch.tensor([[0, 5, 6, 7]]), torch.tensor([2]))[1:]
    assert used.sum() == 2 * 3                                      # three units a word, two words
    plain = SimpleNamespace(**{**vars(PLAIN), "expand": 0})
    params = seed.learners(model, None)
    rivals.sparse(model, params, z, None, MARKS, None, 5, plain)
    kept = [torch.equal(new, was) for new, was in zip(params, seed.learners(old, None))]
    assert kept == [True, True, False, False]                       # the lower block is what it was
    up, down = (m.weight for m in (model.blocks[1].levels[-1].up, model.blocks[1].levels[-1].down))
    was = old.blocks[1].levels[-1]
    rows, columns = (up != was.up.weight).any(1), (down != was.down.weight).any(0)
    assert rows.sum() == 3 and torch.equal(rows, columns) and seed.muon is usual


# --------------------------------------------------------------------------------------------------
# Ingredients otherwise

def test_an_open_router_wakes_every_expert_everywhere_and_one_expert_has_all_things(monkeypatch):
    model = toy()
    _, z = a_day(model)
    for night in range(2):
        level, z = variants.open_router(model, z._replace(since=None), None, (), MARKS, None)
        model.settle(FAST)
        assert level == FAST and z.since.tolist() == [0] * 4
    assert model.reach.tolist() == pytest.approx([EVERYWHERE] * 2)
    assert model.owner.tolist() == [[FAST, 0], [FAST, 1]] and model.n_experts(FAST) == 2
    model = toy()

    def opened(model, z, *args):
        new = model.n_experts(FAST)
        model.remember_things(torch.zeros(2, 32), torch.ones(2), FAST, new)
        model.unlock(FAST)
        return FAST, z
    monkeypatch.setattr(variants, "open_gate", opened)
    for night in range(3):
        variants.one_expert(model, z, None, (), MARKS, None)
        assert len(model.live(FAST)) == 2 and model.n_experts(FAST) == 1
        model.live(FAST)[0].data += 1
        model.settle(FAST)
    assert model.owner.tolist() == [[FAST, 0]] * 6                  # three nights learnt on
    assert model.blocks[1].levels[FAST].A.mean() == pytest.approx(3, abs=0.2)


def test_the_judge_of_two_texts_reads_texts():
    table = torch.eye(V)
    same, half, none = ([[5, 6, 3]], [[5, 7, 3]], [[8, 9]])
    assert variants.same_meaning(table, same, [[5, 6, 3]]).item() == pytest.approx(1)
    assert variants.same_meaning(table, half, [[5, 6, 3]]).item() == pytest.approx(2 / 3)
    assert variants.same_meaning(table, none, [[5, 6, 3]]).item() == 0
    blind, mask = torch.full((1, 4), -9.0), torch.ones(1, 4, dtype=torch.bool)
    got = variants.rewards_of_texts(table, half, [[5, 6, 3]], blind, mask)
    assert got.item() == pytest.approx(seed.GAMMA * 2 / 3 + (1 - seed.GAMMA) * 2 / 3)
    assert seed.rewards(half, [[5, 6, 3]], blind, mask).item() == pytest.approx(1 / 3)


def test_what_was_chosen_is_learnt(monkeypatch):
    model = toy()
    teacher, z = a_day(model)
    chosen = take(z, slice(1, 3))
    usual = lambda *args: chosen                                    # noqa: E731
    monkeypatch.setattr(dream, "choose_dreams", usual)
    monkeypatch.setattr(variants, "LEARN_TO_DREAM",
                        lambda *args: dream.choose_dreams() and {"pool": 4})
    model.unlock(FAST)
    before = seed.knows(model, chosen, MARKS, FAST)
    log_ = variants.learn_chosen(model, None, z, z, teacher, MARKS, None, "cosine")
    assert (seed.knows(model, chosen, MARKS, FAST) > before).all()
    assert log_["pool"] == 4 and "loss" in log_ and dream.choose_dreams is usual
    assert len(variants.by_chance(model, z, None, MARKS, "cosine")) == 4


# --------------------------------------------------------------------------------------------------
# The search, and the tables

def test_functions_are_in_anothers_place_inside_and_at_home_outside():
    from model import Block
    with A.constants(["model.Block.forward=rivals.lora", "data.asking.MOVED=1"]):
        assert Block.forward is rivals.lora and asking.MOVED == 1.0
    assert Block.forward is rivals.FORWARD and asking.MOVED == 0.25
    for name, (_, _, words) in A.LIVES.items():
        with A.constants([w for w in words if w[0] != "-"]):
            pass


def test_the_search_takes_the_rate_of_the_best_mean_over_the_longest_tries():
    low, middle, high = A.RATES["gate+cartridge"]

    def row(rate, seed_, acc, nights=7, life="gate+cartridge"):
        return {"life": life, "seed": seed_, "rate": rate, "nights": nights, "ACC": acc,
                "recall": acc}
    file = {"search": [row(low, 31, 1.0, 2), row(middle, 31, 0.7), row(middle, 32, 0.7),
                       row(high, 31, 0.9), row(high, 32, 0.6)]}
    assert A.best(file, "gate+cartridge") == high
    assert A.best(file, "gate+sdft") == A.RATES["gate+sdft"][1]
    o = A.parse(["--only=gate+cartridge", "--validation=31", "--horizon=2", "--search"])
    assert A.untried(o, file) == [("gate+cartridge", 31, middle), ("gate+cartridge", 31, high)]
    words, changed = A.words_of("gate+cartridge", 31, o, high)
    assert "--days=2" in words and f"seed.LR={high}" in changed
    assert "--days=7" in A.words_of("gate+cartridge", 3, o)[0]
    assert f"seed.MLP_LR={A.RATES['sparse'][1]}" in A.words_of("sparse", 3, o)[1]
    with pytest.raises(SystemExit):
        A.parse(["--seeds=31,1"])


def lived(life, seed_, acc, group="rivals", **more):
    night = {"old": 1.0, "reading": 1.0, "reversed": 0.5, "seconds": {"night": 1.0}}
    kinds = {"met": {"end": acc, "n": 30}, "reversed": {"end": 0.5, "n": 10},
             "old": {"end": 1.0, "n": 99}}
    return {"life": life, "seed": seed_, "group": group, "R": [[acc]], "nights": [night],
            "kinds": kinds, "seconds": {"night": 1.0}, "ACC": acc, **more}


def test_rivals_are_told_apart_from_the_plain_one_and_from_the_whole_night():
    runs = [lived("sleep", s, 0.9, "ingredients") for s in (1, 2, 3)]
    runs += [lived("gate+sft", s, 0.9 + s / 1000, "ingredients") for s in (1, 2, 3)]
    runs += [lived("gate+lora", s, 0.4 + s / 100, rate=0.18) for s in (1, 2, 3)]
    found = stats.by_life({"runs": runs})
    assert stats.against(found, "gate+lora") == "gate+sft"
    assert stats.against(found, "gate+sft") == "sleep"
    assert stats.both(runs[0]) == pytest.approx((0.9 * 30 + 0.5 * 10) / 40)
    assert stats.both({"R": []}) is None
    said = tables.fought({"runs": runs})
    assert said[-1].startswith("| gate+lora | .18 | .420 ± .010 | .000 ± .000 |")
    assert said[-1].count("**worse**") == 2 and "would show" not in said[-1]
    assert said[3].startswith("| gate+sft |  |") and len(said) == 5


def test_a_life_about_a_reward_that_never_differs_is_no_test():
    runs = [lived("sleep", s, 0.9, "ingredients") for s in (1, 2, 3)]
    for life, spread in (("no imitation", 0.001), ("no dreaming", 0.001)):
        runs += [lived(life, s, 0.1 * s, "ingredients") for s in (1, 2, 3)]
        for run in runs[-3:]:
            run["nights"] = [{**run["nights"][0], "spread": spread, "reward": 1.0}]
    rows = {row["life"]: row for row in stats.compared({"runs": runs})}
    assert not rows["no imitation"]["tested"] and rows["no dreaming"]["tested"]
    d = rows["no dreaming"]["differences"]
    assert rows["no dreaming"]["p"] == pytest.approx(stats.p_value(d))          # one row alone
    assert tables.judged(rows["no imitation"]).startswith("no test")
    assert "| no imitation | 1.000 | .001 |" in tables.rewarded({"runs": runs})
    assert tables.ablations({"runs": runs})[0].endswith("| old people |")
    runs[0]["nights"][0]["both"] = 0.75
    assert tables.ablations({"runs": runs})[2].endswith("| .750 |")


# --------------------------------------------------------------------------------------------------
# Counting

def test_naive_bayes_by_hand():
    kept, df = {}, Counter()
    counting.read(kept, df, [("a a b", "x"), ("c", "y"), ("c b", "y")], 1)
    assert kept == {"x": (1, Counter(a=2, b=1)), "y": (2, Counter(c=2, b=1))}
    doc = counting.terms("B c new", 1)
    assert counting.name_all(counting.naive_bayes, kept, df, [doc, Counter(a=1)], 1.0) == ["y", "x"]
    import numpy as np
    n = np.array([[2.0, 1, 0], [0, 1, 2]])                           # terms a, b, c
    W, b = counting.naive_bayes(n, np.array([1.0, 2]), np.array([1.0, 2, 2]), 1.0)
    assert W[0] == pytest.approx([log(3 / 6), log(2 / 6), log(1 / 6)])
    assert b == pytest.approx([log(1 / 3), log(2 / 3)])


def test_the_nearest_mean_is_the_cosine_of_weighted_counts():
    import numpy as np
    n, texts, df = np.array([[2.0, 1, 0], [0, 1, 2]]), np.array([1.0, 2]), np.array([1.0, 2, 2])
    W, b = counting.nearest_mean(n, texts, df, 1.0)
    idf = np.log(np.array([5 / 2, 5 / 3, 5 / 3]))
    x = np.array([1.0, 1, 0])
    for row, got in zip(n, W @ x + b):
        c, q = row * idf, x * idf
        assert got == pytest.approx(c @ q / np.linalg.norm(c))
    assert counting.terms("a b c", 2) == Counter(["a", "b", "c", "a b", "b c"])


def test_counts_keep_old_classes_when_new_ones_come():
    stages = [([("red rose", "flower"), ("green oak", "tree")], [("a rose", "flower")]),
              ([("fast car", "car"), ("red car", "car")], [("car", "car"), ("red", "car")])]
    r = counting.life(stages, "naive Bayes, counts", 0.1, 1)
    assert r["R"] == [[1.0], [1.0, 1.0]] and r["final"] == 1.0 and r["forgetting"] == 0.0
    assert r["over_nights"] == [1.0] and r["terms"] == 7 - 1
