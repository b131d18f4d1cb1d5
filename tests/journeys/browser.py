"""A real Chromium for journeys: found on the machine, closed to the outside, watched while it runs."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 860}


def find():
    """Return the path of a browser, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Watch:
    """Notes what must not happen on any page: errors in the console, requests to another host, a reload."""

    def __init__(self, page, url):
        self.page = page
        self.host = urlsplit(url).netloc
        self.errors = []
        self.strangers = []
        page.on(
            "console", lambda message: self.errors.append(message.text) if message.type == "error" else None
        )
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._note)

    def _note(self, request):
        if urlsplit(request.url).netloc not in {self.host, ""}:
            self.strangers.append(request.url)

    def mark(self):
        """Leave a mark in the window that only a reload can wipe out."""
        self.page.evaluate("window.untouched = true")

    @property
    def untouched(self):
        return self.page.evaluate("window.untouched === true")

    def assert_clean(self):
        assert self.errors == []
        assert self.strangers == []


@contextmanager
def opened(browser, url, **options):
    """Open a page in a context of its own, and see at the end that nothing went wrong unnoticed."""
    context = browser.new_context(base_url=url, **{"viewport": DESK, **options})
    context.set_default_timeout(15_000)
    page = context.new_page()
    page.watch = Watch(page, url)
    try:
        yield page
        page.watch.assert_clean()
    finally:
        context.close()


def sign_in(page, name, password):
    page.goto("/accounts/sign-in/")
    page.get_by_label("Username").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("main").get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name=name).wait_for()


def overflow(page):
    """Return by how many pixels the page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def shoot(page, folder, name):
    """Keep a picture for people to look at."""
    where = Path(os.environ.get("QUANTHUB_SCREENSHOTS") or folder)
    where.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=where / f"{name}.png", full_page=True)
