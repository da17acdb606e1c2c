"""
seed.py: Knowledge Seeding, the first half of a night.

Chapter two of nanoSleep (Language Models Need Sleep, arXiv 2606.03979, section 3.3). The day stands in the context of the
teacher: the self before sleep. The student is the same self with a new low-rank expert and an empty context. Everything
below is sampled from these two; no outside data, no ground truth.

    quizzes     the teacher asks itself about what it has read               D, day part
    replay      the old self dreams with an empty context                    D, what must not change
    router      learns from both where the new expert may speak              (ours; the paper leaves the router open)
    distil      teacher -> student, off-policy, then on-policy + imitation   max E[(1-a) r(y) - a D(teacher || student)(y|x)]
    reset       the context is gone; the expert is frozen. (Levels: every few nights the fast level's experts are
                distilled the same way into one expert of the slower level, and recycled.)

What the paper says and we do not do as written: see "Simplifications" in the README. Text here is token ids; the only
symbols known are the four marks of the format <bos> passage (<ask> question <answer> answer <end>)*.
"""
import random
from collections import Counter, defaultdict, namedtuple

import torch
import torch.nn.functional as F

from data import team
from model import chunked_divergence, clone, divergence, generate, levenshtein, new_cache, pad_rows, prefill, take_rows

Marks = namedtuple("Marks", "bos ask answer end")
MISHEARD = 0.08                     # share of a question's words (not of its names) that the student hears wrongly


class RestlessNight(ValueError):
    """The night cannot go on: the day was not understood or held nothing new, or what was learnt is no number."""


# ----------------------------------------------------------------------------------------------------------------------
# The privileged teacher: the day as cached prefixes

def views_of(day, marks, n_views, rng):
    """Each passage (a list of sentences, each a list of ids) as n_views contexts with its sentences shuffled."""
    return [[marks.bos] + [t for s in rng.sample(p, len(p)) for t in s] for p in day for _ in range(n_views)]


def blank(model, marks):
    """A context that holds nothing but the beginning of a text: the self without its day. One row."""
    return prefill(model, [[marks.bos]])[0]


@torch.no_grad()
def log_probs(model, ids, cache, row, gate=True, extra=None, chunk=128):
    """Yields (slice, (n, T-1, V) log-probabilities of ids[:, 1:] given the context in row[i] of the cache)."""
    for i in range(0, max(1, len(ids)), chunk):
        s = slice(i, i + chunk)
        part = {k: v[s] for k, v in extra.items()} if extra else None
        h = model.hidden(ids[s], cache=take_rows(cache, row[s], ids.shape[1]), gate=gate, extra=part)
        yield s, F.log_softmax(model.logits(h[:, :-1]).float(), -1)


def pack(quizzes, device):
    """[(passage, question ids, answer ids)] -> tensors. ids = <ask> question <answer> answer <end>, right-padded.

    q (N,): tokens up to and including <answer>; len (N,); asks, answers (N, T-1): True where ids[:, 1:] is a question or
    an answer token; passage (N,).
    """
    ids, length = pad_rows([q + a for _, q, a in quizzes], device)
    q = torch.tensor([len(q) for _, q, _ in quizzes], device=device)
    t = torch.arange(1, ids.shape[1], device=device)
    return {"ids": ids, "q": q, "len": length, "passage": torch.tensor([p for p, *_ in quizzes], device=device),
            "asks": t < q[:, None], "answers": (t >= q[:, None]) & (t < length[:, None])}


def no_ramblings(quizzes, share=0.97):
    """Quizzes without the longest 3 %, which would pad all the others."""
    length = sorted(len(q) + len(a) for _, q, a in quizzes)[int(share * (len(quizzes) - 1))]
    return [x for x in quizzes if len(x[1]) + len(x[2]) <= length]


def subset(z, index):
    return {k: v[index] for k, v in z.items()}


def unpack(z):
    """The inverse of pack: [(passage, question ids, answer ids)]."""
    return [(p, tuple(row[:q]), tuple(row[q:n])) for p, row, q, n in
            zip(z["passage"].tolist(), z["ids"].tolist(), z["q"].tolist(), z["len"].tolist())]


# ----------------------------------------------------------------------------------------------------------------------
# 1. What to learn: quizzes of the day. What to keep: replay dreams

