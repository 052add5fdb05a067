"""Fixtures that several tests of plugins share."""

import pytest

from ..helpers.fake_endpoint import FakeServer


@pytest.fixture
def fake():
    server = FakeServer()
    yield server
    server.server.shutdown()
    server.server.server_close()
