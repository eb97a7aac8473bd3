"""Load: anything that a user may name to a Model."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pthserve.certainty import Inferred, Origin
from pthserve.errors import (
    AmbiguousArchitecture,
    CardError,
    EngineError,
    PackError,
    RequestError,
    WeightsError,
)
from pthserve.files.golden import Golden
from pthserve.files.stated_task import StatedTask
from pthserve.images.preprocess import OWN_MAX_PIXELS, Prepared, crop
from pthserve.images.spec import Spec
from pthserve.loading import packed
from pthserve.loading.golden import GoldenImages
from pthserve.loading.model import Model
from pthserve.loading.packed import Packed
from pthserve.loading.settle import Reading, settle
from pthserve.options import ModelOptions
from pthserve.planning import crops, validation
from pthserve.planning.agreement import Evidence
from pthserve.planning.candidates import EngineFactory, only_torch
from pthserve.planning.examiner import Examiner, Proof
from pthserve.planning.plan import Plan
from pthserve.planning.tune import tune
from pthserve.sources.fetched import fetched
from pthserve.tasks.base import Task
from pthserve.tasks.choice import choose, make, placed
from pthserve.tasks.classification import CLASSIFICATION

if TYPE_CHECKING:  # a packed model needs none of them, nor what they import
    from pthserve.files.card import Card
    from pthserve.files.weights import Weights
    from pthserve.sources.transfer import Progress
    from pthserve.zoos.base import Architecture

_MOST_CHOICES = 8
"""Most architectures that are built to see which of them agrees with the golden images."""


@dataclass(frozen=True, slots=True)
class Built:
    """What a source holds, before an engine is chosen for it."""

    card: "Card"
    weights: "Weights"
    architecture: "Architecture"
    task: Task
    labels: tuple[str, ...]
    spec: Spec
    inferred: tuple[Inferred, ...]

    @property
    def unpackable(self) -> str:
        """Why it cannot be packed, so that only its weights can be served; or ""."""
        return only_torch(self.architecture.module, self.task, self.spec)

    @property
    def labels_assumed(self) -> bool:
        """Whether nobody named the classes, so that the labels are their indices."""
        return any(one.subject == "labels" and one.origin is Origin.ASSUMED for one in self.inferred)


def build(source: str, settings: ModelOptions, progress: "Progress | None" = None) -> Built:
    """The module that `source` holds, and what is known of it; see `load`."""
    path = fetched(source, settings, progress)
    if packed.is_packed(path):
        raise PackError(f"{path}: is already packed; give the original weights file")
    return _built(path, settings, progress)


def _built(path: Path, settings: ModelOptions, progress: "Progress | None") -> Built:
    """The module in a weights file, or in a folder with one."""
    from pthserve.files import card, weights
    from pthserve.zoos import own

    described = with_architecture(card.read(path), settings.architecture)
    allowed = settings.code_modules
    if described.architecture and own.is_code(described.architecture):
        own.check(described.architecture, allowed)  # before the weights are read, which takes longer
    read = weights.read(described.weights, settings.sha256 or described.sha256, progress, described.container)

    ambiguous = None
    try:
        readings = [_reading(described, read, described.architecture, settings)]
    except AmbiguousArchitecture as error:
        readings, ambiguous = _readings(error, described, read, settings), error
    golden = described.golden if settings.golden != "off" else ()
    settled = settle(readings, golden, settings.tolerance, ambiguous)
    found, spec = settled.found, settled.spec
    task = placed(settled.task, spec, described.file)
    if task.golden_kind == "labels":
        golden = tuple(
            one.of_labels(found.num_classes) if one.kind == "class" else one for one in described.golden
        )
        described = replace(described, golden=golden)
    labels, inferred_labels = _labels(described, read, task, found)
    inferred = (
        *read.inferred,
        *found.inferred,
        _inferred_spec(spec, found),
        settled.inferred["task"],
        *inferred_labels,
    )
    inferred = tuple(settled.inferred.get(one.subject, one) for one in inferred)
    return Built(described, read, found, task, labels, spec, inferred)


def _reading(described: "Card", read: "Weights", name: str | None, settings: ModelOptions) -> Reading:
    """The architecture called `name`, and what else the file leaves open."""
    name_of_task = described.task.name if settings.task == "auto" else settings.task
    stated = replace(described.task, name=name_of_task)
    found = _architecture(described, read, name, stated, settings.code_modules)
    try:
        task, inferred = choose(stated, found.num_classes, found.hint, found.task_hint, found.task)
    except CardError as error:
        raise CardError(f"{described.weights}: {error}") from None
    tasks = [task]
    unstated = settings.task == "auto" and described.task.name is None and found.hint is None
    if unstated and task is CLASSIFICATION and all(one.probability is not None for one in described.golden):
        tasks.append(make("multilabel", described.task, found.num_classes))
    return Reading(found, _specs(described, found), tasks, inferred)


def _readings(
    error: AmbiguousArchitecture, described: "Card", read: "Weights", settings: ModelOptions
) -> list[Reading]:
    """Those of the architectures that the file may be of; raises `error` where nothing can choose one."""
    if settings.golden == "off" or not described.golden or len(error.choices) > _MOST_CHOICES:
        raise error
    return [_reading(described, read, name, settings) for name, *_ in error.choices]


def _architecture(
    described: "Card", read: "Weights", name: str | None, stated: StatedTask, allowed: Collection[str] = ()
) -> "Architecture":
    from pthserve.zoos import architecture

    return architecture.build(
        read.state_dict,
        name,
        described.kwargs,
        allowed,
        first_layer=described.first_layer,
        head=described.head,
        spec=described.spec,
        path=described.weights,
        metadata=read.metadata,
        format=read.format,
        content=read.content,
        beside=read.beside,
        task=stated,
        labels=described.labels,
    )


def with_architecture(described: "Card", name: str | None) -> "Card":
    """The card with the architecture that an option names; the card's arguments are for its own."""
    if name is None or name == described.architecture:
        return described
    kwargs = {} if described.architecture else described.kwargs
    return replace(described, architecture=name, kwargs=kwargs)


