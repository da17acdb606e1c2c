"""ARC by dreaming: grids and what is made of them, prompts, self-edits, the reward, bad files."""
import json
import random
from types import SimpleNamespace

import pytest
import torch

from bench import arc as A
from bench import arc_edits as E
from bench import arc_grids as G
from bench import arc_table as R
from bench import arc_trials as T
from bench import arc_world as W
from data import bpe
from model import GPT, TRIAL, Config

GRID = [[1, 2, 3], [4, 5, 6]]
PLAIN = {**E.RECIPE, "turns": "0"}


def small(f, **options):
    torch.manual_seed(0)
    config = dict(vocab_size=f.enc.n_vocab, block_size=128, n_layer=2, n_head=2, head_dim=16,
                  n_embd=32, d_ff=64, ranks=(8, 8, 8), hears=0)
    model = GPT(Config(**{**config, **options})).requires_grad_(False)
    for p in model.parameters():                        # what writes into the residual begins at 0
        p.add_(0.05 * torch.randn_like(p))
    return T.self_of(model, f)


def flags_of(**changes):
    a = A.parse(["--data=arc1d", "--device=cpu", "--updates=3", "--steps=0"])
    return SimpleNamespace(**{**vars(a), **changes})


@pytest.fixture(scope="module")
def f():
    return E.tiny_format()


# --------------------------------------------------------------------------------------------------
# Grids

def test_turns_are_what_they_say_and_can_be_taken_back():
    assert G.left_right(GRID) == [[3, 2, 1], [6, 5, 4]]
    assert G.up_down(GRID) == [[4, 5, 6], [1, 2, 3]]
    assert G.transposed(GRID) == [[1, 4], [2, 5], [3, 6]]
    assert G.quarter(GRID) == [[4, 1], [5, 2], [6, 3]]
    for turn in (G.left_right, G.up_down, G.half, G.transposed):
        assert turn(turn(GRID)) == GRID
    assert G.three_quarters(G.quarter(GRID)) == GRID
    assert G.quarter(G.quarter(GRID)) == G.half(GRID)
    assert GRID == [[1, 2, 3], [4, 5, 6]]                               # nothing is done in place


def test_sizes_and_repeats():
    assert G.scaled([[1, 2]]) == [[1, 1, 2, 2]]
    assert G.scaled([[1], [2]]) == [[1, 1], [1, 1], [2, 2], [2, 2]]
    assert G.beside(GRID) == [[1, 2, 3, 1, 2, 3], [4, 5, 6, 4, 5, 6]]
    assert G.below(GRID) == [[1, 2, 3], [4, 5, 6], [1, 2, 3], [4, 5, 6]]


def test_a_self_edit_makes_what_it_asks_for_each_once_and_rows_stay_rows():
    demos, rng = [([[1, 2]], [[2, 1]]), ([[0, 3]], [[3, 0]])], random.Random(0)
    none = {**E.RECIPE, **dict.fromkeys(["turns", "sizes", "repeats", "colours", "chain"],
                                           "0")}
    assert G.variants(demos, none, rng) == [demos]
    turned = G.variants(demos, {**none, "turns": "1"}, rng)
    assert turned == [demos, [([[2, 1]], [[1, 2]]), ([[3, 0]], [[0, 3]])]]
    assert [([[1, 1, 2, 2]], [[2, 2, 1, 1]]), ([[0, 0, 3, 3]], [[3, 3, 0, 0]])] in \
        G.variants(demos, {**none, "sizes": "1"}, rng)
    assert G.variants(demos, {**none, "chain": "1"}, rng) == [demos]     # of nothing: nothing
    chained = G.variants(demos, {**none, "sizes": "1", "repeats": "1", "chain": "1"}, rng)
    assert max(len(x[0]) for pairs in chained for x, _ in pairs) == 8    # two of them, one on one
    for pairs in G.variants(demos, {**none, "colours": "1"}, rng)[1:]:   # a rule is still obeyed
        assert [y for _, y in pairs] == [G.left_right(x) for x, _ in pairs] and pairs != demos
        assert pairs[1][0][0][0] == 0 and len({c for x, _ in pairs for c in x[0]}) == 4
    square = [(GRID, GRID), (G.left_right(GRID), GRID)]
    assert len(G.variants(square, {**none, "turns": "1"}, rng)) == 7     # as it is, and six turns


