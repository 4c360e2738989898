"""Vocabularies of a bundle: exact, whatever hashes collide; the unknown has no id."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.bundle import vocabulary
from recsys.bundle.vocabulary import Vocabulary, write_vocabulary


def written(folder, ids, block_rows=3):
    rows = np.arange(1, len(ids) + 1)
    blocks = [
        (rows[start : start + block_rows], ids[start : start + block_rows])
        for start in range(0, len(ids), block_rows)
    ]
    write_vocabulary(folder, "t", num_rows=len(ids) + 1, blocks=blocks)
    return Vocabulary(folder, "t")


@given(ids=st.lists(st.text(min_size=1), unique=True))
def test_every_id_has_its_row_and_every_row_its_id(tmp_path_factory, ids):
    found = written(tmp_path_factory.mktemp("vocab"), ids)
    assert dict(found) == {text: row for row, text in enumerate(ids, start=1)}
    assert [found.id_of(row) for row in range(len(ids) + 1)] == ["", *ids]
    assert len(found) == len(ids)


@pytest.mark.parametrize("few", [0, 100])
def test_ids_of_equal_hash_are_told_apart_by_their_text(tmp_path, monkeypatch, few):
    monkeypatch.setattr(
        vocabulary, "hashes_of", lambda ids: np.array([len(text) for text in ids], np.uint64)
    )
    monkeypatch.setattr(vocabulary, "_FEW", few)
    found = written(tmp_path, ["aa", "bb", "c", "dd"])
    assert found.rows_of(["dd", "bb", "aa", "c", "ee", "f", ""]).tolist() == [4, 2, 1, 3, 0, 0, 0]


@given(ids=st.lists(st.text(), unique=True), others=st.lists(st.text(max_size=2)))
def test_many_ids_are_found_at_once_as_they_are_one_by_one(tmp_path_factory, ids, others):
    found = written(tmp_path_factory.mktemp("vocab"), [text for text in ids if text])
    found.add("added")
    asked = [*others, *ids, "added"] * 3
    one_by_one = [int(found.rows_of([text])[0]) for text in asked]
    assert found.rows_of(asked).tolist() == one_by_one


def test_added_ids_follow_those_of_the_files_once_each(tmp_path):
    found = written(tmp_path, ["a", "b"])
    assert [found.add(text) for text in ("x", "b", "y", "x")] == [3, 2, 4, 3]
    assert (found["x"], found.id_of(4), list(found)) == (3, "y", ["a", "b", "x", "y"])


def test_ids_are_found_by_prefix_in_blocks_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary, "_BLOCK_ROWS", 3)
    ids = [f"{letter}{n}" for n in range(5) for letter in ("a", "ab", "b", "\u00e9")]
    found = written(tmp_path, ids)
    found.add("abc")
    for prefix in ("", "a", "ab", "ab3", "b", "\u00e9", "\u00e94", "c", "ab33"):
        expected = [id for id in [*ids, "abc"] if id.startswith(prefix)]
        assert found.starting_with(prefix, 100) == expected
        assert found.starting_with(prefix, 2) == expected[:2]


def test_ids_of_a_request_are_sought_as_prepare_wrote_them(tmp_path):
    asked = ["7", "12.5", "7.0", "8", "x"]
    assert written(tmp_path, ["7.0", "12.5", "x"]).rows_of(asked).tolist() == [0, 2, 1, 0, 3]
    for kind, expected in (("float64", [1, 2, 1, 0, 3]), ("text", [0, 2, 1, 0, 3])):
        found = Vocabulary(tmp_path, "t", kind)
        assert found.rows_of(asked).tolist() == expected
        assert [found.get(text, 0) for text in asked] == expected
        assert [text in found for text in asked] == [row > 0 for row in expected]
