"""The measured bounds of the code (tests/house.py), on this repository and on small examples."""

import ast

import pytest

from tests import house


def source(text, name="recsys/x.py"):
    return house.Source(house.REPOSITORY / name, name, text.splitlines(), ast.parse(text))


def function(text):
    return next(house.functions_of(source(text)))


@pytest.fixture(scope="module")
def sources():
    return house.read_sources()


@pytest.mark.parametrize("measure", house.MEASURES)
def test_the_code_keeps_its_bounds(measure, sources):
    measured = measure(sources)
    assert measured.holds, "\n".join([measured.name, *measured.offenders])


def test_cycles_are_found_through_several_modules_and_inner_imports():
    sources = [
        source("import recsys.b", "recsys/a.py"),
        source("def f():\n    from recsys.c import g", "recsys/b.py"),
        source("from recsys import a", "recsys/c.py"),
        source("from recsys import a", "recsys/d.py"),
    ]
    assert house.import_cycles(sources) == ["recsys.a <-> recsys.b <-> recsys.c"]
    assert house.import_cycles([*sources[:2], sources[3]]) == []


@pytest.mark.parametrize(
    ("text", "states"),
    [
        ("def f(x: Tensor) -> Tensor:\n    'Return x.'", False),
        ("def f(x: Tensor) -> Tensor:\n    'Return x [B, D].'", True),
        ("def f(x_BD: Tensor) -> float: ...", True),
        ("def f(x: np.ndarray) -> float: ...", False),
        ("def f(x_N: np.ndarray) -> np.ndarray: ...", True),
        ("def f() -> NDArray[np.int64]:\n    'Return the rows.'", False),
        ("def f() -> NDArray[np.int64]:\n    'Return the mean, a scalar.'", True),
    ],
)
def test_shapes_are_stated_by_brackets_or_suffixes(text, states):
    assert house.handles_arrays(function(text))
    assert house.states_shapes(function(text)) == states


def test_arguments_are_counted_without_self_and_where_no_record_is_taken():
    many = "def f(self, a, b, c, d, e, f, g, h, *, i): ..."
    assert house._many_arguments([source(many)]).offenders == ["recsys/x.py:1 f: 9"]
    assert house._many_arguments([source(many.replace("a,", "a: RunConfig,", 1))]).holds
    assert house._many_arguments([source("def f(self, a, b): ...")]).holds


def test_a_line_too_many_is_over_the_bound():
    body = "def f():\n" + "    x = 1\n" * house.MAX_FUNCTION_LINES
    assert not house._long_functions([source(body)]).holds
    assert house._long_functions([source(body.removesuffix("    x = 1\n"))]).holds
    assert not house._long_files([source("x = 1\n" * (house.MAX_FILE_LINES + 1))]).holds
