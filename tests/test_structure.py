"""How the files hang together, read from their syntax trees."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import deepseek

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "deepseek"
FILES = [ROOT / "app.py", *sorted(PACKAGE.rglob("*.py"))]
MAX_LINES = 350
# What each room may import. CONTRIBUTING draws this table.
ROOMS = {
    "model": set(),
    "kernels": set(),
    "settings": set(),
    "data": set(),
    "checkpoints": {"model"},
    "interpret": {"model", "data"},
    "inference": {"model", "kernels", "settings", "data", "checkpoints", "interpret"},
    "training": {"model", "settings", "data", "checkpoints", "interpret"},
    "ui": {"model", "settings", "data", "checkpoints", "interpret", "inference", "training"},
}
COMMANDS = {"train", "generate", "evaluate", "bench", "report"}

every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))


def room(file):
    """The package below deepseek/ that a file lies in, None for app.py and the command lines."""
    parts = file.relative_to(ROOT).parts
    return parts[1] if len(parts) > 2 else None


def module(file):
    """The dotted name of a file."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file):
    """Every dotted name that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: imports are written with their full name"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_package_holds_the_rooms_and_the_command_lines_and_nothing_else():
    names = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert names == {"__init__.py", *ROOMS, *(f"{command}.py" for command in COMMANDS)}
    ui = {path.name for path in (PACKAGE / "ui").iterdir() if path.name != "__pycache__"}
    pages = {"__init__.py", "page.py", "api.py", "generation.py", "errors.py"}
    assert ui == pages | {"tabs", "components", "server", "plots"}


def test_tests_mirror_the_rooms():
    tests = ROOT / "tests"
    assert {path.parent.name for path in tests.glob("*/test_*.py")} == set(ROOMS)
    for file in PACKAGE.rglob("*.py"):
        if file.name != "__init__.py" and room(file) not in (None, "ui"):
            mirror = tests / file.relative_to(PACKAGE).with_name(f"test_{file.name}")
            assert mirror.is_file(), f"{file.relative_to(ROOT)} has no {mirror.relative_to(ROOT)}"


@every_file
def test_a_room_imports_only_what_the_table_allows(file):
    for name in imports(file):
        parts = name.split(".")
        assert parts[0] != "app"
        if room(file) and parts[0] == "deepseek" and len(parts) > 1:
            allowed = ROOMS[room(file)] | {room(file)}
            assert parts[1] in allowed, f"{module(file)} must not import {name}"


@every_file
def test_no_module_uses_the_private_names_of_another(file):
    tree = ast.parse(file.read_text("utf-8"))
    own = {alias.asname or alias.name.split(".")[0] for node in ast.walk(tree) for alias in getattr(node, "names", [])
           if isinstance(node, ast.ImportFrom) and node.module.startswith("deepseek")}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("deepseek"):
            assert not [alias.name for alias in node.names if private(alias.name)], f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in own:
            assert not private(node.attr), f"line {node.lineno}: {node.value.id}.{node.attr}"


def private(name):
    return name.startswith("_") and not name.startswith("__")


@every_file
def test_a_heavy_library_is_imported_in_its_one_place(file):
    libraries = {name.split(".")[0] for name in imports(file)}
    place = file.relative_to(ROOT).as_posix()
    assert "gradio" not in libraries or place == "app.py" or room(file) == "ui"
    assert "plotly" not in libraries or place.startswith("deepseek/ui/plots/")
    assert "datasets" not in libraries or place == "deepseek/data/hub_datasets.py"
    assert "torch" not in libraries or room(file) not in ("kernels", "settings")


def test_importing_the_package_costs_little():
    code = "import sys, time; t = time.perf_counter(); import deepseek; print(time.perf_counter() - t, *sys.modules)"
    seconds, *modules = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split()
    assert "torch" not in modules and "transformers" not in modules and float(seconds) < 0.1


def test_the_public_names():
    assert deepseek.__all__ == ["SamplingParams", "TokenTrace", "Trace", "load", "preset", "stream", "trace"]
    assert all(callable(getattr(deepseek, name)) for name in deepseek.__all__)
    assert set(deepseek.__all__) <= set(dir(deepseek))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = deepseek.nothing


@every_file
def test_every_module_and_public_definition_has_a_docstring(file):
    tree = ast.parse(file.read_text("utf-8"))
    definitions = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    public = [node for node in definitions if node.name[0] != "_" and node.name != "main"]  # `main`: the module's own
    missing = [node.name for node in public if not ast.get_docstring(node)]
    assert len(ast.get_docstring(tree) or "") > 10, "the module has no docstring"
    assert not missing


@every_file
def test_what_a_public_function_raises_stands_in_its_docstring(file):
    for name, function in public_functions(file):
        own = [node for part in function.body for node in ast.walk(part) if not isinstance(part, ast.FunctionDef)]
        if any(isinstance(node, ast.Raise) and node.exc for node in own):  # less the page's handlers, defined inside
            assert re.search("[Rr]aise|[Rr]efuse|exits", ast.get_docstring(function) or ""), name


@every_file
def test_public_methods_have_a_docstring_unless_they_are_a_librarys(file):
    """A class with a base overrides what its library documents; a property's name says what it is."""
    assert not [name for name, function in public_functions(file) if not ast.get_docstring(function)]


def public_functions(file):
    """(name, node) of the functions and plain methods of a file that others may call."""
    tree = ast.parse(file.read_text("utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_" and not node.bases]
    for scope in [tree, *classes]:
        for node in scope.body:
            public = isinstance(node, ast.FunctionDef) and node.name[0] != "_" and node.name != "main"
            if public and not (scope is not tree and node.decorator_list):
                yield node.name, node


@every_file
def test_no_module_is_longer_than_a_person_reads(file):
    assert len(file.read_text("utf-8").splitlines()) <= MAX_LINES
