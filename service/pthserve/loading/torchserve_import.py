"""Import from TorchServe: a model archive to a folder with weights, labels and a card. Nothing of it runs."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import yaml

from pthserve.errors import ArchitectureError, CardError, ModelError, WeightsError
from pthserve.files import card, formats, torchserve
from pthserve.files.card_fields import preprocessing_fields
from pthserve.files.torchserve import Archive, Manifest
from pthserve.images.spec import Spec
from pthserve.loading.load import build
from pthserve.options import ModelOptions
from pthserve.text import quoted

LABELS = "labels.json"
IMAGE_CLASSIFIER = "image_classifier"
PREPROCESSING = Spec(resize=256, crop=(224, 224))
"""That of TorchServe's handler `image_classifier`: torchvision's Resize, CenterCrop, ToTensor, Normalize."""
TOPK = 5
"""Classes in an answer of that handler; `/predict` lists as many."""

_NOT_OF_IMAGES = {
    "object_detector": "finds objects",
    "image_segmenter": "marks the pixels of objects",
    "text_classifier": "classifies text",
}
_CLASS = re.compile(r"^class\s+(\w+)\s*[(:]", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Imported:
    """The folder that was written.

    architecture: of the weights, None where it is not known yet. notes: what was not imported, and what is
    left to be done, one sentence or two each.
    """

    folder: Path
    name: str
    architecture: str | None
    classes: int | None
    notes: tuple[str, ...]


def import_archive(source: Path, output: Path | None = None) -> Imported:
    """Write the weights, the labels and a card of the archive `source` into the folder `output`.

    Args:
        source: A .mar or .tar.gz file, or a folder, as torch-model-archiver writes them.
        output: The folder, which must not be there yet, or be empty. By default it has the model's name and
            is in the current folder.

    Raises:
        WeightsError: The archive is damaged or unsafe, is not one of an image classifier, or its weights
            would run code.
        CardError: The folder is not empty, or cannot be written.
    """
    with torchserve.opened(source) as archive:
        manifest = archive.manifest()
        if kind := _NOT_OF_IMAGES.get(manifest.handler):
            raise WeightsError(
                f"{source}: its handler {manifest.handler} {kind}; only image classifiers are imported"
            )
        folder = output or Path(_folder_name(manifest, source))
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CardError(f"{folder}: exists already; choose another folder with --output")
        part = folder.with_name(f".{folder.name}.{uuid4().hex}")
        try:
            try:
                part.mkdir(parents=True)
                notes = _write(archive, manifest, source, part)
                architecture, classes, problem = _recognised(part, manifest, archive)
                if folder.exists():
                    folder.rmdir()
                part.rename(folder)
            except OSError as error:
                raise CardError(f"{folder}: cannot be written: {error.strerror}") from error
            except ModelError as error:
                raise type(error)(str(error).replace(str(part), str(source))) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    problem = problem.replace(str(part), str(folder))
    notes = [*notes, problem] if problem else notes
    return Imported(folder, manifest.name or folder.name, architecture, classes, tuple(notes))


def _folder_name(manifest: Manifest, source: Path) -> str:
    name = manifest.name or source.name.removesuffix(".tar.gz").removesuffix(".mar")
    if not re.fullmatch(r"[\w.-]{1,100}", name) or name.startswith("."):
        raise CardError(
            f"{source}: the model's name, {quoted(repr(name))}, cannot be that of a folder; use --output"
        )
    return name


def _write(archive: Archive, manifest: Manifest, source: Path, folder: Path) -> list[str]:
    """Fill `folder`; what is to be said of it."""
    weights = (
        manifest.weights if manifest.weights not in (card.FILE, LABELS) else f"weights-{manifest.weights}"
    )
    with (folder / weights).open("xb") as file:
        archive.copy(manifest.weights, file)
    formats.detect(folder / weights)
    notes = list(_not_imported(manifest))
    fields: dict[str, object] = {
        "name": manifest.name if manifest.name and "/" not in manifest.name else None,
        "version": manifest.version,
        "weights": weights,
    }
    if (found := archive.labels()) is not None:
        labels, missing = found
        (folder / LABELS).write_text(json.dumps(labels, ensure_ascii=False, indent=1) + "\n", "utf-8")
        fields["labels"] = LABELS
        if missing:
            shown = ", ".join(map(str, missing[:5])) + (" and more" if len(missing) > 5 else "")
            notes.append(f"{torchserve.LABELS} has no label for {shown}: these classes have their index.")
    lines = [
        f"# From {_printable(source.name)}, a model archive of TorchServe.",
        *(_yaml({key: value}, flow=False) for key, value in fields.items() if value is not None),
        *_preprocessing(manifest),
        *_architecture(archive, manifest),
    ]
    (folder / card.FILE).write_text("\n".join(line.rstrip("\n") for line in lines) + "\n", "utf-8")
    return notes


def _preprocessing(manifest: Manifest) -> Iterator[str]:
    """The lines of the card on preprocessing."""
    if manifest.handler != IMAGE_CLASSIFIER:
        yield f"# The handler {_printable(manifest.handler)} is not imported: state its preprocessing here."
        yield f"# preprocessing: {PREPROCESSING.to_card()}"
        return
    yield f"# As TorchServe's handler {IMAGE_CLASSIFIER} does it, whatever the model was trained with."
    yield f"# It answers with the {TOPK} most probable classes, as /predict does; `?top=` asks for more."
    yield _yaml({"preprocessing": preprocessing_fields(PREPROCESSING)})


def _architecture(archive: Archive, manifest: Manifest) -> Iterator[str]:
    if manifest.code is not None:
        yield "# The class of the model was not copied. Where its architecture is not recognised, install the"
        yield "# module and name it here; --allow-code allows it to run."
        yield f"# architecture: {_callable(archive, manifest)}"


def _callable(archive: Archive, manifest: Manifest) -> str:
    """`module:Class` of an eager model's code, as far as its text tells; the code is not run."""
    assert manifest.code is not None
    names: list[str] = []
    if archive.has(manifest.code):
        with suppress(UnicodeDecodeError):
            names = _CLASS.findall(archive.read(manifest.code).decode())
    module = manifest.code.removesuffix(".py")
    return _printable(f"{module}:{names[0] if len(names) == 1 else 'YourModel'}")


