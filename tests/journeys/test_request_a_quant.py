"""The story the hub exists for: find a model, ask for a quant, watch it made and measured, take it home."""

import hashlib
import re
import time

import pytest
from playwright.sync_api import expect

from tests.journeys import browser as chromium
from tests.live import DEMO

pytestmark = [pytest.mark.browser, pytest.mark.live]
MODEL = f"/models/{DEMO}"
STAGES = ["Fetch", "Plan", "Quantize", "Verify", "Measure", "Publish"]
MINUTE = 60_000


def ask_for(page, *levels):
    """Open the dialog on the model's page and ask."""
    page.get_by_role("link", name="Request a quant").click()
    dialog = page.get_by_role("dialog")
    for level in levels:
        dialog.locator(f"input[value='{level}']").check()
    dialog.get_by_role("button", name=re.compile("^Request")).click()


def made(page, live_hub, level):
    """See to it that a level exists, however the tests are ordered."""
    live_hub.wait_request(live_hub.request(level), "done")
    page.goto(MODEL)
    return page.locator(f"#{level}")


def test_a_quant_is_asked_for_watched_measured_and_taken_home(desk, live_hub, pictures):
    desk.goto("/")
    chromium.shoot(desk, pictures, "catalog")
    desk.get_by_role("searchbox").press_sequentially("novels")
    desk.wait_for_url("**/?q=novels")
    expect(desk.get_by_role("status").filter(has_text="1 model for")).to_be_visible()
    desk.get_by_role("link", name=DEMO).click()

    ask_for(desk, "Q4_K_M")
    desk.wait_for_url("**/jobs/*/")
    desk.watch.mark()
    chromium.shoot(desk, pictures, "job-under-way")
    seen = watch_stages(desk)
    chromium.shoot(desk, pictures, "job-done")

    assert desk.watch.untouched, "the page was loaded again"
    assert len(seen) > 1, "the page did not move"
    assert desk.locator(".stepper__step--done .stepper__name").all_inner_texts() == STAGES
    for stage in STAGES:
        expect(desk.get_by_role("log").get_by_text(f"{stage} began.")).to_be_visible()
    assert desk.locator("#job-live[hx-get]").count() == 0
    assert_figures(desk.locator("#Q4_K_M"))
    on_job_page = desk.locator("#Q4_K_M tr").first.inner_text()
    digest = take_home(desk)
    assert digest == desk.locator("#Q4_K_M .hash__value").inner_text()

    desk.goto(MODEL)
    assert desk.locator("#Q4_K_M tr").first.inner_text() == on_job_page
    chromium.shoot(desk, pictures, "model")


def watch_stages(page):
    """Wait for the end; return what the page said on the way, each thing once."""
    seen = [""]
    deadline = time.monotonic() + 120
    while not page.locator(".live--done").count():
        assert time.monotonic() < deadline, page.locator("main").inner_text()
        # One read of the page, as it may be swapped between two.
        now = page.evaluate("document.querySelector('.gauge__what').textContent")
        seen += [now] * (now != seen[-1])
        page.wait_for_timeout(50)
    return seen[1:]


def assert_figures(row):
    """Size, bits per weight, perplexity and its increase with their errors, speeds, machine and engines."""
    text = row.inner_text().replace("\u00a0", " ")
    assert re.search(r"\d\.\d\d MB", text)
    assert re.search(r"\d\d\.\d\d ± \d", text)
    assert re.search(r"[+\u2212]\d\.\d{3} ± \d", text)
    assert "measured on" in text
    row.get_by_text("How this was measured").click()
    for fact in ("Dataset SHA-256", "Context length", "Chunks", "Tokens", "Threads", "CPU", "quanthub"):
        expect(row.get_by_text(fact, exact=True).first).to_be_visible()


def take_home(page):
    """Download the quant; return its SHA-256."""
    with page.expect_download() as download:
        page.locator("#Q4_K_M").get_by_role("link", name="Download").click()
    with download.value.path().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_the_speeds_are_those_of_llama_cpp(desk, live_hub):
    """With the engine installed, prompt and generation speed are measured with their deviation."""
    pytest.importorskip("xllamacpp")
    row = made(desk, live_hub, "Q4_K_M")

    for label in ("Prompt pp512, tok/s", "Generation tg128, tok/s"):
        assert "±" in row.locator(f"[data-label='{label}']").inner_text()
    assert "llama.cpp" in row.inner_text()


def test_everything_can_be_done_with_the_keyboard(desk):
    desk.goto(MODEL)
    desk.keyboard.press("Tab")
    assert desk.evaluate("document.activeElement.className") == "skip"
    desk.get_by_role("link", name="Request a quant").focus()

    desk.keyboard.press("Enter")
    desk.get_by_role("dialog").wait_for()
    desk.keyboard.press("Escape")
    expect(desk.get_by_role("dialog")).to_be_hidden()
    assert desk.evaluate("document.activeElement.textContent.trim()") == "Request a quant"
    desk.keyboard.press("Enter")
    desk.get_by_role("dialog").wait_for()
    while desk.evaluate("document.activeElement.value") != "Q8_0":
        desk.keyboard.press("Tab")
    desk.keyboard.press("Space")
    desk.keyboard.press("Enter")

    desk.wait_for_url("**/jobs/*/")
    expect(desk.locator(".live--done")).to_be_visible(timeout=2 * MINUTE)


