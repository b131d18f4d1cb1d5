"""The list of models and the page of one model."""

import re

import pytest
from django.urls import reverse

from hub.catalog import queries
from hub.catalog.models import Blob, Measurement, Model, Quant, QuantFile, Revision
from hub.jobs import actions

HTMX = {"HX-Request": "true"}
HOSTILE = "<img src=x onerror=alert(1)>"
METHOD = {"dataset": "Emma", "dataset_sha256": "e" * 64, "n_ctx": 512, "chunks": 60}


def measure(metric, value, deviation, **others):
    return Measurement.objects.create(
        metric=metric, value=value, deviation=deviation, method=METHOD, hardware={"cpu": "Z80"}, **others
    )


def add_model(number):
    """A model with a revision, a quant of it, and figures of both."""
    model = Model.objects.create(owner="acme", name=f"model-{number}", parameters=6_822_400)
    revision = Revision.objects.create(
        model=model, commit=f"{number:040x}", source_format="gguf", file_bytes=13_644_256, tensor_type="F16"
    )
    quant = Quant.objects.create(
        revision=revision, level="Q8_0", format="gguf", file_bytes=7_390_000, bpw=8.5, recipe_fingerprint="f"
    )
    blob = Blob.objects.create(sha256=f"{number:064x}", size=7_390_000)
    QuantFile.objects.create(quant=quant, path=f"model-{number}.gguf", blob=blob)
    measure("ppl", 53.3273, 1.179, revision=revision)
    measure("ppl", 53.3369, 1.18, quant=quant)
    measure("ppl_increase", 0.0096, 0.006, quant=quant)
    return model


def text_of(response):
    """Return a page's words as one reads them."""
    return " ".join(re.sub(r"<[^>]*>", " ", response.content.decode()).replace("\u00a0", " ").split())


@pytest.mark.django_db
def test_an_empty_hub_says_how_to_bring_a_model_in(client):
    assert "quanthub import" in text_of(client.get("/"))


@pytest.mark.django_db
def test_the_list_shows_a_model_with_its_facts_and_best_figures(client):
    add_model(1)

    text = text_of(client.get("/"))

    for fact in ("acme/ model-1", "6.8 M", "F16", "13.6 MB", "Q8_0 7.39 MB", "+0.010 ± 0.006"):
        assert fact in text


@pytest.mark.django_db
def test_the_search_box_works_without_a_script(client):
    add_model(1)
    add_model(2)

    text = text_of(client.get("/", {"q": "model-2"}))

    assert "acme/ model-2" in text
    assert "acme/ model-1" not in text


@pytest.mark.django_db
def test_htmx_gets_the_list_alone(client):
    add_model(1)

    content = client.get("/", headers={**HTMX, "HX-Target": "models"}).content.decode()

    assert "model-1" in content
    assert "<html" not in content


@pytest.mark.django_db
def test_going_back_in_history_gets_the_whole_page(client):
    headers = {**HTMX, "HX-Target": "models", "HX-History-Restore-Request": "true"}

    assert b"<html" in client.get("/", headers=headers).content


@pytest.mark.django_db
def test_a_search_that_finds_nothing_says_what_to_do(client):
    text = text_of(client.get("/", {"q": HOSTILE}))

    assert "No model matches" in text
    assert HOSTILE.encode() not in client.get("/", {"q": HOSTILE}).content


@pytest.mark.django_db
def test_the_list_takes_as_many_queries_for_twenty_models_as_for_one(client, django_assert_num_queries):
    add_model(1)
    with django_assert_num_queries(8) as one:
        client.get("/")
    for number in range(2, 21):
        add_model(number)

    with django_assert_num_queries(len(one.captured_queries)):
        client.get("/")


@pytest.mark.django_db
def test_pages_follow_one_another_and_keep_the_search(client):
    for number in range(25):
        add_model(number)

    response = client.get("/", {"q": "model", "page": 2})

    assert response.content.count(b'class="card"') == 5
    assert b"?q=model&amp;page=1" in response.content


