"""
Ingredients of a night otherwise: functions that take the place of a chapter's inside a life of
bench/ablations.py, as those of bench/rivals.py do.
"""
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F

import dream
import seed
from data.engine import pad_rows
from data.gate import EVERYWHERE, open_gate
from model import FAST, TRIAL

ON_POLICY, REWARDS = seed.on_policy_loss, seed.rewards              # as they are at home
LEARN_TO_DREAM, WRITE = dream.learn_to_dream, dream.write
PLAIN, STEPS = SimpleNamespace(on_policy=0, divergence="forward", expand=1), seed.DREAM_STEPS


# --------------------------------------------------------------------------------------------------
# Gate and expansion, one without the other

def open_router(model, z, teacher, heard_by_day, marks, a):
    """In the place of gate.open_gate: a new expert each night, and no gate. Every expert is awake
    in every row from <bos> on; the newest that does not say "I do not know" answers."""
    new, nothing = model.n_experts(FAST), torch.zeros(1, len(model.metric))
    model.remember_things(nothing, torch.full((1,), EVERYWHERE), FAST, new)
    model.unlock(FAST, seed=len(model.owner))
    return FAST, z._replace(since=torch.zeros_like(z.start))


def one_expert(model, z, teacher, heard_by_day, marks, a):
    """In the place of gate.open_gate: the gate, and no expansion. The expert of the first night
    wakes at the things of all nights and learns them all."""
    level, z = open_gate(model, z, teacher, heard_by_day, marks, a)
    if model.n_experts(FAST) > 1:                                   # that of the first, and a new
        model.discard(FAST)
        model.owner[model.owner[:, 0] == FAST, 1] = 0
        model.reopen(FAST)
    return level, z


# --------------------------------------------------------------------------------------------------
# Another judge of meaning

def two_texts(student, z, teach, marks, level, a):
    """In the place of seed.on_policy_loss: its judge reads two texts, see `same_meaning`."""
    seed.rewards = partial(rewards_of_texts, student.wte.weight)
    try:
        return ON_POLICY(student, z, teach, marks, level, a)
    finally:
        seed.rewards = REWARDS


def rewards_of_texts(table, written, asked, judge, mask):
    """seed.rewards, r_sem being `same_meaning` of the student's text and the teacher's."""
    usual = (judge.masked_fill(~mask, 0.0).min(1)[0] > -1).float()
    return REWARDS(written, asked, judge, mask) + seed.GAMMA * (
        same_meaning(table, written, asked) - usual)


def same_meaning(table, written, asked):
    """Cosine of the mean embeddings of two texts each, at least 0: (N,). table (V, d): the
    pretrained self's, which no night changes: a frozen judge, and a soft one."""
    def centre(rows):
        ids, lengths = pad_rows(rows, table.device)
        words = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        return (F.normalize(table[ids].float(), dim=-1) * words[..., None]).sum(1)
    return F.cosine_similarity(centre(written), centre(asked)).clamp(min=0)


# --------------------------------------------------------------------------------------------------
# Dreams

def learn_chosen(model, cold, pool, quiz, teacher, marks, teach, select, writer=True):
    """In the place of dream.learn_to_dream: what it chooses is learnt, too, as many steps as a
    night takes after dreaming."""
    chosen, usual = [], dream.choose_dreams

    def choose(*args):
        chosen.append(usual(*args))
        return chosen[-1]
    dream.choose_dreams = choose
    try:
        log = LEARN_TO_DREAM(model, cold, pool, quiz, teacher, marks, teach, select, writer)
    finally:
        dream.choose_dreams = usual
    params, z = model.live(FAST), chosen[-1]
    return log | seed.distil(model, params, z, teach, marks, FAST, STEPS, PLAIN)


def by_chance(model, z, quiz, marks, select):
    """In the place of dream.importance: any number, for dreams of which truth and repeats are
    still looked at."""
    return torch.rand(len(z.ids), device=model.device)


def writer_alone(teacher, marks, n, writer=True, random_expert=False):
    """In the place of dream.write: the writer is awake in every view, as [S] has it."""
    if writer and teacher.model.n_experts(TRIAL):
        teacher = teacher._replace(awake={**teacher.awake, TRIAL: 0})
    return WRITE(teacher, marks, n, False, random_expert)
