"""Fixtures that any test may ask for."""

import pytest

from tests.live import new_hub


@pytest.fixture(scope="session")
def live_hub(tmp_path_factory):
    """A running hub: `.url`, `.data`, `.admin_password` (of the user admin), and what tests.live adds."""
    hub = new_hub(tmp_path_factory.mktemp("live"))
    hub.start()
    yield hub
    hub.stop()
