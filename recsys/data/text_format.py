"""Format of a raw text file: delimiter, quote, encoding and column names.

The sections of recsys/data/recipe.py that name files extend it; prepare's sources read files by it.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """Format of CSV files; Parquet files ignore it."""

    header: list[str] = field(default_factory=list)
    """Column names of a CSV file without a header line."""
    delimiter: str | None = None
    """Between the fields of a CSV file; null: a tab for .tsv, .inter, .item and .user, else a comma."""
    quote: str = '"'
    """Around fields of a CSV file that hold a delimiter or a line end; empty: no field is quoted."""
    encoding: str = "utf-8"
    """Of a CSV file, by Python's names: utf-8, utf-16, latin-1, cp932, gb18030, ..."""

    def problems(self) -> list[str]:
        """Return a text for everything that no CSV file is written by."""
        delimiter, quote = self.delimiter, self.quote
        problems = []
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n\0'):
            problems.append(
                f"delimiter={delimiter!r}: expected one character, no quote or line end"
            )
        if quote and (len(quote) != 1 or quote in "\r\n\0" or quote == (delimiter or ",")):
            problems.append(f"quote={quote!r}: expected one character, or '' for no quoting")
        try:
            "".encode(self.encoding)
        except (LookupError, ValueError):
            problems.append(
                f"encoding={self.encoding!r}: expected a text encoding, for example utf-8, "
                f"utf-16, latin-1, cp932"
            )
        # SQL does not tell upper from lower case.
        lower_header = [name.lower() for name in self.header]
        if len(set(lower_header)) < len(lower_header):
            problems.append(f"header={self.header}: a name is given twice")
        return problems
