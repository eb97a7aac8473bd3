"""Packed: a built model as a folder, which is written, read and run without torch.

SHA256SUMS               of every other file, as `sha256sum` writes it and `sha256sum -c` checks it
manifest.json            what is known of the model
model.xml, model.bin     OpenVINO's graph at fp32
int8.xml, int8.bin       and at int8, where that was asked for
golden/                  the golden images
proof/images.npy         uint8 (n, height, width, channels): the images that engines are held to
proof/probabilities.npy  float32 (n, classes): what fp32 PyTorch says of them
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pthserve.errors import PackError
from pthserve.model import Golden, Model
from pthserve.model.engine import Engine
from pthserve.model.plan import Plan
from pthserve.model.preprocess import Pixels
from pthserve.model.prove import Probabilities
from pthserve.model.spec import Spec

if TYPE_CHECKING:
    import openvino

SUMS = "SHA256SUMS"
MANIFEST = "manifest.json"
GRAPH, INT8 = "model.xml", "int8.xml"
GOLDEN = "golden"
IMAGES, PROBABILITIES = "proof/images.npy", "proof/probabilities.npy"

FORMAT = 1
"""Of the folder; one that is larger was made by a later version."""
PIECE = 2**26
"""Bytes of a file that are in memory at once while it is hashed."""


@dataclass(frozen=True, slots=True)
class Packed:
    """What is known of a packed model; see `Model` for the fields that both have.

    folder: where it lies. Golden images' paths lead into it.
    plan: what was chosen on the machine where it was packed.
    made_with: versions by name, of what it was made with.
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
    made_with: Mapping[str, str] = field(default_factory=dict)

    def graph(self) -> "openvino.Model":
        """The graph at fp32; its weights are mapped, not copied."""
        from pthserve.model.engine.openvino import read

        return read(self.folder / GRAPH)

    def quantized(self) -> "openvino.Model | None":
        """The graph at int8, where there is one."""
        from pthserve.model.engine.openvino import read

        return read(self.folder / INT8) if self.has_int8 else None

    @property
    def has_int8(self) -> bool:
        """Whether the graph is there at int8 too."""
        return (self.folder / INT8).exists()

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())

    def proof(self) -> tuple[Pixels, Probabilities]:
        """The images that an engine is held to, and what fp32 PyTorch says of them."""
        return np.load(self.folder / IMAGES), np.load(self.folder / PROBABILITIES)

    def model(self, engine: Engine, plan: Plan) -> Model:
        """The model as `engine` runs it by `plan`."""
        shared = {name: getattr(self, name) for name in (*_PLAIN, "labels", "spec", "golden")}
        return Model(forward=engine, plan=plan, **shared)

    def to_json(self) -> str:
        """The manifest; the same model, the same text."""
        values = {
            "format": FORMAT,
            **{name: getattr(self, name) for name in _PLAIN},
            "labels": list(self.labels),
            "spec": self.spec.to_dict(),
            "plan": self.plan.to_dict(),
            "golden": [
                {**asdict(one), "image": one.image.relative_to(self.folder).as_posix()} for one in self.golden
            ],
            "made_with": dict(self.made_with),
        }
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


_PLAIN = ("name", "version", "architecture", "parameters", "digest")


def is_packed(path: Path) -> bool:
    """Whether `path` is a folder that `pack` made, whole or not."""
    return (path / MANIFEST).exists() or (path / SUMS).exists()


def read(folder: Path) -> Packed:
    """The model in `folder`, of which every byte is as it was packed.

    Raises:
        PackError: a file was changed, is missing or was added, or a later version made the folder.
    """
    _verify(folder)
    values: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    if values["format"] > FORMAT:
        raise PackError(
            f"{folder}: was packed by pthserve {values['made_with']['pthserve']}, in a format that this "
            "version does not know; serve it with that one, or pack the weights anew"
        )
    return Packed(
        folder,
        **{name: values[name] for name in _PLAIN},
        labels=tuple(values["labels"]),
        spec=Spec.from_dict(values["spec"]),
        plan=Plan.from_dict(values["plan"]),
        golden=tuple(Golden(**{**one, "image": folder / one["image"]}) for one in values["golden"]),
        made_with=values["made_with"],
    )


def write(
    model: Packed,
    graph: "openvino.Model",
    quantized: "openvino.Model | None",
    images: Pixels,
    expected: Probabilities,
) -> None:
    """Write what `read` reads into `model.folder`, where nothing is yet but the golden images.

    graph, quantized: at fp32, and at int8 where there is one. images, expected: see `Packed.proof`.
    """
    from pthserve.model.engine.openvino import save

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
    """SHA-256 of each file in `folder` by its name, in order of name."""
    files = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if not path.is_dir() and path != folder / SUMS
    }
    return {name: _sha256(files[name]) for name in sorted(files)}


def lines(digests: Mapping[str, str]) -> str:
    """`digests` as `sha256sum` writes them."""
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items())


def _verify(folder: Path) -> None:
    try:
        written, found = (folder / SUMS).read_bytes(), sums(folder)
    except OSError as error:
        raise PackError(f"{folder}: the packed model cannot be read: {error}") from error
    if written == lines(found).encode():
        return
    told = (line.partition("  ") for line in written.decode(errors="replace").splitlines() if line)
    expected = {name: digest for digest, _, name in told}
    wrong = [
        *(f"{name} is missing" for name in sorted(expected.keys() - found.keys())),
        *(f"{name} is not of it" for name in sorted(found.keys() - expected.keys())),
        *(f"{name} was changed" for name in found if found[name] != expected.get(name, found[name])),
    ]
    raise PackError(
        f"{folder}: is not as it was packed: {'; '.join(wrong) or f'{SUMS} was changed'}; copy it again, or "
        "pack the weights anew"
    )


def _sha256(file: Path) -> str:
    # In large pieces: after each it may have to wait for Python's lock, which imports hold while a service
    # starts. Not mapped: a file cut short meanwhile would end the process.
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as opened:
        while piece := opened.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()