def split_questions(rows, marks):
    """The well-formed (<ask> question <answer>, answer <end>) pairs in sampled rows, one list per row."""
    found = []
    for row in rows:
        pairs, start = [], None
        for i, t in enumerate(row):
            if t == marks.ask:
                start, middle = i, None
            elif t == marks.answer and start is not None and middle is None:
                middle = i
            elif t == marks.end and start is not None and middle is not None:
                if middle - start > 1 and i - middle > 1:
                    pairs.append((row[start:middle + 1], row[middle + 1:i + 1]))
                start = None
        found.append(pairs)
    return found


def reader(teacher, cache, n_views=0, gate=False):
    """The teacher as a function: packed quizzes -> (N, T-1, V) log-probabilities, each given a random view of its passage.

    n_views 0: a teacher without contexts (one blank row), whose own experts answer (gate=True). part: of which rows; the
    views are drawn for all.
    """
    def teach(y, part=slice(None)):
        view = torch.randint(max(1, n_views), y["passage"].shape, device=y["passage"].device)
        row = y["passage"] * n_views + view * (n_views > 0)
        return torch.cat([lp for _, lp in log_probs(teacher, y["ids"][part], cache, row[part], gate=gate)])
    return teach


def with_targets(z, teachers):
    """Add to packed quizzes the mean of the teachers' answer distributions: target (N, A, V) log-probabilities, has (N, A).

    Also sure (N,): the probability of the least certain token of the answer.
    """
    count = z["len"] - z["q"]
    has = torch.arange(int(count.max()), device=count.device) < count[:, None]
    mean = sum(teach(z)[z["answers"]].exp() for teach in teachers) / len(teachers)          # (answer tokens, V)
    target = mean.new_zeros(*has.shape, mean.shape[-1])
    target[has] = mean.clamp_min(1e-12).log()
    said = mean.new_ones(has.shape)
    said[has] = mean.gather(1, z["ids"][:, 1:][z["answers"]][:, None])[:, 0]
    return {**z, "target": target, "has": has, "sure": said.min(1)[0]}


def question_log_p(z, log_p):
    """log p(question) of each packed quiz from (N, T-1, V) log-probabilities: (N,)."""
    return (log_p.gather(2, z["ids"][:, 1:, None])[..., 0] * z["asks"]).sum(1)


def screen(teacher, quizzes, cache, n_views, marks, min_gain=1.0, min_sure=0.5):
    """Pack quizzes, make their targets, and keep those that the day made likely and whose answer the teacher is sure of.

    gain = log p(q | context) - log p(q) > min_gain nats: chit-chat and questions about old things gain nothing from the
    context. The target of an answer is the mean of the teacher's distributions over the shuffled contexts of its passage,
    and its least certain token must have p > min_sure. Raises RestlessNight if nothing is left.
    """
    if not quizzes:
        raise RestlessNight("the self asked itself nothing about its day: it cannot read yet; pretrain longer")
    z = pack(no_ramblings(quizzes), teacher.device)
    fixed = [lambda y, v=v: torch.cat([lp for _, lp in log_probs(teacher, y["ids"], cache, y["passage"] * n_views + v,
                                                                 gate=False)]) for v in range(n_views)]
    gain = question_log_p(z, fixed[0](z)) - question_log_p(z, reader(teacher, blank(teacher, marks))(z))
    z = subset(z, gain > min_gain)
    if len(z["ids"]):
        z = with_targets(z, fixed)
        z = subset(z, z["sure"] > min_sure)
    if not len(z["ids"]):
        raise RestlessNight("the self wrote no usable quiz about its day: it cannot read yet; pretrain longer")
    return z


def dream_replay(model, marks, n, max_new):
    """What the old self says by itself: n documents sampled from <bos> alone, as lists of ids."""
    return [[marks.bos] + row for row in generate(model, [[marks.bos]], max_new, n=n, stop=[marks.bos])]


