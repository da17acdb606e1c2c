"""What a plain transformer is born with is not there in the end, and its steps are those of before
after an interruption."""
import torch

import sleep
from data import scaffold
from model import GPT, Config, clone
from tests.small import V, tokens

SMALL = dict(vocab_size=V, n_layer=2, n_head=2, head_dim=8, n_embd=16, d_ff=32)


def test_a_plain_one_is_born_with_a_convolution_and_grows_up_without():
    config = Config(**SMALL, conv=0)
    model, ids = scaffold.newborn(config), tokens(2, 9)
    with_it = model(ids)
    steps = [scaffold.stand(model, step, 1000) or model.config.scaffold for step in range(1000)]
    assert all(steps[:50]) and not any(steps[350:])
    assert abs(sum(steps[50:350]) / 300 - 0.5) < 0.01                   # fewer and fewer
    assert sum(steps[50:150]) > sum(steps[150:250]) > sum(steps[250:350])
    without = model(ids)
    assert not torch.equal(with_it, without)
    scaffold.take_down(model)
    assert torch.equal(model(ids), without) and model.config == config
    plain = GPT(config)
    plain.load_state_dict(model.state_dict())                           # nothing of it is left
    assert torch.equal(plain(ids), without)


def test_ours_keeps_its_convolution():
    model = scaffold.newborn(Config(**SMALL))
    before = clone(model)
    scaffold.stand(model, 900, 1000)
    scaffold.take_down(model)
    ids = tokens(2, 9)
    assert model.config == before.config and torch.equal(model(ids), before(ids))


def test_learned_positions_are_born_as_waves_and_learn_slowly():
    model = scaffold.newborn(Config(**SMALL, conv=0, rope=False, rms=False, bias=True))
    wave = model.wpe.weight / scaffold.AMPLITUDE
    sin, cos = wave.chunk(2, 1)
    assert torch.allclose(sin ** 2 + cos ** 2, torch.ones_like(sin), atol=1e-5)
    turned = sin[:-1] * cos[1] + cos[:-1] * sin[1]                      # one step is a turn
    assert torch.allclose(turned, sin[1:], atol=1e-4)
    _, adam = sleep.optimizers(model)
    fast, slow = adam.param_groups
    assert abs(slow["lr"] / fast["lr"] - 0.3) < 1e-9 and any(p is model.wpe.weight for p in slow["params"])
    learnt = [p for opt in sleep.optimizers(model) for g in opt.param_groups for p in g["params"]]
    assert len(learnt) == len(list(model.parameters()))
