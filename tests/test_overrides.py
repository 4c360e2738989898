"""The border between what people type, Hydra's grammar and a shell: text arrives letter by letter."""

import dataclasses
import shlex
import typing

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from launch import compare, evaluate, neighbours, plan, prepare, sweep, train
from recsys.config import from_config, plain, read_job
from recsys.job import typed_arguments
from recsys.overrides import override, top_level, typed
from recsys.sharding.tables import TableConfig
from recsys.study.runs import study_run
from tests.jobs import JOBS
from tests.test_configs import CONFIGS

PARSER = OverridesParser.create()
LOOKS_LIKE_SOMETHING_ELSE = ["20240601", "1e3", "007", "true", "1_000", "-5", "nan", "1.50", "0x10"]
LOOKS_LIKE_SOMETHING_ELSE += ["[a]", "{a: 1}", "a=b", "x(1)", "it's", 'say "x"', "a b", "#1", "\\"]
HOSTILE_NAMES = ["w\u00e4rme", "\u732b", "a b", "(1)", "a=b", "a,b", "it's", "[x]", "#1", "${x}"]
HOSTILE_NAMES += ["{x}", "back\\slash", "a:b", 'say "x"', "$HOME", "?*", "a\\", "\\${x}", "%", "!"]


def value_of(argument):
    """What a job gets for `key=value` after Hydra's grammar and OmegaConf's references."""
    value = PARSER.parse_override(argument).value()
    return plain(OmegaConf.create({"value": value}))["value"]


def text_keys(hint, key):
    """Every key that is text, or a list of text, below one key: (key, is a list)."""
    of = typing.get_args(hint)
    inner = next((h for h in of if h is not type(None)), hint) if type(None) in of else hint
    of, origin = typing.get_args(inner), typing.get_origin(inner)
    if inner is str:
        yield key, False
    elif inner == list[str]:
        yield key, True
    elif dataclasses.is_dataclass(inner):
        for name, below in typing.get_type_hints(inner).items():
            yield from text_keys(below, f"{key}.{name}")
    elif origin is dict:
        yield from text_keys(of[1], f"{key}.some_name")


def composed(job, *arguments):
    """A job's configuration as its command line makes it."""
    written = typed_arguments(arguments, JOBS[job].KEYS)
    with initialize_config_dir(version_base=None, config_dir=str(CONFIGS)):
        return compose(job, overrides=written)


def test_every_job_of_the_repository_is_looked_at(repository):
    files = {path.stem for path in (repository / "launch").glob("*.py")}
    assert files - {"__init__", "doctor"} == set(JOBS)


@pytest.mark.parametrize("job", JOBS)
def test_every_key_of_text_takes_text_that_looks_like_something_else(job):
    found = [
        place for name, hint in top_level(JOBS[job].KEYS).items() for place in text_keys(hint, name)
    ]
    assert found
    # Every spelling somewhere, every key with some of them: all pairs would take minutes.
    for index, (key, is_list) in enumerate(found):
        for offset in range(3):
            text = LOOKS_LIKE_SOMETHING_ELSE[(index + 7 * offset) % len(LOOKS_LIKE_SOMETHING_ELSE)]
            given = f"[{text},b]" if is_list else text
            (written,) = typed([f"{key}={given}"], JOBS[job].KEYS, lambda _: False)
            expected = [text, "b"] if is_list else text
            if given.startswith("{"):
                continue  # a section or a dictionary as a whole
            assert value_of(written) == expected, (key, given)


def test_names_and_ids_arrive_as_they_were_typed():
    read = read_job(composed("evaluate", "run.name=1e3"), evaluate.KEYS)
    assert read[1].run.name == "1e3"
    (_, asked) = read_job(composed("neighbours", "items=[007, 1e3,'a, b',null]"), neighbours.KEYS)
    assert asked.items == ["007", "1e3", "a, b", "null"]
    (_, run, *_) = read_job(composed("train", "run={name: 0010, seed: 3}"), train.KEYS)
    assert (run.run.name, run.run.seed) == ("0010", 3)
    (_, config, *_) = read_job(
        composed("compare", "runs=[1_0,true,20240601]", "variants=null"), compare.KEYS
    )
    assert config.runs == ["1_0", "true", "20240601"] and config.variants is None
    (place, _) = read_job(
        composed("prepare", "data.source=raw", "data.pairs=[{file: 1e3, entity: 007}]"),
        prepare.KEYS,
    )
    assert (place.data.pairs[0].file, place.data.pairs[0].entity) == ("1e3", "007")


