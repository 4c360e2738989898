"""A bundle scores as the run that was exported: every ranker, form and kind of data."""

import csv

import numpy as np
import pytest
import torch

from recsys.bundle.bundle import Bundle
from recsys.bundle.lookup import Column
from recsys.bundle.scorer import BundleScorer
from recsys.bundle.spec import TWO_SIDED
from recsys.data.dataset import read_columns
from recsys.errors import UserError
from recsys.export.export import ExportConfig, export, open_source
from recsys.export.reference import Reference, columns_of, sample_batches
from recsys.model.build import RANKERS
from recsys.model.fusion import UMCM_FORMS
from recsys.model.umair_fps import UmairFps
from recsys.run.folder import read_run_folder
from recsys.schema import read_manifest
from recsys.serving.explain import Explainer
from recsys.serving.recommender import Recommender
from tests.export.untrained import make_workspace, write_run
from tests.slow_cases import slow_but

FORMS = {
    **{form: {"umcm": form} for form in UMCM_FORMS},
    "all terms": {
        "second_order": True,
        "interest_shrinkage": 2.0,
        "similarity_tiers": 5,
        "similarity_histories": ["history", "history_negative"],
    },
    "as in the paper": {"match": False, "shared_projection": False, "first_order": False},
    "batch norm": {"batch_norm": True, "second_order": True, "match": False},
    "without interests": {"interest_modalities": [], "modalities": ["style"]},
    "ids": {"modalities": [], "features": ["user_id", "item_id"]},
}


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    """Data of every kind of feature, pictures and texts."""
    return make_workspace(tmp_path_factory.mktemp("varied") / "w", negative_length=4)


def exported(workspace, name, **more):
    """Export a run, and return its bundle and the probabilities of the test split by row id."""
    manifest = read_manifest(workspace)
    config = read_run_folder(workspace / "runs" / name)
    source = open_source(workspace, config, manifest)
    settings = {"precision": "fp32", "thumbnail_pixels": 0, **more}
    bundle = Bundle.open(export(source, ExportConfig(**settings), threads=1), verify="sha256")
    scorer = BundleScorer(bundle)
    row_ids, scores = [], []
    for batch in sample_batches(
        workspace / "prepared", manifest, source.ranker, split="test", num_rows=10**6
    ):
        columns = columns_of(batch, manifest, source.ranker.inputs.dense_names)
        users = scorer.encode_columns(columns, batch.num_real)
        rows = torch.arange(batch.num_real)
        logits, _ = scorer.score(users, rows, batch.item_row_B[: batch.num_real])
        row_ids.append(batch.row_id_B[: batch.num_real].numpy())
        scores.append(torch.sigmoid(logits.double()).numpy())
    return bundle, np.concatenate(scores)[np.argsort(np.concatenate(row_ids))]


def check(workspace, name, env, model, **sections):
    """Compare a run's bundle with the run's own scores, and return the bundle."""
    expected = write_run(workspace, name, env, model, **sections)
    bundle, found = exported(workspace, name)
    check_terms(workspace, name, bundle)
    assert len(found) == len(expected) == read_manifest(workspace).splits["test"].num_rows
    assert np.ptp(expected) > 0.02, "scores that differ"
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert bundle.spec.measured["greatest_difference"] <= 1e-5
    return bundle


def check_terms(workspace, name, bundle):
    """Hold the terms of explanations to what the layers of the run's own model give."""
    manifest = read_manifest(workspace)
    source = open_source(workspace, read_run_folder(workspace / "runs" / name), manifest)
    (batch,) = sample_batches(
        workspace / "prepared", manifest, source.ranker, split="test", num_rows=512
    )
    reference = Reference(source.ranker, manifest, source.stored, source.read_vectors)
    dense, given = source.ranker.dense, {}

    def keep(name):
        return lambda module, inputs, output: given.update({name: (inputs, output)})

    is_two_sided = isinstance(dense, UmairFps)
    dense.register_forward_hook(keep("dense"))
    for layer in ("logit", "match", "second_order") if is_two_sided else ():
        module = getattr(dense, layer)
        if module is not None:
            module.register_forward_hook(keep(layer))
    logits_B = reference.logits(batch)
    scorer, explainer = BundleScorer(bundle), Explainer(bundle, None, str)
    columns = columns_of(batch, manifest, reference.dense_names)
    for row in range(0, 60, 6):
        user = scorer.encode_columns({n: one_row(c, row) for n, c in columns.items()}, 1)
        item = int(batch.item_row_B[row])
        terms = explainer.terms(user, item, float(logits_B[row]), None)
        of_dense = float(given["dense"][1][0][row])
        expected = {"deep": float(given["logit"][1][row, 0]) if is_two_sided else of_dense}
        if "match" in given:
            (match_BM,), _ = given["match"]
            values = (match_BM[row] * dense.match.weight[0]).tolist()
            expected |= {f"match:{n}": v for n, v in zip(dense.modality_names, values, strict=True)}
        if "second_order" in given:
            expected["second_order"] = float(given["second_order"][1][row])
        if bundle.spec.first_order:
            expected["first_order"] = float(logits_B[row]) - of_dense
        if bundle.items.parts:
            assert terms == pytest.approx(expected, abs=2e-4)
        else:  # made with the request: one term
            assert terms == {"deep": pytest.approx(float(logits_B[row]))}
        assert sum(terms.values()) == pytest.approx(float(logits_B[row]), abs=1e-5)


def one_row(column, row):
    """The values of one row of a column."""
    values_V, lengths_B, weights_V = column
    if lengths_B is None:
        return Column(values_V[row : row + 1])
    start = int(lengths_B[:row].sum())
    part = slice(start, start + int(lengths_B[row]))
    weights = None if weights_V is None else weights_V[part]
    return Column(values_V[part], lengths_B[row : row + 1], weights)


