"""What picture vectors know, as a table in the terminal.

In: what embedding.image.heads.measure returns. Called by launch/embed.py.
"""

from typing import Any

from rich.table import Table

from recsys.report.terminal import console


def print_agreement(known: dict[str, Any], title: str) -> None:
    """Print what each output finds: the hand among other contents, the content among other hands."""
    questions = {
        "hand": "same hand, another content",
        "content": "same content, another hand",
        "unseen_hand": "same hand, never trained on",
    }
    shown = [key for key in questions if any(key in found for found in known.values())]
    if not shown:
        return
    table = Table(title=title, title_justify="left")
    table.add_column("nearest picture")
    for key in shown:
        table.add_column(questions[key], justify="right")
    for name, found in known.items():
        cells = [
            f"{found[key]['share']:.3f} of {found[key]['count']:,}" if key in found else "-"
            for key in shown
        ]
        table.add_row(f"by {name}", *cells)
    console().print(table)
