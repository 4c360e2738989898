"""Regression check of a refactoring: prepared data of two checkouts, equal file by file.

    python -m tests.same_prepared record FILE --raw DIR [--checkout DIR] [--cases NAME ...]
    python -m tests.same_prepared compare BEFORE AFTER

`record` prepares every case below with the code of `--checkout` (default: this one) and writes the
SHA-256 of every file, the manifest and the printed lines (without times) to FILE. `--raw` is the folder
of the raw data: it is filled at the first use, from this checkout and from `$TESSERA_DATA/movielens`
(left out where there is none). `compare` prints one line a case and ends with code 1 where anything
differs; keys that only the later manifest has are no difference.
"""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from recsys.config import from_config
from recsys.data.recipe import Recipe
from tests.data.prepare.test_out_of_core import VARIANTS, large_recipe
from tests.data.small_log import INTERACTIONS, recipe, write_source

ROOT = Path(__file__).resolve().parents[1]
WORKER = """
import hashlib, json, sys
from pathlib import Path
from recsys.config import from_config
from recsys.data.recipe import Recipe
try:
    from recsys.data.prepare.pipeline import prepare
except ImportError:
    from recsys.data.prepare import prepare
made = from_config(Recipe, json.loads(Path(sys.argv[1]).read_text()), "data")
folder = Path(sys.argv[2])
try:
    prepare(made, folder, memory_limit="1GB", threads=2)
except ValueError as error:
    print(error)
files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
digests = {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
print(json.dumps(digests))
"""


def write_cases(raw: Path) -> dict[str, Path]:
    """Write the raw data and a recipe as JSON for each case; return the recipes by case."""
    made: dict[str, Recipe] = {}
    for name, changes in VARIANTS.items():
        folder = raw / name.replace(", ", "_").replace(" ", "_")
        if not folder.exists():
            large_recipe(folder, 30_000, changes)
        with tempfile.TemporaryDirectory() as scratch:
            described = large_recipe(Path(scratch) / "raw", 100, changes)
        made[name] = dataclasses.replace(described, source=str(folder))
    small = write_source(raw / "small")
    made["small"] = recipe(small)
    (small / "bad.csv").write_text(INTERACTIONS.replace("ann,10,100", "ann,99,then"))
    more = write_source(raw / "more", interactions=INTERACTIONS + "cid,77,50,5\n")
    (more / "names.csv").write_text("title,name\n<b>Ten</b>,ten &amp; more\nTwenty,\nTen,Ten\n")
    made["broken columns"] = recipe(small, interactions__file="bad.csv", items__title="name")
    made["broken rows"] = recipe(small, interactions__file="bad.csv")
    made["dropped items, pairs"] = recipe(
        more,
        interactions__unknown_items="drop",
        pairs=[
            {
                "file": "names.csv",
                "anchor": "title",
                "positive": "name",
                "perspective": "multilingual",
                "language": "en",
            }
        ],
        history={"max_length": 0, "recent_length": 0},
    )
    made["two list features of the log"] = recipe(
        small,
        interactions__features={
            "digits": {"column": "item_id", "kind": "id_list", "separator": "0"},
            "stars": {"column": "rating", "kind": "id_list", "hash_rows": 9},
        },
    )
    made["hashed lists"] = recipe(
        more,
        interactions__unknown_items="keep",
        items__features={
            "genres": {"kind": "id_list", "hash_rows": 100},
            "title": {"min_count": 1},
            "year": {"kind": "numeric", "quantiles": 3},
        },
    )
    movielens = Path(os.environ.get("TESSERA_DATA", "")) / "movielens"
    if movielens.is_dir():
        node = OmegaConf.load(ROOT / "configs" / "data" / "movielens.yaml")
        node["source"] = str(movielens.resolve())
        made["movielens"] = from_config(Recipe, node, "data")
    if (raw / "demo").is_dir():
        node = OmegaConf.load(ROOT / "configs" / "data" / "demo.yaml")
        node["source"] = str((raw / "demo").resolve())
        made["demo"] = from_config(Recipe, node, "data")
    paths = {}
    for name, described in made.items():
        paths[name] = raw / f"{name.replace(', ', '_').replace(' ', '_')}.json"
        paths[name].write_text(json.dumps(dataclasses.asdict(described)))
    return paths


def draw_demo(folder: Path) -> None:
    """Draw a small world into `folder`, unless it is there."""
    if folder.exists():
        return
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        sizes = ["world.num_items=200", "world.num_users=50", "world.num_exposures=2000"]
        command = [sys.executable, str(ROOT / "launch" / "demo.py"), f"workspace={scratch}", *sizes]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (Path(scratch) / "raw").rename(folder)


def record(file: Path, raw: Path, checkout: Path, names: list[str]) -> None:
    """Prepare the cases and write what came of them."""
    raw.mkdir(parents=True, exist_ok=True)
    draw_demo(raw / "demo")
    cases = write_cases(raw)
    results = {}
    for name in names or cases:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, "-c", WORKER, str(cases[name]), folder],
                env={**os.environ, "PYTHONPATH": str(checkout)},
                cwd=checkout,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                sys.exit(f"{name}: code {done.returncode}\n{done.stderr[-2000:]}")
            *lines, digests = done.stdout.splitlines()
            manifest = Path(folder) / "prepared" / "manifest.json"
            results[name] = {
                "files": {k: v for k, v in json.loads(digests).items() if "manifest" not in k},
                "manifest": json.loads(manifest.read_text()) if manifest.exists() else {},
                "lines": [re.sub(r"^\[[^]]*\] | \([\d.]+ s\)$", "", line) for line in lines],
            }
        print(f"{name}: recorded, {len(results[name]['files'])} files", flush=True)
    file.write_text(json.dumps(results, indent=1), encoding="utf-8")


def compare(before: Path, after: Path) -> bool:
    """Print one line a case; return whether all cases that both files have are equal."""
    old, new = (json.loads(file.read_text(encoding="utf-8")) for file in (before, after))
    same = True
    for name in [name for name in old if name in new]:
        found = list(differences(old[name], new[name], name))
        found += [f"{name}: {f} is new" for f in new[name]["files"].keys() - old[name]["files"]]
        same &= not found
        print("\n  ".join([f"{name}: {'differs' if found else 'equal'}", *found]))
    return same


def differences(old: Any, new: Any, place: str) -> list[str]:
    """Return a sentence for everything of `old` that `new` lacks or has otherwise."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            text
            for key in old
            if key != "version"
            for text in differences(old[key], new.get(key), f"{place}: {key}")
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [text for k, (a, b) in pairs for text in differences(a, b, f"{place}[{k}]")]
    return [] if old == new else [f"{place}: {str(old)[:300]} became {str(new)[:300]}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    jobs = parser.add_subparsers(dest="job", required=True)
    recorder = jobs.add_parser("record")
    recorder.add_argument("file", type=Path)
    recorder.add_argument("--raw", type=Path, required=True)
    recorder.add_argument("--checkout", type=Path, default=ROOT)
    recorder.add_argument("--cases", nargs="*", default=[])
    comparer = jobs.add_parser("compare")
    comparer.add_argument("before", type=Path)
    comparer.add_argument("after", type=Path)
    given = parser.parse_args()
    if given.job == "record":
        record(given.file, given.raw.resolve(), given.checkout.resolve(), given.cases)
    else:
        sys.exit(not compare(given.before, given.after))


if __name__ == "__main__":
    main()