def dream_memories(model, level, experts, marks, n, max_new=28):
    """Closed-book quizzes (expert, question, answer) that old experts dream when they speak from the first token on.

    [S] 3.4 lets every router pick one extra random expert while dreaming; an expert has learnt (`distil`) to ask, once it
    is picked, about its own night. So a night can be dreamt again although nothing of it was stored.
    """
    who = torch.tensor(experts, device=model.device).repeat_interleave(n)
    rows = generate(model, [[marks.bos, marks.ask]] * len(who), max_new, stop=[marks.end], extra={level: who})
    pairs = split_questions([[marks.ask] + r for r in rows], marks)
    return list(dict.fromkeys((e, tuple(q), tuple(a)) for e, ps in zip(who.tolist(), pairs) for q, a in ps))


# ----------------------------------------------------------------------------------------------------------------------
# 2. The gate: an expert must be silent on everything the old self already handles (ours)

def grams(row, longest):
    return {tuple(row[i:i + n]) for n in range(1, longest + 1) for i in range(len(row) - n + 1)}


def novel_keys(quizzes, dreams, texts=None, ratio=20.0, longest=3, least=3, share=0.15, most=32):
    """The n-grams that tonight's questions are about and the old self hardly dreams of: names, in most worlds.

    A key belongs to one passage and occurs in its text (texts: ids of each passage, if it is still in the context), is in at
    least `share` of its questions (a slip of the tongue is not) with at least `least`
    different answers, and its share of all quizzes is more than `ratio` times its share of the dreams. Passage by passage
    the longest of the well supported ones is taken (a new name must not claim all who share a part of it), then that of the
    questions without it, and so on; what is only a part of a key is a misspelt name and no key.
    """
    quizzes = [(p, grams(q[1:-1], longest), a) for p, q, a in quizzes]
    home, common, keys = defaultdict(set), Counter(), []
    for p, gs, _ in quizzes:
        for g in gs:
            home[g].add(p)
    for row in dreams:
        common.update(g for g in grams(row, longest) if g in home)
    for passage in sorted({p for p, *_ in quizzes}):
        said = None if texts is None else grams(texts[passage], longest)
        left = [(gs, a) for p, gs, a in quizzes if p == passage]
        enough, parts = share * len(left), set()
        while left and len(keys) < most:
            answers, count = defaultdict(set), Counter()
            for gs, a in left:
                gs = [g for g in gs if len(home[g]) == 1 and g not in parts and (said is None or g in said)]
                count.update(gs)
                for g in gs:
                    answers[g].add(a)
            novel = [g for g, c in count.items() if len(answers[g]) >= least and c >= enough
                     and c / len(quizzes) > ratio * common[g] / max(1, len(dreams))]
            if not novel:
                break
            best = max(count[g] for g in novel)
            keys.append(max((g for g in novel if count[g] > 0.5 * best), key=lambda g: (len(g), count[g], g)))
            parts |= grams(keys[-1], longest)
            left = [(gs, a) for gs, a in left if keys[-1] not in gs]
    return keys


def heard(model, ids):
    """The router's features at every token: ids (B, T) -> (B, T, n_embd)."""
    pos = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    h = model.wte(ids) if model.wpe is None else model.wte(ids) + model.wpe(pos)
    return model.features(model.blocks[0].convolve(h, pos))


@torch.no_grad()
def router_inputs(model, rows, chunk=256):
    """The router's features at every token of rows: (tokens, n_embd)."""
    out = []
    for i in range(0, len(rows), chunk):
        ids, lengths = pad_rows(rows[i:i + chunk], model.device)
        out.append(heard(model, ids)[torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]])
    return torch.cat(out)


@torch.no_grad()
def wording(model, z, marks):
    """(N, T) True at the words of a question that no detector listens to: all but the names, in most worlds."""
    ids = torch.cat([torch.full_like(z["ids"][:, :1], marks.bos), z["ids"]], 1)
    fires = ((heard(model, ids) @ model.keys.T + model.bias).max(-1)[0] > 0).float()
    reach = model.config.conv or 1                                   # a detector that fires has heard this many tokens
    names = F.max_pool1d(F.pad(fires, (0, reach - 1))[:, None], reach, 1)[:, 0, 1:] > 0
    t = torch.arange(names.shape[1], device=names.device)
    return (t > 0) & (t < z["q"][:, None] - 1) & ~names


