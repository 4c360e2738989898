"""Format of a raw text file: what a recipe may say of delimiter, quote, encoding and column names.

Called by the sections of recsys/data/recipe.py that name files.
"""

from collections.abc import Sequence


def format_problems(
    *, delimiter: str | None, quote: str, encoding: str, header: Sequence[str]
) -> list[str]:
    """Return a text, beginning with the key's name, for everything that no CSV file is written by.

    Args:
        delimiter: between fields; None: the default of the file's kind.
        quote: around fields; empty: no field is quoted.
        encoding: by Python's name.
        header: column names of a file without a header line; SQL does not tell upper from lower case.
    """
    problems = []
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n\0'):
        problems.append(f"delimiter={delimiter!r}: expected one character, no quote or line end")
    if quote and (len(quote) != 1 or quote in "\r\n\0" or quote == (delimiter or ",")):
        problems.append(f"quote={quote!r}: expected one character, or '' for no quoting")
    try:
        "".encode(encoding)
    except (LookupError, ValueError):
        problems.append(
            f"encoding={encoding!r}: expected a text encoding, for example utf-8, "
            f"utf-16, latin-1, cp932"
        )
    lower_header = [name.lower() for name in header]
    if len(set(lower_header)) < len(lower_header):
        problems.append(f"header={header}: a name is given twice")
    return problems
