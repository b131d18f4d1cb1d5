"""What journeys through a browser share."""

import pytest

from tests.journeys import browser as chromium


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, or a skip with one line where there is none.

    It is closed after each file: while it is open an event loop runs in this process, and Django refuses the
    database to whatever tests run here next.
    """
    path = chromium.find()
    if path is None:
        pytest.skip("no Chromium here; install the package chromium to run the browser tests")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=chromium.OPTIONS)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    return tmp_path_factory.mktemp("screenshots")


@pytest.fixture
def desk(browser, live_hub):
    """A window on a desk, signed in as the admin."""
    with chromium.opened(browser, live_hub.url) as page:
        chromium.sign_in(page, "admin", live_hub.admin_password)
        yield page
