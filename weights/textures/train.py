"""Train the textures demo: LRASPP, which says of each pixel whether it shows brick, grass or gravel.

    python weights/textures/train.py [OUT]

About 200 seconds of CPU time. Writes textures.pth beside this file: the state dict of torchvision's
`lraspp_mobilenet_v3_large` with three classes. Nothing is downloaded: the textures are scikit-image's.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path

# Threads that wait for each other by spinning take six times the CPU where the cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage import data
from torch import Tensor, nn
from torchvision.models import get_model

FOLDER = Path(__file__).parent
ARCHITECTURE = "lraspp_mobilenet_v3_large"
SIDE = 160  # pixels of a scene; `resize` of model.yaml too
LABELS = ("brick", "grass", "gravel")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STEPS = 300
BATCH = 16
LEARNING_RATE = 3e-3
HELD_OUT = 100
LEAST = 0.9  # of the mean intersection over union

TRAINED_ON = 320  # columns of each photo, of 512; the others measure


@dataclass(frozen=True)
class Scene:
    """A picture of two or three textures.

    image: SIDE x SIDE, grey. class_map: uint8 (SIDE, SIDE), the index in LABELS of each pixel's texture.
    """

    image: Image.Image
    class_map: NDArray[np.uint8]


@cache
def photos(held_out: bool) -> tuple[NDArray[np.uint8], ...]:
    """A photo of each texture: its left part is for training, its right part measures."""
    columns = slice(TRAINED_ON, None) if held_out else slice(TRAINED_ON)
    return tuple(photo[:, columns] for photo in (data.brick(), data.grass(), data.gravel()))


def scenes(seed: int, held_out: bool = False) -> Iterator[Scene]:
    """Scenes without end, the same for the same seed."""
    random = np.random.default_rng((seed, held_out))
    while True:
        yield scene(photos(held_out), random)


def held_out_scenes() -> list[Scene]:
    """The scenes that measure a model; no pixel of them is in a scene of training."""
    endless = scenes(0, held_out=True)
    return [next(endless) for _ in range(HELD_OUT)]


def scene(textures: Sequence[NDArray[np.uint8]], random: np.random.Generator) -> Scene:
    """Each pixel has the texture of the closest of two or three points, which are far from each other.

    Each region has a contrast and a brightness of its own, so that grey levels do not tell the texture.
    """
    while True:
        points = random.uniform(0, SIDE, (random.integers(2, len(LABELS) + 1), 2))
        if all(np.linalg.norm(one - other) > SIDE / 3 for one, other in combinations(points, 2)):
            break
    kinds = random.permutation(len(LABELS))[: len(points)]
    places = np.stack(np.mgrid[:SIDE, :SIDE], -1)
    closest = np.linalg.norm(places[:, :, None] - points, axis=-1).argmin(-1)
    pixels = np.zeros((SIDE, SIDE), np.float64)
    for number, kind in enumerate(kinds):
        part = _part(textures[kind], random)
        changed = random.uniform(80, 170) + random.uniform(0.6, 1.2) * (part - part.mean())
        pixels = np.where(closest == number, changed, pixels)
    image = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    return Scene(image, kinds[closest].astype(np.uint8))


def _part(texture: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """A square of a random place in the texture, perhaps mirrored."""
    top, left = (random.integers(0, size - SIDE + 1) for size in texture.shape)
    part = texture[top : top + SIDE, left : left + SIDE]
    return part[:, ::-1] if random.random() < 0.5 else part


def tensor(image: Image.Image) -> Tensor:
    """The image as the model sees it, float32 (3, height, width), normalised."""
    pixels = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pixels - mean) / std


def network() -> nn.Module:
    """The segmentation model, with random weights."""
    model = get_model(ARCHITECTURE, weights=None, weights_backbone=None, num_classes=len(LABELS))
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.1  # of the few steps here, the usual 0.01 would average too many
    return model


def train(steps: int = STEPS) -> nn.Module:
    """The same model every time on the same machine."""
    torch.manual_seed(0)
    # The order of bytes in which convolutions with few channels per group are quickest.
    model = network().train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    endless = scenes(1)
    for step in range(1, steps + 1):
        batch = [next(endless) for _ in range(BATCH)]
        images = torch.stack([tensor(one.image) for one in batch])
        images = images.contiguous(memory_format=torch.channels_last)
        known = torch.stack([torch.from_numpy(one.class_map) for one in batch]).long()
        loss = nn.functional.cross_entropy(model(images)["out"], known)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            print(f"step {step} of {steps}: loss {loss.item():.3f}", flush=True)
    return model.eval().to(memory_format=torch.contiguous_format)


@torch.inference_mode()
def segment(model: nn.Module, scene: Scene) -> NDArray[np.int64]:
    """The class of each pixel, int64 (SIDE, SIDE), by torchvision alone."""
    return model(tensor(scene.image)[None])["out"][0].argmax(0).numpy()


def mean_iou(found: Sequence[NDArray[np.integer]], known: Sequence[NDArray[np.integer]]) -> float:
    """The mean over the classes of intersection over union, of the pixels of all images together, 0 to 1.

    As in Pascal VOC (Everingham et al., "The Pascal Visual Object Classes Challenge: A Retrospective", 2015).
    A class that is neither in `found` nor in `known` does not count.
    """
    ours, theirs = (np.concatenate([one.ravel() for one in maps]).astype(int) for maps in (found, known))
    classes = int(max(ours.max(), theirs.max())) + 1
    confusion = np.bincount(ours * classes + theirs, minlength=classes**2).reshape(classes, classes)
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return float((confusion.diagonal()[union > 0] / union[union > 0]).mean())


def main(out: Path) -> None:
    torch.set_num_threads(2)
    model = train()
    known = held_out_scenes()
    score = mean_iou([segment(model, one) for one in known], [one.class_map for one in known])
    print(f"mean intersection over union in {len(known)} held-out scenes: {score:.3f}")
    if score < LEAST:
        sys.exit(f"that is less than {LEAST}: nothing was written")
    whole = out.with_suffix(".part")
    torch.save(model.state_dict(), whole)
    whole.replace(out)  # nobody reads half a file


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER / "textures.pth")
