"""Embedding under kill -9 of the driver, of an encode actor, and of two runs at once: every row exactly once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from pipelines import embed
from pipelines.stored import corpus_store
from tests.conftest import picture_tree, write_picture_corpora
from uml_core.config import Experiment, parse_experiment

ROOT = Path(__file__).parents[2]


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    write_picture_corpora(tmp_path, counts={"train": 24, "val": 2, "test": 2})
    tree = {**picture_tree(tmp_path), "embed": {"part_rows": 4, "max_rejected": 0.2}}
    del tree["corpora"]["names"]
    experiment = parse_experiment(tree)
    for file in sorted((tmp_path / "pictures" / "train").rglob("*.png"))[::9]:
        file.write_bytes(file.read_bytes()[:60])
    (tmp_path / "experiment.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
    return experiment


def start(tmp_path: Path) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "pipelines.embed", str(tmp_path / "experiment.yaml")]
    return subprocess.Popen(
        line, cwd=ROOT, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def parts(experiment: Experiment) -> int:
    return len(list(Path(corpus_store(experiment, "pictures").directory).glob("part-*")))


def wait_for_parts(experiment: Experiment, count: int, driver: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while parts(experiment) < count:
        assert driver.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def check_exactly_once(experiment: Experiment, tmp_path: Path) -> None:
    folder = Path(corpus_store(experiment, "pictures").directory)
    names = json.loads((folder / "manifest.json").read_text())["parts"]
    assert sorted(names) == sorted(file.name for file in folder.glob("part-*"))
    embedded = [row for name in names for row in pq.read_table(folder / name)["id"].to_pylist()]
    rejected = pq.read_table(folder / "rejected.parquet")["id"].to_pylist()
    files = (tmp_path / "pictures").rglob("*.png")
    expected = Counter(file.relative_to(tmp_path / "pictures").as_posix() for file in files)
    assert Counter(embedded + rejected) == expected
    assert len(rejected) == 8
    assert not list(folder.glob("tmp-*"))


def test_kill_9_at_a_random_moment_and_the_same_line_again(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    driver = start(tmp_path)
    wait_for_parts(experiment, 1, driver)
    time.sleep(random.Random(time.time_ns()).uniform(0, 0.5))
    os.killpg(driver.pid, signal.SIGKILL)  # the driver and the whole of its Ray
    driver.communicate()
    assert corpus_store(experiment, "pictures").read_manifest() is None or parts(experiment) >= 21
    before = part_times(experiment)
    assert embed.main([str(tmp_path / "experiment.yaml")]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["corpora"]["pictures"]["rows"] == 76
    check_exactly_once(experiment, tmp_path)
    assert before.items() <= part_times(experiment).items(), "done is done"


def part_times(experiment: Experiment) -> dict[str, int]:
    folder = Path(corpus_store(experiment, "pictures").directory)
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("part-*")}


def test_kill_9_of_an_encode_actor_and_a_second_run_at_the_same_time(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = start(tmp_path)
    wait_for_parts(experiment, 2, first)
    with ThreadPoolExecutor(1) as beside:
        second = beside.submit(embed.run, experiment)
        actors = [
            process
            for process in psutil.Process(first.pid).children(recursive=True)
            if "EncodePart" in " ".join(process.cmdline())
        ]
        assert actors
        for actor in actors:
            actor.kill()
        _, error = first.communicate(timeout=120)
        assert first.returncode == 0, error
        assert second.result(timeout=120).results["corpora"]["pictures"]["rows"] == 76
    assert "corpus pictures is being embedded by another run" in capsys.readouterr().err
    check_exactly_once(experiment, tmp_path)
