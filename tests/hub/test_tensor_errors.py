"""The errors of a quant's tensors: measured with it, kept with it, shown when wanted, never worth it."""

import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from hub import engine
from hub.catalog import queries
from hub.catalog.models import TensorErrors
from hub.jobs import actions, journey
from hub.jobs.models import Job, State

METHOD = {"protocol": "quantcore errors", "weighted_by": {"dataset": "calibration.txt", "chunks": 2}}
COLUMNS = {
    "name": ["blk.0.attn_q.weight", "blk.0.attn_v.weight", "odd"],
    "shape": [[256, 256], [256, 128], [1]],
    "source_type": ["F16", "F16", "F32"],
    "type": ["Q4_K", "Q6_K", "F32"],
    "bpw": [4.5, 6.5625, 32.0],
    "relative": [0.0712, 0.0189, None],
    "weighted": [0.0651, None, None],
    "rmse": [0.00123, 0.0004, 0.0],
    "cosine": [0.997461, 0.999821, None],
    "max_abs": [0.02, 0.01, 0.0],
}


@pytest.fixture(autouse=True)
def quick(monkeypatch, settings):
    def refuse(*_arguments):
        raise engine.NoEngine("llama.cpp is not installed")

    monkeypatch.setattr(engine, "speeds", refuse)
    settings.CALIBRATION_CHUNKS = 2


@pytest.fixture
def errors(quant):
    return TensorErrors.objects.create(
        quant=quant, relative=0.05, columns=COLUMNS, method=METHOD, hardware={"cpu": "Z80"}
    )


def made(alice, revision, level):
    job = actions.claim(actions.submit(alice, revision, [level]).jobs.get().pk, "worker")
    journey.make(job)
    return Job.objects.get(pk=job.pk)


def text_of(response):
    return " ".join(re.sub(r"<[^>]*>", " ", response.content.decode()).replace("\u00a0", " ").split())


def test_a_quant_is_made_with_the_errors_of_its_tensors(alice, demo):
    quant = made(alice, demo, "Q4_0").quant

    found = quant.tensor_errors
    assert {line["name"]: line["type"] for line in found.tensors} == {
        tensor["name"]: tensor["type"] for tensor in quant.plan["tensors"]
    }
    by_name = {line["name"]: line for line in found.tensors}
    assert 0.05 < by_name["blk.0.ffn_up.weight"]["relative"] < 0.12
    assert by_name["blk.0.ffn_up.weight"]["bpw"] == 4.5
    assert by_name["output_norm.weight"]["relative"] == 0
    assert 0.05 < found.relative < 0.12
    assert all(line["weighted"] is None for line in found.tensors)
    assert found.hardware["cpu"]
    assert found.engine["numpy"]
    assert "weighted_by" not in found.method


def test_a_calibration_weighs_the_errors_of_levels_made_without_it_too(alice, demo):
    weighed, plain = made(alice, demo, "IQ4_XS").quant, made(alice, demo, "Q4_0").quant

    for quant in (weighed, plain):
        weighted_by = quant.tensor_errors.method["weighted_by"]
        assert (weighted_by["chunks"], weighted_by["tokens"], weighted_by["n_ctx"]) == (2, 1024, 512)
        assert len(weighted_by["dataset_sha256"]) == 64
        lines = {line["name"]: line for line in quant.tensor_errors.tensors}
        assert 0.01 < lines["blk.0.ffn_up.weight"]["weighted"] < 0.12
    assert "imatrix" not in plain.made_with


@pytest.mark.parametrize("raised", [engine.Refused("odd: no such thing"), ZeroDivisionError(), MemoryError()])
def test_a_failure_loses_no_quant(alice, demo, monkeypatch, raised):
    def fail(*_arguments):
        raise raised

    monkeypatch.setattr(engine, "tensor_errors", fail)

    job = made(alice, demo, "Q4_0")

    assert (job.state, job.error) == (State.DONE, "")
    assert job.quant.measurements.filter(metric="ppl").exists()
    assert not TensorErrors.objects.exists()
    assert job.events.filter(text__startswith="Errors of tensors were not measured here: ").exists()