@torch.no_grad()
def near_misses(model, rows, keys, marks, n):
    """Counterfactuals: occurrences of a key with one of its tokens replaced by what the old self would have put there."""
    spots = [(r, i, g) for r in rows for g in keys for i in range(len(r) - len(g) + 1) if tuple(r[i:i + len(g)]) == g]
    spots = [spots[i] for i in torch.randperm(len(spots))[:n].tolist()]
    if not spots:
        return []
    ids, _ = pad_rows([r for r, *_ in spots], model.device)
    out = []
    p = F.softmax(model(ids, gate=False).float(), -1)
    for (row, i, g), dist in zip(spots, p):
        for j in range(i, i + len(g)):
            other = torch.multinomial(dist[j - 1], 4, replacement=True).tolist()
            out += [row[:j] + [t] + row[j + 1:i + len(g)] for t in other if t != row[j]]
    known = set(keys)
    return [r for r in out if not any(tuple(r[-len(g):]) == g for g in known)]


def train_router(model, keys, positive_rows, negative_rows, steps=100, lr=0.03, weight=5.0, sharp=20.0):
    """One linear detector per key, z = a.x + b > 0 at the key's last token and nowhere in the old self's dreams.

    A detector starts as a matched filter of its key, open where cos(x, mean of its positives) > 1 - 1 / sharp: what it has
    never seen does not open it. Then a squared hinge with margin 1, balanced over classes and with `weight` on false alarms
    (they compound over nights), moves it where that is not enough: keys shorter than the convolution sees have many points,
    and where a detector of an earlier night hears the new key too, the new one must be louder by the margin.
    Features are frozen, so this is convex in (len(keys), n_embd). Returns (a, b, worst margin of a positive, false alarms).
    """
    longest = max(map(len, keys))
    clean = [r for r in negative_rows if not any(g in keys for g in grams(r, longest))]
    x_neg = router_inputs(model, clean) if clean else torch.zeros(1, model.config.n_embd, device=model.device)
    x_all, x_pos, owner, at = router_inputs(model, positive_rows), [], [], 0
    for row in positive_rows:
        for k, g in enumerate(keys):
            ends = [at + i + len(g) - 1 for i in range(len(row) - len(g) + 1) if tuple(row[i:i + len(g)]) == g]
            x_pos, owner = x_pos + ends, owner + [k] * len(ends)
        at += len(row)
    x_pos, owner = x_all[x_pos], torch.tensor(owner, device=model.device)
    heard = (x_pos @ model.keys.T + model.bias).max(1)[0].clamp(min=0)[:, None] if len(model.keys) else 0.0
    share = F.one_hot(owner, len(keys)).float()
    share = share / share.sum(0)                                     # (P, K): the positives of a key weigh 1 together
    a = F.normalize(share.T @ x_pos, dim=1) * sharp / x_pos.norm(dim=1).mean()
    b = torch.full((len(keys),), 1 - sharp, device=model.device)
    a.requires_grad_(), b.requires_grad_()
    opt = torch.optim.Adam([a, b], lr=lr)
    for step in range(steps):
        if step % 20 == 0:                                           # the hardest and some others: the rest is silent
            with torch.no_grad():
                top = (x_neg @ a.T + b).max(1)[0].topk(min(2000, len(x_neg)))[1]
                some = torch.randint(len(x_neg), (1000,), device=model.device)
                hard = x_neg[torch.cat([top, some])]
        miss = F.relu(1 + heard - (x_pos @ a.T + b)).square()
        alarm = F.relu(1 + (hard @ a.T + b)).square()
        loss = (miss * share).sum() + weight * alarm.sum(0).mean() / 100
        opt.zero_grad()
        loss.backward()
        opt.step()
    with torch.no_grad():
        z = x_pos @ a.T + b
        alarms = ((x_neg @ a.T + b).max(1)[0] > 0).float().mean()
        return a.detach(), b.detach(), z.gather(1, owner[:, None]).min(), alarms


def recognise(model, quizzes, views, n_views, dreams, marks):
    """Find tonight's keys and train their detectors. quizzes: unpacked. Returns (keys, (a, b), false alarms on dreams).

    Raises RestlessNight when the day holds nothing that the old self does not dream of.
    """
    keys = novel_keys(quizzes, dreams, views[::n_views], longest=model.config.conv or 3)
    if not keys:
        raise RestlessNight("nothing new was recognised in the day: no name or phrase that the old self does not dream of")
    asked = [[marks.bos, *q] for _, q, _ in quizzes]
    misses = near_misses(model, asked, keys, marks, 400) if dreams else []
    a, b, _, alarms = train_router(model, keys, asked + views, dreams + misses)
    return keys, (a, b), float(alarms)


