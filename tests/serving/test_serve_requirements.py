"""requirements-serve.txt is enough: a bundle is served where nothing else of ours is installed."""

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]

SERVE = """
import json, re, sys

blocked, installed = map(set, json.loads(sys.argv[1]))

class Without:
    '''A finder that finds neither the modules nor the metadata of what is not installed.'''
    def __init__(self, finder):
        self.finder = finder
    def find_distributions(self, *context):
        for found in getattr(self.finder, "find_distributions", lambda *_: ())(*context):
            if re.sub("[-_.]+", "-", found.name).lower() in installed:
                yield found
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]

import importlib
for name in ("launch.serve", "launch.recommend", "launch.loadtest", "launch.events"):
    importlib.import_module(name)
from recsys.serving.recommender import Recommender

recommender = Recommender.open(sys.argv[2])
assert len(recommender.recommend(user="u00007", k=3, explain=True).items) == 3
assert len(recommender.search(words="friendship", k=3).items) == 3
picture = open(sys.argv[3], "rb").read()
assert len(recommender.search(picture=picture, k=3).items) == 3
recommender.add_item("new", picture=picture, text="friendship")
assert blocked.isdisjoint({name.partition(".")[0] for name in sys.modules})
print("served")
"""


def closure(requirements: list[str]) -> set[str]:
    """The distributions that pip installs for some requirements, by canonical name."""
    found: set[str] = set()
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        key = f"{name}[{','.join(sorted(one.extras))}]"
        if key in found:
            continue
        found |= {name, key}
        try:
            needed = requires(one.name) or []
        except PackageNotFoundError:  # of another system, or optional
            continue
        for text in needed:
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in {"", *one.extras}):
                waiting.append(requirement)
    return found


@pytest.mark.slow
def test_bundle_is_served_with_the_packages_of_the_serving_image(tiny_bundle):
    lines = (ROOT / "requirements-serve.txt").read_text(encoding="utf-8").splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    installed = closure([*listed, "torch", "torchvision"])
    own = {"recsys", "embedding", "launch", "tests"}
    blocked = sorted(
        module
        for module, distributions in packages_distributions().items()
        if module not in own and not {canonicalize_name(d) for d in distributions} & installed
    )
    assert {"torchrec", "fbgemm_gpu", "duckdb", "datasets", "matplotlib", "optuna"} <= set(blocked)
    picture = tiny_bundle.parents[1] / "raw" / "images" / "i00002.png"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            SERVE,
            json.dumps([blocked, sorted(installed)]),
            str(tiny_bundle),
            str(picture),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("served\n")
