"""The short form of `make cluster`: a head with token authentication, a bucket, and steps by `ray job submit`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from cluster.rehearsal import BUCKET, Cluster
from tests.conftest import vector_tree, write_vector_corpora
from tests.installed import PACKAGES, ROOT
from uml_core.config import parse_experiment
from uml_core.tracking.reading import experiment_runs


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("cluster")
    with Cluster(directory, head_cpus=2, workers=0, mlflow=False) as cluster:
        cluster.upload(write_vector_corpora(directory / "corpora"))
        yield cluster


def packages_in_a_checkout(directory: Path) -> Path:
    """The package as tests/local/test_package.py has it installed, in the checkout of somebody else."""
    theirs = directory / "theirs"
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run([*git, "init", "-q", str(theirs)], check=True)
    subprocess.run([*git, "-C", str(theirs), "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, theirs / "site" / package, ignore=shutil.ignore_patterns("__pycache__"))
    return theirs / "site"


def test_steps_as_a_job_that_uploads_the_experiment_file_alone(cluster: Cluster, tmp_path: Path) -> None:
    installed = packages_in_a_checkout(tmp_path)
    database = f"sqlite:///{cluster.directory}/mlflow.db"
    tracking = {"uri": database, "artifacts": f"s3://{BUCKET}/run/artifacts"}
    tree = vector_tree(tmp_path, store="store", tracking=tracking)
    for corpus, settings in tree["corpora"].items():
        settings["path"] = f"corpora/{corpus}.parquet"
    experiment = parse_experiment(tree)
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "experiment.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
    line = [
        f"export PYTHONPATH={installed}",
        f"{sys.executable} -c 'import pipelines; print(pipelines.__file__)'",
        f"UML_LOG=json {sys.executable} -m pipelines run experiment.yaml --steps embed,train",
        f"env -u UML_ROOT {sys.executable} -m pipelines.train experiment.yaml; test $? = 2",
    ]
    job = cluster.submit(folder, "bash", "-c", " && ".join(line))
    said = job.stdout + job.stderr
    assert job.returncode == 0, said[-6000:]
    assert str(installed / "pipelines" / "__init__.py") in said
    assert "val " in said
    assert "test " in said
    assert "which is a temporary copy; give an absolute place" in said
    runs = experiment_runs(database, experiment.name)
    assert {run.tags["git.commit"] for run in runs if run.kind in ("uml", "unimodal")} == {"unknown"}
    logged = [json.loads(each) for each in said.splitlines() if each.startswith('{"time": ')]
    trained = next(each for each in logged if each["message"].startswith("train uml"))
    assert (trained["level"], trained["step"], trained["experiment"]) == ("INFO", "run", experiment.name)
    assert trained["job_id"].startswith("raysubmit_")
    assert trained["run_id"] in {run.run_id for run in runs}
    written = [file.path.removeprefix(f"{BUCKET}/run/") for file in cluster.files()]
    for start, end in (("store/target/", "/manifest.json"), ("store/_runs/", ".json"), ("artifacts/", "")):
        assert any(path.startswith(start) and path.endswith(end) for path in written), (start, written)
    leaks, looked_at = cluster.leaks()
    assert not leaks
    assert looked_at > len(written) > 10, "logs of the nodes, and the bucket"


@pytest.mark.parametrize("headers", [{}, {"Authorization": f"Bearer {'1' * 64}"}])
def test_who_lacks_the_token_is_refused(cluster: Cluster, headers: dict[str, str]) -> None:
    assert requests.get(f"{cluster.dashboard}/api/jobs/", headers=headers, timeout=5).status_code in (401, 403)