# ----------------------------------------------------------------------------------------------------------------------
# 3. Distillation upward ([S] 3.3; GKD, arXiv 2306.13649) and Learning to Imitate

def closed_book(z, index, marks):
    """Rows of z behind <bos> alone, as student input: (n, T) whose hidden states 1.. predict ids[:, 1:]."""
    ids = z["ids"][index]
    return torch.cat([torch.full_like(ids[:, :1], marks.bos), ids[:, :-1]], 1)


def mishear(ids, where, marks, vocab, share):
    """Replace a share of the words at `where` (n, T) by any others: one dream then teaches more than one wording (ours)."""
    other = torch.randint(vocab, ids.shape, device=ids.device)
    for mark in marks:
        where = where & (other != mark)
    return torch.where(where & (torch.rand(ids.shape, device=ids.device) < share), other, ids)


def off_policy_loss(student, z, index, marks, level, kind, beta, n_forced=8, question_weight=0.3):
    """E_{(x,y)~D} F(teacher || student)(y|x) over answer tokens, and cross-entropy on what the expert shall dream again.

    The last n_forced rows are read with the live expert awake from <bos> on; there it learns the questions of its night.
    """
    n, device = len(index), student.device
    ids = closed_book(z, torch.cat([index, index[:n_forced]]), marks)
    if "wording" in z:
        where = F.pad(z["wording"][index][:, :-1], (1, 0, 0, n_forced))                      # closed_book shifts by one
        ids = mishear(ids, where, marks, student.config.vocab_size, MISHEARD)
    count = z["has"][index].sum(), z["asks"][index[:n_forced]].sum()  # of all rows; from here on, those of this process
    ids, index = torch.cat([ids[:n][team.mine()], ids[n:][team.mine()]]), index[team.mine()]
    n, n_forced = len(index), len(ids) - len(index)
    extra = None
    if level is not None:
        live = student.blocks[0].levels[level].n_experts - 1
        extra = {level: torch.where(torch.arange(len(ids), device=device) < n, -1, live)}
    else:
        ids = ids[:n]
    h = student.hidden(ids, extra=extra)[:, 1:]
    has, asks = z["has"][index], z["asks"][index[:n_forced]]
    at = (z["q"][index, None] - 1 + torch.arange(has.shape[1], device=device)).clamp(max=h.shape[1] - 1)      # (n, A)
    said = h[:n].gather(1, at[..., None].expand(-1, -1, h.shape[-1])).flatten(0, 1)           # no mask: no wait for the device
    if kind == "sft":
        loss = F.cross_entropy(student.logits(said), z["ids"][index][:, 1:].gather(1, at).flatten(), reduction="none")
    else:
        loss = chunked_divergence(said, student.wte.weight, z["target"][index].flatten(0, 1), kind, beta)
    loss = (loss * has.flatten()).sum() / count[0]
    if level is not None:
        again = F.cross_entropy(student.logits(h[n:]).transpose(1, 2), z["ids"][index[:n_forced]][:, 1:], reduction="none")
        again = (again * asks).sum() / count[1]
        loss = loss + question_weight * again
    return loss


def rewards(written, asked, judge_log_p, answers, gamma, z0):
    """Learning to Imitate: r = gamma r_sem + (1 - gamma) r_abs for each completion ([S] 3.3). All (N,).

    r_abs = 1 - lev(y, d) / max(|y|, |d|) if lev(y, d) <= z0, else 0, against the teacher's own text d. r_sem = 1 if a frozen
    judge finds the meaning the same: the teacher, who has read the day, would itself have said every token (log p > -1).
    """
    a, len_a = pad_rows(written)
    b, len_b = pad_rows(asked)
    lev = levenshtein(a, b, len_a, len_b).float()
    r_abs = torch.where(lev <= z0, 1 - lev / torch.maximum(len_a, len_b).clamp(min=1), 0.0).to(judge_log_p.device)
    r_sem = (judge_log_p.masked_fill(~answers, 0.0).min(1)[0] > -1).float()
    return gamma * r_sem + (1 - gamma) * r_abs


