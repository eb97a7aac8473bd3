"""Images of many sizes from many clients: a detector and a segmentation model answer right and in time."""

import asyncio
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from pthserve.planning.crops import samples

from ..running import Running, running
from ..zoos.detectors import detector
from ..zoos.segmenters import segmenter
from .asking import Answer, Clients, post

pytestmark = [pytest.mark.alone, pytest.mark.long]

CLIENTS = 200
SECONDS = 20.0
"""Of each round of load, of which there are ROUNDS."""
ROUNDS = 4
DEADLINE = 10.0
LATE = 1.0
"""Seconds past the deadline within which a client must hear of it: the clients need the machine, too."""
MEMORY = 256 * 2**20
"""`decode_memory`, which bounds what is held of images and answers."""
SIZES = ((64, 48), (640, 480), (480, 640), (333, 111), (1200, 900), (97, 401), (2400, 1000), (800, 800))
HOSTILE = ((20_000, 1), (1, 20_000), (12_000, 9), (9, 12_000), (10_000, 10_001))
GROWTH = 64.0
"""MiB by which later rounds may exceed the second: allocators keep some of what is freed."""


def folder(path: Path, module: nn.Module, **card: Any) -> Path:
    path.mkdir()
    torch.save(module.state_dict(), path / "net.pth")
    (path / "model.yaml").write_text(yaml.safe_dump({"name": "net", **card}))
    return path


def objects(path: Path) -> Path:
    """A detector, which resizes each image to 320 x 320."""
    name = "ssdlite320_mobilenet_v3_large"
    return folder(path, detector(name), architecture=name, labels=["a", "b", "c", "d"])


def areas(path: Path) -> Path:
    """A segmentation model, whose answer has the size of the image."""
    preprocessing = {"resize": 96, "crop": None}
    module = segmenter("lraspp_mobilenet_v3_large")
    return folder(path, module, labels=["a", "b", "c", "d"], preprocessing=preprocessing)


def photo(number: int, size: tuple[int, int]) -> bytes:
    """One of the sample images, resized: a PNG."""
    file = io.BytesIO()
    kept = samples()
    Image.open(io.BytesIO(kept[number % len(kept)])).convert("RGB").resize(size).save(
        file, "PNG", compress_level=1
    )
    return file.getvalue()


def blank(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG")
    return file.getvalue()


def same_objects(answer: dict[str, Any], known: dict[str, Any]) -> bool:
    """Whether the sure objects are those that are known: beside other images, scores round differently."""
    if answer["size"] != known["size"]:
        return False
    for these, those in ((answer, known), (known, answer)):
        others = [(one["class_index"], np.array(one["box"])) for one in those["detections"]]
        for one in these["detections"]:
            if one["score"] < these["threshold"] + 0.01:
                continue
            if not any(
                index == one["class_index"] and abs(box - one["box"]).max() < 1 for index, box in others
            ):
                return False
    return True


def same_areas(answer: dict[str, Any], known: dict[str, Any]) -> bool:
    """Whether the classes have the areas that are known, but for 0.1 % of the pixels."""
    found, wanted = (
        {one["class_index"]: one["share"] for one in each["classes"]} for each in (answer, known)
    )
    apart = sum(abs(found.get(index, 0.0) - wanted.get(index, 0.0)) for index in found.keys() | wanted.keys())
    return bool(answer["size"] == known["size"] and apart < 0.002)


@pytest.mark.parametrize(
    ("made", "same"), [(objects, same_objects), (areas, same_areas)], ids=["objects", "areas"]
)
async def test_many_clients_with_images_of_many_sizes(
    tmp_path: Path,
    made: Callable[[Path], Path],
    same: Callable[[dict[str, Any], dict[str, Any]], bool],
) -> None:
    flags = ("--deadline", str(DEADLINE), "--decode-memory", str(MEMORY), "--threads", "2")
    images = [photo(number, size) for number, size in enumerate(SIZES)]
    hostile = [blank(size) for size in HOSTILE]
    requests = [post(image) for image in (*images, *hostile)]
    peaks: list[float] = []
    with running(made(tmp_path / "net"), tmp_path / "log", *flags) as service:
        known = [asked(service, image) for image in images]
        for _ in range(ROUNDS):
            clients = Clients(service.address, requests)
            peak = await loaded(service, clients)
            peaks.append(peak)
            check(clients.answers, known, same)
        left = service.metric("pthserve_inflight_requests")
        assert [asked(service, image) for image in images[:1]], "it still answers"
    print(f"memory {', '.join(f'{peak:.0f}' for peak in peaks)} MiB")
    assert max(peaks[2:]) < peaks[1] + GROWTH
    assert left == 0


def asked(service: Running, image: bytes) -> dict[str, Any]:
    reply = service.client.post(
        "/predict", files={"image": image}, headers={"x-request-timeout": str(DEADLINE)}
    )
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


async def loaded(service: Running, clients: Clients) -> float:
    """The most MiB that the service takes while the clients ask."""
    seen: list[float] = []

    async def look() -> None:
        while True:
            seen.append(await asyncio.to_thread(service.memory))
            await asyncio.sleep(0.1)

    looking = asyncio.create_task(look())
    await clients.closed(CLIENTS, SECONDS)
    looking.cancel()
    return max(seen)


def check(
    answers: list[Answer], known: list[dict[str, Any]], same: Callable[[dict[str, Any], dict[str, Any]], bool]
) -> None:
    """No answer is wrong or late, and an image of a hostile size is answered or refused for what it is."""
    counts = Counter(answer.status for answer in answers)
    print(f"{len(answers)} answers: {dict(sorted(counts.items()))}")
    assert set(counts) <= {200, 413, 415, 503, 504}, counts
    assert counts[200] > len(known)
    late = [answer.seconds for answer in answers if answer.seconds > DEADLINE + LATE]
    assert not late, late
    ordinary = [answer for answer in answers if answer.asked < len(known)]
    assert {answer.status for answer in ordinary} <= {200, 503, 504}
    wrong = [
        answer.asked
        for answer in ordinary
        if answer.status == 200 and not same(answer.said, known[answer.asked])
    ]
    assert not wrong, Counter(wrong)
