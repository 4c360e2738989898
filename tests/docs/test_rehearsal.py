"""The tables of docs/rehearsal.md are those that are computed from the plan and the measured pieces."""

from pathlib import Path

from tests.benchmarks.rehearsal import tables

PAGE = Path(__file__).resolve().parents[2] / "docs" / "rehearsal.md"


def test_the_page_has_the_computed_tables():
    assert tables() in PAGE.read_text(encoding="utf-8")
