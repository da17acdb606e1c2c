"""
bench/README.md: every result with its table, from the result files alone. And what bench/LECTURE.md
quotes of them, with where its equations stand in the code.

    python bench/report.py                           write both pages
    python bench/report.py --check                   1 if a page is not what the files say
    python bench/report.py --pictures                bench/results/*.png (needs matplotlib)
    python bench/report.py --life=out --out=life.png the picture of a life of your own

Nothing is measured here and no chapter is imported. Tables: bench/tables.py, verdicts on the
paper's claims: bench/claims.py, pictures: bench/figures.py, statistics: bench/stats.py.
"""
import os
import sys
import textwrap

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from bench import arc_table, claims, figures, lecture, neighbours, stats, tables  # noqa: E402
from bench.tables import headed, number, paired, picture, short      # noqa: E402
from data import flags                                               # noqa: E402
from data.flags import SWITCH, TEXT                                  # noqa: E402

PAGE = os.path.join(ROOT, "bench", "README.md")
FILES = ("week.json", "week-paper.json", "moves.json", "year.json", "sizes.json", "haystack.json",
         "babilong.json", "crowd.json", "newcomer.json", "topics.json", "counting.json",
         "skills.json", "skills-search.json", "trial.json", "ingredients.json", "arms.json",
         "ablations.json", "knowledge.json", "classes-clinc150.json", "classes-dbpedia.json",
         "recurrence.json", "absorber.json", "families.json", "squad_world.json",
         "gpt2_night.json", "arc1d.json", "speed.json", "plan.json", "faults.json", "labs.json")
FLAGS = {  # name: (default, allowed, what it does), as in data/flags.py
    "check": (False, SWITCH, "compare both pages with the result files, change nothing"),
    "pictures": (False, SWITCH, "make the figures"),
    "life": ("", TEXT, "picture of the life in this folder (--out_dir of sleep.py)"),
    "out": ("life.png", TEXT, "with --life: where it goes"),
}


# --------------------------------------------------------------------------------------------------
# The page: a list of paragraphs; a paragraph is a text or the lines of a table

INTRO = """
# What was measured

Written by `python bench/report.py` from the files in `bench/results`; a test holds it. Each file
names its command and the commit that its numbers are of; later commits may give others until the
command is run again.

*x ± y* is mean ± standard deviation over seeds. *+x ± y*, with its sign, is a mean of differences
paired by seed with its 95 % interval (Student's t). *p, Holm* is corrected over all differences of
its table: an effect has p < .05; *not certain* is what leaves out zero by itself, but not after the
correction. *.02 would show* beside "no effect seen": an effect of this size would have been
certain, before the correction, with a probability of 80 %. ACC is the share of the facts of all
days that is known after the last night, BWT what was gained or lost since the morning after each
day; `old` is the exam about what the base knew, `reading` the exam about strangers with their
passage in context, `reversed` asks "Who was born on ...?". In the pictures bands and bars reach
from the worst seed to the best.
"""

UNTESTED = """
## What these tables do not test

- In *A fair fight* no rival has sleep's expert and gate: what is called sleep's lead over
  fine-tuning there is that of the whole. Rivals with the same arms stand under *Which ingredient
  matters*.
- *No expansion* takes away the gate, too; *no gate* has one expert for all nights, and in the first
  edition dreaming stopped from the second night on. Alone they are taken away in *one expert*
  (the gate, one expert for all nights) and *open router* (an expert a night, all of them awake).
- *No dreaming* replaces 20 steps on chosen dreams by 20 more on the same quizzes; what a whole
  night dreams teaches tomorrow's writer of dreams only; *chosen dreams learnt* learns them, too.
  On-policy steps are 7.5 % of a whole night, imitation weighs .1 in them: the lives *from a warm
  student* and *all on-policy* give both more room. "No effect seen" is said of these nights, not of
  the ideas.
- ACC asks forward questions only. The price of the gate are the reversed ones; where both are
  counted together, the table says so.
- Learning rates of the rivals of *A fair fight* were searched over two nights and used for seven.
- Answers have three tokens (nine in *longer answers*), models 0.2 to 0.9 M parameters. Of the
  paper's results, of billions of parameters, only directions can be compared.
"""


