"""One writer at a time: a lock on a store's folder that a killed holder does not keep.

On a local filesystem it is the operating system's lock on a file, which ends with its process. On object storage it is
a lease: an object that its holder renews; one that has not been renewed for a minute is free. Storage without
conditional writes cannot make a lease watertight, so a part's name comes from its rows: two writers write equal files.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.fs as pafs
from filelock import FileLock, Timeout

from uml_core.files.atomic import read_if_there, write_whole

RENEW_S, EXPIRE_S, SETTLE_S, POLL_S = 10.0, 60.0, 1.0, 2.0


@contextlib.contextmanager
def exclusive(filesystem: pafs.FileSystem, path: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock at a path; `on_wait` is called once if another process holds it."""
    if not isinstance(filesystem, pafs.LocalFileSystem):
        with _lease(filesystem, path, on_wait):
            yield
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _lease(filesystem: pafs.FileSystem, path: str, on_wait: Callable[[], None]) -> Iterator[None]:
    owner, waited = uuid.uuid4().hex, False
    while not _take(filesystem, path, owner):
        if not waited:
            on_wait()
            waited = True
        time.sleep(POLL_S)
    done = threading.Event()

    def renew() -> None:
        while not done.wait(RENEW_S):
            _write(filesystem, path, owner)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if _holder(filesystem, path) == owner:
            filesystem.delete_file(path)


def _take(filesystem: pafs.FileSystem, path: str, owner: str) -> bool:
    if _holder(filesystem, path) is not None:
        return False
    _write(filesystem, path, owner)
    time.sleep(SETTLE_S)  # the last of several writers holds it
    return _holder(filesystem, path) == owner


def _holder(filesystem: pafs.FileSystem, path: str) -> str | None:
    """Return who holds a lease that has not run out."""
    content = read_if_there(filesystem, path)
    if content is None:
        return None
    lease = json.loads(content)
    return lease["owner"] if time.time() - lease["renewed_at"] < EXPIRE_S else None


def _write(filesystem: pafs.FileSystem, path: str, owner: str) -> None:
    write_whole(filesystem, path, json.dumps({"owner": owner, "renewed_at": time.time()}).encode())
