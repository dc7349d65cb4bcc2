"""Debian's package tuxpaint-stamps-default, downloaded and unpacked without root rights and without Debian's tools.

In: nothing, or a .deb file. Out: the folder of the stamps (animals/, food/, ... with .png, .svg, .txt, .ogg, .wav).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tqdm import tqdm

from uml_core.errors import InputError

PACKAGE = "tuxpaint-stamps-default"
STAMPS_IN_PACKAGE = "usr/share/tuxpaint/stamps"
OTHERWISE = f"give the package {PACKAGE} with --deb FILE, or its folder {STAMPS_IN_PACKAGE} with --stamps DIR"


def download_package(cache: Path) -> Path:
    """The package's .deb in the cache folder, downloaded by apt-get if it is not there (153 MiB).

    Raises:
        InputError: apt-get is missing, knows no such package, or cannot reach its servers.
    """
    cached = sorted(cache.glob(f"{PACKAGE}_*.deb"))
    if cached:
        return cached[-1]
    if shutil.which("apt-get") is None:
        raise InputError(f"apt-get is not on this machine; {OTHERWISE}")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".part-") as part:
        # apt-get's own progress goes to stderr: stdout is kept for the final words.
        result = subprocess.run(
            ["apt-get", "download", PACKAGE],
            cwd=part,
            stdout=sys.stderr,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        found = sorted(Path(part).glob("*.deb"))
        if result.returncode != 0 or not found:
            reasons = [line for line in result.stderr.splitlines() if line.startswith("E:")] or ["no file came"]
            raise InputError(f"apt-get download {PACKAGE} failed ({reasons[0]}); run apt-get update, or {OTHERWISE}")
        return found[0].replace(cache / found[0].name)


def unpack_stamps(deb: Path, folder: Path) -> Path:
    """Unpack the stamps of a .deb into `folder`, in one rename; returns it. An unpacked folder is left as it is.

    Raises:
        InputError: the file is missing, is no .deb, is damaged, or holds no stamps.
    """
    if folder.is_dir():
        return folder
    if not deb.is_file():
        raise InputError(f"--deb {deb} does not exist; {OTHERWISE}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as part:
        stamps = Path(part) / "stamps"
        try:
            with deb.open("rb") as file:
                num_files = _unpack(_data_member(deb, file), stamps)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise InputError(f"{deb} is a damaged package: {error}") from None
        if not num_files:
            raise InputError(f"{deb} holds no {STAMPS_IN_PACKAGE}; {OTHERWISE}")
        stamps.replace(folder)
    return folder


def _data_member(deb: Path, file: BinaryIO) -> BinaryIO:
    """Move an open .deb (an ar archive) to the start of its data.tar.* member."""
    if file.read(8) != b"!<arch>\n":
        raise InputError(f"{deb} is not a Debian package; {OTHERWISE}")
    # ar: a header of 60 bytes, its name in the first 16 and its size in decimal from byte 48; even alignment.
    while len(header := file.read(60)) == 60:
        name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), header[48:58].strip()
        if name in ("data.tar.xz", "data.tar.gz", "data.tar.bz2", "data.tar"):
            return file
        if name.startswith("data.tar") or not size.isdigit():
            raise InputError(f"{deb} has an unknown member {name}; unpack it with dpkg-deb -x and give --stamps DIR")
        file.seek(int(size) + int(size) % 2, 1)
    raise InputError(f"{deb} is cut off: it has no data.tar member; download it again")


def _unpack(archive: BinaryIO, target: Path) -> int:
    """Write the regular files under the stamps' folder to `target`; returns how many."""
    num_files = 0
    # A stream: the archive is read once, from its member's start, and never seeks.
    with tarfile.open(fileobj=archive, mode="r|*") as tar:
        for member, relative in tqdm(_stamp_members(tar), desc="unpacking stamps", unit="files", disable=None):
            content = tar.extractfile(member)
            if content is not None:
                file = target / relative
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content.read())
                num_files += 1
    return num_files


def _stamp_members(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, PurePosixPath]]:
    for member in tar:
        path = PurePosixPath(member.name)
        if member.isfile() and path.is_relative_to(STAMPS_IN_PACKAGE) and ".." not in path.parts:
            yield member, path.relative_to(STAMPS_IN_PACKAGE)
