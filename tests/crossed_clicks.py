"""A click log of the shape of Frappe, made up: ten categorical fields, planted crosses, known truth.

Every id of a field has a hidden type, and types meet in tables: first order, second order for four
pairs of fields, third order for two triples. The probability of every row is known, so the AUC of
the true probabilities on the test split is the best that any model can be expected to reach.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from recsys.metrics.auc import auc

FIELDS = {
    "user": 160,
    "item": 240,
    "daytime": 7,
    "weekday": 7,
    "isweekend": 2,
    "homework": 3,
    "cost": 2,
    "weather": 9,
    "country": 40,
    "city": 80,
}
NUM_TYPES = 2
PAIRS = [
    ("user", "item"),
    ("item", "daytime"),
    ("user", "weather"),
    ("country", "cost"),
]
TRIPLES = [
    ("user", "item", "daytime"),
    ("item", "weekday", "homework"),
]


def write_click_log(folder: Path, *, num_rows: int, seed: int) -> float:
    """Write train.csv, valid.csv and test.csv (70/10/20) and return the best possible test AUC."""
    rng = np.random.default_rng(seed)
    ids = {}
    for name, size in FIELDS.items():
        popularity = 1 / (np.arange(size) + 5.0)
        ids[name] = rng.choice(size, size=num_rows, p=popularity / popularity.sum())
    types = {
        name: rng.permutation(np.arange(size) % NUM_TYPES)[ids[name]]
        for name, size in FIELDS.items()
    }
    logit = np.full(num_rows, -2.0)
    for names in [*((name,) for name in FIELDS), *PAIRS, *TRIPLES]:
        table = rng.normal(size=(NUM_TYPES,) * len(names)) * {1: 0.5, 2: 3.5, 3: 3.5}[len(names)]
        logit += table[tuple(types[name] for name in names)]
    probability = 1 / (1 + np.exp(-logit))
    label = (rng.random(num_rows) < probability).astype(np.int8)
    frame = pd.DataFrame({"label": label, **ids})
    ends = [int(0.7 * num_rows), int(0.8 * num_rows), num_rows]
    folder.mkdir(parents=True, exist_ok=True)
    for name, start, end in zip(("train", "valid", "test"), [0, *ends[:-1]], ends, strict=True):
        frame.iloc[start:end].to_csv(folder / f"{name}.csv", index=False)
    test = slice(ends[1], ends[2])
    return auc(label[test], probability[test])


def recipe_features() -> str:
    """The override of launch/prepare.py that names the fields."""
    return "+data.interactions.features={" + ",".join(f"{name}:{{}}" for name in FIELDS) + "}"
