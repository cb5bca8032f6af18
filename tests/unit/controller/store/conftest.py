from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from overmesh.controller.store.base import Store
from tests.unit.controller.store.backends import BACKENDS, Backend


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return BACKENDS[request.param](tmp_path)


@pytest.fixture
async def store(backend: Backend) -> AsyncIterator[Store]:
    store = backend.open()
    yield store
    await store.close()
