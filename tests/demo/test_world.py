"""The drawn world: the same bytes every time, labels from the stated formula, truth kept apart."""

import json
import shutil
from dataclasses import asdict

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from recsys.demo.exposure import circle, draw_audience, draw_exposures, logits
from recsys.demo.style import HANDS
from recsys.demo.words import LANGUAGES, TERMS, text_pairs
from recsys.demo.world import WorldConfig, draw_world, drawn_already, oracle_of
from recsys.files import sha256_of

SMALL = WorldConfig(num_items=60, num_users=40, num_exposures=500, num_captions=50)


def draw(folder, config=SMALL, processes=1):
    return draw_world(config, folder, processes=processes, say=lambda text: None)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    draw(folder)
    return folder


def digests(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): sha256_of(p) for p in files}


@pytest.mark.slow
def test_drawn_again_by_two_processes_every_byte_is_the_same(world, tmp_path):
    draw(tmp_path, processes=2)
    first = digests(world)
    assert first == digests(tmp_path) and len(first) == 60 + 4 + 5


def test_another_seed_draws_another_world(world, tmp_path):
    draw(tmp_path, WorldConfig(**{**vars(SMALL), "seed": 1}))
    ours, theirs = digests(world), digests(tmp_path)
    assert ours["raw/images/i00000.png"] != theirs["raw/images/i00000.png"]


def test_pictures_have_the_stated_size_and_are_not_flat(world):
    for path in sorted((world / "raw" / "images").iterdir())[:12]:
        with Image.open(path) as picture:
            assert picture.size == (96, 96) and picture.mode == "RGB"
            assert np.asarray(picture).std() > 10


def test_truth_is_nowhere_in_the_raw_files(world):
    for path in (world / "raw").glob("*.parquet"):
        names = set(pq.read_schema(path).names)
        assert not names & {"probability", "theme"} and not any("sensitivity" in n for n in names)
    items = pq.read_table(world / "raw" / "items.parquet").to_pylist()
    assert items[0]["artist"] in {hand.name for hand in HANDS}


def test_probabilities_are_the_formula_recomputed_term_by_term():
    rng = np.random.default_rng(0)
    audience = draw_audience(30, 4.0, 0.8, rng)
    positions = {name: circle(50, rng) for name in ("semantic", "style", "text")}
    log = draw_exposures(audience, positions, num_exposures=200, bias=-1.0, rng=rng)
    for row in range(0, 200, 17):
        user, item = log.user[row], log.item[row]
        total = -1.0 + audience.bias[user]
        for k, name in enumerate(("semantic", "style", "text")):
            taste, place = audience.tastes[name][user], positions[name][item]
            total += audience.sensitivities[user, k] * (taste[0] * place[0] + taste[1] * place[1])
        assert log.probability[row] == pytest.approx(1 / (1 + np.exp(-total)))
        assert logits(audience, positions, log.user, log.item, -1.0)[row] == pytest.approx(total)


def test_labels_follow_their_probabilities_and_nobody_sees_an_item_twice():
    rng = np.random.default_rng(1)
    audience = draw_audience(300, 4.0, 0.8, rng)
    positions = {name: circle(400, rng) for name in ("semantic", "style", "text")}
    log = draw_exposures(audience, positions, num_exposures=20_000, bias=-2.0, rng=rng)
    for low in np.arange(0, 1, 0.2):
        inside = (log.probability >= low) & (log.probability < low + 0.2)
        expected = log.probability[inside].mean()
        error = 4 * np.sqrt(expected * (1 - expected) / inside.sum())
        assert abs(log.label[inside].mean() - expected) < error
    assert len(set(zip(log.user.tolist(), log.item.tolist(), strict=True))) == 20_000
    assert (np.diff(log.timestamp) >= 0).all()


def test_sensitivities_differ_between_users():
    audience = draw_audience(500, 4.0, 0.8, np.random.default_rng(2))
    np.testing.assert_allclose(audience.sensitivities.sum(axis=1), 4.0)
    assert audience.sensitivities.std(axis=0).min() > 0.8


