"""Format webdataset: tar shards whose members are grouped by key (the name up to the first dot of its last component).

    shard-000.tar:  0001.jpg  0001.cls  0001.json    0002.jpg  0002.cls ...

The content is the member of the corpus's modality (.jpg, .flac, .txt, ...); the label stands in .cls, or in the field
`label` of .json, where split and id may stand as well. Only the headers and the small members are read here: a row
names the range of bytes in the tar, and a worker reads that range alone. So shards must not be compressed.
"""

from __future__ import annotations

import itertools
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import IO, Any

from uml_core.corpora.content import ByteRange
from uml_core.corpora.readers.base import SUFFIXES, CorpusSource, RecordNames
from uml_core.corpora.rows import Row, canonical_split
from uml_core.errors import InputError
from uml_core.files.paths import STORAGE_ERRORS, one_line, open_bytes, stamp_of
from uml_core.files.patterns import files_of, relative_names

MAX_METADATA_BYTES = 2**20  # a .cls or .json member above this is refused
BLOCK = tarfile.BLOCKSIZE
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


class _DamagedShardError(Exception):
    """The shard cannot be read from some byte on."""


class _Shard:
    """A tar file whose reads are held to its size: a damaged header may ask for any number of bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.size = file.seek(0, 2)
        self.seek, self.tell = file.seek, file.tell
        file.seek(0)

    def read(self, size: int) -> bytes:
        if size < 0:
            raise _DamagedShardError(f"a header at byte {self.tell()} gives a negative size")
        return self._file.read(min(size, max(0, self.size - self.tell())))


@dataclass
class _Sample:
    """The members of one key, as they come."""

    key: str
    content: list[ByteRange] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    members: list[str] = field(default_factory=list)
    fault: str | None = None


def read_webdataset(source: CorpusSource) -> Iterator[Row]:
    """Yield a row a sample of every shard; a damaged shard yields the rows before the damage and one with a fault.

    Raises:
        InputError: no shard is found, or a shard is compressed.
    """
    names = RecordNames(source.corpus.split)
    shards = files_of(source.location, (".tar",), source.setting)
    for location, shard in zip(shards, relative_names(shards), strict=True):
        if not source.takes(shard):
            continue
        names.prefix = f"{shard}/"
        stamp = stamp_of(location)
        sample: _Sample | None = None
        try:
            with open_bytes(location) as file:
                _refuse_compressed(source, location, file)
                for sample in _samples(_Shard(file), source.corpus.modality):
                    yield _row(sample, location, stamp, names, source.corpus.modality)
        except (_DamagedShardError, RecursionError, OverflowError, *STORAGE_ERRORS) as error:
            if isinstance(error, InputError):
                raise
            after = f"after sample {sample.key}" if sample else "from its start"
            fault = f"shard {location} is damaged {after}, its further rows are lost: {one_line(error)}"
            yield Row(shard, None, canonical_split(source.corpus.split), path=location, stamp=stamp, fault=fault)


def _row(sample: _Sample, location: str, stamp: str, names: RecordNames, modality: str) -> Row:
    record = {"id": f"{names.prefix}{sample.key}", **{k: v for k, v in sample.metadata.items() if v is not None}}
    row = names.row(0, record, sample.fault)
    member, fault = next(iter(sample.content), None), row.fault
    if len(sample.content) != 1:
        fault = (
            fault or f"sample has {len(sample.content) or 'no'} {modality} members: {', '.join(sample.members)[:200]}"
        )
    return replace(row, path=location, member=member, stamp=stamp, fault=fault, is_text=modality == "text")


def _samples(file: _Shard, modality: str) -> Iterator[_Sample]:
    """Yield the samples whose members all lie whole in the file, then raise _DamagedShardError if there are others."""
    named = ((*_split_name(member.name), member) for member in _members(file))
    for key, members in itertools.groupby((each for each in named if each[0] is not None), key=itemgetter(0)):
        sample = _Sample(key)
        for _, ending, member in members:
            sample.members.append(ending)
            if ending in SUFFIXES[modality]:
                sample.content.append(ByteRange(member.offset_data, member.size))
            elif ending in (".cls", ".json"):
                _read_metadata(sample, ending, file, member)
        yield sample


def _members(file: _Shard) -> Iterator[tarfile.TarInfo]:
    """Yield the regular members of a tar, without building a list of them. Raises _DamagedShardError."""
    try:
        archive = tarfile.TarFile(fileobj=file)  # type: ignore[arg-type]
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # else the archive remembers every header
            if member.size < 0:
                raise _DamagedShardError(f"{member.name} has a negative size")
            if member.isreg() and not member.issparse():
                yield member  # also one that is cut short: its name says that the sample before it is whole
            if member.offset_data + member.size > file.size:
                raise _DamagedShardError(f"the file ends at byte {file.size}, within {member.name}")
        _check_end(file, archive.offset)
    except tarfile.TarError as error:
        raise _DamagedShardError(one_line(error)) from None


def _check_end(file: _Shard, offset: int) -> None:
    """Raise unless the archive's end mark, a block of zeros, lies at the offset: tarfile takes garbage for the end."""
    file.seek(offset)
    block = file.read(BLOCK)
    if block != bytes(BLOCK):
        what = "its end mark is missing" if len(block) < BLOCK else "no member starts there"
        raise _DamagedShardError(f"{what} at byte {offset}")


def _split_name(name: str) -> tuple[str | None, str]:
    """Key and lower-case ending (with its dot); the key is None for hidden files and files without ending."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, dot, ending = base.partition(".")
    return (folder + slash + stem if stem and dot else None), f".{ending.lower()}"


def _read_metadata(sample: _Sample, ending: str, file: _Shard, member: tarfile.TarInfo) -> None:
    """Take label, split and id from a small member; .cls wins over .json."""
    if member.size > MAX_METADATA_BYTES:
        sample.fault = f"{ending} member has {member.size} bytes; at most {MAX_METADATA_BYTES} are read"
        return
    file.seek(member.offset_data)
    content = file.read(member.size)
    try:
        text = content.decode("utf-8-sig").strip()
        if ending == ".cls":
            sample.metadata["label"] = text
            return
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        sample.fault = f"{ending} member cannot be read: {one_line(error)}"
        return
    if isinstance(record, dict):
        found = {name: record[name] for name in ("id", "label", "split") if name in record}
        sample.metadata = {**found, **sample.metadata}


def _refuse_compressed(source: CorpusSource, location: str, file: IO[bytes]) -> None:
    kind = COMPRESSED.get(file.read(2))
    if kind is not None:
        raise InputError(
            f"{source.setting} names {location}, which is compressed ({kind}); a row is a range of bytes of the tar: "
            "unpack it to a plain .tar"
        )
