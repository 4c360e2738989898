"""Code measurements: lengths of files and functions, arguments, import cycles, stated shapes.

    python -m tests.house          a table of every measure beside its bound; exit code 1 if one is broken

`make house` runs it. tests/test_house.py holds the bounds.
"""

import ast
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("embedding", "launch", "recsys")
MAX_FILE_LINES = 400
MAX_LAUNCH_LINES = 120
MAX_FUNCTION_LINES = 60
MAX_P90_FUNCTION_LINES = 28
MAX_ARGUMENTS = 8
MIN_SHARE_WITH_SHAPES = 0.90
MAX_TYPE_IGNORES = 12

_ARRAY = re.compile(r"\b(ndarray|NDArray|Tensor)\b")
_SHAPE = re.compile(r"\[[A-Z0-9][^\]]*\]|\[[a-z_]+, [^\]]*\]|\bscalar\b")
_SHAPE_SUFFIX = re.compile(r"_[A-Z0-9]+$")
_UNIT = re.compile(r"_(seconds|bytes|rows|ms)\b")
_CONFIG_RECORD = re.compile(r"(Config|Settings|Env|Manifest|Recipe)\b")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Measure:
    """One measured property of the code."""

    name: str
    found: str
    bound: str
    offenders: list[str]
    """The places beyond the bound, longest first; empty where it holds."""

    @property
    def holds(self) -> bool:
        """Whether nothing is beyond the bound."""
        return not self.offenders


