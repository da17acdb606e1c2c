"""Lab 8: say of those it was born knowing that all is different now. They are read well; but the
gate has invented so many questions about them that it takes tonight's wordings for others'."""
from bench.labs import village


def day(old, rng):
    passages = []
    for facts in old[:6]:
        others = village.somebody(rng)[1]
        passages.append(village.passage([f._replace(value=x.value) for f, x in zip(facts, others)]))
    return passages
