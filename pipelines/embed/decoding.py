"""Rows read and decoded, on any CPU: what encoders take, beside what could not be read. Without Ray."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from uml_core.corpora.rows import Row
from uml_core.encoders import Decoded, Encoder, RowError

HERE_ROWS = 1024  # up to so many, Ray and its actors take longer to start than the work does


def is_elsewhere() -> bool:
    """Whether Ray says where encoders run: on a cluster, and beside a GPU, whichever a container is given."""
    return bool(os.environ.get("RAY_ADDRESS")) or any(Path("/dev").glob("nvidia[0-9]*"))


@dataclass
class DecodedPart:
    """The rows of a part ready to be encoded, a digest of each one's raw content, and the unreadable ones."""

    rows: list[Row] = field(default_factory=list)
    decoded: list[Decoded] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    rejected: list[tuple[Row, str]] = field(default_factory=list)
    read_s: float = 0.0
    decode_s: float = 0.0


def decode_rows(rows: Sequence[Row], encoder: Encoder) -> DecodedPart:
    """Read and decode rows; an unreadable one is set apart with its reason."""
    part = DecodedPart()
    for row in rows:
        started = time.perf_counter()
        try:
            raw = row.read()
            read = time.perf_counter()
            part.read_s += read - started
            part.decoded.append(encoder.decode(raw))
            part.decode_s += time.perf_counter() - read
        except RowError as error:
            part.rejected.append((row, str(error)))
            continue
        part.rows.append(row)
        content = raw.encode() if isinstance(raw, str) else raw
        part.digests.append(hashlib.blake2b(content, digest_size=16).digest())
    return part