def lives(files):
    file, week, crowd = (files[f"{name}.json"] for name in ("ablations", "week", "crowd"))
    return ["## The default life", *headed("week.json", week, tables.week(week, crowd)),
            f"Mean, and the lowest and the highest seed. The crowded day: `crowd.json`, "
            f"`{crowd['command']}`, commit `{crowd['commit']}`.",
            picture("week.png", "what is known of which day after which night, kind by kind"),
            *moves(files["moves.json"], files["week.json"]),
            "**What a newcomer waits.** The README's first command in a clean clone, one thread of a "
            "CPU without AVX-512, beside three other jobs on its two cores:",
            *headed("newcomer.json", files["newcomer.json"],
                    tables.newcomer(files["newcomer.json"])),
            picture("life.png", "what is known of which day after which night: this life"),
            "`sft` trains all weights on the sentences of the day: it learns to say them, not to "
            "answer about them, and unlearns reading. `none` does nothing at night.",
            "## The default life, first edition of world and gate",
            *headed("ablations.json", file, tables.default_life(file))]


def moves(file, week):
    return ["**With the move of the seventh night** (`--period=7`): in the last night the experts "
            "of the first level become one of the second. Beside the same weeks without it, of "
            "the same nights (`week.json`). Off by default: seven full nights moved at once take "
            "about as long as they took, and a week is too short to gain by it.",
            *headed("moves.json", file, tables.moved_week(file, week))]


def replicates(files):
    return ["## What replicates",
            "The paper is *Language Models Need Sleep* ([S], arXiv 2606.03979). Files: "
            "`knowledge.json` (sleep against rivals), `ablations.json`, `classes-*.json`, each "
            "named with its command and commit at its own table below.",
            claims.what_replicates(files),
            "*Yes* and *the reverse*: certain after the correction over all differences of the "
            "file."]


def fight(files):
    file = files["knowledge.json"]
    gaps = tables.beaten(file, "ACC")
    inca, p = gaps["inca"]
    tokens = max(r["tokens"] for r in file["longer"])
    return [
        "## A fair fight",
        "Sleep against fourteen other ways to spend the night, each a short function of "
        "`bench/baselines.py`. All start from the same base, read the same passages, ask "
        "themselves in the same way, sit the same exams; what a night is given is asserted before "
        "it begins. n = 1: one passage alone, learnt from the base.",
        *headed("knowledge.json", file, tables.fair_fight(file)),
        "Learning rates (EWC's and LwF's weights, too) were searched on another world and seed; "
        f"the search is in the file. A baseline learns from {file['tokens']:,} tokens a night, "
        f"sleep sends {tokens:,} through the model; on the validation world the strongest four "
        f"were tried with as many (`longer` in the file).",
        picture("rivals-world.png", "accuracy over nights, the embedded world"),
        "*What we read in it.* One passage alone is learnt by most who ask themselves about it; "
        "what sleep adds is that the second night does not cost the first. All who train all "
        "weights lose earlier days, dream replay, Fisher information and distillation or not. "
        f"InCA, which learns nothing and keeps every passage as text, is not behind: sleep minus "
        f"InCA is {paired(inca)}, without correction in InCA's favour, after Holm p = "
        f"{tables.chance(p)}; it also answers some reversed questions. Joint training on all days "
        "is as good, too. GRPO learns next to nothing; we think because a self that has not heard "
        "the day says little that could be rewarded. OPSD and SFT unlearn reading, and with it "
        "the next day's teacher. Nobody knows tomorrow."]


TOPICS = """
What is new need not be a name (Figure 3 of [S]): every day sentences of classes that nobody has
met before; any class seen so far may be the answer, there is no task id. A base is trained from
scratch on the classes of the first tasks. Every seed has a base and an order of classes of its own;
test rows; learning rates searched on validation rows of a fourth order (in the files). *Keeps*:
*numbers* are one number a weight (`ewc`), or a mean direction a class and one covariance for all
(`sleep`, `inca`). `inca` is sleep's router alone; InCA's second step, a model that reads summaries,
needs a larger one. In `sleep_dreamt_router` the router hears dreams, not the day;
`distilled_replay` is sleep without expansion and gate.
"""

SETS = {
    "clinc150": "**CLINC150**: a base of 45 intents, 7 days of 15, 100 sentences an intent. This "
                "test split was looked at during development (seed 1).",
    "dbpedia": "**DBpedia**, level 2: a base of 20 classes, 5 days of 10. An excerpt of 5,000 "
               "rows, the first 24 words of each: 1 to 500 rows a class, 501 test rows; not the "
               "papers' split. Half the steps, for it has fewer rows."}


def final(file, method):
    return number([r["final"] for r in file["runs"] if r["method"] == method], 2)


NOW = """
The one night of `sleep.py`, as it is now: a gate that hears each day's texts (a Gaussian a class, one
covariance for all) proposes five classes, the experts that own them judge. The same final self is
asked with the gate alone and with the experts alone. Test rows; all classes met so far, the base's
among them. Settings were chosen on validation rows of seed 1; test rows of seed 1 had been seen in
the first edition and three times during this one. *Sealed rows*: a fifth of the training rows, never
asked before and not trained on, opened once, on three seeds that nothing had been tried on.
"""


