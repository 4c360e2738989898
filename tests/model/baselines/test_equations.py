"""Each baseline's own part against its paper's equation, spelled out in loops."""

import dataclasses
import itertools

import pytest
import torch

from recsys.model.baselines.autoint import FieldAttention
from recsys.model.baselines.fibinet import Bilinear
from recsys.model.baselines.fm import second_order
from recsys.model.baselines.inputs import Concatenation, Fields, FirstOrder
from recsys.model.baselines.masknet import MaskBlock
from recsys.model.baselines.xdeepfm import CompressedInteraction
from recsys.model.build import BASELINES, build_ranker
from recsys.model.dense_columns import DenseColumns
from recsys.model.inputs import DenseInputs, InputSizes
from recsys.model.umair_fps import SecondOrder
from recsys.run.config import read_run_config
from tests.tiny_world import manifest

B, F, D = 4, 5, 3


@pytest.fixture
def fields():
    torch.manual_seed(0)
    return torch.randn(B, F, D)


def pairs():
    return itertools.combinations(range(F), 2)


def test_second_order_term_is_the_sum_over_pairs(fields):
    expected = sum((fields[:, i] * fields[:, j]).sum(dim=1) for i, j in pairs())
    torch.testing.assert_close(second_order(fields), expected)


def test_compressed_interaction_matches_its_sums(fields):
    cin = CompressedInteraction(num_fields=F, num_layers=2, num_maps=2)
    before, pooled = fields, []
    for layer in cin.layers:
        weights = layer.weight.unflatten(1, (-1, F))  # [maps, maps before, F]
        maps = torch.zeros(B, 2, D)
        for h, i, j in itertools.product(range(2), range(before.shape[1]), range(F)):
            maps[:, h] += weights[h, i, j] * before[:, i] * fields[:, j]
        pooled.append(maps.sum(dim=2))
        before = maps
    torch.testing.assert_close(cin(fields), torch.cat(pooled, dim=1))


def test_bilinear_products_match_their_pairs(fields):
    bilinear = Bilinear(num_fields=F, field_dim=D)
    expected = [(fields[:, i] @ bilinear.weight[i]) * fields[:, j] for i, j in pairs()]
    torch.testing.assert_close(bilinear(fields), torch.cat(expected, dim=1))


def test_field_attention_matches_its_softmax(fields):
    layer = FieldAttention(in_dim=D, num_heads=2, head_dim=2)
    expected = torch.zeros(B, F, 4)
    for head in range(2):
        part = slice(2 * head, 2 * head + 2)
        q, k, v = (m(fields)[..., part] for m in (layer.query, layer.key, layer.value))
        for m in range(F):
            scores = torch.stack([(q[:, m] * k[:, n]).sum(dim=1) for n in range(F)], dim=1)
            a = torch.softmax(scores, dim=1)
            expected[:, m, part] = sum(a[:, n, None] * v[:, n] for n in range(F))
    expected = torch.relu(expected + layer.residual(fields))
    torch.testing.assert_close(layer(fields), expected)


def test_mask_block_matches_its_formula(fields):
    block = MaskBlock(in_dim=F * D, out_dim=6, reduction=2)
    plain, normalised = fields.flatten(1), torch.nn.functional.layer_norm(fields, [D]).flatten(1)
    first, _, second = block.mask.layers
    mask = torch.relu(plain @ first.weight.T + first.bias) @ second.weight.T + second.bias
    hidden = (mask * normalised) @ block.hidden.weight.T
    expected = torch.relu(torch.nn.functional.layer_norm(hidden, [6]))
    torch.testing.assert_close(block(plain, normalised), expected)


def dense_inputs():
    torch.manual_seed(1)
    present = torch.tensor([1.0, 0.0, 1.0, 1.0])
    return DenseInputs(
        user_BX=torch.randn(B, 2 * D),
        item_BY=torch.randn(B, D),
        modalities={"text": (torch.randn(B, 7), present)},
        interests=[(torch.randn(B, 7), present.flip(0))],
        first_order_B=torch.zeros(B),
        similarity_BS=torch.zeros(B, 0),
    )


SIZES = InputSizes(
    user_dim=2 * D,
    item_dim=D,
    modality_dims={"text": 7},
    interests=["text"],
    num_features=3,
    field_dim=D,
    vector_dim=D,
    similarity_dim=0,
)


@pytest.mark.parametrize("name", BASELINES)
def test_principal_components_are_read_as_narrower_vectors_would_be(name):
    settings, dense = BASELINES[name]
    inputs = dense_inputs()
    axes = torch.linspace(-1, 1, 7 * 2).reshape(7, 2)
    reduced = dense(settings(modality_components=2), SIZES).eval()
    reduced.components.fit({"text": axes})
    for parameter in reduced.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # first-order weights start at zero
    narrow = dense(settings(), dataclasses.replace(SIZES, modality_dims={"text": 2})).eval()
    assert not narrow.load_state_dict(reduced.state_dict(), strict=False).missing_keys
    narrower = dataclasses.replace(
        inputs,
        modalities={
            name: (vector @ axes, has) for name, (vector, has) in inputs.modalities.items()
        },
        interests=[(vector @ axes, has) for vector, has in inputs.interests],
    )
    logits, weights = reduced(inputs)
    torch.testing.assert_close(logits, narrow(narrower)[0])
    assert logits.std() > 0 and weights.shape == (B, 0)


