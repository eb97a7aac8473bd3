"""Releases of the digits side by side, as processes: an honest training agrees, a permuted head does not."""

import io
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ..running import Running, running

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[2] / "docs" / "rollouts.md").read_text()
COMMAND = re.findall(r"^    pthserve serve new.pth (.+)$", PAGE, re.MULTILINE)
"""The flags of the command in docs/rollouts.md."""
ENOUGH = 130
"""Images: perfect agreement on 125 shows 97 %."""
STEPS = 12

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def train(digits: Path) -> dict[str, Any]:
    return runpy.run_path(str(digits / "train.py"))


@pytest.fixture(scope="module")
def images(train: dict[str, Any]) -> list[bytes]:
    """The held-out images as PNG."""
    pictures, _ = train["digits"]()
    _, held_out = train["split"]()
    files = []
    for number in held_out:
        file = io.BytesIO()
        pictures[number].save(file, "PNG")
        files.append(file.getvalue())
    return files


def retrained(weights: Weights, train: dict[str, Any]) -> Weights:
    """The weights after some more steps of training, on batches that they have not seen in this order."""
    pictures, classes = train["tensors"]()
    chosen, _ = train["split"]()
    model = train["CustomModel"]()
    model.load_state_dict(weights)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.002, momentum=0.9)
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(7))
    for batch in order[: 32 * STEPS].split(32):  # type: ignore[no-untyped-call]
        numbers = [chosen[number] for number in batch]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(pictures[numbers]), classes[numbers]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return dict(model.state_dict())


def permuted(weights: Weights, _: object) -> Weights:
    """The weights with the rows of the head in another order, as of a training with other class indices."""
    return {name: value.roll(1, 0) if ".fc." in name else value for name, value in weights.items()}


def model_of(folder: Path, digits: Path, weights: Weights) -> Path:
    """A folder with these weights, without golden images, which would refuse the permuted ones."""
    folder.mkdir()
    card = (digits / "model.yaml").read_text().partition("golden:")[0]
    (folder / "model.yaml").write_text(card)
    torch.save(weights, folder / "digits.pth")
    return folder


def agreement(canary: Running, images: list[bytes]) -> dict[str, Any]:
    """The comparisons of the canary, after it has answered enough images."""
    for number in range(10 * ENOUGH):
        reply = canary.client.post("/predict", content=images[number % len(images)])
        assert reply.status_code == 200, reply.text
        rollout = canary.client.get("/info").json()["rollout"]
        if rollout["comparisons"] and rollout["comparisons"][0]["images"] >= ENOUGH:
            assert rollout["failures"] == {}
            found: dict[str, Any] = rollout["comparisons"][0]
            return found
    raise AssertionError(f"only so much was compared: {rollout}")


@pytest.mark.parametrize(
    ("changed", "agrees"), [(retrained, True), (permuted, False)], ids=["trained further", "permuted head"]
)
def test_a_new_release_shows_on_live_images_whether_it_answers_as_the_old_one(
    changed: Callable[[Weights, Any], Weights],
    agrees: bool,
    digits: Path,
    train: dict[str, Any],
    images: list[bytes],
    tmp_path: Path,
) -> None:
    weights = torch.load(digits / "digits.pth", weights_only=True)
    new = model_of(tmp_path / "new", digits, changed(weights, train))
    with running(digits, tmp_path / "stable.log") as stable:
        flags = COMMAND[0].replace("http://cats-stable:8000", stable.address).split()
        with running(new, tmp_path / "canary.log", *flags) as canary:
            found = agreement(canary, images)
            assert found["other"] == stable.client.get("/info").json()["digest"] != found["digest"]
            if agrees:
                assert found["lower"] >= 0.9, found
            else:
                assert found["upper"] < 0.1, found
        # The old release answered each comparison, and counted none of them as a prediction.
        total = sum(
            float(line.rpartition(" ")[2])
            for line in stable.client.get("/metrics").text.splitlines()
            if line.startswith("pthserve_predictions_total{")
        )
        assert total == 0
        assert stable.metric('pthserve_requests_total{code="200",route="/predict"}') >= ENOUGH
