"""The map of the house: which part may import which, and who may do what.

The table is the project's rule. A new arrow is a decision, so it is written down here first.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import trioline

ROOT = Path(trioline.__file__).parent

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "snapshot": set(),
    "deadlines": set(),
    "newlines": set(),
    "config": {"errors"},
    "ledger": {"errors", "config", "deadlines"},
    "wire": {"errors", "config", "snapshot", "newlines"},
    "storage": {"errors", "config", "newlines"},
    "server": {"errors", "config", "snapshot", "deadlines", "ledger", "wire", "storage"},
    "client": {"errors", "config", "snapshot", "newlines", "wire"},
    "ops": {"errors", "config", "snapshot"},
}
"""By part: the first name below trioline. Each may import itself and ``_version``, too."""
MAY_IMPORT_ANYTHING = {"cli", "__init__", "__main__"}

LIBRARY_HOMES = {"trio": {"server", "cli"}, "anyio": {"client", "cli"}}
"""Event loops, and the only parts that may know of them."""
RUNS_THE_LOOP = "cli"
PUBLIC_IN_SPITE_OF_ITS_NAME = {"os._exit"}


def part_of(module: str) -> str:
    """Name the part a module belongs to: ``trioline.wire.codec`` to ``wire``."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def module_of(path: Path) -> str:
    """Name the module in a file."""
    names = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" and len(names) > 2 else names)


MODULES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}
PARTS = {part_of(module) for module in MODULES}


def imported(tree: ast.AST, module: str, *, is_package: bool = False) -> Iterator[str]:
    """Name everything a module imports, also inside functions and for type checkers only.

    ``from a.b import c`` is ``a.b.c``: c may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = node.module or ""
            if node.level:
                above = module.split(".")
                above = above[: len(above) - node.level + is_package]
                home = ".".join([*above, *([home] if home else [])])
            yield from (f"{home}.{alias.name}" for alias in node.names)


def part_named(name: str) -> str:
    """Name the part an import goes to; ``from trioline import Client`` goes to ``__init__``."""
    part = part_of(name)
    return part if part in PARTS else "__init__"


def forbidden_arrows(source: str, module: str) -> list[str]:
    """List the imports of a module that the table does not allow."""
    part = part_of(module)
    wrong = []
    for name in imported(ast.parse(source), module, is_package=is_package(module)):
        library = name.split(".")[0]
        if library == "trioline":
            target = part_named(name)
            if part not in MAY_IMPORT_ANYTHING and target not in (
                *MAY_IMPORT.get(part, ()),
                part,
                "_version",
            ):
                wrong.append(f"{module} imports {name}")
        elif part not in LIBRARY_HOMES.get(library, {part}):
            wrong.append(f"{module} imports {name}")
    return wrong


def is_package(module: str) -> bool:
    """Say whether a module is a package's ``__init__``."""
    return module in MODULES and MODULES[module].name == "__init__.py"


def loop_runs(source: str, module: str) -> list[str]:
    """List the calls that start an event loop where none may be started."""
    if part_of(module) == RUNS_THE_LOOP:
        return []
    tree = ast.parse(source)
    wrong = [
        f"{module} calls {node.value.id}.run"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr == "run"
        and isinstance(node.value, ast.Name)
        and node.value.id in (*LIBRARY_HOMES, "asyncio")
    ]
    names = imported(tree, module)
    return wrong + [f"{module} imports {name}" for name in names if name in RUNS]


RUNS = {f"{library}.run" for library in (*LIBRARY_HOMES, "asyncio")}


def is_private(name: str) -> bool:
    """Say whether a name is private; ``__dunder__`` names are not."""
    return name.startswith("_") and not name.endswith("__") and name != "_"


def own_private_names(tree: ast.AST) -> set[str]:
    """List the private names that a module defines."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.Attribute(attr=name, ctx=ast.Store(), value=ast.Name(id="self")):
                names.add(name)
            case _:
                pass
    return {name for name in names if is_private(name)}


def foreign_private_names(source: str, module: str, own: set[str]) -> list[str]:
    """List the private names that a module takes from other parts or libraries.

    Args:
        source: The module's text.
        module: Its name.
        own: The private names that its part defines.
    """
    tree = ast.parse(source)
    wrong = [
        f"{module} imports {name}"
        for name in imported(tree, module, is_package=is_package(module))
        if name != "trioline._version.__version__"
        and part_named(name) != part_of(module)
        and any(is_private(one) for one in name.split(".")[1:] if one != "_version")
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            text = ast.unparse(node)
            if text not in PUBLIC_IN_SPITE_OF_ITS_NAME:
                wrong.append(f"{module} uses {text}")
    return wrong


def undocumented(source: str, module: str) -> list[str]:
    """List the public names of a module that have no docstring, and the module itself.

    A method has the docstring of the one it overrides, where that stands in the same module.
    """
    tree = ast.parse(source)
    missing = [] if ast.get_docstring(tree) else [module]
    return missing + list(_undocumented(tree, module, tree))


def _undocumented(node: ast.Module | ast.ClassDef, path: str, tree: ast.Module) -> Iterator[str]:
    inherited = _documented_by_bases(node, tree) if isinstance(node, ast.ClassDef) else set()
    for child in node.body:
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if child.name.startswith("_") or any(
            ast.unparse(decorator).endswith((".setter", "overload"))
            for decorator in child.decorator_list
        ):
            continue
        name = f"{path}.{child.name}"
        if not ast.get_docstring(child) and child.name not in inherited:
            yield name
        if isinstance(child, ast.ClassDef):
            yield from _undocumented(child, name, tree)


def _documented_by_bases(node: ast.ClassDef, tree: ast.Module) -> set[str]:
    names = {ast.unparse(base).split("[")[0] for base in node.bases}
    return {
        child.name
        for base in tree.body
        if isinstance(base, ast.ClassDef) and base.name in names
        for child in base.body
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(child)
    }


@cache
def private_names_of(part: str) -> set[str]:
    """List the private names that a part's modules define."""
    return {
        name
        for module, path in MODULES.items()
        if part_of(module) == part
        for name in own_private_names(ast.parse(path.read_text()))
    }


