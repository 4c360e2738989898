"""Numbers: a text as a number, as SQL for prepare and in Python for a request; NaN is none."""


def number_sql(value: str) -> str:
    """SQL of a text as a number: NULL where there is none."""
    return f"nullif(try_cast({value} AS DOUBLE), 'nan'::DOUBLE)"


def number_of(text: str) -> float | None:
    """Return a text as a number, as `number_sql` does; None where there is none.

    Python reads a number as the database does but for digits and blanks beyond ASCII, and for a plus
    sign before another sign.
    """
    if not text.isascii():
        return None
    try:
        number = float(text.strip(" \t\n\v\f\r").removeprefix("+"))
    except ValueError:
        return None
    return None if number != number else number
