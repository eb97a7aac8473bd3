"""Pack: do once, with torch, what a service would do at each start, and keep it as a folder; see `packed`.

The same input makes the same bytes: the weights, the card, the images, the plan where one is named, the
versions of the libraries and the kind of processor.
"""

import shutil
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from uuid import uuid4

import numpy as np

from pthserve.errors import EngineError, PackError
from pthserve.files import regular_files
from pthserve.files.golden import Golden
from pthserve.images.preprocess import Prepared
from pthserve.images.spec import Spec
from pthserve.loading import packed
from pthserve.loading.golden import apply_golden_policy
from pthserve.loading.load import Built, build, examiner, golden_images
from pthserve.loading.packed import Packed
from pthserve.options import ModelOptions
from pthserve.planning import crops
from pthserve.planning.agreement import scores
from pthserve.planning.candidates import Candidate, EngineFactory
from pthserve.planning.examiner import Examiner
from pthserve.planning.tune import pass_seconds, tune
from pthserve.sources.transfer import Progress

MAKERS = ("pthserve", "openvino", "torch", "torchvision", "nncf")
"""Whose versions decide what a pack's bytes are."""


def pack(source: str, output: Path, settings: ModelOptions, progress: Progress | None = None) -> Packed:
    """Build the model that `source` names and put it into `output`, a folder which appears when it is whole.

    A packed model that is there is replaced. int8 is packed where the settings ask for that precision.

    Raises:
        ModelError: it cannot be built, its answers disagree with PyTorch's, or the golden images' do.
        PackError: `output` is something else than a packed model, or cannot be written.
    """
    if output.exists() and not packed.is_packed(output):
        raise PackError(f"{output}: exists and is not a packed model; choose another folder")
    settings = settings.model_copy(update={"device": "cpu", "engine": "openvino"})
    built = build(source, settings, progress)
    if built.unpackable:
        raise PackError(f"{source}: cannot be packed: {built.unpackable}; serve the weights themselves")
    part = output.with_name(f".{output.name}.{uuid4().hex}")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
        try:
            made = write(built, part, settings)
            _put(part, output)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise PackError(f"{output}: cannot be written: {error.strerror}") from error
    return replace(made, folder=output)


def write(built: Built, folder: Path, settings: ModelOptions, *, check_golden: bool = True) -> Packed:
    """Write `built` into `folder`, which is there and empty, for a CPU with OpenVINO.

    check_golden: False leaves it to whoever loads the packed model to apply the policy on golden images.
    Raises what `pack` does, but OSError where `folder` cannot be written to.
    """
    spec, digest = built.spec, built.weights.digest
    golden_images(built.card.golden, spec)  # before the rest takes its time
    architecture = built.architecture
    engines = EngineFactory(architecture.module, spec, settings, built.task, graph=architecture.graph)
    images = _proof_images(built.card.golden, spec, few=engines.heavy)
    int8 = settings.precision == "int8"
    proof = examiner(engines, built.card.golden, built.labels)
    with proof.fp32() as engine:
        reference = scores(built.task, engine, (image[None] for image in images))
    proof.prepare([Candidate("openvino", "int8" if int8 else "fp32", "cpu", settings.cpus)])
    packable = replace(engines, module=None)  # as the packed model is served
    auto = settings.model_copy(update={"precision": "auto"})
    proof.examine_all(replace(packable, options=auto).candidates())
    plan, engine = tune(replace(proof, engines=packable), digest)
    if plan.digest != digest:  # a plan that was measured has its own evidence
        plan = replace(plan, evidence=tuple(proof.evidence.values()))

    quantized = engines.quantized
    made = Packed(
        folder,
        name=settings.name or built.card.name,
        version=built.card.version,
        architecture=built.architecture.name,
        parameters=built.architecture.parameters,
        labels=built.labels,
        spec=spec,
        plan=plan,
        digest=digest,
        golden=_copied(built.card.golden, folder),
        task=built.task,
        inferred=built.inferred,
        int8=quantized.how if quantized else None,
        made_with=_versions(),
    )
    if check_golden:
        apply_golden_policy(made.model(engine, plan), settings)
    engine.close()
    packed.write(made, engines.graph, quantized and quantized.graph, images, reference)
    return replace(made, speedup=_speedup(replace(proof, engines=packable))) if quantized else made


def _proof_images(golden: Sequence[Golden], spec: Spec, *, few: bool = False) -> Prepared:
    """What a pack has PyTorch's answers to: the golden images, or else the samples that ship; all cropped.

    few: at most two of them, where a pass is long: they are compared at each start.
    """
    most = 2 if few else None
    if golden:
        return np.stack(golden_images(golden[:most], replace(spec, whole=False)))
    return crops.sample_images(spec)[:most]


def _speedup(proof: Examiner) -> float | None:
    """How many times as fast int8 is as the other precisions that agree, one image after the other."""
    auto = proof.engines.options.model_copy(update={"precision": "auto"})
    image = next(iter(proof.crops))[:1]
    seconds: dict[str, float] = {}
    for candidate in replace(proof.engines, options=auto).candidates():
        with suppress(EngineError), closing(proof.engines.make(candidate)) as engine:
            if not proof.refusal(engine):
                seconds[candidate.precision] = pass_seconds(engine, image)
    fastest = seconds.pop("int8", None)
    return min(seconds.values()) / fastest if fastest and seconds else None


def _copied(golden: Sequence[Golden], folder: Path) -> tuple[Golden, ...]:
    """`golden` with its images in `folder`."""
    into = folder / packed.GOLDEN
    if golden:
        into.mkdir()
    copies = []
    for number, one in enumerate(golden):
        image = into / f"{number}-{one.image.name}"
        image.write_bytes(one.read())
        class_map = None
        if one.class_map is not None:
            class_map = into / f"{number}-map-{one.class_map.name}"
            class_map.write_bytes(regular_files.read(one.class_map, regular_files.IMAGE))
        copies.append(replace(one, image=image, class_map=class_map))
    return tuple(copies)


def _versions() -> dict[str, str]:
    found = {}
    for name in MAKERS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _put(part: Path, output: Path) -> None:
    """Rename `part` to `output`, and away with the packed model that was there."""
    old = part.with_suffix(".old")
    if output.exists():
        output.rename(old)
    part.rename(output)
    shutil.rmtree(old, ignore_errors=True)
