"""The queue, the page of one job, and asking for quants."""

import re

import pytest
from django.urls import reverse
from django.utils import timezone

from hub import engine, previews
from hub.jobs import actions, views
from hub.jobs.models import Job, Stage, State
from hub.layout import lay_out

LIVE = {"HX-Request": "true", "HX-Target": "job-live"}
DIALOG = {"HX-Request": "true", "HX-Target": "dialog"}
PLAN = {
    "level": "Q4_K_M",
    "file_bytes": 4_410_000,
    "bpw": 5.19,
    "tensors": [
        {"name": f"blk.{n}.weight", "shape": [256, 256], "type": "Q4_K", "nbytes": 36_864, "reason": "base"}
        for n in range(3)
    ],
    "warnings": [],
}
QUANTIZING = {
    "stage": "quantize",
    "done": 1,
    "total": 3,
    "unit": "tensors",
    "seconds": 2.0,
    "seconds_left": 4.0,
    "item": "blk.1.weight",
    "index": 2,
    "count": 3,
}


@pytest.fixture
def quantizing(running):
    """A job in the midst of its second tensor of three."""
    for stage in (Stage.FETCH, Stage.PLAN, Stage.QUANTIZE):
        actions.enter(running, stage)
    actions.keep_plan(running, PLAN)
    actions.record(running, QUANTIZING)
    running.refresh_from_db()
    return running


def text_of(response):
    return " ".join(re.sub(r"<[^>]*>", " ", response.content.decode()).replace("\u00a0", " ").split())


def looks(response):
    """Return how each stage looks."""
    return re.findall(r"stepper__step--(\w+)", response.content.decode())


def timed(response):
    """Return how many stages show a time."""
    return sum(step.seconds is not None for step in response.context["steps"])


def ask(client, demo, *levels, **options):
    address = reverse("jobs:request", args=[demo.model.owner, demo.model.name])
    return client.post(address, {"levels": levels}, **options)


def test_a_running_job_shows_stages_tensor_count_and_time_left(client, quantizing):
    response = client.get(quantizing.get_absolute_url())

    assert looks(response) == ["done", "done", "now", "next", "next", "next"]
    for fact in ("blk.1.weight", "2 of 3", "4.0 s left", "Quantize began."):
        assert fact in text_of(response)


def test_a_progress_without_a_time_left_or_an_item_says_nothing_of_them(client, quantizing):
    actions.record(quantizing, QUANTIZING | {"seconds_left": None, "item": None})

    text = text_of(client.get(quantizing.get_absolute_url()))

    assert "None" not in text
    assert " left" not in text


def test_a_job_that_has_just_been_taken_has_no_stage_yet(client, running):
    response = client.get(running.get_absolute_url())

    assert looks(response) == ["next"] * 6
    assert "Starting" in text_of(response)


def test_the_plan_says_which_tensors_are_written(client, quantizing):
    content = client.get(quantizing.get_absolute_url()).content.decode()

    assert re.findall(r"plan__tensor--(\w+)", content) == ["done", "now", "next"]


def test_a_live_job_asks_again_and_an_ended_one_does_not(client, quantizing):
    alive = client.get(quantizing.get_absolute_url(), headers=LIVE).content
    actions.fail(quantizing, Job.ErrorKind.RETRY, "The disk is full.")
    ended = client.get(quantizing.get_absolute_url(), headers=LIVE).content

    assert b'hx-trigger="every 1s"' in alive
    assert b"hx-trigger" not in ended


def test_an_answer_to_polling_is_the_part_alone_with_only_what_is_new(client, quantizing):
    last = quantizing.events.last().pk
    seen = {"state": "running", "stage": "quantize", "event": last, "tensors": 2}
    actions.log(quantizing, "A new line.")

    content = client.get(quantizing.get_absolute_url(), seen, headers=LIVE).content.decode()

    assert "<html" not in content
    assert content.count('class="log__line') == 1
    assert 'id="tensor-2"' in content
    assert 'id="tensor-1"' not in content
    assert 'id="job-actions"' not in content


def test_the_plan_arrives_as_soon_as_there_is_one(client, quantizing):
    seen = {"state": "running", "stage": "plan", "event": 0, "tensors": 0}

    content = client.get(quantizing.get_absolute_url(), seen, headers=LIVE).content.decode()

    assert content.count('class="plan__tensor ') == 3


def test_nonsense_in_what_was_seen_is_ignored(client, quantizing):
    seen = {"event": "-1", "tensors": "9" * 40, "state": "<b>"}

    assert client.get(quantizing.get_absolute_url(), seen, headers=LIVE).status_code == 200


@pytest.mark.parametrize("kind", list(Job.ErrorKind))
def test_a_failed_job_says_why_and_whose_turn_it_is(client, alice, quantizing, kind):
    client.force_login(alice)
    actions.fail(quantizing, kind, "blk.1.weight: 3 values are not numbers.")

    response = client.get(quantizing.get_absolute_url())

    assert looks(response) == ["done", "done", "failed", "next", "next", "next"]
    assert "blk.1.weight: 3 values are not numbers." in text_of(response)
    assert kind.label in text_of(response)
    assert "Try again" in text_of(response)


