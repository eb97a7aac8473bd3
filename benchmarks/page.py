"""Page: tables of a run as Markdown, for a terminal and for docs/performance.md."""

from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from statistics import median

from benchmarks.bare import BATCHES
from benchmarks.findings import Findings, Key
from benchmarks.measure import Sample
from benchmarks.models import OTHERS, PRECISIONS
from benchmarks.subjects import DECODES, OURS, PEERS, PEERS_OF_DEMO, UNPACKED
from benchmarks.table import Repeat, rows

SECTIONS = ("machine", "ratios", "rates", "models", "bare", "costs")
_MARKED = "<!-- measured: {} -->\n"
_END = "<!-- end of measured -->"


def sections(findings: Findings) -> dict[str, str]:
    """Markdown by the name of its place in the page, one of SECTIONS."""
    made = (_machine, _ratios, _rates, _models, _bare, _costs)
    return {name: make(findings) for name, make in zip(SECTIONS, made, strict=True)}


def write(findings: Findings, page: Path) -> None:
    """Put the sections into their places in `page`; raises ValueError where it has no such place."""
    text = page.read_text()
    for name, section in sections(findings).items():
        begin = _MARKED.format(name)
        if _END not in text.partition(begin)[2]:
            raise ValueError(
                f"{page} has no place for {name}: no line {begin.strip()!r}, or no {_END!r} after it"
            )
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{section}\n\n{rest[rest.index(_END) :]}"
    page.write_text(text)


def _machine(findings: Findings) -> str:
    machine = findings.machine
    libraries = ", ".join(f"{name} {version}" for name, version in machine.libraries.items())
    plans = "; ".join(
        f"`{name}`: {plan.engine} {plan.precision}, {plan.threads} threads"
        for name, plan in findings.plans.items()
        if name in PRECISIONS
    )
    return (
        f"{machine.cpus} cores of {machine.processor} with {', '.join(machine.instructions)}; "
        f"{machine.system}; {libraries}. What the model ran with: {plans}. "
        f"{len(findings.repeats)} repeats; a number is their median."
    )


def _ratios(findings: Findings) -> str:
    lines = []
    for row in rows(findings):
        wanted = f"{'≥' if row.above else '≤'} {row.wanted:g}"
        spread = f"{min(row.ratios):.3g} to {max(row.ratios):.3g}" if len(row.ratios) > 1 else ""
        reached = "yes" if row.reached else "no"
        lines.append((row.name, f"{row.ratio:.3g}", spread, wanted, f"{row.bound:.3g}", reached))
    return table(("", "ratio", "least to most", "wanted", "bound", "reached"), lines)


def _rates(findings: Findings) -> str:
    lines = []
    for who in (*OURS, UNPACKED, *PEERS):
        if who not in findings.starts:
            continue
        eight = _median(findings, (who, "8 clients"))
        line = [who, f"{eight.value:.1f}", f"{eight.service:.2f}", f"{eight.client:.2f}"]
        for scenario in ("64 clients", "8 clients, large photos"):
            known = (who, scenario) in findings.repeats[0]
            line.append(f"{_median(findings, (who, scenario)).value:.1f}" if known else "")
        known = (who, "1 client") in findings.repeats[0]
        line.append(f"{1e3 * _median(findings, (who, '1 client')).value:.1f}" if known else "")
        start = findings.starts[who]
        lines.append([*line, f"{start.seconds:.1f}", f"{start.memory:.0f}"])
    heads = (
        *("", "8 clients", "its cores", "the clients' cores", "64 clients", "8, 4000x3000", "1 client, ms"),
        *("ready after, s", "memory then, MiB"),
    )
    return table(heads, lines)


