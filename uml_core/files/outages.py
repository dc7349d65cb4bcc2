"""Storage that does not answer, and disks that are full: how long is waited for, and what is said then.

Object storage that answers 500 or 503, cuts an answer off, or does not answer at all is asked again by the AWS SDK's
own strategy, for seven minutes. MLflow's artifacts go through botocore, which is told so by its variables.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import traceback
from collections.abc import Iterator
from typing import Any

import pyarrow.fs as pafs

from uml_core.errors import OutageError

# Pauses double from 25 ms: 410 s in all. The SDK's "standard" strategy, with pauses of at most 20 s, gives up where 32
# threads read at once: a hundred repetitions of one client are its most.
MAX_ATTEMPTS = 14
ANSWER_S = 30.0  # for a first byte, or the next one; the SDK's own is 3 s, and busy storage takes longer
os.environ.setdefault("AWS_RETRY_MODE", "standard")  # of botocore: pauses of at most 20 s
os.environ.setdefault("AWS_MAX_ATTEMPTS", "40")

FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_DISK = re.compile(r"\[[Ee]rrno (?:28|122)\].*|database or disk is full")
KEYS = (
    r"ACCESS_DENIED|INVALID_\w+|\w*SIGNATURE\w*|NO_SUCH_BUCKET|REQUEST_EXPIRED|UNRECOGNIZED_CLIENT|UNKNOWN .*status 4"
)
REFUSED = re.compile(
    rf".*AWS Error (?:{KEYS}).*"
    r"|(?:botocore|boto3)\.\S*: (?!.*reached max retries).*(?:An error occurred \(|credential).*"
)
NO_ANSWER = re.compile(r".*AWS Error .*|(?:botocore|boto3)\.\S*: .*")


class PatientS3FileSystem(pafs.S3FileSystem):  # type: ignore[misc]  # pyarrow has no types
    """pyarrow's, which waits for storage; also as a copy that Ray sends to a worker, where pyarrow's forgets that."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, retry_strategy=pafs.AwsDefaultS3RetryStrategy(max_attempts=MAX_ATTEMPTS))
        self.options = options

    @classmethod
    def like(cls, other: pafs.S3FileSystem) -> PatientS3FileSystem:
        """One with another's region, address and credentials: what it would give its copy."""
        (options,) = other.__reduce__()[1]
        return cls(**{**options, "request_timeout": ANSWER_S})

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(PatientS3FileSystem, **self.options), ()

    def check_there(self, bucket: str) -> None:
        """Raise OSError within seconds where its address or bucket, which is probably mistyped, is not there."""
        try:
            found = pafs.S3FileSystem(**self.options).get_file_info(bucket).type  # three attempts
        except OSError as error:  # others may be refusals of this question alone
            if "NETWORK_CONNECTION" in str(error):
                raise
            return
        if found == pafs.FileType.NotFound and not self.options.get("allow_bucket_creation"):
            raise OSError(f"there is no bucket {bucket}")


@contextlib.contextmanager
def named(path: str) -> Iterator[None]:
    """Say which file a disk is too full for: pyarrow does not."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch raises its own on the way of the disk's
        for cause in (error, error.__context__):
            if isinstance(cause, OSError) and cause.errno in FULL:
                raise OSError(cause.errno, os.strerror(cause.errno), path) from None
        raise


def outage_of(error: BaseException) -> OutageError | None:
    """What a user is told of an error that storage or a disk is the cause of, None for others.

    By the text of the whole chain: what Ray brings from a worker is a traceback in words.
    """
    lines = "".join(traceback.format_exception(error)).splitlines()
    causes = (
        (FULL_DISK, "a disk is full; make room"),
        (REFUSED, "storage refuses it; see to the bucket, the keys and their rights"),
        (NO_ANSWER, "storage does not answer; see to it"),
    )
    for pattern, mend in causes:
        found = [match.group() for line in lines if (match := pattern.search(line))]
        if found:
            said = found[-1].removeprefix("OSError: ")[:300]
            return OutageError(f"{mend}, and run the same line, which goes on where this one stopped ({said})")
    return None