def test_leave_one_out_asks_each_pair_once_behind_all_others():
    pairs = [([[i]], [[i]]) for i in range(4)]
    docs = G.leave_one_out(pairs, random.Random(0))
    assert [doc[-1] for doc in docs] == pairs
    assert all(sorted(doc) == pairs for doc in docs)


def test_a_grid_is_a_token_a_cell_and_comes_back(f):
    ids = G.encode(f.enc, GRID)
    assert len(ids) == 7 and G.decode(f.enc, ids) == GRID
    newline = f.enc.encode_single_token("\n")
    for wrong in ([], ids[:-1], [newline], [*ids, newline], [*f.marks.ask], [*ids, *f.marks.bos]):
        assert G.decode(f.enc, wrong) is None


# --------------------------------------------------------------------------------------------------
# Prompts and self-edits

def test_prompts_with_single_marks_and_with_a_chat_format(f):
    demos = [([[1]], [[2]]), ([[3]], [[4]])]
    one, two, three, four, five = (f.enc.encode_single_token(c) for c in "12345")
    (bos,), (ask,), (answer,), end = f.marks
    assert E.prompt_of(f, demos, [[5]]) == [bos, ask, one, answer, two, end, ask, three, answer,
                                            four, end, ask, five, answer]
    ranks = {bytes([i]): i for i in range(256)}
    special = ["<|im_start|>", "<|im_end|>", *bpe.SPECIAL]
    enc = A.tokenizer.tiktoken.Encoding("chat", pat_str=r"[\s\S]", mergeable_ranks=ranks,
                                        special_tokens={s: 256 + i for i, s in enumerate(special)})
    chat = E.own_format(enc)
    said = enc.decode(E.prompt_of(chat, demos, [[5]]))
    assert said == (f"<|im_start|>user\n{E.RULE}1<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
                    "<|im_start|>user\n3<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
                    "<|im_start|>user\n5<|im_end|>\n<|im_start|>assistant\n")
    assert E.stop_of(chat) == enc.encode_single_token("<|im_end|>")
    edit = E.any_edit(random.Random(1))
    assert E.edit_in(chat, E.edit_ids(chat, edit)) == edit


def test_the_parts_that_are_learnt_are_inputs_outputs_and_ends(f):
    ids, parts = zip(*E.document(f, [([[1]], [[2]])]))
    assert parts == (0, 0, 1, 0, 2, 2) and ids[-1] == f.marks.end


def test_whatever_the_self_writes_is_a_self_edit_and_every_self_edit_can_be_written(f):
    me, rng = small(f), random.Random(0)
    task = G.Task("t", "", [([[1]], [[2]])] * 2, [([[3]], [[4]])])
    for edit in T.dreams(me, task, 8, False):
        assert set(edit) == set(E.SLOTS) and all(edit[k] in E.SLOTS[k] for k in edit)
    for _ in range(8):
        edit, state = E.any_edit(rng), 0
        for i in E.edit_ids(f, edit):
            state = int(me.table[state, i])
            assert state >= 0
    assert E.edit_in(f, f.enc.encode_ordinary('{"turns": 7}')) is None
    assert E.edit_in(f, f.enc.encode_ordinary("[1")) is None
    assert len(E.wish_of(f, task.demos * 9, 40)) <= 40                   # as many as there is room
    with pytest.raises(ValueError, match="too short"):
        E.wish_of(f, task.demos, 2)


# --------------------------------------------------------------------------------------------------
# Trials

