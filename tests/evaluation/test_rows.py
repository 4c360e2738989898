"""predictions.parquet: parts of ranks are one table, as a file of an earlier version is."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.evaluation.rows import IdsOfRows, read_lines, scored_rows, write_predictions
from recsys.runtime.ranks import ALONE
from tests.evaluation.parts_worker import NUM_ROWS, predictions, write
from tests.processes import worker_result

WORKER = Path(__file__).with_name("parts_worker.py")
REMEDY = "run launch/evaluate.py again"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with `whole` of two ranks, `alone` of one, `earlier`; and what its replacement raised."""
    folder = tmp_path_factory.mktemp("parts")
    for side in ("user", "item"):
        ids = [None, *(f"{side}{row}" for row in range(1, 7))]
        table = pa.table({f"{side}_id": pa.array(ids, pa.string())})
        pq.write_table(table, folder / f"{side}s.parquet", row_group_size=3)
    for name in ("whole", "earlier", "alone"):
        (folder / name).mkdir()
    (folder / "earlier" / "metrics.json").write_text("earlier")
    raised = worker_result(WORKER, folder, ranks=2)
    write(folder / "alone", folder, ALONE)
    return folder, raised


def test_parts_of_two_ranks_are_the_rows_of_one_process_in_their_order(written):
    folder, _ = written
    parts = sorted(path.name for path in (folder / "whole").iterdir())
    assert parts == ["part-00000-of-00002.parquet", "part-00001-of-00002.parquet"]
    table = read_lines(folder / "whole", REMEDY)
    assert table.equals(read_lines(folder / "alone", REMEDY))
    assert table.equals(pq.read_table(folder / "whole")), "as pyarrow reads the folder"
    row = table.column("row_id").to_numpy()
    assert row.tolist() == list(range(NUM_ROWS))
    users = [f"user{r % 7}" if r % 7 else None for r in range(NUM_ROWS)]
    assert table.column("user_id").to_pylist() == users
    assert table.column("unknown_user").to_pylist() == [
        0 if r % 7 else r % 11 + 1 for r in range(NUM_ROWS)
    ]
    assert table.column("weight_b").to_pylist() == pytest.approx((1 - row / 1000).tolist())


def test_a_full_disk_of_one_rank_ends_all_with_its_file_and_leaves_the_earlier_evaluation(written):
    folder, raised = written
    assert raised[0] == raised[1]
    assert "part-00001-of-00002.parquet: cannot be written, the disk is full" in raised[0]
    assert [path.name for path in (folder / "earlier").iterdir()] == ["metrics.json"]
    assert (folder / "earlier" / "metrics.json").read_text() == "earlier"
    assert not list(folder.glob(".earlier*")), "nothing half-written is left"


def test_a_part_without_rows_has_the_columns_of_the_others(written, tmp_path):
    folder, _ = written
    found, unknown = predictions(0, 1)
    write_predictions(
        tmp_path,
        found.take(np.arange(0)),
        modality_names=["a", "b"],
        prepared=folder,
        unknown_users_N=unknown[:0],
    )
    table = read_lines(tmp_path, REMEDY)
    assert table.num_rows == 0 and table.schema.equals(read_lines(folder / "alone", REMEDY).schema)


def test_a_file_of_an_earlier_version_is_read_like_a_folder(written, tmp_path):
    folder, _ = written
    table = read_lines(folder / "whole", REMEDY)
    pq.write_table(table, tmp_path / "predictions.parquet")
    assert read_lines(tmp_path / "predictions.parquet", REMEDY).equals(table)


def test_a_missing_part_is_named_with_what_makes_it_anew(written, tmp_path):
    folder, _ = written
    for name in ("part-00000-of-00002.parquet", "part-00001-of-00002.parquet"):
        target = tmp_path / name
        target.mkdir()
        other = next(path for path in (folder / "whole").iterdir() if path.name != name)
        (target / other.name).write_bytes(other.read_bytes())
        with pytest.raises(ValueError, match=f"{name}: missing; {REMEDY}"):
            read_lines(target, REMEDY)


def test_units_do_not_depend_on_the_order_of_the_parts(written):
    folder, _ = written
    first, second = (pq.ParquetFile(p).read() for p in sorted((folder / "whole").iterdir()))
    found = scored_rows(pa.concat_tables([first, second]))
    turned = scored_rows(pa.concat_tables([second, first]))
    np.testing.assert_array_equal(found.unit_N, turned.unit_N)
    np.testing.assert_array_equal(found.score_N, turned.score_N)
    known = found.user_row_N[np.arange(NUM_ROWS) % 7 != 0]
    assert set(known.tolist()) == {1, 2, 3, 4, 5, 6}
    assert len(set(found.unit_N.tolist())) == 6 + len({r % 11 for r in range(0, NUM_ROWS, 7)})


def test_ids_of_rows_may_be_more_than_two_gibibytes(written, tmp_path):
    """Arrow counts the bytes of plain strings in 32 bits: those of all users go beyond."""
    folder, _ = written
    ids = IdsOfRows.read(folder / "users.parquet", "user_id", np.array([5, 0, 2, 5]))
    assert ids.ids_K.type == pa.large_string()
    assert ids.of(np.array([2, 0])).type == pa.string(), "those of a piece of rows do not"
    assert ids.ids_K.to_pylist() == [None, "user2", "user5"]
