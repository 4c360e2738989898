"""SQL text: identifiers, strings, and what the database's errors say in one line."""


def quoted(name: str) -> str:
    """Return an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def short(error: Exception) -> str:
    """Return what an error says, in one line and without advice on options a recipe lacks."""
    lines: list[str] = []
    for line in str(error).splitlines():
        if not line.strip() or line.startswith("Possible"):
            break
        line = line.strip()
        # A line of the file may be as long as it likes.
        lines.append(line if len(line) <= 160 else f"{line[:120]}... ({len(line):,} characters)")
    return "; ".join(lines)[:800]