def test_reward_and_majority():
    task = G.Task("t", "", [], [([[1]], [[2]]), ([[3]], [[4]])])
    good, half = [[[2]], [[4]]], [[[2]], [[5]]]
    assert [T.right(task, x) for x in (good, half, [None, None], [None, [[4]]])] == [1, 0, 0, 0]
    seen = T.graded(task, [half, good, good, [None, None], [None, None]])
    assert seen["right"] == [0, 1, 1, 0, 0] and seen["vote"] == 1
    assert T.graded(task, [good, half, half])["vote"] == 0
    assert T.graded(task, [[None, None]]) == {"right": [0], "vote": 0, "answers": [[None, None]]}


def test_a_trial_learns_its_own_and_leaves_the_self_as_it_was(f):
    me, a = small(f), flags_of(updates=20)
    before = {k: v.clone() for k, v in me.model.state_dict().items()}
    demos = [([[1, 2]], [[3, 3]]), ([[2, 1]], [[3, 3]]), ([[1, 1]], [[3, 3]])]
    task = G.Task("t", "", demos, [([[2, 2]], [[3, 3]])])
    slow = {**PLAIN, "rate": "0.01", "epochs": "2"}
    answers = T.attempt(me, task, [slow, {**PLAIN, "rate": "0.3"}], a, random)
    assert T.right(task, answers[1]) == 1 and T.right(task, answers[0]) == 0
    together = T.attempt(me, task, [PLAIN] * 3, a, random)
    a.together = 2
    assert len(together) == len(T.attempt(me, task, [PLAIN] * 3, a, random)) == 3
    after = me.model.state_dict()
    assert me.model.n_experts(TRIAL) == 0 and all(torch.equal(after[k], before[k]) for k in before)


def test_the_steps_are_as_many_as_the_self_edit_asks_and_no_more_than_all_have(f):
    me, a = small(f), flags_of(updates=5, rows=2)
    demos = [([[1]], [[2]]), ([[3]], [[4]]), ([[5]], [[6]])]
    steps = T.work_of(me, demos, {**PLAIN, "epochs": "2"}, a, random)
    assert [len(s) for s in steps] == [2, 2, 2]                          # two epochs of three
    assert len(T.work_of(me, demos, {**PLAIN, "epochs": "16"}, a, random)) == 5
    (ids, answer), = steps[0][:1]
    assert sum(answer) == 3 * 2                                          # an output and its end
    every = T.work_of(me, demos, {**PLAIN, "loss": '"all"'}, a, random)[0][0][1]
    assert sum(every) == 3 * 3
    assert T.work_of(me, [([[1] * 70], [[2] * 70])] * 2, PLAIN, a, random) == []    # no room


def test_the_writer_learns_what_was_rewarded_and_nothing_else_moves(f):
    me, a = small(f), flags_of(lessons=1, writer_rows=4)
    task = G.Task("t", "", [([[1]], [[2]])] * 2, [([[3]], [[4]])])
    trials = [(0, E.any_edit(random.Random(i)), 0) for i in range(6)] + [(0, E.RECIPE, 1)]
    before = {k: v.clone() for k, v in me.model.state_dict().items()}
    first, second = (T.teach_writer(me, [task], trials, a) for _ in range(2))
    assert second < first - 0.2                         # -log p(the rewarded self-edit)
    now = me.model.state_dict()
    assert me.model.n_experts(TRIAL) == 1 and all(torch.equal(now[k], v) for k, v in before.items()
                                                  if ".0.A" not in k and ".0.B" not in k)
    assert T.teach_writer(me, [task], trials[:6], a) is None            # nothing was rewarded
    best = T.tuned_recipe([(0, {**E.RECIPE, "rate": r}, r == "0.03") for r in E.SLOTS["rate"]])
    assert best["rate"] == "0.03" and best["turns"] == E.RECIPE["turns"]


def test_in_its_context_a_self_that_copies_solves_copying_and_nothing_else(f, monkeypatch):
    """icl on a toy: `generate` is a self that says its last input again."""
    me = small(f)

    def copying(model, prompts, room, **how):
        return [[*p[len(p) - 1 - p[::-1].index(f.marks.ask[0]) + 1:-1], f.marks.end] for p in prompts]
    monkeypatch.setattr(T, "generate", copying)
    same = G.Task("copy", "", [(GRID, GRID)] * 2, [([[7, 8]], [[7, 8]])])
    other = same._replace(tests=[([[7, 8]], [[8, 7]])])
    assert A.in_context(me, same)["right"] == [1] and A.in_context(me, other)["right"] == [0]
    long = same._replace(tests=[([[7] * 120], [[7] * 120])])
    assert not T.fits(me, long) and A.in_context(me, long)["right"] == [0]
    assert A.by_recipe(me, long, flags_of(test=2), PLAIN)["right"] == [0, 0]


