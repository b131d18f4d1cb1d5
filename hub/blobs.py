"""Bytes named by their SHA-256, in a local folder: the only module that knows where they lie.

A blob is whole or absent: bytes arrive under a partial name on the same file system and are renamed at the
end. Its `Blob` row belongs to the caller's transaction, so that nothing refers to bytes that are not there:
`put` bytes first and `record` them within it, or `adopt` within it what `require` has read before.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import ProtectedError

from hub.catalog.models import Blob, QuantFile, RevisionFile

PIECE = 1 << 20
# A partial name or a blob without a row is someone's work in progress until it is this old.
ABANDONED_SECONDS = 24 * 3600.0
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class BlobError(Exception):
    """The store cannot take or give these bytes; the message says which and why."""

    kind: Literal["refused", "retry", "fault"] = "fault"


class StoreFull(BlobError):
    """The disk that holds the store is full."""

    kind = "retry"


def path_of(sha256: str) -> Path:
    """Return where a blob lies, whether or not it is there."""
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise BlobError(f"{sha256[:80]!r} is not a SHA-256")
    return Path(settings.BLOB_DIR) / sha256[:2] / sha256


def exists(sha256: str) -> bool:
    """Say whether the bytes are there."""
    return path_of(sha256).is_file()


def size(sha256: str) -> int:
    """Return the size of the bytes on the disk."""
    try:
        return path_of(sha256).stat().st_size
    except FileNotFoundError as exc:
        raise BlobError(f"blob {sha256[:12]} is missing from the store") from exc


def open_blob(sha256: str) -> BinaryIO:
    """Open the bytes for reading."""
    try:
        return path_of(sha256).open("rb")
    except FileNotFoundError as exc:
        raise BlobError(f"blob {sha256[:12]} is missing from the store") from exc


def can_write() -> bool:
    """Say whether the store takes bytes; raises what the disk has to say if not."""
    root = Path(settings.BLOB_DIR)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=root) as probe:
        return probe.write(b"x") == 1


def check(blob: Blob, *, read: bool) -> None:
    """Refuse a blob that is missing or of the wrong size, and when `read`, one whose bytes have changed."""
    found = size(blob.sha256)
    if found != blob.size:
        raise BlobError(f"blob {blob} holds {found:,} bytes instead of {blob.size:,}")
    if read and digest(path_of(blob.sha256))[0] != blob.sha256:
        raise BlobError(f"blob {blob} is damaged: its bytes do not have its SHA-256")


def digest(path: Path) -> tuple[str, int]:
    """Return the SHA-256 and the size of a file, read once."""
    hashed, total = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            hashed.update(piece)
            total += len(piece)
    return hashed.hexdigest(), total


@dataclass(frozen=True)
class Stored:
    """Bytes that lie in the store and have no row yet."""

    sha256: str
    size: int


def put(path: Path) -> Stored:
    """Copy a file into the store, hashing it on the way. Takes long: not within a transaction."""
    expected = path.stat().st_size
    with _partial(expected) as partial:
        sha256, written = _copy(path, partial)
        if written != expected:
            raise BlobError(f"{path.name}: {written:,} of {expected:,} bytes arrived; it changed while read")
        _settle(partial, sha256)
    return Stored(sha256, written)


def record(stored: Stored) -> Blob:
    """Give bytes of the store their row."""
    blob = _row(stored.sha256, stored.size)
    if not exists(stored.sha256):
        raise BlobError(f"blob {stored.sha256[:12]} has gone from the store meanwhile; do it again")
    return blob


def require(path: Path, sha256: str) -> None:
    """Refuse a file that does not hold what was written, by reading it all once more."""
    found, _ = digest(path)
    if found != sha256:
        raise BlobError(f"{path.name}: the disk holds {found[:12]}, but {sha256[:12]} was written")


def adopt(path: Path, sha256: str) -> Blob:
    """Move a finished file of the same file system into the store, and give it its row. Takes no time."""
    # The row first: `discard` waits for it, or this waits for `discard`.
    blob = _row(sha256, path.stat().st_size)
    _settle(path, sha256)
    return blob


def discard_unreferenced(sha256: str) -> None:
    """Remove bytes to which no row refers; for whoever put them and then could not record them."""
    with transaction.atomic():
        # Writing the row, rather than asking for it, waits for whoever adopts equal bytes at this moment.
        row, nobody_has_it = Blob.objects.get_or_create(sha256=sha256, defaults={"size": 0})
        if nobody_has_it:
            path_of(sha256).unlink(missing_ok=True)
            row.delete()


def lay_out(files: Iterable[tuple[str, str]], folder: Path) -> None:
    """Give blobs their names in a folder, as symbolic links: `files` are pairs of path and SHA-256."""
    for name, sha256 in files:
        place = folder / name
        if not place.resolve().is_relative_to(folder.resolve()):
            raise BlobError(f"{name!r} leads out of the model's folder")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path_of(sha256))


def sweep() -> int:
    """Remove old partial files and old bytes without a row; return how many.

    Killed processes leave them, and whoever deletes a model or a quant.
    """
    _forget_unused()
    old = time.time() - ABANDONED_SECONDS
    root = Path(settings.BLOB_DIR)
    # Whoever puts bytes makes their file young before giving it a row, so none of these gets one meanwhile.
    known = set(Blob.objects.values_list("pk", flat=True))
    leftovers = [p for p in root.glob("*/*") if p.name not in known and _older(p, old)]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


def _forget_unused() -> None:
    """Delete rows that nothing refers to: rows are made in one transaction with what refers to them."""
    unused = Blob.objects.all()
    for owner in (RevisionFile, QuantFile):
        unused = unused.exclude(pk__in=owner.objects.values("blob"))
    for blob in unused:
        with suppress(ProtectedError, IntegrityError):  # somebody has found a use for it just now
            blob.delete()


def _older(path: Path, moment: float) -> bool:
    try:
        return path.is_file() and path.stat().st_mtime < moment
    except FileNotFoundError:
        return False  # It was renamed or removed while the folder was read.


@contextmanager
def _partial(nbytes: int) -> Iterator[Path]:
    """Yield a fresh partial path; nothing of it remains whatever happens, and a full disk says so."""
    folder = Path(settings.BLOB_DIR) / "partial"
    path = folder / secrets.token_hex(8)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield path
    except OSError as exc:
        if exc.errno in _FULL:
            raise StoreFull(
                f"The disk of the store is full ({nbytes / 1e6:,.1f} MB were needed). "
                "Free some space, then try again."
            ) from exc
        raise
    finally:
        path.unlink(missing_ok=True)


def _copy(source: Path, partial: Path) -> tuple[str, int]:
    hashed, total = hashlib.sha256(), 0
    with source.open("rb") as reader, partial.open("xb") as writer:
        while piece := reader.read(PIECE):
            writer.write(piece)
            hashed.update(piece)
            total += len(piece)
        writer.flush()
        os.fsync(writer.fileno())
    return hashed.hexdigest(), total


def _settle(partial: Path, sha256: str) -> None:
    """Give a whole file its name. Replacing an equal blob is harmless: the bytes are the same."""
    place = path_of(sha256)
    place.parent.mkdir(parents=True, exist_ok=True)
    partial.chmod(0o444)
    # Young, however long ago it was written: `sweep` leaves it alone until it has a row.
    os.utime(partial)
    partial.replace(place)
    _sync(place.parent)


def _sync(folder: Path) -> None:
    """See that a rename outlasts a power cut, as the row that refers to it does."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _row(sha256: str, nbytes: int) -> Blob:
    return Blob.objects.get_or_create(sha256=sha256, defaults={"size": nbytes})[0]
