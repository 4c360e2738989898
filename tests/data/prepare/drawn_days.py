"""A drawn log of days with features, users and items files, appended day by day and compared."""

import shutil

from recsys.config import from_config
from recsys.data.prepare.append import append
from recsys.data.prepare.pipeline import prepare
from recsys.data.prepare.window import whole_window
from recsys.data.recipe import Recipe

LOG = {
    "file": "log",
    "user_id": "user",
    "item_id": "item",
    "timestamp": "time",
    "label": "label",
    "unknown_items": "keep",
    "features": {
        "site": {"min_count": 2},
        "words": {"kind": "id_list"},
        "price": {"kind": "dense"},
        "step": {"column": "price", "kind": "numeric", "quantiles": 4},
    },
}
CATALOGUES = {
    "items": {
        "file": "items",
        "title": "title",
        "features": {"kind": {}, "tags": {"kind": "id_list"}},
    },
    "users": {"file": "users", "features": {"age": {"kind": "dense"}}},
}
DRAWN = {**LOG, "label": None}
VARIANTS = {
    "listed": CATALOGUES,
    "rare": {"interactions": {**LOG, "user_min_count": 3, "item_min_count": 2}},
    "train": {"split": {"strategy": "per_user_time"}, "history": {"scope": "train"}},
    "dislikes": {**CATALOGUES, "history": {"negative_length": 2, "scope": "past"}},
    "few features": {
        "interactions": {
            **DRAWN,
            "features": {"site": {"min_count": 2}},
            "negatives": {"strategy": "popularity", "per_positive": 1},
        },
        "split": {"strategy": "random"},
    },
    "uniform": {"interactions": {**DRAWN, "negatives": {"per_positive": 2}}},
    "popularity": {
        "interactions": {**DRAWN, "negatives": {"strategy": "popularity", "per_positive": 3}},
        "split": {"strategy": "random"},
        **CATALOGUES,
    },
    "without times": {
        "interactions": {**LOG, "timestamp": None},
        "split": {"strategy": "random"},
        "history": {"scope": "train", "negative_length": 4},
    },
    "without users": {
        "interactions": {**LOG, "user_id": None, "item_id": None},
        "split": {"strategy": "random"},
    },
    "dropped": {
        **CATALOGUES,
        "interactions": {**LOG, "unknown_items": "drop"},
        "split": {"strategy": "random"},
    },
}


def write_day(source, day, rng, num_rows=60):
    """A day of the log; of its users, items, sites and words some were never there before."""
    rows = [
        f"u{rng.integers(8 + 3 * day)},i{rng.integers(6 + 2 * day)},{10 * day + rng.integers(11)},"
        f"{rng.integers(2)},s{rng.integers(9 + 4 * day)},"
        f"{'|'.join(f'w{day + n}' for n in rng.integers(4, size=rng.integers(4)))},"
        f"{rng.integers(50)}"
        for _ in range(num_rows)
    ]
    write(source / "log", day, ["user,item,time,label,site,words,price", *rows])
    # Some are described anew, and some that the log has are not listed.
    items = [f"i{n},title {n} {day % 2},k{n % (3 + day)},a|b{n % 3}" for n in range(4 + 2 * day)]
    write(source / "items", day, ["item,title,kind,tags", *items])
    users = [f"u{n},{20 + n + day * (n % 2)}" for n in range(day, 6 + 3 * day)]
    write(source / "users", day, ["user,age", *users])


def write(folder, day, lines):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{day}.csv").write_text("\n".join([*lines, ""]))


def recipe(source, variant):
    return from_config(Recipe, {**recipe_node(variant), "source": str(source)}, "data")


def recipe_node(variant):
    """The recipe as a file has it, without its source."""
    node = {"interactions": LOG, "split": {"strategy": "time"}, "history": {}} | VARIANTS[variant]
    node["history"] = {"max_length": 3, "recent_length": 1, **node["history"]}
    for side in ("item", "user"):
        if f"{side}s" in node:
            node[f"{side}s"] = {f"{side}_id": side, **node[f"{side}s"]}
    return {"name": "days", **node}


def prepared(made, workspace):
    return prepare(made, workspace, memory_limit="300MB", threads=1)


def appended(made, workspace, hold=whole_window, since=None):
    return append(made, workspace, since=since, memory_limit="300MB", threads=1, hold=hold)


def content_of(workspace):
    """Every file below prepared/, as bytes."""
    folder = workspace / "prepared"
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def check_days(folder, variant, rng, holds, num_days=3):
    """Append days by one process, and by each holder to a copy of the first day; compare after each.

    Args:
        holds: by name, one holder for each day.
    """
    source = folder / "raw"
    made = recipe(source, variant)
    write_day(source, 0, rng)
    prepared(made, folder / "here")
    for name in holds:
        shutil.copytree(folder / "here", folder / name)
    for day in range(1, num_days + 1):
        write_day(source, day, rng)
        one = appended(made, folder / "here")
        expected = content_of(folder / "here")
        for name, of_days in holds.items():
            two = appended(made, folder / name, of_days[day - 1])
            assert two == one
            assert content_of(folder / name) == expected, (name, day)
