"""One product of items and interests against the maps one by one, in value and gradient."""

import pytest
import torch
import torch.nn.functional as F

from recsys.model.projections import Projections, project
from tests.model.test_linear import assert_same, tensors

B, E, H = 7, 5, 4


def given(dtype):
    inputs = tensors((H, E), (H,), (B, E), (B, E), (B, E), dtype=dtype)
    present_B = (torch.arange(B) % 3 > 0).to(dtype)
    return inputs, present_B


def plain(weight, bias, item, interests):
    outputs = [torch.relu(F.linear(item, weight, bias))]
    outputs += [F.linear(vector, weight, bias) * present[:, None] for vector, present in interests]
    return tuple(outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_interests", [0, 1, 2])
def test_one_product_equals_the_maps_one_by_one(dtype, num_interests):
    inputs, present_B = given(dtype)
    inputs = inputs[: 3 + num_interests]
    weight, bias, item, *vectors = inputs
    interests = [(vector, present_B) for vector in vectors]
    mine, theirs = (torch.cat(form(weight, bias, item, interests)) for form in (project, plain))
    assert_same(mine, theirs, inputs)


@pytest.mark.parametrize("interests", [["text", "style", "text"], []])
def test_both_halves_equal_those_of_user_and_items(interests):
    projections = Projections(
        modality_dims={"style": 3, "text": E}, interests=interests, dim=H, shared_projection=True
    )
    user_BX, style, text = tensors((B, 2), (B, 3), (B, E))
    present_B = (torch.arange(B) % 2).float()
    vectors = {"style": (style, present_B), "text": (text, present_B)}
    tastes = [(vectors[name][0] + place, present_B) for place, name in enumerate(interests)]
    user, items = projections.both(user_BX, tastes, vectors)
    torch.testing.assert_close(user, projections.user(user_BX, tastes))
    for (mine, _), (theirs, _) in zip(items, projections.items(vectors), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_autocast_gives_gradients_of_the_weights_precision():
    (weight, bias, *vectors), present_B = given(torch.float32)
    interests = [(vectors[1], present_B)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = project(weight, bias, vectors[0], interests)
    assert all(output.dtype == torch.bfloat16 for output in outputs)
    expected = torch.cat(plain(weight, bias, vectors[0], interests))
    torch.testing.assert_close(torch.cat(outputs).float(), expected, rtol=0.05, atol=0.05)
    torch.cat(outputs).sum().backward()
    assert weight.grad.dtype == bias.grad.dtype == vectors[0].grad.dtype == torch.float32


def test_batch_without_rows_has_gradients_of_zero():
    (weight, bias, *vectors), present_B = given(torch.float32)
    outputs = project(weight, bias, vectors[0][:0], [(v[:0], present_B[:0]) for v in vectors[1:]])
    assert [output.shape for output in outputs] == [(0, H)] * 3
    torch.cat(outputs).sum().backward()
    assert not weight.grad.any() and not bias.grad.any()
