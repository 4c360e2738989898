"""Configuration of a run: its sections and what they may hold together.

Called by launch/train.py, launch/plan.py and recsys/study/, and to read the config.yaml of a run.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from recsys.config import from_config
from recsys.errors import UserError
from recsys.model.build import RANKERS
from recsys.model.config import RankerConfig
from recsys.run.earlier_keys import with_exact_exchange, with_tables
from recsys.schema import Manifest, name_problems
from recsys.sharding.optimizers import OptimConfig
from recsys.sharding.plan import PlanConfig
from recsys.sharding.tables import TableConfig
from recsys.train.loop import TrainConfig
from recsys.train.profile import ProfileConfig


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Name and circumstances of a run."""

    name: str = "default"
    """Folder below workspace/runs/."""
    seed: int = 0
    """Of weights, batch order and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` (GPU where present), `cpu` or `cuda`."""
    threads: int | None = None
    """Threads of every rank; null: OMP_NUM_THREADS where torchrun did not set it, else the cores this
    host may use over its ranks."""
    resume: Literal["auto", "never"] = "auto"
    """`auto`: go on from the newest checkpoint; `never`: refuse a folder that has one."""
    overwrite: bool = False
    """Delete an earlier run of this name first."""
    deterministic: bool = False
    """Only operators that give the same bits every time: two runs are equal; slower on GPU."""

    def problems(self) -> list[str]:
        """Return a text for a name that is no folder's."""
        return name_problems("name", self.name)


DEFAULT_RANKER = RANKERS["umair_fps"][0]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All sections of a training configuration."""

    init: str | None = None
    """Run that this one goes on from (warm start): the name of a run of this workspace, or the folder of
    one elsewhere. Its tables are matched by id. null: from scratch."""
    run: RunSettings = field(default_factory=RunSettings)
    """Name and circumstances."""
    model: RankerConfig = field(default_factory=DEFAULT_RANKER)
    """Architecture; `model.name` chooses its class (recsys/model/build.py)."""
    tables: dict[str, TableConfig] = field(default_factory=dict)
    """Everything that is set for single embedding tables, by table name; frozen modality tables are
    named modality_<modality>."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizers and schedule."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Length and rhythm."""
    plan: PlanConfig = field(default_factory=PlanConfig)
    """Planning of the tables."""
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    """Recording of some steps."""


SECTIONS = tuple(section.name for section in dataclasses.fields(RunConfig))


def read_run_config(sections: Mapping[str, Any], *, stored: bool = False) -> RunConfig:
    """Return the checked configuration.

    Keys of single tables that earlier versions had in other sections are read as section `tables` where
    the configuration is a stored one.

    Args:
        sections: plain dicts, or their short forms, by section name; missing ones take their
            defaults.
        stored: an earlier version may have written them (recsys.config.from_config).

    Raises:
        UserError: every problem of every section at once.
    """
    given = with_exact_exchange(with_tables(sections)) if stored else dict(sections)
    return from_config(RunConfig, given, "", stored=stored)


def check_classes(
    manifest: Manifest, metric: str, splits: Sequence[str] = ("train",), *, validates: bool = True
) -> None:
    """Raise UserError where nothing can be learned, or no checkpoint can be called the best.

    Args:
        metric: the validation metric that names the best checkpoint.
        splits: that are trained on.
        validates: whether split valid chooses the checkpoint.
    """
    problems = []
    lacked = {manifest.splits[name].lacking_class for name in splits}
    if len(lacked) == 1 and (lacking := lacked.pop()):
        num_rows = sum(manifest.splits[name].num_rows for name in splits)
        problems.append(
            f"split {', '.join(splits)} has {num_rows:,} rows and no {lacking}: nothing can "
            f"be learned; change interactions.label, interactions.negatives or split in the recipe and "
            f"run launch/prepare.py again"
        )
    lacking = manifest.splits["valid"].lacking_class
    if validates and lacking and metric == "auc":
        problems.append(
            f"split valid has {manifest.splits['valid'].num_rows:,} rows and no {lacking}: "
            f"train.metric=auc has no value, so no checkpoint would be the best; set "
            f"train.metric=log_loss, or change split in the recipe and run launch/prepare.py again"
        )
    if problems:
        raise UserError(f"data {manifest.name!r}: " + "\n  ".join(problems))