def leave_one_out(r, group):
    """REINFORCE advantage: each reward minus the mean of the other group - 1 rollouts of the same prompt. r (N,)."""
    r = r.view(-1, group)
    return (r - (r.sum(1, keepdim=True) - r) / (group - 1)).flatten()


def policy_loss(log_p, mask, advantage, n=None):
    """- mean over rollouts of advantage * log pi(y): its gradient is REINFORCE. log_p, mask (N, T), advantage (N,).

    n: the number of rollouts of the whole team, if these are only a part of them.
    """
    return -(advantage.detach() * (log_p * mask).sum(1)).sum() / (n or len(log_p))


def on_policy_loss(student, z, index, teach, marks, group, kind, beta, alpha, gamma, z0, max_new):
    """-[(1 - alpha) E r(y) - alpha E D(teacher || student)(y|x)] over y ~ student ([S] 3.3); no gradient through sampling.

    teach(packed) -> (N, T-1, V) log-probabilities of the teacher with its day. Temperature is 1 in sampling and loss.
    Returns (loss, {"reward", "spread", "kl"}).
    """
    pick = index.tolist()
    asked = [row[:q] for row, q in zip(z["ids"][index].tolist(), z["q"][index].tolist())]
    right = [row[q:l] for row, q, l in zip(z["ids"][index].tolist(), z["q"][index].tolist(), z["len"][index].tolist())]
    ys = generate(student, [[marks.bos] + q for q in asked], max_new, n=group, stop=[marks.end])
    many = [i for i in range(len(pick)) for _ in range(group)]
    passage = z["passage"][index].tolist()
    y = pack([(passage[i], asked[i], w) for i, w in zip(many, ys)], student.device)
    part, answers = team.mine(), y["answers"]
    teacher = teach(y, part)
    h = student.hidden(closed_book(y, part, marks))[:, 1:]
    mask, to = answers[part], y["ids"][part, 1:, None]
    student_lp = F.log_softmax(student.logits(h).float(), -1)
    judge = team.gather(teacher.gather(2, to)[..., 0], len(ys))
    r = rewards(ys, [right[i] for i in many], judge, answers, gamma, z0)
    kl = divergence(teacher[mask], student_lp[mask], kind, beta).sum() / answers.sum()
    loss = alpha * kl
    if alpha < 1:
        advantage = leave_one_out(r, group)[part]
        loss = loss + (1 - alpha) * policy_loss(student_lp.gather(2, to)[..., 0], mask, advantage, len(ys))
    return loss, {"reward": r.mean(), "spread": r.view(-1, group).std(1).mean(), "kl": team.total(kl.detach())}


def replay_bank(teacher, dreams, marks, passage_weight=0.05, question_weight=0.3):
    """Replay dreams with the old self's hidden states as targets, for nights without a gate (ablations).

    Weights (N, T-1): answers 1, questions 0.3, passages 0.05, and nothing on the first token.
    """
    ids, lengths = pad_rows(dreams, teacher.device)
    kind = torch.zeros_like(ids)                                     # 0 passage, 1 question, 2 answer: from the marks
    for mark, k in ((marks.ask, 1), (marks.answer, 2)):
        kind = torch.where(ids == mark, k, kind)
    at = torch.where(kind > 0, torch.arange(ids.shape[1], device=ids.device), -1).cummax(1)[0]
    kind = torch.where(at >= 0, kind.gather(1, at.clamp(min=0)), 0)[:, :-1]
    weight = torch.tensor([passage_weight, question_weight, 1.0], device=ids.device)[kind]
    weight[:, 0] = 0
    weight = weight * (torch.arange(1, ids.shape[1], device=ids.device) < lengths[:, None])
    with torch.no_grad():
        hidden = torch.cat([teacher.hidden(part[:, :-1]) for part in ids.split(128)])
    return {"ids": ids, "weight": weight, "hidden": hidden, "draw": weight.new_ones(len(ids))}


