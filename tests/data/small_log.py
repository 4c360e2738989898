"""A small raw data set on disk, and its recipe; tests break one thing at a time."""

from pathlib import Path

from recsys.config import from_config
from recsys.data.prepare.pipeline import prepare
from recsys.data.recipe import Recipe

INTERACTIONS = """user_id,item_id,time,rating
ann,10,100,5
ann,20,200,1
ann,30,200,4
ann,10,300,5
bob,20,50,4
bob,30,60,2
bob,40,70,5
bob,10,80,4
cid,40,10,4
cid,10,20,5
cid,20,30,1
cid,30,40,4
"""
ITEMS = """item_id,title,image,genres,year
10,Ten,a.png,red|round,1990
20,Twenty,b.png,red,2005
30,Thirty,,blue|round|red,
40,Forty,sub/d.png,,1971
50,Never seen,e.png,green,2010
"""


def write_source(folder: Path, *, interactions: str = INTERACTIONS, items: str = ITEMS) -> Path:
    """Write the raw files and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.csv").write_text(interactions)
    (folder / "items.csv").write_text(items)
    return folder


def recipe(source: Path, **changes) -> Recipe:
    """The recipe of the small log; `changes` replace whole sections, dotted keys single entries."""
    node = {
        "name": "small",
        "source": str(source),
        "interactions": {
            "file": "log.csv",
            "user_id": "user_id",
            "item_id": "item_id",
            "timestamp": "time",
            "label": "rating >= 4",
        },
        "items": {
            "file": "items.csv",
            "item_id": "item_id",
            "image": "image",
            "title": "title",
            "text": ["title", "genres"],
            "tags": {"genres": {"kind": "id_list"}},
            "features": {
                "genres": {"kind": "id_list"},
                "year": {"kind": "numeric", "cuts": [1980, 2000]},
            },
        },
        "split": {"strategy": "per_user_time", "fractions": [0.5, 0.25, 0.25]},
        "history": {"max_length": 3, "recent_length": 1},
    }
    for key, value in changes.items():
        section, _, entry = key.partition("__")
        if entry:
            node[section] = {**node[section], entry: value}
        else:
            node[section] = value
    return from_config(Recipe, node, "data")


def prepared(tmp_path: Path, made: Recipe):
    """Prepare into tmp_path/w; return (manifest, workspace)."""
    workspace = tmp_path / "w"
    return prepare(made, workspace, memory_limit="500MB", threads=2), workspace