COUNTING = """
**Counting.** Naive Bayes and the nearest tf-idf mean keep counts of each class, read each sentence
once, and learn no network; smoothing and terms (words, or pairs, too) were searched on validation
rows of another order of classes. *Sleep is*: after the correction over this table.
"""


def topics_now(files):
    page = ["## New topics every day, through the one night", NOW]
    for name, file in files["topics.json"].items():
        page += headed("topics.json", {**file, "seeds": [r["seed"] for r in file["runs"]]},
                       tables.topics(file))
    page.append(COUNTING)
    for name, counting in files["counting.json"].items():
        page += [f"*{name}*", *headed("counting.json", counting,
                                      tables.counted(files["topics.json"][name], counting))]
    return page


SKILLS = """
A lesson of an invented language by day (its grammar, 13 words, one sentence), after the night 24
sentences each way that the lesson does not hold, of 1,440 (`data/languages.py`). *read*: the same
with the lesson in the context, asked that morning, too; whoever reads does so with the gates shut,
so of all lives but `sft` it is what the base could do, and bounds what a night can learn. *into*,
*from* and *ACC*: the whole answer is right. Seed 1, on which languages, base and the asking in turn
were made, stands apart; the others are fresh. The night's own exercises may hold a sentence of the
exam by chance. `sleep` is the whole night of the paper here (`--paper`), `gate+sft` the default one.

**No part is seen to matter.** After seven nights the whole night, the default one and the whole
night without dreaming keep as much. What is missing is never forgotten (each language is asked again
every morning): it was not learnt in its own night, out of the language more than into it.

**What a morning lacks was not asked.** On seed 1 (below) more steps or a larger expert brought
little, twice the exercises (`--quizzes=8`) all that was missing. On five fresh seeds they bring the
default night from .87 of what it reads to .95 (each of the five gains .01 to .11 of all sentences;
after Holm not certain; on seed 1, in one run, for a sixth more time), and the whole night as far.
The rivals of *Which ingredient matters* were given as many exercises, and the rates that were best
on seed 1; self-distillation (*sdft*) learnt nothing there at any of three, and was not lived
further.

**A writer alone can harm.** As [S] has it, the writer dreams everything: rewarded mostly for single
words (`log.jsonl` of these lives; not in the file), it asks, in two of three seeds, for no sentence
out of the language any more from the third or fourth night on, and what is not asked is not learnt
(*writer alone*; the table of its nights counts it: of the dreams that the notes of a night hold,
those that ask for a sentence out of the language). Three seeds do not make the mean certain; these
lives are of an earlier commit, in which `dream.write` did so. Since then the writer is awake in one
of two views only: first tried on seeds 5 and 6; seeds 2 and 3 had not been seen. Without on-policy
steps or imitation no less survives three nights (older nights).
"""


REGIMES_OF_SKILL = """
**A day on which parts could matter.** Two nights, one after the other, on a validation seed, 31,
whose base reads perfectly and leaves no room in the default night: short nights, or fewer
exercises, and each part taken away (`--search`; below, every try; seed 32's base cannot read, and
seed 1 was taken for what makes the plain night better and for the rates of rivals). The one regime
in which the whole night stood clearly above the plain one, a quarter of the exercises
(`--quizzes=1`), was then lived on fresh seeds: of a language hardly half is learnt, and by the
whole night more in six of seven, which is not certain (five seeds were meant; two were added after
a look at those). Dreaming is not what makes the difference. In short nights with early on-policy
steps it seemed to, on the validation seed (.74 with it, .39 without); on five fresh ones it does
not.
"""


LONG = """
`bench/year.py`: a day of one new person and news of three known ones, night after night. Every
seven nights all experts of the first level become one of the second, every 49 all of the second one
of the third, and so on; what they know is asked out of them (`data/rehearsal.py`), nothing of a day
is kept. *before, after*: the same days, asked on the morning before the move and on the one after it.
Their interval is over days.
*bits*: log2 of how many values a fact could have had; *parameters added*: of experts and gate.
*never met*: of the questions about strangers, those that get "I do not know".

*directions*: in which the gate tells things apart (`--directions`); all: 128, as wide as the self.

Seed 9: 100 days, slow experts of twice the rank (.2 bits a parameter, as the self counts them), by
three states of the code (*code*). Until night 56 a move dropped the places of the gate that no
dream came near; since then all are kept: the second move of the second level had 1,114 things to
move, the first 406, and took longer. The more places there are, the more strangers come near one.

Seeds 10 and 11: slow experts of .4 bits a parameter, asked about each thing in at most 40 wordings,
and a gate of 32 directions, those in which things lie furthest apart (`gate.discriminants`): two
and a half times the bits a parameter of seed 9, and moves that cost as little. What the self was
born knowing suffers where a slow level moves: in night 49 the expert that took in seven weeks began
to answer for people of whom it had heard as somebody's friend, not surely, where the pretrained
self is certain. Since night 98 a guess of a slow memory yields to what the self was born with
(`gate.SURER`, chosen on these two lives), and what a level leaves to others is rehearsed fact by
fact: `old` is higher on the morning after that move than before. Nights 1 to 7 were lived before
`--directions` was a flag, with the same 32. Their seconds are of a CPU with other work. Only on
seed 9 was a passage given up, aloud. `python bench/year.py --days=365` goes on from here.
"""


