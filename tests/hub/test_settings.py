"""What an operator may set is documented, and refused loudly when malformed."""

from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from hub import settings

PAGE = Path(__file__).parents[2] / "docs" / "operators.md"


@pytest.mark.parametrize("setting", settings.SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_is_in_the_operators_page(setting):
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{setting.name}` |")]

    assert len(rows) == 1
    assert setting.default in rows[0] or setting.name == "QUANTHUB_DATA"


@pytest.mark.parametrize("text", ["x", "-1", "1.5"])
def test_a_number_that_is_none_is_refused_by_name(monkeypatch, text):
    monkeypatch.setenv("QUANTHUB_THREADS", text)

    with pytest.raises(ImproperlyConfigured, match="QUANTHUB_THREADS must be a whole number"):
        settings.env_int("QUANTHUB_THREADS")


@pytest.mark.parametrize("text", ["0", "65536", "9" * 5000])
def test_a_port_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv("PORT", text)

    with pytest.raises(ImproperlyConfigured, match="PORT must be a whole number between 1 and 65535"):
        settings.env_int("PORT", minimum=1, maximum=65535)


@pytest.mark.parametrize("url", ["quanthub.sqlite3", "nosql://me:s3cret@host/name"])
def test_an_address_that_names_no_database_is_refused_without_its_password(url):
    with pytest.raises(ImproperlyConfigured, match="DATABASE_URL is no address") as caught:
        settings._database(url)

    assert "s3cret" not in str(caught.value)


def test_a_missing_driver_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr(settings, "find_spec", lambda _name: None)

    with pytest.raises(ImproperlyConfigured, match=r"pip install 'psycopg\[binary\]'"):
        settings._database("postgres://me@host/name")


def test_a_data_folder_that_cannot_be_is_refused_by_name(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(settings, "DATA_DIR", tmp_path / "file" / "data")

    with pytest.raises(ImproperlyConfigured, match=r"QUANTHUB_DATA: the folder .*/file/data cannot be used"):
        settings._secret_key()


def test_the_data_folder_may_have_any_name(monkeypatch, tmp_path):
    monkeypatch.setattr(settings, "DATA_DIR", tmp_path / "100% mine? #1")

    assert settings._database("")["NAME"] == str(tmp_path / "100% mine? #1" / "quanthub.sqlite3")


def test_truth_is_0_or_1(monkeypatch):
    monkeypatch.setenv("QUANTHUB_DEBUG", "yes")

    with pytest.raises(ImproperlyConfigured, match="must be 0 or 1"):
        settings.env_bool("QUANTHUB_DEBUG")


def test_a_secret_may_come_from_a_file(monkeypatch, tmp_path):
    (tmp_path / "password").write_text("s3cret\n")
    monkeypatch.setenv("QUANTHUB_ADMIN_PASSWORD_FILE", str(tmp_path / "password"))

    assert settings.env("QUANTHUB_ADMIN_PASSWORD") == "s3cret"


def test_a_secret_file_that_cannot_be_read_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("QUANTHUB_ADMIN_PASSWORD_FILE", str(tmp_path / "nothing"))

    with pytest.raises(ImproperlyConfigured, match="cannot read"):
        settings.env("QUANTHUB_ADMIN_PASSWORD")
