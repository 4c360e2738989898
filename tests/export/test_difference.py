"""Differences of files: parent and payloads give the new file, byte for byte, and are small."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.bundle import patch
from recsys.bundle.patch import make_file
from recsys.export import difference, pieces
from recsys.export.difference import write_changes
from recsys.export.pieces import find_pieces
from recsys.listing import write_listing


def saved(folder, **arrays):
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    write_listing(folder)
    return folder


def remade(tmp_path, before: dict, after: dict):
    """Return the rule and the share of payload of every changed file; each is made anew and compared."""
    parent, bundle = saved(tmp_path / "parent", **before), saved(tmp_path / "bundle", **after)
    delta = tmp_path / "delta"
    delta.mkdir()
    changes = write_changes(delta, parent, bundle)
    found = {}
    for name, change in changes.items():
        make_file(tmp_path / "made" / name, parent / name, delta / change.payload, change)
        assert (tmp_path / "made" / name).read_bytes() == (bundle / name).read_bytes(), name
        size = sum(path.stat().st_size for path in delta.glob(f"{change.payload}.*"))
        found[name] = (change.rule, size / (bundle / name).stat().st_size)
    del found["files.json"]
    return found


def test_changed_and_new_rows_of_an_array_are_all_that_is_kept(tmp_path, rng):
    table = rng.integers(0, 256, (5000, 24), dtype=np.uint8)
    grown = np.concatenate([table, rng.integers(0, 256, (50, 24), dtype=np.uint8)])
    grown[::10] += 1
    scales = rng.normal(size=(5000, 2)).astype(np.float32)
    found = remade(
        tmp_path,
        {"table": table, "scales": scales, "same": table},
        {"table": grown, "scales": scales[:4000], "same": table},
    )
    assert set(found) == {"table.npy", "scales.npy"}
    assert found["table.npy"][0] == found["scales.npy"][0] == "rows"
    assert found["table.npy"][1] < 0.16
    assert found["scales.npy"][1] < 0.02, "a shorter array has no changed rows"


def test_what_is_appended_costs_its_own_bytes(tmp_path, rng):
    pictures = rng.integers(0, 256, 40_000, dtype=np.uint8)
    offsets = np.arange(0, 4000, 2)
    found = remade(
        tmp_path,
        {"pictures": pictures[:30_000], "offsets": offsets[:1500]},
        {"pictures": pictures, "offsets": offsets},
    )
    assert found["pictures.npy"] == ("rows", pytest.approx(0.25, abs=0.01))
    assert found["offsets.npy"] == ("rows", pytest.approx(0.25, abs=0.02))


def test_lists_of_which_some_grew_and_lost_their_oldest_are_pieces_and_sums(tmp_path, rng):
    lists = [rng.integers(0, 10**6, rng.integers(0, 120)).astype(np.int32) for _ in range(2000)]
    grown = [
        np.concatenate([ids[n % 3 :], ids[:1] + 1]) if n % 10 == 0 else ids
        for n, ids in enumerate(lists)
    ]

    def files(of):
        offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in of])])
        return {"values": np.concatenate(of), "offsets": offsets}

    found = remade(tmp_path, files(lists), files(grown))
    assert (found["values.npy"][0], found["offsets.npy"][0]) == ("pieces", "sums")
    assert found["values.npy"][1] < 0.06
    assert found["offsets.npy"][1] < 0.25


def test_sorted_hashes_with_a_few_new_ones_are_pieces(tmp_path, rng):
    hashes = np.sort(rng.integers(0, 2**63, 20_000).astype(np.uint64))
    more = np.sort(np.concatenate([hashes, rng.integers(0, 2**63, 100).astype(np.uint64)]))
    assert remade(tmp_path, {"h": hashes}, {"h": more})["h.npy"] == (
        "pieces",
        pytest.approx(0.05, abs=0.03),
    )


def test_what_has_nothing_in_common_is_replaced(tmp_path, rng):
    one, other = (rng.normal(size=(300, 4)).astype(np.float16) for _ in range(2))
    found = remade(
        tmp_path,
        {"all": one, "wide": one, "kind": one, "empty": one[:0], "emptied": one, "order": one},
        {
            "all": other,
            "wide": other[:, :2],
            "kind": other.astype(np.float32),
            "empty": other,
            "emptied": other[:0],
            "new": other,
            "order": np.asfortranarray(other),
        },
    )
    whole = {name for name, (rule, _) in found.items() if rule == "whole"}
    assert {"all.npy", "wide.npy", "kind.npy", "new.npy", "order.npy"} <= whole


@settings(max_examples=60)
@given(st.data())
def test_pieces_give_the_new_file_whatever_was_cut_moved_and_written_over(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    kind, values = (
        data.draw(st.sampled_from(["<u1", "<u2", "<u4", "<u8"])),
        data.draw(st.sampled_from([2, 250])),
    )
    old = rng.integers(0, values, data.draw(st.integers(0, 3000))).astype(kind)
    parts = [old]
    for _ in range(data.draw(st.integers(0, 6))):
        start, stop = sorted(rng.integers(0, len(old) + 1, 2))
        parts += [old[start:stop], rng.integers(0, values, rng.integers(0, 200)).astype(kind)]
    rng.shuffle(parts)
    new = np.concatenate(parts)
    found = find_pieces(old, new)
    taken, done = [], 0
    for place, length in found:
        taken.append(new[done : done + length] if place < 0 else old[place : place + length])
        assert length > 0 and (place < 0 or place + length <= len(old))
        done += length
    assert np.array_equal(np.concatenate([old[:0], *taken]), new)
    if values == 250 and len(old) > 500:
        copied = sum(length for place, length in found if place >= 0)
        assert copied > 0.5 * (len(new) - 6 * 200) - 6 * 128, "old parts are found again"


def test_files_larger_than_a_block_are_made_of_many(tmp_path, rng, monkeypatch):
    for module, name, size in (
        (patch, "_BLOCK_ROWS", 7),
        (patch, "_COPY_BYTES", 100),
        (difference, "_BLOCK_BYTES", 64),
        (pieces, "_BLOCK", 256),
    ):
        monkeypatch.setattr(module, name, size)
    table = rng.integers(0, 256, (500, 6), dtype=np.uint8)
    changed = table.copy()
    changed[::50, 2] += 1
    lengths = rng.integers(0, 90, 300)
    text = rng.integers(0, 256, 4000, dtype=np.uint8)
    found = remade(
        tmp_path,
        {"table": table, "offsets": np.cumsum(lengths), "text": text},
        {
            "table": np.concatenate([changed, table[:5]]),
            "offsets": np.cumsum(np.where(np.arange(300) % 40 == 3, lengths + 5, lengths)),
            "text": np.concatenate([text[:1500], text[:9], text[1500:3000], text[3100:]]),
        },
    )
    assert {name: rule for name, (rule, _) in found.items()} == {
        "table.npy": "rows",
        "offsets.npy": "sums",
        "text.npy": "pieces",
    }
