"""Vocabularies end where the numbers of rows end: more ids are refused by the key that can be changed."""

import pytest

from recsys.data.prepare import growth
from recsys.data.prepare.engine import opened_engine
from recsys.data.prepare.growth import KnownIds, grow_vocabulary
from recsys.data.prepare.numbering import number_ids
from recsys.data.prepare.vocab import build_vocabulary
from recsys.errors import UserError


@pytest.fixture
def engine(tmp_path):
    with opened_engine(tmp_path / "work", "100MB", 1) as opened:
        yield opened


def ids(first, last):
    return f"SELECT 'id ' || range AS id, 1::BIGINT AS n FROM range({first}, {last})"


def test_more_ids_than_numbers_of_rows_are_refused(engine, monkeypatch):
    """With numbers of one byte, which end at 127."""
    monkeypatch.setattr(growth, "ROW_TYPE", "TINYINT")
    known = KnownIds(vocabulary=build_vocabulary(engine, "vocab", ids(0, 127), 1, "key"))
    assert engine.one(f"SELECT max(row) FROM {known.vocabulary}") == (127,)
    with pytest.raises(
        UserError, match=r"^features.x.min_count: 128 ids reach it, and a table has"
    ):
        build_vocabulary(engine, "vocab", ids(0, 128), 1, "features.x.min_count")
    with pytest.raises(UserError, match=r"^interactions.item_min_count: 130 ids reach it"):
        number_ids(engine, ids(0, 9), "item", min_count=1, listed=f"SELECT id FROM ({ids(0, 130)})")
    grown, _ = grow_vocabulary(engine, known, ids(100, 127), min_count=1, key="key")
    assert engine.count(grown) == 127
    with pytest.raises(UserError, match=r"^interactions.user_min_count: 129 ids reach it"):
        grow_vocabulary(
            engine, known, ids(100, 129), min_count=1, key="interactions.user_min_count"
        )


def test_numbers_of_rows_are_of_four_bytes(engine):
    kinds = engine.rows(f"DESCRIBE {build_vocabulary(engine, 'vocab', ids(0, 3), 1, 'key')}")
    assert {kind[0]: kind[1] for kind in kinds}["row"] == growth.ROW_TYPE
    assert growth.MOST_IDS == 2**31 - 1
