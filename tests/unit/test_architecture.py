"""The two wings: uml_core is the method and never imports ray; pipelines is the wiring and holds no maths."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What maths is done with. numpy and torch carry data through the wiring; these functions of theirs compute.
MATHS_MODULES = {"scipy", "sklearn", "statistics", "math"}
MATHS_CALLS = {
    *("mean", "std", "var", "dot", "matmul", "einsum", "softmax", "cross_entropy", "normalize", "norm", "exp", "log"),
    *("backward", "argmax", "linalg", "corrcoef", "quantile", "median"),
}


@functools.cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} uses a relative import"
            names.add(node.module or "")
    return names


@functools.cache
def packages(file: Path) -> frozenset[str]:
    return frozenset(name.split(".")[0] for name in imports(file))


def files(room: str) -> list[Path]:
    found = sorted((ROOT / room).rglob("*.py"))
    assert found, f"no files in {room}"
    return found


def test_method_never_imports_ray_or_the_wiring() -> None:
    for file in files("uml_core") + files("tune_spaces"):
        assert not packages(file) & {"ray", "pipelines"}, file


def test_only_tracking_imports_mlflow() -> None:
    for file in files("uml_core") + files("pipelines"):
        if file.parent != ROOT / "uml_core" / "tracking":
            assert "mlflow" not in packages(file), file


def test_wiring_holds_no_maths() -> None:
    for file in files("pipelines"):
        assert not packages(file) & MATHS_MODULES, file
        nodes = list(ast.walk(tree_of(file)))
        calls = [node.func for node in nodes if isinstance(node, ast.Call)]
        called = {function.attr for function in calls if isinstance(function, ast.Attribute)}
        assert not called & MATHS_CALLS, file
        assert not [node for node in nodes if isinstance(node, ast.MatMult)], file


def test_the_check_itself_sees_a_violation(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("import ray.data\nfrom mlflow import log_metric\n", encoding="utf-8")
    assert imports(bad) == {"ray.data", "mlflow"}
