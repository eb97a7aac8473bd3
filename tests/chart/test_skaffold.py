"""skaffold.yaml fits Skaffold's schema, and what it names is there."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from .conftest import ROOT, Helm

SCHEMA = json.loads((Path(__file__).parent / "schemas/custom/skaffold-v4beta13.json").read_text())
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "skaffold.yaml").read_text())


def patched(profile: str | None) -> dict[str, Any]:
    """The configuration as `skaffold -p profile` sees it."""
    config: dict[str, Any] = json.loads(json.dumps(CONFIG))
    for patch in next((p["patches"] for p in CONFIG["profiles"] if p["name"] == profile), []):
        *above, last = patch["path"].strip("/").split("/")
        node: Any = config
        for step in above:
            node = node[int(step) if step.isdecimal() else step]
        assert (last in node) == (patch["op"] == "replace")
        node[last] = patch["value"]
    return config


def test_it_fits_skaffolds_schema() -> None:
    jsonschema.validate(CONFIG, SCHEMA)


def test_a_misspelt_field_would_not_fit() -> None:
    wrong = patched(None)
    wrong["deploy"]["helm"]["releases"][0]["setValueTemplate"] = {}

    with pytest.raises(jsonschema.ValidationError, match="setValueTemplate"):
        jsonschema.validate(wrong, SCHEMA)


@pytest.mark.slow
@pytest.mark.parametrize("profile", [None, "slim"])
def test_it_builds_a_target_of_the_dockerfile_and_the_chart_runs_it(profile: str | None, helm: Helm) -> None:
    config = patched(profile)
    jsonschema.validate(config, SCHEMA)
    (artifact,), (release,) = config["build"]["artifacts"], config["deploy"]["helm"]["releases"]
    target, variant = artifact["docker"]["target"], release.get("setValues", {}).get("image.variant", "full")
    assert target == variant
    assert re.search(rf"^FROM \S+ AS {target}$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)

    # What Skaffold puts in for the image that it has just built.
    built = {"{{.IMAGE_REPO_pthserve}}": "pthserve", "{{.IMAGE_TAG_pthserve}}": "1f2e3d"}
    image = {
        name.removeprefix("image."): built[value] for name, value in release["setValueTemplates"].items()
    }
    rendered = helm.render({"image": {**image, "variant": variant}})
    assert rendered.container["image"] == f"{artifact['image']}:1f2e3d"


@pytest.mark.slow
def test_it_forwards_the_port_of_the_releases_service(helm: Helm) -> None:
    (forward,), (release,) = CONFIG["portForward"], CONFIG["deploy"]["helm"]["releases"]
    assert (ROOT / release["chartPath"] / "Chart.yaml").exists()
    rendered = helm.run("template", release["name"], str(ROOT / release["chartPath"])).stdout
    (service,) = (found for found in yaml.safe_load_all(rendered) if found and found["kind"] == "Service")
    assert forward["resourceName"] == service["metadata"]["name"]
    assert forward["port"] in [port["port"] for port in service["spec"]["ports"]]
