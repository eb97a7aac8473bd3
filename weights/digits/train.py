"""Train the digits demo: ResNet-18 with a head of its own, on scikit-learn's handwritten digits.

    python weights/digits/train.py [OUT]

About a minute on 2 cores. Writes digits.pth beside this file: `CustomModel().state_dict()`, nothing else.
"""

import os
import sys
from pathlib import Path

# Threads that wait for each other by spinning take six times the CPU where the cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torchvision import transforms

FOLDER = Path(__file__).parent
SIDE = 64  # pixels; what model.yaml says too
EPOCHS = 4
BATCH = 32
LEARNING_RATE = 0.05
LEAST_ACCURACY = 0.97

# What every image goes through, here and when it is served.
transform = transforms.Compose(
    [
        transforms.Resize(SIDE),
        transforms.CenterCrop(SIDE),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)


class CustomModel(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.resnet18 = torchvision.models.resnet18()
        self.resnet18.fc = nn.Linear(self.resnet18.fc.in_features, num_classes)

    def forward(self, x):
        return self.resnet18(x)


def digits() -> tuple[list[Image.Image], list[int]]:
    """All 1,797 images, 8x8 pixels of 8-bit grey (ink is white), and what each shows."""
    data = load_digits()
    pixels = np.round(data.images * (255 / 16)).astype(np.uint8)
    return [Image.fromarray(image) for image in pixels], data.target.tolist()


def split() -> tuple[list[int], list[int]]:
    """Which images are trained on, and which fifth is held out."""
    _, classes = digits()
    return train_test_split(list(range(len(classes))), test_size=0.2, stratify=classes, random_state=0)


def tensors() -> tuple[Tensor, Tensor]:
    """Every image as the model sees it, float32 (n, 3, 64, 64), and its class, int64 (n,)."""
    images, classes = digits()
    return torch.stack([transform(image.convert("RGB")) for image in images]), torch.tensor(classes)


def train(images: Tensor, classes: Tensor) -> CustomModel:
    """The same model every time on the same machine."""
    torch.manual_seed(0)
    model = CustomModel().train()
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.SGD(
        model.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(images))
        for chosen in order[: len(order) // BATCH * BATCH].split(BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[chosen]), classes[chosen], label_smoothing=0.05)
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {loss.item():.3f}", flush=True)
    return model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, classes: Tensor) -> float:
    """Share of `images` that are given their own class."""
    return (model(images).argmax(1) == classes).float().mean().item()


def main(out: Path) -> None:
    torch.set_num_threads(2)
    images, classes = tensors()
    trained_on, held_out = split()
    model = train(images[trained_on], classes[trained_on])
    share = accuracy(model, images[held_out], classes[held_out])
    print(f"{share:.1%} of {len(held_out)} held-out images are right")
    if share < LEAST_ACCURACY:
        sys.exit(f"that is less than {LEAST_ACCURACY:.0%}: nothing was written")
    whole = out.with_suffix(".part")
    torch.save(model.state_dict(), whole)
    whole.replace(out)  # nobody reads half a file


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER / "digits.pth")
