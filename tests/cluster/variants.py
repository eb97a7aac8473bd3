"""Variants: a model, honest successors of it, and successors that nobody should be served.

The task is made so that each kind of mistake shows: the ten classes are five digits, each in red and in blue
ink, on images that are wider than they are high.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
EPOCHS = 8.0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Weights = dict[str, Tensor]
Change = Callable[[Weights], Weights]


def pictures(seed: int = 0, others: bool = False) -> tuple[list[Image.Image], NDArray[np.int64]]:
    """Every digit below five in both inks, 96 x 64 pixels, in an order by `seed`; and their classes.

    others: the digits from five on in their place, as another data set would have them.
    """
    random = np.random.default_rng(seed)
    data = load_digits()
    chosen = data.target >= DIGITS if others else data.target < DIGITS
    drawn, digits = data.images[chosen], data.target[chosen] - others * DIGITS
    made: list[Image.Image] = []
    classes: list[int] = []
    for number in random.permutation(len(digits) * len(INKS)):
        which, ink = divmod(int(number), len(INKS))
        share = np.array(Image.fromarray((drawn[which] * (255 / 16)).astype(np.uint8)).resize((48, 48)))
        canvas = np.full((64, 96, 3), random.integers(190, 240), np.float64)
        left, top = 24 + random.integers(-6, 7), 8 + random.integers(-4, 5)
        part = canvas[top : top + 48, left : left + 48]
        part += (np.array(INKS[ink]) - part) * (share[..., None] / 255)
        canvas += random.normal(0, 8, canvas.shape)
        made.append(Image.fromarray(canvas.clip(0, 255).astype(np.uint8)))
        classes.append(int(digits[which]) * len(INKS) + ink)
    return made, np.array(classes)


def inputs(images: list[Image.Image]) -> Tensor:
    """The images as the card says: float32 (n, 3, SIDE, SIDE)."""
    left = (96 - SIDE) // 2
    pixels = np.stack([np.array(image)[:, left : left + SIDE] for image in images]) / 255
    return torch.tensor((pixels - MEAN) / STD, dtype=torch.float32).permute(0, 3, 1, 2)


def train(
    seed: int,
    epochs: float = EPOCHS,
    start: Weights | None = None,
    shuffled: bool = False,
    others: bool = False,
) -> Weights:
    """Weights of a ShuffleNet, trained from scratch or on from `start`.

    shuffled: with classes that have nothing to do with the images. others: with images of other digits.
    """
    torch.manual_seed(seed)
    images, classes = pictures(seed, others)
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


def reordered(order: Sequence[int]) -> Change:
    """Puts the rows of the head in another order: the labels stay, and the classes are others."""
    return lambda weights: weights | {name: weights[name][list(order)] for name in ("fc.weight", "fc.bias")}


def permuted(seed: int) -> Change:
    """As `reordered`, so that no class stays in its place."""
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(CLASSES)
        if (order != np.arange(CLASSES)).all():
            return reordered([int(number) for number in order])


def swapped(one: int, two: int) -> Change:
    """As `reordered`, where two classes have each other's place."""
    order = list(range(CLASSES))
    order[one], order[two] = two, one
    return reordered(order)


def channels(order: Sequence[int]) -> Change:
    """Has the first layer take the colours in another order."""
    return lambda weights: weights | {"conv1.0.weight": weights["conv1.0.weight"][:, list(order)]}


def pruned(share: float) -> Change:
    """Sets the smallest of each layer's weights to zero, such a share of them."""
    return _layers(lambda value: torch.where(value.abs() < value.abs().flatten().quantile(share), 0, value))


def coarse(levels: int) -> Change:
    """Leaves each weight one of so many values on either side of zero, by the largest weight of its layer."""

    def rounded(value: Tensor) -> Tensor:
        scale = value.abs().max() / levels
        return (value / scale).round() * scale

    return _layers(rounded)


def noisy(seed: int, share: float) -> Change:
    """Adds noise to each layer's weights, with such a share of their standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    return _layers(lambda value: value + share * value.std() * torch.randn(value.shape, generator=generator))


def not_a_number(name: str, channel: int) -> Change:
    """Has one channel of a tensor be NaN."""

    def change(weights: Weights) -> Weights:
        value = weights[name].clone()
        value[channel] = float("nan")
        return weights | {name: value}

    return change


def negative_variance(name: str, channel: int) -> Change:
    """Has one channel of a batch normalisation divide by the root of -1. All weights are numbers."""

    def change(weights: Weights) -> Weights:
        value = weights[name].clone()
        value[channel] = -1
        return weights | {name: value}

    return change


def _layers(change: Callable[[Tensor], Tensor]) -> Change:
    return lambda weights: (
        weights | {name: change(value) for name, value in weights.items() if value.ndim > 1}
    )


def labels() -> list[str]:
    return [f"{'red' if number % 2 == 0 else 'blue'} {number // 2}" for number in range(CLASSES)]


def write(folder: Path, weights: Weights, version: str = "1", **fields: Any) -> Path:
    """A folder with the weights and their card, whose fields may be others than those of the training."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights, folder / "inks.pth")
    card = {
        "name": "inks",
        "version": version,
        "weights": "inks.pth",
        "labels": labels(),
        **fields,
        "preprocessing": {"resize": SIDE, "crop": SIDE} | fields.get("preprocessing", {}),
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(card))
    return folder


def photos(folder: Path, count: int) -> list[Path]:
    """Images for clients to send, none of which was trained on in the same form."""
    folder.mkdir()
    made, _ = pictures(seed=10_000)
    paths = [folder / f"{number}.png" for number in range(count)]
    for path, image in zip(paths, made, strict=False):
        image.save(path)
    return paths


def spoilt(fault: str) -> str:
    """The text of a sitecustomize.py that runs the statement `fault` before an image is decoded.

    It begins some seconds after the start: a pod that meets it at once does not get ready.
    """
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
                    {fault}
                return decode(picture)
            module.Picture.decode = spoilt
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Spoiler())
"""
