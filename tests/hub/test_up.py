"""Where `quanthub up` listens and what it says about it."""

import socket

import pytest

from hub import up
from hub.accounts.models import User


@pytest.mark.parametrize(
    ("host", "bind", "url"),
    [
        ("127.0.0.1", "127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("0.0.0.0", "0.0.0.0:8000", "http://127.0.0.1:8000"),
        ("::", "[::]:8000", "http://[::1]:8000"),
        ("::1", "[::1]:8000", "http://[::1]:8000"),
        ("hub.example", "hub.example:8000", "http://hub.example:8000"),
    ],
)
def test_an_address_can_be_listened_to_and_opened(settings, host, bind, url):
    settings.HOST, settings.PORT = host, 8000

    assert (up._with_port(host), up._url()) == (bind, url)


def test_two_hubs_cannot_share_a_data_folder(tmp_path):
    with (
        up._only_one(tmp_path),
        pytest.raises(up.Failed, match=r"running on .* already"),
        up._only_one(tmp_path),
    ):
        pass


def test_a_new_data_folder_is_nobody_elses(tmp_path):
    with up._only_one(tmp_path / "new"):
        assert (tmp_path / "new").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
def test_an_address_of_another_machine_is_refused_by_name(settings, host):
    settings.HOST = host

    with pytest.raises(up.Failed, match=f"QUANTHUB_HOST is {host}, which is no address of this machine"):
        up._require_free_port()


def test_a_port_in_use_is_refused(settings):
    with socket.create_server(("127.0.0.1", 0)) as other:
        settings.HOST, settings.PORT = other.getsockname()

        with pytest.raises(up.Failed, match="is not free"):
            up._require_free_port()


@pytest.fixture
def start(monkeypatch, settings, tmp_path, capsys):
    """Return a function that starts a hub without processes, which ends in some way; returns what it said."""
    settings.DATA_DIR = tmp_path
    for name in ("_require_free_port", "_prepare", "_stop"):
        monkeypatch.setattr(up, name, lambda *_: None)
    monkeypatch.setattr(up, "_start", lambda *_: None)
    monkeypatch.setattr(up, "_broker_address", lambda _started: up.broker.Broker((), "redis://"))
    monkeypatch.setattr(up.time, "sleep", lambda _seconds: up.signal.raise_signal(up.signal.SIGTERM))

    def run(wait_ready):
        monkeypatch.setattr(up, "_wait_ready", wait_ready)
        up.up()
        return capsys.readouterr().out

    return run


def test_a_start_that_fails_does_not_use_up_the_one_time_password(db, start):
    def fail(*_):
        raise up.Failed("The worker ended.")

    with pytest.raises(up.Failed):
        start(fail)
    said = start(lambda *_: None)

    password = said.split("with the password ")[1].split()[0]
    assert User.objects.get(username="admin").check_password(password)
    assert "administrator" not in start(lambda *_: None)
