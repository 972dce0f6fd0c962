"""A model that the tests of this folder share."""

import pytest

from clip3dreid.inference.model import ReidModel
from tests.export.models import made


@pytest.fixture(scope="session")
def model() -> ReidModel:
    """Shared, so never to be changed."""
    return made()
