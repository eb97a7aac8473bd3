"""Load: anything that a user may name to a Model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pthserve.certainty import Inferred, Origin
from pthserve.errors import ArchitectureError, CardError, PackError, RequestError, WeightsError
from pthserve.files.golden import Golden
from pthserve.images.preprocess import OWN_MAX_PIXELS, Pixels, crop
from pthserve.images.spec import Spec
from pthserve.loading import packed
from pthserve.loading.model import Model
from pthserve.loading.packed import Packed
from pthserve.loading.settle import settle
from pthserve.options import ModelOptions
from pthserve.planning import agreement
from pthserve.planning.candidates import EngineFactory
from pthserve.planning.tune import tune

if TYPE_CHECKING:  # a packed model needs none of them, nor what they import
    from pthserve.files.card import Card
    from pthserve.files.weights import Progress, Weights
    from pthserve.zoos.base import Architecture


@dataclass(frozen=True, slots=True)
class Built:
    """What a source holds, before an engine is chosen for it."""

    card: "Card"
    weights: "Weights"
    architecture: "Architecture"
    labels: tuple[str, ...]
    spec: Spec
    inferred: tuple[Inferred, ...]

    @property
    def labels_assumed(self) -> bool:
        """Whether nobody named the classes, so that the labels are their indices."""
        return any(one.subject == "labels" and one.origin is Origin.ASSUMED for one in self.inferred)


def build(source: str, settings: ModelOptions, progress: "Progress | None" = None) -> Built:
    """The module that `source` holds, and what is known of it; see `load`."""
    path = Path(source)
    if packed.is_packed(path):
        raise PackError(f"{path}: is already packed; give the original weights file")
    from pthserve.files import card, weights
    from pthserve.zoos import own

    described = card.read(path)
    allowed = settings.code_modules
    if described.architecture and own.is_code(described.architecture):
        own.check(described.architecture, allowed)  # before the weights are read, which takes longer
    read = weights.read(described.weights, settings.sha256 or described.sha256, progress, described.container)

    from pthserve.zoos import architecture

    found = architecture.build(
        read.state_dict,
        described.architecture,
        described.kwargs,
        allowed,
        first_layer=described.first_layer,
        head=described.head,
        spec=described.spec,
        path=described.weights,
        format=read.format,
        content=read.content,
        beside=read.beside,
    )
    if found.num_classes < 2:
        raise ArchitectureError(
            f"this {found.name} has one output (sigmoid); pthserve needs two or more classes"
        )
    if found.activation == "sigmoid":
        raise ArchitectureError(
            f"{found.task_hint}, so that several labels may apply to an image, and one class of several is "
            "served; export the model without the sigmoid where one class applies"
        )
    spec = _spec(described, found)
    labels, inferred_labels = _labels(described, read, found)
    inferred = (*read.inferred, *found.inferred, _inferred_spec(spec, found), inferred_labels)
    if settings.golden != "off" and found.preprocessing is None:
        spec, settled = settle(found, _specs(described, spec), described.golden, settings.tolerance)
        inferred = tuple(settled.get(one.subject, one) for one in inferred)
    return Built(described, read, found, labels, spec, inferred)


def load(
    source: str, settings: ModelOptions, progress: "Progress | None" = None, *, measure: bool = False
) -> Model:
    """The model that `source` names: a weights file, a folder with one and perhaps a card, or a pack.

    Args:
        progress: called as the weights are read.
        measure: measure a packed model too, which else is run by a plan that fits, or by what is usual here.

    Raises:
        ModelError: the message says what is wrong, where, and what to do.
    """
    path = Path(source)
    if packed.is_packed(path):
        return _unpacked(packed.read(path), settings, measure)
    built = build(source, settings, progress)
    described, found = built.card, built.architecture
    images = proof_images(described.golden, built.spec)
    plan, engine = tune(
        EngineFactory(found.module, built.spec, settings, graph=found.graph), built.weights.digest, images
    )
    return Model(
        forward=engine,
        labels=built.labels,
        spec=built.spec,
        plan=plan,
        digest=built.weights.digest,
        name=settings.name or described.name,
        version=described.version,
        architecture=found.name,
        parameters=found.parameters,
        golden=described.golden,
        inferred=built.inferred,
        source=path,
        options=settings,
    )


def _unpacked(model: Packed, settings: ModelOptions, measure: bool) -> Model:
    if settings.sha256 not in (None, model.digest):
        raise WeightsError(
            f"{model.folder}: was packed from weights with SHA-256 {model.digest}, but {settings.sha256} is "
            "expected"
        )
    images, reference = model.proof()
    options = settings if measure else settings.model_copy(update={"tune_budget": 0.0})
    engines = EngineFactory(None, model.spec, options, graph=model.graph(), quantized=model.quantized())
    plan, engine = tune(
        engines, model.digest, images, known=None if measure else model.plan, reference=reference
    )
    served = model.model(engine, plan)
    return replace(served, name=settings.name or served.name, source=model.folder, options=settings)


def _labels(described: "Card", read: "Weights", found: "Architecture") -> tuple[tuple[str, ...], Inferred]:
    """The card's labels; or those that lie beside the weights; or the classes' numbers."""
    from pthserve.files import labels

    setting, count = "labels: labels.txt", found.num_classes
    if described.labels is not None:
        if len(described.labels) != count:
            raise CardError(
                f"{described.file}: there are {len(described.labels)} labels, but the model has "
                f"{count} classes"
            )
        return described.labels, Inferred("labels", f"{count} of the card", Origin.CARD, setting)
    if beside := labels.of_metadata(read.metadata, count):
        names, key = beside
        return names, Inferred("labels", f"{count} under `{key}`", Origin.FILE, setting)
    if found.labels is not None:
        return found.labels, Inferred("labels", f"{count} of a file beside it", Origin.FILE, setting)
    value = f"the class indices, 0 to {count - 1}"
    return tuple(map(str, range(count))), Inferred("labels", value, Origin.ASSUMED, setting)


def _spec(described: "Card", found: "Architecture") -> Spec:
    """The card's spec; where it leaves out the sizes, it and what else is left out are the architecture's."""
    spec = described.spec
    if spec is None or spec.assumed:
        stated = {name: getattr(spec, name) for name in described.stated}
        usual = _usual(found)
        spec = replace(usual, **stated, assumed=usual.assumed or not found.preprocessing)
    if spec.channels != found.channels:
        raise CardError(
            f"{described.file}: preprocessing produces {spec.channels} channels, but "
            f"the model needs {found.channels}"
        )
    return spec


def _specs(described: "Card", spec: Spec) -> list[Spec]:
    """`spec`, and what else images may have been preprocessed with where the card does not say."""
    if not spec.assumed:
        return [spec]
    size = min(spec.crop)
    common = replace(spec, resize=round(size * 256 / 224), interpolation=Spec().interpolation)
    if spec.channels == Spec().channels:
        common = replace(common, mean=Spec().mean, std=Spec().std)
    squashed = replace(spec, resize=spec.crop)
    stated = {name: getattr(spec, name) for name in described.stated}
    return list(dict.fromkeys(replace(one, **stated) for one in (spec, common, squashed)))


def _usual(found: "Architecture") -> Spec:
    """The preprocessing that the architecture is trained with by default, in its size and channels."""
    preset, size = found.spec or Spec(), found.input_size
    if found.preprocessing:
        return preset
    if preset.crop != (size, size):
        preset = replace(preset, resize=_scaled(preset, size), crop=(size, size))
    if preset.channels > found.channels:
        mean, std = (round(sum(values) / len(values), 3) for values in (preset.mean, preset.std))
        preset = replace(preset, mean=(mean,), std=(std,))
    return preset


def _scaled(preset: Spec, size: int) -> int | tuple[int, int] | None:
    """The preset's `resize`, for a crop of `size` pixels instead of the preset's."""
    match preset.resize:
        case None:
            return None
        case int(side):
            return round(size * side / min(preset.crop))
        case height, width:
            return round(size * height / preset.crop[0]), round(size * width / preset.crop[1])


def _inferred_spec(spec: Spec, found: "Architecture") -> Inferred:
    preset, size = found.spec, found.input_size
    if found.preprocessing and spec == preset:
        return found.preprocessing
    usual = preset is not None and preset.crop == (size, size) and preset.channels == spec.channels
    origin = Origin.CARD if not spec.assumed else Origin.DEFAULT if usual else Origin.ASSUMED
    return Inferred("preprocessing", spec.words(), origin, f"preprocessing: {spec.to_card()}")


def proof_images(golden: Sequence[Golden], spec: Spec) -> Pixels:
    """What an engine must answer as the reference does: the golden images, or else the samples that ship."""
    if not golden:
        return agreement.sample_images(spec)
    images = []
    for one in golden:
        try:
            images.append(crop(one.read(), spec, max_pixels=OWN_MAX_PIXELS))
        except (OSError, RequestError) as error:
            raise CardError(f"{one.image}: the golden image cannot be read: {error}") from error
    return np.stack(images)
