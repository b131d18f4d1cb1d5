"""The command line `quanthub`, against a server in this process."""

import json
import socket

import pytest
import requests
from django.db import OperationalError

from hub import engine
from hub.accounts.models import Token, User
from hub.cli import build_parser, main
from hub.cli._django import DEFAULT_DATA
from hub.jobs import actions
from hub.jobs.models import Job
from hub.settings import SETTINGS


@pytest.fixture
def ask(live_server, capsys):
    """Return a function that runs `quanthub request` and returns its status, output and complaint."""

    def run(*arguments, server=None):
        status = main(["request", *arguments, "--server", server or live_server.url])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_a_request_prints_its_document(ask, revision, token):
    status, out, err = ask("acme/llama", "Q4_K_M", "--token", token("write"), "--json")

    document = json.loads(out)
    assert (status, err) == (0, "")
    assert (document["state"], document["quants"]) == ("queued", [])
    assert document["id"] == Job.objects.get().request_id


def test_a_finished_quant_is_shown_with_hash_and_address(ask, quant, token):
    status, out, _ = ask("acme/llama", "Q4_K_M", "--token", token("write"), "--wait")

    assert status == 0
    assert "a" * 64 in out
    assert "/acme/llama/resolve/" in out


def test_waiting_for_a_job_that_fails_ends_with_its_sentence_and_its_document(
    ask, revision, token, monkeypatch
):
    def fail_meanwhile(_seconds):
        job = actions.claim(Job.objects.get().pk, "worker")
        actions.fail(job, Job.ErrorKind.RETRY, "The disk is full.")

    monkeypatch.setattr("time.sleep", fail_meanwhile)

    status, out, err = ask("acme/llama", "Q4_K_M", "--token", token("write"), "--wait", "--json")

    assert (status, err) == (1, "quanthub request: Q4_K_M failed: The disk is full.\n")
    assert json.loads(out)["state"] == "failed"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("acme/llama", "Q4_K_M", "--token", "hf_wrong"), "The token is not valid."),
        (("acme/llama", "Q4_K_M"), "This needs a token: set QUANTHUB_TOKEN or give --token."),
        (("acme/llama", "Q4_K_M", "--token", "wörld"), "The token is not valid."),
    ],
)
def test_a_wrong_token_is_one_clear_line(ask, revision, arguments, sentence):
    status, out, err = ask(*arguments)

    assert (status, out) == (1, "")
    assert sentence in err
    assert err.count("\n") == 1


def test_a_model_that_is_not_there_is_one_clear_line(ask, db, token):
    status, _, err = ask("acme/nobody", "Q4_K_M", "--token", token("write"))

    assert (status, err) == (1, "quanthub request: No model is called acme/nobody.\n")


def test_a_level_that_is_not_there_is_one_clear_line(ask, revision, token):
    status, _, err = ask("acme/llama", "Q9", "--token", token("write"))

    assert status == 1
    assert "No level is called 'Q9'" in err


def test_a_server_that_is_not_there_is_one_clear_line(ask, db):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{probe.getsockname()[1]}"

    status, _, err = ask("acme/llama", "Q4_K_M", "--token", "x", server=nowhere)

    assert status == 1
    assert err == f"quanthub request: {nowhere} cannot be reached (Connection refused). Is the hub running?\n"