SIZES = """
**How small may a slower expert be?** `bench/sizes.py`: the first move of a long life, made again
from the same evening, with other constants. *bits a parameter*, as the self counts them: the
surprise of each answer it dreams again, of which those of the world are a small part. *worst seed*,
*minus before*: recall of all days, after minus before the move, paired by seed. Two
seeds, no difference is certain: .4 keeps what .2 keeps, at half the size; .8 seems to lose some. More
steps and wordings are built in and not run.
"""


HAYSTACK = """
**Needles in a haystack.** `bench/haystack.py`, after MK-NIAH ([S] Figure 4): facts about people
never met, among small talk and what the self has always known, read line by line through a window,
slept on, asked when all is read, with an empty context. *window alone*: the pretrained self with
the last 160 tokens of the haystack before it. *told*: with the needle itself before it, a bound. *room*: so
many experts the slowest level keeps, the oldest goes first: with room for two, the chain of levels
decides how far back the self remembers. Mean over seeds, least and greatest. The bases are those of
`trial.json`; the constants of a move were chosen on seed 9, and moves of seed 11 were looked at.
*bits a parameter*: .2, slow experts of twice today's rank; .4, today's, of one seed and with the
base of a long life: what is smaller keeps less after four moves.

**Three statements of [S].** *More levels are better*: so it is, where each may keep but two
experts. *A faster slowest level is worse*: so it is, with as many levels: of two, the slowest takes
in every night, every second or every third one, and remembers as far back. *Accuracy stays flat
with length*: it does, from 2,000 to 100,000 tokens, where the window alone finds nothing (of the
one seed of smaller experts it rises); of
stories (BABILong, below) from 1,000 to 10,000, one seed.
"""


BABILONG = """
**A story in a haystack.** `bench/babilong.py`, after BABILong ([S] Figure 6): a published story of
bAbI, in order, among lines of plays; the self keeps the lines that are news to it, sleeps when its
context is full, and is asked with an empty one. *window alone*, *told* as above; *guess*: always
the most usual answer. One seed, twelve stories of qa1: a first look. The base, of 0.9 M parameters,
has read stories of other people, places and things, and does not read well yet: an older one of the
same seed read .75 where this one reads .58, and its nights kept .58 of both lengths (this file at
commit 3f5f11a). qa2 and qa3, two and three facts joined, are built and not run; qa4 and qa5 are not
at hand. Two fifths of a story's sentences are not taken for news.
"""


def long(files):
    file, hay, tales, sized = (files[f"{name}.json"]
                               for name in ("year", "haystack", "babilong", "sizes"))
    return ["## Long lives, and levels of memory", LONG,
            *headed("year.json", file, tables.year(file)),
            picture("year.png", "recall by the age of a memory, and bits a parameter by level"),
            SIZES, *headed("sizes.json", sized, tables.sizes(sized)), HAYSTACK,
            *headed("haystack.json", hay, tables.haystacks(hay)), BABILONG,
            *headed("babilong.json", tales, tables.babilong(tales))]


def skills(files):
    file, tried = files["skills.json"], files["skills-search.json"]
    seeds = sorted({run["seed"] for run in file["runs"]})
    return ["## Skills: languages read in a lesson", SKILLS,
            *headed("skills.json", file, tables.skills(file), seeds), tables.skill_table(file, 7),
            tables.out_of(file), REGIMES_OF_SKILL, tables.skill_table(file, 2),
            *headed("skills-search.json", tried, tables.skills_tried(tried))]


