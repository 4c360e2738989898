"""Starting weights: the file or folder that an encoder starts from, by path or in a Python package.

Called by embedding/encoder_folder.py, and by the encoders when they are made.
"""

import importlib.util
from pathlib import Path

import torch
from safetensors.torch import load_file

from recsys.errors import UserError
from recsys.schema import leaves_folder, local_path

NAMES = ("none", "torchvision", "timm", "scratch")
"""Starting weights that are no path."""
_PACKAGE = "package:"


def weights_path(given: object, key: str) -> Path | None:
    """Return the file or folder that a key names: a path, or `package:NAME/PATH` within a Python package.

    Nothing of the package is run. The path may not exist; None: no package of this name is installed.

    Args:
        key: config key, for messages.

    Raises:
        UserError: no path of this machine, or one that leaves the package.
    """
    text = str(given)
    if not text.startswith(_PACKAGE):
        return local_path(text, key)
    name, _, inner = text.removeprefix(_PACKAGE).partition("/")
    if not name.isidentifier() or not inner or leaves_folder(inner):
        raise UserError(
            f"{key}={text}: expected package:NAME/PATH, the name by which Python imports the package and "
            f"a file or folder within it"
        )
    spec = importlib.util.find_spec(name)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return Path(folders[0]) / inner if folders else None


def weights_file(given: str, key: str, names: str) -> Path:
    """Return the weights file that a key names.

    Args:
        key: config key, for messages.
        names: other values of the key, for messages.

    Raises:
        UserError: there is no such file.
    """
    path = weights_path(given, key)
    if path is None or not path.is_file():
        raise UserError(
            f"{key}={given}: no such file; expected one, package:NAME/FILE of an installed package, "
            f"{names}"
        )
    return path


def read_tensors(path: Path, key: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a weights file, [D, ...] by name; nothing in it is executed.

    Args:
        key: config key, for messages.

    Raises:
        UserError: it is damaged, or holds other things than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # readers raise whatever a broken file makes them raise
        raise UserError(
            f"{key}={path}: cannot be read as tensors alone "
            f"({type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]})"
        ) from error
