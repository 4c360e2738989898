"""SQL text: quoted identifiers and strings; database errors in one line."""


def quoted(name: str) -> str:
    """Return an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def short(error: Exception) -> str:
    """Return an error's message in one line, without advice on options that a recipe does not have."""
    lines: list[str] = []
    for line in str(error).splitlines():
        if not line.strip() or line.startswith("Possible"):
            break
        line = line.strip()
        # A line of the file may be as long as it likes.
        lines.append(line if len(line) <= 160 else f"{line[:120]}... ({len(line):,} characters)")
    return "; ".join(lines)[:800]