def _not_imported(manifest: Manifest) -> Iterator[str]:
    """Sentences on what the archive has and the folder has not."""
    handler = quoted(manifest.handler)
    if not manifest.handler:
        yield (
            "The archive names no handler, so that the preprocessing is assumed; check it with "
            "`pthserve compare`."
        )
    elif manifest.handler == "base_handler":
        yield (
            "The handler base_handler takes tensors that clients have preprocessed. State the preprocessing "
            "in model.yaml, and check it with `pthserve compare`."
        )
    elif manifest.handler == "dali_image_classifier":
        yield (
            "The handler dali_image_classifier preprocesses by a DALI pipeline, which was not imported. "
            "State the preprocessing in model.yaml, and check it with `pthserve compare`."
        )
    elif manifest.handler != IMAGE_CLASSIFIER:
        yield (
            f"The handler {handler} is code of your own and was not imported. State in model.yaml how it "
            "preprocesses images, and check it with `pthserve compare`. What it does to the results is left "
            "to the client."
        )
    if manifest.requirements:
        yield f"The packages in {quoted(manifest.requirements)} were not installed."
    if manifest.config:
        yield (
            f"The settings in {quoted(manifest.config)} were not imported: batches need none here, and "
            "`pthserve serve --help` lists the settings that there are."
        )


def _recognised(folder: Path, manifest: Manifest, archive: Archive) -> tuple[str | None, int | None, str]:
    """Architecture and classes of the weights in `folder`; where they are not known, what to do.

    Raises:
        WeightsError: the weights cannot be read without running code, or are damaged.
    """
    try:
        built = build(str(folder), ModelOptions())
    except CardError as error:
        return None, None, f"{error}; correct model.yaml."
    except ArchitectureError as error:
        if manifest.code is None:
            return None, None, str(error)
        named = _callable(archive, manifest)
        module = named.partition(":")[0]
        problem = (
            f"The architecture is not recognised ({error}). Its code in the archive, "
            f"{quoted(manifest.code)}, was not copied. If you trust it, put it into a folder of PYTHONPATH, "
            f"write `architecture: {named}` into model.yaml, and serve with `--allow-code {module}`."
        )
        return None, None, problem
    return built.architecture.name, len(built.labels), ""


def _yaml(values: dict[str, object], *, flow: bool | None = None) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110, default_flow_style=flow)


def _printable(text: str) -> str:
    """Text for a comment of the card: one line."""
    return quoted(text)
