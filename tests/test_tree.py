"""Habits of this code base that a program can check: names, imports, docstrings, words.

CONTRIBUTING.md states the rules; a failure here names file and line.
"""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("embedding", "launch", "recsys")
SOURCES = sorted(path for folder in PACKAGES for path in (REPOSITORY / folder).rglob("*.py"))
TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
SET_UP = [REPOSITORY / "Makefile", REPOSITORY / ".ci" / "run", REPOSITORY / "pyproject.toml"]
SET_UP += sorted(REPOSITORY.glob("requirements*.txt"))
SET_UP += [REPOSITORY / "Dockerfile", REPOSITORY / "compose.yaml", REPOSITORY / ".dockerignore"]
SET_UP += sorted((REPOSITORY / "launch" / "cluster").iterdir())

NON_ASCII = ("recsys/demo/", "tests/data/", "tests/embedding/")
"""Where names in Japanese and Chinese are data."""

LAYERS = {
    "recsys.errors": 0,
    "recsys.locks": 0,
    "recsys.array_headers": 0,
    "recsys.feature_specs": 0,
    "recsys.files": 1,
    "recsys.chain": 1,
    "recsys.listing": 2,
    "recsys.record_types": 1,
    "recsys.spreadsheet": 2,
    "recsys.schema": 2,
    "recsys.batch": 2,
    "recsys.kinds": 2,
    "recsys.config_types": 2,
    "recsys.config": 3,
    "recsys.config_files": 3,
    "recsys.config_keys": 4,
    "recsys.overrides": 4,
    "recsys.runtime": 4,
    "recsys.job": 5,
    "recsys.progress": 6,
    "recsys.data": 7,
    "recsys.demo": 8,
    "recsys.metrics": 7,
    "recsys.model": 7,
    "recsys.tracking": 7,
    "recsys.bundle": 8,
    "recsys.sharding": 8,
    "recsys.checkpoint": 9,
    "recsys.serving": 9,
    "recsys.evaluation": 10,
    "recsys.train": 11,
    "recsys.run": 12,
    "recsys.export": 13,
    "recsys.loop": 13,
    "recsys.study": 13,
    "recsys.report": 14,
    "launch": 15,
}
"""Imports point to lower numbers, or stay within a package."""

RANK_VARIABLES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}


GROUND_FLOOR = (
    "recsys.errors",
    "recsys.array_headers",
    "recsys.files",
    "recsys.listing",
    "recsys.record_types",
    "recsys.spreadsheet",
    "recsys.schema",
    "recsys.runtime",
    "recsys.job",
    "recsys.progress",
)
"""What embedding/ may import of recsys/."""


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@pytest.fixture(scope="module", autouse=True)
def trees_are_forgotten():
    """The syntax trees are parsed once for this module, and do not stay in memory after it."""
    yield
    tree_of.cache_clear()


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=name_of(path))


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a file imports: `from a import b` gives a.b."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: relative import"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def below(name: str, *modules: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def files_below(*folders: str) -> list[Path]:
    found = [p for p in SOURCES if name_of(p).startswith(tuple(f"{f}/" for f in folders))]
    assert found, f"no file below {folders}"
    return found


def layer_of(module: str) -> tuple[str, int] | None:
    """The longest entry of LAYERS that holds a module, with its number."""
    entries = [entry for entry in LAYERS if below(module, entry)]
    return max(((e, LAYERS[e]) for e in entries), key=lambda x: len(x[0]), default=None)


def module_of(path: Path) -> str:
    return name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_the_tree_is_found():
    assert len(SOURCES) > 10
    assert len(TESTS) > 5
    assert len(CONFIGS) > 5
    assert {"README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= {
        page.name for page in PAGES
    }


def test_files_are_named_by_what_they_hold():
    shelves = {"utils", "util", "helpers", "helper", "common", "misc"}
    found = [name_of(p) for p in SOURCES + TESTS if shelves & set(module_of(p).lower().split("."))]
    assert not found, "name the file by its subject"


def test_files_import_the_standard_library_and_numpy_only():
    names = [
        f"recsys/{name}.py"
        for name in ("locks", "array_headers", "files", "listing", "spreadsheet")
    ]
    paths = [path for path in SOURCES if name_of(path) in names]
    assert len(paths) == len(names)
    allowed = ("numpy", "recsys.errors", "recsys.locks", "recsys.array_headers", "recsys.files")
    found = [
        n
        for path in paths
        for _, n in imports_of(path)
        if not below(n, *allowed, *sys.stdlib_module_names)
    ]
    assert not found


def test_embedding_imports_the_ground_floor_of_recsys_only():
    found = [
        f"{name_of(path)}:{line} {name}"
        for path in files_below("embedding")
        for line, name in imports_of(path)
        if below(name, "recsys") and not below(name, *GROUND_FLOOR)
    ]
    assert not found


def test_the_model_imports_torch_torchrec_modules_and_its_own_files_only():
    allowed = (
        "torch",
        "torchrec.modules",
        "torchrec.sparse",
        "recsys.errors",
        "recsys.files",
        "recsys.schema",
        "recsys.batch",
        "recsys.model",
    )
    found = [
        f"{name_of(path)}:{line} {name}"
        for path in files_below("recsys/model")
        for line, name in imports_of(path)
        if not below(name, *allowed, *sys.stdlib_module_names) or below(name, "torch.distributed")
    ]
    assert not found


def test_only_sharding_imports_torchrec_distributed():
    users = {
        name_of(path)
        for path in SOURCES
        for _, name in imports_of(path)
        if below(name, "torchrec.distributed")
    }
    assert users, "nobody shards anything"
    assert all(user.startswith("recsys/sharding/") for user in users), users


def test_imports_point_one_way():
    found = []
    for path in files_below("recsys", "launch"):
        module = module_of(path)
        here = layer_of(module)
        if module == "recsys":  # holds the version only
            continue
        assert here is not None, f"{module} is in no layer"
        for line, name in imports_of(path):
            there = layer_of(name)
            if there and there[0] != here[0] and there[1] >= here[1]:
                found.append(f"{name_of(path)}:{line} {name}")
    assert not found, f"the order is {LAYERS}"


def test_only_one_file_reads_the_rank_variables():
    readers = {
        name_of(path)
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Constant) and node.value in RANK_VARIABLES
    }
    assert readers == {"recsys/runtime/torchrun.py"}


