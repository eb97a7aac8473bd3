"""The Compose file, Prometheus, Grafana and the systemd unit of examples/one-machine fit together."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import yaml

from pthserve.exits import EXIT_CODES
from pthserve.settings import Settings

from ..shared import until
from .conftest import ROOT

FOLDER = ROOT / "examples" / "one-machine"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
SCHEMA = json.loads((Path(__file__).parent / "schemas/custom/compose-spec.json").read_text())
UNIT = (FOLDER / "pthserve@.service").read_text()


def _mounts(service: str) -> dict[str, str]:
    """Source by target of a service's volumes."""
    found = {}
    for volume in SERVICES[service]["volumes"]:
        source, target = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[:2]
        found[target] = source
    return found


def test_the_compose_file_fits_the_specification() -> None:
    jsonschema.validate(COMPOSE, SCHEMA)


def test_a_misspelt_field_would_not_fit() -> None:
    wrong = json.loads(json.dumps(COMPOSE))
    wrong["services"]["pthserve"]["stop_grace_periods"] = "30s"
    with pytest.raises(jsonschema.ValidationError, match="stop_grace_periods"):
        jsonschema.validate(wrong, SCHEMA)


@pytest.mark.slow
@pytest.mark.parametrize("service", SERVICES)
def test_what_is_mounted_is_there(service: str) -> None:
    for source in _mounts(service).values():
        assert source in COMPOSE["volumes"] or (FOLDER / source).exists(), source


@pytest.mark.parametrize("service", SERVICES)
def test_ports_are_open_on_this_machine_only(service: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[service]["ports"])


def test_the_variables_are_settings_of_the_service() -> None:
    names = {f"PTHSERVE_{name}".upper() for name in Settings.model_fields}
    given = {*SERVICES["pthserve"]["environment"], *re.findall(r"\bPTHSERVE_[A-Z_]+(?==)", UNIT)}
    assert given <= names


def test_the_service_has_time_to_drain() -> None:
    fields = Settings.model_fields
    needed = fields["drain_seconds"].default + fields["deadline"].default
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)
    for given in (SERVICES["pthserve"]["stop_grace_period"].removesuffix("s"), seconds):
        assert int(given) > needed


def test_grafana_finds_the_dashboards_where_they_are_mounted() -> None:
    mounts = _mounts("grafana")
    (provider,) = yaml.safe_load((FOLDER / "grafana" / "dashboards.yaml").read_text())["providers"]
    folder = FOLDER / mounts[provider["options"]["path"]]
    assert {path.name for path in folder.glob("*.json")} == {"model.json", "service.json"}
    (source,) = yaml.safe_load((FOLDER / "grafana" / "datasources.yaml").read_text())["datasources"]
    port = SERVICES["prometheus"]["ports"][0].rpartition(":")[2]
    assert (source["type"], source["url"]) == ("prometheus", f"http://prometheus:{port}")


@contextmanager
def _prometheus(programs: Path, config: Path, data: Path) -> Iterator[str]:
    command = (
        *(programs / "prometheus", f"--config.file={config}", f"--storage.tsdb.path={data}"),
        "--web.listen-address=127.0.0.1:0",
    )
    log = data.with_suffix(".log")
    with log.open("wb") as written:
        process = subprocess.Popen(command, stderr=written)
    try:
        listening = until(
            lambda: re.search(r"Listening on.*address=(127\.0\.0\.1:\d+)", log.read_text()), "Prometheus"
        )
        yield f"http://{listening[1]}"
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_every_variable_of_the_dashboards_has_a_value(programs: Path, demo: str, tmp_path: Path) -> None:
    text = (FOLDER / "prometheus.yml").read_text()
    config = tmp_path / "prometheus.yml"
    config.write_text(text.replace("pthserve:8000", demo.removeprefix("http://")).replace("15s", "1s"))
    assert config.read_text() != text
    subprocess.run([programs / "promtool", "check", "config", config], check=True, capture_output=True)

    with _prometheus(programs, config, tmp_path / "data") as url:
        until(lambda: _answers(url), "Prometheus to be ready")

        def labels() -> dict[str, str]:
            reply = httpx.get(f"{url}/api/v1/query", params={"query": "pthserve_build_info"}).json()
            return next((found["metric"] for found in reply["data"]["result"]), {})

        found = until(labels, "a sample of the service")
    for path in (FOLDER / _mounts("grafana")["/var/lib/grafana/dashboards"]).glob("*.json"):
        variables = json.loads(path.read_text())["templating"]["list"]
        queries = [variable["query"]["query"] for variable in variables if variable["type"] == "query"]
        assert len(queries) == 3
        for query in queries:
            label = re.search(r", (\w+)\)$", query)
            assert label
            assert found[label[1]], query


@pytest.mark.slow
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not here")
    unit = tmp_path / "pthserve@cats.service"
    unit.write_text(UNIT.replace("/opt/pthserve/bin/pthserve", "/bin/true"))
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], check=True, capture_output=True, text=True
    )
    assert not [line for line in (found.stdout + found.stderr).splitlines() if str(unit) in line]


def test_the_unit_does_not_start_again_what_cannot_start() -> None:
    codes = re.search(r"^RestartPreventExitStatus=(.+)$", UNIT, re.MULTILINE)
    assert codes
    assert {int(code) for code in codes[1].split()} == {2} | {code for _, code in EXIT_CODES if code > 1}
