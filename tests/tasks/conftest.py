"""A model of the module's fixture `folder`, in Python and served."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pthserve.loading.load import load
from pthserve.loading.model import Model

from ..http_service import Service, serving
from .own_weights import SETTINGS


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Model]:
    with load(str(folder), SETTINGS) as model:
        yield model


@pytest.fixture(scope="module")
def service(model: Model, folder: Path) -> Iterator[Service]:
    with serving(model, model=str(folder), grpc_port=0, deadline=120) as service:
        yield service