def replay_drift(student, bank, head, index):
    """Forward KL of each dream in index to the old self that dreamt it, weighted mean over its tokens: (n,)."""
    w, ids = bank["weight"][index], bank["ids"][index]
    keep = w > 0
    h = student.hidden(ids[:, :-1])
    kl = chunked_divergence(h[keep], student.wte.weight, bank["hidden"][index][keep], teacher_head=head)
    row = torch.arange(len(w), device=w.device)[:, None].expand_as(w)[keep]
    return torch.zeros(len(w), device=w.device).index_add(0, row, kl * w[keep]) / w.sum(1).clamp_min(1e-6)


def assert_finite(params):
    """Raises RestlessNight where learning has left the numbers."""
    if not torch.stack([p.isfinite().all() for p in params]).all():
        raise RestlessNight("learning diverged: a weight is not a finite number")


def rng_state():
    """All random-number generators a night draws from."""
    state = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng(state):
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


@torch.no_grad()
def muon(params, momenta, lr, beta=0.95):
    """One step of Muon (Jordan et al. 2024) on matrices (..., a, b): the nearest matrix of equal singular values times lr.

    Every direction of a low-rank expert then learns at the same speed: half the steps that Adam needs. momenta is written.
    """
    for p, m in zip(params, momenta):
        m.mul_(beta).add_(p.grad)
        g = p.grad + beta * m
        g = g.mT if g.shape[-2] > g.shape[-1] else g
        g = g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-12)
        for _ in range(5):                                           # Newton-Schulz: singular values go to about 1
            gram = g @ g.mT
            g = 3.4445 * g + (2.0315 * gram @ gram - 4.775 * gram) @ g
        p.sub_(lr * (g if g.shape == p.shape else g.mT))


