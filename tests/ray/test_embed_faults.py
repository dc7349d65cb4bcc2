"""Embedding under kill -9 of the driver and of encode actors, and by two runs at once: every row exactly once."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.embed import step as embed
from pipelines.stores import corpus_store
from tests.conftest import picture_tree, write_picture_corpora
from tests.light_encoder import SlowColourGrid, light
from tests.ray.conftest import joining
from uml_core.config import Experiment, parse_experiment

ROOT = Path(__file__).parents[2]


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """21 parts of 4 pictures, 8 damaged: some 6 s of pauses for two actors, in which to kill."""
    write_picture_corpora(tmp_path, counts={"train": 24, "val": 2, "test": 2})
    tree = {**picture_tree(tmp_path), "embed": {"part_rows": 4, "actors": 2, "max_rejected": 0.2}}
    del tree["corpora"]["names"]
    experiment = parse_experiment(light(tree, SlowColourGrid))
    for file in sorted((tmp_path / "pictures" / "train").rglob("*.png"))[::9]:
        file.write_bytes(file.read_bytes()[:60])
    (tmp_path / "experiment.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
    return experiment


def start(tmp_path: Path, environment: Mapping[str, str] = os.environ) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "pipelines.embed", str(tmp_path / "experiment.yaml")]
    kept = subprocess.PIPE
    return subprocess.Popen(
        line, cwd=ROOT, env=environment, start_new_session=True, text=True, stdout=kept, stderr=kept
    )


def parts(experiment: Experiment) -> int:
    return len(list(Path(corpus_store(experiment, "pictures").directory).rglob("part-*")))


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
    assert not list(folder.glob("*tmp-*"))


def part_times(experiment: Experiment) -> dict[str, int]:
    folder = Path(corpus_store(experiment, "pictures").directory)
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("part-*")}


def kill_encode_actors() -> None:
    """Kill -9 every encode actor of the shared Ray; there is one at least."""
    processes = psutil.Process().children(recursive=True)
    actors = [process for process in processes if "EncodePart" in " ".join(process.cmdline())]
    assert actors
    for actor in actors:
        actor.kill()


@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_run_goes_on_through_killed_actors_beside_a_second_run(experiment: Experiment, tmp_path: Path) -> None:
    """One history of one store.

    1. The driver and the whole of its Ray are killed with -9 at a random moment: nothing is published.
    2. The same line again goes on from the parts that are there: done is done.
    3. Its encode actors are killed with -9 while it runs, and a second run of the same line waits beside it.
    4. Both end well, the second without work, and every row is in the store exactly once.
    """
    driver = start(tmp_path)
    wait_for_parts(experiment, 1, driver)
    time.sleep(random.Random(time.time_ns()).uniform(0, 0.5))
    killed = psutil.Process(driver.pid).children(recursive=True)
    os.killpg(driver.pid, signal.SIGKILL)  # the driver and the whole of its Ray
    driver.communicate()
    again = start(tmp_path, joining())
    _, alive = psutil.wait_procs(killed, timeout=60)  # an actor may write its part before it misses its Ray
    assert not alive
    assert corpus_store(experiment, "pictures").read_manifest() is None
    before = part_times(experiment)

    wait_for_parts(experiment, len(before) + 2, again)
    with ThreadPoolExecutor(1) as beside:
        second = beside.submit(embed.run, experiment)
        kill_encode_actors()
        output, error = again.communicate(timeout=120)
        assert again.returncode == 0, error
        found = second.result(timeout=120).results["corpora"]["pictures"]
    first = json.loads(output.splitlines()[-1])["corpora"]["pictures"]
    assert (first["rows"], first["up_to_date"]) == (76, False)
    assert found["up_to_date"]
    for name in ("rows", "encoded_rows", "wall_s", "rows_per_s"):
        assert found[name] == first[name], "the second leaves the first one's measurements"
    check_exactly_once(experiment, tmp_path)
    assert before.items() <= part_times(experiment).items(), "done is done"


@pytest.mark.usefixtures("ray_cluster")
def test_a_corpus_in_slices_goes_on_after_a_kill_and_is_then_found_unchanged_without_ray(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six tables with pictures in 3 slices; the driver is killed with -9 once a part is there."""
    files = sorted((tmp_path / "pictures").rglob("*.png"))
    for piece in range(6):
        own = files[piece::6]
        table = {"id": [str(file) for file in own], "bytes": [file.read_bytes() for file in own]}
        pq.write_table(pa.table(table), tmp_path / f"{piece}.parquet")
    changes = {"corpora.pictures.format": "table", "corpora.pictures.path": f"{tmp_path}/*.parquet", "embed.slices": 3}
    experiment = experiment.override(changes)
    (tmp_path / "experiment.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
    driver = start(tmp_path, joining())
    wait_for_parts(experiment, 1, driver)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()
    store = corpus_store(experiment, "pictures")
    assert store.read_manifest() is None
    facts = embed.run(experiment).results["corpora"]["pictures"]
    assert 0 < facts["encoded_rows"] < facts["rows"], "done is done"
    rejected = [row.id for row in store.rejected_rows()]
    assert sorted([*store.load_ids(), *rejected]) == [str(file) for file in files]
    monkeypatch.setattr(embed, "ray_session", pytest.fail)
    assert embed.run(experiment).results["corpora"]["pictures"] == {**facts, "up_to_date": True}


def test_that_it_waits_is_said_once_and_when_it_does(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    work, said = embed.CorpusWork(experiment, "pictures"), ""
    with contextlib.ExitStack() as held, ThreadPoolExecutor(1) as beside:
        with corpus_store(experiment, "pictures").writing(pytest.fail):
            assert not work.begin(held, waits=False, interrupts=False)
            assert capsys.readouterr().err == "", "other corpora come first"
            begun = beside.submit(work.begin, held, waits=True, interrupts=False)
            while not said:
                said += capsys.readouterr().err
                time.sleep(0.01)
        assert begun.result(timeout=60)
    said += capsys.readouterr().err
    assert said.count("corpus pictures is being embedded by another run") == 1