def test_settings_of_trainings_are_cut_at_their_own_commas_only():
    given = 'overrides=[model.tower_dims=[8,4],"model=fm",run.name=1e3]'
    (_, config, *_) = read_job(composed("sweep", given), sweep.KEYS)
    assert config.overrides == ["model.tower_dims=[8,4]", "model=fm", "run.name=1e3"]


def schema_keys(hint, key):
    """Every key below one key to any depth; entries of dictionaries by a made-up name."""
    of = typing.get_args(hint)
    inner = next((h for h in of if h is not type(None)), hint) if type(None) in of else hint
    if dataclasses.is_dataclass(inner):
        for name, below in typing.get_type_hints(inner).items():
            yield from schema_keys(below, f"{key}.{name}")
    elif typing.get_origin(inner) is dict:
        yield from schema_keys(typing.get_args(inner)[1], f"{key}.anything")
    else:
        yield key


@pytest.mark.parametrize("job", JOBS)
def test_any_key_of_a_jobs_schema_can_be_given_without_a_plus(job):
    hints = top_level(JOBS[job].KEYS).items()
    keys = [key for name, hint in hints for key in schema_keys(hint, name)]
    cfg = composed(job, *(f"{key}=null" for key in keys))
    # Where a key is text and must be given, null is a word like any other.
    assert all(OmegaConf.select(cfg, key, default="absent") in (None, "null") for key in keys)


def test_a_key_of_a_schema_needs_no_plus_and_another_is_named():
    (_, run, *_) = read_job(composed("train", "tables.user_id.sharding=row_wise"), train.KEYS)
    assert run.tables == {"user_id": TableConfig(sharding=["row_wise"])}
    (place, _) = read_job(
        composed("prepare", "data.source=x", "data.interactions.unknown_items=keep"), prepare.KEYS
    )
    assert place.data.interactions.unknown_items == "keep"
    with pytest.raises(
        ValueError, match=r"profil: unknown key; expected one of data, init, mlflow, model, .*"
    ):
        composed("train", "profil=true")
    expected = r"train.epoch: unknown key; expected one of arrays_on_gpu_bytes, compile, epochs"
    with pytest.raises(ValueError, match=expected):
        read_job(composed("train", "train.epoch=3"), train.KEYS)


def test_with_multirun_keys_need_no_plus_either_and_lists_of_choices_stay():
    given = ["--multirun", "model=fm,lr", "train.epochs=1,2", "run.name=a,b"]
    assert typed_arguments(given, train.KEYS) == [
        *given[:2],
        "++train.epochs=1,2",
        "++run.name=a,b",
    ]


def test_references_and_quotes_of_the_user_keep_their_meaning():
    place = read_job(composed("train", "workspace=x/${data.name}"), train.KEYS)[0]
    assert place.workspace == "x/demo"
    place = read_job(composed("train", "workspace='a b'", "data='demo'"), train.KEYS)[0]
    assert place.workspace == "a b"


@settings(max_examples=150)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_any_text_written_for_hydra_is_read_back(text):
    written = override("run.name", text)
    assert value_of(written) == text
    # Once more through the border of the job that is started.
    (again,) = typed([written], train.KEYS, lambda _: False)
    assert value_of(again) == text


@settings(max_examples=100)
@given(st.lists(st.one_of(st.text(max_size=5), st.integers(), st.booleans(), st.none())))
def test_any_list_written_for_hydra_is_read_back(values):
    assert value_of(override("x", values)) == values


