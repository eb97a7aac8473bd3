"""Packed: a built model as a folder, which is written, read and run without torch.

SHA256SUMS               of every other file, as `sha256sum` writes it and `sha256sum -c` checks it
model.sig                where the packed model is signed: the signature, of SHA256SUMS too
manifest.json            what is known of the model
model.xml, model.bin     OpenVINO's graph at fp32
int8.xml, int8.bin       and at int8, where that was asked for
golden/                  the golden images
proof/images.npy         uint8 (n, height, width, channels): the images that engines are held to; where the
                         preprocessing keeps fractions, float32 (n, channels, height, width), normalised
proof/probabilities.npy  float32 (n, outputs): what fp32 PyTorch says of them, as the task's scores
"""

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pthserve.certainty import Inferred
from pthserve.engines.base import Engine
from pthserve.engines.quantized_graph import Quantization
from pthserve.errors import PackError
from pthserve.files import copies
from pthserve.files.copies import Copy
from pthserve.files.golden import Golden
from pthserve.images.preprocess import Prepared
from pthserve.images.spec import Spec
from pthserve.loading import manifest
from pthserve.loading.manifest import FORMAT
from pthserve.loading.model import Model
from pthserve.planning.candidates import Quantized
from pthserve.planning.examiner import Proof
from pthserve.planning.plan import Plan
from pthserve.sources.signatures import SIGNATURE
from pthserve.tasks.base import Task
from pthserve.tasks.choice import task_fields
from pthserve.tasks.classification import CLASSIFICATION

if TYPE_CHECKING:
    import openvino

SUMS = "SHA256SUMS"
MANIFEST = "manifest.json"
GRAPH, INT8 = "model.xml", "int8.xml"
GOLDEN = "golden"
IMAGES, PROBABILITIES = "proof/images.npy", "proof/probabilities.npy"

MAX_FILES = 10_000
"""In a folder; a packed model has one a golden image, and nine beside."""
_MAX_SUMS, _MAX_ARRAY = 16 * 2**20, 2**30
"""Bytes of SHA256SUMS, and of a file in proof/."""