def test_configuration_ends_above_model_data_and_embedding():
    found = [
        f"{name_of(path)}:{line} {name}"
        for path in files_below("recsys/model", "recsys/data", "embedding")
        for line, name in imports_of(path)
        if below(name, "omegaconf", "hydra")
    ]
    assert not found


def test_launch_files_hold_definitions_only():
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    found = []
    for path in files_below("launch"):
        for node in tree_of(path).body:
            is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            is_main = (
                isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
            )
            if not (isinstance(node, allowed) or is_text or is_main):
                found.append(f"{name_of(path)}:{node.lineno}")
    assert not found


@pytest.mark.slow
def test_importing_launch_files_prints_writes_and_starts_nothing(tmp_path):
    modules = [module_of(path) for path in files_below("launch") if path.stem != "__init__"]
    code = "\n".join([
        "import importlib, sys, threading, torch",
        "threads = torch.get_num_threads()",
        f"for name in {modules!r}: importlib.import_module(name)",
        "assert not torch.distributed.is_initialized(), 'process group started'",
        "assert torch.get_num_threads() == threads, 'threads changed'",
    ])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert [p.name for p in tmp_path.iterdir() if p.name not in (".cache", ".config")] == []


def test_no_squeeze_without_a_dimension():
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "squeeze"
        and not node.args
        and not node.keywords
    ]
    assert not found, "squeeze() also drops a batch of one row: name the dimension"


def test_no_two_threads_read_a_header_of_an_array():
    """Python 3.11 fails where they do (recsys/array_headers.py)."""
    readers = {"load", "open_memmap"}
    num_read, found = 0, []
    for path in SOURCES:
        tree = tree_of(path)
        guarded = {
            call
            for block in ast.walk(tree)
            if isinstance(block, ast.With)
            and any("one_header_at_a_time()" in ast.unparse(i.context_expr) for i in block.items)
            for call in ast.walk(block)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                is_numpy = ast.unparse(node.func).startswith(("np.load", "np.lib.format."))
                is_new = "mode='w+'" in ast.unparse(node)
                if is_numpy and node.func.attr in readers and not is_new:
                    num_read += 1
                    found += [f"{name_of(path)}:{node.lineno}"] * (node not in guarded)
    assert num_read >= 5
    assert not found


def test_every_forward_states_shapes():
    num_forwards = 0
    found = []
    for path in files_below("recsys/model", "embedding"):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef) and node.name == "forward":
                num_forwards += 1
                if not re.search(r"\[[A-Z][^\]]*\]", ast.get_docstring(node) or ""):
                    found.append(f"{name_of(path)}:{node.lineno}")
    assert num_forwards > 3
    assert not found, "write the shapes in brackets, such as [B, D]"


def test_the_step_loop_knows_no_configuration():
    (loop,) = [path for path in SOURCES if name_of(path) == "recsys/train/loop.py"]
    found = [
        node.lineno
        for node in ast.walk(tree_of(loop))
        if (isinstance(node, ast.Name) and node.id == "cfg")
        or (isinstance(node, ast.arg) and node.arg == "cfg")
        or (isinstance(node, ast.Attribute) and node.attr == "cfg")
    ]
    assert not found


