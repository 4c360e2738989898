"""Split: which interactions train, validate and test."""

from collections.abc import Sequence

from recsys.data.prepare.engine import Count, Engine, Table, count_rows
from recsys.data.prepare.quantiles import quantiles
from recsys.data.recipe import SplitRecipe


def order_hash(seed: int, key: str = "row_id") -> str:
    """SQL of a seeded 64-bit number per key: the order of rows, the random split, ties."""
    return f"md5_number_lower(concat('{seed}:', {key}))"


def split_log(
    engine: Engine, log: Table, recipe: SplitRecipe, bounds: Sequence[int] | None = None
) -> Table:
    """Return the table (row_id, split) of a log; split is 0 train, 1 valid, 2 test.

    - `time`: rows up to the 80 % quantile of time train, up to 90 % validate, later test; rows of one
      second stay together.
    - `per_user_time`: each user's first 80 % by time train, and so on, rounded down. A bound that
      falls into rows of one second cuts these by a seeded hash of user and item: by item id, a low
      id would mean train and a high one test.
    - `random`: by a seeded hash of the row number.
    - `given`: by the file.

    Args:
        log: with row_id, user_id, item_id, ts and given.
        bounds: last seconds of train and valid (`time_bounds`); None: those of this log.
    """
    log.needs("row_id", "user_id", "item_id", "ts", "given")
    if bounds is None:
        bounds = time_bounds(engine, log, recipe)
    return engine.create("splits", _split_sql(log, recipe, bounds))


def time_bounds(
    engine: Engine, log: Table, recipe: SplitRecipe, count: Count = count_rows
) -> list[int]:
    """Return the last seconds of train and valid of a split by `time`; [] for other strategies.

    Args:
        count: of the rows of `log`.
    """
    if recipe.strategy != "time":
        return []
    return quantiles(engine, f"SELECT ts AS value FROM {log}", _shares(recipe), count)


def _shares(recipe: SplitRecipe) -> tuple[float, float]:
    """Return the shares of the rows up to the end of train, and up to the end of valid."""
    return recipe.fractions[0], recipe.fractions[0] + recipe.fractions[1]


def _split_sql(log: Table, recipe: SplitRecipe, bounds: Sequence[int]) -> str:
    first, second = _shares(recipe)
    if recipe.strategy == "given":
        return f"SELECT row_id, given AS split FROM {log}"
    if recipe.strategy == "time":
        low, high = bounds
        return (
            f"SELECT row_id, CASE WHEN ts <= {low} THEN 0 WHEN ts <= {high} THEN 1 ELSE 2 END "
            f"AS split FROM {log}"
        )
    if recipe.strategy == "per_user_time":
        # The newline separates the ids: "ab" + "c" is not "a" + "bc".
        tie_break = order_hash(recipe.seed, "user_id, chr(10), item_id")
        place = f"row_number() OVER (PARTITION BY user_id ORDER BY ts, {tie_break}, row_id)"
        return (
            f"SELECT row_id, CASE WHEN place <= floor({first} * n + 1e-9) THEN 0 "
            f"WHEN place <= floor({second} * n + 1e-9) THEN 1 ELSE 2 END AS split FROM "
            f"(SELECT row_id, {place} AS place, count(*) OVER (PARTITION BY user_id) AS n FROM {log})"
        )
    share = f"({order_hash(recipe.seed)} / 18446744073709551616.0)"
    return (
        f"SELECT row_id, CASE WHEN {share} < {first} THEN 0 WHEN {share} < {second} THEN 1 ELSE 2 "
        f"END AS split FROM {log}"
    )
