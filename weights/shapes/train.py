"""Train the shapes demo: a Faster R-CNN that finds circles, squares, triangles and stars drawn on photos.

    python weights/shapes/train.py [OUT]

Writes shapes.pth beside this file: the state dict of torchvision's `fasterrcnn_mobilenet_v3_large_320_fpn`
with five classes. Nothing is downloaded: the photos are scikit-image's and scikit-learn's, the shapes are
drawn here.
"""

import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Threads that wait for each other by spinning take six times the CPU where the cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage import data
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torchvision.models import get_model

FOLDER = Path(__file__).parent
ARCHITECTURE = "fasterrcnn_mobilenet_v3_large_320_fpn"
SIDE = 160  # pixels of a scene; `min_size` of model.yaml too
LABELS = ("circle", "square", "triangle", "star")
STEPS = 800
BATCH = 16
LEARNING_RATE = 1e-3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as torchvision's detectors normalise
HELD_OUT = 200
LEAST = 0.9  # of the mean average precision at an intersection over union of 0.5

# Before the detector, its backbone is trained alone, to classify small pictures of one shape: a step costs a
# third, and without this the detector would need many more steps.
SMALL_SIDE = 64
SMALL_STEPS = 250
SMALL_BATCH = 64
SMALL_LEARNING_RATE = 3e-3

SMALLEST, LARGEST = 44, 84  # pixels across the circle around a shape
MOST = 3  # shapes in a scene
APART = 90  # least distance of a shape's colour from the mean of what is behind it, of 442
SMOOTHING = 4  # a shape is drawn so many times as large, which smooths its edge


@dataclass(frozen=True)
class Scene:
    """A picture with shapes on it.

    image: RGB, as wide as high. boxes: float32 (n, 4), left, top, right and bottom of each shape, in pixels.
    classes: int64 (n,), of 1 to 4: class 0 is the background.
    """

    image: Image.Image
    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]


@cache
def photos(held_out: bool) -> tuple[Image.Image, ...]:
    """What shapes are drawn on. A photo is for training or for measuring, and never for both."""
    if held_out:
        pixels = [data.chelsea(), data.coffee(), data.camera(), data.rocket()]
    else:
        pixels = [
            data.astronaut(),
            data.hubble_deep_field(),
            data.immunohistochemistry(),
            data.brick(),
            data.coins(),
            data.grass(),
            data.gravel(),
            data.moon(),
            *load_sample_images().images,
        ]
    return tuple(Image.fromarray(one).convert("RGB") for one in pixels)


def scenes(seed: int, held_out: bool = False) -> Iterator[Scene]:
    """Scenes without end, the same for the same seed."""
    random = np.random.default_rng((seed, held_out))
    while True:
        yield scene(_photo(held_out, random), random)


def small_scenes(seed: int) -> Iterator[Scene]:
    """Scenes of SMALL_SIDE pixels with one shape each, without end."""
    random = np.random.default_rng((seed, 2))
    while True:
        yield scene(_photo(False, random), random, SMALL_SIDE, 1, (SMALL_SIDE / 2, SMALL_SIDE))


def held_out_scenes() -> list[Scene]:
    """The scenes that measure a model; their photos are not those of training."""
    endless = scenes(0, held_out=True)
    return [next(endless) for _ in range(HELD_OUT)]


def _photo(held_out: bool, random: np.random.Generator) -> Image.Image:
    return photos(held_out)[random.integers(len(photos(held_out)))]


