"""The code beside that of others: sizes of files and functions, comments, folders, tests, as one Markdown table.

    python -m benchmarks.house                             # this working tree, beside the anchors
    python -m benchmarks.house 4cf9077 HEAD~10             # and commits of this repository
    python -m benchmarks.house --tree DIR FOLDER [FOLDER]  # folders of another checkout: how the anchors were measured

Tests, benchmarks and empty files are no source. A function's lines include docstring and decorators; a comment line
holds a comment, alone or behind code, and counts per hundred lines that are not blank. Circles and upward imports are
in `tests/unit/test_architecture.py`.
"""

from __future__ import annotations

import argparse
import ast
import io
import statistics
import subprocess
import sys
import tarfile
import tempfile
import tokenize
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ("uml_core", "pipelines", "tune_spaces")
# The columns of three codebases, as --tree gives them: torchtitan of pytorch at b5bcd76, big_vision at 0127fb6, and the
# folders nanochat, scripts and tasks of nanochat at 92d63d4.
ANCHORS = {
    "torchtitan": ("331", "97,593", "205", "2,451", "16", "63", "8.3", "34", "2", "1,353", "161", "139", "0.49"),
    "big_vision": ("222", "52,244", "167", "4,758", "12", "52", "17.3", "35", "7", "819", "107", "0", "0.06"),
    "nanochat": ("28", "6,587", "231", "604", "10", "47", "19.0", "13", "0", "88", "4", "0", "0.16"),
}


@dataclass(frozen=True)
class SourceFile:
    """One file of source, parsed."""

    path: Path  # below the tree
    lines: Sequence[str]
    comment_lines: int
    nodes: Sequence[ast.AST]


def source_files(tree: Path, folders: Sequence[str]) -> list[SourceFile]:
    """The files of source below some folders."""
    found = []
    for path in sorted(path for folder in folders for path in (tree / folder).rglob("*.py")):
        relative, text = path.relative_to(tree), path.read_text(encoding="utf-8")
        if not text.strip() or is_test(relative):
            continue
        try:
            nodes = list(ast.walk(ast.parse(text)))
        except SyntaxError as error:  # big_vision has one
            print(f"left out: {relative}, {error}", file=sys.stderr)
            continue
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        comments = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
        found.append(SourceFile(relative, text.splitlines(), len(comments), nodes))
    return found


def is_test(path: Path) -> bool:
    """Whether a file is a test or serves tests alone, by the names the anchors use."""
    return "tests" in path.parts or path.name.startswith("test_") or path.name.endswith("_test.py")


def measured(tree: Path, folders: Sequence[str]) -> list[tuple[str, str]]:
    """A column of the table: what is counted, and its number."""
    files = source_files(tree, folders)
    nodes = [node for file in files for node in file.nodes]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    spans = [len(_lines(node)) for node in functions]
    docstrings = [text for node in functions if (text := ast.get_docstring(node))]
    num_lines = sum(len(file.lines) for file in files)
    num_filled = sum(bool(line.strip()) for file in files for line in file.lines)
    tests = [path for path in tree.rglob("*.py") if is_test(path.relative_to(tree)) and ".venv" not in path.parts]
    num_test_lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in tests)
    packages = [tree / folder for folder in folders if any((tree / folder).glob("*/*.py"))]
    loose = [path for package in packages for path in package.glob("*.py") if path.name != "__init__.py"]
    return [
        ("files", f"{len(files)}"),
        ("lines", f"{num_lines:,}"),
        ("lines of a file, median", f"{statistics.median(len(file.lines) for file in files):.0f}"),
        ("... of the largest", f"{max(len(file.lines) for file in files):,}"),
        ("lines of a function, median", f"{statistics.median(spans):.0f}"),
        ("... 90th percentile", f"{statistics.quantiles(spans, n=10)[-1]:.0f}"),
        ("comment lines a hundred", f"{100 * sum(file.comment_lines for file in files) / num_filled:.1f}"),
        ("most files in a folder", f"{max(Counter(file.path.parent for file in files).values())}"),
        ("files loose beside folders", f"{len(loose)}"),
        ("functions' docstrings", f"{len(docstrings):,}"),
        ("... that begin with Return", f"{sum(text.startswith('Return') for text in docstrings)}"),
        ("imports of libraries' private names", f"{sum(_is_private_import(node, folders) for node in nodes)}"),
        ("lines of tests to lines of source", f"{num_test_lines / num_lines:.2f}"),
    ]


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> range:
    """The lines from the first decorator to the end of the body."""
    first = min(node.lineno for node in (function, *function.decorator_list))
    return range(first, (function.end_lineno or first) + 1)


def _is_private_import(node: ast.AST, own: Sequence[str]) -> bool:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module != "__future__" and node.level == 0:
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        return False
    parts = [name.split(".") for name in names]
    return any(first not in own and any(part.startswith(("_", "internal_")) for part in rest) for first, *rest in parts)


def measured_at(commit: str) -> list[tuple[str, str]]:
    """The column of a commit of this repository."""
    archive = subprocess.run(["git", "-C", ROOT, "archive", commit], check=True, capture_output=True).stdout
    with tempfile.TemporaryDirectory() as directory, tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(directory, filter="data")
        return measured(Path(directory), SOURCE)


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="commits of this repository; with --tree, folders")
    parser.add_argument("--tree", type=Path, help="another checkout, alone")
    arguments = parser.parse_args(argv)
    if arguments.tree is not None:
        columns = {arguments.tree.resolve().name: measured(arguments.tree, arguments.names)}
    else:
        columns = {commit: measured_at(commit) for commit in arguments.names} | {"now": measured(ROOT, SOURCE)}
    names = [name for name, _ in next(iter(columns.values()))]
    cells = {name: dict(column) for name, column in columns.items()}
    if arguments.tree is None:
        cells |= {anchor: dict(zip(names, values, strict=True)) for anchor, values in ANCHORS.items()}
    print(f"| | {' | '.join(cells)} |\n|---|{'--:|' * len(cells)}")
    for name in names:
        print(f"| {name} | {' | '.join(column[name] for column in cells.values())} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
