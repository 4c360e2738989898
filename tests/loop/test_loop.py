"""The closed loop: its nights by their commands, days that go on after a kill, and what visitors got."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from recsys.demo.days import DaysConfig
from recsys.errors import UserError
from recsys.loop.arm import ArmRun, run_steps
from recsys.loop.config import ARMS, LoopConfig
from recsys.loop.loop import Progress, run_loop, seed_folder
from recsys.loop.night import Jobs, Step, night_steps, start_steps
from recsys.loop.result import loop_result
from recsys.loop.visits import Visit, read_visits, visits_file, visits_writer
from recsys.report.loop_page import write_loop
from tests.forked_jobs import run_forked
from tests.small_runs import SMALL as SMALL_MODEL

SMALL = DaysConfig(num_days=2, num_items=60, items_per_day=10, num_users=20, users_per_day=3,
                   num_exposures=300, num_captions=20, picture_size=32)  # fmt: skip
RULES = ["popularity", "random", "oracle"]


@pytest.fixture
def config(tmp_path):
    return LoopConfig(workspace=str(tmp_path), world=SMALL, arms=RULES, parallel=1)


@pytest.fixture
def no_start(monkeypatch):
    """Rules read the log before day 1 and need neither a model nor a bundle."""
    monkeypatch.setattr("recsys.loop.loop.start_steps", lambda *rest: [])


def flat(steps):
    return [(step.name, *step.arguments) for step in steps]


def test_a_night_without_training_has_no_job(config, tmp_path):
    assert night_steps("none", config, tmp_path, 1, 0) == []
    assert night_steps("items", config, tmp_path, 1, 0) == []


def test_a_night_anew_runs_these_commands():
    config = LoopConfig(workspace="W", embed=["e=1"], train=["t=2"], export=["x=3"])
    data = ("data=loop", "workspace=W")
    assert flat(night_steps("anew", config, Path("W"), 3, 7)) == [
        ("events", "workspace=W", "since='2025-01-03T00:00:00+00:00'",
         "until='2025-01-04T00:00:00+00:00'", "out=W/raw/interactions/day-003.parquet",
         "position_bias=0.5"),
        ("prepare", *data, "data.split.strategy=random", "data.history.scope=past"),
        ("embed", *data, "e=1"),
        ("train", *data, "t=2", "run.name=day-003", "run.seed=7"),
        ("export", *data, "x=3", "run.name=day-003"),
    ]  # fmt: skip
    assert [step.name for step in start_steps(config, Path("W"), 7)] == [
        "prepare", "embed", "train", "export"
    ]  # fmt: skip


def test_a_refreshing_night_appends_starts_warm_and_exports_the_change():
    config = LoopConfig(
        workspace="W", embed=["e=1"], train=["t=2"], refresh=["r=4"], export=["x=3"]
    )
    data = ("data=loop", "workspace=W")
    split = ("data.split.strategy=random", "data.history.scope=past")
    events, *steps = flat(night_steps("refresh", config, Path("W"), 3, 7))
    assert events == flat(night_steps("anew", config, Path("W"), 3, 7))[0]
    assert steps == [
        ("prepare", *data, *split, "append=true"),
        ("embed", *data, "e=1"),
        ("train", *data, "t=2", "r=4", "init=day-002", "run.name=day-003",
         "run.seed=7"),
        ("export", *data, "x=3", "run.name=day-003", "base=W/bundles/current"),
    ]  # fmt: skip


def test_servers_of_exploring_arms_are_told_how(config, tmp_path, no_start):
    (world,) = run_loop(config, tmp_path).values()
    found = {
        name: ArmRun(name, config, world, seed_folder(tmp_path, 0), Jobs()).server_arguments()[3:]
        for name, arm in ARMS.items()
        if arm.served
    }
    exploring = {"epsilon": ["explore.epsilon=0.1"], "thompson": ["explore.thompson=0.5"]}
    assert found == {"ours": [], "never": [], "never_trained": [], "anew": [], **exploring}


def test_steps_that_are_done_are_not_run_again(tmp_path):
    ran = []

    class Recorded(Jobs):
        def run(self, step, logs):
            if step.name == "train" and "train" not in ran:
                ran.append("train")
                raise UserError("killed")
            ran.append(step.name)
            return 1.0

    steps = [Step(name, []) for name in ("prepare", "train", "export")]
    with pytest.raises(UserError, match="killed"):
        run_steps(Recorded(), steps, tmp_path, 4)
    assert run_steps(Recorded(), steps, tmp_path, 4) == 3.0
    assert ran == ["prepare", "train", "train", "export"]
    assert run_steps(Recorded(), steps, tmp_path, 4) == 3.0 and len(ran) == 4


def test_a_failing_job_is_shown_with_its_command_and_last_lines(tmp_path):
    with pytest.raises(UserError, match=r"(?s)sync.*failed with code 1.*nothing"):
        Jobs().run(Step("sync", ["nothing=1"]), tmp_path)


def test_visits_file_is_whole_up_to_a_line_that_was_cut(tmp_path):
    path = tmp_path / "visits" / "day-001.jsonl"
    with visits_writer(path) as writer:
        writer.add(Visit(3, [1, 2], [2], "v"))
    with path.open("a") as stream:
        stream.write('{"user": 4, "sho')
    assert read_visits(path) == [Visit(3, [1, 2], [2], "v")]
    with visits_writer(path) as writer:
        writer.add(Visit(5, [1], []))
    assert read_visits(path) == [Visit(3, [1, 2], [2], "v"), Visit(5, [1], [])]
    assert read_visits(tmp_path / "none") == []


def test_a_killed_arm_goes_on_as_if_nothing_had_happened(config, tmp_path, no_start):
    worlds = run_loop(config, tmp_path)
    folder = seed_folder(tmp_path, 0)
    before = {arm: [read_visits(visits_file(folder / arm, d)) for d in (1, 2)] for arm in RULES}
    for arm in RULES:  # as a kill within day 2 leaves it
        path = visits_file(folder / arm, 2)
        path.with_suffix(".json").unlink()
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    run_loop(config, tmp_path)
    for arm in RULES:
        assert [read_visits(visits_file(folder / arm, d)) for d in (1, 2)] == before[arm]
        users = [visit.user for visit in before[arm][1]]
        assert users == ArmRun(arm, config, worlds[0], folder, Jobs()).visitors.of_day(2)


def test_nobody_is_shown_a_picture_twice_or_before_its_day(config, tmp_path, no_start):
    (world,) = run_loop(config, tmp_path).values()
    for arm in RULES:
        shown = [
            (visit.user, item, day)
            for day in (1, 2)
            for visit in read_visits(visits_file(seed_folder(tmp_path, 0) / arm, day))
            for item in visit.shown
        ]
        assert len({pair[:2] for pair in shown}) == len(shown)
        assert all(world.item_day[item] <= day for _, item, day in shown)


def test_another_loop_in_the_same_workspace_is_refused_with_its_difference(
    config, tmp_path, no_start
):
    run_loop(config, tmp_path)
    other = dataclasses.replace(config, world=dataclasses.replace(SMALL, drift=0.3))
    with pytest.raises(UserError, match=r"(?s)other settings.*drift': 0.15.*overwrite=true"):
        run_loop(other, tmp_path)
    run_loop(dataclasses.replace(other, overwrite=True), tmp_path)


def test_a_loop_of_an_earlier_version_lacks_keys_at_their_defaults(config, tmp_path, no_start):
    run_loop(config, tmp_path)
    note = tmp_path / "loop.json"
    content = json.loads(note.read_text())
    defaults = dataclasses.asdict(LoopConfig(workspace=""))
    as_by_default = [key for key, value in content.items() if value == defaults[key]]
    assert as_by_default and len(as_by_default) < len(content)
    note.write_text(json.dumps({k: v for k, v in content.items() if k not in as_by_default}))
    run_loop(config, tmp_path)
    key, other = next((k, v) for k, v in content["world"].items() if v != defaults["world"][k])
    del content["world"][key]
    note.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"(?s)other settings.*{key}': {other}"):
        run_loop(config, tmp_path)


def test_more_arms_side_by_side_than_cores_are_refused(config, tmp_path):
    with pytest.raises(UserError, match="parallel=999: expected at most"):
        run_loop(dataclasses.replace(config, parallel=999), tmp_path)


def test_result_is_what_visits_and_truth_say(config, tmp_path, no_start):
    config = dataclasses.replace(config, seeds=[0, 1])
    worlds = run_loop(config, tmp_path)
    result = loop_result(worlds, RULES, tmp_path)
    (row,) = [row for row in result.days if (row.arm, row.day) == ("oracle", 2)]
    probabilities, liked, new, covered, num_visits = [], 0, 0, [], 0
    for seed, world in worlds.items():
        shown = set()
        for visit in read_visits(visits_file(seed_folder(tmp_path, seed) / "oracle", 2)):
            probabilities += world.probabilities(2)[visit.user][visit.shown].tolist()
            liked, num_visits = liked + len(visit.liked), num_visits + 1
            new += sum(item >= 60 for item in visit.shown)
            shown |= set(visit.shown)
        covered.append(len(shown) / 70)
    assert row.num_visits == num_visits
    assert row.measures["probability"].value == pytest.approx(np.mean(probabilities))
    assert row.measures["bookmarks"].value == pytest.approx(liked / num_visits)
    assert row.measures["new_share"].value == pytest.approx(new / len(probabilities))
    assert row.measures["coverage"].value == pytest.approx(np.mean(covered))
    assert row.measures["bookmarks"].low < liked / num_visits < row.measures["bookmarks"].high


def test_page_and_files_hold_every_arm_and_day(config, tmp_path, no_start):
    worlds = run_loop(config, tmp_path)
    write_loop(tmp_path, loop_result(worlds, RULES, tmp_path), config)
    lines = (tmp_path / "days.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * len(RULES) and lines[1].startswith("popularity,1,")
    shown = (tmp_path / "loop.html").read_text()
    assert all(ARMS[arm].meaning in shown for arm in RULES) and shown.count("<svg") == 4
    assert len(json.loads((tmp_path / "loop_result.json").read_text())["days"]) == 6


def test_progress_says_what_is_left_by_the_days_that_were_lived(capsys):
    clock = iter([0.0, 60.0, 120.0])
    progress = Progress(4, clock=lambda: next(clock))
    progress.done("ours day 1: done before")
    progress.done("ours day 2: 5 visits")
    assert "2 of 4, 2 min left" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_real_days_end_with_a_page(tmp_path):
    sizes = [f"world.{f.name}={getattr(SMALL, f.name)}" for f in dataclasses.fields(SMALL)]
    encoders = ["encoder.image.pretext_epochs=0", "encoder.text.epochs=1"]
    train = [*SMALL_MODEL, "train.epochs=1"]
    done = run_forked(
        "loop", f"workspace={tmp_path}", *sizes, "arms=[ours,never,never_trained,thompson]", "parallel=1",
        f"embed=[{','.join(encoders)}]", f"train={train}", timeout_seconds=800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = seed_folder(tmp_path, 0)
    versions = {
        arm: [{v.version for v in read_visits(visits_file(folder / arm, d))} for d in (1, 2)]
        for arm in ("ours", "never", "never_trained", "thompson")
    }
    assert versions["never"][0] == versions["never"][1] == versions["never_trained"][1]
    shown = {
        arm: {i for v in read_visits(visits_file(folder / arm, 2)) for i in v.shown}
        for arm in versions
    }
    assert max(shown["never"]) < 60 <= max(shown["never_trained"]), "only one knows new pictures"
    for arm in ("ours", "thompson"):
        assert [len(day) for day in versions[arm]] == [1, 1]
        assert versions[arm][0] == versions["never"][0] != versions[arm][1]
    assert (tmp_path / "loop.html").is_file()
