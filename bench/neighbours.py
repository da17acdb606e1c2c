"""
The sections of bench/README.md on the two neighbours, recurrence.py and absorber.py: what the idea
is, the tables, what replicates.
"""
from statistics import mean

from bench import tables
from bench.tables import headed, picture, short

IDEA = """
## A neighbour: offline recurrence

*Do Language Models Need Sleep? Offline Recurrence for Improved Online Inference* (Lee et al.,
[arXiv 2605.26099](https://arxiv.org/abs/2605.26099)), from scratch in `bench/recurrence.py`; the
paper has no public code.

1. Blocks of attention and of gated DeltaNet: S_t = α_t S_{t−1} + β_t (v_t − α_t S_{t−1} k_t) k_tᵀ,
   o_t = S_t q_t. S are fast weights.
2. Before a window of context leaves, the model passes over it N times; the hidden state and S are
   carried from pass to pass.
3. Then the attention cache is cleared. Only S survives.
4. A question gets one pass, whatever N was: the extra thinking happens in the sleep, before the
   question is known.
5. Training goes through all N passes. Nothing but the answers' cross-entropy tells the passes what
   to prepare.
"""

RULE = """
**Rule 110.** Random rows of a ring of cells, then evicted; "the first cell of this row after t
steps?". One row of 16, and the paper's size, 4 rows of 24.
"""

RECURRENCE = """
*What replicates.* More passes answer deeper questions, and the gain is where the depth is: at equal
CPU time one pass stops at k = 3 in all three seeds, two passes reach k = 4, four passes k = 5,
although four passes take half as many steps in the time. At equal steps only N=4 answers k = 4.
Without S a transformer stays at chance; with hard eviction it cannot do better, and a test holds
that its answers do not depend on the context.

*What does not, and what differs.*
- *Rule 110*: at equal CPU time more passes are worse, decisively with the paper's 4 rows of 24: a
  step at N=4 costs several times as much, and in seconds that is what counts. At equal steps N=4
  is ahead on one row of 16 at t = 3; on 4 rows of 24, after so few steps, nobody has learnt more
  than a little of t = 1. The paper's gain on this task is not seen at our size.
- *k = 6* is not learnt in the time, and seeds differ much in pace at k = 5.
- *Both halves of the loop*: without the hidden loop, or with S reset before the last pass, the mean
  at k = 4 is lower; but two of three seeds with the reset do as well as the whole loop there, so
  with three seeds we cannot say that S from earlier passes is needed.
- *N at test time* must be near that of training: fewer passes lose all depths that need them, N=8
  after training with N=4 does not go deeper.
- *Ours*: lessons (ask one hop deeper when 80 % of the deepest are right; `--curriculum=0` asks all
  at once), Muon, a constant learning rate with a moving average of the weights, so that one run
  gives both comparisons. Learning rates and lessons were picked in a few trials with N=4 and seed 1
  of the first task; N=1 might like others. Exams ask 2,048 questions a depth at the end, 512 at the
  points of a curve (equal steps); Rule 110: 1,024 and 256 a row.
- CPU seconds were taken on a machine with busy neighbours, which slows all runs, not all alike.
"""


def recurrence(files):
    file = files["recurrence.json"]
    kernel, hop = file["kernel"], next(r for r in file["runs"] if r["task"] == "khop")
    page = [IDEA,
            "**k-th successor.** The edges of a cycle of 13 nodes in random order, then evicted; "
            "\"who is k steps after this node?\". One attention and one DeltaNet block, "
            f"{hop['params']:,} parameters. " + ", ".join(tables.steps(file, "khop")) + ".",
            *headed("recurrence.json", file, tables.recurrence(file, "khop")),
            picture("recurrence.png", "k-th successor: accuracy against depth, a line per N"), RULE]
    for task, words in (("rule110_small", "1 row of 16"), ("rule110", "4 rows of 24")):
        said = f"{words}. " + ", ".join(tables.steps(file, task)) + "."
        page += [said, tables.recurrence(file, task, "t")]
    return page + [
        picture("recurrence-rule110.png", "Rule 110: accuracy against depth, a line per N"),
        RECURRENCE,
        f"**The kernel.** The gated delta rule in chunks (one unit-triangular solve for all "
        f"chunks) takes {short(str(kernel['chunked_seconds']))} s forward and backward at length "
        f"{kernel['length']}, {kernel['heads']} heads of {kernel['dim']}, the token loop "
        f"{short(str(kernel['loop_seconds']))} s: {kernel['speed_up']:.0f} times faster, one "
        f"thread, medians of {kernel['rounds']} alternating rounds. The two agree to 1e-10 in "
        "float64, gradients included (`tests/test_recurrence.py`)."]


