"""The project as `pip install` leaves it: a wheel built from the working tree, in a folder of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipelines", "uml_core", "tune_spaces")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
OFFLINE = ("--no-deps", "--no-index")


def install(directory: Path) -> Path:
    """Build the wheel from a copy, since setuptools writes into what it builds, and install it; returns the folder."""
    source, installed = directory / "source", directory / "installed"
    for folder in (*PACKAGES, "examples"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=ignored)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    wheels = directory / "wheels"
    subprocess.run(
        [*PIP, "wheel", *OFFLINE, "--no-build-isolation", "-w", str(wheels), str(source)], check=True, cwd=directory
    )
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*PIP, "install", *OFFLINE, "--target", str(installed), str(wheel)], check=True, cwd=directory)
    return installed