@pytest.mark.django_db
def test_a_model_is_shown_with_every_figure_and_its_error(client):
    model = add_model(1)

    text = text_of(client.get(model.get_absolute_url()))

    for fact in ("53.33 ± 1.18", "53.34 ± 1.18", "+0.010 ± 0.006", "+0.02 %", "8.50", "7.39 MB", f"{1:064x}"):
        assert fact in text
    assert "Dataset SHA-256 " + "e" * 64 in text


@pytest.mark.django_db
def test_what_is_not_measured_is_said_to_be(client):
    model = add_model(1)

    assert text_of(client.get(model.get_absolute_url())).count("not measured") == 5


@pytest.mark.django_db
def test_the_newest_of_several_measurements_is_shown(client):
    model = add_model(1)
    measure("ppl", 60.5, 1.0, quant=Quant.objects.get())

    text = text_of(client.get(model.get_absolute_url()))

    assert "60.50 ± 1.00" in text
    assert "53.34" not in text


@pytest.mark.django_db
def test_a_download_link_leads_to_the_file(client):
    model = add_model(1)
    address = reverse("registry:resolve", args=["acme", "model-1", "main", "model-1.gguf"])

    assert f'href="{address}"'.encode() in client.get(model.get_absolute_url()).content


@pytest.mark.django_db
def test_hostile_names_are_only_text(client):
    model = Model.objects.create(owner="acme", name=HOSTILE, summary=HOSTILE, licence=HOSTILE)
    Revision.objects.create(
        model=model, commit="c" * 40, source_format="gguf", file_bytes=1, tensor_type=HOSTILE[:16]
    )

    for address in ("/", model.get_absolute_url()):
        response = client.get(address)
        assert response.status_code == 200
        assert b"<img" not in response.content


@pytest.mark.django_db
def test_a_model_that_is_not_there_is_a_page_of_our_own(client):
    response = client.get("/models/acme/nothing")

    assert response.status_code == 404
    assert "There is nothing here" in text_of(response)


def test_jobs_under_way_are_asked_for_again_until_there_are_none(client, job):
    address = job.revision.model.get_absolute_url()
    alive = client.get(address).content.decode()
    actions.cancel(job.request.user, job)

    ended = client.get(f"{address}?jobs=1", headers={**HTMX, "HX-Target": "model-jobs"})

    assert f'hx-get="{address}?jobs=1"' in alive
    assert b"hx-get" not in ended.content
    assert ended["HX-Trigger"] == '{"quants-changed": {}}'


@pytest.mark.django_db
def test_an_older_revision_can_be_looked_at(client):
    model = add_model(1)
    Revision.objects.create(
        model=model, commit="f" * 40, source_format="gguf", file_bytes=1, tensor_type="BF16"
    )

    newest = text_of(client.get(model.get_absolute_url()))
    older = text_of(client.get(model.get_absolute_url(), {"revision": f"{1:040x}"}))

    assert "No quants of this revision yet" in newest
    assert "53.34 ± 1.18" in older


def test_whoever_asks_for_the_icon_by_its_old_name_is_led_to_it(client):
    """The admin and the API's page link no icon, so browsers ask for this address."""
    assert client.get("/favicon.ico")["Location"] == "/static/img/favicon.svg"


@pytest.mark.django_db
def test_percentiles_stand_under_the_figure_that_they_are_of(client):
    model = add_model(1)
    statistics = {"max": 2.7081, "p999": 1.3237, "median": 0.0332, "p001": 5.1e-05, "min": -4.8e-07}
    shown = measure("kl_divergence", 0.0453, 0.0024, quant=Quant.objects.get(), statistics=statistics)
    measure("bits_per_byte", 1.18374, 0.02251, quant=Quant.objects.get())
    measure("rms_delta_p", 4.7562, 0.5796, unit="%", quant=Quant.objects.get(), statistics={"mean": -0.0451})

    text = text_of(client.get(model.get_absolute_url()))

    assert "KL divergence from the source: 0.0453 ± 0.0024 Largest 2.71 99.9 % 1.32" in text
    assert "Median 0.0332 0.1 % 5.1e\u221205 Smallest 0 " in text
    assert "53.34 ± 1.18 1.1837 ± 0.0225" in text
    assert "KL divergence from the source, RMS change of token probability" in text
    assert "RMS change of token probability: 4.76 ± 0.58 % Mean \u22120.0451" in text
    (quant,) = client.get(f"/api/v1/models/{model}").json()["quants"]
    (found,) = (m for m in quant["measurements"] if m["metric"] == "kl_divergence")
    assert found["statistics"] == statistics
    assert found["created"][:19] == shown.created.isoformat()[:19]


