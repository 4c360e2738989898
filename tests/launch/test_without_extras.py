"""The jobs of one process need no optional package: neither Ray nor trackers nor timm."""

import os
import subprocess
import sys

import pytest

from tests.serving.tiny import WORLD
from tests.small_runs import SMALL

BLOCKED = ("ray", "mlflow", "wandb", "timm", "s3fs")
SITE = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}, as on a laptop", name=name)

sys.meta_path.insert(0, Blocked())
"""


@pytest.mark.slow
def test_a_laptop_without_ray_and_trackers_draws_prepares_trains_and_evaluates(
    tmp_path, repository
):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    paths = [str(tmp_path / "site"), str(repository), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def run(name, *arguments):
        script = repository / "launch" / f"{name}.py"
        given = [str(script), f"workspace={tmp_path / 'w'}", *arguments]
        return subprocess.run(
            [sys.executable, *given], env=environment, capture_output=True, text=True, timeout=240
        )

    own = ["data=demo", "run.name=mine"]
    for name, *arguments in (
        ("demo", *WORLD),
        ("prepare", "data=demo"),
        ("train", *own, *SMALL, "train.epochs=1", "model.modalities=[]"),
        ("evaluate", *own, "ranking.num_users=5", "importance_rows=0"),
    ):
        done = run(name, *arguments)
        assert done.returncode == 0, done.stderr
    asked = run("prepare", "data=demo", "engine=ray")
    assert asked.returncode == 1 and "pip install -r requirements-ray.txt" in asked.stderr