def test_every_term_has_three_names_and_pairs_have_three_perspectives():
    names = [name for word in TERMS.values() for name in word.names]
    assert all(len(word.names) == len(LANGUAGES) for word in TERMS.values())
    assert len(set(names)) == len(names)
    pairs = text_pairs(np.random.default_rng(0), 100)
    assert {p.perspective for p in pairs} == {"multilingual", "relation", "explanation"}
    assert all(p.anchor and p.positive and p.anchor != p.positive for p in pairs)
    assert {p.language for p in pairs} == set(LANGUAGES)


def test_captions_name_their_terms_and_single_terms_belong_to_nothing():
    names = {name for word in TERMS.values() for name in word.names}
    pairs = text_pairs(np.random.default_rng(0), 300)
    captions = [p for p in pairs if p.entity]
    assert len(captions) > 100
    for pair in captions:
        assert set(pair.entity.split(" + ")) <= set(TERMS) and " + " in pair.entity
        assert pair.anchor not in names
    assert all(p.anchor in names for p in pairs if not p.entity)


def test_other_settings_are_refused_and_the_same_are_recognised(world):
    assert drawn_already(SMALL, world)
    with pytest.raises(ValueError, match="a world drawn with other settings .*overwrite=true"):
        drawn_already(WorldConfig(), world)


def test_a_world_of_an_earlier_version_lacks_keys_at_their_defaults(world, tmp_path):
    shutil.copytree(world / "truth", tmp_path / "truth")
    (tmp_path / "raw").mkdir()
    file = tmp_path / "truth" / "world.json"
    content = json.loads(file.read_text())
    key = next(k for k, v in asdict(WorldConfig()).items() if asdict(SMALL)[k] == v)
    del content["settings"][key]
    file.write_text(json.dumps(content))
    assert drawn_already(SMALL, tmp_path)
    other = next(k for k, v in asdict(WorldConfig()).items() if asdict(SMALL)[k] != v)
    del content["settings"][other]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="a world drawn with other settings"):
        drawn_already(SMALL, tmp_path)


def test_too_small_a_world_is_refused(tmp_path):
    with pytest.raises(ValueError, match="world.num_items=3: expected 50 or more"):
        draw(tmp_path, WorldConfig(num_items=3))


def test_the_job_draws_once_and_says_where_to_look(tmp_path, job):
    sizes = ["world.num_items=50", "world.num_users=20", "world.num_exposures=200"]
    done = job("demo", f"workspace={tmp_path}", "processes=1", *sizes)
    assert done.returncode == 0 and "contact_sheet.png" in done.stdout
    again = job("demo", f"workspace={tmp_path}", *sizes)
    assert again.returncode == 0 and "drawn already" in again.stdout
    other = job("demo", f"workspace={tmp_path}", "world.num_users=30", *sizes[::2])
    assert other.returncode == 1 and "overwrite=true" in other.stderr
    world = json.loads((tmp_path / "truth" / "world.json").read_text())
    assert 0.5 < world["oracle_auc"] < 1 and "logit" in world["formula"]


def test_the_oracle_drawn_again_gives_the_probabilities_behind_the_log(world):
    oracle = oracle_of(world)
    log = pq.read_table(world / "raw" / "interactions.parquet", columns=["user_id", "item_id"])
    users = [oracle.user_ids.index(id) for id in log["user_id"].to_pylist()]
    items = [oracle.item_ids.index(id) for id in log["item_id"].to_pylist()]
    logit = (oracle.users[users] * oracle.items[items]).sum(axis=1)
    stored = pq.read_table(world / "truth" / "probabilities.parquet")["probability"].to_numpy()
    np.testing.assert_allclose(1 / (1 + np.exp(-logit)), stored, rtol=1e-12)


def test_a_workspace_without_a_world_has_no_oracle(tmp_path):
    assert oracle_of(tmp_path) is None
