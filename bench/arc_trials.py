"""
A dream of bench/arc.py is tried, and the self is taught to dream.

A self-edit (bench/arc_edits.py) is learnt by an isolated copy, a throw-away low-rank expert, many
side by side, as in dream.trials; then each copy answers the task's tests. ReST-EM is dream.rest_em.
a: the flags of bench/arc.py.
"""
import json
import random
from collections import Counter, namedtuple
from functools import partial
from statistics import mean

import torch
import torch.nn.functional as F

import dream
from bench import arc_edits as E
from bench import arc_grids as G
from data.engine import generate
from data.kernels import in_chunks, muon
from data.quizzes import pack
from data.text import pad_documents
from model import TRIAL

LONGEST = 30 * 31                   # ids of an answer: the largest grid of ARC, its lines, its end
Self = namedtuple("Self", "model f table")      # the model, its Format, the grammar of self-edits


def self_of(model, f):
    model = model.requires_grad_(False).eval()
    return Self(model, f, E.grammar(f, model.config.vocab_size, model.device))


# --------------------------------------------------------------------------------------------------
# A dream is tried

def attempt(me, task, edits, a, rng):
    """Each self-edit is learnt by a throw-away expert of its own, all side by side; then each
    copy answers the tests: [answers], a grid or None for each test. The self stays as it was."""
    answers = []
    for some in (edits[i:i + a.together] for i in range(0, len(edits), a.together)):
        first = me.model.n_experts(TRIAL)
        params = me.model.unlock(TRIAL, len(some))
        learn(me, params, [work_of(me, task.demos, edit, a, rng) for edit in some],
              torch.tensor([float(edit["rate"]) for edit in some], device=me.model.device))
        answers += answered(me, task, first + torch.arange(len(some), device=me.model.device))
        me.model.discard(TRIAL)
    return answers


def work_of(me, demos, edit, a, rng):
    """What a self-edit gives to learn: steps of a.rows documents (ids, weights), a.updates at most.
    """
    parts = (0.0, 1.0, 1.0) if edit["loss"] == '"all"' else (0.0, 0.0, 1.0)
    docs, queue = [], []
    for pairs in G.examples(demos, edit, rng):
        ids, part = zip(*E.document(me.f, pairs))
        if len(ids) <= me.model.config.block_size:
            docs.append((ids, [parts[p] for p in part]))
    for _ in range(int(edit["epochs"]) * bool(docs)):
        queue += rng.sample(docs, len(docs))
    return [queue[i:i + a.rows] for i in range(0, len(queue), a.rows)][:a.updates]


def learn(me, params, work, rate):
    """The live experts learn, each its own work, by Muon at its own rate (N,), which falls
    to zero."""
    first, momenta = me.model.n_experts(TRIAL) - len(work), [torch.zeros_like(p) for p in params]
    for step in range(max(map(len, work))):
        left = [max(0.0, 1 - step / max(1, len(steps))) for steps in work]      # 0: it is done
        docs = [doc for steps in work for doc in (steps[step] if step < len(steps) else [])]
        whose = [i for i, steps in enumerate(work) if step < len(steps) for _ in steps[step]]
        whose = torch.tensor(whose, device=me.model.device)
        loss = losses(me.model, docs, whose, len(work), dream.copies(first + whose)).sum()
        for p, g in zip(params, torch.autograd.grad(loss, params)):
            p.grad = g
        now = rate * torch.tensor(left, device=rate.device)
        muon(params, momenta, now[:, None, None])


