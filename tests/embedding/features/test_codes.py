"""Codes of vectors: the nearest codewords, bounded errors, and tables of them."""

import numpy as np
import pytest

from embedding.features.codebook_fit import fit_codebooks, fitted_codebooks
from embedding.features.codes import Codebooks, RowForm
from recsys.errors import UserError
from tests.feature_tables import write_table


def vectors(rng, num_rows=700, dim=12):
    """Vectors whose numbers have unequal variances and hang together."""
    made = rng.normal(size=(num_rows, dim)) * 0.7 ** np.arange(dim)
    made = (made @ np.linalg.qr(rng.normal(size=(dim, dim)))[0]).astype(np.float16)
    made[[0, 7]] = 0
    return made


def share_lost(given, books):
    known = given.any(axis=1)
    back = books.decode(books.encode(given)).astype(np.float64)
    assert not back[~known].any()
    return np.square(back - given)[known].sum() / np.square(given.astype(np.float64)).sum()


def test_every_part_is_the_number_of_its_nearest_codeword(rng):
    given = vectors(rng)
    books = fit_codebooks(given, bits=2)
    codes = books.encode(given)
    assert codes.shape == (700, 3) and books.codewords_SKD.shape == (3, 256, 4)
    parts = (given.astype(np.float32) @ books.basis_EZ).reshape(700, 3, 4)
    distances = np.square(parts[:, :, None] - books.codewords_SKD).sum(axis=-1)
    distances[:, :, 0] = np.inf  # of items without a vector
    chosen = np.take_along_axis(distances, codes[:, :, None].astype(int), axis=2)[..., 0]
    known = given.any(axis=1)
    np.testing.assert_allclose(chosen[known], distances.min(axis=2)[known], atol=1e-5)


def test_more_bits_lose_less_and_a_basis_of_even_parts_less_than_none(rng):
    given = vectors(rng, dim=32)
    two, four = (fit_codebooks(given, bits) for bits in (2, 4))
    assert share_lost(given, four) < share_lost(given, two) < 0.03
    plain = fit_codebooks(given, 2)
    plain = Codebooks(np.eye(32, dtype=np.float32), plain.codewords_SKD)
    assert share_lost(given, two) < share_lost(given, plain)


@pytest.mark.parametrize("dim", [1, 5, 12])
def test_codes_of_few_vectors_of_any_width_lose_nothing(rng, dim):
    given = vectors(rng, num_rows=100, dim=dim)
    for bits in (2, 4):
        books = fit_codebooks(given, bits)
        assert books.bits == bits and books.num_parts == -(-dim * bits // 8)
        np.testing.assert_allclose(books.decode(books.encode(given)), given, atol=4e-3)


def test_no_rows_are_coded_and_decoded_to_no_rows(rng):
    form = RowForm(dim=12, codebooks=fit_codebooks(vectors(rng), 2))
    coded = form.encode(vectors(rng)[:0])
    assert coded.shape == (0, 3) and form.decode(coded).shape == (0, 12)


def test_a_row_without_a_vector_has_zero_bytes_and_no_other_row_has(rng):
    given = vectors(rng)
    books = fit_codebooks(given, 2)
    codes = books.encode(given)
    for part in codes.T:
        assert np.flatnonzero(part == 0).tolist() == [0, 7]
    assert not books.decode(codes)[[0, 7]].any()


def test_a_table_without_any_vector_has_codes_of_zeros():
    given = np.zeros((9, 8), dtype=np.float16)
    books = fit_codebooks(given, 2)
    assert not books.encode(given).any() and not books.decode(books.encode(given)).any()


def test_a_vector_that_is_not_finite_is_refused(rng):
    form = RowForm(dim=12, codebooks=fit_codebooks(vectors(rng), 2))
    for number in (np.nan, 1e6):
        given = np.ones((3, 12), dtype=np.float32)
        given[1, 2] = number
        with pytest.raises(UserError, match="a vector of inf or nan"), np.errstate(over="ignore"):
            form.encode(given)


def test_a_table_of_codes_is_read_across_shards_in_an_eighth_of_the_bytes(tmp_path, rng):
    given = vectors(rng, dim=16)
    whole = write_table(tmp_path / "whole", given, shard_rows=128)
    coded = write_table(tmp_path / "coded", given, shard_rows=128, bits=2)
    coded.verify()
    books = fitted_codebooks(tmp_path / "whole", 2)
    assert books.digest == coded.manifest.codebooks
    for start, stop in ((0, 700), (3, 5), (100, 400)):
        expected = books.decode(books.encode(given[start:stop]))
        np.testing.assert_allclose(coded.read(start, stop), expected, atol=1e-3)
    np.testing.assert_array_equal(coded.has_vector(), whole.has_vector())
    files = {
        table.name: [table.folder / s.file for s in table.manifest.shards]
        for table in (whole, coded)
    }
    size = {name: sum(path.stat().st_size - 128 for path in paths) for name, paths in files.items()}
    assert size == {"whole": 700 * 32, "coded": 700 * 4}
    assert coded.manifest.identity != whole.manifest.identity


def test_codebooks_that_were_changed_are_refused(tmp_path, rng):
    table = write_table(tmp_path / "text", vectors(rng), bits=2)
    books = table.form.codebooks
    Codebooks(books.basis_EZ, 2 * books.codewords_SKD).write(table.folder)
    with pytest.raises(UserError, match="codebooks: changed since it was written"):
        type(table)(table.folder).verify()
    (table.folder / "codebooks" / "basis.npy").unlink()
    with pytest.raises(UserError, match=r"basis.npy: missing; run launch/embed.py"):
        type(table)(table.folder)