@pytest.mark.parametrize(
    ("environment", "server"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"PORT": "8123"}, "http://127.0.0.1:8123"),
        ({"PORT": "8123", "QUANTHUB_SERVER": "https://hub.example"}, "https://hub.example"),
    ],
)
def test_the_server_is_the_named_one_or_this_machine_at_its_port(monkeypatch, environment, server):
    monkeypatch.delenv("QUANTHUB_SERVER", raising=False)
    monkeypatch.delenv("PORT", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert build_parser().parse_args(["request", "acme/llama", "Q8_0"]).server == server


class Away:
    """A hub that takes a request and is away for a while after; its clock is the one that sleeping moves."""

    def __init__(self, monkeypatch, seconds):
        self.now, self.back = 0.0, seconds
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("time.sleep", self.sleep)
        monkeypatch.setattr("requests.Session.request", self.answer)

    def sleep(self, seconds):
        self.now += seconds

    def answer(self, method, url, **options):
        response = requests.Response()
        response.status_code = 200 if method == "POST" or self.now > self.back else 503
        document = {"id": "r1", "state": "queued" if method == "POST" else "done", "quants": []}
        jobs = [{"id": "j1", "level": "Q8_0", "state": document["state"], "stage": "", "error": ""}]
        response._content = json.dumps(document | {"jobs": [job | {"progress": {}} for job in jobs]}).encode()
        return response


def test_waiting_outlives_a_hub_that_is_away_for_half_a_minute(monkeypatch, capsys):
    Away(monkeypatch, 30)

    assert main(["request", "acme/llama", "Q8_0", "--wait", "--server", "http://hub.example"]) == 0

    assert capsys.readouterr().err.count("Trying again") == 1


def test_waiting_for_a_hub_that_stays_away_ends_with_the_jobs_address(monkeypatch, capsys):
    Away(monkeypatch, 600)

    assert main(["request", "acme/llama", "Q8_0", "--wait", "--server", "http://hub.example"]) == 1

    assert "see http://hub.example/jobs/j1/\n" in capsys.readouterr().err


def test_figures_are_named_in_words_and_in_the_order_of_the_pages(ask, quant, token):
    for metric in ("tg_tps", "ppl_increase", "pp_tps", "ppl"):
        quant.measurements.create(metric=metric, value=1)

    _, out, _ = ask("acme/llama", "Q4_K_M", "--token", token("write"))

    assert [line.strip() for line in out.splitlines()[3:]] == [
        "Perplexity 1",
        "Perplexity increase over the source 1",
        "Prompt speed 1",
        "Generation speed 1",
    ]


def test_why_a_job_failed_is_said_once(ask, revision, token, monkeypatch):
    def fail_meanwhile(_seconds):
        job = actions.claim(Job.objects.get().pk, "worker")
        actions.fail(job, Job.ErrorKind.RETRY, "The disk is full.")

    monkeypatch.setattr("time.sleep", fail_meanwhile)

    _, out, err = ask("acme/llama", "Q4_K_M", "--token", token("write"), "--wait")

    assert (out + err).count("The disk is full.") == 1


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])

    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("quanthub 0.")


def test_something_that_is_no_hub_is_one_clear_line(ask, live_server):
    status, _, err = ask("acme/llama", "Q4_K_M", "--token", "x", server=f"{live_server.url}/healthz")

    assert status == 1
    assert "answered 404" in err


def test_an_address_without_a_scheme_is_refused(ask, db):
    assert "begins with http" in ask("acme/llama", "Q4_K_M", server="localhost:8000")[2]


def test_bad_usage_is_status_2(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["request"])

    assert caught.value.code == 2


def test_token_create_prints_the_token_alone(alice, capsys):
    assert main(["token", "create", "--user", "alice", "--name", "laptop", "--scope", "read"]) == 0

    secret = capsys.readouterr().out.strip()
    token = Token.objects.for_secret(secret)
    assert (token.user, token.name, token.scope) == (alice, "laptop", "read")


@pytest.mark.parametrize(("name", "why"), [(" ", "Give the token a name"), ("test", "called 'test' already")])
def test_token_create_refuses_a_name_that_tells_nothing(alice, token, capsys, name, why):
    token("write")

    assert main(["token", "create", "--user", "alice", "--name", name]) == 1

    assert why in capsys.readouterr().err
    assert Token.objects.count() == 1


def test_a_token_for_nobody_is_refused(db, capsys):
    assert main(["token", "create", "--user", "nobody", "--name", "x"]) == 1
    assert "no user is called 'nobody'" in capsys.readouterr().err