def load(
    source: str,
    settings: ModelOptions,
    progress: "Progress | None" = None,
    *,
    measure: bool = False,
    sparing: bool = False,
) -> Model:
    """The model that `source` names: a weights file, a folder with one and perhaps a card, a pack, or the
    address of one of these.

    Args:
        progress: called as the weights are read.
        measure: measure a packed model too, which else is run by a plan that fits, or by what is usual here.
        sparing: save memory, since another model is served meanwhile; see `Completes`.

    Raises:
        ModelError: the message says what is wrong, where, and what to do.
    """
    path = fetched(source, settings, progress)
    if packed.is_packed(path):
        return unpacked(packed.read(path), settings, measure=measure, sparing=sparing)
    built = _built(path, settings, progress)
    described, found, now = built.card, built.architecture, _with_threads(settings)
    golden_images(described.golden, built.spec)  # before the rest takes its time
    engines = EngineFactory(found.module, built.spec, now, built.task, found.graph, sparing=sparing)
    plan, engine = tune(examiner(engines, described.golden, built.labels), built.weights.digest)
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
        task=built.task,
        inferred=built.inferred,
        int8=engines.quantized.how if engines.quantized and plan.precision == "int8" else None,
        source=path,
        options=settings,
        threads_per_cpu=plan.threads / now.cpus,
    )


def _with_threads(settings: ModelOptions) -> ModelOptions:
    """`settings` with the number of threads as it is now: the limit may change while a model is loaded."""
    return settings.model_copy(update={"threads": settings.cpus})


def examiner(
    engines: EngineFactory,
    golden: Sequence[Golden],
    labels: tuple[str, ...],
    *,
    proof: Proof | None = None,
    known: Sequence[Evidence] = (),
) -> Examiner:
    """What compares the engines of a model with fp32 PyTorch, on the images that its options name.

    Args:
        golden: the golden images, which an engine must give their answers unless the policy is `off`.
        proof: PyTorch's answers of a packed model; known: its evidence.

    Raises:
        EngineError: these images cannot be read, or there is nothing that they could decide.
    """
    options, spec, task = engines.options, engines.spec, engines.task
    check = None
    if golden and options.golden != "off":
        images = GoldenImages(golden, spec, task, labels, options.tolerance, options.decode)
        check = images.disagreements
    if engines.only_torch:
        if options.validation is not None or options.accuracy_drop is not None:
            raise EngineError(
                "--validation and --max-accuracy-drop are for a choice of engines and precisions, but "
                f"{engines.only_torch}; leave them out"
            )
        compared = replace(crops.of_package((), spec), fewest=0)
    else:
        compared = validation.crops(options, golden, spec, labels if task.golden_kind == "class" else ())
        if engines.heavy:
            compared = replace(compared, fewest=crops.FEW)
    return Examiner(engines, compared, proof, known, check)


