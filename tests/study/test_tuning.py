"""The search: begins with the configuration as it is, goes on after a kill, judges by validation."""

import json

import pytest

from recsys.study.suite import SearchConfig, SuiteConfig, VariantConfig, check_suite, space_problems
from recsys.study.tuning import tune

SPACE = {"model.dropout": SearchConfig(low=0.0, high=1.0)}


class Trials:
    """Validation is best at dropout 0.3; 0.5 where no dropout is set."""

    def __init__(self, fail_at=None):
        self.seen = []
        self.fail_at = fail_at

    def measure(self, number, overrides):
        if number == self.fail_at:
            raise KeyboardInterrupt
        self.seen.append((number, list(overrides)))
        if not overrides:
            return 0.5
        return 1 - abs(float(overrides[0].removeprefix("model.dropout=")) - 0.3)


def search(folder, trials, num_trials, space=SPACE):
    return tune(
        folder,
        space=space,
        num_trials=num_trials,
        seed=0,
        higher_is_better=True,
        measure=trials.measure,
    )


def test_search_finds_the_best_and_begins_with_what_is(tmp_path):
    trials = Trials()
    chosen = search(tmp_path, trials, 15)
    assert trials.seen[0] == (0, [])
    assert [number for number, _ in trials.seen] == list(range(15))
    assert float(chosen[0].removeprefix("model.dropout=")) == pytest.approx(0.3, abs=0.15)
    best = json.loads((tmp_path / "best.json").read_text())
    assert best["overrides"] == chosen and best["num_trials"] == 15


def test_killed_search_repeats_the_open_trial_and_no_other(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Trials(fail_at=3), 6)
    trials = Trials()
    search(tmp_path, trials, 6)
    assert [number for number, _ in trials.seen] == [3, 4, 5]
    again = Trials()
    search(tmp_path, again, 6)
    assert again.seen == []


def test_search_over_another_space_is_refused(tmp_path):
    search(tmp_path, Trials(), 1)
    with pytest.raises(ValueError, match=r"holds a search over model\.dropout with other bounds"):
        search(tmp_path, Trials(), 2, {"model.dropout": SearchConfig(choices=[0.1])})


def test_settings_as_they_are_win_where_nothing_is_better(tmp_path):
    assert search(tmp_path, Trials(), 1) == []


def test_suite_that_cannot_run_is_refused_with_every_reason():
    suite = SuiteConfig(
        name="x",
        reference="full",
        variants={"small": VariantConfig()},
        space={
            "a": SearchConfig(low=1.0, high=0.0),
            "b": SearchConfig(low=0.0, high=1.0, log=True),
        },
    )
    with pytest.raises(ValueError) as error:
        check_suite(suite)
    for part in ("reference='full': expected one of small", "space.a: low=1.0", "space.b: low=0.0"):
        assert part in str(error.value)
    assert space_problems(SPACE, "space") == []
