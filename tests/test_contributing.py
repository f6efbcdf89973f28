"""CONTRIBUTING's table of dependencies, and what is installed and imported."""

import ast
import re
import sys
import tomllib

from running import ROOT

PIN = re.compile(r"([\w-]+)==[\d.]+|(torch)>=2\.8,<=[\d.]+")


def required(name):
    """The packages of a requirements file, each pinned; torch is a range, because hosts bring their own build."""
    pins = [PIN.fullmatch(line) for line in (ROOT / name).read_text().splitlines()]
    assert all(pins), name
    return [pin[1] or pin[2] for pin in pins]


def imported(folder):
    """The top-level packages that Python files import, less the standard library's."""
    found = set()
    for file in folder:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found |= {name.split(".")[0] for name in names + [getattr(node, "module", None) or ""]}
    return found - set(sys.stdlib_module_names) - {"", "deepseek"}


def test_every_dependency_has_its_row_and_its_reason():
    table = re.findall(r"^\| ([\w-]+) \| (.+) \|$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.M)
    rows = {name: reason for name, reason in table if name != "package"}
    assert sorted(rows) == sorted(required("requirements.txt") + required("tests/requirements.txt"))
    assert all(len(reason) >= 5 for reason in rows.values())


def test_what_is_required_is_imported_and_the_other_way_round():
    files = [ROOT / "app.py", *(ROOT / "deepseek").rglob("*.py")]
    brought = {"starlette", "pydantic", "llvmlite"}  # what gradio and numba are made of
    assert imported(files) - {"spaces"} - brought == set(required("requirements.txt"))  # `spaces`: on a Space alone


def test_the_pythons_are_those_that_a_space_and_the_readme_name():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    readme = (ROOT / "README.md").read_text("utf-8")
    assert project["requires-python"] == ">=3.11" and 'python_version: "3.12"' in readme
    assert "Python 3.11 or 3.12" in readme and sys.version_info >= (3, 11)