def scene(
    photo: Image.Image,
    random: np.random.Generator,
    side: int = SIDE,
    most: int = MOST,
    diameters: tuple[float, float] = (SMALLEST, LARGEST),
) -> Scene:
    """A part of the photo with one to `most` shapes on it, whose circles do not overlap."""
    image = _part(photo, side, random)
    boxes, classes, circles = [], [], []
    for _ in range(random.integers(1, most + 1)):
        radius = random.uniform(*diameters) / 2
        x, y = random.uniform(radius, side - radius, 2)
        if any(math.hypot(x - left, y - top) < radius + other for left, top, other in circles):
            continue
        kind = int(random.integers(len(LABELS)))
        shape = _shape(LABELS[kind], side, x, y, radius, random.uniform(0, 2 * math.pi))
        image.paste(_colour(image, shape, random), mask=shape)
        circles.append((x, y, radius))
        boxes.append(shape.point(lambda covered: 255 * (covered >= 128)).getbbox())
        classes.append(1 + kind)
    return Scene(image, np.array(boxes, np.float32), np.array(classes, np.int64))


def _part(photo: Image.Image, side: int, random: np.random.Generator) -> Image.Image:
    """A square of a random size and place in the photo, perhaps mirrored, resized to `side` pixels."""
    whole = random.uniform(side, min(photo.size))
    left, top = (random.uniform(0, size - whole) for size in photo.size)
    box = (left, top, left + whole, top + whole)
    part = photo.resize((side, side), Image.Resampling.BILINEAR, box, reducing_gap=2)
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else part


def _shape(label: str, side: int, x: float, y: float, radius: float, angle: float) -> Image.Image:
    """How much of each pixel the shape covers, 0 to 255; its corners are on the circle around (x, y)."""
    large = Image.new("L", (side * SMOOTHING, side * SMOOTHING))
    pen = ImageDraw.Draw(large)
    if label == "circle":
        box = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse([SMOOTHING * side for side in box], fill=255)
    else:
        corners = {"square": 4, "triangle": 3, "star": 10}[label]
        turns = [angle + 2 * math.pi * corner / corners for corner in range(corners)]
        # Every second corner of a star is inside: at 0.382 of the radius its edges are those of a pentagram.
        reach = [radius * (0.382 if label == "star" and corner % 2 else 1) for corner in range(corners)]
        pen.polygon(
            [
                (SMOOTHING * (x + far * math.cos(turn)), SMOOTHING * (y + far * math.sin(turn)))
                for turn, far in zip(turns, reach, strict=True)
            ],
            fill=255,
        )
    return large.reduce(SMOOTHING)


def _colour(image: Image.Image, shape: Image.Image, random: np.random.Generator) -> tuple[int, ...]:
    """A colour that can be seen in front of what the shape covers."""
    covered = np.asarray(image)[np.asarray(shape) >= 128].mean(0)
    while True:
        colour = random.integers(0, 256, 3)
        if np.linalg.norm(colour - covered) >= APART:
            return tuple(colour.tolist())


