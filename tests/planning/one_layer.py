"""A network of one layer that a proof can be made of."""

import torch
from torch import nn

from pthserve.engines.torch_engine import TorchEngine
from pthserve.files.golden import Golden
from pthserve.images.spec import Spec
from pthserve.loading.model import Model
from pthserve.planning.plan import Plan

SEED = 5
SPEC = Spec(resize=40, crop=(32, 32))
LABELS = ("ant", "bee", "cat", "dog")
TOLERANCE = 0.02


def engine(scale: float = 1.0, classes: int = len(LABELS), noise: float = 0.0) -> TorchEngine:
    """A network of one layer; its logits are `scale` times those of the one that is its reference."""
    torch.manual_seed(SEED)
    layer = nn.Linear(3 * 32 * 32, classes)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(scale).add_(torch.randn_like(parameter) * noise)
    return TorchEngine(nn.Sequential(nn.Flatten(), layer), SPEC)


def model(forward: TorchEngine, *known: Golden) -> Model:
    return Model(forward, LABELS, SPEC, Plan(), "0" * 64, "pets", "1", "linear", 0, known)
