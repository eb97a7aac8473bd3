"""The page and the example send requests again just as the tests in the cluster do."""

import json
import re

import yaml

from .calls import RETRIES
from .progressive import RETRY
from .release import ROOT


def test_the_page_has_the_service_config_of_the_tests() -> None:
    (config,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs/rollouts.md").read_text(), re.DOTALL)
    assert json.loads(config) == RETRIES


def test_the_example_has_the_middleware_of_the_tests() -> None:
    example = yaml.safe_load((ROOT / "k8s/examples/rollout.yaml").read_text())
    assert example["extraObjects"] == RETRY["extraObjects"]
    for route in ("httpRoute", "grpcRoute"):
        assert example[route]["filters"] == RETRY[route]["filters"]
