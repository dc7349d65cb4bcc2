"""Storage that is away is waited for by the AWS SDK, in silence and in C, where Python hears no Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

import pyarrow.fs as pafs

from uml_core.files.outages import REFUSED, PatientS3FileSystem

ASK_S = 2.0  # between questions whether storage answers
INTERRUPTED = 130  # the exit status, as shells have it

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def outages_said(filesystem: pafs.FileSystem, path: str) -> Iterator[None]:
    """Say once that S3 storage does not answer, and that it does again; Ctrl-C while it does not ends the process.

    Without cleaning up, which would wait for storage, too: a kill costs a step nothing.
    """
    if not isinstance(filesystem, PatientS3FileSystem) or threading.current_thread() is not threading.main_thread():
        yield
        return
    received, sent = socket.socketpair()
    received.settimeout(ASK_S)
    sent.setblocking(False)
    impatient = pafs.S3FileSystem(**{**filesystem.options, "request_timeout": 3})  # three attempts
    given = (received, impatient, path.partition("/")[0])
    asking = threading.Thread(target=_ask, args=given, daemon=True)
    asking.start()
    before = signal.set_wakeup_fd(sent.fileno(), warn_on_full_buffer=False)  # C writes to it as a signal comes
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        sent.shutdown(socket.SHUT_WR)
        asking.join(ASK_S)  # not in the end of the process, where pyarrow takes its storage down
        sent.close()


def _ask(signals: socket.socket, filesystem: pafs.S3FileSystem, bucket: str) -> None:
    """Ask every two seconds whether storage answers, until no more signals can come."""
    away_since, is_interrupted = None, False
    while True:
        with contextlib.suppress(TimeoutError):
            if not (came := signals.recv(64)):
                return
            is_interrupted = is_interrupted or bool({signal.SIGINT, signal.SIGTERM} & set(came))
        try:
            filesystem.get_file_info(bucket)
        except OSError as error:
            if away_since is None and not REFUSED.match(f"OSError: {error}"):
                away_since = time.monotonic()
                logger.warning("storage s3://%s does not answer; it is waited for, seven minutes at most", bucket)
        else:
            if away_since is not None:
                logger.warning("storage s3://%s answers again after %.0f s", bucket, time.monotonic() - away_since)
            away_since = None
        if is_interrupted and away_since is not None:
            print("\ninterrupted; the same line goes on where this one stopped", file=sys.stderr, flush=True)
            os._exit(INTERRUPTED)