@dataclass(frozen=True, slots=True)
class Packed:
    """What is known of a packed model; see `Model` for the fields that both have.

    folder: where it lies. Golden images' paths lead into it.
    plan: what was chosen on the machine where it was packed.
    int8: what of the graph at int8 is, where there is one.
    made_with: versions by name, of what it was made with.
    speedup: of int8 over the fastest other precision that agrees, as it was timed when the model was packed.
    It is not in the manifest: the same input makes the same bytes.
    digests: SHA-256 of each file by its name. copies: of the graphs' files, by name. `read` fills both in.
    """

    folder: Path
    name: str
    version: str
    architecture: str
    parameters: int
    labels: tuple[str, ...]
    spec: Spec
    plan: Plan
    digest: str
    golden: tuple[Golden, ...] = ()
    int8: Quantization | None = None
    task: Task = CLASSIFICATION
    inferred: tuple[Inferred, ...] = ()
    made_with: Mapping[str, str] = field(default_factory=dict)
    speedup: float | None = field(default=None, compare=False)
    digests: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    copies: Mapping[str, Copy] = field(default_factory=dict, compare=False, repr=False)

    def graph(self) -> "openvino.Model":
        """The graph at fp32; its weights are mapped, of the copy that `read` made."""
        return self._graph(GRAPH)

    def quantized(self) -> Quantized | None:
        """The graph at int8, where there is one whose weights are known to fit a processor."""
        return None if self.int8 is None else Quantized(self._graph(INT8), self.int8)

    def _graph(self, name: str) -> "openvino.Model":
        from pthserve.engines.openvino_graph import check, read

        file = self.folder / name
        graph = read(self.copies[name].path, self.copies[_weights(name)].path, name=file)
        check(graph, self.spec, self.outputs, name=file)
        return graph

    @property
    def outputs(self) -> int:
        """How many numbers the model gives for an image; see `Task.outputs`."""
        return self.task.outputs(self.labels)

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())

    def proof(self) -> Proof:
        """The images that an engine is held to, and what fp32 PyTorch says of them, as the task's scores.

        Raises:
            PackError: the files are none of that, or were changed since the model was read.
        """
        if self.spec.rounded:
            images = self._array(IMAGES, np.uint8, (-1, *self.spec.image_shape))
        else:
            images = self._array(IMAGES, np.float32, (-1, *self.spec.tensor_shape))
        return Proof(images, self._array(PROBABILITIES, np.float32, (len(images), self.outputs)))

    def _array(self, name: str, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
        file = self.folder / name
        data = copies.content(file, self.digests[name], _MAX_ARRAY)
        try:
            found = _parsed(data, np.dtype(dtype))
        except Exception as error:  # numpy's reader raises whatever the header's text provokes
            raise PackError(
                f"{file}: is not an array of {np.dtype(dtype)}; pack the weights again"
            ) from error
        fits = found.ndim == len(shape) and all(
            there > 0 if wanted < 0 else there == wanted
            for there, wanted in zip(found.shape, shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("n" if side < 0 else str(side) for side in shape)
            raise PackError(
                f"{file}: has the shape {found.shape}, but the manifest needs ({wanted}); "
                "pack the weights again"
            )
        return found

    def model(self, engine: Engine, plan: Plan) -> Model:
        """The model as `engine` runs it by `plan`."""
        names = (*_PLAIN, "labels", "spec", "golden", "task", "inferred")
        shared = {name: getattr(self, name) for name in names}
        int8 = self.int8 if plan.precision == "int8" else None
        return Model(forward=engine, plan=plan, int8=int8, **shared)

    def to_json(self) -> str:
        """The manifest; the same model, the same text."""
        values = {
            "format": FORMAT,
            **{name: getattr(self, name) for name in _PLAIN},
            "labels": list(self.labels),
            **({"task": task_fields(self.task)} if self.task != CLASSIFICATION else {}),
            "spec": self.spec.to_dict(),
            "plan": self.plan.to_dict(),
            **({} if self.int8 is None else {"int8": asdict(self.int8)}),
            "golden": [
                {
                    "image": one.image.relative_to(self.folder).as_posix(),
                    **one.answer(self.folder),
                    **({"probability": one.probability} if one.kind == "class" else {}),
                }
                for one in self.golden
            ],
            "inferred": [one.to_dict() for one in self.inferred],
            "made_with": dict(self.made_with),
        }
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


_PLAIN = ("name", "version", "architecture", "parameters", "digest")


def is_packed(path: Path) -> bool:
    """Whether `path` is a folder that `pack` made, whole or not."""
    return (path / MANIFEST).exists() or (path / SUMS).exists()


def read(folder: Path, *, graphs: bool = True) -> Packed:
    """The model in `folder`, of which every byte is as it was packed.

    The graphs are copied as they are hashed, so that what becomes of the folder later changes nothing.

    graphs: False copies none, for who asks for none.
    Raises:
        PackError: a file was changed, is missing or was added, or a later version made the folder.
    """
    digests, kept = _verified(folder, {GRAPH, _weights(GRAPH), INT8, _weights(INT8)} if graphs else set())
    file = folder / MANIFEST
    values = manifest.parse(copies.content(file, digests[MANIFEST], manifest.MAX_BYTES), file)
    named = [name for one in values.golden for name in (one.image, one.class_map) if name is not None]
    if lost := next((name for name in named if name not in digests), None):
        raise PackError(
            f"{file}: names the golden image {lost[:200]!r}, which is not a file of the packed model"
        )
    if values.int8 is not None and INT8 not in digests:
        raise PackError(f"{folder}: is not a complete packed model: {INT8} is missing; pack it again")
    return Packed(
        folder,
        **{name: getattr(values, name) for name in _PLAIN},
        labels=values.labels,
        spec=values.spec.spec(),
        plan=values.plan.plan(),
        int8=values.int8.quantization() if values.int8 is not None else None,
        golden=tuple(one.golden(folder, digests[one.image]) for one in values.golden),
        task=values.served_task(),
        inferred=tuple(one.inferred() for one in values.inferred),
        made_with=values.made_with,
        digests=digests,
        copies=kept,
    )


def write(
    model: Packed,
    graph: "openvino.Model",
    quantized: "openvino.Model | None",
    images: Prepared,
    expected: NDArray[np.float32],
) -> None:
    """Write what `read` reads into `model.folder`, where nothing is yet but the golden images.

    graph, quantized: at fp32, and at int8 where there is one. images, expected: see `Packed.proof`.
    """
    from pthserve.engines.openvino_graph import save

    folder = model.folder
    save(graph, folder / GRAPH)
    if quantized is not None:
        save(quantized, folder / INT8)
    (folder / IMAGES).parent.mkdir()
    np.save(folder / IMAGES, images)
    np.save(folder / PROBABILITIES, expected)
    (folder / MANIFEST).write_text(model.to_json(), "utf-8")
    (folder / SUMS).write_text(lines(sums(folder)), "utf-8")


def sums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in `folder` by its name, in order of name.

    Raises:
        PackError: there is something else than files and folders, or more than MAX_FILES.
    """
    return {name: copies.sha256(folder / name) for name in _names(folder)}


def lines(digests: Mapping[str, str]) -> str:
    """`digests` as `sha256sum` writes them."""
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items())


def _verified(folder: Path, keep: set[str]) -> tuple[dict[str, str], dict[str, Copy]]:
    """SHA-256 of each file by its name, and copies of those that `keep` names; raises PackError."""
    digests: dict[str, str] = {}
    kept: dict[str, Copy] = {}
    try:
        written = copies.content(folder / SUMS, None, _MAX_SUMS)
        for name in _names(folder):
            if name in keep:
                digests[name], kept[name] = copies.copy(folder / name)
            else:
                digests[name] = copies.sha256(folder / name)
    except OSError as error:
        raise PackError(f"{folder}: the packed model cannot be read: {error}") from error
    if written != lines(digests).encode():
        raise PackError(
            f"{folder}: was changed after packing: {_differences(written, digests)}; copy it again, or "
            "pack the weights again"
        )
    needed = {MANIFEST, GRAPH, _weights(GRAPH), IMAGES, PROBABILITIES}
    needed |= {INT8, _weights(INT8)} if {INT8, _weights(INT8)} & digests.keys() else set()
    if lost := sorted(needed - digests.keys()):
        raise PackError(
            f"{folder}: is not a complete packed model: {', '.join(lost)} is missing; pack it again"
        )
    return digests, kept


def _differences(written: bytes, digests: Mapping[str, str]) -> str:
    """In which files `written`, a SHA256SUMS, and `digests` differ; of many, the first few."""
    parts = (line.partition("  ") for line in written.decode(errors="replace").splitlines() if line)
    expected = {name: digest for digest, _, name in parts}
    wrong = [
        *(f"{_shown(name)} is missing" for name in sorted(expected.keys() - digests.keys())),
        *(f"{_shown(name)} is not of it" for name in sorted(digests.keys() - expected.keys())),
        *(f"{name} was changed" for name in digests if digests[name] != expected.get(name, digests[name])),
    ]
    more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return "; ".join(wrong[:_SHOWN]) + more or f"{SUMS} was changed"


_SHOWN = 8
"""Differences that a message lists."""


def _shown(name: str) -> str:
    return name if name.isprintable() and len(name) < 200 else ascii(name[:200])


def _names(folder: Path) -> list[str]:
    """The files below `folder`, in order of name, but for SHA256SUMS and the signature; raises PackError."""
    found: list[str] = []
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if not name.isprintable():  # a line break would make another line of SHA256SUMS
            raise PackError(f"{folder}: the file name {name[:200]!a} is not printable; remove the file")
        found.append(name)
        if len(found) > MAX_FILES:
            raise PackError(f"{folder}: has more than {MAX_FILES} files, and is not a packed model")
    return sorted(found)


def _files(folder: Path) -> Iterator[Path]:
    own = (folder / SUMS, folder / SIGNATURE)
    return (path for path in folder.rglob("*") if not path.is_dir() and path not in own)


def _weights(graph: str) -> str:
    """The file of the weights that belong to the file `graph`."""
    return graph.removesuffix(".xml") + ".bin"


def _parsed(data: bytes, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The array that `numpy.save` wrote as `data`; raises whatever numpy does where it is none of `dtype`.

    `numpy.load` would allocate what the header claims before it looks at how much there is.
    """
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("another version of the format")
    shape, fortran, found = np.lib.format.read_array_header_1_0(file)
    if fortran or found != dtype:
        raise ValueError(f"an array of {found}")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)