def topics(files):
    clinc, dbpedia = files["classes-clinc150.json"], files["classes-dbpedia.json"]
    gaps = {f["data"]: tables.beaten(f, "final") for f in (clinc, dbpedia)}
    page = ["## New topics every day, first edition, with rivals", TOPICS]
    for name, words in SETS.items():
        file, counting = files[f"classes-{name}.json"], files["counting.json"][name]
        page += [words, *headed(f"classes-{name}.json", file, tables.classes(file, counting)),
                 picture(f"rivals-{name}.png", f"accuracy over nights, {name}")]
    return page + [
        f"*What we read in it.* On CLINC150 sleep keeps {final(clinc, 'sleep')} of 150 intents; "
        f"joint training is not certainly better ({paired(gaps['clinc150']['joint'][0])}), replay "
        "of stored text is worse. But most of this is the router: a Gaussian a class on mean word "
        f"embeddings, which hears the day and cannot forget. Alone it has "
        f"{final(clinc, 'inca')}, and the whole is {paired(gaps['clinc150']['inca'][0])} better. "
        f"With a router that only hears dreams {final(clinc, 'sleep_dreamt_router')} is left, as "
        f"much as without expansion and gate ({final(clinc, 'distilled_replay')}). On DBpedia "
        f"sleep has {final(dbpedia, 'sleep')}, joint training {final(dbpedia, 'joint')} (not "
        f"certain), and of the experts nothing is seen ({paired(gaps['dbpedia']['inca'][0])}); the "
        "searched EWC protects so well that it learns nothing. A bag of words beats every network "
        "here, the joint one included: text this small is kind to counting, and these networks "
        "know only words of their base. On both sets the best rate of some (`sft`, `lwf`, "
        "`replay`, EWC's weight) lies at the edge of its grid; none of these comes near sleep."]


TRIAL = """
**The simplest night.** *gate+sft*, the default night: a new expert, the gate, the self's own
quizzes, labels. *sleep*, the whole night of the paper (`--paper`): the same expert, gate, quizzes,
optimiser, mishearing and steps, but the teacher's distribution, on-policy steps, imitation, dreams
tried on copies. Five seeds, a week each, from the same bases; on none of them these parts were tuned
(weeks of 9 to 11 were looked at while gate and names were mended).
"""
INGREDIENTS = """
**One ingredient away at a time**, by the present nights, from bases of the trial, paired by seed.
Two or three whole nights know nearly everything: what harms shows there, what helps hardly can. So
others have room: *short nights* learn 160 steps, about half of what a night takes; *from a warm
student* they have no on-policy steps, or .25, .5, all of those after three tenths of such a night;
*all on-policy* gives imitation weight there (1 − alpha); *24 dreams* must do for a night, chosen by
cosine × truth, the paper's gradient norm, truth alone, or by chance. Five seeds; what is compared is
what both lived. *No gate* has two seeds, *no expansion*, which takes nine minutes, one.
"""
READ = """
*What we read in it.* **The gate**: without it, one expert awake everywhere, a night does so much
harm that most are undone. With it but without new experts (*one expert*) each morning knows its day
and the days before are lost; with new experts but all of them awake (*open router*) two fifths of
the new and nearly all of the old is lost. Neither alone is a night. **Replay** is for nights
without a gate: without both every night is undone. **Forward, not reverse, KL**: reverse hardly
starts. **Labels or distributions**: nothing between them. **On-policy steps** take the place of
steps on the teacher's answers, and a night that has learnt half misses those. A quarter and a half
of them on-policy cost the same, all of them most: each lies below zero, none is certain after Holm.
**Imitation** with more weight or another judge: nothing, though its reward differs among rollouts.
**Dreams**: where 24 must do, those that the reading self holds true come out nearly twice as good
as any; what the gradient's cosine adds to that is not seen, and its norm, the paper's measure, is
no better than chance: certainly worse than cosine × truth. A random expert beside the router, the
writer: nothing; dreams learnt besides the quizzes: nothing, or a little harm.
"""



def trial(files):
    file, parts = files["trial.json"], files["ingredients.json"]
    rows, same = tables.plain_rival(file)
    words = "equivalent" if same < 0.05 else "neither different nor shown to be equivalent"
    return ["## Which ingredient matters", TRIAL, *headed("trial.json", file, rows),
            "The plain weeks are of an earlier commit, the whole ones were lived again (each row of the "
            "file names its own); seconds are of a machine with other work, at other hours. Two one-sided "
            f"tests against a margin of {short(str(tables.MARGIN))} of ACC, said before the plain "
            f"night had lived: p = {short(f'{same:.3f}')}, {words}.",
            INGREDIENTS, *headed("ingredients.json", parts, tables.ablations(parts)),
            picture("ingredients.png", "paired differences in ACC, the present night"), READ,
            *same_arms(files["arms.json"]),
            "**The reward.** Only what differs among the rollouts of one prompt can be learnt "
            "from: a life about the reward in which this spread is below "
            f"{short(str(stats.SPREAD))} is no test of it, and no row of the correction.",
            tables.rewarded(parts)]


