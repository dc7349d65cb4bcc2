"""Who may write: one process anywhere, on a local disk and on object storage."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.fs as pafs
import pytest

from uml_core.errors import OutageError
from uml_core.files import lease
from uml_core.files.atomic import LOCAL, write_whole
from uml_core.files.lease import Lease, exclusive
from uml_core.files.paths import remote

HOLDS_ON = """
import sys, time
from uml_core.files.atomic import LOCAL
from uml_core.files.lease import exclusive
with exclusive(LOCAL, sys.argv[1], lambda: None):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"RENEW_S": 0.05, "EXPIRE_S": 0.5, "SETTLE_S": 0.02, "POLL_S": 0.02}
    for name, value in (seconds | {"LOCAL_SETTLE_S": 0.02, "LOCAL_POLL_S": 0.02}).items():
        monkeypatch.setattr(lease, name, value)


@pytest.fixture(params=["local", "wrapped", "s3"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[pafs.FileSystem, str]:
    """A path on a local disk, on a filesystem that is not known to be local, and on a server that speaks S3."""
    if request.param == "local":
        return LOCAL, f"{tmp_path}/store/lease"
    if request.param == "wrapped":
        return pafs.SubTreeFileSystem(str(tmp_path), LOCAL), "store/lease"
    monkeypatch.setattr(lease, "EXPIRE_S", 3.0)  # renewing takes a third of a second where the machine is busy
    filesystem, root = remote(request.getfixturevalue("s3_bucket"))
    return filesystem, f"{root}/{tmp_path.name}/lease"


def fields(filesystem: pafs.FileSystem, path: str) -> dict[str, Any]:
    with filesystem.open_input_stream(path) as stream:
        return dict(json.loads(stream.read()))


def elsewhere(filesystem: pafs.FileSystem, path: str, **changes: Any) -> None:
    """Let a process of another host hold the lease."""
    record = {"owner": "o", "host": "far", "system": "s", "pid": os.getpid(), "started_at": 0.0, "expires_at": 0.0}
    write_whole(filesystem, path, json.dumps({**record, **changes}).encode())


def test_a_lease_is_renewed_and_given_up(place: tuple[pafs.FileSystem, str]) -> None:
    with exclusive(*place, pytest.fail) as held:
        time.sleep(1.2 * lease.EXPIRE_S)
        assert fields(*place)["expires_at"] > time.time()
        second = Lease(*place)
        assert not second.take(pytest.fail, wait_for_living=False), "another of this process waits, too"
        held.check()
    assert place[0].get_file_info(place[1]).type == pafs.FileType.NotFound


def test_a_lease_of_another_host_is_waited_for_until_it_expires(place: tuple[pafs.FileSystem, str]) -> None:
    waited: list[str] = []
    began = time.monotonic()
    elsewhere(*place, expires_at=time.time() + 0.5)
    with exclusive(*place, lambda: waited.append("said once")):
        assert time.monotonic() >= began + lease.EXPIRE_S
    assert waited == ["said once"]


def test_a_holder_on_another_host_that_renews_is_seen_to_live(place: tuple[pafs.FileSystem, str]) -> None:
    elsewhere(*place, expires_at=time.time() + 600)
    again = Lease(*place)

    def renew() -> None:
        elsewhere(*place, expires_at=time.time() + 601)

    assert not again.take(renew, wait_for_living=False)
    assert fields(*place)["host"] == "far"


@pytest.mark.parametrize("skew_s", [-61, 61])
def test_a_holder_whose_clock_is_a_minute_off_keeps_its_lease(skew_s: float, tmp_path: Path) -> None:
    """It renews three times in a lease's life; who waits is not let in, and is once it renews no more."""
    path, done = str(tmp_path / "lease"), threading.Event()

    def renew() -> None:
        while not done.wait(lease.EXPIRE_S / 3):
            elsewhere(LOCAL, path, expires_at=time.time() + lease.EXPIRE_S + skew_s)

    elsewhere(LOCAL, path, expires_at=time.time() + lease.EXPIRE_S + skew_s)
    holder = threading.Thread(target=renew)
    holder.start()
    assert lease.living_holder(LOCAL, path) is not None
    threading.Timer(2 * lease.EXPIRE_S, done.set).start()
    began = time.monotonic()
    with exclusive(LOCAL, path, lambda: None):
        assert time.monotonic() > began + 2.5 * lease.EXPIRE_S
    holder.join()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"owner": "old", "renewed_at": 1}'])
def test_a_damaged_file_holds_nothing(place: tuple[pafs.FileSystem, str], content: bytes) -> None:
    write_whole(*place, content)
    with exclusive(*place, pytest.fail):
        assert fields(*place)["pid"] == os.getpid()


INTERRUPTED = """
import signal, sys, time
from uml_core.errors import OutageError
from uml_core.files import lease
from uml_core.files.atomic import LOCAL
from uml_core.files.paths import remote
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever shell started the tests
lease.RENEW_S = 0.05
filesystem, root = (LOCAL, sys.argv[1]) if sys.argv[1].startswith("/") else remote(sys.argv[1])
try:
    with lease.exclusive(filesystem, f"{root}/lease", lambda: None):
        print("held", flush=True)
        time.sleep(60)
except OutageError as error:
    print(error)
"""


@pytest.mark.parametrize("storage", ["local", "s3"])
def test_a_lease_that_another_has_taken_interrupts_its_holder(
    storage: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """In a process of its own: an interrupt may come wherever the main thread is."""
    uri = str(tmp_path) if storage == "local" else f"{request.getfixturevalue('s3_bucket')}/{tmp_path.name}"
    filesystem, root = (LOCAL, uri) if storage == "local" else remote(uri)
    holder = subprocess.Popen([sys.executable, "-c", INTERRUPTED, uri], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    while holder.poll() is None:  # as the other renews it: one write may fall between a look and a renewal of ours
        elsewhere(filesystem, f"{root}/lease", expires_at=time.time() + 600)
        time.sleep(0.1)
    said = holder.stdout.read()
    assert re.search(r"is held by process \d+ on host far now.*run the line again", said), said
    assert fields(filesystem, f"{root}/lease")["host"] == "far", "it is left to its holder"


def test_a_lost_lease_is_noticed_before_the_next_write(
    place: tuple[pafs.FileSystem, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 60.0)
    with exclusive(*place, pytest.fail) as held:
        elsewhere(*place, expires_at=time.time() + 600)
        with pytest.raises(OutageError, match="is held by"):
            held.check()
        elsewhere(*place, expires_at=time.time())
        with pytest.raises(OutageError, match="is held by"):
            held.check()


UNRENEWED = """
import logging, signal, sys, time
from uml_core.errors import OutageError
from uml_core.files import lease
from uml_core.files.atomic import LOCAL, write_whole
signal.signal(signal.SIGINT, signal.default_int_handler)
logging.basicConfig(stream=sys.stdout)
lease.RENEW_S, lease.EXPIRE_S = 0.05, 0.5
failures, is_down = iter([True, True]), []
def write(*arguments):
    if is_down or next(failures, False):
        raise OSError("503 slow down")
    write_whole(*arguments)
try:
    with lease.exclusive(LOCAL, sys.argv[1], lambda: None) as held:
        lease.write_whole = write
        time.sleep(0.6)
        held.check()
        print("renewed", flush=True)
        is_down.append(True)
        time.sleep(60)
except OutageError as error:
    print(error)
"""


def test_renewing_is_tried_again_until_the_lease_expires(tmp_path: Path) -> None:
    """In a process of its own: a SIGINT in one that has run hundreds of other tests has ended it without a word."""
    line = [sys.executable, "-c", UNRENEWED, str(tmp_path / "lease")]
    said = subprocess.run(line, stdout=subprocess.PIPE, text=True, timeout=50, check=True).stdout
    before, _, after = said.partition("renewed\n")
    assert before.count("could not be renewed: 503 slow down") == 2
    assert "expired unrenewed (503 slow down)" in after


def test_a_process_of_this_host_holds_it_while_it_lives_and_not_longer(tmp_path: Path) -> None:
    path = str(tmp_path / "lease")
    with subprocess.Popen([sys.executable, "-c", HOLDS_ON, path], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        os.kill(other.pid, signal.SIGSTOP)
        record = fields(LOCAL, path)
        write_whole(LOCAL, path, json.dumps({**record, "expires_at": 0.0}).encode())
        assert not Lease(LOCAL, path).take(pytest.fail, wait_for_living=False), "it is stopped, and may go on"
        write_whole(LOCAL, path, json.dumps({**record, "started_at": record["started_at"] - 3600}).encode())
        with exclusive(LOCAL, path, pytest.fail):
            pass  # a process of its number, started at another time, is not it
        write_whole(LOCAL, path, json.dumps({**record, "expires_at": time.time() + 600}).encode())
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # ended, and no one has asked how
        with exclusive(LOCAL, path, pytest.fail):
            assert fields(LOCAL, path)["pid"] == psutil.Process().pid


def test_many_processes_take_turns(tmp_path: Path) -> None:
    """Four find a killed holder's lease, and each adds to a number that the others read."""
    counter, path = tmp_path / "counter", str(tmp_path / "lease")
    counter.write_text("0")
    with exclusive(LOCAL, path, pytest.fail):
        record = fields(LOCAL, path)
    write_whole(LOCAL, path, json.dumps({**record, "pid": 2**22 + 1}).encode())
    add = """
import sys
from pathlib import Path
from uml_core.files.atomic import LOCAL
from uml_core.files.lease import exclusive
counter = Path(sys.argv[2])
for _ in range(5):
    with exclusive(LOCAL, sys.argv[1], lambda: None):
        counter.write_text(str(int(counter.read_text()) + 1))
"""
    others = [subprocess.Popen([sys.executable, "-c", add, path, str(counter)]) for _ in range(4)]
    assert [other.wait(120) for other in others] == [0] * 4
    assert counter.read_text() == "20"


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = str(tmp_path / "lease")
    with exclusive(LOCAL, path, pytest.fail):
        assert not Lease(LOCAL, path).take(pytest.fail, wait_for_living=False)
    assert not list(tmp_path.iterdir())
