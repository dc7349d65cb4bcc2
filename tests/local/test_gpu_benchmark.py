"""`benchmarks.gpu` runs here as it would on a GPU, and neither it nor the tests on a GPU need ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu

ROOT = Path(__file__).parents[2]
IMPORTS = """
import sys
import benchmarks.gpu, tests.conftest, tests.gpu.test_heads, tests.gpu.test_encoders, tests.gpu.test_ranks
print(sorted({"ray", "pipelines", "mlflow"} & set(sys.modules)))
"""


def test_the_small_run_gives_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--small", "--peak-tflops", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    figures = json.loads(lines[-1])
    assert sum(line.startswith("| ") for line in lines) == len(figures) + 1, "a row each, and the head of the table"
    for part in (
        "samples/s",
        "model FLOPs utilisation",
        "matrix products",
        "optimiser",
        "one after another",
        "from a file",
        "rows/s",
    ):
        assert any(part in name for name in figures), part
    for name, (ours, bare) in figures.items():
        assert ours >= 0, name
        assert bare is None or bare > 0, name
        if "share" in name:
            assert ours <= 1, name


def test_without_a_gpu_it_says_what_it_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--small" in error


def test_a_gpu_machine_needs_no_ray() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
