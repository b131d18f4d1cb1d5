"""The API: open to read, tokens to write, one sentence for each error."""

import pytest

from hub.accounts.models import Token
from hub.catalog.models import Measurement, Model
from hub.jobs.models import Job, Request


def ask(client, body, secret=None):
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    return client.post("/api/v1/requests", body, content_type="application/json", headers=headers)


WANTED = {"model": "acme/llama", "levels": ["Q4_K_M"]}


def test_models_are_listed_for_everyone(client, revision):
    answer = client.get("/api/v1/models").json()

    assert [item["id"] for item in answer["items"]] == ["acme/llama"]
    assert answer["next"] is None


def test_a_long_list_comes_in_pages(client, db):
    for number in range(5):
        Model.objects.create(owner="acme", name=f"m{number}")

    seen, address = [], "/api/v1/models?limit=2"
    while address:
        page = client.get(address).json()
        seen += [item["id"] for item in page["items"]]
        address = page["next"]

    assert sorted(seen) == [f"acme/m{number}" for number in range(5)]


def test_a_search_wants_every_word(client, db):
    Model.objects.create(owner="acme", name="llama-tiny")
    Model.objects.create(owner="acme", name="llama-big")

    found = client.get("/api/v1/models?search=llama tiny").json()["items"]

    assert [item["id"] for item in found] == ["acme/llama-tiny"]


def test_a_page_beyond_all_numbers_is_refused(client, db):
    assert client.get(f"/api/v1/models?offset={10**30}").status_code == 422


@pytest.mark.parametrize(
    "address",
    [
        "/?q=%00",
        "/models/acme/ll%00ama",
        "/models/acme/llama?revision=%00",
        "/acme/llama/resolve/main/a%00b",
        "/acme/llama/resolve/%00/a",
        "/api/v1/models?search=%00",
        "/api/v1/models/acme/ll%00ama",
        "/api/v1/jobs/%00",
    ],
)
def test_a_zero_in_an_address_is_refused(client, revision, address):
    """PostgreSQL takes no text with a zero in it."""
    assert client.get(address).status_code == 400


def test_a_zero_in_a_models_name_finds_nothing(client, revision, token):
    assert ask(client, {"model": "acme/ll\0ama", "levels": ["Q8_0"]}, token("write")).status_code == 404


def test_a_model_shows_its_quants_with_their_figures(client, quant):
    Measurement.objects.create(quant=quant, metric="ppl", value=12.5, deviation=0.1, method={"n_ctx": 512})

    shown = client.get("/api/v1/models/acme/llama").json()

    assert shown["revision"]["commit"] == "c" * 40
    (only,) = shown["quants"]
    assert (only["level"], only["sha256"], only["file_bytes"]) == ("Q4_K_M", "a" * 64, 5)
    assert only["url"] == f"http://testserver/acme/llama/resolve/{'c' * 40}/llama-Q4_K_M.gguf"
    assert only["measurements"][0]["method"] == {"n_ctx": 512}
    assert only["not_measured"] == []


def test_a_request_makes_a_job_for_the_tokens_owner(client, revision, token, alice):
    answer = ask(client, WANTED, token("write"))

    assert answer.status_code == 201
    assert answer.json()["state"] == "queued"
    assert Request.objects.get().user == alice
    job = client.get(f"/api/v1/jobs/{Job.objects.get().pk}").json()
    assert (job["level"], job["events"][0]["text"]) == ("Q4_K_M", "alice asked for it.")


def test_a_finished_request_shows_its_quants(client, quant, token):
    made = ask(client, WANTED, token("write")).json()

    shown = client.get(f"/api/v1/requests/{made['id']}").json()

    assert (shown["state"], shown["quants"][0]["sha256"]) == ("done", "a" * 64)


@pytest.mark.parametrize(
    ("secret", "status", "sentence"),
    [
        (None, 401, "needs a token"),
        ("hf_wrong", 401, "token is not valid"),
    ],
)
def test_without_a_good_token_nothing_is_made(client, revision, secret, status, sentence):
    answer = ask(client, WANTED, secret)

    assert answer.status_code == status
    assert sentence in answer.json()["detail"]
    assert not Request.objects.exists()


def test_a_token_that_may_only_read_cannot_ask(client, revision, token):
    answer = ask(client, WANTED, token("read"))

    assert (answer.status_code, Request.objects.count()) == (403, 0)


def test_the_token_of_a_person_who_left_is_not_valid(client, revision, token, alice):
    secret = token("write")
    alice.is_active = False
    alice.save()

    assert ask(client, WANTED, secret).status_code == 401


def test_use_of_a_token_is_noted_but_not_at_every_call(client, revision, token, django_assert_num_queries):
    secret = token("write")
    ask(client, WANTED, secret)
    first = Token.objects.get().last_used

    ask(client, WANTED, secret)

    assert first is not None
    assert Token.objects.get().last_used == first


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"model": "acme/nobody", "levels": ["Q4_K_M"]}, 404, "No model is called acme/nobody"),
        ({"model": "acme/llama", "levels": ["Q9"]}, 422, "No level is called 'Q9'"),
        ({"model": "acme/llama", "levels": ["Q8_0", "Q9"]}, 422, "Nothing was asked for."),
        ({"model": "acme/llama", "levels": []}, 422, "at least one level"),
        ({"model": "acme/llama"}, 422, "levels: Field required"),
    ],
)
def test_a_request_that_cannot_be_met_says_why(client, revision, token, body, status, sentence):
    answer = ask(client, body, token("write"))

    assert answer.status_code == status
    assert sentence in answer.json()["detail"]


@pytest.mark.parametrize("address", ["models/acme/nobody", "requests/none", "jobs/none", "nothing/here"])
def test_what_is_not_there_is_said_in_json(client, db, address):
    answer = client.get(f"/api/v1/{address}")

    assert answer.status_code == 404
    assert isinstance(answer.json()["detail"], str)


def test_the_description_of_the_api_lists_its_routes(client, db):
    paths = client.get("/api/v1/openapi.json").json()["paths"]

    assert {"/api/v1/models", "/api/v1/requests"} <= set(paths)


def test_a_bug_is_told_in_json_without_a_traceback(client, revision, token, monkeypatch):
    monkeypatch.setattr("hub.api.views.actions.submit", lambda *_: 1 / 0)

    answer = ask(client, WANTED, token("write"))

    assert (answer.status_code, answer.json()) == (500, {"detail": "Something went wrong in the hub itself."})


def test_the_page_about_the_api_needs_nothing_from_the_network(client, db):
    page = client.get("/api/v1/docs").content.decode()

    assert "/static/ninja/" in page
    assert "//cdn" not in page
