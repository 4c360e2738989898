"""The drawn world, put together and written: pictures, words, users, bookmarks, and their truth.

Called by launch/demo.py. Everything is drawn from one seed and is bit-identical when drawn again, on
any number of processes. The truth is stored apart from the raw files; only evaluate reads it.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from recsys.demo.exposure import (
    MODALITIES,
    Audience,
    Exposures,
    circle,
    draw_audience,
    draw_exposures,
    factors,
)
from recsys.demo.scenes import SCENES, SUBJECTS, compose
from recsys.demo.style import HANDS, Painter
from recsys.demo.words import THEME_WORDS, TextPair, item_words, name_of, text_pairs
from recsys.errors import UserError
from recsys.files import DRAW_AGAIN, new_folder, reading, write_json
from recsys.metrics.auc import auc
from recsys.progress import progress_bar

FORMULA = "logit = bias + b_u + sum over semantic, style, text of w_u,m (t_u,m . v_i,m)"


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Size and nature of the drawn world."""

    num_items: int = 3600
    """Pictures."""
    num_users: int = 1000
    """Users."""
    num_exposures: int = 300_000
    """Rows of the log."""
    num_captions: int = 6000
    """Caption pairs for the text encoder, beside names, relations and explanations."""
    picture_size: int = 96
    """Side of a picture in pixels."""
    strength: float = 4.0
    """Sum of a user's three sensitivities: how decided tastes are."""
    concentration: float = 0.8
    """Evenness of the sensitivities; below 1 many users care for one thing mostly."""
    bias: float = -3.6
    """Constant of the logit; sets the bookmark rate."""
    seed: int = 0
    """Of everything."""


@dataclass(frozen=True)
class Items:
    """The catalogue before it is painted."""

    subject: list[str]
    scene: list[str]
    hand: np.ndarray
    theme: list[str]
    words: list[str]


def draw_world(
    config: WorldConfig, workspace: Path, *, processes: int, say: Callable[[str], None]
) -> float:
    """Write `<workspace>/raw/` and `<workspace>/truth/`; return the oracle's AUC over all rows.

    Both folders appear whole.

    Raises:
        UserError: a size is too small to make a world.
    """
    _check(config)
    rng = np.random.default_rng(config.seed)
    items, positions, audience = _draw(config, rng)
    # truth/world.json says that a world is there, so the folder of the truth appears last.
    with new_folder(workspace / "truth") as truth, new_folder(workspace / "raw") as raw:
        (raw / "images").mkdir()
        exposures = draw_exposures(
            audience, positions, num_exposures=config.num_exposures, bias=config.bias, rng=rng
        )
        pairs = text_pairs(rng, config.num_captions)
        paint(
            items, raw / "images", size=config.picture_size, seed=config.seed, processes=processes
        )
        _contact_sheet(config, truth / "contact_sheet.png")
        say(f"pictures: {config.num_items:,} by {len(HANDS)} hands")
        _write_raw(raw, items=items, audience=audience, exposures=exposures, pairs=pairs)
        oracle = _write_truth(config, truth, items=items, audience=audience, exposures=exposures)
        say(
            f"log: {config.num_exposures:,} exposures of {config.num_users:,} users, bookmark rate "
            f"{exposures.label.mean():.3f}; {len(pairs):,} text pairs"
        )
    return oracle


@dataclass(frozen=True)
class Oracle:
    """The true probability of every pair, as the inner product of two vectors."""

    user_ids: list[str]
    item_ids: list[str]
    users: np.ndarray
    """[users, 7]; with an item's vector the logit of the pair."""
    items: np.ndarray
    """[items, 7]."""


def oracle_of(workspace: Path) -> Oracle | None:
    """Return the oracle of a workspace's world, drawn again without pictures; None without a world."""
    file = workspace / "truth" / "world.json"
    if not file.is_file():
        return None
    with reading(file, DRAW_AGAIN):
        config = WorldConfig(**json.loads(file.read_text())["settings"])
    _, positions, audience = _draw(config, np.random.default_rng(config.seed))
    users, items = factors(audience, positions, config.bias)
    return Oracle(user_ids(config.num_users), item_ids(config.num_items), users, items)