# --- the house -----------------------------------------------------------------------------------


@pytest.fixture(params=MODULES, ids=str)
def module(request: pytest.FixtureRequest) -> str:
    """Each module of the package."""
    assert isinstance(request.param, str)
    return request.param


def test_every_part_is_on_the_map() -> None:
    assert not PARTS.difference(MAY_IMPORT, MAY_IMPORT_ANYTHING, {"_version"})


def test_no_arrow_runs_back_up(module: str) -> None:
    assert forbidden_arrows(MODULES[module].read_text(), module) == []


def test_only_the_command_line_runs_a_loop(module: str) -> None:
    assert loop_runs(MODULES[module].read_text(), module) == []


def test_nobody_takes_what_is_private(module: str) -> None:
    own = private_names_of(part_of(module))
    assert foreign_private_names(MODULES[module].read_text(), module, own) == []


def test_what_is_public_is_documented(module: str) -> None:
    assert undocumented(MODULES[module].read_text(), module) == []


def test_the_table_has_no_circle() -> None:
    def below(part: str, seen: tuple[str, ...]) -> None:
        assert part not in seen, f"{' -> '.join(seen)} -> {part}"
        for other in MAY_IMPORT[part]:
            below(other, (*seen, part))

    for part in MAY_IMPORT:
        below(part, ())


# --- the tests of the tests ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("trioline.client.x", "from trioline.server.app import serve"),
        ("trioline.client.x", "import trioline.ledger"),
        ("trioline.client.x", "from trioline import ledger"),
        ("trioline.client.x", "from trioline import Client"),
        ("trioline.client.x", "from ..storage import job"),
        ("trioline.client.x", "def f():\n    from trioline.storage import job"),
        ("trioline.client.x", "if TYPE_CHECKING:\n    import trioline.server as s"),
        ("trioline.errors", "from trioline.config import Address"),
        ("trioline.wire.x", "from trioline.ledger import Ledger"),
        ("trioline.ops.x", "from trioline.wire import codec"),
        ("trioline.ledger", "from trioline.wire import codec"),
        ("trioline.storage.x", "import trio"),
        ("trioline.client.x", "import trio.testing"),
        ("trioline.server.x", "from anyio import sleep"),
    ],
)
def test_a_forbidden_arrow_is_seen(module: str, source: str) -> None:
    assert len(forbidden_arrows(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("trioline.client.x", "from trioline.wire import codec\nfrom trioline.errors import *"),
        ("trioline.client.x", "from .y import z\nfrom trioline.client import y"),
        ("trioline.client.x", "from trioline._version import __version__\nimport anyio, os"),
        ("trioline.server.x", "import trio, trioline.storage.job"),
        ("trioline.cli.x", "import trio, anyio, trioline.server, trioline.client, trioline"),
    ],
)
def test_an_arrow_on_the_map_is_not(module: str, source: str) -> None:
    assert forbidden_arrows(source, module) == []


def test_a_loop_that_is_run_is_seen() -> None:
    for source in ("trio.run(f)", "from anyio import run", "asyncio.run(f())", "x = trio.run"):
        assert len(loop_runs(source, "trioline.client.x")) == 1
        assert loop_runs(source, "trioline.cli.x") == []
    assert loop_runs("self.run()", "trioline.client.x") == []


def test_a_private_name_of_others_is_seen() -> None:
    for source in (
        "from trioline.wire.codec import _fields",
        "codec._fields",
        "ledger._queue = []",
        "from trioline._hidden import x",
    ):
        assert len(foreign_private_names(source, "trioline.server.x", {"_mine"})) == 1, source
    for source in (
        "self._mine",
        "from trioline.server.y import _mine",
        "a.__class__",
        "os._exit(1)",
        "from trioline._version import __version__",
    ):
        assert foreign_private_names(source, "trioline.server.x", {"_mine"}) == [], source
    tree = ast.parse("class _A:\n    def _f(self):\n        self._x = _y = self.z._w = 1")
    assert own_private_names(tree) == {"_A", "_f", "_x", "_y"}


def test_a_missing_docstring_is_seen() -> None:
    source = "class A:\n    def f(self): ...\n    def _g(self): ...\nasync def h(): ..."
    assert undocumented(source, "m") == ["m", "m.A", "m.A.f", "m.h"]
    assert undocumented('"""M."""\ndef f():\n    """F."""', "m") == []
    documented = '"""M."""\nclass A:\n    """A."""\n    def f(self):\n        """F."""\n'
    heir = 'class B{}:\n    """B."""\n    def f(self): ...\n    def g(self): ...'
    assert undocumented(documented + heir.format("(A)"), "m") == ["m.B.g"]
    assert undocumented(documented + heir.format(""), "m") == ["m.B.f", "m.B.g"]
