"""The two wings: uml_core is the method and never imports ray; pipelines is the wiring and holds no maths."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

from pipelines import ONE_FILE, STEPS

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


# Each line of rooms uses those above it and its own; a room may use those to its left in its line.
ROOMS = (
    ("errors", "plugins"),
    ("figures", "files", "config"),
    ("corpora", "sweeps"),
    ("store", "encoders"),
    ("data",),
    ("models",),
    ("classifier",),
    ("transfer", "gradients", "serving"),
    ("feed", "tracking"),
    ("training",),
    ("evaluation",),
    ("analysis", "theory"),
    ("reporting",),
)
ORDER = [room for line in ROOMS for room in line]
STEP_ROOMS = {*STEPS.keys() - set(ONE_FILE), "ray_train"}


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def arrows() -> dict[str, set[str]]:
    """Every file with those of ours that it imports, lazily and for types alone, too."""
    known = {module_of(file): file for wing in ("uml_core", "pipelines", "tune_spaces") for file in files(wing)}
    found: dict[str, set[str]] = {}
    for name, file in known.items():
        reached = set()
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.Import):
                reached |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                reached |= (inner & known.keys()) | ({node.module} if inner - known.keys() else set())
        found[name] = (reached & known.keys()) - {name}
    return found


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "uml_core" and len(parts) > 1 else None


def test_every_part_of_the_method_lies_in_a_room() -> None:
    found = {room_of(name) for name in arrows()} - {None}
    assert found == set(ORDER)
    folders = {path.name for path in (ROOT / "pipelines").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == STEP_ROOMS


def test_rooms_use_only_those_below_them() -> None:
    for name, reached in arrows().items():
        for other in reached:
            here, there = room_of(name), room_of(other)
            if here is not None and there is not None:
                assert ORDER.index(there) <= ORDER.index(here), f"{name} imports {other}"


def test_no_file_reaches_itself_through_its_imports() -> None:
    settled: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"circle: {' -> '.join([*way[way.index(name) :], name])}"
        if name not in settled:
            for other in sorted(arrows()[name]):
                visit(other, (*way, name))
            settled.add(name)

    for name in arrows():
        visit(name, ())


def hops() -> list[tuple[str, str]]:
    """File and definition of every row of the two tables of the main path in docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    path = text[text.index("<!-- hops -->") : text.index("\n## Contracts")]
    return re.findall(r"^\| \d+ \| `([\w/.]+)` \| `(\w+)` \|", path, flags=re.MULTILINE)


def test_the_main_path_is_as_documented_and_short() -> None:
    found = hops()
    modules = [module_of(ROOT / file) for file, _ in found]
    last = modules.index("uml_core.feed.embeddings")  # the batch that `train_step` takes
    for file, name in found:
        defined = {getattr(node, "name", None) for node in tree_of(ROOT / file).body}
        assert name in defined, f"{file} defines no {name}"
    for index, module in enumerate(modules):
        before = {reached for other in modules[:index] for reached in arrows()[other]}
        before |= {handed_on for reached in before & {"uml_core.encoders"} for handed_on in arrows()[reached]}
        is_start = module in ("pipelines.embed.step", "pipelines.train.step")
        assert is_start or module in before, f"nothing leads to {module}"
    assert len(found) <= 25
    assert sum((ROOT / file).read_text(encoding="utf-8").count("\n") for file, _ in found[: last + 1]) <= 3500
