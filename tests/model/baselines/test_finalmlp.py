"""FinalMLP: the bilinear join matches its formula; a gate without context is the same for all rows."""

import re

import torch

from recsys.model.baselines.finalmlp import FinalMlpConfig, StreamGate, TwoStreams


def streams(first_context_dim=3):
    torch.manual_seed(0)
    config = FinalMlpConfig(
        deep_dims=[6], second_deep_dims=[4], cross_width=4, cross_heads=2, dropout=0.0
    )
    return TwoStreams(config, in_dim=5, context_dims=(first_context_dim, 0))


def test_logit_is_linear_plus_the_product_of_every_head():
    model = streams()
    x, context, nothing = torch.randn(7, 5), torch.randn(7, 3), torch.zeros(7, 0)
    first = model.first(model.first_gate(context) * x)
    second = model.second(model.second_gate(nothing) * x)
    expected = model.linear(torch.cat([first, second], dim=1))[:, 0]
    for head in range(2):
        left, right = first[:, 3 * head : 3 * head + 3], second[:, 2 * head : 2 * head + 2]
        expected = expected + ((left @ model.bilinear[head]) * right).sum(dim=1)
    torch.testing.assert_close(model(x, context, nothing), expected)


def test_gate_without_context_starts_open_and_is_the_same_for_every_row():
    gate = StreamGate(context_dim=0, hidden_dim=4, out_dim=5)
    torch.testing.assert_close(gate(torch.zeros(7, 0)), torch.ones(1, 5))


def test_heads_that_do_not_divide_the_streams_are_refused():
    (problem,) = FinalMlpConfig(deep_dims=[6], second_deep_dims=[4], cross_heads=3).problems()
    assert re.search("^cross_heads=3: .* 6 and 4 ", problem)
