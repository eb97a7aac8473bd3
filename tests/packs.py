"""A packed model that is small and quick, and made without PyTorch: one convolution and one matrix."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pthserve._compat.openvino import runtime
from pthserve.engines.cpu import instruction_sets, library
from pthserve.engines.openvino_engine import OpenVINOEngine
from pthserve.files.golden import Golden
from pthserve.images.spec import Spec
from pthserve.loading import packed
from pthserve.loading.packed import Packed
from pthserve.planning.agreement import Evidence
from pthserve.planning.crops import sample_images
from pthserve.planning.plan import Plan
from pthserve.tasks.classification import softmax

from .linear import LABELS, noise, png

SPEC = Spec(resize=40, crop=(32, 32))


def graph(seed: int) -> Any:
    """float32 (n, 3, 32, 32) to float32 (n, 5), as `engine.openvino.convert` makes them."""
    ov = runtime()
    from openvino import opset13 as ops

    random = np.random.default_rng(seed)
    kernel = random.normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32)
    head = random.normal(0, 3.0, (8, len(LABELS))).astype(np.float32)
    image = ops.parameter([-1, *SPEC.tensor_shape], np.float32, name="image")
    seen = ops.relu(ops.convolution(image, kernel, [2, 2], [0, 0], [0, 0], [1, 1]))
    pooled = ops.reduce_mean(seen, np.array([2, 3]), keep_dims=False)
    made = ov.Model([ops.matmul(pooled, head, False, False)], [image])
    made.input(0).set_names({"image"})
    made.output(0).set_names({"logits"})
    return made


def evidence() -> Iterator[Evidence]:
    """What a pack knows of its precisions on this processor, so that it need not be measured."""
    for precision in ("fp32", "bf16", "fp16"):
        off = (0.0,) * 4 if precision == "fp32" else (0.001, 0.002, 0.005, 0.02)
        found = Evidence("openvino", precision, 208, 6, "sample images", *off, 1.0, 150, 150)
        yield replace(found, cpu=instruction_sets(), library=library("openvino"))


def tiny_pack(folder: Path, seed: int = 0, *, off: int = 0, **fields: Any) -> Packed:
    """Write a packed model into `folder`, with two golden images.

    seed: of its weights. off: how many classes the golden images' answers are beside the truth.
    fields: of `Packed`, where they are to differ.
    """
    (folder / "golden").mkdir(parents=True)
    made = graph(seed)
    images = sample_images(SPEC)
    engine = OpenVINOEngine(made, SPEC)
    expected = softmax(engine(images))
    model = Packed(
        folder,
        name="zoo",
        version=str(seed),
        architecture="tests.packs:graph",
        parameters=8 * 27 + 8 * len(LABELS),
        labels=LABELS,
        spec=SPEC,
        plan=Plan("openvino", reason="nothing was measured", evidence=tuple(evidence())),
        digest=f"{seed:064x}",
        made_with={"pthserve": "0"},
    )
    golden = []
    for number in (1, 2):
        file = folder / "golden" / f"{number}.png"
        file.write_bytes(png(noise(number)))
        answer = _answer(engine, file)
        best = int(answer.argmax())
        golden.append(
            Golden(file, (best + off) % len(LABELS), None if off else round(float(answer[best]), 6))
        )
    engine.close()
    model = replace(model, golden=tuple(golden), **fields)
    packed.write(model, made, None, images, expected)
    return model


def _answer(engine: OpenVINOEngine, image: Path) -> Any:
    from pthserve.images.preprocess import crop

    return softmax(engine(crop(image.read_bytes(), SPEC, max_pixels=2**20)[None]))[0]
