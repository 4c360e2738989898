"""Categorical codes of texts, also of more bytes than one Arrow string array can count."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.codes import codes_of

TEXTS = st.lists(st.one_of(st.none(), st.sampled_from(["", "a", "\u5341", "b"])), max_size=6)


@given(st.lists(TEXTS, max_size=4))
def test_equal_texts_have_equal_codes_however_the_column_is_cut(pieces):
    codes, texts = codes_of(pa.chunked_array(pieces, type=pa.string()))
    flat = [text for piece in pieces for text in piece]
    assert [None if code < 0 else texts[code] for code in codes.tolist()] == flat
    assert texts == list(dict.fromkeys(text for text in flat if text is not None))


def test_more_than_two_gibibytes_of_texts_have_codes():
    """One piece of 64 MiB in memory, 33 times: what `combine_chunks` cannot put together."""
    piece = pa.array([letter * (1 << 24) for letter in "abca"])
    column = pa.chunked_array([piece] * 33)
    assert column.nbytes > 1 << 31
    with pytest.raises((pa.ArrowInvalid, AttributeError)):
        column.combine_chunks().dictionary_encode().indices  # noqa: B018
    codes, texts = codes_of(column)
    assert codes.tolist() == [0, 1, 2, 0] * 33
    assert [text[0] for text in texts] == ["a", "b", "c"]