RIVALS = """
**Rivals with the same arms.** Each is *gate+sft* but for one thing; its memory of a night has as
many numbers as an expert and is woken by the same gate (`bench/rivals.py`). *gate+lora*: a LoRA of
rank 8 on queries, keys, values and projection of the upper blocks, with labels, or (*KL*) with the
teacher's distribution. *gate+cartridge*: 32 keys and values in each upper block, begun as those of
the day's first tokens, learnt by forward KL and Adam. *gate+sdft*: on-policy, reverse KL to the
self that holds passage and answer in its context, its weights an average of the student's.
*sparse* has no gate and no expert: of each upper MLP the 32 hidden units learn that today's quizzes
use and dreams of old do not. Rates were searched over the nights that are lived (seven; of *sdft*,
whose nights take longest, two) on one validation seed, 31: the best of each lies inside its grid.
The other seeds had not been seen by these rivals. *sdft* begins with a self that says "I do not
know" and learns only from what it says itself; at other rates than .18 it knows less than a quarter
of its quizzes in the end, and the night is undone, as any such night. *Cartridges* of three seeds
keep .44, .85 and .98: where the first night learns .71 of its quizzes (the others .79 and .82), what
is missing stays for the next, which has more to learn in as few keys, and no later night catches up.
"""


def same_arms(file):
    """The paragraphs on rivals of bench/rivals.py."""
    return [RIVALS, *headed("arms.json", file, tables.fought(file)),
            "Every try of a rate:", tables.searched(file)]


REGIMES = """
Lives with one ingredient taken away or changed, paired with the same life with it. Where the
default life shows nothing, the *regimes* look for it: few quizzes (`--views=2 --quizzes=1`: 51 a
night instead of 236), short nights (50 steps instead of 240), a poor reader (300 steps of
pretraining instead of 900), longer answers (two facts in five are lists of 9 tokens), and nights
that may learn from 24 dreams only. Regimes were set on seed 101, not among the seeds. Every command
is in the file.
"""


def ingredients(files):
    file = files["ablations.json"]
    found = stats.by_life(file)
    old, rows = stats.differences(found, "no replay (more nights)", "old"), stats.compared(file)
    m, half = stats.interval([-d for d in old])
    return [
        "## Which ingredient mattered in the first edition", REGIMES,
        *headed("ablations.json", file, tables.ablations(file)),
        picture("ablations.png", "paired differences in ACC, default life"),
        picture("ablations-regimes.png", "paired differences in ACC, regimes"),
        "*What we read in it.* Expansion, the gate and *forward* KL carry the result (reverse KL "
        "hardly starts; we think because a student that says something else is never told what to "
        "say). Where only 24 dreams are learnt, those chosen by cosine × truth were ahead of "
        f"chance and the paper's gradient norm behind it, but of {len(rows)} comparisons these "
        "are not certain. The random expert ruins the second night of every seed: awake from the "
        "first word, it asks about its own night, no dream is about the day any more, and the "
        "night is undone. Replay protects what is old, not what is new: without it five nights cost "
        f"{short(f'{m:.3f} ± {half:.3f}')} (95 % interval, by itself) of the old people's facts. "
        "For all else (distributions or labels, on-policy steps, imitation and its two rewards, "
        "the second round of dreaming, the curriculum) no effect is seen, in the default life or "
        "where there is room for one. Seeds differ most in short nights, so least can be said "
        "there. The paper's gains are one or two points for most of these and ten for dreaming.",
        "**Levels, one to four.** The context alone: `none`, nothing is known the next morning. "
        "And the pretrained weights: *no expansion*. And nightly experts: the default life. And a "
        "slower level, into which they move every 2 or 4 nights: no difference seen in four "
        "nights. Longer lives have not been measured with several seeds."]


SPEED = """
Competitors run in turn in one process on the same weights and data; CPU time of one thread, medians
of 3 rounds (2 for KL, 1 for a night, 9 for Muon), on a machine with other work. Goals were set
before. Rows on cuda: an H200, bfloat16 autocast, wall clock. *An older copy* is this project before
its speed was looked at (commit f152c23). The row of Muon alone is of a CPU that has no instructions
for bfloat16, to which torch.optim.Muon rounds. All result files of commits before 4e10308 are of
bases by torch's.
"""

WHY = """
Why some goals are missed: two thirds to nine tenths of a training step's time are matrix products
at the speed of the machine, so nobody can be 1.5 times as fast; half of a distillation step is such
a training step. avalanche squares the mean gradient of a batch of 32, which is another, cheaper
number; with batches of one it computes ours. Edit distances are not where a night's time goes; a
bit-parallel version was longer to read and no faster on our short answers. Later nights add
detectors that the router has to look at.
"""


