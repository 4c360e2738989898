"""Put evaluated runs side by side: one table of AUC and log-loss, with the best possible where known.

In: W/runs/<name>/eval/<split>/metrics.json of every run named. Out: a table in the terminal and
W/runs/compare-<split>.md.

    python launch/compare.py data=demo workspace=W runs=[ids_only,umair_fps]
"""

import json
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig
from rich.table import Table

from recsys.job import run_job, say
from recsys.report.terminal import console

COLUMNS = {
    "auc": "AUC",
    "log_loss": "log-loss (BCE)",
    "gauc": "GAUC",
    "normalised_entropy": "norm. entropy",
}


def job(cfg: DictConfig) -> None:
    """Read the metrics, print and write the table."""
    workspace = Path(cfg.workspace).resolve()
    metrics = {name: read_metrics(workspace, name, cfg.split) for name in cfg.runs}
    if not metrics:
        raise ValueError("runs=[]: name at least one evaluated run, for example runs=[ids_only]")
    rows = table_rows(metrics)
    header = ["run", *COLUMNS.values(), "AUC, unseen items", "lift recovered"]
    table = Table(title=f"{cfg.data.name}, {cfg.split} split", title_justify="left")
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console().print(table)
    lines = [header, ["---"] * len(header), *rows]
    path = workspace / "runs" / f"compare-{cfg.split}.md"
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
    path.write_text(text, encoding="utf-8")
    say(f"results: {path}")
    reports = ", ".join(
        str(workspace / "runs" / name / "eval" / cfg.split / "report.html") for name in metrics
    )
    say(f"next: open {reports}")


def read_metrics(workspace: Path, name: str, split: str) -> dict[str, Any]:
    """Return a run's metrics.

    Raises:
        ValueError: it has not been evaluated on this split.
    """
    path = workspace / "runs" / name / "eval" / split / "metrics.json"
    if not path.is_file():
        raise ValueError(
            f"{path}: no metrics; run launch/evaluate.py with run.name={name} split={split} first"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def table_rows(metrics: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return one line of texts per run, and the oracle last where it is known."""
    rows = []
    oracle: dict[str, float] | None = None
    for name, values in metrics.items():
        unseen = values.get("items_unseen_in_training", {}).get("auc")
        oracle = values.get("oracle", oracle)
        lift = values.get("oracle", {}).get("lift_recovered")
        rows.append([
            name,
            *(shown(values["all"][key]) for key in COLUMNS),
            shown(unseen),
            "-" if lift is None else f"{lift:.1%}",
        ])
    if oracle is not None:
        known = [shown(oracle.get(key)) for key in COLUMNS]
        rows.append(["oracle (true probabilities)", *known, "-", "100.0%"])
    return rows


def shown(value: float | None) -> str:
    """Return a metric with four digits, a dash where it has no value."""
    return "-" if value is None or value != value else f"{value:.4f}"


@hydra.main(version_base=None, config_path="../configs", config_name="compare")
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
