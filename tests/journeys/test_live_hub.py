"""A hub of real processes: it makes quants, and survives what befalls machines."""

import contextlib
import hashlib
import os
import re
import signal
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.live import new_hub

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub of this module's own, as its processes get killed here."""
    hub = new_hub(tmp_path_factory.mktemp("killed"), QUANTHUB_THREADS="1")
    hub.start()
    yield hub
    if hub.process.poll() is None:
        hub.stop()


def processes_of(hub, *words):
    """Return the ids of processes on this hub's data folder whose command line holds all words.

    The broker writes its title over its environment, but that title holds the folder's path.
    """
    mark, found = f"QUANTHUB_DATA={hub.data}\0".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            ours = mark in (folder / "environ").read_bytes() + b"\0" or str(hub.data) in command
            if ours and all(word in command for word in words):
                found.append(int(folder.name))
    return found


def wait_process(hub, *words):
    deadline = time.monotonic() + 90
    while not (found := processes_of(hub, *words)):
        assert time.monotonic() < deadline, hub.said()
        time.sleep(0.02)
    return found[0]


def wait_runner(hub, request_id):
    """Return the process that works for the request's only job."""
    (job,) = hub.api(f"requests/{request_id}")["jobs"]
    return wait_process(hub, "hub.jobs.runner", job["id"])


def wait_stage(hub, request_id, *stages):
    """Wait until the request's only job is in one of these stages; return the job."""
    deadline = time.monotonic() + 120
    while True:
        (job,) = hub.api(f"requests/{request_id}")["jobs"]
        if job["stage"] in stages:
            return job
        assert time.monotonic() < deadline, (job, hub.said())
        time.sleep(0.02)


def files_in(folder):
    return [path for path in folder.rglob("*") if not path.is_dir()]


def download(quant):
    with urllib.request.urlopen(quant["url"], timeout=60) as answer:
        return answer.read()


def quants_of_demo(hub):
    return {quant["level"] for quant in hub.api("models/quanthub/tiny-novels-7m")["quants"]}


def test_a_quant_is_asked_for_on_the_command_line_and_has_the_hash_it_says(hub):
    asked = hub.quanthub(
        *("request", "quanthub/tiny-novels-7m", "Q4_K_M", "--wait"),
        *("--server", hub.url, "--token", hub.token()),
    )

    assert asked.returncode == 0, asked.stderr + hub.said()
    (quant,) = hub.api("models/quanthub/tiny-novels-7m")["quants"]
    content = download(quant)
    assert hashlib.sha256(content).hexdigest() == quant["sha256"]
    assert quant["sha256"] in asked.stdout
    assert len(content) == quant["file_bytes"]
    assert {figure["metric"] for figure in quant["measurements"]} >= {"ppl", "ppl_increase"}


def test_people_who_ask_for_the_same_at_once_share_one_job(hub):
    hub.token()
    with ThreadPoolExecutor(8) as pool:
        requests = list(pool.map(hub.request, ["Q4_1"] * 8))

    jobs = {job["id"] for request in requests for job in hub.api(f"requests/{request}")["jobs"]}
    assert len(set(requests)) == 8
    assert len(jobs) == 1
    assert hub.wait_request(requests[-1], "done")["quants"]


def test_a_killed_runner_is_a_failed_job_without_a_trace_and_can_be_tried_again(hub):
    request = hub.request("Q3_K_M")
    runner = wait_runner(hub, request)
    wait_stage(hub, request, "quantize", "measure")
    os.kill(runner, signal.SIGKILL)

    (job,) = hub.wait_request(request, "failed")["jobs"]
    assert re.match(
        r"The job's process was killed by signal 9 while \w+; often the machine ran", job["error"]
    )
    assert job["error_kind"] == "retry"
    assert "Q3_K_M" not in quants_of_demo(hub)
    assert files_in(hub.data / "work") == []

    again = hub.wait_request(hub.request("Q3_K_M"), "done")
    assert hashlib.sha256(download(again["quants"][0])).hexdigest() == again["quants"][0]["sha256"]


def test_a_killed_worker_loses_no_job(hub):
    request = hub.request("Q5_K_M")
    worker = wait_process(hub, "hub.cli worker")
    runner = wait_runner(hub, request)
    os.kill(worker, signal.SIGKILL)

    document = hub.wait_request(request, "done")
    hub.wait_for("The worker was killed by signal 9; it is started again")
    events = hub.api(f"jobs/{document['jobs'][0]['id']}")["events"]
    assert "The job's worker fell silent; the job waits for another one." in [e["text"] for e in events]
    assert runner not in processes_of(hub, "hub.jobs.runner")
    assert files_in(hub.data / "work") == []


def test_a_killed_broker_loses_no_request(hub):
    os.kill(wait_process(hub, "valkey-server"), signal.SIGKILL)
    request = hub.request("Q4_0")

    assert hub.wait_request(request, "done")["quants"]
    hub.wait_for("The broker was killed by signal 9; it is started again")


def test_a_second_hub_on_the_same_data_is_refused(hub):
    other = hub.quanthub("up", "--port", "1")

    assert other.returncode == 1
    assert re.match(
        rf"quanthub up: Quanthub is running on \S+ already \(process {hub.process.pid}", other.stderr
    )


def test_a_taken_port_is_said_clearly(hub, tmp_path):
    other = hub.quanthub("up", "--data", str(tmp_path / "other"))

    assert other.returncode == 1
    assert f"Port {hub.port} of 127.0.0.1 is not free" in other.stderr


def test_ctrl_c_stops_everything_and_the_next_start_goes_on(hub):
    request = hub.request("Q6_K")
    wait_runner(hub, request)
    began = time.monotonic()
    assert hub.stop(signal.SIGINT) == 0

    assert time.monotonic() - began < 10
    assert processes_of(hub) == []
    assert files_in(hub.data / "work") == []

    hub.output.unlink()
    hub.start()
    assert hub.wait_request(request, "done")["quants"]
    assert "administrator" not in hub.output.read_text()


def test_nothing_outlives_a_killed_hub(hub):
    hub.process.kill()
    hub.process.wait()

    deadline = time.monotonic() + 10
    while processes_of(hub) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(hub) == []
