"""A real object store for the tests: one SeaweedFS a session, one prefix a test."""

import os
import re
from collections.abc import Iterator

import pytest

from reasongenrm.seaweed import EmbeddedStore, embedded_store
from reasongenrm.store import Store


@pytest.fixture(scope="session")
def store_env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    """A running server; os.environ leads boto3, here and in child processes, to it."""
    before = dict(os.environ)
    with embedded_store(tmp_path_factory.mktemp("store")) as server:
        os.environ.update(server.env)
        yield server
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def store(store_env: EmbeddedStore, request: pytest.FixtureRequest) -> Store:
    """An empty store of the test's own."""
    name = re.sub(r"[^a-zA-Z0-9]+", "-", request.node.nodeid).strip("-")[-150:]
    return Store(f"{store_env.uri}/{name}")