def _draw(
    config: WorldConfig, rng: np.random.Generator
) -> tuple[Items, dict[str, np.ndarray], Audience]:
    """Return the items, their positions [items, 2] by modality, and the users."""
    items = _draw_items(config, rng)
    positions = positions_of(items, rng)
    audience = draw_audience(config.num_users, config.strength, config.concentration, rng)
    return items, positions, audience


def _write_raw(
    folder: Path,
    *,
    items: Items,
    audience: Audience,
    exposures: Exposures,
    pairs: Sequence[TextPair],
) -> None:
    """Write the files that a site would have: log, items, users, text pairs."""
    users, names = user_ids(len(audience.age_group)), item_ids(len(items.subject))
    write_table(
        folder / "interactions.parquet",
        user_id=[users[u] for u in exposures.user],
        item_id=[names[i] for i in exposures.item],
        timestamp=exposures.timestamp,
        label=exposures.label,
    )
    write_items(folder / "items.parquet", items, range(len(names)))
    write_users(folder / "users.parquet", audience, range(len(users)))
    write_pairs(folder / "pairs.parquet", pairs)


def write_items(path: Path, items: Items, indices: Sequence[int]) -> None:
    """Write some of the items as an items file has them; their pictures are below images/."""
    rows = [item_row(items, index) for index in indices]
    write_table(path, **{name: [row[name] for row in rows] for name in rows[0]})


def item_row(items: Items, index: int) -> dict[str, str]:
    """Return the row of an item in the items file, by column."""
    name = f"i{index:05d}"
    subject, scene = items.subject[index], items.scene[index]
    return {
        "item_id": name,
        "image": f"images/{name}.png",
        "title": f"{name_of(subject, 'en')} / {name_of(scene, 'en')}",
        "tags": f"{subject}|{scene}",
        "words": items.words[index],
        "artist": HANDS[items.hand[index]].name,
    }


def write_users(path: Path, audience: Audience, indices: Sequence[int]) -> None:
    """Write some of the users as a users file has them."""
    ids = user_ids(len(audience.age_group))
    write_table(
        path,
        user_id=[ids[u] for u in indices],
        age_group=[age_group_name(audience, u) for u in indices],
        country=[country_name(audience, u) for u in indices],
    )


def age_group_name(audience: Audience, user: int) -> str:
    """Return a user's age group as the users file names it."""
    return f"age {audience.age_group[user]}"


def country_name(audience: Audience, user: int) -> str:
    """Return a user's country as the users file names it."""
    return f"country {audience.country[user]}"


def write_pairs(path: Path, pairs: Sequence[TextPair]) -> None:
    """Write the text pairs."""
    columns = [field.name for field in dataclasses.fields(TextPair)]
    write_table(path, **{name: [getattr(pair, name) for pair in pairs] for name in columns})


def _write_truth(
    config: WorldConfig, folder: Path, *, items: Items, audience: Audience, exposures: Exposures
) -> float:
    """Write the probabilities behind the log and world.json; return the oracle's AUC over all rows."""
    oracle = auc(exposures.label, exposures.probability)
    write_table(
        folder / "probabilities.parquet",
        row_id=np.arange(config.num_exposures),
        probability=exposures.probability,
    )
    sensitivities = {
        f"sensitivity_{m}": audience.sensitivities[:, k] for k, m in enumerate(MODALITIES)
    }
    write_table(folder / "users.parquet", user_id=user_ids(config.num_users), **sensitivities)
    write_table(folder / "items.parquet", item_id=item_ids(config.num_items), theme=items.theme)
    world = {
        "formula": FORMULA,
        "settings": dataclasses.asdict(config),
        "oracle_auc": oracle,
        "bookmark_rate": float(exposures.label.mean()),
    }
    write_json(folder / "world.json", world)
    return oracle


def user_ids(count: int) -> list[str]:
    """Return the ids of users by index."""
    return [f"u{index:05d}" for index in range(count)]


def item_ids(count: int) -> list[str]:
    """Return the ids of items by index."""
    return [f"i{index:05d}" for index in range(count)]


def drawn_already(config: WorldConfig, workspace: Path) -> bool:
    """Return whether the workspace holds this very world.

    Raises:
        UserError: it holds another one (says how to replace it).
    """
    file = workspace / "truth" / "world.json"
    if not (file.is_file() and (workspace / "raw").is_dir()):
        return False
    with reading(file, DRAW_AGAIN):
        settings = json.loads(file.read_text())["settings"]
    # A world of an earlier version lacks keys that came later; it is as their defaults make it.
    if dataclasses.asdict(WorldConfig()) | settings != dataclasses.asdict(config):
        raise UserError(
            f"{workspace}: holds a world drawn with other settings ({settings}); use "
            f"overwrite=true to draw it anew, or another workspace="
        )
    return True