@pytest.mark.parametrize("name", slow_but(RANKERS, "umair_fps", "dcn_v2"))
def test_bundle_of_every_ranker_scores_as_the_run(varied, one_process, name):
    bundle = check(varied, name, one_process, {"name": name})
    assert (bundle.spec.kind == TWO_SIDED) == (name == "umair_fps")


@pytest.mark.parametrize("form", slow_but(FORMS, "all terms"))
def test_bundle_of_every_form_of_umair_fps_scores_as_the_run(varied, one_process, form):
    check(
        varied, f"form-{form}".replace(" ", "-"), one_process, {"name": "umair_fps", **FORMS[form]}
    )


@pytest.mark.parametrize("name", slow_but(["umair_fps", "dcn_v2"], "umair_fps"))
def test_tables_with_a_fixed_capacity_are_looked_up_through_their_id_maps(
    varied, one_process, name
):
    """Users, items with their histories, and a list; most ids read row 0."""
    capacities = {"user_id": 5, "item_id": 11, "genres": 2}
    tables = {table: {"ids": {"capacity": number}} for table, number in capacities.items()}
    bundle = check(varied, f"capacity-{name}", one_process, {"name": name}, tables=tables)
    manifest = read_manifest(varied)
    for table, number in capacities.items():
        exported_table = bundle.tables[table]
        assert exported_table.values_ND.shape[0] == number + 1
        assert exported_table.num_rows == manifest.table(table).num_rows


@pytest.mark.parametrize("name", slow_but(["umair_fps", "dcn_v2"], "umair_fps"))
def test_context_on_the_item_side_is_read_with_the_request(tmp_path, one_process, name):
    workspace = make_workspace(tmp_path / "w", price_side="item")
    bundle = check(workspace, "run", one_process, {"name": name})
    assert bundle.spec.items_at_request
    assert not bundle.items.parts


@pytest.mark.parametrize("name", slow_but(["umair_fps", "fm"], "umair_fps"))
def test_users_histories_pictures_and_texts_may_be_absent(tmp_path, one_process, name):
    workspace = make_workspace(tmp_path / "w", has_contents=False, has_users=False)
    bundle = check(workspace, "run", one_process, {"name": name})
    assert bundle.spec.manifest.num_user_rows == 0
    assert not bundle.spec.widths.modalities


@pytest.mark.parametrize("name", slow_but(["umair_fps", "dcn_v2"], "umair_fps"))
def test_vectors_are_reduced_to_the_principal_components_of_the_run(varied, one_process, name):
    check(varied, f"components-{name}", one_process, {"name": name, "modality_components": 3})


@pytest.mark.slow
def test_tables_trained_in_half_precision_lose_nothing(varied, one_process):
    tables = {"item_id": {"precision": "fp16"}}
    bundle = check(varied, "half", one_process, {"name": "umair_fps"}, tables=tables)
    assert bundle.tables["item_id"].values_ND.dtype == torch.float16


@pytest.mark.slow
def test_a_run_trained_in_bf16_is_served_in_fp32(varied, one_process):
    write_run(varied, "bf16", one_process, {"name": "umair_fps", "dense_precision": "bf16"})
    bundle, _ = exported(varied, "bf16")
    assert bundle.spec.measured["greatest_difference"] <= 1e-5
    assert 1e-5 < bundle.spec.measured["difference_of_bf16"] < 0.1


@pytest.mark.parametrize(
    ("precision", "bound"), [pytest.param("fp16", 2e-3, marks=pytest.mark.slow), ("int8", 2e-2)]
)
def test_smaller_tables_score_nearly_the_same(varied, one_process, precision, bound):
    expected = write_run(varied, precision, one_process, {"name": "umair_fps"})
    bundle, found = exported(varied, precision, precision=precision)
    difference = np.abs(found - expected).max()
    assert 1e-6 < difference < bound
    assert bundle.spec.measured["greatest_difference"] == pytest.approx(difference)


def test_raw_values_of_requests_score_as_the_rows_they_are_of(varied, one_process):
    """Ids, lists, weights and numbers of the log's own rows, as a request gives them."""
    histories = ["history", "history_recent", "history_negative"]
    model = {"name": "dcn_v2", "exclude_features": histories}
    expected = write_run(varied, "raw", one_process, {**model, "interest_modalities": []})
    recommender = Recommender(exported(varied, "raw")[0])
    rows = read_columns(varied / "prepared", read_manifest(varied), "test", ["row_id"])
    row_ids = sorted(row for table in rows for row in table.column("row_id").to_pylist())
    with open(varied / "raw" / "log.csv", newline="") as stream:
        log = list(csv.DictReader(stream))
    for row_id, score in list(zip(row_ids, expected, strict=True))[:40]:
        row = log[row_id]
        features = {name: row[name] or None for name in ("device", "asked", "price", "wanted")}
        features["paid"] = float(row["price"]) if row["price"] else None
        answer = recommender.score(user=row["user"], items=[row["item"]], features=features)
        assert answer.items[0].score == pytest.approx(score, abs=1e-5)
    with pytest.raises(UserError, match="wanted: 't1:-2': expected a weight of 0 or more"):
        recommender.score(user="u1", items=["i1"], features={"wanted": "t2:1|t1:-2"})
    new = {"genres": "g1|g2", "moods": "t1=2 t3=0.5", "votes": 12}
    recommender.add_item("new", title="New", features=new)
    known = recommender.score(user="u1", items=["new", "i1"]).items
    assert 0 < known[0].score < 1 and known[0].score != known[1].score
