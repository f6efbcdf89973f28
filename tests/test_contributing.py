"""CONTRIBUTING's table of dependencies against the requirements files and the imports."""

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


def imported(files):
    """The top-level packages that Python files import, without the standard library's."""
    packages = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            packages |= {name.split(".")[0] for name in names + [getattr(node, "module", None) or ""]}
    return packages - set(sys.stdlib_module_names) - {"", "deepseek"}


def test_every_dependency_has_a_row_with_a_reason():
    table = re.findall(r"^\| ([\w-]+) \| (.+) \|$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.M)
    reasons = {name: reason for name, reason in table if name != "package"}
    assert sorted(reasons) == sorted(required("requirements.txt") + required("tests/requirements.txt"))
    assert all(len(reason) >= 5 for reason in reasons.values())


def test_the_requirements_are_the_imports():
    files = [ROOT / "app.py", *(ROOT / "deepseek").rglob("*.py")]
    transitive = {"starlette", "pydantic", "llvmlite"}  # of gradio and numba
    optional = {"accelerate"}  # transformers imports it for FP8
    assert imported(files) - {"spaces"} - transitive | optional == set(
        required("requirements.txt")
    )  # `spaces`: a Space's


def test_the_python_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    readme = (ROOT / "README.md").read_text("utf-8")
    assert project["requires-python"] == ">=3.11" and 'python_version: "3.12"' in readme
    assert "Python 3.11 or 3.12" in readme and sys.version_info >= (3, 11)
