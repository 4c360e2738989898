"""Projections: by hand, against scikit-learn, and on data where the right answer is obvious."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from embedding.image.neighbour_accuracy import nearest_neighbour_accuracy
from embedding.image.projection import (
    PROJECTIONS,
    ContentContrastive,
    Contrastive,
    ContrastiveEnsemble,
    Discriminant,
    Principal,
    Projection,
    build_projection,
)
from embedding.image.triplets import Sample, Triplets, supervised_contrastive
from recsys.errors import UserError


def test_identity_puts_statistics_side_by_side():
    parts = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])]
    assert Projection()(parts).tolist() == [[1.0, 2.0, 3.0]]


def test_principal_components_span_what_scikit_learn_finds(rng):
    mixed = rng.normal(size=(200, 4)) @ rng.normal(size=(4, 30)) * 3 + rng.normal(size=(200, 30))
    values = torch.tensor(mixed, dtype=torch.float32)
    projection = Principal(4)
    projection.fit_reduction([values])
    ours = projection([values]).numpy()
    theirs = PCA(4).fit_transform(values.numpy())
    # Equal up to signs and one scale.
    ours, theirs = np.abs(ours / np.linalg.norm(ours)), np.abs(theirs / np.linalg.norm(theirs))
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


def sample(reduced_NVD, artists=None, contents=None):
    count = len(reduced_NVD)
    own = torch.arange(count)
    return Sample(
        reduced_NVD=reduced_NVD,
        artist_N=own if artists is None else torch.tensor(artists),
        content_N=own if contents is None else torch.tensor(contents),
    )


def hands_and_contents(rng, *, hand, content, noise=0.0, clutter=0.0, num_contents=60, num_hands=5):
    """Vectors [N, 24]: hand (with noise) and content (with clutter), in turned subspaces."""
    hands = np.tile(np.arange(num_hands), num_contents)
    contents = np.repeat(np.arange(num_contents), num_hands)
    values = 0.05 * rng.normal(size=(len(hands), 24))
    values[:, :4] += hand * rng.normal(size=(num_hands, 4))[hands]
    values[:, :4] += noise * rng.normal(size=(len(hands), 4))
    values[:, 4:] += clutter * rng.normal(size=(len(hands), 20))
    values[:, 4:] += content * rng.normal(size=(num_contents, 20))[contents]
    turn, _ = np.linalg.qr(rng.normal(size=(24, 24)))
    return torch.tensor(values @ turn, dtype=torch.float32), hands, contents


def test_discriminant_finds_the_quiet_content_and_whitens_what_varies_within_it(rng):
    values, hands, contents = hands_and_contents(rng, hand=1, content=1, noise=8)
    names, apart = [str(c) for c in contents], [str(h) for h in hands]
    before = nearest_neighbour_accuracy(
        values.numpy() - values.numpy().mean(axis=0), names, apart
    ).share
    projection = Discriminant()
    projection.fit_reduction([values])
    projection.fit(sample(values[:, None], hands.tolist(), contents.tolist()), seed=0)
    after = nearest_neighbour_accuracy(projection([values]).numpy(), names, apart).share
    assert before < 0.6 and after > 0.95
    # What remains within a content varies less than what lies between contents.
    vectors = projection([values])
    means = torch.stack([vectors[contents == c].mean(dim=0) for c in range(60)])
    within = (vectors - means[contents]).square().mean()
    assert within < 0.5 * means.square().mean()


def test_discriminant_without_contents_learns_from_views(rng):
    base = rng.normal(size=(50, 1, 6))
    noise = rng.normal(size=(50, 8, 6)) * np.array([5, 5, 5, 0.1, 0.1, 0.1])
    views = torch.tensor(base + noise, dtype=torch.float32)
    projection = Discriminant()
    projection.fit(sample(views), seed=0)
    # A step along what varies between views moves a vector less than one along what does not.
    steps = projection.head(torch.eye(6)) - projection.head(torch.zeros(6))
    assert steps[:3].norm(dim=1).max() < 0.5 * steps[3:].norm(dim=1).min()


def test_supervised_contrastive_loss_by_hand():
    vectors = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0], [0.0, 1.0]])
    labels = torch.tensor([0, 0, 1, 2])  # the last two have no other of their kind
    # Rows 0 and 1: similarity 1 to each other, 0 to both others; temperature 0.5.
    expected = -np.log(np.exp(2) / (np.exp(2) + 2))
    loss = supervised_contrastive(vectors, labels, temperature=0.5)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(supervised_contrastive(vectors, torch.arange(4), temperature=0.5)) == 0


def test_an_offset_of_log_w_counts_a_negative_w_times():
    vectors = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    labels = torch.tensor([0, 0, 1])
    offset = torch.zeros(3, 3)
    offset[0, 2] = offset[2, 0] = np.log(4)
    # Row 0 meets its negative four times, row 1 once; both are at similarity 0.
    expected = -np.mean([np.log(np.exp(2) / (np.exp(2) + count)) for count in (4, 1)])
    loss = supervised_contrastive(vectors, labels, temperature=0.5, offset_BB=offset)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_triplets_hold_the_hand_and_the_content_apart(rng):
    _, hands, contents = hands_and_contents(rng, hand=1, content=1, num_contents=7, num_hands=3)
    drawn = Triplets(sample(torch.zeros(21, 2, 1), hands.tolist(), contents.tolist()), seed=0)
    for _ in range(20):
        seeds = torch.randint(0, 21, (6,), generator=torch.Generator().manual_seed(1))
        by_hand = drawn.by_artist.member(seeds, drawn.generator)
        by_content = drawn.by_content.member(seeds, drawn.generator)
        assert (hands[by_hand] == hands[seeds]).all() and (by_hand != seeds).all()
        assert (contents[by_content] == contents[seeds]).all() and (by_content != seeds).all()
        rows, views = drawn.draw(6)
        assert len(set(zip(rows.tolist(), views.tolist(), strict=True))) == len(rows) <= 18


def test_an_unknown_hand_is_met_again_in_another_view():
    drawn = Triplets(sample(torch.zeros(4, 2, 1)), seed=0)
    rows, views = drawn.draw(16)
    seen = set(zip(rows.tolist(), views.tolist(), strict=True))
    assert {(row, 1 - view) for row, view in seen} == seen


def test_contrastive_head_finds_the_hand_behind_a_loud_content(rng):
    values, hands, contents = hands_and_contents(
        rng, hand=1.5, content=1, clutter=2, num_contents=400
    )
    learned, unseen = contents < 340, contents >= 340
    projection = Contrastive(16, steps=200)
    projection.fit_reduction([values[learned]])
    reduced = projection.reduce([values])
    projection.fit(
        sample(reduced[learned][:, None], hands[learned].tolist(), contents[learned].tolist()),
        seed=0,
    )
    vectors = projection([values[unseen]]).numpy()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    hand, content = ([str(v) for v in part[unseen]] for part in (hands, contents))
    raw = values[unseen].numpy() - values.numpy().mean(axis=0)
    assert nearest_neighbour_accuracy(raw, hand, content).share < 0.8
    assert nearest_neighbour_accuracy(vectors, hand, content).share > 0.95
    assert nearest_neighbour_accuracy(vectors, content, hand).share < 0.3


def test_an_ensemble_of_heads_keeps_the_mean_of_its_networks_cosines(rng):
    values, hands, contents = hands_and_contents(
        rng, hand=1.0, content=1, clutter=2, num_contents=200
    )
    learned, unseen = contents < 140, contents >= 140
    ensemble = ContrastiveEnsemble(16, steps=60, networks=3)
    ensemble.fit_reduction([values[learned]])
    reduced = ensemble.reduce([values])
    fitted = sample(reduced[learned][:, None], hands[learned].tolist(), contents[learned].tolist())
    ensemble.fit(fitted, seed=0)
    single = [member.head(reduced[unseen]) for member in ensemble.networks]
    vectors = ensemble([values[unseen]])
    assert vectors.shape == (len(vectors), 16)
    mean_cosine = torch.stack([v @ v.T for v in single]).mean(dim=0)
    torch.testing.assert_close(vectors @ vectors.T, mean_cosine, atol=0.1, rtol=0)
    hand, content = ([str(v) for v in part[unseen]] for part in (hands, contents))
    alone = [nearest_neighbour_accuracy(v.numpy(), hand, content).share for v in single]
    together = nearest_neighbour_accuracy(vectors.numpy(), hand, content).share
    assert len(set(alone)) > 1 and together > np.mean(alone) + 0.01


def test_contrastive_semantics_know_the_content_and_less_of_the_hand_than_the_discriminant(rng):
    values, hands, contents = hands_and_contents(rng, hand=1, content=0.5, num_contents=400)
    # Every hand draws each of eight groups of contents in a manner of its own.
    manners = rng.normal(size=(8, 5, 24)) @ np.diag([1.0] * 4 + [0.0] * 20)
    turn, _ = np.linalg.qr(rng.normal(size=(24, 24)))
    manner = 4 * manners[contents % 8, hands] @ turn
    values = values + torch.tensor(manner, dtype=torch.float32)
    learned, unseen = contents < 340, contents >= 340
    fitted = sample(values[learned][:, None], hands[learned].tolist(), contents[learned].tolist())
    hand, content = ([str(v) for v in part[unseen]] for part in (hands, contents))
    found = {}
    for projection in (Discriminant(), ContentContrastive(16, steps=150)):
        projection.fit(fitted, seed=0)
        vectors = projection.head(values[unseen]).numpy()
        found[type(projection)] = (
            nearest_neighbour_accuracy(vectors, content, hand).share,
            nearest_neighbour_accuracy(vectors, hand, content).share,
        )
    assert found[ContentContrastive][0] >= found[Discriminant][0] - 0.02 > 0.9
    assert found[ContentContrastive][1] < found[Discriminant][1] - 0.3


def test_contrastive_semantics_without_contents_or_crops_say_what_is_missing():
    with pytest.raises(UserError, match=r"items\.content, or encoder\.image\.fit_views=2"):
        ContentContrastive(4, steps=5).fit(sample(torch.zeros(6, 1, 3)), seed=0)


@pytest.mark.parametrize(
    ("kind", "networks"), [*((kind, 1) for kind in PROJECTIONS), ("contrastive", 2)]
)
def test_restored_projection_gives_the_same_vectors(rng, kind, networks):
    values = torch.tensor(rng.normal(size=(60, 2, 9)), dtype=torch.float32)
    projections = [build_projection(kind, dim=4, steps=5, networks=networks) for _ in range(2)]
    projections[0].fit_reduction([values[:, 0]])
    reduced = torch.stack([projections[0].reduce([values[:, v]]) for v in range(2)], dim=1)
    projections[0].fit(sample(reduced, artists=[i % 4 for i in range(60)]), seed=0)
    projections[1].restore(projections[0].state_dict())
    assert torch.equal(projections[0]([values[:, 0]]), projections[1]([values[:, 0]]))
