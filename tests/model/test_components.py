"""Principal components of modality vectors: leading axes in one scale, fitted ahead of training."""

import numpy as np
import torch

from recsys.model.components import PrincipalComponents, principal_map
from recsys.run.components import SAMPLE_ROWS, fit_components


def drawn(num_rows=400, width=12):
    """Vectors [N, E] of few axes and some noise, mean zero, and three rows of zeros."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(num_rows, 3)) @ rng.normal(size=(3, width))
    vectors = vectors + 0.1 * rng.normal(size=(num_rows, width))
    vectors -= vectors.mean(axis=0)
    vectors[:3] = 0
    return torch.from_numpy(vectors).float()


class Table:
    """A feature table that notes what is read of it."""

    def __init__(self, vectors_NE, repeats=1):
        self.vectors, self.dim = vectors_NE.numpy().astype(np.float16), vectors_NE.shape[1]
        self.num_rows = repeats * len(self.vectors)
        self.read_rows = []

    def read(self, start, stop):
        assert 0 <= start < stop <= self.num_rows
        self.read_rows.append((start, stop))
        return self.vectors[np.arange(start, stop) % len(self.vectors)]


def test_the_map_is_of_the_leading_axes_in_one_scale():
    vectors = drawn()
    components = vectors @ principal_map(vectors, 3)
    _, spread, axes = np.linalg.svd(vectors[3:].numpy(), full_matrices=False)
    expected = np.abs(vectors.numpy() @ axes[:3].T)
    expected /= np.sqrt((spread[:3] ** 2).mean() / (len(vectors) - 3))
    np.testing.assert_allclose(components.abs(), expected, rtol=1e-3, atol=1e-4)
    assert torch.allclose(components[3:].square().mean(), torch.tensor(1.0), atol=1e-4)


def test_without_a_vector_the_map_is_zero_and_a_narrow_modality_keeps_its_width():
    assert torch.equal(principal_map(torch.zeros(5, 4), 2), torch.zeros(4, 2))
    components = PrincipalComponents(modality_dims={"text": 12, "style": 2}, num_components=3)
    assert components.dims == {"text": 3, "style": 2}
    assert principal_map(torch.eye(2), 3).shape == (2, 2)


def test_maps_that_are_not_fitted_give_nan_and_fitted_ones_are_in_the_checkpoint():
    vectors = drawn()
    components = PrincipalComponents(modality_dims={"text": 12}, num_components=3)
    items = {"text": (vectors, torch.ones(len(vectors)))}
    assert components.items(items)["text"][0].isnan().all()
    fit_components(torch.nn.Sequential(components), {"text": Table(vectors)})
    expected = vectors.half().float() @ principal_map(vectors.half().float(), 3)
    torch.testing.assert_close(components.items(items)["text"][0], expected, rtol=1e-2, atol=1e-2)
    assert not components.state_dict()["map_text"].isnan().any()
    # An interest vector is a mean of vectors: the map of a mean is the mean of the maps.
    (mean, _), *_ = components.interests(["text"], [(vectors.mean(0)[None], torch.ones(1))])
    of_items = components.items(items)["text"][0].mean(0)
    torch.testing.assert_close(mean[0], of_items, rtol=1e-3, atol=1e-4)


def test_a_large_table_is_read_in_blocks_from_its_beginning_to_its_end():
    table = Table(drawn(), repeats=1 + 2 * SAMPLE_ROWS // 400)
    components = PrincipalComponents(modality_dims={"text": 12}, num_components=3)
    fit_components(torch.nn.Sequential(components), {"text": table})
    assert sum(stop - start for start, stop in table.read_rows) == SAMPLE_ROWS
    assert table.read_rows[0][0] == 0 and table.read_rows[-1][1] == table.num_rows
    whole = principal_map(drawn().half().float(), 3)
    torch.testing.assert_close(
        components.get_buffer("map_text").abs(), whole.abs(), rtol=0.1, atol=0.05
    )