# --------------------------------------------------------------------------------------------------
# The small self's world

def test_rules_do_what_they_say():
    row, rng = [0, 5, 5, 5, 0, 7, 0], random.Random(0)
    assert [W.blocks(r) for r in (row, [1, 1], [0])] == [[(1, 4), (5, 6)], [(0, 2)], []]
    assert W.grown(rng)(row) == [5, 5, 5, 5, 7, 7, 0]
    assert W.shrunk(rng)(row) == [0, 0, 5, 5, 0, 0, 0]
    assert W.first(rng)(row) == W.longest(rng)(row) == [0, 5, 5, 5, 0, 0, 0]
    assert W.last(rng)(row) == [0, 0, 0, 0, 0, 7, 0]
    assert [c == d for c, d in zip(W.tails(rng)(row), row)].count(False) <= 2
    assert sum(map(bool, W.negative(rng)(row))) == 3
    for i in range(50):
        pairs = W.task(random.Random(i))
        assert pairs == W.task(random.Random(i)) and len(pairs) == 4
        assert all(len(x[0]) == len(y[0]) and max(x[0] + y[0]) <= 9 for x, y in pairs)


def test_a_lesson_is_read_by_its_outputs_and_self_edits(f):
    for i in range(200):
        ids, weights = W.lesson(f, 20, random.Random(i), 0)
        assert len(ids) == len(weights) <= W.BLOCK and weights[0] == 0 and weights[-1] == 1
    edit = E.any_edit(random.Random(0))
    ids, weights = W.weighed(f, [], f.enc.encode_ordinary(f.asked), E.edit_ids(f, edit))
    n = int(sum(weights))
    assert n == len(E.edit_ids(f, edit)) and E.edit_in(f, ids[-n:]) == edit


# --------------------------------------------------------------------------------------------------
# Files and flags

def tasks_file(folder, tasks):
    (folder / "arc_1d.json").write_text(json.dumps(tasks))


def whole(x=GRID, y=GRID):
    pair = {"input": x, "output": y}
    return {"train": [pair, pair], "test": [pair]}


@pytest.mark.parametrize("file, says", [
    ({"fill": {"a": whole(y=[[1, 2], [3]])}}, "rows of equal length"),
    ({"fill": {"a": whole(x=[[10]])}}, "colours 0 to 9"),
    ({"fill": {"a": whole(x=[[True]])}}, "colours 0 to 9"),
    ({"fill": {"a": {"train": [], "test": []}}}, "fewer than 2 train pairs"),
    ({"fill": {"a": {**whole(), "test": [3]}}}, "not a table"),
    ({"fill": {}}, "not a table"), ([], "not a table")])
def test_bad_files_are_refused_in_a_line(tmp_path, file, says):
    tasks_file(tmp_path, file)
    with pytest.raises(ValueError, match=says) as e:
        G.one_dimensional(str(tmp_path))
    assert "\n" not in str(e.value) and "arc_1d.json" in str(e.value)


def test_missing_and_torn_files_and_wrong_flags(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="--data_dir"):
        G.one_dimensional(str(tmp_path))
    (tmp_path / "arc_1d.json").write_text('{"fill": ')
    with pytest.raises(ValueError, match="not JSON"):
        G.one_dimensional(str(tmp_path))
    file = {"challenges": {"a": {**whole(), "test": [{"input": GRID}]}}, "solutions": {"a": [GRID]}}
    path = tmp_path / "seal_filtered_training.json"
    path.write_text(json.dumps(file))
    assert G.seal(str(tmp_path), "training")[0].tests == [(GRID, GRID)]
    path.write_text(json.dumps({**file, "solutions": {"a": []}}))
    with pytest.raises(ValueError, match="a solution for each test"):
        G.seal(str(tmp_path), "training")
    for argv in (["--data=arc"], ["--seeds=x"], ["--dreams=0"], ["--nothing=1"]):
        with pytest.raises(SystemExit):
            A.parse(argv)
    assert capsys.readouterr().err.count("\n") == 4


