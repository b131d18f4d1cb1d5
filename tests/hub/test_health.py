"""What a load balancer sees."""

from redis.exceptions import ConnectionError as RedisConnectionError

from hub import health


def test_a_living_process_says_so(client):
    assert client.get("/healthz").content == b"ok\n"


def test_pages_can_be_served_without_broker_and_worker(client, db):
    answer = client.get("/readyz")

    assert answer.status_code == 200
    assert answer.json() == {"database": True, "storage": True, "broker": False, "worker": False}


def test_a_broker_that_goes_away_while_it_is_asked_is_told_and_not_a_fault(client, db, monkeypatch):
    def cut_off(*_arguments, **_options):
        raise RedisConnectionError("Connection reset by peer")

    monkeypatch.setattr(health, "_broker", lambda: True)
    monkeypatch.setattr(health.app.control, "broadcast", cut_off)

    assert client.get("/readyz").json()["worker"] is False


def test_a_store_that_cannot_be_written_to_is_not_ready(client, db, settings, tmp_path):
    (tmp_path / "a-file").touch()
    settings.BLOB_DIR = tmp_path / "a-file" / "blobs"

    assert client.get("/readyz").status_code == 503