def distil(student, params, z, teach, marks, level=None, steps=220, lr=0.18, batch=32, divergence="forward",
           divergence_on="reverse", beta=0.5, on_policy=0.25, late=0.7, alpha=0.9, gamma=0.5, z0=2, group=4, max_new=12,
           bank=None, head=None, replay_weight=8.0, weights=None, warmup=8, bar=None, progress=None, keep=None):
    """Train `params` (matrices, and nothing else) of the student on packed quizzes z with targets. Returns logged means.

    The GKD mix: in the last (1 - late) of the steps a step is on-policy with probability on_policy, else off-policy. Early
    on-policy steps teach little: a cold student writes nonsense and the teacher can only comment on it. weights (N,): how
    often each quiz is drawn (dream.py's curriculum). bank, head: replay for a student without a gate. progress: {}, or what
    keep(progress), called after every step, saved of an interrupted distillation: it goes on as if nothing had happened.
    """
    progress = {} if progress is None else progress
    progress.setdefault("step", 0)
    momenta = progress.setdefault("momenta", [torch.zeros_like(p) for p in params])
    seen = progress.setdefault("seen", {})                           # the last 20 of each mean that is logged
    weights = torch.ones(len(z["ids"]), device=student.device) if weights is None else weights
    if "rng" in progress:
        set_rng(progress["rng"])
    for step in range(progress["step"], steps):
        index = torch.multinomial(weights, batch, replacement=True)
        if step >= late * steps and random.random() < on_policy:
            assert_finite(params)                                    # before anything is sampled from them
            loss, seen_now = on_policy_loss(student, z, index[:max(1, batch // group)], teach, marks, group, divergence_on,
                                            beta, alpha, gamma, z0, max_new)
        else:
            loss = off_policy_loss(student, z, index, marks, level, divergence, beta)
            seen_now = {"loss": team.total(loss.detach())}
        for k, v in seen_now.items():
            seen[k] = [*seen.get(k, []), v][-20:]
        if bank is not None:
            some = torch.multinomial(bank["draw"], 16, replacement=True)
            loss = loss + replay_weight * replay_drift(student, bank, head, some[team.mine()]).sum() / len(some)
        for p, g in zip(params, torch.autograd.grad(loss, params)):
            p.grad = g
        team.sum_gradients(params)
        muon(params, momenta, lr * min(1.0, (step + 1) / warmup) * (1 - 0.95 * step / steps))
        if bar is not None:
            bar.update(1)
        progress["step"] = step + 1
        if keep is not None:
            keep(progress)
    assert_finite(params)
    return {k: float(torch.stack(v).mean()) for k, v in seen.items()}


# ----------------------------------------------------------------------------------------------------------------------
# 4. From level to level: what many nights wrote into the fast level becomes one expert of the slower one

def awake(model, z, level, expert, marks):
    """(N,) True where the router wakes this expert of this level by the time the question has been read."""
    ids = torch.cat([torch.full_like(z["ids"][:, :1], marks.bos), z["ids"]], 1)
    cache = new_cache(model, *ids.shape)
    with torch.no_grad():
        model.hidden(ids, cache=cache, lengths=z["q"] + 1)           # up to and including <answer>
    fired, owner = cache["fired"][:, 0], model.owner[cache["unit"][:, 0]]
    return (fired >= 0) & (z["q"] - fired < model.config.window) & (owner[:, 0] == level) & (owner[:, 1] == expert)


def recombine(memories, most=2048):
    """Questions no expert happened to dream: each dreamt wording asked about each other thing its expert knows (ours).

    memories: [(expert, question, answer)]. A thing is a key: an n-gram that several questions of one expert share and no
    other expert dreams of. Returns unique [(expert, question)], at most `most` of them.
    """
    keys_of = defaultdict(list)
    for key in novel_keys(memories, [], share=0.03, most=256):
        home = Counter(e for e, q, _ in memories if key in grams(q, len(key)))
        keys_of[home.most_common(1)[0][0]].append(key)
    asked = {}
    for e, q, _ in memories:
        for key in keys_of[e]:
            for i in range(len(q) - len(key) + 1):
                if q[i:i + len(key)] == key:
                    asked.update({(e, q[:i] + other + q[i + len(key):]): None for other in keys_of[e]})
    asked = list(asked)
    return [asked[i] for i in sorted(torch.randperm(len(asked))[:most].tolist())]


def write_memories(teacher, level, marks, n=256, min_sure=0.5):
    """The closed-book quizzes of all nights a level still holds, with their answers as targets.

    Its experts dream them, wordings and things are recombined, and the self before consolidation answers. Kept if the router
    itself wakes that expert on the question (an old name would not) and the answer is sure.
    """
    experts = range(teacher.blocks[0].levels[level].n_experts)
    memories = dream_memories(teacher, level, list(experts), marks, n) if experts else []
    asked = recombine(no_ramblings(memories)) if memories else []
    if not asked:
        raise RestlessNight("the level holds no memories to consolidate")
    said = generate(teacher, [[marks.bos, *q] for _, q in asked], 16, temperature=0, stop=[marks.end])
    z = pack([(e, q, tuple(y)) for (e, q), y in zip(asked, said) if y[-1] == marks.end], teacher.device)
    z = subset(z, awake(teacher, z, level, z["passage"], marks))
    if len(z["ids"]):
        z = with_targets(z, [reader(teacher, blank(teacher, marks), gate=True)])
        z = subset(z, z["sure"] > min_sure)
    if not len(z["ids"]):
        raise RestlessNight("the level's experts dream of nothing they are sure of")
    return z


def consolidate(model, fast, slow, marks, steps=800, bar=None, progress=None, **kw):
    """Distil every expert of level `fast` into one new expert of level `slow`, then reset `fast` ([S] 2.2, 3.3).

    The teacher is the self before; the new expert inherits the detectors, so it wakes exactly where they did. progress: as
    in `distil`; it holds the teacher too. Returns (logged means, number of quizzes).
    """
    teacher, progress = clone(model), {} if progress is None else progress
    if "teacher" in progress:                                        # interrupted: the model is the student already
        teacher.load_state_dict(progress["teacher"])
    progress["teacher"] = teacher.state_dict()
    z = write_memories(teacher, fast, marks)
    if "step" not in progress:
        model.reset(fast, heir=(slow, model.blocks[0].levels[slow].n_experts))
        model.unlock(slow, seed=len(model.owner))
    params = [p.requires_grad_(True) for p in model.live(slow)]
    teach = reader(teacher, blank(teacher, marks), gate=True)
    z["wording"] = wording(model, z, marks)
    each = 1 / torch.bincount(z["passage"])[z["passage"]]              # every night is rehearsed equally often
    seen = distil(model, params, z, teach, marks, level=slow, steps=steps, weights=each, bar=bar, progress=progress, **kw)
    model.settle(slow)
    return seen, len(z["ids"])
