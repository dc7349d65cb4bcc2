"""Storage that fails and disks that are full: waited for, else said in one line; and the same line goes on."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from pipelines import storage_watch
from pipelines.embed.__main__ import main as embed_main
from pipelines.predict.__main__ import main as predict_main
from pipelines.report.__main__ import main as report_main
from pipelines.storage_watch import INTERRUPTED
from pipelines.train.__main__ import main as train_main
from pipelines.tune import trial
from pipelines.tune.__main__ import main as tune_main
from tests.conftest import vector_tree, write_vector_corpora
from tests.servers import FaultyS3
from uml_core.config import Experiment, parse_experiment
from uml_core.files import lease, outages
from uml_core.files.paths import filesystem_of, open_bytes, remote
from uml_core.tracking.reading import download, experiment_runs

ROOT = Path(__file__).parents[2]
Say = pytest.CaptureFixture[str]
OFTEN = {"train": {"max_steps": 60, "eval_every": 20, "batch_size": 8, "report_every_s": 0.001, "report_share": 1}}


def write(experiment: Experiment, directory: Path) -> str:
    file = directory / f"{experiment.name}.yaml"
    file.write_text(experiment.to_yaml(), encoding="utf-8")
    return str(file)


def ended_with(said: str) -> str:
    """What a step wrote to stderr: one line of ours, after warnings of what was found."""
    (line,) = [line for line in said.splitlines() if not line.startswith("WARNING")]
    return line


def trained(experiment: Experiment, directory: Path) -> bytes:
    """The weights of the one training run, which has ended well."""
    (run,) = [run for run in experiment_runs(experiment.tracking.uri, experiment.name) if run.kind == "uml"]
    assert run.status == "FINISHED"
    weights = f"runs:/{run.run_id}/weights/model.safetensors"
    return Path(download(experiment.tracking.uri, weights, directory / experiment.name)).read_bytes()


def test_storage_is_waited_for(s3_bucket: str, s3_server: FaultyS3) -> None:
    filesystem, path = remote(f"{s3_bucket}/file")
    with filesystem.open_output_stream(path) as stream:
        stream.write(b"here")
    s3_server.go_down(1)
    assert open_bytes(f"{s3_bucket}/file").read() == b"here"
    s3_server.shares, s3_server.slow_s = {"slow": 1}, 3.5  # the SDK's own patience is 3 s
    assert filesystem.get_file_info(path).size == 4
    assert s3_server.injected["500"] > 3


WAITS = """
import logging
from pipelines.storage_watch import outages_said
from uml_core.files.paths import opened
logging.basicConfig()
filesystem, path = opened("s3://uml-tests/file")
with outages_said(filesystem, path):
    filesystem.get_file_info(path)
"""


@pytest.mark.usefixtures("s3_bucket")
def test_an_outage_is_said_and_ctrl_c_ends_it(s3_server: FaultyS3) -> None:
    """In C, where the storage's client waits for seven minutes, Python hears nothing."""
    s3_server.go_down(600)
    with subprocess.Popen([sys.executable, "-c", WAITS], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "storage s3://uml-tests does not answer; it is waited for" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == INTERRUPTED
        assert process.stderr.read().strip() == "interrupted; the same line goes on where this one stopped"


def test_that_storage_is_back_is_said(
    s3_bucket: str, s3_server: FaultyS3, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(storage_watch, "ASK_S", 0.05)
    with storage_watch.outages_said(*remote(f"{s3_bucket}/file")):
        for count, down_s in ((1, 600), (2, 0)):
            s3_server.go_down(down_s)
            deadline = time.monotonic() + 60
            while len(caplog.messages) < count and time.monotonic() < deadline:
                time.sleep(0.05)
    away, back = caplog.messages
    assert away == "storage s3://uml-tests does not answer; it is waited for, seven minutes at most"
    assert back.startswith("storage s3://uml-tests answers again after ")


def answer(code: str, **facts: object) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "said"}, "ResponseMetadata": facts}, "PutObject")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError("When reading: AWS Error ACCESS_DENIED during HeadObject operation: No response body."), "refuses"),
        (OSError("When reading: AWS Error UNKNOWN (HTTP status 400) during HeadObject operation: none."), "refuses"),
        (OSError("When reading: AWS Error UNKNOWN (HTTP status 500) during HeadObject operation: none."), "no answer"),
        (OSError("When listing: AWS Error UNKNOWN during ListObjectsV2 operation: cannot be parsed"), "no answer"),
        (OSError("When reading: AWS Error NETWORK_CONNECTION during HeadObject operation: none."), "no answer"),
        (answer("AccessDenied"), "refuses"),
        (NoCredentialsError(), "refuses"),
        (answer("500", MaxAttemptsReached=True, RetryAttempts=39), "no answer"),
        (EndpointConnectionError(endpoint_url="http://x"), "no answer"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), "full"),
        (OSError(errno.EACCES, "Permission denied", "x"), ""),
    ],
)
def test_what_is_said_of_storage_that_refuses_and_of_one_that_is_away(error: Exception, expected: str) -> None:
    said = {
        "refuses": "storage refuses it",
        "no answer": "storage does not answer",
        "full": "a disk is full",
        "": "None",
    }
    assert str(outages.outage_of(error)).startswith(said[expected])


