"""Keys of earlier versions: settings of single tables, which were spread over the sections of a run, and
keys whose default was another one.

In: the sections of a stored configuration. Out: the same as this version has them. Called by
recsys/run/config.py.
"""

from collections.abc import Mapping
from typing import Any

_MOVED = {
    ("model", "table_dims"): "width",
    ("model", "half_tables"): "precision",
    ("optim", "tables"): "optimizer",
    ("plan", "sharding"): "sharding",
    ("plan", "kernels"): "kernel",
    ("plan", "cache_load_factor"): "cache_load_factor",
    ("plan", "ranks"): "ranks",
}
"""Section and key of an earlier version, by table name or a list of tables; key of a table now."""


def with_tables(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of a stored run with the settings of single tables in the section `tables`.

    A run that has the section already is returned as it is. So is a key whose value has another form:
    it is refused where it is read.

    Args:
        sections: by name; None or anything else for one that the run does not have.
    """
    moved = dict(sections)
    if moved.get("tables") is not None:
        return moved
    tables: dict[str, dict[str, Any]] = {}
    for (section, key), setting in _MOVED.items():
        content = moved.get(section)
        if not isinstance(content, dict):
            continue
        given = content.get(key)
        if key == "half_tables" and isinstance(given, list):
            given = {str(table): "fp16" for table in given}
        if not isinstance(given, dict):
            continue
        moved[section] = {name: value for name, value in content.items() if name != key}
        for table, value in given.items():
            tables.setdefault(table, {})[setting] = value
    return moved | {"tables": tables}


def with_exact_exchange(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of a stored run with fp32 as the precision of an exchange that has none.

    Versions without these keys of `plan` sent everything in fp32.

    Args:
        sections: by name; None or anything else for one that the run does not have.
    """
    plan = sections.get("plan") or {}
    if not isinstance(plan, dict):
        return dict(sections)
    exact = {"forward_communication": "fp32", "backward_communication": "fp32"}
    return {**sections, "plan": exact | plan}
