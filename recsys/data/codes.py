"""Categorical codes: a column of texts as numbers, whatever the texts amount to.

Called by segments and by whoever reads predictions.parquet. Arrow's plain strings count their bytes
in 32 bits, so that an array of more than 2 GiB cannot be: columns stay in pieces, or get 64 bits.
Shapes: N rows.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def codes_of(texts: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[str]]:
    """Return the code of every text [N], -1 for null, and the distinct texts by code.

    Codes are given in the order of first appearance.
    """
    encoded = texts.cast(pa.large_string()).dictionary_encode().unify_dictionaries()
    codes = [
        pc.fill_null(piece.indices, -1).to_numpy(zero_copy_only=False) for piece in encoded.chunks
    ]
    known = encoded.chunk(0).dictionary.to_pylist() if encoded.num_chunks else []
    return np.concatenate([np.zeros(0, np.int64), *codes]).astype(np.int64), known