@pytest.mark.parametrize(
    "place", ["s3://uml-nothing/store", "s3://uml/store?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"]
)
@pytest.mark.usefixtures("s3_server")
def test_a_mistyped_store_is_said_at_once(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Say
) -> None:
    monkeypatch.setattr(outages, "MAX_ATTEMPTS", 4)
    write_vector_corpora(tmp_path)
    file = write(parse_experiment(vector_tree(tmp_path)), tmp_path)
    capsys.readouterr()
    assert embed_main([file, f"store={place}"]) == 2
    assert ended_with(capsys.readouterr().err).startswith(f"error: store is {place}, which cannot be opened: ")


@pytest.mark.parametrize(
    ("error", "kept"), [(OSError(errno.ENOSPC, "full"), None), (KeyError("x"), "KeyError: 'x'")], ids=["outage", "ours"]
)
def test_an_outage_is_no_trials_failure(
    error: Exception, kept: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(trial, "train_heads", fails)
    place = str(tmp_path / "trials")
    given = {"trials": [trial.Assignment("a", ("uml", "", 0), {})]}
    with pytest.raises(type(error)):
        trial.train_trials(given, tables={}, experiment=parse_experiment(vector_tree(tmp_path)), folder_uri=place)
    result = trial.SweepFolder(place).read("a")
    assert (result and result.error) == kept


def test_storage_that_stays_away(
    s3_bucket: str, s3_server: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Say
) -> None:
    write_vector_corpora(tmp_path)
    monkeypatch.setattr(outages, "MAX_ATTEMPTS", 4)
    monkeypatch.setattr(lease, "SETTLE_S", 0.05)
    filesystem_of.cache_clear()
    apart = parse_experiment(vector_tree(tmp_path, name="apart", **OFTEN))
    experiment = apart.override({"name": "away", "store": f"{s3_bucket}/store"})
    assert [main([write(apart, tmp_path)]) for main in (embed_main, train_main)] == [0, 0]
    line = [write(experiment, tmp_path)]
    sweep = [*line, "--space", "closed_form", "tune.seeds=1"]
    for main, flags, refused in (
        (embed_main, line, "part-"),
        (train_main, line, "checkpoint_"),
        (tune_main, sweep, ".pt"),
    ):
        capsys.readouterr()
        s3_server.refused = refused
        assert main(flags) == 2
        said = ended_with(capsys.readouterr().err)
        assert re.match(r"error: storage does not answer; .* run the same line, .*HTTP status 500", said), said
        s3_server.refused = ""
        assert main(flags) == 0
    assert trained(experiment, tmp_path) == trained(apart, tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    disk, asked = tmp_path / "disk", [] if os.geteuid() == 0 else ["sudo", "-n"]
    disk.mkdir()
    mount = [*asked, "mount", "-t", "tmpfs", "-o", f"size=4m,uid={os.getuid()}", "tmpfs", str(disk)]
    if (shutil.which(mount[0]) is None) or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a disk of its own can only be mounted by root, or by who may call sudo without a password")
    yield disk
    subprocess.run([*asked, "umount", "--lazy", str(disk)], check=True)


def test_a_full_disk(small_disk: Path, tmp_path: Path, capsys: Say) -> None:
    write_vector_corpora(tmp_path)
    apart = parse_experiment(vector_tree(tmp_path, name="apart", **OFTEN))
    experiment = apart.override({"name": "full", "store": str(small_disk / "store")})
    assert [main([write(apart, tmp_path)]) for main in (embed_main, train_main)] == [0, 0]
    line, filler = [write(experiment, tmp_path)], small_disk / "filler"

    def predict(flags: list[str]) -> int:
        (run,) = [run for run in experiment_runs(experiment.tracking.uri, "full") if run.kind == "uml"]
        inputs = ["--input", str(tmp_path / "target.parquet"), "--output", str(small_disk / "predictions.parquet")]
        return predict_main(
            ["--model", f"runs:/{run.run_id}/model", "--tracking-uri", experiment.tracking.uri, *inputs]
        )

    mains: list[tuple[Callable[[list[str]], int], list[str], int]] = [
        (embed_main, line, 12),
        (train_main, line, 12),
        (tune_main, [*line, "--space", "closed_form", "tune.seeds=1"], 12),
        (report_main, [*line, "--output", str(small_disk / "report")], 12),
        (predict, ["--output", str(small_disk / "predictions.parquet")], 0),
    ]
    for main, flags, left_kib in mains:
        capsys.readouterr()
        filler.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - left_kib * 1024))
        assert main(flags) == 2, main
        said = ended_with(capsys.readouterr().err)
        assert re.match(r"error: .*No space left on device", said), said
        assert str(small_disk) in said, said
        filler.unlink()
        assert main(flags) == 0
    assert trained(experiment, tmp_path) == trained(apart, tmp_path)