def losses(model, docs, whose, n, awake):
    """Weighted next-token loss of each learner, (n,): docs (ids, weights), whose (N,) they are."""
    ids, weight = pad_documents(docs)
    at = weight.flatten().nonzero()[:, 0]                   # only what is scored becomes logits
    row = whose[(at // weight.shape[1]).to(whose.device)]
    ids, at, w = (t.to(model.device) for t in (ids, at, weight.flatten()[at]))
    h = model.hidden(ids[:, :-1], awake=awake).flatten(0, 1)[at]

    def nll(h, words):
        return F.cross_entropy(model.logits(h).float(), words, reduction="none")
    loss = in_chunks(nll, h, ids[:, 1:].flatten()[at])
    zero = torch.zeros(n, device=loss.device)
    return zero.index_add(0, row, loss * w) / zero.index_add(0, row, w).clamp(min=1e-9)


def answered(me, task, experts=None):
    """What each copy answers to the tests, greedily: [[grid or None]]; None: the self alone."""
    prompts = [E.prompt_of(me.f, task.demos, x) for x, _ in task.tests]
    n = 1 if experts is None else len(experts)
    awake = None if experts is None else dream.copies(experts.repeat_interleave(len(prompts)))
    room = min(me.model.config.block_size - max(map(len, prompts)), LONGEST)
    if room < 1:
        return [[None] * len(prompts)] * n
    rows = generate(me.model, prompts * n, room, temperature=0, awake=awake,
                    stop=[E.stop_of(me.f)])
    grids = [G.decode(me.f.enc, row[:-1]) if row[-1] == E.stop_of(me.f) else None for row in rows]
    return [grids[i:i + len(prompts)] for i in range(0, len(grids), len(prompts))]


def right(task, answers):
    """The reward: 1 if all tests of the task are answered to the last cell, else 0."""
    return int(answers == [y for _, y in task.tests])


def fits(me, task):
    """Do the demonstrations and each test, with its output, fit the context?"""
    return all(len(E.document(me.f, [*task.demos, test])) <= me.model.config.block_size
               for test in task.tests)


def tried(me, task, edits, a):
    """As `attempt`; a task that does not fit the context is unsolved."""
    return attempt(me, task, edits, a, random) if fits(me, task) else [[None]] * len(edits)


def graded(task, answers):
    """{"right": [0 or 1], "vote": is the commonest answer right?, "answers"} of some attempts."""
    whole = [json.dumps(x) for x in answers if None not in x]
    common = Counter(whole).most_common(1)[0][0] if whole else "[]"
    return {"right": [right(task, x) for x in answers], "vote": right(task, json.loads(common)),
            "answers": answers}


# --------------------------------------------------------------------------------------------------
# The self dreams, and learns to

def dreams(me, task, n, taught):
    """n self-edits that the self writes for this task; taught: with its writer awake."""
    room = me.model.config.block_size - len(me.table)
    none = torch.zeros(1, dtype=torch.long, device=me.model.device)
    awake = {TRIAL: (none, none)} if taught and me.model.n_experts(TRIAL) else None
    rows = generate(me.model, [E.wish_of(me.f, task.demos, room)], len(me.table), n=n,
                    stop=[E.stop_of(me.f)], trie=me.table, awake=awake)
    return [E.edit_in(me.f, row) for row in rows]


def teach_writer(me, tasks, trials, a):
    """ReST-EM (dream.rest_em) on the rewarded trials [(task's place, self-edit, reward)], each
    behind its task's demonstrations in two orders. Returns the last loss, or None."""
    room, readings = me.model.config.block_size - len(me.table), []
    for task in tasks:
        readings += [E.wish_of(me.f, demos, room)[:-1] for demos in (task.demos, task.demos[::-1])]
    last = E.wish_of(me.f, tasks[0].demos, room)[-1:]
    z = pack([(i, last, E.edit_ids(me.f, edit)) for i, edit, _ in trials], me.model.device)
    reward, loss = torch.tensor([r for _, _, r in trials]), None
    marks = me.f.marks._replace(ask=last)
    for _ in range(a.lessons):
        loss = dream.rest_em(me.model, z, readings, marks, reward, a.writer_rows)
    return loss


def tuned_recipe(trials):
    """The self-edit of the options that were rewarded most often, each on average."""
    def success(slot, option):
        rewards = [r for _, edit, r in trials if edit[slot] == option]
        return mean(rewards) if rewards else -1.0
    return {slot: max(options, key=partial(success, slot)) for slot, options in E.SLOTS.items()}
