"""Sessions of `rlaif`, for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.faults.sessions import Sessions


@pytest.fixture(scope="session")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sessions]:
    with Sessions(tmp_path_factory.mktemp("sessions")) as running:
        yield running
