"""Fixtures that any test may ask for."""

import pytest

from tests.live import new_hub


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Keep what uses the live hub in one process of a parallel run: there is one such hub."""
    for item in items:
        if "live_hub" in getattr(item, "fixturenames", ()) or item.get_closest_marker("live"):
            item.add_marker(pytest.mark.xdist_group("live"))


@pytest.fixture(scope="session")
def live_hub(tmp_path_factory):
    """A running hub: `.url`, `.data`, `.admin_password` (of the user admin), and what tests.live adds."""
    hub = new_hub(tmp_path_factory.mktemp("live"))
    hub.start()
    yield hub
    hub.stop()