def test_a_token_of_a_hub_that_was_never_started_is_one_clear_line(db, capsys, monkeypatch):
    def no_table(**_names):
        raise OperationalError("no such table: accounts_user")

    monkeypatch.setattr(User.objects, "filter", no_table)

    assert main(["token", "create", "--user", "alice", "--name", "x"]) == 1

    assert capsys.readouterr().err == (
        "quanthub token: the database cannot be used: no such table: accounts_user. "
        "Has the hub been started once?\n"
    )


def test_import_takes_a_folder_into_the_catalog(db, settings, capsys):
    folder = str(settings.DEMO_DIR / "tiny-novels-7m")

    assert main(["import", folder, "--id", "me/tiny", "--licence", "CC0-1.0", "--json"]) == 0

    document = json.loads(capsys.readouterr().out)
    assert (document["id"], document["tensor_type"], len(document["commit"])) == ("me/tiny", "F16", 40)


def test_import_says_whether_the_files_are_there_already(demo, settings, capsys):
    folder = str(settings.DEMO_DIR / "tiny-novels-7m")

    assert main(["import", folder, "--id", str(demo.model)]) == 0

    said = capsys.readouterr().out
    assert said == f"{demo.model} has these files already, commit {demo.commit}; no new revision is needed\n"


def test_importing_quantized_tensors_over_a_model_says_both(demo, tmp_path, settings, capsys):
    file = tmp_path / "tiny.gguf"
    source = engine.open_source(settings.DEMO_DIR / "tiny-novels-7m")
    engine.quantize(source, engine.make_plan(source, "Q8_0"), file, lambda _progress: None)

    assert main(["import", str(file), "--id", str(demo.model)]) == 0

    said = capsys.readouterr()
    assert "has a new revision" in said.out
    assert "the previous one has 0 quants" in said.out
    assert "warning: the tensors are quantized already (Q8_0)" in said.err


def test_import_says_what_it_cannot_read(db, tmp_path, capsys):
    (tmp_path / "notes.gguf").write_text("Dear diary")

    assert main(["import", str(tmp_path / "notes.gguf")]) == 1

    err = capsys.readouterr().err
    assert err.startswith("quanthub import: ")
    assert err.count("\n") == 1


def test_a_worker_without_a_broker_says_what_to_set(db, capsys):
    assert main(["worker"]) == 1
    assert "REDIS_URL is not set" in capsys.readouterr().err


def test_a_lost_password_is_replaced_by_the_one_that_is_printed(alice, capsys):
    assert main(["password", "--user", "alice"]) == 0

    alice.refresh_from_db()
    assert alice.check_password(capsys.readouterr().out.strip())


def test_a_password_for_nobody_is_refused(db, capsys):
    assert main(["password"]) == 1
    assert "no user is called 'admin'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb", [["worker"], ["token", "create", "--user", "alice", "--name", "x"], ["password"]]
)
def test_a_verb_for_a_hub_makes_no_folder_where_there_is_none(monkeypatch, tmp_path, capsys, verb):
    monkeypatch.setenv("QUANTHUB_DATA", str(tmp_path / "nothing"))

    assert main(verb) == 1

    assert f"there is no hub in {tmp_path}/nothing" in capsys.readouterr().err
    assert not list(tmp_path.glob("nothing"))


def test_the_data_folder_looked_for_is_that_of_the_settings():
    default = next(setting for setting in SETTINGS if setting.name == "QUANTHUB_DATA").default

    assert str(DEFAULT_DATA) == default


def test_a_data_folder_that_cannot_be_written_is_refused_by_name(settings, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    settings.DATA_DIR = tmp_path / "file"

    assert main(["import", str(tmp_path)]) == 1

    said = capsys.readouterr().err
    assert (
        said == f"quanthub import: QUANTHUB_DATA: the folder {tmp_path}/file cannot be used (File exists)\n"
    )