def test_a_job_that_was_taken_away_meanwhile_stops(alice, demo, monkeypatch):
    def overtaken(*_arguments):
        raise actions.Stale

    monkeypatch.setattr(engine, "tensor_errors", overtaken)

    assert made(alice, demo, "Q4_0").state == State.RUNNING


def test_the_page_of_a_model_offers_them_and_loads_them_only_when_opened(client, errors):
    shown = client.get("/models/acme/llama").content.decode()

    address = f"/models/acme/llama/quants/{errors.quant_id}/errors"
    assert f'<a href="{address}">' in shown
    assert f'hx-get="{address}"' in shown
    assert "blk.0.attn_q.weight" not in shown


def test_a_quant_without_them_offers_nothing(client, quant):
    assert "Error of each tensor" not in text_of(client.get("/models/acme/llama"))
    assert client.get(f"/models/acme/llama/quants/{quant.pk}/errors").status_code == 404


def test_they_are_a_page_of_their_own_the_worst_first(client, errors):
    text = text_of(client.get(f"/models/acme/llama/quants/{errors.quant_id}/errors"))

    assert "Q4_K_M error of each tensor" in text
    lines = (
        "blk.0.attn_q.weight Q4_K 4.50 0.0712 0.0651",
        "blk.0.attn_v.weight Q6_K 6.56 0.0189 not weighted",
    )
    assert text.index("odd F32 32.00 unknown") < text.index(lines[0]) < text.index(lines[1])
    assert "Weighted by dataset calibration.txt" in text


def test_htmx_gets_the_table_alone(client, errors):
    headers = {"HX-Request": "true", "HX-Target": f"errors-{errors.quant_id}-table"}

    content = client.get(
        f"/models/acme/llama/quants/{errors.quant_id}/errors", headers=headers
    ).content.decode()

    assert "blk.0.attn_q.weight" in content
    assert "<html" not in content


def test_another_models_page_does_not_show_them(client, errors):
    assert client.get(f"/models/acme/other/quants/{errors.quant_id}/errors").status_code == 404


def test_the_api_names_where_they_are_and_gives_them_line_by_line(client, errors):
    (quant,) = client.get("/api/v1/models/acme/llama").json()["quants"]

    found = client.get(quant["errors_url"]).json()

    assert (found["level"], found["relative"], found["method"]) == ("Q4_K_M", 0.05, METHOD)
    assert found["tensors"][0] == {name: values[0] for name, values in COLUMNS.items()}
    assert len(found["tensors"]) == 3
    assert client.get("/api/v1/quants/999/errors").status_code == 404


def test_the_api_says_null_of_a_quant_without_them(client, quant):
    assert client.get("/api/v1/models/acme/llama").json()["quants"][0]["errors_url"] is None


@pytest.mark.parametrize("number", [2**63, 10**30])
def test_a_number_that_no_database_holds_is_no_quants(client, errors, number):
    assert client.get(f"/models/acme/llama/quants/{number}/errors").status_code == 404


def test_tensors_of_the_same_error_keep_the_order_of_the_source(errors):
    errors.columns = {"name": ["a", "b", "c", "d"], "relative": [0.0, 0.5, 0.0, None]}

    assert [line["name"] for line in queries.worst_first(errors)] == ["d", "b", "a", "c"]


@pytest.mark.parametrize("address", ["/models/acme/llama", "/api/v1/models/acme/llama"])
def test_errors_of_more_quants_take_no_more_queries(
    client, revision, errors, address, django_assert_num_queries
):
    with CaptureQueriesContext(connection) as one:
        client.get(address)
    for number in range(5):
        other = revision.quants.create(
            level="Q8_0", format="gguf", file_bytes=9, bpw=8.5, recipe_fingerprint=str(number)
        )
        if number % 2:
            TensorErrors.objects.create(quant=other, columns=COLUMNS)

    with django_assert_num_queries(len(one)) as more:
        client.get(address)
    assert not any('"columns"' in query["sql"] for query in more.captured_queries)
