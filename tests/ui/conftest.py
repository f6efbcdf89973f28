"""Shared by the tests of the page and its endpoints."""

import pytest
from gradio_client import Client


@pytest.fixture(scope="module")
def client(app_url):
    """A client of the app that all test processes share."""
    return Client(app_url, verbose=False)