def fast(files):
    file = files["speed.json"]
    part = file["kl cpu"]["lines"][0]["peak_bytes"]
    share = part["nanoSleep"] / part["all logits"]
    threads = {part["threads"] for part in file.values()}
    assert threads == {1}, "the words above the table say one thread"
    return ["## How fast", SPEED,
            "[`speed.json`](results/speed.json) · `python bench/speed.py --threads=1 --rounds=3` · "
            "seed 1 · the commit stands in each row", tables.speed(file),
            f"The KL in chunks needs {share:.1%} of the memory of all logits at once (goal: an "
            f"eighth).", on_a_gpu(file), WHY]


def on_a_gpu(file):
    """How much of the card a training step of 124M parameters uses."""
    part = file["train cuda"]
    line = part["lines"][-1]
    used, rate = line["utilisation"], line["rate"]
    words = [f"{name} {share:.0%} ({rate[name]:,.0f} tokens a second)"
             for name, share in used.items()]
    return (f"Of what one large matrix product reaches on the {part['device']}, a {line['what']} "
            f"uses: {'; '.join(words)}. We wanted 45 %. Our own small models use next to nothing "
            "of such a card: their steps wait for the launch of kernels.")


PLAN = """
Not measured: predicted by `--plan` (data/plan.py) from the shapes of two models whose configuration
is public, in bfloat16, at a third of the card's FLOPs. No released weights were at hand. What a step
keeps, its FLOPs, caches and weights are held to small measured steps in tests/test_plan.py.
"""


EQUAL = """
Tiny random models written by `transformers`, read by `data/weights.py`: the largest difference of a
logit in float32; in bfloat16, where both round at every step, the root mean square distance to the
same weights in float64, ours and theirs; and whether unlocking an expert moves one bit.
"""
SQUAD = """
`bench/squad.py` is ready for SQuAD and released weights; here it reads eight passages of our own
world (one seed, base of `week-paper.json`): exact match without the passage, each slept on alone
and all in one self, four a night. `context` has the passage before its eyes. It shows that the bench works,
and nothing about SQuAD.
"""
PLAIN = """
`--arch`: the parts of GPT-2 (LayerNorm, learned positions), Llama and Qwen 3, pretrained here from
scratch with a scaffold (`data/scaffold.py`), then seven default days. Mean, lowest and highest seed.
*own-format*: our parts, but `--format=own`: plain text in the place of the four trained marks.
"""


def real(files):
    equal, squad, night = (files[f"{name}.json"] for name in ("families", "squad_world",
                                                              "gpt2_night"))
    took = ", ".join(f"{what} {s:.0f} s" for what, s in night["seconds"].items())
    return ["## Real weights", EQUAL, *headed("families.json", equal, tables.families(equal), [1]),
            SQUAD, *headed("squad_world.json", squad, tables.squad_world(squad), [6]),
            f"**A night of {night['parameters'] / 1e6:.0f}M random weights on one CPU thread** "
            f"(`gpt2_night.json`, `{night['command']}`, commit `{night['commit']}`): "
            f"{night['passages']} passages, {night['quizzes']} quizzes, {night['steps']} steps, "
            f"{night['gigabytes']:.0f} GB; {took}. It cannot ask: the questions of the exam stand "
            "in for its own."]


def plain(files):
    arches = {name: stats.read(f"arch-{name}.json") 
              for name in ("gpt2", "llama", "qwen3", "own-format")}
    arches = {name: file for name, file in arches.items() if file}
    commands = [f"[`arch-{name}.json`](results/arch-{name}.json), `{file['command']}`, commit "
                f"`{file['commit']}`" for name, file in arches.items()]
    table = ["## Plain transformers", PLAIN, "; ".join(commands), tables.arches(arches)]
    return table if arches else []


def planned(files):
    file = files["plan.json"]
    night = file["a night, measured"]
    return ["## What real weights would take", PLAN,
            *headed("plan.json", file, tables.plan(file), [1]),
            f"The one part that is no shape, how much a night asks itself: a night of our own base "
            f"took {night['TFLOP']:.2f} TFLOP for {night['quizzes']} quizzes, the plan says "
            f"{night['planned']:.2f} for {night['quizzes planned']}."]


NIGHT = """
Checkpoints hold a checksum, are written beside the old one, synced and renamed; the one before is
kept. After a night the self compares itself with yesterday's on dreams that the night did not learn
from: a weight that is no number, a large drift, or a day known no better than before undoes the
night, and the day stays in the context for the next one. A night that learns badly without any of
these (the thousandfold rate) is kept.
"""


