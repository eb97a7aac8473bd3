"""Page: the figures of a run as a table for docs/performance.md."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- measured: nodes -->\n", "<!-- end of measured -->"


def write(found: Mapping[str, Any], page: Path) -> None:
    """Put the table into its place in the page; raises ValueError where it has no such place."""
    before, begin, rest = page.read_text().partition(BEGIN)
    if not begin or END not in rest:
        raise ValueError(f"{page} has no line {BEGIN.strip()!r}, or no {END!r} after it")
    page.write_text(f"{before}{BEGIN}\n{table(found)}\n{rest[rest.index(END) :]}")


def table(found: Mapping[str, Any]) -> str:
    """A row for each figure of the scenarios that were run."""
    lines = [
        f"| {found[name]['nodes']} | {what} | {figure} |"
        for name, rows in _SCENARIOS.items()
        if name in found
        for what, figure in rows(found[name])
    ]
    return "\n".join(["| nodes | | |", "|---:|---|---|", *lines, ""])


def _zones(zones: Mapping[str, int]) -> str:
    return " + ".join(map(str, zones.values()))


def _upgrade(one: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    first, second, slow = one["install"], one["upgrade"], one["upgrade_with_max_surge_1"]
    yield (
        f"install {one['pods']} pods: all on nodes; all ready",
        f"{first['bound_seconds']}; {first['ready_seconds']} s",
    )
    yield "... pods by zone; most on a node", f"{_zones(first['zones'])}; {first['most_on_a_node']}"
    yield (
        "upgrade; fewest that serve; most pods",
        f"{second['seconds']} s; {second['least_serving']}; {second['most_pods']}",
    )
    yield "... pods by zone; most on a node", f"{_zones(second['zones'])}; {second['most_on_a_node']}"
    yield "... with `maxSurge: 1`, calculated from 4 pods", f"{slow['seconds_calculated']} s"


def _drain(one: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield (
        f"drain a zone: {one['pods_left_for_it']} of {one['pods']} pods",
        f"{one['seconds']} s",
    )
    yield "... fewest that serve", str(one["least_serving"])
    slow = one["with_a_budget_of_1"]["seconds_calculated"]
    yield "... with `maxUnavailable: 1`, calculated from 4 pods", f"{slow} s"


def _outage(one: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield (
        "a zone lost at once: all its pods are out of the Service after",
        f"{one['all_pods_not_ready_seconds']} s",
    )
    yield "... the first is replaced after", f"{one['first_pod_evicted_seconds']} s"
    yield "... all are, at the default eviction rate (calculated)", f"{one['replaced_seconds_by_default']} s"


def _removed(one: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "... all are, where the node objects are removed", f"{one['replaced_seconds']} s"


def _gpus(one: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    wrong = one["pods_outside_the_pool"] + one["pods_without_gpu_in_the_pool"]
    yield "pods with GPUs outside their pool, and others in it", str(wrong)
    stuck = one["upgrade_of_a_full_pool"]
    yield (
        "upgrade of a full pool with surge: replaced; serving",
        f"{stuck['replaced']}; {stuck['serving']} of {one['gpus']}",
    )
    free = one["upgrade_without_surge"]
    yield "... without surge; fewest that serve", f"{free['seconds']} s; {free['least_serving']}"


def _priority(one: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield f"{one['pods']} pods displace others of lower priority", f"{one['seconds']} s"
    yield "... displaced; needed", f"{one['preempted']}; {one['needed']}"


def _quota(one: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield f"quota of {one['allowed']} pods: wanted by the autoscaler", str(one["hpa"]["desiredReplicas"])
    stuck = one["upgrade_in_a_full_quota"]
    yield "... upgrade meanwhile: replaced; serving", f"{stuck['replaced']}; {stuck['serving']}"
    yield "... complete, after the quota is raised", f"{one['seconds_after_the_quota_is_raised']} s"


def _day(one: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    planned, served = one["pods_planned"], one["pods_served"]
    yield (
        "the day: pods planned at least; at the peak; at most",
        f"{planned['least']}; {planned['planned']}; {planned['most']}",
    )
    yield "... pods that served, least; most", f"{served['least']}; {served['most']}"
    yield "... share of the day over the limit", f"{100 * one['breach_share']:.2f} %"
    known = one["breach_seconds_predicted_by_the_plan"]
    yield (
        "... seconds over it that the plan predicts; not predicted",
        f"{known:.0f}; {one['breach_seconds_not_predicted']}",
    )
    yield "... pods by zone at the end, after a zone was lost", _zones(one["zones_at_the_end"])


_SCENARIOS = {
    "upgrade": _upgrade,
    "drain": _drain,
    "outage": _outage,
    "removed": _removed,
    "gpus": _gpus,
    "priority": _priority,
    "quota": _quota,
    "day": _day,
}
