"""Who may write a folder: a lease, held by one process anywhere, that every host sees which shares the storage.

A lease is a small file that names its holder and when it expires. A thread of the holder renews it. It is free once it
was given up, has expired, or its holder was a process of this host that has ended: so a killed run goes on at once
where it ran, and elsewhere within a minute. On one host the process itself is asked, since a stopped one (Ctrl-Z)
still holds.

Clocks of hosts may differ: who waits for another host's lease watches, by its own clock, whether the file changes. One
that did not for as long as a lease lasts has expired, whatever time it names. Who cannot watch, as `status`, takes a
holder for gone once what it names is over by more than clocks may differ (SKEW_S).

Nothing that pyarrow opens has a conditional write. So a process writes its name, waits, and holds the lease if its name
still stands; on a disk who takes it also locks the folder while looking and writing, as on object storage it cannot.
Who is paused there for longer than that wait may oust the holder. The holder finds the other's name, at the latest
when it renews, and stops; part names of a store come from their rows, so that what both wrote until then is equal.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import logging
import math
import os
import posixpath
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow.fs as pafs

from uml_core.errors import OutageError
from uml_core.files.atomic import read_if_there, write_whole
from uml_core.files.paths import one_line

RENEW_S, EXPIRE_S, SKEW_S = 10.0, 60.0, 300.0
SETTLE_S, POLL_S = 1.0, 2.0  # on object storage: until a write is read back; until a held lease is looked at again
LOCAL_SETTLE_S, LOCAL_POLL_S = 0.1, 0.2
SAME_START_S = 2.0  # two readings of when a process started may differ by a step of the clock

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """What the file says of who holds a lease."""

    owner: str  # random: two leases of one process are two
    host: str
    system: str  # tells hosts and containers of one name apart
    pid: int
    started_at: float
    expires_at: float

    @property
    def is_here(self) -> bool:
        """Whether its process can be seen from this one."""
        return (self.host, self.system) == (socket.gethostname(), _system())

    def is_gone(self) -> bool:
        """Whether the lease is free: its process of this host has ended, or it has long expired on another one."""
        if not self.is_here:
            return time.time() >= self.expires_at + SKEW_S
        started_at = _started_at(self.pid)  # at another time: another process of the same number
        return started_at is None or abs(started_at - self.started_at) > SAME_START_S


class Lease:
    """The right to write at a path. `take` it, `check` before what only one may do, `release` it."""

    def __init__(self, filesystem: pafs.FileSystem, path: str) -> None:
        self._fs, self.path = filesystem, path
        self._is_local = isinstance(filesystem, pafs.LocalFileSystem)
        started_at = _started_at(os.getpid())
        assert started_at is not None
        self._own = Holder(uuid.uuid4().hex, socket.gethostname(), _system(), os.getpid(), started_at, expires_at=0.0)
        self._lost = ""  # why, once it is
        self._lasts_until = 0.0  # by the clock of this process that nobody sets
        self._seen: tuple[Holder | None, float] = (None, 0.0)  # another's lease, and since when it stands unchanged
        self._done, self._mutex = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None

    def take(
        self, on_wait: Callable[[], None], *, wait_for_living: bool = True, interrupts: bool | None = None
    ) -> bool:
        """Take the lease once it is free; returns whether it was taken.

        Args:
            on_wait: called once where there is something to wait for.
            wait_for_living: else only until its holder is seen to live: at once where it is a process of this host,
                as soon as it renews the lease where it is on another.
            interrupts: whether the main thread is interrupted once the lease is lost; None: if it is who takes it.
        """
        first: Holder | None = None
        try:
            while (holder := self._try_to_take()) is not None:
                if not wait_for_living and (holder.is_here or (first is not None and holder != first)):
                    return False
                if first is None:
                    first = holder
                    on_wait()
                time.sleep(LOCAL_POLL_S if self._is_local else POLL_S)
        except BaseException:  # Ctrl-C in a notebook, say, whose process lives on: the name must not stay
            self._delete_own()
            raise
        if interrupts is None:
            interrupts = threading.current_thread() is threading.main_thread()
        self._thread = threading.Thread(target=self._renew, kwargs={"interrupts": interrupts}, daemon=True)
        self._thread.start()
        return True

    def check(self) -> None:
        """Renew the lease. Raises OutageError once it is lost: to another process, or unrenewed until it expired."""
        with self._mutex:
            if not self._lost:
                try:
                    self._renew_once()
                # Whatever storage raises (botocore's errors are no OSError): until it expires nobody else takes it.
                except Exception as error:  # noqa: BLE001
                    if time.monotonic() >= self._lasts_until:
                        self._lost = f"the lease of this run on {self._folder} expired unrenewed ({one_line(error)})"
                    logger.warning("lease %s could not be renewed: %s", self.path, one_line(error))
            if self._lost:
                raise self._error()

    def release(self) -> None:
        """Give the lease up; one that is lost is left to its holder."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()
            self._delete_own()

    def _delete_own(self) -> None:
        with contextlib.suppress(Exception):  # whatever storage raises: the lease expires
            if (holder := self._holder()) is not None and holder.owner == self._own.owner:
                self._fs.delete_file(self.path)

    @contextlib.contextmanager
    def held(self) -> Iterator[Lease]:
        """Release a taken lease at the end. Raises OutageError for whatever ended a holder that had lost it."""
        try:
            try:
                yield self
            finally:
                self.release()
        except BaseException as error:
            if self._lost:
                raise self._error() from error
            raise

    @property
    def is_lost(self) -> bool:
        """Whether it was found to be another's, or to have expired."""
        return bool(self._lost)

    @property
    def _folder(self) -> str:
        return str(Path(self.path).parent)

    def _try_to_take(self) -> Holder | None:
        """Who holds the lease, None where it is ours now."""
        with self._one_taker():
            holder = self._holder()
            if holder is not None and not holder.is_gone() and not self._stands_still(holder):
                return holder
            self._write(EXPIRE_S)
        time.sleep(LOCAL_SETTLE_S if self._is_local else SETTLE_S)  # the last of several writers holds it
        holder = self._holder()
        if holder is None:  # deleted by its former holder, who was slow to release it
            return self._try_to_take()
        return None if holder.owner == self._own.owner else holder

    def _stands_still(self, holder: Holder) -> bool:
        """Whether a lease of another host was not renewed for as long as one lasts, by this host's clock alone."""
        if holder != self._seen[0]:
            self._seen = holder, time.monotonic()
        return not holder.is_here and time.monotonic() >= self._seen[1] + EXPIRE_S

    @contextlib.contextmanager
    def _one_taker(self) -> Iterator[None]:
        """On a disk, let nobody else look and write at the same time; on a shared one, if it locks for all hosts."""
        if not self._is_local:
            yield
            return
        Path(self._folder).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # a disk without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _holder(self) -> Holder | None:
        return _read_holder(self._fs, self.path)

    def _write(self, lasts_s: float) -> None:
        lasts_until = time.monotonic() + lasts_s  # from before it can be seen
        renewed = replace(self._own, expires_at=time.time() + lasts_s)
        write_whole(self._fs, self.path, json.dumps(asdict(renewed)).encode())
        self._own, self._lasts_until = renewed, lasts_until

    def _renew_once(self) -> None:
        holder = self._holder()
        # With its folder: nobody can have taken it.
        is_deleted = holder is None and time.monotonic() < self._lasts_until
        if is_deleted or (holder is not None and holder.owner == self._own.owner):
            self._write(EXPIRE_S)
        else:
            now = "has expired" if holder is None else f"is held by process {holder.pid} on host {holder.host} now"
            self._lost = f"the lease of this run on {self._folder} {now}"

    def _error(self) -> OutageError:
        return OutageError(f"{self._lost}; this run writes nothing more, run the line again to go on")

    def _renew(self, *, interrupts: bool) -> None:
        """Renew until the end. A main thread that lost the lease is interrupted, as by Ctrl-C, wherever it waits."""
        while not self._done.wait(RENEW_S):
            try:
                self.check()
            except OutageError as error:
                # A shell that starts a step in the background lets it ignore Ctrl-C.
                is_deaf = signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None)
                if is_deaf:
                    logger.error("%s", error)
                if interrupts:
                    os.kill(os.getpid(), signal.SIGTERM if is_deaf else signal.SIGINT)
                return


