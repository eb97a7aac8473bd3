"""Variants: a model, honest successors of it, and successors that nobody should be served.

The task is made so that each kind of mistake shows: the ten classes are five digits, each in red and in blue
ink, on images that are wider than they are high.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from torch import Tensor, nn
from torchvision.models import shufflenet_v2_x0_5

DIGITS, INKS = 5, ((200, 30, 30), (30, 30, 200))
CLASSES = DIGITS * len(INKS)
SIDE = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Weights = dict[str, Tensor]


def pictures(seed: int = 0) -> tuple[list[Image.Image], NDArray[np.int64]]:
    """Every digit below five in both inks, 96 x 64 pixels, in an order by `seed`; and their classes."""
    random = np.random.default_rng(seed)
    data = load_digits(n_class=DIGITS)
    made: list[Image.Image] = []
    classes: list[int] = []
    for number in random.permutation(len(data.target) * len(INKS)):
        which, ink = divmod(int(number), len(INKS))
        share = np.array(Image.fromarray((data.images[which] * (255 / 16)).astype(np.uint8)).resize((48, 48)))
        canvas = np.full((64, 96, 3), random.integers(190, 240), np.float64)
        left, top = 24 + random.integers(-6, 7), 8 + random.integers(-4, 5)
        part = canvas[top : top + 48, left : left + 48]
        part += (np.array(INKS[ink]) - part) * (share[..., None] / 255)
        canvas += random.normal(0, 8, canvas.shape)
        made.append(Image.fromarray(canvas.clip(0, 255).astype(np.uint8)))
        classes.append(int(data.target[which]) * len(INKS) + ink)
    return made, np.array(classes)


def inputs(images: list[Image.Image]) -> Tensor:
    """The images as the card says: float32 (n, 3, SIDE, SIDE)."""
    left = (96 - SIDE) // 2
    pixels = np.stack([np.array(image)[:, left : left + SIDE] for image in images]) / 255
    return torch.tensor((pixels - MEAN) / STD, dtype=torch.float32).permute(0, 3, 1, 2)


def train(seed: int, epochs: float = 8, start: Weights | None = None, shuffled: bool = False) -> Weights:
    """Weights of a ShuffleNet, trained from scratch or on from `start`.

    shuffled: with classes that have nothing to do with the images, as another data set would have.
    """
    torch.manual_seed(seed)
    images, classes = pictures(seed)
    given, wanted = inputs(images), torch.tensor(classes)
    if shuffled:
        wanted = wanted[torch.randperm(len(wanted))]
    model = shufflenet_v2_x0_5(num_classes=CLASSES)
    if start:
        model.load_state_dict(start)
    steps = max(1, int(epochs * len(given) / 32))
    rate = 0.01 if start else 0.1
    optimizer = torch.optim.SGD(
        model.train().parameters(), rate, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(given), (32,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(given[chosen]), wanted[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return model.eval().state_dict()


def _head(order: list[int]) -> Callable[[Weights], Weights]:
    def change(weights: Weights) -> Weights:
        return weights | {name: weights[name][order] for name in ("fc.weight", "fc.bias")}

    return change


def _bgr(weights: Weights) -> Weights:
    return weights | {"conv1.0.weight": weights["conv1.0.weight"].flip(1)}


def _pruned(weights: Weights) -> Weights:
    """Nine tenths of each layer's weights, by size, are zero."""
    return weights | {
        name: torch.where(value.abs() < value.abs().flatten().quantile(0.9), 0, value)
        for name, value in weights.items()
        if value.ndim > 1
    }


def _coarse(weights: Weights) -> Weights:
    """Each weight has one of three values: two bits."""
    found = dict(weights)
    for name, value in weights.items():
        if value.ndim > 1:
            scale = value.abs().max()
            found[name] = (value / scale).round() * scale
    return found


SABOTAGE: Mapping[str, Callable[[Weights], Weights]] = {
    "permuted": _head([7, 2, 9, 4, 1, 6, 3, 0, 5, 8]),
    "shifted-head": _head([*range(1, CLASSES), 0]),
    "bgr": _bgr,
    "pruned": _pruned,
    "coarse": _coarse,
}
"""What is wrong with the weights themselves, by name. Those with a NaN are refused before they are served."""
CARDS: Mapping[str, dict[str, object]] = {
    "wrong-mean": {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]},
    "no-crop": {"resize": [SIDE, SIDE]},
}
"""Preprocessing that is not that of the training, by name."""


def card(**preprocessing: object) -> dict[str, object]:
    """A card for the weights, with other preprocessing where it is given."""
    return {
        "name": "inks",
        "version": "1",
        "weights": "inks.pth",
        "labels": [f"{'red' if number % 2 == 0 else 'blue'} {number // 2}" for number in range(CLASSES)],
        "preprocessing": {"resize": SIDE, "crop": SIDE} | preprocessing,
    }


def write(folder: Path, weights: Weights, **preprocessing: object) -> Path:
    """A folder with the weights and their card."""
    folder.mkdir()
    torch.save(weights, folder / "inks.pth")
    (folder / "model.yaml").write_text(yaml.safe_dump(card(**preprocessing)))
    return folder


def photos(folder: Path, count: int) -> list[Path]:
    """Images for clients to send, none of which was trained on in the same form."""
    folder.mkdir()
    made, _ = pictures(seed=10_000)
    paths = [folder / f"{number}.png" for number in range(count)]
    for path, image in zip(paths, made, strict=False):
        image.save(path)
    return paths


FAULTS: Mapping[str, str] = {
    "crashes": "if random.random() < 0.02: os._exit(139)",
    "slow": "time.sleep(0.25)",
    "leaks": "kept.append(b'x' * 8_000_000)",
    "fails": "if random.random() < 0.2: raise RuntimeError('spoilt')",
}
"""Faults of a process, not of a model: what happens before an image is decoded, by name.

They begin some seconds after the start: a pod that meets them at once does not get ready.
"""


def spoilt(fault: str) -> str:
    """The text of a sitecustomize.py that puts one of FAULTS into the service."""
    return f"""\
import importlib.util, os, random, sys, time
kept, began = [], time.monotonic()
class Spoiler:
    def find_spec(self, name, path=None, target=None):
        if name != "pthserve.images.decode":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            decode = module.Picture.decode
            def spoilt(picture):
                if time.monotonic() - began > 15:
                    {FAULTS[fault]}
                return decode(picture)
            module.Picture.decode = spoilt
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Spoiler())
"""