def tensor(image: Image.Image) -> Tensor:
    """The image as torchvision's detectors read it, float32 (3, height, width), 0 to 1."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def network() -> nn.Module:
    """The detector, with random weights."""
    return get_model(
        ARCHITECTURE,
        weights=None,
        weights_backbone=None,
        num_classes=1 + len(LABELS),
        min_size=SIDE,
        max_size=2 * SIDE,
        # Only training reads these. A scene has few shapes, so few regions say all that there is to learn.
        rpn_pre_nms_top_n_train=200,
        rpn_post_nms_top_n_train=100,
        box_batch_size_per_image=16,
    )


def teach(backbone: nn.Module, steps: int) -> None:
    """Have the backbone tell shapes from each other."""
    head = nn.Linear(960, len(LABELS))  # of the channels of the backbone's last features
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, SMALL_LEARNING_RATE, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, SMALL_LEARNING_RATE, total_steps=steps)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    endless = small_scenes(1)
    for step in range(1, steps + 1):
        batch = [next(endless) for _ in range(SMALL_BATCH)]
        images = torch.stack([(tensor(one.image) - mean) / std for one in batch])
        images = images.contiguous(memory_format=torch.channels_last)
        classes = torch.tensor([int(one.classes[0]) - 1 for one in batch])
        *_, features = backbone(images).values()
        outputs = head(features.mean((2, 3)))
        loss = nn.functional.cross_entropy(outputs, classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            share = (outputs.argmax(1) == classes).float().mean().item()
            print(f"small step {step} of {steps}: loss {loss.item():.3f}, {share:.0%} are right", flush=True)


def train(steps: int = STEPS) -> nn.Module:
    """The same model every time on the same machine."""
    torch.manual_seed(0)
    # The order of bytes in which convolutions with few channels per group are quickest.
    model = network().train().to(memory_format=torch.channels_last)
    teach(model.backbone.body, SMALL_STEPS)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    endless = scenes(1)
    for step in range(1, steps + 1):
        batch = [next(endless) for _ in range(BATCH)]
        targets = [
            {"boxes": torch.from_numpy(one.boxes), "labels": torch.from_numpy(one.classes)} for one in batch
        ]
        losses = model([tensor(one.image) for one in batch], targets)
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            print(f"step {step} of {steps}: loss {loss.item():.3f}", flush=True)
    return model.eval().to(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Found:
    """What a model found in a scene: boxes float32 (n, 4), classes int64 (n,), scores float32 (n,)."""

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    scores: NDArray[np.float32]


@torch.inference_mode()
def detect(model: nn.Module, scene: Scene) -> Found:
    """What the model finds, by torchvision alone."""
    (found,) = model([tensor(scene.image)])
    return Found(found["boxes"].numpy(), found["labels"].numpy(), found["scores"].numpy())


def mean_average_precision(found: Sequence[Found], known: Sequence[Scene], iou: float = 0.5) -> float:
    """The mean over the classes of the area under the curve of precision and recall, 0 to 1.

    As in Pascal VOC from 2010 on (Everingham et al., "The Pascal Visual Object Classes Challenge: A
    Retrospective", 2015): of all detections of a class, the surest first, one is right if its intersection
    over union with the shape that it overlaps most is at least `iou`, and no surer one has that shape; the
    precision at a recall is the largest at that recall or a higher one. A class that no scene has does not
    count.
    """
    present = sorted({int(index) for scene in known for index in scene.classes})
    return float(np.mean([_average_precision(found, known, index, iou) for index in present]))


def _average_precision(found: Sequence[Found], known: Sequence[Scene], index: int, iou: float) -> float:
    shapes = [scene.boxes[scene.classes == index] for scene in known]
    claims = [
        (float(score), number, box)
        for number, one in enumerate(found)
        for box, score in zip(one.boxes[one.classes == index], one.scores[one.classes == index], strict=True)
    ]
    taken: set[tuple[int, int]] = set()
    right = []
    for _, number, box in sorted(claims, key=lambda claim: -claim[0]):
        overlaps = _overlaps(box, shapes[number])
        best = (number, int(overlaps.argmax())) if len(overlaps) and overlaps.max() >= iou else None
        right.append(best is not None and best not in taken)
        if best is not None:
            taken.add(best)
    hits = np.cumsum(right)
    recall = np.concatenate(([0.0], hits / sum(map(len, shapes))))
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    return float((np.diff(recall) * precision).sum())


def _overlaps(box: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """The intersection over union of a box with each of the others."""
    both = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = both.clip(0).prod(1)
    overlaps: NDArray[np.float32] = common / (
        (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - common
    )
    return overlaps


def main(out: Path) -> None:
    torch.set_num_threads(2)
    model = train()
    known = held_out_scenes()
    score = mean_average_precision([detect(model, one) for one in known], known)
    print(f"mean average precision at 0.5 in {len(known)} held-out scenes: {score:.3f}")
    if score < LEAST:
        sys.exit(f"that is less than {LEAST}: nothing was written")
    whole = out.with_suffix(".part")
    torch.save(model.state_dict(), whole)
    whole.replace(out)  # nobody reads half a file


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER / "shapes.pth")