def _check(config: WorldConfig) -> None:
    for key, least in (("num_items", 50), ("num_users", 10), ("num_exposures", 100)):
        if getattr(config, key) < least:
            raise UserError(f"world.{key}={getattr(config, key)}: expected {least} or more")
    if config.num_exposures > config.num_users * config.num_items // 4:
        raise UserError(
            f"world.num_exposures={config.num_exposures}: expected at most a quarter of users x "
            f"items, {config.num_users * config.num_items // 4}"
        )


def _draw_items(config: WorldConfig, rng: np.random.Generator) -> Items:
    """Every item: a subject, a scene, a hand and a theme, independent of each other."""
    count = config.num_items
    subjects, scenes, themes = list(SUBJECTS), list(SCENES), list(THEME_WORDS)
    subject = [subjects[i] for i in rng.permutation(np.arange(count) % len(subjects))]
    scene = [scenes[i] for i in rng.permutation(np.arange(count) % len(scenes))]
    hand = rng.permutation(np.arange(count) % len(HANDS))
    theme = [themes[i] for i in rng.permutation(np.arange(count) % len(themes))]
    words = [item_words(s, c, t, rng) for s, c, t in zip(subject, scene, theme, strict=True)]
    return Items(subject, scene, hand, theme, words)


def positions_of(items: Items, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Position of every item in the space of each modality, [items, 2]."""
    subject_at = dict(zip(SUBJECTS, circle(len(SUBJECTS), rng), strict=True))
    scene_at = dict(zip(SCENES, circle(len(SCENES), rng), strict=True))
    theme_at = dict(zip(THEME_WORDS, circle(len(THEME_WORDS), rng), strict=True))
    hand_at = circle(len(HANDS), rng)
    content = [
        0.8 * subject_at[s] + 0.6 * scene_at[c]
        for s, c in zip(items.subject, items.scene, strict=True)
    ]
    return {
        "semantic": np.array(content),
        "style": hand_at[items.hand],
        "text": np.array([theme_at[t] for t in items.theme]),
    }


def paint(items: Items, folder: Path, *, size: int, seed: int, processes: int) -> None:
    """Paint all pictures; each has a generator of its own, so the order does not matter.

    Args:
        size: side of a picture in pixels.
    """
    indices = range(len(items.subject))
    jobs = list(zip(indices, items.subject, items.scene, items.hand, strict=True))
    paint = partial(_paint_one, folder, size, seed)
    bar = partial(progress_bar, total=len(jobs), desc="paint", unit="picture")
    if processes == 1:
        for job in bar(jobs):
            paint(job)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for _ in bar(pool.map(paint, jobs, chunksize=32)):
            pass


def _paint_one(folder: Path, size: int, seed: int, job: tuple[int, str, str, int]) -> None:
    index, subject, scene, hand = job
    rng = np.random.default_rng([seed, index])
    picture = Painter(HANDS[hand], size, rng).paint(compose(subject, scene, rng))
    picture.save(folder / f"i{index:05d}.png", optimize=False, compress_level=6)


def _contact_sheet(config: WorldConfig, path: Path) -> None:
    """Write a sheet for people: one row per hand, one column per subject."""
    columns, gap, size = 12, 6, config.picture_size
    side = size + gap
    sheet = Image.new("RGB", (gap + columns * side, gap + len(HANDS) * side), "white")
    scenes = list(SCENES)
    for row, hand in enumerate(HANDS):
        for column, subject in enumerate(list(SUBJECTS)[::2][:columns]):
            rng = np.random.default_rng([config.seed, row, column])
            scene = scenes[(column + math.floor(row / 2)) % len(scenes)]
            picture = Painter(hand, size, rng).paint(compose(subject, scene, rng))
            sheet.paste(picture, (gap + column * side, gap + row * side))
    sheet.save(path)


def write_table(path: Path, **columns: object) -> None:
    """Write columns of equal length as a Parquet file."""
    pq.write_table(pa.table(columns), path, compression="zstd")
