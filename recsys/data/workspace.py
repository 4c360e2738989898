"""The workspace of a job: the folder of one data set, and the recipe of its data.

The two keys `data=` and `workspace=` of every job in launch/.
"""

from dataclasses import dataclass, field
from pathlib import Path

from recsys.data.recipe import Recipe
from recsys.schema import local_path


@dataclass(frozen=True, kw_only=True)
class WorkspaceConfig:
    """Workspace folder of a job, and the recipe of its data."""

    data: Recipe = field(default_factory=Recipe)
    """A file of configs/data/ or of --config-dir."""
    workspace: str
    """Folder of prepared/, features/ and runs/."""

    @property
    def folder(self) -> Path:
        """The folder as an absolute path."""
        return local_path(self.workspace, "workspace")
