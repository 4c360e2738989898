"""Batch norm of the global batch: a single row, hooks and names of its tensors."""

import torch
from torch import nn

from recsys.runtime.batch_norm import GlobalBatchNorm, synchronise


def test_a_batch_of_one_row_is_normalised_to_zero_and_leaves_the_statistics(one_process):
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    synchronise(network)
    norm = network[1]
    norm.running_mean.fill_(5)
    norm.bias.data.fill_(0.5)
    out = network(torch.ones(1, 3))
    out.sum().backward()
    assert out.tolist() == [[0.5, 0.5]]
    assert norm.running_mean.tolist() == [5, 5] and norm.running_var.tolist() == [1, 1]
    assert network[0].weight.grad.tolist() == [[0, 0, 0]] * 2
    assert norm.bias.grad.tolist() == [1, 1] and norm.weight.grad.tolist() == [0, 0]


def test_it_takes_the_place_of_every_batch_norm_with_the_same_tensors(one_process):
    network = nn.Sequential(nn.Sequential(nn.BatchNorm2d(4)), nn.BatchNorm1d(4)).eval()
    seen = []
    network[0][0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    before = {name: id(tensor) for name, tensor in network.state_dict(keep_vars=True).items()}
    synchronise(network)
    assert isinstance(network[0][0], GlobalBatchNorm) and isinstance(network[1], GlobalBatchNorm)
    after = {name: id(tensor) for name, tensor in network.state_dict(keep_vars=True).items()}
    assert after == before
    network[0](torch.ones(2, 4, 3, 3))
    assert seen == [(2, 4, 3, 3)] and not network[1].training
