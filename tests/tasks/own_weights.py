"""Detectors and segmentation models with weights of their own: in a folder with a card, and served."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
import yaml
from torch import nn

from pthserve.loading.load import load
from pthserve.settings import Settings

from ..http_service import Service, serving

SETTINGS = Settings(threads=1, tune_budget=0.0)
LABELS = ["cat", "dog", "hen", "owl"]


def written(folder: Path, module: nn.Module, **card: Any) -> Path:
    """`folder`, which is created, with the weights of `module` and a card with these fields."""
    folder.mkdir()
    torch.save(module.state_dict(), folder / "net.pth")
    write_card(folder, **card)
    return folder


def write_card(folder: Path, **fields: Any) -> None:
    """Give the model in `folder` a card with these fields."""
    (folder / "model.yaml").write_text(yaml.safe_dump(fields))


@contextmanager
def served(folder: Path, **settings: Any) -> Iterator[Service]:
    """A service of the model in `folder`."""
    with (
        load(str(folder), SETTINGS) as model,
        serving(model, model=str(folder), deadline=120, **settings) as service,
    ):
        yield service


def predicted(service: Service, image: bytes, **query: Any) -> dict[str, Any]:
    """What /predict answers to the image."""
    reply = httpx.post(f"{service.url}/predict", files={"image": image}, params=query, timeout=60)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())
