"""A plan is plain values, and is taken again only where it fits."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pthserve.engines.cpu import cpu, cpu_flags, library
from pthserve.errors import EngineError
from pthserve.planning.agreement import Evidence
from pthserve.planning.plan import Plan, Trial
from pthserve.planning.plan_files import cache_file, fits, read, write
from pthserve.settings import Settings

SETTINGS = Settings(threads=2)
PLAN = Plan(
    engine="openvino",
    threads=2,
    max_batch=4,
    digest="d" * 64,
    cpu=cpu(2),
    library=library("openvino"),
    trials=(
        Trial("openvino", "fp32", 2, 1, 60.0, 1e-6, agrees=True),
        Trial("torch", "fp32", 2, 1, 40.0, 0.0, agrees=True),
        Trial("openvino", "bf16", 2, 1, 0.0, 0.5, agrees=False, note="a difference is 0.1 on average"),
    ),
    evidence=(
        Evidence("openvino", "fp32", 16, 6, "sample images", *(1e-6,) * 4, 1.0, 12, 12, digest="p" * 64),
        Evidence("openvino", "bf16", 208, 6, "sample images", 0.1, 0.15, 0.3, 0.5, 0.8, 150, 120),
    ),
)


def test_a_plan_is_plain_values_and_back() -> None:
    assert Plan.from_dict(json.loads(json.dumps(PLAN.to_dict()))) == PLAN


def test_a_plan_is_written_and_read(tmp_path: Path) -> None:
    write(PLAN, tmp_path / "made" / "plan.json")
    assert read(tmp_path / "made" / "plan.json") == PLAN
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    "content", [None, "", "[]", "{", '{"speed": 3}', '{"trials": [3]}', "\N{SNOWMAN}".encode("utf-16")]
)
def test_what_is_no_plan_is_refused_by_name(tmp_path: Path, content: str | bytes | None) -> None:
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(EngineError, match=r"plan\.json"):
        read(path)


def test_the_agreement_of_a_plan_is_that_of_its_engine_and_precision() -> None:
    assert PLAN.agreement == PLAN.evidence[0]
    assert replace(PLAN, precision="bf16").agreement == PLAN.evidence[1]
    assert replace(PLAN, engine="torch").agreement is None
    assert Plan().agreement is None


def test_a_plan_fits_its_own_weights_processor_and_settings() -> None:
    assert fits(PLAN, PLAN.digest, SETTINGS)


@pytest.mark.parametrize(
    ("plan", "digest", "settings"),
    [
        (PLAN, "e" * 64, SETTINGS),
        (replace(PLAN, cpu="another, 2 CPUs, avx2"), PLAN.digest, SETTINGS),
        (replace(PLAN, library="openvino 2020.1"), PLAN.digest, SETTINGS),
        (PLAN, PLAN.digest, Settings(threads=1)),
        (PLAN, PLAN.digest, Settings(threads=2, engine="torch")),
        (PLAN, PLAN.digest, Settings(threads=2, precision="int8")),
        (PLAN, PLAN.digest, Settings(threads=2, device="cuda")),
        (PLAN, PLAN.digest, Settings(threads=2, tolerance=1e-7)),
        (replace(PLAN, precision="bf16"), PLAN.digest, SETTINGS),
        (replace(PLAN, evidence=()), PLAN.digest, SETTINGS),
        (
            replace(PLAN, evidence=(replace(PLAN.evidence[0], largest=0.01),)),
            PLAN.digest,
            Settings(threads=2, max_accuracy_drop="1%"),
        ),
        (Plan(), "", SETTINGS),
    ],
    ids=[
        *("weights", "cpu", "version", "threads", "engine", "precision", "device", "tolerance", "disagrees"),
        *("no evidence", "accuracy", "unmeasured"),
    ],
)
def test_a_plan_does_not_fit_others(plan: Plan, digest: str, settings: Settings) -> None:
    assert not fits(plan, digest, settings)


def test_a_plan_fits_where_it_was_compared_on_the_photos_that_are_asked_for() -> None:
    assert fits(PLAN, PLAN.digest, SETTINGS, photos="p" * 64)
    assert not fits(PLAN, PLAN.digest, SETTINGS, photos="q" * 64)


def test_each_request_has_its_own_file_in_the_cache(tmp_path: Path) -> None:
    auto = Settings(cache_dir=tmp_path)
    int8 = Settings(cache_dir=tmp_path, precision="int8")
    files = {cache_file(digest, settings) for digest in ("d" * 64, "e" * 64) for settings in (auto, int8)}
    assert len(files) == 4
    assert cache_file("d" * 64, Settings()) is None


def test_the_processor_is_named_with_its_cpus_and_instruction_sets() -> None:
    assert " 3 CPUs" in cpu(3)
    assert cpu(3) != cpu(2)
    for flag in cpu_flags():
        assert flag in cpu(2)