def add_quant(model, level, increase, deviation, file_bytes=5, speed=10.0):
    revision = model.latest_revision
    quant = Quant.objects.create(
        revision=revision, level=level, format="gguf", file_bytes=file_bytes, bpw=4, recipe_fingerprint=level
    )
    QuantFile.objects.create(quant=quant, path=f"{level}.gguf", blob=Blob.objects.get())
    measure("ppl_increase", increase, deviation, quant=quant)
    measure("tg_tps", speed, 1.0, quant=quant)


MEMORY = {"model": 105_400_000, "kv": 11_300_000, "compute": None, "n_ctx": 4096, "type_k": "f16"}


@pytest.mark.django_db
def test_a_quant_shows_speed_deep_in_the_context_memory_and_what_is_lacking(client):
    model = add_model(1)
    quant = Quant.objects.get()
    quant.not_measured = ["Speed in vLLM was not measured here: vLLM needs a CUDA card"]
    quant.save()
    measure("tg_tps", 160.2, 4.2, quant=quant)
    deep = measure("tg_deep_tps", 22.83, 1.7, quant=quant)
    deep.method = {"test": "tg128 @ d4096", "depth": 4096, "memory": MEMORY}
    deep.save()

    text = text_of(client.get(model.get_absolute_url()))

    assert "160 ± 4 22.8 ± 1.7 @ 4096" in text
    assert text.count("model 105 MB, KV 11.3 MB at n_ctx 4 096, compute not measured") == 2
    assert "Memory settings K f16" in text
    assert "measured on Z80" in text
    assert "Speed in vLLM was not measured here: vLLM needs a CUDA card." in text


@pytest.mark.django_db
def test_the_least_loss_is_that_of_the_smallest_among_those_equal_within_their_errors():
    model = add_model(1)
    add_quant(model, "Q5_K_M", 0.005, 0.012, file_bytes=6_900_000)
    add_quant(model, "Q6_K", 0.011, 0.012, file_bytes=5_700_000)
    add_quant(model, "Q4_K_M", 0.107, 0.03, file_bytes=4_300_000)

    (card,) = queries.cards([model])

    assert card.lowest_increase.quant.level == "Q6_K"


@pytest.mark.django_db
def test_a_ruined_quant_is_not_recommended_for_its_speed():
    model = add_model(1)
    add_quant(model, "TQ2_0", 96.0, 2.3, speed=999)
    add_quant(model, "Q4_K_M", 0.1, 0.03, speed=100)

    (card,) = queries.cards([model])

    assert card.fastest.quant.level == "Q4_K_M"


@pytest.mark.django_db
def test_one_ruined_quant_does_not_flatten_the_increases_of_all_others(client):
    model = add_model(1)
    for level, increase in (("Q4_K_M", 0.1), ("Q3_K_S", 0.5), ("Q2_K", 2.2), ("TQ2_0", 96.0)):
        add_quant(model, level, increase, increase / 10)

    whiskers = {
        row.quant.level: row.whisker for row in queries.rows_of(queries.revision_or_404("acme", "model-1"))
    }

    assert [level for level, whisker in whiskers.items() if whisker.beyond] == ["TQ2_0"]
    assert whiskers["Q2_K"].value > 80
    assert whiskers["Q3_K_S"].value - whiskers["Q4_K_M"].value > 10
    assert client.get(model.get_absolute_url()).content.count(b"whisker__beyond") == 1
