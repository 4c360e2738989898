"""Nearest-neighbour accuracy of the image encoder, as a table in the terminal.

In: what embedding.image.heads.measure returns. Called by launch/embed.py.
"""

from typing import Any

from rich.table import Table

from recsys.report.terminal import console

COLUMNS = {
    "hand": "same artist, another content",
    "content": "same content, another artist",
    "unseen_hand": "same artist, never trained on",
}
"""Keys of evaluation.json in encoders/image/, and their meaning."""


def show_neighbour_accuracy(accuracies: dict[str, Any]) -> None:
    """Print how often the nearest picture has the same artist, or shows the same content.

    Args:
        accuracies: {output: {key of COLUMNS: {"share": ..., "count": ...}}}.
    """
    shown = [key for key in COLUMNS if any(key in found for found in accuracies.values())]
    if not shown:
        return
    table = Table(title="image encoder on contents it has not seen", title_justify="left")
    table.add_column("nearest picture")
    for key in shown:
        table.add_column(COLUMNS[key], justify="right")
    for name, found in accuracies.items():
        cells = [
            f"{found[key]['share']:.3f} of {found[key]['count']:,}" if key in found else "-"
            for key in shown
        ]
        table.add_row(f"by {name}", *cells)
    console().print(table)
