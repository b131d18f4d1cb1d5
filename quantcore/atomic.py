"""Files and folders that appear under their names whole or not at all, even if the process is killed."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from quantcore.errors import CannotWrite, InputError, NotEnoughSpace

WRITEBACK = 1 << 25  # bytes that the disk is told of at a time


def _existing_parent(path: Path) -> Path:
    parent = path.parent
    if not parent.is_dir():
        raise InputError(f"{path}: the folder {parent} does not exist")
    return parent


def _require_file(path: Path) -> None:
    """Raise `InputError` where a name is taken by something that no file can replace."""
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "no ordinary file"
        raise InputError(f"{path}: is {what}; give the name of a file")


def refuse_overwriting(destination: Path, inputs: Mapping[str, Sequence[Path]]) -> None:
    """Raise `InputError` where a file that is read would be replaced; `inputs` are files by what they are.

    Also where there is no folder to write to, or something else than a file under the name: all that can be
    known before the work is done.
    """
    _existing_parent(destination)
    _require_file(destination)
    if not destination.exists():
        return
    for what, files in inputs.items():
        if any(file.exists() and file.samefile(destination) for file in files):
            raise InputError(f"{destination}: is {what}; give another name")


def hidden_name(path: Path) -> Path:
    """Return a name beside `path` for what is not whole yet."""
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.partial")


def _sync(folder: Path) -> None:
    """Put a folder's names on the disk: else a rename could be lost in a power cut."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


class AtomicFolder:
    """Fill a hidden folder, `hidden`, then give it its name; leaving without `commit` removes it.

    A killed process leaves the hidden folder, never one under the name. Whoever fills it sees to it that its
    files are on the disk. Raises `InputError` for a path that ends in no name, such as the current folder's.
    """

    def __init__(self, path: Path) -> None:
        if not path.name:
            raise InputError(f"{path}: exists already; give the name of a folder that does not")
        # A folder can take the name of an empty one, and not that of a link to it.
        self.path = path.resolve() if path.is_symlink() else path
        self.hidden = hidden_name(self.path)

    def __enter__(self) -> Self:
        self.require_free()
        with self._named():
            self.hidden.mkdir()
        return self

    def require_free(self) -> None:
        """Raise `InputError` where the name is taken by anything but an empty folder, or cannot be had."""
        _existing_parent(self.path)
        if self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise InputError(f"{self.path}: exists already; give the name of a folder that does not")
        if self.path.is_mount():
            raise InputError(f"{self.path}: is where a disk is mounted; give the name of a folder in it")

    def commit(self) -> None:
        """Make the folder appear under its name."""
        with self._named():
            _sync(self.hidden)
            self.hidden.rename(self.path)
            _sync(self.path.parent)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.hidden, ignore_errors=True)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise CannotWrite(f"{self.path}: cannot be made: {exc.strerror}") from exc


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
        self._appended = 0
        self._begun = 0  # how far the disk was set to work on it

    def open(self) -> None:
        """Create the file and reserve its space; raises `NotEnoughSpace` before anything is written."""
        with self._named():
            parent = _existing_parent(self.path)
            _require_file(self.path)
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
        return hidden_name(self.path)

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
        if offset is None:
            self._begin_writeback(len(view))
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

    def _begin_writeback(self, count: int) -> None:
        """Set the disk to work on what was appended, so that little is left to wait for at the end.

        Linux begins to write dirty pages out when told that they will not be needed, and keeps them.
        """
        if self._appended - self._begun >= WRITEBACK and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, self._begun, self._appended - self._begun, os.POSIX_FADV_DONTNEED)
            self._begun = self._appended
        self._appended += count

    def commit(self) -> None:
        """Put the bytes on the disk and the file under its name, replacing an older one at once."""
        publish([self])

    def settle(self) -> None:
        """Put the bytes on the disk, so that nothing but the name is missing."""
        with self._named():
            os.fsync(self._fd)

    def appear(self) -> None:
        """Take the file's name, from an older file if need be."""
        with self._named():
            if self._hidden is None:
                self._hidden = self._give_name()
            self._hidden.replace(self.path)
            self._hidden = None
            os.close(self._fd)
            self._fd = -1

    def put_aside(self) -> Path | None:
        """Take the name from an older file; return the hidden one that it has now, None if there is none."""
        aside = self._hidden_name()
        with self._named():
            try:
                return self.path.rename(aside)
            except FileNotFoundError:
                return None

    def _give_name(self) -> Path:
        hidden = self._hidden_name()
        # Only with a folder descriptor does Python use linkat, which follows the link in /proc.
        folder = os.open(hidden.parent, os.O_RDONLY)
        try:
            os.link(f"/proc/self/fd/{self._fd}", hidden.name, dst_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(folder)
        return hidden

    def sync_folder(self) -> None:
        _sync(self.path.parent)

    def discard(self) -> None:
        """Leave nothing behind; does nothing after `commit`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._hidden is not None:
            self._hidden.unlink(missing_ok=True)
            self._hidden = None


def publish(files: Sequence[AtomicFile]) -> None:
    """Put finished files under their names, all or none, the first one last.

    A model in parts is opened by its first: whatever happens, that one stands only beside its own. Where a
    file cannot get its name, those that did are taken back and what was there before returns.
    """
    for file in files:
        file.settle()
    older: list[tuple[Path, Path]] = []
    appeared: list[Path] = []
    try:
        for file in files if len(files) > 1 else ():
            aside = file.put_aside()
            if aside is not None:
                older.append((aside, file.path))
        for file in reversed(files):
            file.appear()
            appeared.append(file.path)
    except BaseException:
        for path in appeared:
            path.unlink(missing_ok=True)
        for aside, path in older:
            aside.replace(path)
        raise
    for aside, _ in older:
        aside.unlink(missing_ok=True)
    for file in {file.path.parent: file for file in files}.values():
        file.sync_folder()
