"""The ratios are what their names say, of numbers that are known."""

from pathlib import Path

import pytest
from benchmarks.findings import Findings, Start
from benchmarks.machine import Machine
from benchmarks.measure import Sample
from benchmarks.models import DEMO, OTHERS
from benchmarks.page import SECTIONS, sections, write
from benchmarks.run import SCENARIOS
from benchmarks.subjects import OURS, PEERS, UNPACKED
from benchmarks.table import Repeat, Row, rows

from pthserve.planning.plan import Plan

PERFORMANCE = Path(__file__).parents[2] / "docs" / "performance.md"


def findings(device: str = "cpu") -> Findings:
    """Two cores; decoding takes 10 ms, a pass 20 (15 in a batch); 40 answers a second where peers give 20."""
    samples = {("decode exact", "small"): Sample(0.010), ("decode fast", "small"): Sample(0.010)}
    samples |= {("decode exact", "large"): Sample(0.100), ("decode fast", "large"): Sample(0.050)}
    for precision in ("fp32", "auto", "int8"):
        samples |= {
            (f"forward {precision}", "1"): Sample(0.020),
            (f"forward {precision}", "8"): Sample(0.015),
        }
    of_models = {f"{model} {precision}" for model in OTHERS for precision in ("fp32", "auto", "int8")}
    of_models -= {f"{DEMO} int8"}
    for name in of_models:
        samples |= {(f"forward {name}", "1"): Sample(0.020), (f"forward {name}", "8"): Sample(0.015)}
        samples |= {(name, "8 clients"): Sample(30.0)}
    samples |= {("decode exact", model): Sample(0.010) for model in OTHERS}
    samples |= {("benchmark_app", name): Sample(0.012) for name in (*of_models, "fp32", "auto", "int8")}
    for name, scenario in SCENARIOS.items():
        for who in scenario.subjects:
            rate = {"F": 20.0, "L": 10.0}.get(who[0], 40.0)  # FastAPI, LitServe, ours
            value = 0.045 if name == "1 client" else rate
            samples[who, name] = Sample(value, service=1.5, client=0.2)
    return Findings(
        Machine("a processor", 2, ["avx2"], "a system", {"torch": "1"}),
        plans={name: Plan(device=device) for name in ("fp32", "auto", "int8", *of_models)},
        repeats=[samples, samples],
        starts={who: Start(1.0, 200.0) for who in (*OURS, UNPACKED, *PEERS)},
        idle={who: Sample(0.001) for who in OURS},
        refused={f"{DEMO} int8": "the answers differ"},
    )


def found(name: str) -> Row:
    return next(row for row in rows(findings()) if row.name.startswith(name))


@pytest.mark.parametrize(
    ("name", "ratio"),
    [
        ("throughput, `fp32`, `exact` / best peer", 2.0),
        ("served / limit, `auto`, `fast`", 40 * (0.015 + 0.010 / 2)),
        ("one client: latency / (decode + forward), `int8`, `exact`", 0.045 / 0.030),
        ("throughput at 64 clients / at 8, `fp32`, `exact`", 1.0),
        ("throughput, ImageNet demo, `auto` / best peer", 30 / 20),
        ("cores while idle", 0.001),
    ],
)
def test_a_ratio_is_what_its_name_says(name: str, ratio: float) -> None:
    assert found(name).ratio == pytest.approx(ratio)


def test_the_bound_of_a_throughput_is_the_limit_beside_the_best_peer() -> None:
    assert found("throughput, `fp32`, `exact`").bound == pytest.approx(1 / 0.020 / 20)


def test_a_latency_is_better_when_it_is_less() -> None:
    assert found("cores while idle").reached
    assert not found("one client").reached
    assert Row("", (0.9, 1.0, 1.4), 1.0, 1.0).reached


def test_what_was_refused_has_its_reason_in_the_table_and_no_ratio() -> None:
    models = sections(findings())["models"]
    assert "| ImageNet demo, int8 |  |  |  |  |  | the answers differ |" in models
    assert "| ResNet-50, int8 | 33.3 | 41.7 | 0.80 | 30.0 | 0.60 | torch fp32 |" in models
    assert not any("ImageNet demo, `int8`" in row.name for row in rows(findings()))


def test_without_int8_of_the_first_model_the_rest_is_measured() -> None:
    without = findings()
    del without.plans["int8"]
    for name in ("int8 exact", "int8 fast"):
        del without.starts[name]
        for repeat in without.repeats:
            for key in [key for key in repeat if key[0] == name]:
                del repeat[key]
    assert not any("int8" in row.name for row in rows(without))
    assert "int8 exact" not in "".join(sections(without).values())


def test_a_gpu_computes_beside_the_decoding() -> None:
    on_gpu = findings("cuda")
    assert Repeat(on_gpu, on_gpu.repeats[0]).limit(("auto", "fast"), "large") == pytest.approx(1 / 0.025)


def test_findings_come_back_from_json_as_they_were() -> None:
    assert Findings.from_dict(findings().to_dict()) == findings()


def test_every_table_has_its_place_in_the_page_and_is_written_there_once(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(PERFORMANCE.read_text())
    write(findings(), page)
    once = page.read_text()
    made = sections(findings())
    assert tuple(made) == SECTIONS
    assert all(once.count(section) == 1 for section in made.values())
    write(findings(), page)
    assert page.read_text() == once


def test_a_page_without_a_place_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    with pytest.raises(ValueError, match="no place for machine"):
        write(findings(), page)
