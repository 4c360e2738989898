"""Tables: widths FBGEMM can hold, names torch can hold."""

import pytest
from torchrec.modules.embedding_configs import DataType

from recsys.model.tables import build_tables, check_width
from recsys.schema import FeatureSpec, TableSpec
from recsys.sharding.tables import TableConfig


def build(name, dim=8, forms=None):
    feature = FeatureSpec(name=name, table=name, source="item", side="item", is_list=False)
    table = TableSpec(name=name, num_rows=3, kind="vocab")
    return build_tables(tables=[table], features=[feature], embedding_dim=dim, forms=forms or {})


def test_width_that_is_no_multiple_of_four_is_refused_with_a_better_one():
    with pytest.raises(ValueError, match="embedding_dim=10 for table 'artist': .* use 8"):
        build("artist", dim=10)
    with pytest.raises(ValueError, match="use 4"):
        check_width(0, "artist")
    with pytest.raises(ValueError, match="tables.artist.width=6 for table 'artist'"):
        build("artist", forms={"artist": TableConfig(width=6)})


def test_width_and_precision_of_a_table_of_its_own_are_taken():
    forms = {"artist": TableConfig(width=12, precision="fp16"), "other": TableConfig(width=4)}
    (table,) = build("artist", forms=forms).embedding_bag_configs()
    assert table.embedding_dim == 12 and table.data_type == DataType.FP16
    (table,) = build("artist").embedding_bag_configs()
    assert table.embedding_dim == 8 and table.data_type == DataType.FP32


@pytest.mark.parametrize("name", ["type", "items", "forward"])
def test_name_that_torch_keeps_is_refused_with_the_remedy(name):
    with pytest.raises(ValueError, match=f"feature '{name}': torch keeps this name for itself"):
        build(name)


def test_tables_wait_on_the_meta_device():
    tables = build("artist")
    assert tables.embedding_bag_configs()[0].num_embeddings == 3
    assert all(p.is_meta for p in tables.parameters())
