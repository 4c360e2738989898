"""Listings: files.json holds the sha256 of every file of a folder that a library reads unchecked.

Called by the text encoder, which writes one, and by launch/embed.py, which checks it before a library
loads the folder.
"""

from pathlib import Path

from recsys.errors import UserError
from recsys.files import read_json, reading, sha256_of, write_json

_LISTING = "files.json"


def write_listing(folder: Path) -> None:
    """Write files.json: the sha256 of every file below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
    write_json(folder / _LISTING, {"sha256": listed})


def check_listing(folder: Path, remedy: str) -> None:
    """Compare the files below `folder` with its files.json, of libraries that go on without some.

    Folders of earlier versions have none and pass, and so do files that came later.

    Raises:
        DamagedFileError: a file is missing or has changed; says `remedy`.
    """
    listing = folder / _LISTING
    if not listing.exists():
        return
    with reading(listing, remedy):
        listed = dict(read_json(listing, remedy)["sha256"])
    for name, sha256 in listed.items():
        with reading(folder / name, remedy):
            if sha256_of(folder / name) != sha256:
                raise UserError(
                    "changed since it was written: its sha256 differs from files.json's"
                )