def test_a_dialog_says_how_much_is_chosen_and_a_click_beside_it_loses_nothing(desk):
    desk.goto(MODEL)
    desk.get_by_role("link", name="Request a quant").click()
    dialog = desk.get_by_role("dialog")
    button = dialog.locator("#request-submit")
    expect(button).to_have_text("Request")

    dialog.get_by_label("Q6_K").check()
    dialog.get_by_label("Q5_K_S").check()

    expect(button).to_have_text(re.compile(r"^Request 2 quants, 10\.7\sMB$"))
    desk.mouse.click(5, 5)
    expect(dialog).to_be_visible()
    dialog.get_by_label("Q6_K").uncheck()
    dialog.get_by_label("Q5_K_S").uncheck()
    expect(button).to_have_text("Request")
    desk.mouse.click(5, 5)
    expect(dialog).to_be_hidden()


def test_a_link_to_what_is_made_already_leaves_the_dialog(desk, live_hub):
    made(desk, live_hub, "Q4_K_M")
    desk.get_by_role("link", name="Request a quant").click()

    desk.get_by_role("dialog").get_by_role("link", name="Made already").first.click()

    expect(desk.get_by_role("dialog")).to_be_hidden()
    expect(desk.locator("#Q4_K_M")).to_be_in_viewport()


def test_a_dialog_without_a_choice_stays_open_and_says_why(desk, pictures):
    desk.goto(MODEL)
    ask_for(desk)

    expect(desk.get_by_role("alert")).to_have_text(re.compile("Choose at least one level"))
    chromium.shoot(desk, pictures, "dialog-refused")
    # The browser itself reports each answer of 422; that is no fault of the page.
    desk.watch.errors = [error for error in desk.watch.errors if "422" not in error]


def test_a_quant_appears_on_its_models_page_by_itself_and_leaves_open_what_is_open(desk, live_hub):
    made(desk, live_hub, "Q4_K_M")
    live_hub.request("Q5_0")
    desk.goto(MODEL)
    desk.watch.mark()
    row = desk.locator("#Q4_K_M")
    row.get_by_text("How this was measured").click()

    expect(desk.locator("#Q5_0")).to_be_visible(timeout=2 * MINUTE)

    assert desk.watch.untouched
    expect(desk.get_by_role("heading", name="Under way")).to_be_hidden()
    expect(row.get_by_text("Dataset SHA-256").first).to_be_visible()


def test_the_errors_of_tensors_come_when_they_are_opened(desk, live_hub, pictures):
    row = made(desk, live_hub, "Q4_K_M")
    assert row.locator(".errors").count() == 0

    row.get_by_text("Error of each tensor").click()

    expect(row.locator(".errors tbody tr").first).to_be_visible()
    chromium.shoot(desk, pictures, "errors-opened")
    worst = [float(text) for text in row.locator(".errors tbody td:nth-child(4)").all_inner_texts()]
    assert len(worst) > 50
    assert worst == sorted(worst, reverse=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["desk", "phone"])
def test_no_page_is_wider_than_its_window(browser, live_hub, pictures, scheme, size):
    request = live_hub.wait_request(live_hub.request("Q4_K_M"), "done")
    job = request["jobs"][0]["id"]
    errors = f"{MODEL}/quants/{request['quants'][0]['errors_url'].split('/')[-2]}/errors"
    pages = {
        "catalog": "/",
        "nothing-found": "/?q=nosuchmodel",
        "model": MODEL,
        "request": f"/jobs/request/{DEMO}/",
        "job": f"/jobs/{job}/",
        "queue": "/jobs/",
        "tokens": "/accounts/tokens/",
        "password": "/accounts/password/",
        "errors": errors,
    }
    viewport = chromium.PHONE if size == "phone" else chromium.DESK
    with chromium.opened(browser, live_hub.url, viewport=viewport, color_scheme=scheme) as page:
        chromium.sign_in(page, "admin", live_hub.admin_password)
        for name, address in pages.items():
            page.goto(address)
            chromium.shoot(page, pictures, f"{name}-{size}-{scheme}")
            assert chromium.overflow(page) <= 0, name


def test_the_theme_follows_the_system_until_chosen_and_is_remembered(browser, live_hub):
    with chromium.opened(browser, live_hub.url, color_scheme="dark") as page:
        background = "getComputedStyle(document.body).backgroundColor"
        page.goto("/")
        dark = page.evaluate(background)
        page.locator("[data-theme-toggle]").click()
        light = page.evaluate(background)
        page.goto("/jobs/")

        assert light != dark
        assert page.evaluate(background) == light


def test_a_stranger_signs_in_and_comes_back_to_the_dialog(browser, live_hub):
    with chromium.opened(browser, live_hub.url) as page:
        page.goto(MODEL)
        page.get_by_role("link", name="Request a quant").click()
        page.get_by_label("Username").fill("admin")
        page.get_by_label("Password").fill(live_hub.admin_password)
        page.get_by_role("main").get_by_role("button", name="Sign in").click()

        expect(page.get_by_role("heading", name="Request a quant")).to_be_visible()
