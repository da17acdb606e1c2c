"""What the benches share: reading results, mean ± standard deviation, paired intervals, and a verdict a person can read."""
import json
import os
from statistics import mean, stdev

RESULTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results")
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}   # Student's t, two-sided


def read(name):
    """A result file of bench/results (or anywhere, by its path), or None if it has not been made yet."""
    path = name if os.path.dirname(name) else os.path.join(RESULTS, name)
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def pm(values, digits=3):
    """"mean ± standard deviation" of the values that are there; one value stands alone."""
    values = [v for v in values if v is not None]
    sd = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{sd}" if values else ""


def interval(values):
    """Mean and half-width of the 95 % confidence interval (Student's t; more than 10 values: a little too wide)."""
    n = len(values)
    return mean(values), T95.get(n - 1, 2.262) * stdev(values) / n ** 0.5 if n > 1 else float("nan")


def gap(differences):
    """"+0.020 ± 0.010": mean and 95 % half-width."""
    return "{:+.3f} ± {:.3f}".format(*interval(differences))


def verdict(differences):
    """What an ingredient does, from the paired differences (life without it - life with it) in some accuracy.

    helps: the whole interval lies below zero; hurts: above; else no effect was seen, and the interval says how large a one may
    have been missed. Of twenty true zeros one will be called an effect.
    """
    m, half = interval(differences)
    if half != half:
        return "one seed"
    return f"helps: {-m:.3f}" if m + half < 0 else f"hurts: {m:.3f}" if m - half > 0 else "no effect seen"
