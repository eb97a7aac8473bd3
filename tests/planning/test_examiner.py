"""Each engine is examined once, against fp32 PyTorch or what answers as it does."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch import nn

from pthserve.engines.base import Engine
from pthserve.engines.cpu import instruction_sets, library
from pthserve.engines.openvino_graph import convert
from pthserve.engines.quantized_graph import Quantization
from pthserve.errors import EngineError
from pthserve.images.preprocess import Pixels
from pthserve.images.spec import Spec
from pthserve.options import ModelOptions
from pthserve.planning import examiner as examining
from pthserve.planning.agreement import Evidence
from pthserve.planning.candidates import Candidate, EngineFactory, Quantized
from pthserve.planning.crops import COUNT, Crops, of_package, sample_images
from pthserve.planning.examiner import Examiner, Proof
from pthserve.tasks.classification import CLASSIFICATION

SPEC = Spec(crop=(32, 32))
EVERYTHING = Quantization(7, 1, {}, 1.0, "fp32", 0, "")
FP32, INT8 = Candidate("openvino", "fp32", "cpu", 1), Candidate("openvino", "int8", "cpu", 1)

Build = Callable[[str, Spec], nn.Module]


@pytest.fixture(scope="module")
def module(build: Build) -> nn.Module:
    return build("tiny", SPEC)


@pytest.fixture(scope="module")
def graph(module: nn.Module) -> Any:
    return convert(module, SPEC)


class Counted(Crops):
    """Crops that count how many were made."""

    made = 0

    def __iter__(self) -> Iterator[Pixels]:
        for batch in super().__iter__():
            self.made += len(batch)
            yield batch


def made(module: nn.Module | None, graph: Any, quantized: Any = None, **options: Any) -> Examiner:
    """An examiner, whose graph at int8 is `quantized`, at any precision."""
    int8 = Quantized(quantized, EVERYTHING) if quantized is not None else None
    engines = EngineFactory(module, SPEC, ModelOptions(threads=1, **options), CLASSIFICATION, graph, int8)
    return Examiner(engines, Counted(of_package((), SPEC).photos, SPEC, "sample images"))


def refusal(examiner: Examiner, candidate: Candidate) -> str:
    engine = examiner.engines.make(candidate)
    try:
        return examiner.refusal(engine)
    finally:
        engine.close()


def crops_made(examiner: Examiner) -> int:
    assert isinstance(examiner.crops, Counted)
    return examiner.crops.made


def other(build: Build) -> Any:
    """A graph that answers otherwise, with as many outputs."""
    return convert(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 7)), SPEC)


@pytest.mark.slow
def test_openvino_at_fp32_is_compared_with_pytorch_on_a_few_crops(module: nn.Module, graph: Any) -> None:
    examiner = made(module, graph)
    assert refusal(examiner, FP32) == ""
    evidence = examiner.evidence["openvino", "fp32"]
    assert evidence.crops == crops_made(examiner) == examining.CHECKED
    assert evidence.largest < 1e-4


def test_what_answers_as_pytorch_does_is_the_reference_for_other_precisions(
    module: nn.Module, graph: Any
) -> None:
    examiner = made(module, graph, quantized=graph)
    assert refusal(examiner, INT8) == ""
    evidence = examiner.evidence["openvino", "int8"]
    assert (evidence.crops, evidence.largest) == (COUNT, 0)  # the same graph, and to the bit


@pytest.mark.slow
def test_what_does_not_is_compared_with_pytorch_on_all_crops(build: Build, module: nn.Module) -> None:
    examiner = made(module, other(build), quantized=convert(module, SPEC))
    assert "on 208 crops a difference is" in refusal(examiner, FP32)
    assert refusal(examiner, INT8) == ""  # PyTorch is the reference, and not the graph at fp32
    assert 0 < examiner.evidence["openvino", "int8"].largest < 1e-4


def test_an_engine_is_examined_once(module: nn.Module, graph: Any) -> None:
    examiner = made(module, graph, quantized=graph)
    refusal(examiner, INT8)
    count = crops_made(examiner)
    refusal(examiner, INT8)
    refusal(examiner, INT8._replace(threads=2))
    assert crops_made(examiner) == count


def test_all_that_can_be_made_are_examined(module: nn.Module, graph: Any) -> None:
    examiner = made(module, graph, quantized=graph)
    examiner.examine_all([FP32, INT8, Candidate("torch", "fp16", "cpu", 1)])
    assert {("openvino", "fp32"), ("openvino", "int8")} <= examiner.evidence.keys()


# --- a packed model


def known(**values: Any) -> Evidence:
    evidence = Evidence(
        "openvino", "int8", 208, 6, "sample images", 0.001, 0.002, 0.003, 0.004, 1.0, 100, 100
    )
    return replace(evidence, **{"cpu": instruction_sets(), "library": library("openvino"), **values})


def proof(module: nn.Module, off: float = 0.0) -> Proof:
    images = sample_images(SPEC)
    engine = EngineFactory(module, SPEC, ModelOptions(threads=1)).make(Candidate("torch", "fp32", "cpu", 1))
    scores = CLASSIFICATION.scores(engine(images))
    return Proof(images, np.clip(scores + np.float32(off), 0, 1))


def packed(examiner: Examiner, proof: Proof, *evidence: Evidence) -> Examiner:
    return replace(
        examiner, engines=replace(examiner.engines, module=None), proof=proof, known=evidence, evidence={}
    )


def test_evidence_of_the_pack_is_taken_where_it_was_measured_on_such_a_processor(
    module: nn.Module, graph: Any
) -> None:
    examiner = packed(made(None, graph, graph), proof(module), known())
    assert refusal(examiner, INT8) == ""
    assert examiner.evidence["openvino", "int8"] == known()
    assert crops_made(examiner) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [{"cpu": "sse2"}, {"library": "openvino 2020.1"}, {"precision": "bf16"}, {"largest": 1e-9}],
    ids=["processor", "version", "precision", "answers"],
)
def test_other_evidence_is_measured_again(module: nn.Module, graph: Any, values: dict[str, Any]) -> None:
    off = 0.003 if "largest" in values else 0.0
    examiner = packed(made(None, graph, graph), proof(module, off), known(**values))
    assert refusal(examiner, INT8) == ""
    assert examiner.evidence["openvino", "int8"].mean == 0
    assert crops_made(examiner) >= COUNT


def test_evidence_on_other_images_is_measured_again_where_images_are_named(
    module: nn.Module, graph: Any, tmp_path: Any
) -> None:
    examiner = made(None, graph, graph, validation=tmp_path)  # its crops are the package's all the same
    elsewhere = packed(examiner, proof(module), known(digest="0" * 64))
    refusal(elsewhere, INT8)
    assert elsewhere.evidence["openvino", "int8"].mean == 0
    same = packed(examiner, proof(module), known(digest=examiner.crops.origin.digest))
    refusal(same, INT8)
    assert same.evidence["openvino", "int8"] == known(digest=examiner.crops.origin.digest)


def test_a_pack_that_does_not_answer_as_pytorch_did_is_refused(module: nn.Module, graph: Any) -> None:
    examiner = packed(made(None, graph, graph), proof(module, off=0.1))
    assert "on 6 crops a difference is" in refusal(examiner, FP32)
    with pytest.raises(EngineError, match="as PyTorch did when the model was packed: on 6 crops"):
        refusal(examiner, INT8)


# --- golden images


def golden(wrong: dict[str, list[str]]) -> Callable[[Engine], Collection[str]]:
    """A check that finds the golden images wrong that are named for a precision."""
    return lambda engine: [f"{name}: class 1, and not 2" for name in wrong.get(engine.precision, ())]


def test_a_precision_that_loses_a_golden_image_is_refused(module: nn.Module, graph: Any) -> None:
    examiner = replace(made(module, graph, graph), golden=golden({"int8": ["a.png"]}))
    assert refusal(examiner, INT8) == "the golden image a.png: class 1, and not 2"


def test_a_golden_image_that_fp32_gets_wrong_too_speaks_against_no_precision(
    module: nn.Module, graph: Any
) -> None:
    wrong = {"int8": ["a.png"], "fp32": ["a.png"]}
    examiner = replace(made(module, graph, graph), golden=golden(wrong))
    assert refusal(examiner, INT8) == ""
    assert refusal(examiner, FP32) == ""  # whether that is right, the golden policy decides
