"""Reading and sampling: the fast way says what the naive loop says."""
import pytest
import torch

from data.engine import generate, pad_rows, prefill, sample
from model import FAST, GPT, SLOW
from tests.small import STYLES, V, close, lively

PROMPTS = [[3, 4, 5, 6, 7, 8], [9], [10, 11, 12]]


def naive(model, prompt, steps, awake=None):
    """Greedy decoding as one would write it first: no cache, no batch."""
    text = list(prompt)
    for _ in range(steps):
        text.append(model(torch.tensor([text]), awake=awake)[0, -1].argmax().item())
    return text[len(prompt):]


@pytest.mark.parametrize("style", STYLES)
def test_greedy_generate_equals_the_naive_loop(style):
    model = lively(**STYLES[style])
    want = [naive(model, p, 20) for p in PROMPTS]
    assert generate(model, PROMPTS, 20, temperature=0) == want
    who = {FAST: ([1, -1, 0], [2, 0, 5]), SLOW: ([-1, 0, 1], [0, 0, 9])}
    forced = [naive(model, p, 20, {k: (torch.tensor([e[i]]), torch.tensor([s[i]]))
                                   for k, (e, s) in who.items()}) for i, p in enumerate(PROMPTS)]
    awake = {k: (torch.tensor(e), torch.tensor(s)) for k, (e, s) in who.items()}
    for n in (1,
              2):                                        # awake has an entry a prompt, not a sample
        got = generate(model, PROMPTS, 20, n=n, temperature=0, awake=awake)
        assert got == [f for f in forced for _ in range(n)]
    assert forced != want


def test_n_samples_share_one_reading_of_the_prompt(monkeypatch):
    model, shapes, hidden = lively(), [], GPT.hidden

    def spy(self, idx, **kw):
        shapes.append(tuple(idx.shape))
        return hidden(self, idx, **kw)
    monkeypatch.setattr(GPT, "hidden", spy)
    shared = generate(model, PROMPTS, 6, n=4, generator=torch.Generator().manual_seed(1))
    assert shapes == [(3, 6)] + [(12, 1)] * 5               # three are read once, twelve rows go on
    apart = generate(model, [p for p in PROMPTS for _ in range(4)], 6,
                     generator=torch.Generator().manual_seed(1))
    assert shared == apart and len({tuple(row) for row in shared[:4]}) > 1


def test_a_row_depends_on_nobody_else():
    model = lively()
    alone = [generate(model, [p], 9, temperature=0)[0] for p in PROMPTS]
    assert generate(model, PROMPTS, 9, temperature=0) == alone
    _, logits = prefill(model, PROMPTS)
    for row, p in zip(logits, PROMPTS):
        close(row, model(torch.tensor([p]))[0, -1])


def test_temperature_and_top_k():
    model, prompt, n = lively(), [3, 4, 5], 8000
    logits = model(torch.tensor([prompt]))[0, -1]
    best, order = logits.topk(4)
    drawn = torch.tensor(generate(model, [prompt], 1, n=n, temperature=0.7, top_k=4))[:, 0]
    share = (drawn[:, None] == order).sum(0) / n
    assert torch.isin(drawn, order).all()                   # nothing outside the four best
    hot, cold = best.softmax(-1), (best / 0.7).softmax(-1)
    assert (share - cold).abs().max() < 0.03                # five standard deviations at 8000 draws
    assert (cold - hot).abs().max() > 0.06                  # another temperature would show


def test_what_is_impossible_is_never_drawn():
    logits = torch.full((5000, 4), -torch.inf)
    logits[:, 2] = 0
    assert (sample(logits, 1.0, 0, None) == 2).all() and (sample(logits, 0, 0, None) == 2).all()
    logits[:, 1] = 1
    drawn = sample(logits, 1.0, 0, None)
    assert set(drawn.tolist()) == {1, 2}
    assert abs((drawn == 1).float().mean() - 1 / (1 + torch.tensor(-1.0).exp())) < 0.04


def test_stop_tokens_end_a_row_and_only_that_row():
    model = lively()
    free = [naive(model, p, 20) for p in PROMPTS]
    stop = {free[0][2], free[1][9]}
    ends = [next((i + 1 for i, t in enumerate(row) if t in stop), 20) for row in free]
    want = [row[:end] for row, end in zip(free, ends)]
    assert len(want[0]) <= 3 and len(set(ends)) > 1
    assert generate(model, PROMPTS, 20, temperature=0, stop=stop) == want
    assert generate(model, PROMPTS, 0) == [[], [], []] and generate(model, [], 5) == []
    assert [len(row)
            for row in generate(model, PROMPTS, 20, temperature=0, stop=range(V))] == [1] * 3


def test_an_empty_prompt_and_too_long_a_text_are_refused():
    with pytest.raises(ValueError, match="empty prompt"):
        generate(lively(), [[1], []], 3)
    with pytest.raises(ValueError, match="do not fit"):
        generate(lively(), [[5] * 60], 10)                  # block_size is 64
    assert len(generate(lively(), [[5] * 60], 5)[0]) == 5   # the last one is not read again


def test_a_trie_allows_only_its_sequences():
    model, end = lively(), 39
    allowed = [(5, 6, 7, end), (5, 6, end), (5, 8, end), (9, end)]
    table, states = [[-1] * V], {(): 0}
    for sequence in allowed:
        for i, token in enumerate(sequence):
            if sequence[:i + 1] not in states:
                states[sequence[:i + 1]] = len(table)
                table.append([-1] * V)
            table[states[sequence[:i]]][token] = states[sequence[:i + 1]]
    trie = torch.tensor(table)
    drawn = generate(model, PROMPTS, 6, n=40, temperature=3.0, stop=[end], trie=trie)
    assert {tuple(row) for row in drawn} == set(allowed)    # all of them and nothing else
    for row, prompt in zip(generate(model, PROMPTS, 6, temperature=0, stop=[end], trie=trie),
                           PROMPTS):
        text, state = list(prompt), 0
        while text[-1] != end:                              # the best allowed token, one at a time
            logits = model(torch.tensor([text]))[0, -1].masked_fill(trie[state] < 0, -torch.inf)
            text.append(logits.argmax().item())
            state = table[state][text[-1]]
        assert row == text[len(prompt):]


def test_rows_are_padded_on_the_right():
    ids, lengths = pad_rows([[5, 6], [], [7]])
    assert ids.tolist() == [[5, 6], [0, 0], [7, 0]] and lengths.tolist() == [2, 0, 1]
    assert pad_rows([])[0].shape == (0, 1)