def test_a_finished_job_shows_the_row_of_the_models_page(client, running, quant):
    actions.move(running, State.DONE, "Done.", quant=quant, finished=timezone.now())
    row = re.compile(r'<tbody[^>]*id="Q4_K_M">.*?</tbody>', re.DOTALL)

    here = row.search(client.get(running.get_absolute_url()).content.decode())
    there = row.search(client.get(quant.revision.model.get_absolute_url()).content.decode())

    assert here.group() == there.group()


def test_durations_are_those_of_the_newest_attempt(client, quantizing):
    actions.release(quantizing, "The worker was lost.")
    again = actions.claim(quantizing.pk, "another")
    actions.enter(again, Stage.FETCH)

    response = client.get(again.get_absolute_url())

    assert looks(response) == ["now", "next", "next", "next", "next", "next"]


def test_a_job_that_was_put_back_shows_no_times_of_the_attempt_before(client, alice, quantizing):
    actions.fail(quantizing, Job.ErrorKind.RETRY, "The disk is full.")
    assert timed(client.get(quantizing.get_absolute_url())) == 3

    actions.retry(alice, quantizing)
    assert timed(client.get(quantizing.get_absolute_url())) == 0
    actions.cancel(alice, quantizing)
    assert timed(client.get(quantizing.get_absolute_url())) == 0


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_no_tensor_of_a_job_that_came_to_nothing_counts_as_written(client, quantizing, end):
    if end == "failed":
        actions.fail(quantizing, Job.ErrorKind.RETRY, "The disk is full.")
    else:
        actions.end_cancelled(quantizing)

    content = client.get(quantizing.get_absolute_url()).content.decode()

    assert re.findall(r"plan__tensor--(\w+)", content) == ["next"] * 3


def test_only_whoever_may_cancel_sees_the_button(client, alice, bob, running):
    address = reverse("jobs:cancel", args=[running.pk]).encode()
    seen = []
    for user in (alice, bob):
        client.force_login(user)
        seen.append(address in client.get(running.get_absolute_url()).content)

    assert seen == [True, False]


def test_cancelling_leads_back_to_the_job(client, alice, job):
    client.force_login(alice)

    response = client.post(reverse("jobs:cancel", args=[job.pk]), follow=True)

    assert looks(response) == ["next"] * 6
    assert "Cancelled" in text_of(response)


def test_a_refused_action_says_so_on_the_jobs_page(client, bob, job):
    client.force_login(bob)

    response = client.post(reverse("jobs:cancel", args=[job.pk]), follow=True)

    assert "Only the person who asked for this job" in text_of(response)


def test_retrying_puts_a_failed_job_back(client, alice, running):
    client.force_login(alice)
    actions.fail(running, Job.ErrorKind.RETRY, "The disk is full.")

    client.post(reverse("jobs:retry", args=[running.pk]))

    running.refresh_from_db()
    assert running.state == State.QUEUED


def test_the_queue_shows_what_is_under_way_and_what_ended(client, alice, running, revision):
    other = actions.submit(alice, revision, ["Q8_0"]).jobs.get()
    actions.cancel(alice, other)

    under_way, ended = text_of(client.get(reverse("jobs:list"))).split("Ended")

    assert "Q4_K_M" in under_way
    assert "Running" in under_way
    assert "Q8_0" in ended
    assert "Cancelled" in ended


def test_the_queue_takes_as_many_queries_for_many_jobs_as_for_one(
    client, alice, job, revision, django_assert_num_queries
):
    with django_assert_num_queries(2):
        client.get(reverse("jobs:list"))
    actions.submit(alice, revision, ["Q8_0", "Q6_K", "Q5_0"])

    with django_assert_num_queries(2):
        client.get(reverse("jobs:list"))


def test_a_stranger_is_asked_to_sign_in_and_led_back(client, revision):
    address = reverse("jobs:request", args=["acme", "llama"])

    assert (
        client.get(address)["Location"]
        == f"{reverse('accounts:sign-in')}?next=%2Fjobs%2Frequest%2Facme%2Fllama%2F"
    )
    assert client.get(address, headers=DIALOG)["HX-Redirect"].startswith(reverse("accounts:sign-in"))


def test_the_dialog_offers_each_level_with_what_it_will_weigh(client, alice, demo):
    client.force_login(alice)
    address = reverse("jobs:request", args=[demo.model.owner, demo.model.name])

    page, dialog = client.get(address), client.get(address, headers=DIALOG)

    assert re.search(r"Q8_0 8 bit .*?7\.\d\d MB 8\.\d\d bpw", text_of(page))
    assert b"<html" in page.content
    assert b"<html" not in dialog.content


def levels_of(response):
    """Return the levels in the order of the page."""
    return re.findall(r'class="choice__name".*?class="plate">(\w+)<', response.content.decode())


def checked(response):
    return re.findall(r'value="(\w+)"[^>]* checked', response.content.decode())


