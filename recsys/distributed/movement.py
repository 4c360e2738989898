"""What moves between two plans of the same tables: table by table, the bytes that change their rank.

What enters: the contents of two plan.json files. What leaves: one line a table. Called by
launch/plan.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Shard = Mapping[str, Any]


def movement(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one line a table: how it was cut and is cut, and the bytes that ranks must receive.

    Bytes are those of values and optimizer state (of which a row-wise state moves with its
    columns in proportion). A table only one of the plans has moves nothing; a table of another
    size or type is made anew, all of it.
    """
    old, new = (_by_name(content) for content in (before, after))
    lines = []
    for table in [*old, *(name for name in new if name not in old)]:
        lines.append({
            "table": table,
            "before": _cut(old.get(table)),
            "after": _cut(new.get(table)),
            "bytes_to_move": 0,
            "bytes_in_all": 0,
        })
        if table in old and table in new:
            moved, everything = _moved(old[table], before, new[table], after)
            lines[-1] |= {"bytes_to_move": moved, "bytes_in_all": everything}
    return lines


def _by_name(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    tables = {line["table"]: {**line, "shards": []} for line in content["tables"]}
    for shard in content["shards"]:
        tables[shard["table"]]["shards"].append(shard)
    return tables


def _cut(table: Mapping[str, Any] | None) -> str:
    if table is None:
        return "absent"
    ranks = f"{table['num_ranks']} rank" + "s" * (table["num_ranks"] != 1)
    kernel = "" if table["kernel"] in ("fused", "dense", "frozen") else f" {table['kernel']}"
    return f"{table['sharding']}{kernel} on {ranks}"


def _moved(
    old: Mapping[str, Any],
    before: Mapping[str, Any],
    new: Mapping[str, Any],
    after: Mapping[str, Any],
) -> tuple[int, int]:
    """Return (bytes that ranks of the new plan lack, bytes they hold in all)."""
    shape = ("rows", "width", "dtype")
    same = all(old[key] == new[key] for key in shape)
    held_before = _by_rank(old["shards"], before["num_ranks"])
    moved = everything = 0.0
    for rank, shards in _by_rank(new["shards"], after["num_ranks"]).items():
        for shard in shards:
            area = _area(shard, shard)
            if not area:
                continue
            num_bytes = shard["bytes"] + shard["state_bytes"]
            here = sum(_area(shard, other) for other in held_before.get(rank, [])) if same else 0
            everything += num_bytes
            moved += num_bytes * (area - here) / area
    return round(moved), round(everything)


def _by_rank(shards: Sequence[Shard], num_ranks: int) -> dict[int, list[Shard]]:
    held: dict[int, list[Shard]] = {rank: [] for rank in range(num_ranks)}
    for shard in shards:
        for rank in range(num_ranks) if shard["rank"] is None else [shard["rank"]]:
            held[rank].append(shard)
    return held


def _area(one: Shard, other: Shard) -> int:
    """Cells that two rectangles of rows and columns share."""
    sides = [
        max(0, min(one[side][1], other[side][1]) - max(one[side][0], other[side][0]))
        for side in ("rows", "columns")
    ]
    return sides[0] * sides[1]
