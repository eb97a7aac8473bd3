"""The values that `pthserve size` writes are accepted by the chart, and mean there what they say."""

import pytest
import yaml

from pthserve.sizing.plan import Demand, Metric, plans
from pthserve.sizing.values import text

from ..sizing.curves import curve
from .conftest import Helm

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("metric", ["cpu", "saturation", "inflight"])
def test_the_chart_renders_the_values_of_a_plan(helm: Helm, metric: Metric) -> None:
    demand = Demand(rate=300.0, p99=0.05, least=200.0, most=900.0, start=15.0)
    (plan,) = plans([curve(2)], demand)
    rendered = helm.render(yaml.safe_load(text(plan, demand, metric)))
    scaler = rendered.one("HorizontalPodAutoscaler")["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (plan.least, plan.most)
    (target,) = scaler["metrics"]
    if metric == "cpu":
        assert target["containerResource"]["target"]["averageUtilization"] == plan.targets["cpu"]
    else:
        value = target["pods"]["target"]["averageValue"]
        assert float(value.removesuffix("m")) == pytest.approx(1000 * plan.targets[metric], abs=1)
    assert rendered.one("PodDisruptionBudget")["spec"]["maxUnavailable"] == plan.lost
    resources = rendered.container["resources"]
    assert resources["requests"]["cpu"] == resources["limits"]["cpu"] == "2"
    assert plan.memory is not None
    assert resources["limits"]["memory"] == f"{plan.memory[1] >> 20}Mi"
    assert resources["limits"]["ephemeral-storage"], "what the plan does not say is the chart's"
    assert float(rendered.environment["PTHSERVE_PLANNED_RATE"]) == pytest.approx(plan.boundary, abs=0.01)
    assert rendered.environment["PTHSERVE_PLANNED_LATENCY"] == "0.05"


def test_a_plan_that_is_not_one_is_refused(helm: Helm) -> None:
    assert "plannedRate" in helm.refusal({"settings": {"plannedRate": 0}})


def test_the_pdb_and_the_replicas_hold_without_an_autoscaler(helm: Helm) -> None:
    demand = Demand(rate=300.0, p99=0.05, least=300.0, most=600.0, start=15.0)
    (plan,) = plans([curve(2)], demand)
    given = yaml.safe_load(text(plan, demand, "cpu"))
    given["autoscaling"]["enabled"] = False
    rendered = helm.render(given)
    assert rendered.one("Deployment")["spec"]["replicas"] == plan.pods
    assert rendered.all("PodDisruptionBudget")
