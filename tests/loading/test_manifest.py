"""A manifest with right sums is refused where a field of it cannot be, by the name of the field."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pthserve.errors import ModelError, PackError
from pthserve.files.golden import GoldenBox
from pthserve.loading import packed
from pthserve.loading.load import load
from pthserve.settings import Settings
from pthserve.tasks.choice import task_fields
from pthserve.tasks.detection import DetectionTask
from pthserve.tasks.objects import Table
from pthserve.tasks.segmentation import SegmentationTask

from ..cli.called import called
from ..linear import noise

SETTINGS = Settings(threads=1, tune_budget=0.0)


def edited(pack: Path, place: tuple[Any, ...], value: Any) -> None:
    """Set what is at `place` in the manifest to `value`, and write the checksums again."""
    file = pack / packed.MANIFEST
    manifest = json.loads(file.read_text())
    inner = manifest
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    rewritten(pack, packed.MANIFEST, json.dumps(manifest).encode())


def rewritten(pack: Path, name: str, data: bytes) -> None:
    (pack / name).write_bytes(data)
    (pack / packed.SUMS).write_text(packed.lines(packed.sums(pack)))


WRONG: list[tuple[tuple[Any, ...], Any]] = [
    *((("format",), value) for value in (None, "1", 0, -1, True, 1.5)),
    *((("name",), value) for value in (None, "", 7, [], "x" * 2000)),  # type: ignore[var-annotated]
    *((("parameters",), value) for value in (-1, "many", 10**30, 1.5)),
    *((("inferred",), value) for value in ([{}], ["labels"], "labels", [{"subject": "labels"}])),  # type: ignore[var-annotated]
    *((("digest",), value) for value in ("", "0" * 63, "G" * 64, None, 0)),
    *((("labels",), value) for value in ([], "ant", {"0": "ant"}, [1, 2, 3, 4, 5], [""] * 5, None)),
    *((("spec", "crop"), value) for value in (32, [32], [0, 32], [32, -1], [32, 10**9], ["32", "32"])),
    *((("spec", "resize"), value) for value in (0, -1, [1, 2, 3], "40", 10**9)),
    *((("spec", "mean"), value) for value in ([], [0.5], [0.5] * 4, [float("nan")] * 3, ["a"] * 3, 2.0)),
    *((("spec", "std"), value) for value in ([0.0] * 3, [-1.0] * 3, None, [float("inf")] * 3)),
    (("spec", "interpolation"), "cubic"),
    (("spec", "channel_order"), "gbr"),
    (("spec", "unknown"), 1),
    *((("plan", "threads"), value) for value in (0, -1, 10**6, "2", 1.5, None)),
    *((("plan", "max_batch"), value) for value in (0, 1025, None)),
    *((("plan", "engine"), value) for value in ("torch", "tensorrt", 1)),
    *((("plan", "device"), value) for value in ("cuda", None)),
    *((("plan", "precision"), value) for value in ("fp8", "", None)),
    *((("plan", "trials"), value) for value in ([{}], [1], "x", None, {"a": 1})),  # type: ignore[var-annotated]
    *((("golden",), value) for value in (None, {}, [1], [{}], "x")),  # type: ignore[var-annotated]
    *((("golden", 0, "class_index"), value) for value in (-1, 5, 10**30, "1", None, 1.5)),
    *((("golden", 0, "probability"), value) for value in (-0.1, 1.1, "x", float("nan"))),
    *(
        (("golden", 0, "image"), value)
        for value in ("../../etc/passwd", "/etc/passwd", "golden/3.png", "", None, "golden")
    ),
    (("made_with",), [1]),
    (("unknown",), 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "value"),
    WRONG,
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_a_field_that_cannot_be_is_refused_by_name(pack: Path, place: tuple[Any, ...], value: Any) -> None:
    edited(pack, place, value)
    last = next(part for part in reversed(place) if isinstance(part, str))
    with pytest.raises(PackError, match=f"manifest.json: .*{last.replace('image', 'golden')}"):
        packed.read(pack)


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"{}" + b" " * 20 + b"x"),
        *(b"[" * 100_000, b'{"format":' * 5_000, b'{"format": ' + b"9" * 100_000 + b"}"),
        b'{"format": 1, "name": "\\ud83d"}',
        b" " * (16 * 2**20 + 1),
    ],
    ids=lambda text: text[:12].decode("latin-1"),
)
def test_what_is_no_manifest_is_refused(pack: Path, text: bytes) -> None:
    rewritten(pack, packed.MANIFEST, text)
    with pytest.raises(PackError, match=r"manifest\.json"):
        packed.read(pack)


def test_a_message_quotes_no_more_of_the_file_than_a_line(pack: Path) -> None:
    edited(pack, ("x" * 100_000,), 1)
    with pytest.raises(PackError) as caught:
        packed.read(pack)
    assert len(str(caught.value)) < 1000


# --- tasks that find something ---------------------------------------------------------------------------

TABLE = {"most": 20, "mask": 28, "keypoints": 1, "keypoint_names": ["nose"]}
DETECTION = {"name": "detection", **TABLE, "threshold": 0.3}
BOX = {"class_index": 2, "box": [1, 2.5, 30, 40], "score": 0.75}


def test_a_detector_s_table_and_golden_boxes_are_read(pack: Path) -> None:
    edited(pack, ("task",), DETECTION)
    boxes = [BOX, {"label": "ant", "box": [0, 0, 1, 1], "iou": 0.9}]
    edited(pack, ("golden",), [{"image": "golden/1.png", "boxes": boxes}])
    edited(pack, ("spec", "whole"), True)
    found = packed.read(pack)
    assert found.task == DetectionTask(Table(20, 28, 1, ("nose",)), 0.3)
    assert task_fields(found.task) == DETECTION
    (golden,) = found.golden
    assert golden.boxes == (
        GoldenBox(2, (1, 2.5, 30, 40), 0.75),
        GoldenBox(None, (0, 0, 1, 1), iou=0.9, label="ant"),
    )
    assert golden.answer(pack) == {"boxes": boxes}
    assert found.spec.whole


def test_a_segmentation_model_s_classes_and_golden_class_map_are_read(pack: Path) -> None:
    edited(pack, ("task",), {"name": "segmentation", "classes": 5})
    answer = {"class_map": "golden/2.png", "agreement": 0.9}
    edited(pack, ("golden",), [{"image": "golden/1.png", **answer}])
    found = packed.read(pack)
    assert found.task == SegmentationTask(5)
    assert found.golden[0].class_map == pack / "golden/2.png"
    assert found.golden[0].answer(pack) == answer


@pytest.mark.parametrize(
    ("task", "golden", "message"),
    [
        ({"name": "segmentation", "classes": 6}, None, "there are 5 labels, but `classes` is 6"),
        ({"name": "segmentation"}, None, "`classes` is None"),
        ({"name": "detection"}, None, "`most` is missing"),
        ({**DETECTION, "keypoints": 2}, None, "`keypoint_names`"),
        ({**DETECTION, "mask": -1}, None, "task.mask"),
        ({**DETECTION, "most": 0}, None, "task.most"),
        ({**DETECTION, "threshold": 2}, None, "task.threshold"),
        (DETECTION, {"class_index": 1}, "golden.0..boxes: is missing"),
        (DETECTION, {"boxes": [{**BOX, "box": [0, 1, 2]}]}, "golden.0..boxes.0..box"),
        (DETECTION, {"boxes": [{**BOX, "score": -1}]}, "golden.0..boxes.0..score"),
        ({"name": "segmentation", "classes": 5}, {"boxes": [BOX]}, "golden.0..class_map: is missing"),
        ({"name": "segmentation", "classes": 5}, {"class_map": "../net.png"}, "golden image '../net.png'"),
    ],
)
def test_what_cannot_be_of_such_a_task_is_refused(
    pack: Path, task: dict[str, Any], golden: dict[str, Any] | None, message: str
) -> None:
    edited(pack, ("task",), task)
    edited(pack, ("golden",), [] if golden is None else [{"image": "golden/1.png", **golden}])
    with pytest.raises(PackError, match=message):
        packed.read(pack)


# --- what does not belong together ------------------------------------------------------------------------


def test_labels_and_sizes_must_be_the_graph_s(pack: Path) -> None:
    np.save(pack / packed.PROBABILITIES, np.full((3, 6), 1 / 6, np.float32))
    edited(pack, ("labels",), list("abcdef"))
    with pytest.raises(ModelError, match=r"model\.xml: .* the output \[\?,5\], .* \[\?,6\]"):
        packed.read(pack).graph()
    edited(pack, ("spec", "crop"), [40, 40])
    with pytest.raises(ModelError, match=r"model\.xml: the graph has the input \[\?,3,32,32\]"):
        packed.read(pack).graph()


@pytest.mark.parametrize("name", [packed.IMAGES, packed.PROBABILITIES])
@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"", "is not an array"),
        (b"\x93NUMPY\x01\x00", "is not an array"),
        (b"{'descr': '|O', 'fortran_order': False, 'shape': (2,), }", "is not an array"),
        (b"{'descr': '<f8', 'fortran_order': False, 'shape': (0,), }", "is not an array"),
        (b"{'descr': 'DTYPE', 'fortran_order': False, 'shape': (10**12,), }", "is not an array"),
        (b"{'descr': 'DTYPE', 'fortran_order': False, 'shape': (1000000000000,), }", "is not an array"),
        (b"{'descr': 'DTYPE', 'fortran_order': False, 'shape': (0,), }", "has the shape"),
        (b"{'descr': 'DTYPE', 'fortran_order': False, 'shape': (), }", "has the shape|is not an array"),
        (
            b"{'descr': 'DTYPE', 'fortran_order': False, 'shape': (), }\n\0\0\0\0",
            "has the shape|is not an array",
        ),
        (b"(" * 9000, "is not an array"),
    ],
    ids=lambda value: value[:60].decode("latin-1") if isinstance(value, bytes) else "",
)
def test_a_proof_that_is_no_array_of_the_right_kind_is_refused(
    pack: Path, name: str, header: bytes, reason: str
) -> None:
    header = header.replace(b"DTYPE", b"|u1" if name == packed.IMAGES else b"<f4")
    if not header.startswith(b"\x93") and header:
        text, _, values = header.partition(b"\n")
        header = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + values
    rewritten(pack, name, header)
    with pytest.raises(PackError, match=f"{name}: ({reason})"):
        load(str(pack), SETTINGS)


def test_a_part_that_is_neither_there_nor_in_the_sums_is_refused_by_name(pack: Path) -> None:
    (pack / "model.bin").unlink()
    rewritten(pack, packed.MANIFEST, (pack / packed.MANIFEST).read_bytes())
    with pytest.raises(PackError, match=r"model\.bin is missing"):
        packed.read(pack)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is not an OpenVINO graph"),
        (b"\x08\x07\x12\x07pytorch", "is not an OpenVINO graph"),
        (b'<?xml version="1.0"?><net name="m" version="11"></net>', "model.xml: "),
        (b'<?xml version="1.0"?><net name="m" version="11"><layers>', "cannot be read as an OpenVINO graph"),
    ],
)
def test_a_graph_that_is_none_is_refused_without_openvino_s_places_in_its_source(
    pack: Path, data: bytes, reason: str
) -> None:
    rewritten(pack, "model.xml", data)
    with pytest.raises(ModelError, match=reason) as caught:
        load(str(pack), SETTINGS)
    assert ".cpp" not in str(caught.value)
    assert str(pack) in str(caught.value)


# --- what lies in the folder ------------------------------------------------------------------------------


def pipe(path: Path) -> None:
    os.mkfifo(path / "golden" / "pipe")


def device(path: Path) -> None:
    (path / "golden" / "zero").symlink_to("/dev/zero")


def loop(path: Path) -> None:
    (path / "golden" / "loop").symlink_to("loop")


def not_text(path: Path) -> None:
    Path(os.fsdecode(bytes(path) + b"/golden/\xff.png")).write_bytes(b"")


def line_break(path: Path) -> None:
    (path / "golden" / "a\nb").write_bytes(b"")


@pytest.mark.parametrize("put", [pipe, device, loop, not_text, line_break])
def test_what_no_packed_model_has_is_refused(pack: Path, put: Callable[[Path], None]) -> None:
    put(pack)
    done = called("inspect", pack)
    assert done.returncode == 3
    assert str(pack) in done.stderr


def test_more_files_than_a_packed_model_has_are_not_hashed(
    pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "MAX_FILES", 3)
    with pytest.raises(PackError, match="has more than 3 files"):
        packed.read(pack)


def test_a_packed_model_gets_blue_first_where_its_manifest_says_so(pack: Path) -> None:
    pixels = noise(3)
    swapped = load(str(pack), SETTINGS)(pixels[..., ::-1].copy()).probabilities
    assert np.abs(load(str(pack), SETTINGS)(pixels).probabilities - swapped).max() > 1e-4
    edited(pack, ("spec", "channel_order"), "bgr")
    np.testing.assert_array_equal(load(str(pack), SETTINGS)(pixels).probabilities, swapped)


def test_a_pack_that_was_made_before_there_was_a_channel_order_is_rgb(pack: Path) -> None:
    file = pack / packed.MANIFEST
    manifest = json.loads(file.read_text())
    del manifest["spec"]["channel_order"]
    rewritten(pack, packed.MANIFEST, json.dumps(manifest).encode())
    assert load(str(pack), SETTINGS).spec.channel_order == "rgb"
