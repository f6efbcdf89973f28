"""How the files hang together, read from their syntax trees."""

import ast
import re
from pathlib import Path

import pytest

import deepseek

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "app.py", *sorted((ROOT / "deepseek").rglob("*.py"))]
# Imports run one way: a module may import those of later lines only.
LAYERS = [
    {"app"},
    {"ui"},
    {"generate", "bench"},
    {"plots", "runs", "record", "worker", "warm"},
    {"engine", "routing"},
    {"intervene", "train"},
    {"room"},
    {"settings"},
    {"observe"},
    {"trace"},
    {"decode", "evaluate", "held", "parallel", "sampling", "text"},
    {"checkpoint", "data", "process"},
    {"model", "folder"},
    {"candidates", "product"},
    {"attention", "balance", "config", "grouped", "history", "kernels", "loss", "norm", "sources"},
]
DEPTH = {module: depth for depth, layer in enumerate(LAYERS) for module in layer}

every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))


def module(file):
    """The name of a file in LAYERS; everything in deepseek/ui/ is "ui", and deepseek/__init__.py is "deepseek"."""
    path = file.relative_to(ROOT).with_suffix("").parts
    return "deepseek" if path[-1] == "__init__" and len(path) == 2 else path[min(1, len(path) - 1)]


def imports(file):
    """Every dotted name that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: imports are written with their full name"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@every_file
def test_a_heavy_library_is_imported_in_its_one_place(file):
    used = {name.split(".")[0] for name in imports(file)}
    assert "gradio" not in used or module(file) in ("app", "ui")
    assert "plotly" not in used or module(file) == "plots"
    assert "datasets" not in used or module(file) == "sources"


@every_file
def test_imports_run_one_way(file):
    name = module(file)
    if name == "deepseek":
        return  # gathers the public names, and may take them from anywhere
    assert name in DEPTH, f"{name} has no place in LAYERS"
    for imported in imports(file):
        parts = imported.split(".")
        if parts[0] == "deepseek" and len(parts) > 1 and parts[1] in DEPTH and parts[1] != name:
            assert DEPTH[parts[1]] > DEPTH[name], f"{name} must not import {imported}"
        assert parts[0] != "app"


def test_the_public_names():
    assert sorted(deepseek.__all__) == ["SamplingParams", "TokenTrace", "Trace", "load", "preset", "stream", "trace"]
    assert all(hasattr(deepseek, name) for name in deepseek.__all__)


@every_file
def test_every_module_and_public_definition_has_a_docstring(file):
    tree = ast.parse(file.read_text("utf-8"))
    definitions = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    public = [node for node in definitions if node.name[0] != "_" and node.name != "main"]  # `main`: the module's own
    missing = [node.name for node in public if not ast.get_docstring(node)]
    assert ast.get_docstring(tree) or not tree.body, "the module has no docstring"
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
def test_no_file_is_longer_than_a_person_reads(file):
    assert len(file.read_text("utf-8").splitlines()) <= 600