@contextlib.contextmanager
def exclusive(filesystem: pafs.FileSystem, path: str, on_wait: Callable[[], None]) -> Iterator[Lease]:
    """Hold the lease at a path; `on_wait` is called once if another process holds it."""
    lease = Lease(filesystem, path)
    lease.take(on_wait)
    with lease.held():
        yield lease


def lease_beside(folder: str) -> str:
    """Where the lease of a folder's only writer lies that may not be there yet: beside it."""
    return posixpath.join(posixpath.dirname(folder), f".{posixpath.basename(folder)}.lease")


def leave_name(filesystem: pafs.FileSystem, path: str, *, lasts_s: float) -> None:
    """Name this process at a path, without a wait or a claim; `living_holder` tells whether it lives."""
    Lease(filesystem, path)._write(lasts_s)


def is_own_name(filesystem: pafs.FileSystem, path: str) -> bool:
    """Whether the name that stands at a path is this process's."""
    holder = _read_holder(filesystem, path)
    return holder is not None and holder.is_here and holder.pid == os.getpid()


def living_holder(filesystem: pafs.FileSystem, path: str) -> Holder | None:
    """Who holds the lease at a path now, None where it is free."""
    holder = _read_holder(filesystem, path)
    return None if holder is None or holder.is_gone() else holder


def _read_holder(filesystem: pafs.FileSystem, path: str) -> Holder | None:
    content = read_if_there(filesystem, path)
    try:
        return None if content is None else Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None  # damaged, so free


@functools.cache
def _system() -> str:
    """What tells this kernel's run and this container's process numbers from others; "" where nothing does."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started_at(pid: int) -> float | None:
    """When a process of this host started, None where it has ended, NaN where it may not be asked."""
    import psutil  # not on top: a logged model, which takes no lease, is served without it

    try:
        process = psutil.Process(pid)
        # A zombie has ended, and no one has asked how.
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return math.nan
