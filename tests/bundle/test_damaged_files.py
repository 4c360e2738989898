"""Damage to any file of a bundle: it is refused, and the sentence names the file."""

import shutil

import pytest

from recsys.bundle.bundle import Bundle
from recsys.errors import UserError

DAMAGES = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[: len(content) // 2],
    "a byte changed": lambda content: (
        content[: len(content) // 2]
        + bytes([content[len(content) // 2] ^ 0xFF])
        + content[len(content) // 2 + 1 :]
    ),
}


@pytest.fixture(scope="module")
def copy(tiny_bundle, tmp_path_factory):
    """A copy of the tiny bundle, whose files are damaged and mended in turn."""
    return shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("damaged") / "bundle")


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damaged_file_is_refused_by_name(copy, damage):
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    assert len(files) > 40
    for file in files:
        content = file.read_bytes()
        broken = DAMAGES[damage](content)
        if broken == content:  # an empty file
            continue
        file.write_bytes(broken)
        # files.json itself may name a file that is not there, or another sum of one.
        named = "" if file.name == "files.json" else str(file)
        with pytest.raises(UserError) as refused:
            Bundle.open(copy, verify="sha256")
        assert named in str(refused.value), file
        file.write_bytes(content)
    assert Bundle.open(copy, verify="sha256").folder == copy
