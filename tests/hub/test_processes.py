"""Processes that `quanthub up` keeps running."""

import sys
import time

import pytest

from hub.processes import Service


@pytest.fixture
def service(tmp_path):
    made = Service("broker", [sys.executable, "-c", "print('hello')"], tmp_path / "logs" / "broker.log")
    yield made
    made.wait_stopped(5)


def wait_ended(service):
    deadline = time.monotonic() + 10
    while service.is_running:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_dead_process_is_told_once_and_started_again_after_a_pause(service):
    said = []
    service.pause = 0.05
    service.start()
    wait_ended(service)

    service.keep_running(said.append)
    service.keep_running(said.append)
    assert len(said) == 1
    assert said[0].startswith("The broker ended with status 0; it is started again in")

    time.sleep(0.06)
    first = service.process
    service.keep_running(said.append)
    assert service.process is not first
    assert service.pause == 0.1


def test_a_process_that_keeps_dying_is_started_ever_more_seldom(service):
    pauses = []
    for _ in range(8):
        service.start()
        service.restart_at = None
        wait_ended(service)
        service.keep_running(lambda _line: None)
        pauses.append(service.pause)

    assert pauses[:3] == [2, 4, 8]
    assert max(pauses) == 30


def test_what_a_process_says_is_in_its_log(service):
    service.start()
    wait_ended(service)

    assert service.log.read_text() == "hello\n"


def test_a_process_that_will_not_stop_is_killed(tmp_path):
    stubborn = (
        "from signal import *; import time; signal(SIGTERM, SIG_IGN); print(1, flush=True); time.sleep(60)"
    )
    service = Service("worker", [sys.executable, "-c", stubborn], tmp_path / "worker.log")
    service.start()
    while not service.log.read_text():
        time.sleep(0.01)

    service.ask_to_stop()
    service.wait_stopped(0.2)

    assert service.ending() == "was killed by signal 9"
