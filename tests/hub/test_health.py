"""What a load balancer sees."""


def test_a_living_process_says_so(client):
    assert client.get("/healthz").content == b"ok\n"


def test_pages_can_be_served_without_broker_and_worker(client, db):
    answer = client.get("/readyz")

    assert answer.status_code == 200
    assert answer.json() == {"database": True, "storage": True, "broker": False, "worker": False}


def test_a_store_that_cannot_be_written_to_is_not_ready(client, db, settings, tmp_path):
    (tmp_path / "a-file").touch()
    settings.BLOB_DIR = tmp_path / "a-file" / "blobs"

    assert client.get("/readyz").status_code == 503
