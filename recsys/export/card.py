"""Model card of a bundle: README.md, for people who find the folder.

In: the specification, the run's configuration and its evaluation, where there is one. Called by
recsys/export/export.py.
"""

from pathlib import Path

from recsys.bundle.spec import BundleSpec
from recsys.evaluation.result import EvaluationResult, read_result
from recsys.metrics.registry import METRICS
from recsys.run.config import RunConfig
from recsys.schema import Manifest

_EVALUATE_AGAIN = "run launch/evaluate.py again"


def model_card(spec: BundleSpec, config: RunConfig, manifest: Manifest, run: Path) -> str:
    """Return the text of README.md.

    Args:
        manifest: of the prepared data, whole.
        run: folder of the run, whose eval/test/metrics.json is quoted where it is there.
    """
    file = run / "eval" / "test" / "metrics.json"
    result = read_result(file, _EVALUATE_AGAIN) if file.is_file() else None
    parts = [_head(spec, config), _data(manifest), _quality(result), _measured(spec), _USE]
    return "\n".join(parts)


def _head(spec: BundleSpec, config: RunConfig) -> str:
    read = (*spec.user_features, *spec.user_dense, *spec.item_features, *spec.item_dense)
    return (
        f"# {spec.name}\n\n"
        f"Exported by Tessera on {spec.created} from run `{spec.run}`, step {spec.step:,}, seed "
        f"{config.run.seed}.\n\n"
        f"- model: `{spec.ranker}`, {'two-sided' if spec.kind == 'two_sided' else 'whole'}; tables in "
        f"{spec.precision}\n"
        f"- features: {', '.join(read)}\n"
        f"- modalities: {', '.join(spec.vector_names) or 'none'}\n\n"
        f"    python launch/serve.py bundle=<this folder>\n"
    )


def _data(manifest: Manifest) -> str:
    lines = [
        f"| {name} | {split.num_rows:,} | {split.num_positives:,} |"
        for name, split in manifest.splits.items()
    ]
    table = "\n".join(["| split | rows | positives |", "|---|---|---|", *lines])
    strategy = manifest.recipe.get("split", {}).get("strategy", "not recorded")
    return (
        f"## Data\n\n`{manifest.name}`: {max(0, manifest.num_user_rows - 1):,} users, "
        f"{manifest.num_item_rows - 1:,} items; split: {strategy}.\n\n{table}\n"
    )


def _quality(result: EvaluationResult | None) -> str:
    if result is None:
        return "## Quality\n\nNot evaluated before the export (launch/evaluate.py).\n"
    lines = ["| metric | test split | interval |", "|---|---|---|"]
    values = result.all.flat()
    for name, metric in METRICS.items():
        if name in values:
            low, high = result.intervals.get(name, (float("nan"), float("nan")))
            lines.append(f"| {metric.label} | {values[name]:.4f} | {low:.4f} to {high:.4f} |")
    return "## Quality\n\n" + "\n".join(lines) + "\n"


def _measured(spec: BundleSpec) -> str:
    lines = [f"- {name}: {value:.6g}" for name, value in spec.measured.items()]
    return "## Measured at export\n\n" + "\n".join(lines or ["- nothing"]) + "\n"


_USE = """## Use

For ranking the items of this catalogue for people whose log it was trained on, and for visitors who name
items they like. It must not be used for decisions about people, for guessing who somebody is, or as a
measure of the worth of an artist's work: scores repeat what the log holds, popularity and its gaps
included. Items and users that are new since the export are known by their features alone.
"""
