"""The search: begins with the configuration as it is, goes on after a kill, judges by validation."""

import json

import pytest

from recsys.config import from_config
from recsys.study.runs import DivergedError
from recsys.study.suite import SearchConfig, SuiteConfig
from recsys.study.tuning import tune

SPACE = {"model.dropout": SearchConfig(low=0.0, high=1.0)}


class Trials:
    """Validation is best at dropout 0.3; 0.5 where no dropout is set."""

    def __init__(self, fail_at=None, diverge_at=()):
        self.seen = []
        self.fail_at = fail_at
        self.diverge_at = diverge_at

    def measure(self, number, overrides):
        if number in self.diverge_at:
            self.seen.append((number, list(overrides)))
            raise DivergedError(f"x-trial{number}: the loss is nan at step 3")
        if number == self.fail_at:
            raise KeyboardInterrupt
        self.seen.append((number, list(overrides)))
        if not overrides:
            return 0.5
        return 1 - abs(float(overrides[0].removeprefix("model.dropout=")) - 0.3)


def search(folder, trials, num_trials, space=SPACE, key="a"):
    return tune(
        folder,
        key=key,
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


def test_search_of_other_settings_or_data_has_trials_of_its_own(tmp_path, capsys):
    search(tmp_path, Trials(), 3, key="a")
    other = Trials()
    search(tmp_path, other, 2, key="b")
    assert [number for number, _ in other.seen] == [0, 1]
    assert json.loads((tmp_path / "best.json").read_text())["key"] == "b"
    assert "holds 1 searches of other settings or data" in capsys.readouterr().out
    again = Trials()
    search(tmp_path, again, 3, key="a")
    assert again.seen == [], "the first is still there"


@pytest.mark.parametrize("diverge_at", [(0,), (1, 2), (0, 1, 2, 3)])
def test_trial_that_diverges_fails_alone_and_is_not_tried_again(tmp_path, diverge_at):
    trials = Trials(diverge_at=diverge_at)
    search(tmp_path, trials, 6)
    assert [number for number, _ in trials.seen] == list(range(6))
    best = json.loads((tmp_path / "best.json").read_text())
    assert best["trial"] not in diverge_at
    assert sorted(best["diverged"]) == [str(number) for number in diverge_at]
    assert "the loss is nan at step 3" in best["diverged"][str(diverge_at[0])]
    again = Trials()
    search(tmp_path, again, 7)
    assert [number for number, _ in again.seen] == [6]


def test_trial_that_was_open_at_a_kill_may_diverge_too(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Trials(fail_at=1), 3)
    trials = Trials(diverge_at=(1,))
    search(tmp_path, trials, 3)
    assert [number for number, _ in trials.seen] == [1, 2]


def test_search_whose_trials_all_diverge_ends_with_a_sentence_and_no_choice(tmp_path):
    for _ in range(2):  # the same command again says the same
        with pytest.raises(ValueError, match=r"all 3 trials diverged, .*x-trial2: the loss is nan"):
            search(tmp_path, Trials(diverge_at=range(9)), 3)
    assert not (tmp_path / "best.json").exists()


def test_search_over_another_space_is_refused(tmp_path):
    search(tmp_path, Trials(), 1)
    with pytest.raises(ValueError, match=r"holds a search over model\.dropout with other bounds"):
        search(tmp_path, Trials(), 2, {"model.dropout": SearchConfig(choices=[0.1])})


def test_settings_as_they_are_win_where_nothing_is_better(tmp_path):
    assert search(tmp_path, Trials(), 1) == []


def test_suite_that_cannot_run_is_refused_with_every_reason():
    suite = {
        "name": "x",
        "reference": "full",
        "variants": {"small": {}},
        "space": {"a": {"low": 1.0, "high": 0.0}, "b": {"low": 0.0, "high": 1.0, "log": True}},
    }
    with pytest.raises(ValueError) as error:
        from_config(SuiteConfig, suite, "suite")
    reference = "suite.reference='full': expected one of suite.variants (small)"
    for part in (reference, "suite.space.a.low=1.0", "suite.space.b.low=0.0"):
        assert part in str(error.value)
    assert not any(search.problems() for search in SPACE.values())
