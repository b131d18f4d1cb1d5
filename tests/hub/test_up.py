"""Where `quanthub up` listens and what it says about it."""

import pytest

from hub import up


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
