"""Planted secrets: whatever a user may give as one stands in nothing that a step writes, shows or logs."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from pipelines.embed import __main__ as embed
from pipelines.report import __main__ as report
from pipelines.status import __main__ as status
from pipelines.train import __main__ as train
from pipelines.tune import __main__ as tune
from tests.conftest import vector_tree, write_vector_corpora
from tests.servers import MLflowServer
from uml_core.config import parse_experiment
from uml_core.files.paths import remote

PLANTED = "planted-7f3a"


def test_no_secret_is_written_or_shown(
    server: MLflowServer,
    s3_bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "uml_core")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{PLANTED}-storage")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", f"{PLANTED}-mlflow")
    monkeypatch.setenv("RAY_AUTH_TOKEN", f"{PLANTED}-token")
    write_vector_corpora(tmp_path)
    tracking = {"uri": server.uri.replace("://", f"://uml:{PLANTED}-user@")}
    tree = vector_tree(tmp_path, store=f"{s3_bucket}/run/store", tracking=tracking, tune={"seeds": 2})
    file = tmp_path / "pets.yaml"
    shown = tmp_path / "written"
    shown.mkdir()
    file.write_text(parse_experiment(tree).to_yaml(), encoding="utf-8")
    statuses = []
    for step, flags in (
        (embed, []),
        (train, ["train.max_steps=2"]),
        (tune, ["--space", "closed_form"]),
        (report, ["--output", str(shown / "page"), "--timings"]),
        (status, []),
        (train, ["--dry-run"]),
        (tune, ["--space", "nonsense"]),
    ):
        statuses.append(step.main([str(file), *flags]))
    assert statuses == [0] * 6 + [2]
    said = capfd.readouterr()
    assert "closed_form: " in said.out
    assert PLANTED not in said.out + said.err + caplog.text
    filesystem, path = remote(s3_bucket)
    infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    stored = [filesystem.open_input_stream(info.path).read() for info in infos if info.type == pafs.FileType.File]
    kept = [written.read_bytes() for written in tmp_path.rglob("*") if written.is_file() and written != file]
    assert len(stored) > 5
    assert len(kept) > 10, "the server's database, artifacts, the page"
    assert not [content[:200] for content in [*stored, *kept] if PLANTED.encode() in content]


@pytest.mark.parametrize("key", ["store", "corpora.target.path"])
def test_a_place_with_a_password_is_refused_without_saying_it(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_vector_corpora(tmp_path)
    file = tmp_path / "pets.yaml"
    file.write_text(parse_experiment(vector_tree(tmp_path)).to_yaml(), encoding="utf-8")
    assert embed.main([str(file), f"{key}=s3://key:{PLANTED}@bucket/x"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {key} holds a key and its secret before the @")
    assert PLANTED not in said
