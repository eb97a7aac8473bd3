"""Card: the model card `model.yaml`, which describes the weights in its folder."""

import difflib
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pthserve.errors import CardError, WeightsError
from pthserve.files import documents, labels, regular_files
from pthserve.files.card_fields import Fields, FirstLayer, GoldenImage, GoldenObject, Head, Preprocessing
from pthserve.files.golden import Golden, GoldenBox
from pthserve.files.output_fields import LIST, MAPPING, GraphOutputs, OutputFields
from pthserve.files.stated_task import StatedTask
from pthserve.images.spec import Spec
from pthserve.text import QUOTED, of_path, quoted

FILE = "model.yaml"
SUFFIXES = (".pth", ".pt", ".ckpt", ".pth.tar", ".safetensors", ".bin", ".pt2", ".onnx")
"""Suffixes of weights files, by which they are found in a folder whose card does not name one."""
FOREIGN = (".pkl", ".pb", ".h5", ".keras", ".tflite", ".mar")
"""Suffixes of other tools' files. If a folder has no others, one is read to name its format in the error."""
USUAL = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""The weights files of transformers, in order of preference. A folder may contain several with the same
weights, and the shards that an index lists."""
BYTES = 4 * 2**20
"""Maximum size of a card, and of a file of labels."""

_SHARD = re.compile(r"(model|pytorch_model)-\d{5}-of-\d{5}\.(safetensors|bin)")
_NO_WEIGHTS = re.compile(r"training_args\.bin|(optimizer|scheduler|scaler)\.(pt|bin)|rng_state(_\d+)?\.pth")
"""Files that training tools write beside the weights."""

_PARTS: dict[str, type[BaseModel]] = {
    "": Fields,
    "first_layer": FirstLayer,
    "head": Head,
    "preprocessing": Preprocessing,
    "golden": GoldenImage,
    "boxes": GoldenObject,
    "outputs": OutputFields,
    MAPPING: GraphOutputs,
}
_WRONG_TYPE = {
    "missing": "must be given",
    "model_type": "must be a mapping of fields",
    "dict_type": "must be a mapping",
    "tuple_type": "must be a list",
}
_EMPTY = Fields.model_validate({})


@dataclass(frozen=True, slots=True)
class Card:
    """The content of a model card, with defaults for the fields that it leaves out.

    Attributes:
        folder: The folder of the card, even if there is no card.
        sha256: The expected SHA-256 of the weights, in lower case.
        container: The key of the state dict in the weights; None to find it.
        architecture: A name, or `package.module:callable`.
        kwargs: Keyword arguments for the architecture.
        first_layer: The fields that the card states about the first layer.
        head: The fields that the card states about the head.
        labels: One label per class.
        spec: The preprocessing; None if the card does not state it. `assumed` if it leaves out the sizes.
        stated: The fields of `spec` that the card states.
    """

    folder: Path
    name: str
    weights: Path
    version: str = "1"
    sha256: str | None = None
    container: str | None = None
    architecture: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    first_layer: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    task: StatedTask = field(default_factory=StatedTask)
    spec: Spec | None = None
    stated: frozenset[str] = frozenset()
    golden: tuple[Golden, ...] = ()

    @property
    def file(self) -> Path:
        """The path of the card, even if there is none."""
        return self.folder / FILE


def read(path: Path) -> Card:
    """Return the card for the weights file or the folder at `path`.

    A card in the folder of a weights file describes it unless it names other weights. All files that a card
    names must be in its folder. Symbolic links in paths are not resolved, since Kubernetes changes their
    targets when it updates a volume.

    Raises:
        CardError: The card is not valid.
        WeightsError: A file is missing.
    """
    if not path.exists():
        raise WeightsError(f"{quoted(path)}: no such file or folder")
    folder, named = (path, None) if path.is_dir() else (path.parent, path)
    file = folder / FILE
    fields = _parse(file) if file.is_symlink() or file.exists() else _EMPTY
    if named and fields.weights and not _same(named, folder / fields.weights):
        fields = _EMPTY
    weights = named or (_named_weights(fields.weights, file) if fields.weights else _only_weights(folder))
    names = _labels(fields.labels, file)
    task = fields.stated_task()
    return Card(
        folder=folder,
        name=fields.name or of_path(named.name.split(".")[0] if named else folder.resolve().name),
        weights=weights,
        version=fields.version,
        sha256=fields.sha256,
        container=fields.container,
        architecture=fields.architecture,
        kwargs=fields.kwargs,
        first_layer=_stated(fields.first_layer),
        head=_stated(fields.head),
        labels=names,
        task=task,
        spec=fields.preprocessing.spec() if fields.preprocessing else None,
        stated=frozenset(fields.preprocessing.model_fields_set if fields.preprocessing else ()),
        golden=tuple(
            _golden(image, tuple(output.name for output in task.outputs) or names, file, f"golden[{number}]")
            for number, image in enumerate(fields.golden)
        ),
    )


def write_golden(folder: Path, golden: Iterable[Golden]) -> Path:
    """Write golden images into the card of `folder`, and return the path of the card.

    The card is created if there is none. Its other content stays as it is. The file is replaced atomically.
    """
    file = folder / FILE
    text = ""
    if file.is_file():
        _parse(file)  # raises CardError before anything is written
        text = _text(file, None).rstrip() + "\n"
    start, end = _span(text, "golden")
    temporary = file.with_name(f".{FILE}.{os.getpid()}")
    temporary.write_text(text[:start] + _yaml({"golden": _answers(golden, folder)}) + text[end:], "utf-8")
    return temporary.replace(file)


def dump(card: Card) -> str:
    """Return the text of a `model.yaml` that, in the same folder, is read as an equal card."""
    values: dict[str, Any] = {
        "name": card.name,
        "version": card.version,
        "weights": os.path.relpath(card.weights, card.folder),
        "sha256": card.sha256,
        "container": card.container,
        "architecture": card.architecture,
        "kwargs": dict(card.kwargs),
        "first_layer": dict(card.first_layer),
        "head": dict(card.head),
        "labels": card.labels and list(card.labels),
        "task": card.task.name,
        "threshold": card.task.threshold,
        "outputs": card.task.outputs_fields(),
        "normalize": card.task.normalize,
        "preprocessing": card.spec and _preprocessing(card.spec, card.stated),
        "golden": _answers(card.golden, card.folder),
    }
    return _yaml({key: value for key, value in values.items() if value or isinstance(value, float)})


def _stated(fields: BaseModel | None) -> dict[str, Any]:
    return fields.model_dump(exclude_unset=True) if fields else {}


def _yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)


def _preprocessing(spec: Spec, stated: Collection[str]) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in {**spec.to_dict(), **({"crop": None} if spec.whole else {})}.items()
        if key in stated
    }


def _answers(golden: Iterable[Golden], folder: Path) -> list[dict[str, Any]]:
    return [
        {
            "image": os.path.relpath(one.image, folder),
            **one.answer(folder),
            **({"recorded": True} if one.recorded else {}),
        }
        for one in golden
    ]


def _span(text: str, key: str) -> tuple[int, int]:
    """Return start and end of the lines of `key` and its value in the YAML mapping `text`."""
    root = yaml.compose(text, documents.Loader)
    for name, value in root.value if isinstance(root, yaml.MappingNode) else ():
        if name.value == key:
            last = value
            while isinstance(last, yaml.CollectionNode) and not last.flow_style and last.value:
                last = last.value[-1][1] if isinstance(last, yaml.MappingNode) else last.value[-1]
            newline = text.find("\n", last.end_mark.index)
            return name.start_mark.index, len(text) if newline < 0 else newline + 1
    return len(text), len(text)


def _same(one: Path, other: Path) -> bool:
    return os.path.isfile(other) and one.samefile(other)  # noqa: PTH113, it takes any name


def _named_weights(name: str, card: Path) -> Path:
    """Return the weights file that a card names.

    It may be a symbolic link to a file outside the folder, as in download caches: that is harmless, since
    only the content of a valid weights file is used.
    """
    weights = card.parent / name
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise CardError(
            f"{card}: weights: must be a file in the folder of the card, but {quoted(name)} is not"
        )
    if not os.path.isfile(weights):  # noqa: PTH113, it takes any name
        raise WeightsError(f"{card}: weights: the file {quoted(weights)} does not exist")
    return weights


def _only_weights(folder: Path) -> Path:
    """Return the only weights file in `folder`, ignoring hidden names such as `..data` of a ConfigMap."""
    files = sorted(
        entry
        for entry in folder.iterdir()
        if (entry.name.endswith(SUFFIXES) or entry.name in USUAL)
        and not entry.name.startswith(".")
        and not _NO_WEIGHTS.fullmatch(entry.name)
        and entry.is_file()
    )
    usual = [folder / name for name in USUAL if folder / name in files]
    if usual and all(entry in usual or _SHARD.fullmatch(entry.name) for entry in files):
        return usual[0]
    if not files and (
        foreign := [one for one in folder.iterdir() if one.suffix in FOREIGN and one.is_file()]
    ):
        return max(foreign, key=lambda one: one.stat().st_size)
    if not files:
        raise WeightsError(f"{folder}: contains no weights file ({', '.join(SUFFIXES)})")
    if len(files) > 1:
        names = ", ".join(entry.name for entry in files)
        raise CardError(
            f"{folder}: there are several weights files ({names}); {FILE} must name its `weights`"
        )
    return files[0]


def _parse(file: Path) -> Fields:
    values = _parsed(file, _text(file, None), documents.parse_yaml)
    if not isinstance(values, dict | None):
        raise CardError(f"{file}: must contain fields, such as `name: digits`")
    try:
        return Fields.model_validate(values or {})
    except ValidationError as error:
        raise CardError(f"{file}: {_first(error)}") from None


def _text(file: Path, within: Path | None) -> str:
    """Return the text of `file`, which must be in the folder `within` unless that is None."""
    try:
        return regular_files.read(file, BYTES, within).decode("utf-8-sig")
    except OSError as error:
        raise CardError(f"{quoted(file, 2 * QUOTED)}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CardError(f"{file}: cannot be parsed: {error}") from error


def _parsed(file: Path, text: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise CardError(f"{file}: {error}") from error


def _first(error: ValidationError) -> str:
    """Return the first error as text: the field, what is wrong, what is allowed."""
    details = error.errors(include_url=False)[0]
    reason = _WRONG_TYPE.get(details["type"]) or details.get("ctx", {}).get("error")
    reason = quoted(reason or details["msg"].removeprefix("Input "), 2 * QUOTED)
    if not details["loc"]:  # an error about several fields
        return reason
    *parents, last = details["loc"]
    named = [part for part in details["loc"] if part not in (LIST, MAPPING)]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in named)
    place = quoted(place.removeprefix("."))
    if details["type"] == "extra_forbidden":
        part = MAPPING if MAPPING in parents else str(parents[0]) if parents else ""
        known = _PARTS[part].model_fields
        close = difflib.get_close_matches(str(last)[:100], known, 1, cutoff=0.5)
        hint = f"did you mean `{close[0]}`?" if close else f"there are {', '.join(known)}"
        return f"{place}: is not a field; {hint}"
    return f"{place}: {reason}"


def _labels(given: labels.LabelFile | tuple[str, ...] | None, card: Path) -> tuple[str, ...] | None:
    if not isinstance(given, labels.LabelFile):
        return given
    file = card.parent / given.file
    names: tuple[str, ...] = _parsed(
        file, _text(file, card.parent), lambda text: labels.read(file.name, text, given.kind)
    )
    return names


def _golden(fields: GoldenImage, names: tuple[str, ...] | None, card: Path, place: str) -> Golden:
    image = _file(fields.image, card, f"{place}.image")
    if fields.kind != "class":
        return Golden(
            image,
            recorded=fields.recorded,
            labels=None
            if fields.labels is None
            else tuple(
                one if isinstance(one, int) else _index(one, names, card, f"{place}.labels")
                for one in fields.labels
            ),
            probabilities=_numbers(fields.probabilities, names, card, f"{place}.probabilities"),
            values=_numbers(fields.values, names, card, f"{place}.values"),
            vector=fields.vector,
            boxes=None
            if fields.boxes is None
            else tuple(
                _box(one, names, card, f"{place}.boxes[{number}]") for number, one in enumerate(fields.boxes)
            ),
            class_map=_file(fields.class_map, card, f"{place}.class_map") if fields.class_map else None,
            agreement=fields.agreement,
        )
    index = fields.class_index
    if index is None:
        assert fields.label is not None
        index = _index(fields.label, names, card, f"{place}.label", "; give class_index instead")
    elif names is not None and index >= len(names):
        raise CardError(f"{card}: {place}.class_index: must be less than {len(names)}, the number of labels")
    return Golden(image, index, fields.probability, recorded=fields.recorded)


def _file(name: str, card: Path, place: str) -> Path:
    """The image file called `name`, in the card's folder."""
    file = card.parent / name
    try:
        regular_files.check(file, regular_files.IMAGE, card.parent)
    except OSError as error:
        raise CardError(f"{card}: {place}: {quoted(file)}: {error.strerror}") from error
    return file


def _box(given: GoldenObject, names: tuple[str, ...] | None, card: Path, place: str) -> GoldenBox:
    if given.label is not None and names is not None:
        _index(given.label, names, card, f"{place}.label", "; give class_index instead")
    # The label is not converted to an index: the model's labels may include a background class.
    return GoldenBox(given.class_index, given.box, given.score, given.iou, given.label)


def _index(label: str, names: tuple[str, ...] | None, card: Path, place: str, advice: str = "") -> int:
    found = [number for number, name in enumerate(names or ()) if name == label]
    if len(found) != 1:
        problem = "is not unique" if found else "is missing"
        advice = advice or "; give its index instead"
        raise CardError(f"{card}: {place}: the label {quoted(repr(label))} {problem}{advice}")
    return found[0]


def _numbers(
    given: tuple[float | None, ...] | dict[str, float] | None,
    names: tuple[str, ...] | None,
    card: Path,
    place: str,
) -> tuple[float | None, ...] | None:
    """Return numbers in the order of `names`; if `given` has only some by name, None for the others."""
    if not isinstance(given, dict):
        return given
    known = {
        _index(name, names, card, place, "; name them in the card"): value for name, value in given.items()
    }
    return tuple(known.get(number) for number in range(len(names or ())))
