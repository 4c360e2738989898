"""Every YAML file below configs/ composes, in every folder; those of training are read in full."""

import itertools
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from embedding.image.config import ImageConfig
from embedding.text.config import TextConfig
from recsys.config import from_config, plain
from recsys.data.recipe import Recipe
from recsys.model.config import RankerConfig
from recsys.run.config import SECTIONS, read_run_config
from recsys.sharding.cluster import ClusterConfig
from recsys.sharding.optimizers import OptimConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FILES = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml"))
ROOTS = [path for path in FILES if path.parent == Path(".")]
OPTIONS = [path for path in FILES if path.parent != Path(".")]
TRAIN_GROUPS = ("model", "optim", "experiment")


def groups_of(root: Path) -> dict[str, str | None]:
    """The groups a root file's defaults list names, with the choice made there."""
    defaults = OmegaConf.to_container(OmegaConf.load(CONFIGS / root)).get("defaults", [])
    return {
        str(group).removeprefix("optional ").removeprefix("/"): choice
        for entry in defaults
        if isinstance(entry, dict)
        for group, choice in entry.items()
        if not str(group).startswith("override ")
    }


def composed(root: Path, **choices: str) -> DictConfig:
    """Compose a root file; groups it leaves open (???) get their first option."""
    for group, choice in groups_of(root).items():
        if choice == "???":
            first = min(path.stem for path in OPTIONS if path.parent == Path(group))
            choices.setdefault(group, first)
    with initialize_config_dir(version_base=None, config_dir=str(CONFIGS)):
        return compose(root.stem, overrides=[f"{group}={c}" for group, c in choices.items()])


def test_there_are_root_files_and_options():
    assert len(ROOTS) > 2
    assert len(OPTIONS) > 5
    assert not list(CONFIGS.rglob("*.yml")), "files end in .yaml"


@pytest.mark.parametrize("root", ROOTS, ids=str)
def test_root_file_composes_and_belongs_to_a_job(root, repository):
    assert (repository / "launch" / f"{root.stem}.py").is_file()
    OmegaConf.to_container(composed(root), resolve=True)


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_option_composes_with_every_root_that_names_its_group(option):
    group = option.parent.as_posix()
    roots = [root for root in ROOTS if group in groups_of(root)]
    assert roots, f"no root file's defaults list names the group {group}"
    for root in roots:
        OmegaConf.to_container(composed(root, **{group: option.stem}), resolve=True)


@pytest.mark.parametrize(
    "experiment", [path for path in OPTIONS if path.parent == Path("experiment")], ids=str
)
def test_experiment_begins_with_the_command_that_runs_it(experiment):
    lines = (CONFIGS / experiment).read_text(encoding="utf-8").splitlines()
    header = "\n".join(itertools.takewhile(lambda line: line.startswith("#"), lines))
    assert f"experiment={experiment.stem}" in header


@pytest.mark.parametrize(
    "option", [path for path in OPTIONS if path.parts[0] in TRAIN_GROUPS], ids=str
)
def test_option_of_training_has_only_known_keys_of_the_right_type(option):
    cfg = composed(Path("train.yaml"), **{option.parent.as_posix(): option.stem})
    read_run_config({name: plain(cfg.get(name)) for name in SECTIONS})


@pytest.mark.parametrize(
    "option", [path for path in OPTIONS if path.parent == Path("data")], ids=str
)
def test_recipe_has_only_known_keys_of_the_right_type(option):
    cfg = composed(Path("prepare.yaml"), **{"data": option.stem, "++data.source": "raw"})
    recipe = from_config(Recipe, plain(cfg.data), "data")
    assert recipe.name == option.stem


PRESETS = {
    "model": RankerConfig,
    "optim": OptimConfig,
    "cluster": ClusterConfig,
    "encoder/image": ImageConfig,
    "encoder/text": TextConfig,
}


@pytest.mark.parametrize("group", PRESETS)
def test_preset_holds_only_what_differs_from_its_class(group):
    files = sorted((CONFIGS / group).glob("*.yaml"))
    assert files
    for file in files:
        given = plain(OmegaConf.load(file))
        schema = getattr(PRESETS[group], "KINDS", {}).get(given.get("name"), PRESETS[group])
        defaults = from_config(schema, {}, group)
        # A preset says its name; entries of a dictionary can be changed one by one where it is there.
        repeated = [key for key in given if getattr(defaults, key) == given[key]]
        assert set(repeated) <= {"name", "perspective_weights"}, file


@pytest.mark.parametrize("name", RankerConfig.KINDS)
def test_every_ranker_has_a_preset_of_its_name(name):
    """umair_fps: `base`. So `model=<name>` chooses any ranker."""
    file = CONFIGS / "model" / f"{'base' if name == 'umair_fps' else name}.yaml"
    assert plain(OmegaConf.load(file))["name"] == name


def test_root_file_holds_nothing_that_a_class_has_by_itself():
    for root in ROOTS:
        keys = set(OmegaConf.load(CONFIGS / root))
        own = {"plan": {"clusters"}, "sweep": {"sweep"}, "sync": {"source", "target"}}.get(
            root.stem, set()
        )
        assert keys <= {"defaults", "hydra", "workspace"} | own, root


# What YAML takes for something else


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("users: {file: users.csv, features: {on: {}}}", "data.users.features: .*: write 'no'"),
        ("items: {file: a.csv, text: [name, off]}", r"data.items.text\[1\]: False .*: write 'no'"),
        ("interactions: {user_id: yes}", "data.interactions.user_id: True does not fit"),
        (
            "interactions: {files: {train: no}}",
            "data.interactions.files.train: False .*: write 'no'",
        ),
        (
            "pairs: [{language: no}]",
            r"data.pairs\[0\].language: False does not fit; expected text; ",
        ),
        ("interactions: {label: 1e3}", "data.interactions.label: 1000.0 .*write it between quotes"),
    ],
)
def test_text_that_yaml_reads_as_a_boolean_or_number_is_to_be_quoted(tmp_path, text, shown):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match=shown):
        from_config(Recipe, plain(OmegaConf.load(tmp_path / "x.yaml")), "data")


def test_quoted_it_is_text(tmp_path):
    rest = "interactions: {file: a.csv, label: clicked}\nsplit: {strategy: random}\n"
    text = "name: 'no'\npairs: [{file: a.csv, language: 'on'}]\nsource: 2024\n"
    (tmp_path / "x.yaml").write_text(text + rest)
    recipe = from_config(Recipe, plain(OmegaConf.load(tmp_path / "x.yaml")), "data")
    assert (recipe.name, recipe.pairs[0].language, recipe.source) == ("no", "on", "2024")