def _models(findings: Findings) -> str:
    """All models: a core's images a second in a forward pass and by benchmark_app, and as they are served."""
    repeats = [Repeat(findings, samples) for samples in findings.repeats]
    cpus = findings.machine.cpus
    lines = []
    for model, precision in product(("ResNet-18", *OTHERS), PRECISIONS):
        name = precision if model == "ResNet-18" else f"{model} {precision}"
        if name not in findings.plans:
            lines.append((f"{model}, {precision}", *("" for _ in range(5)), findings.refused.get(name, "")))
            continue
        variant = (name, "exact") if model == "ResNet-18" else (model, precision)
        bare, app, served = (
            median(rates)
            for rates in (
                [1 / repeat.forward(name) for repeat in repeats],
                [repeat.benchmark_app(name) for repeat in repeats],
                [repeat.rate(variant) for repeat in repeats],
            )
        )
        limit = median(
            repeat.limit((name, "exact")) if model == "ResNet-18" else repeat.limit_of(model, precision)
            for repeat in repeats
        )
        plan = findings.plans[name]
        per_core = (f"{rate / cpus:.1f}" for rate in (bare, app))
        lines.append(
            (
                *(f"{model}, {precision}", *per_core, f"{bare / app:.2f}", f"{served:.1f}"),
                *(f"{served / limit:.2f}", f"{plan.engine} {plan.precision}"),
            )
        )
    peers = [_median(findings, (peer, "8 clients")).value for peer in PEERS_OF_DEMO]
    lines += [
        (f"{peer}", "", "", "", f"{rate:.1f}", "", "")
        for peer, rate in zip(PEERS_OF_DEMO, peers, strict=True)
    ]
    heads = (
        *("", "forward, images/s a core", "benchmark_app, images/s a core", "forward / benchmark_app"),
        *("8 clients, answers/s", "of the limit", "engine, or why it is refused"),
    )
    return table(heads, lines)


def _costs(findings: Findings) -> str:
    """Where the time of an answered request goes: of all cores under load, and for a client by itself."""
    cpus = findings.machine.cpus
    loaded, lone = [], []
    for variant in product(PRECISIONS, DECODES):
        if variant[0] not in findings.plans:
            continue
        repeats = [Repeat(findings, samples) for samples in findings.repeats]
        forward = 1e3 * cpus * median(repeat.forward(variant[0]) for repeat in repeats)
        decode = 1e3 * median(repeat.decode(variant) for repeat in repeats)
        eight = _median(findings, (" ".join(variant), "8 clients"))
        all_cores, service, client = (
            1e3 * cores / eight.value for cores in (cpus, eight.service, eight.client)
        )
        parts = [forward, decode, service - forward - decode, client, all_cores - service - client, all_cores]
        loaded.append((" ".join(variant), *(f"{part:.2f}" for part in parts)))

        took = 1e3 * median(repeat.rate(variant, "1 client") for repeat in repeats)
        alone = 1e3 * median(repeat.alone(variant) for repeat in repeats)
        parts = [alone - decode, decode, took - alone, took]
        lone.append((" ".join(variant), *(f"{part:.2f}" for part in parts)))
    heads = ("forward", "decode", "rest of the service")
    return "\n\n".join(
        (
            table(("8 clients, ms of a core", *heads, "clients", "idle, others", "all"), loaded),
            table(("1 client, ms", *heads, "all"), lone),
        )
    )


def _bare(findings: Findings) -> str:
    lines = []
    for precision in PRECISIONS:
        if precision not in findings.plans:
            continue
        samples = [_median(findings, (f"forward {precision}", str(batch))) for batch in BATCHES]
        limits = [
            median(Repeat(findings, samples).limit((precision, how)) for samples in findings.repeats)
            for how in DECODES
        ]
        lines.append(
            (
                precision,
                *(f"{1e3 * sample.value:.2f}" for sample in samples),
                *(f"{limit:.1f}" for limit in limits),
            )
        )
    heads = (
        *(f"forward, batch of {batch}, ms an image" for batch in BATCHES),
        *(f"limit with `{how}`" for how in DECODES),
    )
    return table(("", *heads), lines)


def _median(findings: Findings, key: Key) -> Sample:
    """Each of a sample's numbers by itself."""
    samples = [repeat[key] for repeat in findings.repeats]
    return Sample(
        median(sample.value for sample in samples),
        median(sample.service for sample in samples),
        median(sample.client for sample in samples),
        median(sample.others for sample in samples),
    )


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; all columns but the first are aligned to the right."""
    rule = ["---", *("---:" for _ in heads[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *lines))
