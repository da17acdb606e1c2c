"""
BABILong: a story of bAbI among the lines of plays, many contexts long; read once, slept on, asked
at the end.

    python bench/babilong.py --data_dir=FOLDER             1,000 to 100,000 tokens, three seeds
    python bench/babilong.py --data_dir=FOLDER --quick     one short haystack: does everything run?
    python bench/babilong.py --table=1                     the table  -> bench/results/babilong.json

After Kuratov et al. (arXiv 2406.10149) and Figure 6 of Language Models Need Sleep (arXiv
2606.03979). The stories are the published ones (bench/babi.py; qa1 to qa3), the base has learnt to
read others, of other people, places and things. The self reads line by line and keeps what is news
to it (bench/haystack.py), in the order in which it was told. When its context is full, it sleeps;
at the end, too. It is asked with an empty context.

    sleep          the self that has slept
    window alone   the pretrained self with the last of the haystack in its context: no memory
    told           the pretrained self with the story alone in its context: how well it reads
    guess          the most usual answer of these stories

Every length has the same stories. What is kept as news is what a night sees; so two lengths of
which the same lines are kept have the same nights, and these are lived once.
"""
import os
import random
import shlex
import sys
import time
from collections import Counter
from types import SimpleNamespace

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import torch                                                         # noqa: E402
from tqdm import tqdm                                                # noqa: E402

import sleep                                                         # noqa: E402
from bench import babi, haystack, stats                              # noqa: E402
from bench.tables import babilong as table_of                        # noqa: E402
from data import exam, flags, store                                  # noqa: E402
from data.text import Item                                           # noqa: E402
from model import clone                                              # noqa: E402

FLAGS = {
    "data_dir": ("", flags.TEXT, "folder of babi/en-v1.1 and tinyshakespeare"),
    "tasks": ("qa1,qa2,qa3", flags.TEXT, "tasks, with commas"),
    "tokens": ("1000,10000,100000", flags.TEXT, "lengths of the haystacks, with commas"),
    "stories": (20, (1, 1000), "of each task and each seed"),
    "longest": (20, (1, 1000), "sentences of a story, at most"),
    "window": (160, (32, babi.BLOCK - sleep.ROOM), "tokens of news that are slept on at a time"),
    "steps": (3000, (1, 10 ** 6), "of pretraining"),
    "seeds": ("6,7,8", flags.TEXT, "seeds of base and haystack, with commas"),
    "work": ("out-babilong", flags.TEXT, "folder of the bases"),
    "result": (os.path.join(stats.RESULTS, "babilong.json"), flags.TEXT, "result file"),
    "table": (0, flags.SWITCH, "1: print the table of the result file, read nothing"),
    "quick": (False, flags.SWITCH, "one short haystack: does everything run?"),
}
QUICK = {"tokens": "300", "tasks": "qa1", "stories": 2, "seeds": "1", "steps": 60}
SMALL = ["--n_layer=2", "--n_embd=64", "--quizzes=1", "--seed_steps=20"]
NAME = "babilong.py"
SAME = ("seed", "task", "tokens", "stories", "longest", "window")   # what names a row


# --------------------------------------------------------------------------------------------------
# One haystack

def chosen(o, task, number):
    """[(sentences, question, answer)]: `stories` of a task, those of a seed, none too long."""
    fit = [s for s in babi.stories(o.data_dir, task) if len(s[0]) <= o.longest]
    if len(fit) < o.stories:
        raise ValueError(f"--stories={o.stories}: {task} has {len(fit)} of at most {o.longest} "
                         "sentences")
    return random.Random(f"babilong {number} {task}").sample(fit, o.stories)


def hidden(told, hay, tokens, length_of, rng):
    """The lines of a story, in order, among lines of hay one behind the other: [(line, is it of
    the story?)], `tokens` of hay long."""
    start, lines, size = rng.randrange(len(hay)), [], 0
    while size < tokens:
        lines.append((hay[(start + len(lines)) % len(hay)], False))
        size += length_of(lines[-1][0])
    places = sorted(rng.randrange(len(lines) + 1) for _ in told)
    for i, (place, sentence) in enumerate(zip(places, told)):
        lines.insert(place + i, (sentence, True))
    return lines


def night_of(me, kept, question, o):
    """What the self says behind its nights, of the lines kept as news -> (answer, logs). Of the
    same lines the same, and these are slept on once."""
    if kept not in me.slept:
        model = clone(me.base, share=True)
        model.set_ranks(sleep.ranks_of(me.a, me.data))
        ids = [me.ids(line) for line in kept]
        me.slept[kept] = haystack.read(model, ids, [True] * len(ids), me.data.marks, me.a,
                                          SimpleNamespace(**vars(o), levels=1, room=0), True)
    model, logs = me.slept[kept]
    return said(model, me.data, [Item("", question, "", "babi")])[0], logs


def said(model, data, items):
    return [text.strip() for text, _ in exam.answers(model, data, items)]


