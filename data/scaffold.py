"""
A scaffold for plain transformers. Ours.

To read is to find a word again and to go on as it went on there; that needs a head that looks one
word back, and plain attention is late to find one. Our convolution looks back from
birth. So a plain transformer (Config.conv = 0) that is pretrained here begins with a convolution,
and has it in fewer and fewer of its steps, from the share FROM of them to the share TO: attention
learns to do without, while all that builds on it stands. Then it is taken down: what is left is
plain.
"""
from dataclasses import replace

import torch

from model import GPT, Config

FROM, TO = 0.05, 0.35               # shares of pretraining in which it leaves
AMPLITUDE = 0.3                     # of the waves, as which learned positions are born
GOLDEN = 0.6180339887498949         # the fractions of its multiples are spread evenly


def newborn(config):
    """A GPT of this Config from scratch; if it is plain, with a scaffold."""
    plain = not config.conv
    model = GPT(replace(config, conv=Config.conv, scaffold=True) if plain else config)
    if model.wpe is not None:
        model.wpe.weight.data.copy_(AMPLITUDE * waves(*model.wpe.weight.shape))
    return model


def waves(n, d):
    """Positions as waves (Vaswani et al. 2017), (n, d): to look back is to turn them. A learned
    table that begins so need not find them."""
    freq = 10000.0 ** (-torch.arange(d // 2) / (d // 2))
    angle = torch.arange(n)[:, None] * freq
    return torch.cat([angle.sin(), angle.cos()], 1)


def stand(model, step, steps):
    """Is it there in this step of pretraining? A function of the step: the same for all processes,
    and after an interruption. In place."""
    there = 1 - (step / steps - FROM) / (TO - FROM)
    if model.config.scaffold is not None:
        model.config.scaffold = step * GOLDEN % 1 < there


def take_down(model):
    """What is left is a plain transformer, in place."""
    if model.config.scaffold is not None:
        model.config.conv, model.config.scaffold = 0, None
        for block in model.blocks:
            del block.conv, block.norm_conv
