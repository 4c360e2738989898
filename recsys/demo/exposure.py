"""Exposures of the simulated site: tastes, sensitivities, probabilities, labels.

The formula, for user u and item i:

    logit = bias + b_u + w_u,semantic s_semantic(u, i) + w_u,style s_style(u, i) + w_u,text s_text(u, i)

s_m(u, i) = t_u,m . v_i,m is the taste of the user for the item's position in a space of two
dimensions per modality: the content (subject and scene), the artist, and the theme of its words. w_u are
the user's sensitivities: some users care for the style alone, some for the words.
Called by world.py.
"""

from dataclasses import dataclass

import numpy as np

MODALITIES = ("semantic", "style", "text")
NUM_AGE_GROUPS, NUM_COUNTRIES = 5, 8
_DIMS = 2
_YEAR_SECONDS = 365 * 24 * 3600
_START = 1_700_000_000
_CANDIDATES = 4


@dataclass(frozen=True)
class Audience:
    """The users."""

    tastes: dict[str, np.ndarray]
    """[users, 2] per modality."""
    sensitivities: np.ndarray
    """[users, 3], in the order of MODALITIES."""
    bias: np.ndarray
    """[users]."""
    age_group: np.ndarray
    """[users], weakly tied to the tastes."""
    country: np.ndarray
    """[users], weakly tied to the tastes."""


@dataclass(frozen=True)
class Exposures:
    """The log with its truth."""

    user: np.ndarray
    """[rows] index."""
    item: np.ndarray
    """[rows] index."""
    timestamp: np.ndarray
    """[rows] seconds, ascending."""
    probability: np.ndarray
    """[rows] true probability of a bookmark."""
    label: np.ndarray
    """[rows] 0 or 1."""


def circle(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return positions [count, 2], spread around the unit circle in random order, variance 1."""
    angle = 2 * np.pi * (rng.permutation(count) + 0.5 * rng.random(count)) / count
    return np.sqrt(2.0) * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def draw_audience(
    num_users: int, strength: float, concentration: float, rng: np.random.Generator
) -> Audience:
    """Draw users; `strength` is the sum of a user's sensitivities, `concentration` their evenness."""
    age_group = rng.integers(0, NUM_AGE_GROUPS, num_users)
    country = rng.integers(0, NUM_COUNTRIES, num_users)
    tastes = {}
    for modality in MODALITIES:
        lean = 0.5 * rng.normal(size=(NUM_AGE_GROUPS, _DIMS))[age_group]
        lean += 0.5 * rng.normal(size=(NUM_COUNTRIES, _DIMS))[country]
        taste = rng.normal(size=(num_users, _DIMS)) + lean
        tastes[modality] = taste / np.linalg.norm(taste, axis=1, keepdims=True)
    sensitivities = strength * rng.dirichlet([concentration] * len(MODALITIES), num_users)
    return Audience(
        tastes=tastes,
        sensitivities=sensitivities,
        bias=0.35 * rng.normal(size=num_users),
        age_group=age_group,
        country=country,
    )


def logits(
    audience: Audience,
    positions: dict[str, np.ndarray],
    user: np.ndarray,
    item: np.ndarray,
    bias: float,
) -> np.ndarray:
    """Return the formula's logit [rows]; positions: [items, 2] per modality."""
    total = bias + audience.bias[user]
    for index, modality in enumerate(MODALITIES):
        score = (audience.tastes[modality][user] * positions[modality][item]).sum(axis=1)
        total = total + audience.sensitivities[user, index] * score
    return total


def factors(
    audience: Audience, positions: dict[str, np.ndarray], bias: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors of users [users, 7] and items [items, 7] whose inner product is the logit."""
    num_items = len(positions["semantic"])
    users, items = [(bias + audience.bias)[:, None]], [np.ones((num_items, 1))]
    for index, modality in enumerate(MODALITIES):
        users.append(audience.sensitivities[:, index, None] * audience.tastes[modality])
        items.append(positions[modality])
    return np.concatenate(users, axis=1), np.concatenate(items, axis=1)


def draw_exposures(
    audience: Audience,
    positions: dict[str, np.ndarray],
    *,
    num_exposures: int,
    bias: float,
    rng: np.random.Generator,
    period: tuple[int, int] = (_START, _START + _YEAR_SECONDS),
) -> Exposures:
    """Draw the log [N] of a period from the positions of the items [items, 2] by modality.

    Half of the items exist from the start, the others appear over the period. For each exposure, four
    candidates are drawn by popularity among the items there are; a recommender of sorts picks one by
    a noisy half of the logit. No user sees an item twice.

    Args:
        period: seconds since 1970, from and until.
    """
    num_items = len(positions["semantic"])
    num_users = len(audience.bias)
    born = np.where(rng.random(num_items) < 0.5, 0.0, rng.random(num_items))
    by_birth = np.argsort(born, kind="stable")
    popularity = rng.lognormal(0, 0.8, num_items)[by_birth]
    reach = np.cumsum(popularity)
    seen = np.zeros(num_users * num_items, dtype=bool)
    users, items, times = [], [], []
    missing = num_exposures
    while missing:
        user = rng.integers(0, num_users, missing)
        time = rng.random(missing)
        there = np.searchsorted(born[by_birth], time, side="right")
        at = rng.random((missing, _CANDIDATES)) * reach[there - 1][:, None]
        candidates = by_birth[np.searchsorted(reach, at, side="right")]
        flat = logits(
            audience, positions, np.repeat(user, _CANDIDATES), candidates.ravel(), bias
        ).reshape(missing, _CANDIDATES)
        pick = (0.5 * flat + rng.gumbel(size=flat.shape)).argmax(axis=1)
        item = candidates[np.arange(missing), pick]
        key = user * num_items + item
        _, first = np.unique(key, return_index=True)
        fresh = first[~seen[key[first]]]
        seen[key[fresh]] = True
        users.append(user[fresh])
        items.append(item[fresh])
        times.append(time[fresh])
        missing -= len(fresh)
    user, item, time = (np.concatenate(part) for part in (users, items, times))
    order = np.argsort(time, kind="stable")
    user, item, time = user[order], item[order], time[order]
    probability = 1 / (1 + np.exp(-logits(audience, positions, user, item, bias)))
    return Exposures(
        user=user,
        item=item,
        timestamp=period[0] + (time * (period[1] - period[0])).astype(np.int64),
        probability=probability,
        label=(rng.random(num_exposures) < probability).astype(np.uint8),
    )