@dataclass(frozen=True)
class Source:
    """One source file with its syntax tree."""

    path: Path
    name: str
    """Path below the repository, with slashes."""
    lines: list[str]
    tree: ast.Module

    @property
    def module(self) -> str:
        """Dotted name."""
        return self.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def read_sources(root: Path = REPOSITORY) -> list[Source]:
    """Return every source file of the packages, sorted by path."""
    found = []
    for path in sorted(p for folder in PACKAGES for p in (root / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        found.append(
            Source(path, path.relative_to(root).as_posix(), text.splitlines(), ast.parse(text))
        )
    return found


def functions_of(source: Source) -> Iterator[Function]:
    """Yield every function and method of a file, nested ones too."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def num_lines(function: Function) -> int:
    """Return the lines of a function from `def` to its end, docstring included."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def arguments_of(function: Function) -> list[ast.arg]:
    """Return a function's arguments without self and cls."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    return [arg for arg in named if arg.arg not in ("self", "cls")]


def takes_record(function: Function) -> bool:
    """Return whether an argument is annotated with a record of settings."""
    return any(
        arg.annotation is not None and _CONFIG_RECORD.search(ast.unparse(arg.annotation))
        for arg in arguments_of(function)
    )


def handles_arrays(function: Function) -> bool:
    """Return whether a function takes or returns arrays or tensors, by its annotations."""
    notes = [arg.annotation for arg in arguments_of(function)] + [function.returns]
    return any(note is not None and _ARRAY.search(ast.unparse(note)) for note in notes)


def states_shapes(function: Function) -> bool:
    """Return whether the docstring has a shape or unit, or every array argument a shape suffix."""
    text = ast.get_docstring(function) or ""
    if _SHAPE.search(text) or _UNIT.search(text):
        return True
    arrays = [
        arg.arg
        for arg in arguments_of(function)
        if arg.annotation is not None and _ARRAY.search(ast.unparse(arg.annotation))
    ]
    returned = function.returns is not None and _ARRAY.search(ast.unparse(function.returns))
    named = all(_SHAPE_SUFFIX.search(name) for name in arrays)
    if not returned:
        return named
    return named and bool(arrays or _SHAPE_SUFFIX.search(function.name))


def import_cycles(sources: Sequence[Source]) -> list[str]:
    """Return the groups of modules that import each other, as text; empty without a cycle.

    Tarjan's strongly connected components (1972). Imports inside of functions count too.
    """
    modules = {source.module for source in sources}
    graph = {source.module: _imported(source, modules) for source in sources}
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    cycles: list[str] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = []
            while not group or group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                cycles.append(" <-> ".join(sorted(group)))

    for node in graph:
        if node not in index:
            visit(node)
    return cycles


def _imported(source: Source, modules: set[str]) -> set[str]:
    found = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return (found & modules) - {source.module}


def _long_files(sources: Sequence[Source]) -> Measure:
    sizes = sorted(((len(s.lines), s.name) for s in sources), reverse=True)
    return Measure(
        "lines of the longest file",
        str(sizes[0][0]),
        f"at most {MAX_FILE_LINES}",
        [f"{name}: {n}" for n, name in sizes if n > MAX_FILE_LINES],
    )


def _launch_files(sources: Sequence[Source]) -> Measure:
    launched = [s for s in sources if s.name.startswith("launch/") and s.path.stem != "__init__"]
    found = []
    for source in launched:
        if source.path.stem == "doctor":  # must start where packages are missing
            continue
        names = [n.name for n in source.tree.body if isinstance(n, Function)]
        others = sorted(set(names) - {"job", "main"})
        if len(source.lines) > MAX_LAUNCH_LINES or others:
            found.append(f"{source.name}: {len(source.lines)} lines, {', '.join(others) or 'job'}")
    longest = max(len(s.lines) for s in launched if s.path.stem != "doctor")
    bound = f"at most {MAX_LAUNCH_LINES} lines, functions job and main"
    return Measure("lines of the longest launch file", str(longest), bound, found)


def _long_functions(sources: Sequence[Source]) -> Measure:
    sizes = sorted(
        ((num_lines(f), f"{s.name}:{f.lineno} {f.name}") for s in sources for f in functions_of(s)),
        reverse=True,
    )
    return Measure(
        "lines of the longest function",
        str(sizes[0][0]),
        f"at most {MAX_FUNCTION_LINES}",
        [f"{name}: {n}" for n, name in sizes if n > MAX_FUNCTION_LINES],
    )


def _p90_functions(sources: Sequence[Source]) -> Measure:
    sizes = sorted(num_lines(f) for s in sources for f in functions_of(s))
    p90 = sizes[int(0.9 * (len(sizes) - 1))]
    over = [] if p90 <= MAX_P90_FUNCTION_LINES else [f"p90 {p90} of {len(sizes):,} functions"]
    return Measure("lines of a function, p90", str(p90), f"at most {MAX_P90_FUNCTION_LINES}", over)


def _many_arguments(sources: Sequence[Source]) -> Measure:
    counts = sorted(
        (
            (len(arguments_of(f)), f"{s.name}:{f.lineno} {f.name}")
            for s in sources
            for f in functions_of(s)
            if not takes_record(f)
        ),
        reverse=True,
    )
    return Measure(
        "arguments where no record is taken",
        str(max((n for n, _ in counts), default=0)),
        f"at most {MAX_ARGUMENTS}",
        [f"{name}: {n}" for n, name in counts if n > MAX_ARGUMENTS],
    )


def _cycles(sources: Sequence[Source]) -> Measure:
    found = import_cycles(sources)
    return Measure("import cycles", str(len(found)), "none", found)


def _shapes(sources: Sequence[Source]) -> Measure:
    stated, silent = 0, []
    for source in sources:
        for function in functions_of(source):
            if handles_arrays(function):
                if states_shapes(function):
                    stated += 1
                else:
                    silent.append(f"{source.name}:{function.lineno} {function.name}")
    share = stated / max(1, stated + len(silent))
    return Measure(
        "functions of arrays that state shapes or units",
        f"{share:.1%}",
        f"at least {MIN_SHARE_WITH_SHAPES:.0%}",
        [] if share >= MIN_SHARE_WITH_SHAPES else silent,
    )


def _type_ignores(sources: Sequence[Source]) -> Measure:
    found = [
        f"{source.name}:{number}"
        for source in sources
        for number, line in enumerate(source.lines, start=1)
        if "# type: ignore" in line
    ]
    bound = f"at most {MAX_TYPE_IGNORES}"
    over = found if len(found) > MAX_TYPE_IGNORES else []
    return Measure("type: ignore", str(len(found)), bound, over)


MEASURES: tuple[Callable[[Sequence[Source]], Measure], ...] = (
    _long_files,
    _launch_files,
    _long_functions,
    _p90_functions,
    _many_arguments,
    _cycles,
    _shapes,
    _type_ignores,
)


def main() -> None:
    """Print every measure; end with code 1 where a bound is broken."""
    sources = read_sources()
    print(f"{len(sources)} files, {sum(len(s.lines) for s in sources):,} lines")
    measures = [measure(sources) for measure in MEASURES]
    for measured in measures:
        mark = "ok  " if measured.holds else "OVER"
        print(f"{mark} {measured.name}: {measured.found} ({measured.bound})")
        for offender in measured.offenders[:25]:
            print(f"       {offender}")
        if len(measured.offenders) > 25:
            print(f"       ... and {len(measured.offenders) - 25} more")
    sys.exit(0 if all(measured.holds for measured in measures) else 1)


if __name__ == "__main__":
    main()
