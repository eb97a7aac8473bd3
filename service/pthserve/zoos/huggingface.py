"""Hugging Face: folders that `save_pretrained` wrote, with transformers' classes and no code of the folder.

`config.json` is data: of it only what the class of the configuration knows is taken over. The weights are
those that `files.weights` read. Nothing is fetched: the class is given its configuration and its weights, and
no name or path.
"""

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pthserve.certainty import Inferred, Origin
from pthserve.errors import ArchitectureError, CardError
from pthserve.files import documents, regular_files
from pthserve.files import labels as label_files
from pthserve.files.stated_task import Hint
from pthserve.images.spec import Spec
from pthserve.zoos.base import DEFAULT_SIZE, Architecture, Source

FILE = "config.json"
BYTES = 4 * 2**20
"""Most bytes of a file of JSON."""


_WEIGHTS = ("model.", "pytorch_model.", "model-", "pytorch_model-")
"""How the names begin that `save_pretrained` gives to files of weights."""


class HuggingFace:
    """Image classifiers, detectors and segmentation models of transformers; see `Zoo`."""

    def claims(self, source: Source) -> bool:
        """Whether a configuration of transformers lies beside the weights, and the card names no other."""
        if source.path is None or source.architecture or not source.state_dict:
            return False
        values = _read(source.path.parent / FILE)
        if "architectures" not in values and not source.path.name.startswith(_WEIGHTS):
            return False  # a configuration that lies there for its labels
        return "model_type" in values and "pretrained_cfg" not in values and "architecture" not in values

    def build(self, source: Source) -> Architecture:
        """The model of the folder, which answers with its logits; see `Zoo`."""
        assert source.path is not None
        folder = source.path.parent
        values = _read(folder / FILE)
        if find_spec("transformers") is None:
            raise ArchitectureError(
                f"{folder / FILE}: is a model of Hugging Face's transformers, which is not installed; "
                "pip install pthserve[huggingface]"
            )
        with _quiet():
            from pthserve.zoos import transformers_models, transformers_objects

            name, config, made, kind = transformers_models.choose(values)
            model = transformers_models.load(name, made, config, source.state_dict)
            spec, preprocessing = _preprocessing(folder, values, source.spec, config)
        labels = _labels(values, folder / FILE)
        task = None
        if kind == "classification":
            module: Any = transformers_models.Logits(model).eval()
        else:
            module, task = transformers_objects.wrapped(model, values["model_type"], config, kind)
        channels = int(getattr(config, "num_channels", 3) or 3)
        if channels not in (1, 3):
            raise ArchitectureError(f"{name} has {channels} input channels; an image has 1 or 3 of them")
        outputs = int(config.num_labels)
        if labels and len(labels) != outputs:
            raise CardError(f"{folder / FILE}: id2label: has {len(labels)} labels for {outputs} classes")
        return Architecture(
            f"huggingface/{values['model_type']}",
            module,
            num_classes=outputs,
            prefix="",
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            input_size=spec.crop[0] if spec else DEFAULT_SIZE,
            channels=channels,
            inferred=(Inferred("architecture", f"{name} of {FILE}", Origin.FILE),),
            spec=spec,
            hint=None if task else _hint(values.get("problem_type"), outputs),
            task=task,
            preprocessing=preprocessing,
            labels=labels,
        )


def _hint(problem: Any, outputs: int) -> Hint:
    """What the configuration says about the task; a classifier without `problem_type` has one label."""
    match problem:
        case "multi_label_classification":
            return Hint("multilabel" if outputs > 1 else "binary", f"{FILE} says problem_type {problem}")
        case "regression":
            return Hint("regression", f"{FILE} says problem_type {problem}")
    return Hint("classification", f"{FILE} is of an image classifier")


def _read(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; empty where there is none. Raises CardError where it cannot be read."""
    if not file.is_file():
        return {}
    try:
        values = documents.parse_json(regular_files.read(file, BYTES).decode("utf-8-sig"))
    except OSError as error:
        raise CardError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CardError(f"{file}: {error}") from error
    if not isinstance(values, dict):
        raise CardError(f"{file}: must be a JSON object")
    return values


def _preprocessing(
    folder: Path, values: Mapping[str, Any], stated: Spec | None, config: Any
) -> tuple[Spec | None, Inferred | None]:
    from pthserve.zoos import image_processor

    if stated is not None and not stated.assumed:
        return None, None
    settings = _read(folder / image_processor.FILE)
    family, channels = values["model_type"], int(getattr(config, "num_channels", 3) or 3)
    if settings:
        spec, inferred = image_processor.read(settings, family)
        return image_processor.in_channels(spec, channels), inferred
    published = image_processor.PUBLISHED.get(family)
    spec, _ = image_processor.read(published or {}, family)
    spec = image_processor.in_size(spec, getattr(config, "image_size", None))
    spec = replace(image_processor.in_channels(spec, channels), assumed=True)
    source = f"as for the published models of {family}" if published else "the default of transformers"
    return spec, Inferred(
        "preprocessing",
        f"{spec.words()}, {source}, as there is no {image_processor.FILE}",
        Origin.DEFAULT,
        f"preprocessing: {spec.to_card()}",
    )


def _labels(values: Mapping[str, Any], file: Path) -> tuple[str, ...] | None:
    """The labels of `id2label`; None where they are the placeholders of transformers."""
    found = values.get("id2label")
    if not isinstance(found, Mapping) or not found:
        return None
    try:
        labels = label_files.parse(
            {str(key): str(value) for key, value in found.items()}, "JSON", label_files.IDX_TO_CLASS, 0
        )
    except ValueError as error:
        raise CardError(f"{file}: id2label: {error}") from error
    return None if label_files.are_placeholders(labels) else labels


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and its own log, which `ArchitectureError` says better."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
