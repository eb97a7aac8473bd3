"""Report: the rounds as one HTML file, which needs no other file."""

import html
import math
from collections.abc import Sequence

from pthserve.bench.load import QUANTILES, Round

WIDTH, HEIGHT = 760, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 120, 16, 48
CURVES = ((0, "median", "#2563eb"), (2, "95 %", "#9333ea"), (3, "99 %", "#dc2626"))
"""Index into QUANTILES, what it is called, its colour."""

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8888; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 800px; margin: 2rem auto; padding: 0 1rem; }}
svg {{ width: 100%; height: auto; }}
svg text {{ font: 12px system-ui, sans-serif; fill: currentColor; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: right; padding: .25rem .5rem; border-bottom: 1px solid var(--line); }}
th:first-child, td:first-child {{ text-align: left; }}
</style>
<h1>{title}</h1>
<p>{summary}</p>
<figure>
<svg viewBox="0 0 {width} {height}" role="img" aria-label="Latency against throughput">
{curve}
</svg>
</figure>
{table}
</html>
"""


def render(url: str, images: int, rounds: Sequence[Round]) -> str:
    """Return the report on `rounds`, which were measured at `url` with so many `images`."""
    deadline = rounds[0].deadline
    summary = (
        f"Images sent in turn: {images}. Goodput counts the responses within {deadline:g} s. "
        "In an open loop (a rate) a latency counts from when the request was due."
    )
    return _PAGE.format(
        title=html.escape(f"pthserve bench {url}"),
        summary=summary,
        width=WIDTH,
        height=HEIGHT,
        curve=_curve(rounds),
        table=_table(rounds),
    )


def _table(rounds: Sequence[Round]) -> str:
    heads = ["load", "responses/s", "goodput/s", *(_quantile(q) for q in QUANTILES), "not 200", "client CPU"]
    rows = [
        [
            str(one.point),
            f"{one.throughput:.1f}",
            f"{one.goodput:.1f}",
            *("" if math.isnan(q) else f"{1000 * q:.1f} ms" for q in one.quantiles().tolist()),
            str(one.statuses.total() - one.statuses[200] + one.failures.total()),
            f"{100 * one.cpu:.0f} %",
        ]
        for one in rounds
    ]
    lines = ["".join(f"<th>{head}</th>" for head in heads)]
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return "<table>\n" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "\n</table>"


def _quantile(share: float) -> str:
    return "median" if share == 0.5 else "worst" if share == 1 else f"{100 * share:.0f} %"


def _curve(rounds: Sequence[Round]) -> str:
    """Return SVG: throughput to the right, latency in ms upwards on a logarithmic scale; a dot is a round."""
    answered = sorted((one for one in rounds if one.latencies), key=lambda one: one.throughput)
    if not answered:
        return f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">no responses</text>'
    most = _ceiling(max(one.throughput for one in answered))
    values = [1000 * float(one.quantiles()[index]) for one in answered for index, *_ in CURVES]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)

    def x(throughput: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * throughput / most

    def y(milliseconds: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (math.log10(milliseconds) - low) / (high - low)

    parts = []
    for step in range(6):
        at = most * step / 5
        parts.append(_line(x(at), TOP, x(at), HEIGHT - BOTTOM))
        parts.append(_text(x(at), HEIGHT - BOTTOM + 18, f"{at:g}", "middle"))
    for power in range(low, high + 1):
        at = 10.0**power
        parts.append(_line(LEFT, y(at), WIDTH - RIGHT, y(at)))
        parts.append(_text(LEFT - 8, y(at) + 4, f"{at:g} ms", "end"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "responses per second", "middle"))
    for index, name, colour in CURVES:
        dots = [(x(one.throughput), y(1000 * float(one.quantiles()[index])), one) for one in answered]
        path = " ".join(f"{across:.1f},{up:.1f}" for across, up, _ in dots)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{across:.1f}" cy="{up:.1f}" r="4" fill="{colour}"><title>{one.point}: {name} '
            f"{1000 * float(one.quantiles()[index]):.1f} ms at {one.throughput:.1f}/s</title></circle>"
            for across, up, one in dots
        ]
        across, up, _ = dots[-1]
        parts.append(f'<text x="{across + 8:.1f}" y="{up + 4:.1f}" style="fill:{colour}">{name}</text>')
    return "\n".join(parts)


def _ceiling(value: float) -> float:
    """Return the next larger number of 1, 2 or 5 times a power of ten, for the end of a scale."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="var(--line)"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
