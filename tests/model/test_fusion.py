"""UMCM: weights are per user, sum to one, and a masked modality has none."""

import pytest
import torch

from recsys.model.fusion import UMCM_FORMS, AttentionUMCM, masked_softmax

B, M, H = 5, 3, 4


def build(form, seed=0):
    torch.manual_seed(seed)
    return UMCM_FORMS[form](num_modalities=M, dim=H)


def inputs(seed=1):
    generator = torch.Generator().manual_seed(seed)
    user_BH = torch.randn(B, H, generator=generator)
    modalities_BMH = torch.randn(B, M, H, generator=generator)
    return user_BH, modalities_BMH, torch.ones(B, M)


def test_attention_matches_a_hand_computed_row():
    user = torch.tensor([[1.0, 0.0]])
    modalities = torch.tensor([[[2.0, 5.0], [0.0, 7.0]]])
    fused, weights = AttentionUMCM(num_modalities=2, dim=2)(user, modalities, torch.ones(1, 2))
    first = torch.exp(torch.tensor(2.0)) / (torch.exp(torch.tensor(2.0)) + 1)
    torch.testing.assert_close(weights[0], torch.stack([first, 1 - first]))
    torch.testing.assert_close(fused[0], first * modalities[0, 0] + (1 - first) * modalities[0, 1])


def test_senet_matches_its_formula():
    umcm = build("senet")
    user, modalities, present = inputs()
    fused, weights = umcm(user, modalities, present)
    for row in range(B):
        squeezed = torch.stack([modalities[row, k].mean() for k in range(M)])
        hidden = torch.relu(umcm.squeeze(squeezed)) * user[row]
        a = torch.softmax(umcm.excite(hidden), dim=0)
        torch.testing.assert_close(weights[row], a)
        expected = sum(a[k] * modalities[row, k] for k in range(M)) / M
        torch.testing.assert_close(fused[row], expected)


@pytest.mark.parametrize("form", sorted(UMCM_FORMS))
def test_weights_sum_to_one_and_masked_modality_has_weight_zero(form):
    user, modalities, present = inputs()
    present[0, 1] = 0
    present[2] = torch.tensor([1.0, 0.0, 0.0])
    _, weights = build(form)(user, modalities, present)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(B))
    assert weights[0, 1] == 0
    assert weights[2].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("form", sorted(UMCM_FORMS))
def test_masked_modality_does_not_change_the_fused_vector(form):
    user, modalities, present = inputs()
    present[:, 1] = 0
    other = modalities.clone()
    other[:, 1] = 1e3
    umcm = build(form)
    torch.testing.assert_close(umcm(user, modalities, present)[0], umcm(user, other, present)[0])


@pytest.mark.parametrize("form", sorted(set(UMCM_FORMS) - {"global", "concat"}))
def test_row_depends_on_its_own_user_and_on_no_other(form):
    umcm = build(form)
    user, modalities, present = inputs()
    fused, weights = umcm(user, modalities, present)
    permutation = torch.tensor([1, 2, 3, 4, 0])
    fused_permuted, weights_permuted = umcm(user[permutation], modalities, present)
    assert not torch.allclose(weights, weights_permuted)
    assert not torch.allclose(fused, fused_permuted)
    # Another user in row 3 changes row 3 and leaves the others bit-equal.
    changed = user.clone()
    changed[3] += 1
    fused_changed, weights_changed = umcm(changed, modalities, present)
    others = [0, 1, 2, 4]
    assert torch.equal(fused_changed[others], fused[others])
    assert torch.equal(weights_changed[others], weights[others])
    assert not torch.allclose(weights_changed[3], weights[3])


def test_row_without_any_modality_gets_zero_weights():
    weights = masked_softmax(torch.randn(1, 3), torch.zeros(1, 3))
    assert weights.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("form", ["attention", "mixture"])
def test_dropped_weights_of_the_attention_are_no_part_of_the_fused_vector(form):
    torch.manual_seed(0)
    umcm = UMCM_FORMS[form](num_modalities=M, dim=H, dropout=0.5)
    attention = umcm if form == "attention" else umcm.experts[0]
    user, modalities, present = inputs()
    whole, weights = attention.eval()(user, modalities, present)
    fused, said = attention.train()(user, modalities, present)
    # What is kept is doubled, so a fused vector is a sum of some 2 a_k m_k.
    parts_BMH = 2 * weights[:, :, None] * modalities
    for row in range(B):
        sums = [
            sum((parts_BMH[row, k] for k in range(M) if mask >> k & 1), torch.zeros(H))
            for mask in range(2**M)
        ]
        assert any(torch.allclose(fused[row], one, atol=1e-6) for one in sums)
    assert not torch.allclose(fused, whole)
    torch.testing.assert_close(said, weights)