def test_the_usual_level_is_first_and_full_precision_is_last(client, alice, demo):
    client.force_login(alice)

    dialog = client.get(reverse("jobs:request", args=[demo.model.owner, demo.model.name]), headers=DIALOG)

    assert levels_of(dialog)[:3] == ["Q4_K_M", "Q8_0", "Q6_K"]
    assert set(levels_of(dialog)[-3:]) == {"F32", "F16", "BF16"}
    assert checked(dialog) == []  # or whoever ticks another would get two
    assert re.search(r'value="Q4_K_M"[^>]* autofocus', dialog.content.decode())


def test_a_form_that_comes_back_keeps_what_was_chosen(client, alice, demo):
    client.force_login(alice)

    assert checked(ask(client, demo, "Q6_K", "Q9_X")) == ["Q6_K"]


def test_a_refusal_that_levels_share_is_said_once(client, alice, demo, monkeypatch):
    def refuse(_revision, level):
        raise engine.Refused(f"{level}.weight is Q4_K already; start from the full-precision model")

    monkeypatch.setattr(previews, "preview", refuse)
    client.force_login(alice)

    text = text_of(client.get(reverse("jobs:request", args=[demo.model.owner, demo.model.name])))

    assert text.count("start from the full-precision model") == 1
    assert text.count("Not possible with this source") == 1
    assert f"Not possible with this source {len(engine.levels())}" in text


def test_levels_that_exist_or_are_under_way_are_links_instead_of_boxes(client, alice, demo):
    client.force_login(alice)
    job = ask(client, demo, "Q8_0")["Location"]

    content = client.get(reverse("jobs:request", args=[demo.model.owner, demo.model.name])).content.decode()

    assert 'value="Q8_0"' not in content
    assert f'href="{job}">Under way' in content


def test_one_level_leads_to_its_job_and_several_to_the_queue(client, alice, demo):
    client.force_login(alice)

    one = ask(client, demo, "Q8_0", headers=DIALOG)
    several = ask(client, demo, "Q6_K", "Q5_0")

    assert one["HX-Redirect"] == Job.objects.get(level="Q8_0").get_absolute_url()
    assert several["Location"] == reverse("jobs:list")


@pytest.mark.parametrize(
    ("levels", "reason"),
    [
        ((), "Choose at least one level."),
        (("Q9_X",), "No level is called"),
        (("Q8_0", "Q9_X"), "No level is called"),
    ],
)
def test_an_invalid_form_comes_back_with_the_reason(client, alice, demo, levels, reason):
    client.force_login(alice)

    for headers in ({}, DIALOG):
        response = ask(client, demo, *levels, headers=headers)
        assert response.status_code == 422
        assert reason in text_of(response)
    assert not Job.objects.exists()


@pytest.mark.parametrize(
    ("seen", "written", "sent"),
    [(3, 4, [2, 3, 4]), (3, 3, [2, 3]), (5, 0, [0, 1, 2, 3, 4])],
    ids=["written", "nothing new", "attempt over"],
)
def test_rows_whose_state_changed_are_sent_again(seen, written, sent):
    """Also those that were written by an attempt that is over: their file does not exist."""
    assert views._changed(list(range(9)), seen, written) == sent


def offered(client, revision):
    address = reverse("jobs:request", args=[revision.model.owner, revision.model.name])
    return client.get(address, headers=DIALOG).content.decode()


def test_few_take_levels_that_are_folded_away_under_what_they_are_for(client, alice, demo):
    client.force_login(alice)

    shown, *folded = offered(client, demo).split("<details")

    assert 'value="Q5_K_M"' in shown
    titles = [re.search(r"<summary[^>]*>([^<]+?) *<", group)[1] for group in folded]
    smallest = "Smallest, by an importance matrix"
    assert titles == [smallest, "Older types", "For models trained so", "Full precision"]
    for group, level in zip(folded, ("IQ2_XS", "Q4_0", "TQ2_0", "F16"), strict=True):
        assert f">{level}<" in group
        assert f">{level}<" not in shown
    assert "The same tensors as Q8_0." in folded[2]


def test_what_was_chosen_is_not_folded_away(client, alice, demo):
    client.force_login(alice)

    content = ask(client, demo, "Q4_0", "Q9_X").content.decode()

    assert re.search(r'<details class="group" open>\s*<summary[^>]*>Older types', content)


def test_a_source_that_is_a_quant_offers_what_unpacks_it(client, alice, demo, tmp_path):
    from hub.catalog import actions as catalog

    whole = engine.open_source(lay_out(demo, tmp_path))
    made = engine.quantize(whole, engine.make_plan(whole, "Q8_0"), tmp_path / "small.gguf", lambda _: None)
    quantized = catalog.import_path(made.path, "acme/small").revision
    client.force_login(alice)

    content = offered(client, quantized)

    assert "The source is quantized already" in content
    assert "A copy: the source has these types already." in content
    assert "the usual choice" not in content.split("Not possible with this source")[0]
    assert "Unpacked from Q8_0" in content