def test_fields_hold_features_modalities_and_interests_in_order():
    inputs = dense_inputs()
    fields = Fields(SIZES)
    out = fields(inputs)
    assert out.shape == (B, fields.num_fields, D) == (B, 5, D)
    torch.testing.assert_close(out[:, 2], inputs.item_BY)
    torch.testing.assert_close(out[0, 3], fields.linear["text"](inputs.modalities["text"][0][0]))
    assert out[1, 3].tolist() == [0] * D, "a masked modality is zero"
    assert out[2, 4].tolist() == [0] * D, "an empty history is zero"


def test_masked_modality_changes_neither_form_of_the_inputs():
    inputs = dense_inputs()
    forms = [
        Fields(SIZES),
        Concatenation(SIZES, shared_projection=True, projection_dim=4),
        FirstOrder(SIZES),
    ]
    torch.nn.init.normal_(forms[2].items["text"].weight)
    before = [form(inputs) for form in forms]
    inputs.modalities["text"][0][1] = 100.0
    for form, expected in zip(forms, before, strict=True):
        torch.testing.assert_close(form(inputs), expected)
    inputs.modalities["text"][0][0] = 100.0
    assert all(not torch.equal(f(inputs), e) for f, e in zip(forms, before, strict=True))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"name": "magic"}, "model.name='magic': expected one of umair_fps, autoint, concat"),
        ({"name": "lr", "first_order": False}, "model.first_order=false: model.name=lr"),
        ({"name": "finalmlp", "cross_heads": 3}, "divides .* 16 and 16"),
        ({"name": "xdeepfm", "cross_layers": 0}, "model.cross_layers=0: expected 1 or more"),
        ({"name": "concat", "deep_dims": []}, "model.deep_dims=.*at least one layer"),
    ],
)
def test_setting_that_a_ranker_cannot_have_is_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        config = read_run_config({"model": {"deep_dims": [16], "second_deep_dims": [], **settings}})
        build_ranker(manifest=manifest(), config=config.model, modality_dims={}, seed=0)


def test_tables_that_differ_in_width_are_refused_by_a_ranker_that_multiplies_their_vectors():
    config = read_run_config({"model": {"name": "fm"}, "tables": {"tags": {"width": 8}}})
    with pytest.raises(ValueError, match="tables.<table>.width: .* theirs differ in width"):
        build_ranker(
            manifest=manifest(),
            config=config.model,
            modality_dims={},
            seed=0,
            forms=config.tables,
        )


def with_numbers():
    """The inputs with a number of the user and two of the item, one of them missing in row 1."""
    inputs = dense_inputs()
    numbers_B3 = torch.randn(B, 3)
    numbers_B3[1, 2] = torch.nan
    user = DenseColumns(["age"], [0])(numbers_B3)
    item = DenseColumns(["votes", "price"], [1, 2])(numbers_B3)
    inputs.user_BX = torch.cat([inputs.user_BX, user], dim=1)
    inputs.item_BY = torch.cat([inputs.item_BY, item], dim=1)
    sizes = dataclasses.replace(
        SIZES, user_dim=2 * D + 2, item_dim=D + 4, user_dense=1, item_dense=2
    )
    return inputs, sizes, numbers_B3


def test_a_number_is_a_field_of_its_value_times_a_vector_and_a_missing_one_a_vector_of_its_own():
    inputs, sizes, numbers_B3 = with_numbers()
    fields = Fields(sizes)
    out = fields(inputs)
    assert out.shape == (B, fields.num_fields, D) == (B, 8, D)
    torch.testing.assert_close(out[:, :5], _without_numbers(fields, inputs))
    user, item = fields.user_dense.weight, fields.item_dense.weight
    torch.testing.assert_close(out[:, 5], numbers_B3[:, :1] * user[0, 0])
    torch.testing.assert_close(out[0, 7], numbers_B3[0, 2] * item[1, 0])
    torch.testing.assert_close(out[1, 7], item[1, 1])


def _without_numbers(fields, inputs):
    """Fields of the same weights, of inputs without numbers."""
    plain = Fields(SIZES)
    plain.linear.load_state_dict(fields.linear.state_dict())
    bare = dataclasses.replace(
        inputs, user_BX=inputs.user_BX[:, : 2 * D], item_BY=inputs.item_BY[:, :D]
    )
    return plain(bare)


def test_a_number_adds_its_weight_times_its_value_to_the_first_order():
    inputs, sizes, numbers_B3 = with_numbers()
    plain, first_order = FirstOrder(SIZES), FirstOrder(sizes)
    torch.nn.init.normal_(first_order.user_dense.weight)
    torch.nn.init.normal_(first_order.item_dense.weight)
    user, item = first_order.user_dense.weight[0], first_order.item_dense.weight[0]
    expected = plain(inputs) + numbers_B3[:, 0] * user[0] + numbers_B3[:, 1] * item[0]
    expected[[0, 2, 3]] += numbers_B3[[0, 2, 3], 2] * item[2]
    expected[1] += item[3]
    torch.testing.assert_close(first_order(inputs), expected)


def test_second_order_crosses_numbers_of_both_sides():
    inputs, sizes, numbers_B3 = with_numbers()
    numbers_B3 = numbers_B3.nan_to_num(nan=0.0)
    term = SecondOrder(dataclasses.replace(sizes, modality_dims={}))
    user, item = term.user_dense.weight, term.item_dense.weight
    q = inputs.user_BX[:, : 2 * D].unflatten(1, (2, D)).sum(1) + numbers_B3[:, :1] * user[0, 0]
    p = inputs.item_BY[:, :D] + numbers_B3[:, 1:2] * item[0, 0] + numbers_B3[:, 2:] * item[1, 0]
    p[1] += item[1, 1]
    found = term(term.user(inputs.user_BX), term.item(inputs.item_BY, {}), torch.ones(B, 1))
    torch.testing.assert_close(found, (q * p).sum(dim=1))
