"""Choosing settings on the validation split, by Optuna; the test split is never read.

Called by launch/sweep.py and launch/compare.py. A trial is one run of launch/train.py; it is judged
by the validation metric in its checkpoints. The journal beside it makes a killed search go on.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from recsys.errors import UserError
from recsys.files import write_json
from recsys.job import say
from recsys.kinds import of_other_kinds
from recsys.metrics.registry import METRICS
from recsys.run.config import RunConfig
from recsys.study.runs import Commands, DivergedError, study_run
from recsys.study.suite import SearchConfig


def choose_settings(
    commands: Commands,
    folder: Path,
    *,
    workspace: Path,
    name: str,
    overrides: Sequence[str],
    space: Mapping[str, SearchConfig],
    num_trials: int,
    overwrite: bool,
) -> list[str]:
    """Return the overrides that validate best beside `overrides`, every trial trained from seed 0.

    Args:
        folder: of the search; see `tune`.
        space: settings to choose; those of other models are left out.
        name: the trials are the runs <name>-<key>-trial0, <name>-<key>-trial1, ...; the key is the
            fingerprint of the settings that stay and of the data, so that a search with others has
            trials of its own.
        overwrite: train trials anew whose settings or data have changed.

    Raises:
        UserError: as `tune`; a setting that the model or the data does not have.
    """
    fixed = [*overrides, "run.seed=0"]
    base = study_run(commands.data, workspace, name, fixed)
    key = base.fingerprint()
    foreign = of_other_kinds(dataclasses.asdict(base.config), [RunConfig], space)
    space = {setting: search for setting, search in space.items() if setting not in foreign}
    if not space:
        say(f"{name}: model.name={base.config.model.name} has none of the settings to choose")
        return []

    def measure(number: int, chosen: list[str]) -> float:
        trial = f"{name}-{key}-trial{number}"
        run = study_run(commands.data, workspace, trial, [*fixed, *chosen])
        commands.train([run], overwrite=overwrite)
        return run.validation_metric()

    return tune(
        folder,
        key=key,
        space=space,
        num_trials=num_trials,
        seed=0,
        higher_is_better=METRICS[base.config.train.metric].direction > 0,
        measure=measure,
    )


def tune(
    folder: Path,
    *,
    key: str,
    space: Mapping[str, SearchConfig],
    num_trials: int,
    seed: int,
    higher_is_better: bool,
    measure: Callable[[int, list[str]], float],
) -> list[str]:
    """Return the overrides of the best of `num_trials` trials.

    Trial 0 is the configuration as it is, so the result is never worse than it on validation. A
    trial that diverges counts as a failed one, and the search goes on.

    Args:
        folder: gets journal.log (Optuna's) and best.json.
        key: fingerprint of all that the trials have in common; the journal may hold searches of other
            keys, which are not used.
        measure: trains trial number n with overrides and returns its validation metric.

    Raises:
        UserError: an earlier search of this key had another space; every trial diverged; or what
            `measure` raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    if others := set(optuna.get_all_study_names(storage)) - {key}:
        say(f"{folder}: holds {len(others)} searches of other settings or data; none of it is used")
    study = optuna.create_study(
        storage=storage,
        study_name=key,
        sampler=optuna.samplers.TPESampler(seed=seed),
        direction="maximize" if higher_is_better else "minimize",
        load_if_exists=True,
    )
    _check_space(study, folder, space)
    # A trial that was running when the search was killed goes on from its own checkpoint.
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        _judge(study, folder.name, trial.number, _overrides(trial.params), measure)
    for number in range(len(study.trials), num_trials):
        if number == 0:
            study.enqueue_trial({}, skip_if_exists=True)
        asked = study.ask()
        params = {} if number == 0 else {key: _ask(asked, key, s) for key, s in space.items()}
        _judge(study, folder.name, asked.number, _overrides(params), measure)
    failed = study.user_attrs.get("failed", {})
    if not study.get_trials(states=(TrialState.COMPLETE,)):
        raise UserError(
            f"{folder}: all {len(study.trials)} trials diverged, so there is nothing to choose from. "
            f"The last: {list(failed.values())[-1]}"
        )
    best, chosen = study.best_trial, _overrides(study.best_trial.params)
    content: dict[str, Any] = {"trial": best.number, "metric": best.value, "overrides": chosen}
    content |= {"num_trials": len(study.trials), "diverged": failed, "key": key}
    write_json(folder / "best.json", content)
    return chosen


def _check_space(study: optuna.Study, folder: Path, space: Mapping[str, SearchConfig]) -> None:
    """Store the search space of a new study; refuse to continue a study of another one."""
    written = {key: repr(search) for key, search in space.items()}
    stored = study.user_attrs.get("space", written)
    if stored != written:
        raise UserError(
            f"{folder}: holds a search over {', '.join(stored)} with other bounds; move it away or "
            f"restore suite.space"
        )
    study.set_user_attr("space", written)


def _judge(
    study: optuna.Study,
    name: str,
    number: int,
    overrides: list[str],
    measure: Callable[[int, list[str]], float],
) -> None:
    """Measure a trial and tell the study its value, or that it failed."""
    settings = ", ".join(overrides) or "as it is"
    try:
        value = measure(number, overrides)
    except DivergedError as error:
        study.set_user_attr(
            "failed", {**study.user_attrs.get("failed", {}), str(number): str(error)}
        )
        study.tell(number, state=TrialState.FAIL)
        say(f"{name} trial {number}: diverged ({settings}); {error}")
        return
    study.tell(number, value)
    say(f"{name} trial {number}: {value:.4f} ({settings})")


def _ask(trial: optuna.Trial, key: str, search: SearchConfig) -> float:
    if search.choices:
        return trial.suggest_categorical(key, search.choices)
    return trial.suggest_float(key, search.low, search.high, log=search.log)


def _overrides(params: Mapping[str, float]) -> list[str]:
    return [f"{key}={value:.6g}" for key, value in params.items()]
