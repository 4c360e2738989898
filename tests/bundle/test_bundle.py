"""Bundles opened: what is in one, what is refused, and which libraries it needs."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from recsys.bundle.bundle import Bundle
from recsys.bundle.scorer import BundleScorer, Profile
from recsys.errors import UserError

SERVE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torchrec", "fbgemm_gpu", "duckdb"):
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
import torch
from recsys.bundle.bundle import Bundle
from recsys.bundle.scorer import BundleScorer, Profile

bundle = Bundle.open(sys.argv[1])
scorer = BundleScorer(bundle)
users = scorer.encode([Profile(user_row=bundle.user_row("u00001"))])
logits, weights = scorer.score(users, torch.zeros(9, dtype=torch.int64), torch.arange(9))
assert torch.isfinite(logits).all() and weights.shape == (9, 4)
"""


def test_a_bundle_is_served_without_torchrec_fbgemm_and_duckdb(tiny_bundle, repository):
    done = subprocess.run(
        [sys.executable, "-c", SERVE, str(tiny_bundle.parent / "current")],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def copy(tiny_bundle, tmp_path):
    """A copy of the tiny bundle, to be damaged."""
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def test_a_file_that_is_missing_or_cut_short_is_named(copy):
    file = copy / "items" / "vectors.npy"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"items/vectors\.npy: .*bytes.*launch/export\.py"):
        Bundle.open(copy)
    file.unlink()
    with pytest.raises(UserError, match=r"items/vectors\.npy: missing"):
        Bundle.open(copy)


def test_a_changed_byte_is_found_by_the_checksum(copy):
    file = copy / "items" / "vectors.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert Bundle.open(copy).folder == copy
    with pytest.raises(UserError, match=r"items/vectors\.npy.*sha256"):
        Bundle.open(copy, verify="sha256")


def test_a_bundle_of_another_schema_is_refused_with_both_versions(copy):
    file = copy / "bundle.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 7}))
    with pytest.raises(UserError, match=r"bundle\.json: .*version 7, expected 1"):
        Bundle.open(copy)


def test_current_names_a_folder_beside_it_and_nothing_else(tiny_bundle, copy):
    assert Bundle.open(tiny_bundle.parent / "current").version == tiny_bundle.name
    current = copy.parent / "current"
    for name in ("../elsewhere", ".hidden", "/etc"):
        current.write_text(name)
        with pytest.raises(UserError, match="expected a folder beside it"):
            Bundle.open(current)
    current.write_text("not-there")
    with pytest.raises(UserError, match=r"not-there/bundle\.json: no bundle here"):
        Bundle.open(current)


def test_ids_and_cards_are_those_of_the_prepared_data(tiny_bundle):
    bundle = Bundle.open(tiny_bundle)
    rows = np.arange(1, bundle.spec.manifest.num_item_rows)
    ids = [bundle.item_id(row) for row in rows]
    assert (bundle.item_rows([*ids, "nobody"]) == [*rows, 0]).all()
    assert all(bundle.catalogue.card(row)["item_id"] == bundle.item_id(row) for row in rows)
    assert bundle.item_id(0) == ""
    assert bundle.catalogue.picture(1)[:2] == b"\xff\xd8"
    assert bundle.catalogue.picture(0) is None


def test_a_dial_of_one_changes_nothing_and_zero_removes_the_modality(tiny_bundle):
    bundle = Bundle.open(tiny_bundle)
    scorer = BundleScorer(bundle)
    users = scorer.encode([Profile(user_row=3), Profile(history=np.array([4, 5]))])
    user_of_row, rows = torch.tensor([0, 0, 1, 1]), torch.tensor([7, 8, 7, 8])
    plain = scorer.score(users, user_of_row, rows)
    dials = torch.ones(2, 4)
    for one, other in zip(plain, scorer.score(users, user_of_row, rows, dials), strict=True):
        torch.testing.assert_close(one, other)
    dials[1, scorer.dial_names.index("style")] = 0
    logits, weights = scorer.score(users, user_of_row, rows, dials)
    torch.testing.assert_close(logits[:2], plain[0][:2])
    assert (logits[2:] != plain[0][2:]).all()
    assert (weights[2:, scorer.dial_names.index("style")] == 0).all()


def test_the_direct_term_is_an_inner_product_with_the_retrieval_vectors(tiny_bundle):
    scorer = BundleScorer(Bundle.open(tiny_bundle))
    items, users = scorer.bundle.items, scorer.encode([Profile(user_row=3), Profile(user_row=0)])
    direct = scorer.retrieval(users) @ items.take("retrieval", torch.arange(20)).T
    u, q = users.vectors[:2]
    m, p, present = (
        items.take(part, torch.arange(20)) for part in ("vectors", "products", "present")
    )
    v = dict(torch.export.load(scorer.bundle.folder / "dense/score.pt2").named_parameters())
    (match,) = [value for name, value in v.items() if name.endswith("match.weight")]
    by_hand = torch.einsum("uh,nmh,nm,m->un", u, m, present, match[0])
    by_hand += torch.einsum("ud,nmd,nm->un", q, p, present) + items.take(
        "first_order", torch.arange(20)
    )
    torch.testing.assert_close(direct, by_hand.detach(), rtol=1e-4, atol=1e-5)


def test_a_temporary_row_that_does_not_fit_leaves_no_row_of_any_modality(tiny_bundle):
    bundle = Bundle.open(tiny_bundle)
    items = bundle.items
    vectors = {name: items.vectors[name].fixed[5].numpy() for name in items.modalities}
    last = items.modalities[-1]
    wide = vectors | {last: np.ones(len(vectors[last]) + 1, np.float16)}
    assert len(items.modalities) > 1
    with pytest.raises(RuntimeError, match="size"), items.temporary([vectors, wide]):
        raise AssertionError("a vector of another width was taken")
    every = [*items.vectors.values(), items.has_vector]
    assert {len(rows) for rows in every} == {len(items)}
    with items.temporary([vectors]) as rows:
        for name in items.modalities:
            found, has = items.modality(name, torch.tensor([5, rows[0]]))
            assert torch.equal(found[0], found[1]) and has[1]
    assert {len(rows) for rows in every} == {len(items)}


def test_an_added_item_with_the_vectors_and_features_of_a_known_one_scores_like_an_unknown_id(
    tiny_bundle,
):
    bundle = Bundle.open(tiny_bundle)
    scorer = BundleScorer(bundle)
    items = bundle.items
    vectors = {name: items.vectors[name].fixed[5].numpy() for name in items.modalities}
    added = scorer.encode_item(vectors)
    row = bundle.add_item("new", added, {"title": "New"}, b"picture")
    assert row == len(items) - 1 == bundle.item_rows(["new"])[0]
    assert (bundle.item_id(row), bundle.catalogue.card(row)["title"]) == ("new", "New")
    assert bundle.add_item("new", added, {}) == row
    users = scorer.encode([Profile(user_row=3), Profile(history=np.array([row]))])
    assert users.vectors[0].shape[0] == 2
    zeros = torch.zeros(2, dtype=torch.int64)
    (unlike, new), weights = scorer.score(users, zeros, torch.tensor([5, row]))
    assert new != unlike
    assert weights.isfinite().all()
    parts = items.take("vectors", torch.tensor([0, row, 5]))
    torch.testing.assert_close(parts[1, 0], parts[0, 0])
    torch.testing.assert_close(parts[1, 1:], parts[2, 1:])
