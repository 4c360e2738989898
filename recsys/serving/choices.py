"""Choices between two models: which list people prefer without knowing whose it is, with its confidence.

In: choices of the event store. Out: a tally with a sign test and Wilson's interval. Called by the
server's comparison.py.
"""

import hashlib
import math
from dataclasses import dataclass

_Z = 1.959963984540054
"""Quantile of the normal distribution for 95 %."""
LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Tally:
    """Choices between two models, one of each person."""

    models: list[str]
    """The two bundles, by name."""
    wins: list[int]
    """People who prefer each."""
    ties: int
    """People who prefer neither; they count for no model."""
    share: float | None
    """Wins of the first among all wins; null: there is none."""
    interval: list[float]
    """Wilson's 95 % interval of that share; [0, 1] without a win."""
    p_value: float
    """Two-sided sign test: the probability of a difference as great, were both equally good."""
    statement: str
    """The same in one sentence."""


def tally(models: tuple[str, str], wins: tuple[int, int], ties: int) -> Tally:
    """Return the tally of counted choices."""
    total = sum(wins)
    share = wins[0] / total if total else None
    p_value = sign_test(*wins)
    low, high = wilson_interval(wins[0], total)
    return Tally(
        models=list(models),
        wins=list(wins),
        ties=ties,
        share=share,
        interval=[low, high],
        p_value=p_value,
        statement=_statement(models, wins, ties, p_value),
    )


def sign_test(wins: int, losses: int) -> float:
    """Return the exact two-sided p-value of wins against losses, were both equally likely."""
    total, most = wins + losses, max(wins, losses)
    tail = sum(math.comb(total, k) for k in range(most, total + 1))
    return min(1.0, 2 * tail / 2**total)


def wilson_interval(wins: int, total: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a share (Wilson 1927); (0, 1) of nothing."""
    if not total:
        return 0.0, 1.0
    share, square = wins / total, _Z**2
    centre = (share + square / (2 * total)) / (1 + square / total)
    half = _Z * math.sqrt(share * (1 - share) / total + square / (4 * total**2))
    half /= 1 + square / total
    return max(0.0, centre - half), min(1.0, centre + half)


def is_swapped(user: str, models: tuple[str, str]) -> bool:
    """Return whether the second model's list is on the left for a user: a coin that falls once each."""
    digest = hashlib.sha256("\0".join([*sorted(models), user]).encode()).digest()
    return (digest[0] & 1 == 1) == (models[0] <= models[1])


def _statement(models: tuple[str, str], wins: tuple[int, int], ties: int, p_value: float) -> str:
    total = sum(wins)
    if not total:
        return "Nobody has chosen yet." if not ties else f"No difference for all of {ties}."
    better = 0 if wins[0] >= wins[1] else 1
    low, high = wilson_interval(wins[better], total)
    said = (
        f"{models[better]} is preferred by {wins[better]} of {total} "
        f"({wins[better] / total:.0%}, 95 % interval {low:.0%} to {high:.0%}; {ties} without a "
        f"preference): "
    )
    if p_value < LEVEL:
        return said + f"more than chance explains (sign test, p = {p_value:.2g})."
    return said + f"as chance alone may bring (sign test, p = {p_value:.2g})."