def unpacked(
    model: Packed,
    settings: ModelOptions,
    *,
    measure: bool = False,
    known: Plan | None = None,
    sparing: bool = False,
) -> Model:
    """The model that was packed.

    measure, sparing: as for `load`. known: a plan for it, which is used where it fits; by default the pack's,
    where nothing is to be measured.
    """
    if settings.sha256 not in (None, model.digest):
        raise WeightsError(
            f"{model.folder}: was packed from weights with SHA-256 {model.digest}, but {settings.sha256} is "
            "expected"
        )
    if settings.task not in ("auto", model.task.name):
        raise PackError(
            f"{model.folder}: was packed for the task {model.task.name}, not {settings.task}; pack the "
            f"weights again with --task {settings.task}"
        )
    now = _with_threads(settings)
    options = now if measure else now.model_copy(update={"tune_budget": 0.0})
    engines = EngineFactory(None, model.spec, options, model.task, model.graph(), model.quantized(), sparing)
    proof = examiner(engines, model.golden, model.labels, proof=model.proof(), known=model.plan.evidence)
    if known is None and not measure:
        known = model.plan
    try:
        plan, engine = tune(proof, model.digest, known=known)
    except EngineError as error:
        raise EngineError(f"{model.folder}: {error}") from error
    served = model.model(engine, plan)
    return replace(
        served,
        name=settings.name or served.name,
        source=model.folder,
        options=settings,
        threads_per_cpu=plan.threads / now.cpus,
    )


def _labels(
    described: "Card", read: "Weights", task: Task, found: "Architecture"
) -> tuple[tuple[str, ...], tuple[Inferred, ...]]:
    """The card's labels; or those that lie beside the weights; or those that the task has without any."""
    from pthserve.files import labels

    setting = "labels: labels.txt"
    try:
        names = task.labels(described.labels, found.num_classes)
    except ValueError as error:
        raise CardError(f"{described.file}: {error}") from None
    count = len(names)
    if not task.has_classes:
        return names, ()
    if described.labels is not None:
        return names, (Inferred("labels", f"{count} of the card", Origin.CARD, setting),)
    if beside := labels.of_metadata(read.metadata, count):
        names, key = beside
        return names, (Inferred("labels", f"{count} under `{key}`", Origin.FILE, setting),)
    if found.labels is not None and len(found.labels) == count:
        return found.labels, (Inferred("labels", f"{count} of the model's files", Origin.FILE, setting),)
    if found.usual_labels is not None:
        value = f"{count} of the library's own weights, such as {found.usual_labels[-1]}"
        return found.usual_labels, (Inferred("labels", value, Origin.ASSUMED, setting),)
    numbered = names == tuple(map(str, range(count)))
    value = f"the class indices, 0 to {count - 1}" if numbered else ", ".join(names)
    return names, (Inferred("labels", value, Origin.ASSUMED, setting),)


def _specs(described: "Card", found: "Architecture") -> list[Spec]:
    """How images are preprocessed, and where the card does not say, how else they may have been.

    The card's spec; where it leaves out the sizes, it and what else is left out are the architecture's.
    """
    spec = described.spec
    stated = {name: getattr(spec, name) for name in described.stated}
    if spec is None or spec.assumed:
        spec = replace(_usual(found), **stated)
    if spec.channels != found.channels:
        raise CardError(
            f"{described.file}: preprocessing produces {spec.channels} channels, but "
            f"the model needs {found.channels}"
        )
    preprocessing_known = found.preprocessing is not None and not found.preprocessing.uncertain
    if not spec.assumed or preprocessing_known or found.task:
        return [spec]
    size = min(spec.crop)
    common = Spec(resize=round(size * 256 / 224), crop=spec.crop, assumed=True)
    if spec.channels != common.channels:
        common = replace(common, mean=spec.mean, std=spec.std)
    squashed = replace(spec, resize=spec.crop)
    return list(dict.fromkeys(replace(one, **stated) for one in (spec, common, squashed)))


def _usual(found: "Architecture") -> Spec:
    """The preprocessing that the architecture is trained with by default, in its size and channels."""
    preset, size = found.spec or Spec(assumed=True), found.input_size
    if found.preprocessing:
        return preset
    if preset.crop[0] != size:
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
    usual = preset is not None and preset.crop[0] == size and preset.channels == spec.channels
    stated = Origin.FILE if preset is not None and not preset.assumed and spec == preset else Origin.CARD
    origin = stated if not spec.assumed else Origin.DEFAULT if usual else Origin.ASSUMED
    return Inferred("preprocessing", spec.words(), origin, f"preprocessing: {spec.to_card()}")


def golden_images(golden: Sequence[Golden], spec: Spec) -> list[Prepared]:
    """The golden images of a card as the model sees them; raises CardError for one that cannot be read."""
    images = []
    for one in golden:
        try:
            images.append(crop(one.read(), spec, max_pixels=OWN_MAX_PIXELS))
        except (OSError, RequestError) as error:
            raise CardError(f"{one.image}: the golden image cannot be read: {error}") from error
    return images