ABSORBER = """
## A neighbour: Absorber LLM

`bench/absorber.py` is [Absorber LLM](https://arxiv.org/abs/2604.20915) from scratch; there is no
public code. The idea in five lines:

1. A context X must leave the window; its continuation Y is still there.
2. Low-rank weights W\\* = W + AB are fitted so that the model *without* X has, at Y's positions,
   the hidden states of the old model *with* X: an L1 loss over all layers, AdamW, at most K steps
   or a threshold (Algorithm 1). Y may be self-written; no truth is needed.
3. X is dropped, the window slides, the next tokens are absorbed on top of W\\*: constant memory for
   ever (Algorithm 2).
4. There is no router: what is absorbed is always on, and the next absorption starts from the
   changed weights.
5. Beside it, with the same LoRA: KL on the next-token distributions, cross-entropy on Y's labels,
   test-time training on X (TTT).
"""

MAP = """
**map** (their many-shot classification, generated; a 4-layer transformer of 201k parameters, 24
pairs in X, 8 in Y, LoRA of rank 8, K = 100; chance .125). Each method's learning rate is chosen
from .003, .01, .03 on other documents of the same seed. X and Y are both gone when all eight
classes are asked, with random words of the class. *Steps*: until the loss is a tenth of its first.
*Another map in context* is what is left of in-context learning: a strange document with its own
map, read with the adapter on.
"""

STREAM = """
**stream** (Algorithm 2): windows of 8 pairs, six slides, all methods at rate .003; classes that
left one to five slides ago (chance .125):
"""

WORLD = """
**world**: a passage about a stranger is absorbed in the light of 12 questions and answers the model
asks itself about it, then asked in held-out wordings; 8 strangers a seed, one adapter each, K = 100
without a threshold:
"""

LATENCY = """
**latency** (their Table 1; 4 layers of 256, random weights, fastest of 24 tokens; the absorption is
K = 100 steps on 32 tokens of Y):
"""

LIFE = """
**life**: the same seven days as `sleep`, from the same recipe of bases; each night a LoRA of rank
64 on the MLPs absorbs the day (600 steps, rate .01) and is merged into the weights, so there are no
new parameters and nothing can be shut off. Rank, rate and steps were chosen on the base of seed 1
with people of another world. The others are the lives of `ablations.json` (five seeds).
"""


def slides(file):
    """Stream: what left the window, hidden states minus token distributions, a number a seed."""
    found = tables.absorbed(file, "stream")
    return [r["hidden"]["gone"] - r["logits"]["gone"] for r in found]


def absorber(files):
    file, others = files["absorber.json"], files["ablations.json"]
    lives = tables.absorber_lives(file, others)["absorb"]
    reading = [short(f"{mean(r['nights'][i]['reading'] for r in lives):.2f}") for i in (0, -1)]
    morning = tables.number([r["R"][0][0] for r in lives], 2)
    last = tables.absorbed(file, "latency")[0]["rows"][-1]["n"]
    return [
        ABSORBER, MAP, *headed("absorber.json", file, tables.absorber_map(file)),
        picture("absorber.png", "map: which classes are known when X and Y are gone"),
        "**n and m** (their Table 6), accuracy over all classes, hidden states:",
        tables.absorber_sizes(file), STREAM, tables.absorber_stream(file),
        picture("absorber-stream.png", "stream: classes that have left the window"),
        WORLD, tables.absorber_world(file), LATENCY, tables.absorber_latency(file),
        LIFE, tables.absorber_life(file, others),
        picture("absorber-life.png", "latency, and a life of absorbing nights"),
        f"""
*What replicates.*
- Flat cost: behind {last:,} absorbed tokens a token costs what it costs behind none, and the cache
  stays as it is. But absorbing costs seconds: it pays off after hundreds to thousands of generated
  tokens.
- Streaming: hidden states beat token distributions on what has left the window
  ({tables.paired(slides(file))}), as in their Table 5. With one threshold for all, KL stops after
  fewer steps, which may be part of this difference.
- Old knowledge: one absorbed passage (world) leaves more of it with hidden states than with token
  distributions.

*What does not.*
- In one absorption hidden states are no better than token distributions or labels: equal on map,
  worse on world at equal steps.
- TTT is not always the weaker baseline: on X cut into items it solves map. Where X is a text and
  not a list of questions and answers it is the weakest, and it destroys most there.
- n hardly matters, m does: what Y does not cover stays at chance, whatever X says. And a Y that is
  long *explains itself*: only the first pair of a class needs X. Cut Y into single pairs, and
  covered classes are nearly all known; let the model write four times as much Y and all classes
  are. Both are ours.
- As a night it fails. The first morning {morning} is known; but W\\* is always on: the passages it
  reads the next day are answered from yesterday (reading {reading[0]} after one night, {reading[1]}
  after seven), so the teacher of the next night is worse, and so on down. Old knowledge goes, too.
  `sleep` differs in three things: a loss on the answers alone, a router, and a context that is read
  with the experts shut.
- Only directions can be compared: our classes are words, our models have four and three blocks, our
  documents at most 244 tokens. The paper works on text of thousands of tokens with pretrained LLMs.
"""]
