"""Graphs of a bundle, loaded from their files."""

import pytest
import torch
from torch import nn

from recsys.bundle.dense import LEAST_ROWS, DenseHalf
from recsys.files import DamagedFileError
from tests.bundle.test_graph import Outputs

ROWS, IN, OUT = 3, 4, 2


def write(path, module):
    shapes = ({0: torch.export.Dim("rows", min=LEAST_ROWS)},)
    inputs = (torch.ones(ROWS, IN),)
    program = torch.export.export(Outputs(module).eval(), inputs, dynamic_shapes=shapes)
    torch.export.save(program, path)


def test_a_graph_that_is_written_anew_is_loaded_anew(tmp_path):
    x = torch.ones(ROWS, IN)
    for layer in (nn.Linear(IN, OUT), nn.Linear(IN, OUT)):
        write(tmp_path / "user.pt2", layer)
        (found,) = DenseHalf(tmp_path).user(x)
        torch.testing.assert_close(found, layer(x).detach())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_is_refused_by_its_name(tmp_path, value):
    layer = nn.Linear(IN, OUT)
    nn.init.constant_(layer.bias, value)
    write(tmp_path / "user.pt2", layer)
    with pytest.raises(DamagedFileError, match=r"user\.pt2: .*inner\.bias"):
        DenseHalf(tmp_path).load(("user",))