def one(me, o, key, hay):
    """A row of the result file: all stories of a seed, a task and a length."""
    rng, began = random.Random(" ".join(map(str, key.values()))), time.time()
    tales, right, nights, kept_of = chosen(o, key["task"], key["seed"]), [], [], []
    for told, question, answer in tqdm(tales, desc=key["task"], unit="story", leave=False):
        lines = hidden(told, hay, key["tokens"], lambda line: len(me.ids(line)), rng)
        fresh = [s for s in dict.fromkeys(s for s, _ in lines) if s not in me.judged]
        news = haystack.is_news(me.base, [me.ids(s) for s in fresh], me.data.marks,
                                me.a)
        me.judged |= zip(fresh, news)
        kept = tuple(s for s, _ in lines if me.judged[s])
        y, logs = night_of(me, kept, question, o) if kept else ("", [])
        last = [t for s, _ in lines for t in me.ids(s)][-(babi.BLOCK - sleep.ROOM):]
        asked = [Item(me.data.enc.decode(last), question, answer, "babi"),
                 Item("".join(told), question, answer, "babi")]
        right.append([x == answer.strip() for x in (y, *said(me.base, me.data, asked))])
        nights.append(logs)
        news_of = [[me.judged[s] for s, own in lines if own == of_story] for of_story in (1, 0)]
        kept_of.append([sum(news) / max(1, len(news)) for news in news_of])
    usual = Counter(answer for _, _, answer in tales).most_common(1)[0][1]
    share = [sum(column) / len(tales) for column in zip(*right)]
    return {**dict(zip(("sleep", "window_alone", "told"), share)), "guess": usual / len(tales),
            "right": [[int(x) for x in row] for row in right],
            **dict(zip(("story_kept", "hay_kept"),
                       (sum(column) / len(tales) for column in zip(*kept_of)))),
            "nights": sum(map(len, nights)) / len(tales),
            "undone": sum("undone" in log for logs in nights for log in logs),
            "seconds": round(time.time() - began, 1)}


# --------------------------------------------------------------------------------------------------
# All of them

def from_base(o, number):
    """The self of a seed before its haystacks; its base is made once: a, base, data, ids (line) ->
    [ids], judged {line: is it news?}, slept {lines: (self, logs)}; and the hay."""
    folder = os.path.join(o.work, f"base{number}" + "-quick" * o.quick)
    os.makedirs(folder, exist_ok=True)
    words = [f"--seed={number}", "--threads=1", f"--pretrain_steps={o.steps}", "--period=0",
             *SMALL * o.quick]
    a = flags.parse([*words, f"--out_dir={folder}"])
    a.lock, a.resume, a.command = store.occupy(folder), True, shlex.join(words)
    a.torch_device = torch.device("cpu")
    torch.set_num_threads(1)
    data, hay, _ = babi.load(o.data_dir, number)
    done = os.path.isfile(os.path.join(folder, "base.pt"))
    base, _ = sleep.pretrained(a, None if done else sleep.born(a, data), data)
    return SimpleNamespace(a=a, base=base, data=data, ids=data.enc.encode_ordinary, judged={},
                           slept={}), hay


def live(o, argv):
    """All rows that are not in the result file yet."""
    seeds, lengths = (flags.numbers(getattr(o, k), k, NAME) for k in ("seeds", "tokens"))
    tasks = o.tasks.split(",")
    for task in tasks:
        if task not in babi.TASKS:
            flags.fail(f"--tasks: there is no {task!r}; tasks: {', '.join(babi.TASKS)}", NAME)
    for task in tasks:
        chosen(o, task, seeds[0])                                   # all that can fail comes first
    file = stats.read(os.path.abspath(o.result)) or {"runs": []}
    done = [{k: r[k] for k in SAME} for r in file["runs"]]
    keys = [{"seed": s, "task": t, "tokens": n, **{k: getattr(o, k) for k in SAME[3:]}}
            for s in seeds for t in tasks for n in lengths]
    todo = [key for key in keys if key not in done]
    print(f"{len(todo)} rows: expect some 20 minutes for each base that is not there, 30 seconds "
          "for each story and 5 minutes for the lines of hay of each seed, on a quiet CPU thread; "
          "cut it off when you like, it goes on", flush=True)
    kept = ["--data_dir=FOLDER" if w.startswith("--data_dir") else w for w in argv
            if not w.startswith(("--work", "--result"))]
    command = shlex.join(["python", "bench/babilong.py", *kept])

    def rows_of(number, keys):
        me, hay = from_base(o, number)
        for key in keys:
            yield one(me, o, key, hay)
    haystack.fill(file, o.result, command, todo, rows_of)


def main(argv):
    o = flags.parse(argv, __doc__, FLAGS, NAME, QUICK)
    if o.quick and o.result == FLAGS["result"][0]:
        o.result = os.path.join(o.work, "quick.json")
    if not o.table:
        live(o, argv)
    print("\n".join(table_of(stats.there(o.result))))


if __name__ == "__main__":
    flags.guarded(main, NAME)
