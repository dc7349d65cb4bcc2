"""The two wings: uml_core is the method and never imports ray; pipelines is the wiring and holds no maths."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What maths is done with. numpy and torch carry data through the wiring; these functions of theirs compute.
MATHS_MODULES = {"scipy", "sklearn", "statistics", "math"}
MATHS_CALLS = {
    *("mean", "std", "var", "dot", "matmul", "einsum", "softmax", "cross_entropy", "normalize", "norm", "exp", "log"),
    *("backward", "argmax", "linalg", "corrcoef", "quantile", "median"),
}


def imports(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} uses a relative import"
            names.add(node.module or "")
    return names


def files(room: str) -> list[Path]:
    found = sorted((ROOT / room).rglob("*.py"))
    assert found, f"no files in {room}"
    return found


@pytest.mark.parametrize("file", files("uml_core") + files("tune_spaces"), ids=lambda file: str(file.relative_to(ROOT)))
def test_method_never_imports_ray_or_the_wiring(file: Path) -> None:
    tops = {name.split(".")[0] for name in imports(file)}
    assert not tops & {"ray", "pipelines"}


@pytest.mark.parametrize("file", files("uml_core") + files("pipelines"), ids=lambda file: str(file.relative_to(ROOT)))
def test_only_tracking_imports_mlflow(file: Path) -> None:
    if file.parent != ROOT / "uml_core" / "tracking":
        assert "mlflow" not in {name.split(".")[0] for name in imports(file)}


@pytest.mark.parametrize("file", files("pipelines"), ids=lambda file: file.name)
def test_wiring_holds_no_maths(file: Path) -> None:
    assert not {name.split(".")[0] for name in imports(file)} & MATHS_MODULES
    tree = ast.parse(file.read_text(encoding="utf-8"))
    called = {
        node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert not called & MATHS_CALLS
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.MatMult)]


def test_the_check_itself_sees_a_violation(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("import ray.data\nfrom mlflow import log_metric\n", encoding="utf-8")
    assert imports(bad) == {"ray.data", "mlflow"}