ARC = """
`bench/arc.py`, after SEAL: the self writes how it will learn from a task's demonstrations (which
flips, enlargements, exchanges of colours; loss, rate, epochs), tries it on a throw-away copy, and
is taught by what solved the task's test. Here a self of 0.4 M parameters from scratch on 1D-ARC,
whose rules it has never seen; half of the types to learn to dream on, the other half held out.
`ttt` learns by a fixed recipe, `tuned` by the options that were rewarded most in the trials (no
writer), `dream` and `sleep` by dreams before and after the writer was taught; five attempts a task,
all with the same optimiser and at most as many steps. Success: share of (task, attempt) right to
the last cell. Tasks were filtered, as in SEAL, by looking at their outputs: kept are those that the
base does not solve in its context (so `icl` is 0 by construction) and some settings do. Intervals
are of 95 %, over seeds of tasks and dreams; the base is one and the same. The steps of a trial, the
falling rate and the exchange of colours were chosen on this base by looking at whether seven tasks
of 1D-ARC, of any type, were learnt: that favours all methods, and none of them by design. The
papers' tasks, self and filter are others: the numbers stand beside ours, they are not compared.
"""


def arc(files):
    file = files["arc1d.json"]
    said = [*arc_table.differences(file), *arc_table.seeds(file)]
    return ["## Few-shot reasoning by dreaming: ARC", ARC,
            *headed("arc1d.json", file, arc_table.rows(file), list(file["seeds"])),
            ["- " + line for line in said]]


def durable(files):
    file = files["faults.json"]
    cost = file["cost"]
    return ["## What a night survives",
            f"The real script is hurt in {file['tried']} ways and resumed; R and every weight are "
            f"compared with a life left in peace. {file['lost']} were lost. Checkpoints take "
            f"{cost['save']:.1%} of the default life's time, looking back after each night "
            f"{cost['gone_wrong']:.1%}.",
            *headed("faults.json", file, tables.faults(file), [1]), NIGHT]


def labs(files):
    file = files["labs.json"]
    return ["## The labs",
            f"Eight [labs](labs), each solved by `bench/labs/solutions`, one after the other on "
            f"{file['threads']} threads; the first to be run makes the base of all others in "
            f"{file['base_seconds']:.0f} seconds more.",
            *headed("labs.json", file, tables.labs(file), [file["seed"]])]


def page(files):
    """bench/README.md as one text."""
    parts = [INTRO, *lives(files), *replicates(files), UNTESTED, *fight(files),
             *long(files), *topics_now(files), *topics(files), *skills(files),
             *trial(files), *ingredients(files),
             *neighbours.recurrence(files), *neighbours.absorber(files),
             *arc(files), *fast(files), *real(files), *plain(files), *planned(files),
             *durable(files), *labs(files)]
    return "\n\n".join(map(as_text, parts)) + "\n"


def as_text(part):
    """A table as its lines; a paragraph of one line filled to 100 columns, others as they are."""
    if not isinstance(part, str):
        return "\n".join(part)
    part = part.strip()
    if "\n" in part or part[0] in "![#":                             # written by hand, or one link
        return part
    return textwrap.fill(part, 100, break_long_words=False, break_on_hyphens=False)


# --------------------------------------------------------------------------------------------------
# The command

def read_all():
    """{name: result file}; one line and the end if one is missing."""
    files = {name: stats.read(name) for name in FILES}
    for name, file in files.items():
        if file is None:
            flags.fail(f"bench/results/{name} is missing", "report.py")
    return files


def check(path, text):
    """One line and exit status 1 if the page at this path is not this text."""
    there, name = "", f"bench/{os.path.basename(path)}"
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as f:
            there = f.read()
    if there == text:
        return print(f"{name} is what the result files say")
    pairs = zip((there + "\n" * text.count("\n")).splitlines(), text.splitlines())
    line = next((i for i, (a, b) in enumerate(pairs, 1) if a != b), "the last")
    print(f"report.py: {name} differs from the result files, first in line {line}: "
          "run python bench/report.py", file=sys.stderr)
    raise SystemExit(1)


def main(argv):
    o = flags.parse(argv, __doc__, FLAGS, "report.py")
    if o.life:
        return print(figures.life_picture(o.life, o.out))
    files = read_all()
    if o.pictures:
        return print(*figures.everything(files, stats.RESULTS), sep="\n")
    for path, text in ((PAGE, page(files)), (lecture.PAGE, lecture.page(files))):
        if o.check:
            check(path, text)
            continue
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        print(f"bench/{os.path.basename(path)}")


if __name__ == "__main__":
    main(sys.argv[1:])