@settings(max_examples=100)
@given(st.text(st.characters(exclude_characters="\0'\"$", exclude_categories=["Cs"])))
def test_any_text_without_quotes_is_taken_as_it_was_typed(text):
    (written,) = typed([f"workspace={text}"], train.KEYS, lambda _: False)
    assert value_of(written) == text


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_any_name_of_a_folder_survives_shell_and_hydra(name, repository):
    line = shlex.join(["python", "launch/train.py", override("workspace", f"w/{name}")])
    argument = shlex.split(line)[2]
    (written,) = typed([argument], train.KEYS, lambda _: False)
    assert value_of(written) == f"w/{name}"


@pytest.mark.parametrize("recipe", ["20240601", "mine (1)", "\u732b"])
def test_recipe_goes_by_the_name_of_its_file(tmp_path, recipe):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"{recipe}.yaml").write_text("name: other\n", encoding="utf-8")
    data = [f"--config-dir={tmp_path}", override("data", recipe)]
    written = typed_arguments([*data, "workspace=w"], train.KEYS)
    override_of_data = PARSER.parse_override(written[1])
    assert (override_of_data.key_or_group, override_of_data.value()) == ("data", recipe)
    assert not written[1].startswith("+"), "a file of a group, no value"


def test_run_of_a_study_is_read_as_its_command_will_be(tmp_path):
    with initialize_config_dir(version_base=None, config_dir=str(CONFIGS)):
        more = ["model=fm", "run.name=1e3", "plan=auto", "profile=true"]
        run = study_run(["data=demo"], tmp_path, "20240601", more)
        assert (run.config.run.name, run.config.model.name) == ("1e3", "fm")
        assert run.config.profile.enabled
        with pytest.raises(ValueError, match="modle: unknown key"):
            study_run(["data=demo"], tmp_path, "x", ["modle.embedding_dim=3"])
        with pytest.raises(ValueError, match=r"overrides of launch/train.py: .*model/nope"):
            study_run(["data=demo"], tmp_path, "x", ["model=nope"])


def test_yaml_that_lost_the_text_is_refused_with_the_way_out():
    for value in (1000.0, True, False):
        with pytest.raises(ValueError, match=r"run.name: .* expected text; unquoted, YAML takes"):
            from_config(train.RunConfig, {"run": {"name": value}}, "")


def test_all_jobs_take_the_short_forms_of_sections():
    for job in ("train", "plan", "evaluate"):
        read = read_job(composed(job, "plan=auto"), JOBS[job].KEYS)
        assert read[1].plan.file == "auto"
        read = read_job(composed(job, "plan=a (1)/plan.json"), JOBS[job].KEYS)
        assert read[1].plan.file == "a (1)/plan.json"
        given = "tables={user_id: {sharding: row_wise}, item_id: {sharding: [row_wise]}}"
        tables = read_job(composed(job, given), JOBS[job].KEYS)[1].tables
        assert tables["user_id"] == tables["item_id"] and tables["item_id"].sharding == ["row_wise"]
        with pytest.raises(ValueError, match=r"plan: 3 given; expected keys and values, or"):
            read_job({"plan": 3}, JOBS[job].KEYS)
    for job in ("train", "plan"):
        assert read_job(composed(job, "profile=true"), JOBS[job].KEYS)[1].profile.enabled
    assert read_job(composed("evaluate", "plan=null"), evaluate.KEYS)[1].plan is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("rows=5", r"rows: 5 given; expected names and, for each, its value"),
        ("rows={user_id: many}", r"rows.user_id: 'many' does not fit"),
        ("rows.user_id=0", r"rows.user_id=0: expected 1 or more"),
        ("modality_dims={semantic: -3}", r"modality_dims.semantic=-3: expected 1 or more"),
        ("modality_dims={semantics: 8}", r"modality_dims.semantics: expected one of semantic"),
        ("clusters=cpu_2", r"clusters: 'cpu_2' given; expected list\[str\]"),
        ("search=fastest", r"search='fastest': expected min_cluster"),
    ],
)
def test_plan_says_what_it_cannot_read(given, message):
    with pytest.raises(ValueError, match=message):
        read_job(composed("plan", given), plan.KEYS)


def test_rows_may_be_written_as_powers_of_ten():
    config = read_job(composed("plan", "rows={user_id: 2e9}"), plan.KEYS)[2]
    assert config.rows == {"user_id": 2_000_000_000}
