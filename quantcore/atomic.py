"""A file that appears under its name whole or not at all, even if the process is killed while writing."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantcore.errors import CannotWrite, InputError, NotEnoughSpace


def _existing_parent(path: Path) -> Path:
    parent = path.parent
    if not parent.is_dir():
        raise InputError(f"{path}: the folder {parent} does not exist")
    return parent


class AtomicFile:
    """Write a file of known size without a name, then give it one.

    On Linux the file has no name until `commit` (O_TMPFILE), so that not even a killed process leaves a part
    behind. Where the file system cannot do that, it is written under a hidden name and renamed.
    """

    def __init__(self, path: Path, nbytes: int) -> None:
        self.path = path
        self.nbytes = nbytes
        self._fd = -1
        self._hidden: Path | None = None

    def open(self) -> None:
        """Create the file and reserve its space; raises `NotEnoughSpace` before anything is written."""
        with self._named():
            parent = _existing_parent(self.path)
            if self.path.exists() and not self.path.is_file():
                what = "a folder" if self.path.is_dir() else "no ordinary file"
                raise InputError(f"{self.path}: is {what}; give the name of a file")
            self._fd = self._open_unnamed(parent)
            try:
                self._reserve(parent)
            except BaseException:
                self.discard()
                raise

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Tell the system's refusals by the file's own name: the hidden one means nothing to the reader."""
        try:
            yield
        except OSError as exc:
            raise CannotWrite(f"{self.path}: cannot be written: {exc.strerror}") from exc

    def _open_unnamed(self, parent: Path) -> int:
        flag = getattr(os, "O_TMPFILE", 0)
        if flag and Path("/proc/self/fd").is_dir():
            try:
                return os.open(parent, flag | os.O_WRONLY, 0o644)
            except OSError as exc:
                if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
                    raise
        self._hidden = self._hidden_name()
        return os.open(self._hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)

    def _hidden_name(self) -> Path:
        return self.path.with_name(f".{self.path.name[:100]}.{secrets.token_hex(6)}.partial")

    def _reserve(self, parent: Path) -> None:
        free = shutil.disk_usage(parent).free
        if free < self.nbytes:
            raise self._full(free)
        if hasattr(os, "posix_fallocate") and self.nbytes:
            try:
                os.posix_fallocate(self._fd, 0, self.nbytes)
            except OSError as exc:
                if exc.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
                    raise self._full(free) from exc
                if exc.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV):
                    raise

    def _full(self, free: int) -> NotEnoughSpace:
        return NotEnoughSpace(
            f"{self.path}: needs {self.nbytes / 1e6:,.1f} MB, "
            f"{self.path.parent} has {free / 1e6:,.1f} MB free"
        )

    def write(self, data: memoryview | bytes, offset: int | None = None) -> None:
        """Append bytes, or put them at `offset`, which several threads may do at a time."""
        view = memoryview(data).cast("B")
        try:
            while view:
                if offset is None:
                    count = os.write(self._fd, view)
                else:
                    count = os.pwrite(self._fd, view, offset)
                    offset += count
                view = view[count:]
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
                raise self._full(shutil.disk_usage(self.path.parent).free) from exc
            raise CannotWrite(f"{self.path}: cannot be written: {exc.strerror}") from exc

    def commit(self) -> None:
        """Put the bytes on the disk and the file under its name, replacing an older one at once."""
        with self._named():
            os.fsync(self._fd)
            if self._hidden is None:
                self._hidden = self._give_name()
            self._hidden.replace(self.path)
            self._hidden = None
            os.close(self._fd)
            self._fd = -1
            self._sync_folder()

    def _give_name(self) -> Path:
        hidden = self._hidden_name()
        # Only with a folder descriptor does Python use linkat, which follows the link in /proc.
        folder = os.open(hidden.parent, os.O_RDONLY)
        try:
            os.link(f"/proc/self/fd/{self._fd}", hidden.name, dst_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(folder)
        return hidden

    def _sync_folder(self) -> None:
        # Without this the rename itself could be lost in a power cut.
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def discard(self) -> None:
        """Leave nothing behind; does nothing after `commit`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._hidden is not None:
            self._hidden.unlink(missing_ok=True)
            self._hidden = None
