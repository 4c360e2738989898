"""A run of two ranks, whose tables lie in pieces, is exported by one process."""

import pytest

from recsys.bundle.bundle import Bundle
from tests.serving.tiny import export, train


@pytest.mark.slow
def test_tables_cut_over_two_ranks_are_put_together(tiny_workspace, tiny_bundle, job):
    cut = ["tables.item_id.sharding=[row_wise]", "tables.user_id.sharding=[column_wise]"]
    train(tiny_workspace, job, "cut", *cut, ranks=2)
    settings = ["precision=fp32", "thumbnail_pixels=0", "encoders=false", "map=false"]
    bundle = Bundle.open(export(tiny_workspace, job, "cut", *settings), verify="sha256")
    (tiny_workspace / "bundles" / "current").write_text(tiny_bundle.name)
    assert bundle.spec.measured["greatest_difference"] <= 1e-5
    assert bundle.catalogue.picture(1) is None
    assert not (bundle.folder / "map").exists()
