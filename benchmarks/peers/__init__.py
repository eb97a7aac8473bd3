"""Peers: the same model served as people serve it.

python -m benchmarks.peers.PEER ARCHITECTURE WEIGHTS PORT
"""

import torch


def model(architecture: str, weights: str) -> torch.nn.Module:
    """A model of torchvision, or the ImageNet demo's, with the weights of a file."""
    if architecture == "efficientnet-lite0":
        from efficientnet_lite_pytorch import EfficientNet

        made: torch.nn.Module = EfficientNet.from_name(architecture)
    else:
        from torchvision import models

        made = getattr(models, architecture)()
    made.load_state_dict(torch.load(weights))
    return made.eval()
