"""One process that has imported torch, for all scripts that need none of their own."""

import os

import pytest

if not hasattr(os, "fork"):
    collect_ignore_glob = ["test_*.py"]

from launching import Server


@pytest.fixture(scope="session")
def server():
    server = Server()
    yield server
    server.close()
