"""Classic script of the gallery's modules: browsers load no ES modules from a disk.

In: modules that import each other by `import { a, b as c } from "./name.js"`, and may pass names on by
`export { a } from "./name.js"`. Out: one script, in which every module is a function that returns what it
exports. Called by gallery.py.
"""

import re
from pathlib import Path

_IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([\w-]+)\.js";\n', re.MULTILINE)
_PASSED_ON = re.compile(r'^export \{ ([\w$, ]+) \} from "\./([\w-]+)\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|let|class) +([\w$]+))", re.MULTILINE)
_ANY = re.compile(r"^(?:import|export)\b.*", re.MULTILINE)


def classic_script(folder: Path, entries: tuple[str, ...]) -> str:
    """Return the modules that entries need as one classic script; entries run in their order.

    Args:
        entries: names of modules, without the ending.

    Raises:
        AssertionError: a module imports or exports in another form, or modules import each other in a
            circle.
    """
    order: list[str] = []
    parts: dict[str, str] = {}
    for name in entries:
        _collect(folder, name, order, parts, ())
    body = "\n".join(parts[name] for name in order)
    return f'"use strict";\n(() => {{\n{body}}})();\n'


def _collect(
    folder: Path, name: str, order: list[str], parts: dict[str, str], above: tuple[str, ...]
) -> None:
    """Add a module behind those that it imports."""
    assert name not in above, f"modules import each other: {' > '.join((*above, name))}"
    if name in parts:
        return
    text = (folder / f"{name}.js").read_text(encoding="utf-8")
    for _, other in [*_IMPORT.findall(text), *_PASSED_ON.findall(text)]:
        _collect(folder, other, order, parts, (*above, name))
    exported = _EXPORT.findall(text)
    for names, other in _PASSED_ON.findall(text):
        exported += [f"{n}: {_variable(other)}.{n}" for n in names.split(", ")]
    text = _PASSED_ON.sub("", text)
    text = _IMPORT.sub(
        lambda found: f"const {{{found[1].replace(' as ', ': ')}}} = {_variable(found[2])};\n", text
    )
    text = _EXPORT.sub("", text)
    left = _ANY.search(text)
    assert left is None, f"{name}.js: {left and left[0]!r}, expected the forms of script.py"
    returned = f"return {{ {', '.join(exported)} }};\n"
    parts[name] = f"const {_variable(name)} = (() => {{\n{text}{returned}}})();\n"
    order.append(name)


def _variable(module: str) -> str:
    return "module_" + module.replace("-", "_")