def test_the_filter_takes_types_in_turn_and_the_halves_share_none(tmp_path):
    tasks_file(tmp_path, {k: {f"{k}{i}": whole() for i in range(4)} for k in "abcd"})
    a = flags_of(data_dir=str(tmp_path), pool=2)
    one, two = A.pools_of(a)(1)
    assert len(one) == len(two) == 4 and not {t.kind for t in one} & {t.kind for t in two}
    assert A.pools_of(a)(1) == [one, two] and any(A.pools_of(a)(s)[0] != one for s in range(2, 9))
    learnt = [(t, {"learnt": [0, i != 0]}) for i, t in enumerate(one)]
    assert one[0] not in A.choose(learnt, 9, a, 1) and len(A.choose(learnt, 9, a, 1)) == 3
    assert len({t.kind for t in A.choose(learnt, 2, a, 1)}) == 2


# --------------------------------------------------------------------------------------------------
# The whole of it, as small as can be, cut off and gone on with

def test_a_run_that_was_cut_off_goes_on_to_the_same_numbers(tmp_path, monkeypatch, capsys):
    short = {"train": [{"input": [[1, 2]], "output": [[2, 1]]}] * 2,
             "test": [{"input": [[3, 4]], "output": [[4, 3]]}]}
    long = {**short, "test": [{"input": [[3] * 120], "output": [[4] * 120]}] * 2}
    tasks_file(tmp_path, {k: {k: task} for k, task in zip("abcd", (short, short, short, long))})
    words = ["--data=arc1d", f"--data_dir={tmp_path}", "--quick", "--steps=1", "--layers=1",
             "--width=32", "--dreams=2", "--updates=1", "--row=6", "--test=1", "--train=2",
             "--held=1", "--device=cpu"]
    monkeypatch.setattr(W, "BLOCK", 120)
    A.main([*words, f"--work={tmp_path}/one"])
    assert "sleep - dream" in capsys.readouterr().out
    stopped, real = [0], A.store.write_json

    def cut(path, data):
        real(path, data)
        stopped[0] += 1
        if stopped[0] in (3, 7):
            raise KeyboardInterrupt
    monkeypatch.setattr(A.store, "write_json", cut)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            A.main([*words, f"--work={tmp_path}/two"])
    A.main([*words, f"--work={tmp_path}/two"])
    one, two = (json.load(open(tmp_path / name / "quick.json")) for name in ("one", "two"))
    assert one["seeds"] == two["seeds"] and one["seeds"]["1"]["too long"] == 1
    assert "commit" in one and "FOLDER" in one["command"] and str(tmp_path) not in one["command"]
    with pytest.raises(ValueError, match="choose another --work"):
        A.main([*words, "--rank=4", f"--work={tmp_path}/two"])


def test_intervals_and_differences_of_a_table():
    def seed(sleep, dream):
        success = {m: {"success": 0.0, "any": 0.0, "vote": 0.0} for m in R.METHODS}
        success["sleep"]["success"], success["dream"]["success"] = sleep, dream
        return {"success": success, "looked": 4, "too long": 1, "icl of all": 0.25, "learnable": 2,
                "trials": [], "chosen": {"train": ["a"], "held": ["b"]}}
    said = R.told({"seeds": {"1": seed(0.5, 0.25), "2": seed(0.75, 0.5)}})
    assert "sleep - dream: 25.0 ± 0.0 (by seed +25.0, +25.0)" in said
    assert "1 are too long" in said and "62.5" in said
    idle = R.told({"seeds": {}, "nothing learnable": [3]})
    assert "no seed is finished" in idle and "seed 3: the filter left nothing" in idle