def test_config_classes_are_frozen_and_explain_every_field():
    num_classes = 0
    found = []
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if not (isinstance(node, ast.ClassDef) and node.name.endswith("Config")):
                continue
            num_classes += 1
            decorators = " ".join(ast.unparse(d) for d in node.decorator_list)
            if "frozen=True" not in decorators or "kw_only=True" not in decorators:
                found.append(f"{name_of(path)}:{node.lineno} {node.name}: frozen, kw_only")
            for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                explained = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                if isinstance(field, ast.AnnAssign) and not explained:
                    found.append(f"{name_of(path)}:{field.lineno} {ast.unparse(field.target)}")
    assert num_classes > 3
    assert not found, "a line of text below each field: unit, meaning of null"


def test_no_value_is_checked_by_a_regular_expression_that_its_error_would_show():
    """pydantic's error shows the expression; a function of ours says in words what is expected."""
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", getattr(node.func, "attr", ""))
        in ("Field", "StringConstraints", "Query", "Path", "Body", "Header")
        and any(keyword.arg in ("pattern", "regex") for keyword in node.keywords)
    ]
    assert not found, found


def test_every_file_says_what_it_is():
    found = [
        name_of(path)
        for path in SOURCES + TESTS
        if path.read_text(encoding="utf-8").strip() and not ast.get_docstring(tree_of(path))
    ]
    assert not found


def test_no_sentence_of_a_docstring_begins_with_a_relative_clause():
    found = [
        f"{name_of(path)}:{getattr(node, 'lineno', 1)} {sentence[:60]}"
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        for sentence in re.split(r"(?<=\.)\s+", ast.get_docstring(node) or "")
        if re.match(r"(What|Where|Who|Of)\b", sentence)
    ]
    assert not found, "begin with the noun: the file's first sentence names the thing"


def test_no_exception_is_swallowed():
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ExceptHandler) and all(isinstance(x, ast.Pass) for x in node.body)
    ]
    assert not found


def test_only_collectives_exchanges_objects():
    names = {"all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list"}
    users = {
        name_of(path)
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute)
        and (node.attr in names or ast.unparse(node) == "dist.gather")
    }
    assert users == {"recsys/runtime/collectives.py"}, "an error there reaches every rank"


def test_no_rank_waits_at_a_bare_barrier():
    users = {
        name_of(path)
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and node.attr in ("barrier", "monitored_barrier")
    }
    assert users == {"recsys/runtime/env.py"}, (
        "its end of a job, which a rank that failed never asks for"
    )


def test_only_files_renames():
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in SOURCES
        if name_of(path) != "recsys/files.py"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute)
        and (
            node.attr in ("rename", "renames") or ast.unparse(node) in ("os.replace", "shutil.move")
        )
    ]
    assert not found, "write by new_file or new_folder, move by move_folder, of recsys/files.py"


def lines_of(paths: list[Path]) -> Iterator[tuple[str, str]]:
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            yield f"{name_of(path)}:{number}", line


def test_code_is_ascii_outside_of_data():
    checked = [
        path
        for path in SOURCES + TESTS + CONFIGS + PAGES + SET_UP
        if not name_of(path).startswith(NON_ASCII)
    ]
    assert len(checked) > 20
    assert not [where for where, line in lines_of(checked) if not line.isascii()]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (r"(?<![\w.~})])/(?:work|tmp|home|root|opt|mnt)/", "a path of one machine"),
        (r"\b(?:TODO|FIXME|XXX)\b", "unfinished"),
        (r"(?i)\bwork" r"place\b|\bhelper session\b|\bthe lead\b", "about how it was made"),
        (r"(?i)\bissue #?\d", "a reader of the code cannot look it up"),
    ],
)
def test_the_text_speaks_to_every_reader(pattern, reason):
    checked = [
        path for path in SOURCES + TESTS + CONFIGS + PAGES + SET_UP if path != Path(__file__)
    ]
    found = [where for where, line in lines_of(checked) if re.search(pattern, line)]
    assert not found, reason


def test_architecture_lists_every_file_with_its_purpose():
    listed = dict(
        re.findall(
            r"^ *((?:embedding|launch|recsys)/\S+\.py) +(\S.*)$",
            (REPOSITORY / "ARCHITECTURE.md").read_text(encoding="utf-8"),
            flags=re.MULTILINE,
        )
    )
    exist = {name_of(path) for path in SOURCES if path.read_text(encoding="utf-8").strip()}
    assert len(exist) > 10
    assert exist - set(listed) == set(), "add one line per file to ARCHITECTURE.md"
    assert set(listed) - exist == set(), "ARCHITECTURE.md lists files that are gone"
