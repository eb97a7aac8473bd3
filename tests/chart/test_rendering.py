"""What the chart makes of its values."""

from typing import Any

import pytest

from pthserve.settings import Settings

from .conftest import Helm
from .sets import SETS, SHA256

pytestmark = pytest.mark.slow


def _mounts(container: Any) -> dict[str, Any]:
    return {mount["mountPath"]: mount for mount in container["volumeMounts"]}


def _volume(pod: Any, name: str) -> Any:
    (found,) = (volume for volume in pod["volumes"] if volume["name"] == name)
    return found


def test_the_defaults_make_what_serves_and_nothing_else(helm: Helm) -> None:
    kinds = {"Deployment", "Service", "ServiceAccount", "ConfigMap", "NetworkPolicy", "Pod"}
    assert helm.render().kinds == kinds


def test_the_defaults_serve_the_image_s_own_demo(helm: Helm) -> None:
    rendered = helm.render()
    assert "PTHSERVE_MODEL" not in rendered.environment
    assert rendered.container["image"] == "localhost/pthserve:0.1.0-full"


# The image.


def test_the_tag_names_the_version_and_the_variant(helm: Helm) -> None:
    assert helm.render(SETS["slim"]).container["image"] == "localhost/pthserve:0.1.0-slim"


def test_a_gpu_needs_the_image_with_cuda(helm: Helm) -> None:
    assert helm.render(SETS["gpu"]).container["image"] == "localhost/pthserve:0.1.0-cuda"
    tagged = {**SETS["gpu"], "image": {"tag": "7-full"}}
    assert helm.render(tagged).container["image"] == "localhost/pthserve:7-full"


def test_a_given_tag_is_taken_as_it_is(helm: Helm) -> None:
    rendered = helm.render(SETS["own image"])
    assert rendered.container["image"] == "registry.example/team/cats:7"
    assert rendered.pod["imagePullSecrets"] == [{"name": "registry"}]


def test_a_digest_beats_the_tag(helm: Helm) -> None:
    assert helm.render(SETS["digest"]).container["image"] == f"localhost/pthserve@sha256:{SHA256}"


def test_the_test_runs_in_the_service_s_image(helm: Helm) -> None:
    rendered = helm.render(SETS["slim"])
    (container,) = rendered.one("Pod", "-test")["spec"]["containers"]
    assert container["image"] == rendered.container["image"]


# Settings.


def test_a_setting_becomes_its_environment_variable(helm: Helm) -> None:
    values = {"settings": {"maxBatch": 16, "maxBody": 20_971_520, "shadow": 0.25, "explain": "off"}}
    found = helm.render(values).environment
    assert found["PTHSERVE_MAX_BATCH"] == "16"
    assert found["PTHSERVE_MAX_BODY"] == "20971520"
    assert found["PTHSERVE_SHADOW"] == "0.25"
    assert found["PTHSERVE_EXPLAIN"] == "off"


@pytest.mark.parametrize("name", SETS)
def test_the_service_takes_the_settings_that_it_is_given(
    name: str, helm: Helm, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = helm.render(SETS[name]).environment
    known = {f"PTHSERVE_{field.upper()}" for field in Settings.model_fields}
    assert environment.keys() <= known
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    Settings()


def test_a_changed_setting_rolls_the_pods(helm: Helm) -> None:
    def template(values: dict[str, Any]) -> Any:
        return helm.render(values).one("Deployment")["spec"]["template"]

    before, after = template({}), template({"settings": {"logLevel": "debug"}})
    changed = "checksum/settings"
    assert before["metadata"]["annotations"][changed] != after["metadata"]["annotations"][changed]
    assert before["spec"] == after["spec"]


def test_the_service_listens_on_every_address(helm: Helm) -> None:
    assert helm.render().environment["PTHSERVE_HOST"] == "0.0.0.0"


def test_threads_are_left_to_the_service_which_follows_the_cpu_limit(helm: Helm) -> None:
    rendered = helm.render()
    assert "PTHSERVE_THREADS" not in rendered.environment
    assert "env" not in rendered.container
    assert helm.render({"settings": {"threads": 3}}).environment["PTHSERVE_THREADS"] == "3"


def test_a_resize_in_place_restarts_nothing_unless_it_is_asked_to(helm: Helm) -> None:
    assert helm.render().container["resizePolicy"] == [
        {"resourceName": "cpu", "restartPolicy": "NotRequired"},
        {"resourceName": "memory", "restartPolicy": "NotRequired"},
    ]
    policy = [{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]
    assert helm.render({"resizePolicy": policy}).container["resizePolicy"] == policy
    assert "resizePolicy" not in helm.render({"resizePolicy": []}).container


def test_the_service_s_own_names_are_among_the_hosts_that_are_allowed(helm: Helm) -> None:
    environment = helm.render({"settings": {"allowedHosts": "cats.example"}}).environment
    assert environment["PTHSERVE_ALLOWED_HOSTS"].split(",") == [
        "cats.example",
        *("cats-pthserve", "cats-pthserve.shop", "cats-pthserve.shop.svc"),
        "cats-pthserve.shop.svc.cluster.local",
    ]
    assert Settings(allowed_hosts=environment["PTHSERVE_ALLOWED_HOSTS"])
    assert "PTHSERVE_ALLOWED_HOSTS" not in helm.render().environment


def test_with_feedback_a_pod_finds_all_others_by_a_headless_service(helm: Helm) -> None:
    rendered = helm.render({"settings": {"port": 8080, "feedback": 100, "allowedHosts": "cats.example"}})
    main, pods = rendered.one("Service"), rendered.one("Service", "pthserve-pods")
    assert pods["metadata"]["name"] == "cats-pthserve-pods"
    assert pods["spec"]["clusterIP"] == "None"
    assert pods["spec"]["selector"] == main["spec"]["selector"]
    # A monitor that selects the Service by its labels scrapes no pod twice.
    assert pods["metadata"]["labels"]["app.kubernetes.io/component"] != "server"
    host = "cats-pthserve-pods.shop"
    assert rendered.environment["PTHSERVE_FEEDBACK_PEERS"] == f"http://{host}:8080"
    assert host in rendered.environment["PTHSERVE_ALLOWED_HOSTS"].split(",")
    assert "PTHSERVE_FEEDBACK_PEERS" not in helm.render().environment


def test_no_service_links_shadow_the_settings(helm: Helm) -> None:
    assert all(pod["enableServiceLinks"] is False for pod in helm.render().pods)


# Weights.


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("claim", "/models/resnet18.pth"),
        ("new claim", "/models"),
        ("configMap", "/models/tiny.pth"),
        ("download", "/models/resnet50.pth"),
        ("image volume", "/models/cats"),
        ("own image", "/models/cats"),
        ("pack", "/pack/model"),
    ],
)
def test_the_service_is_told_where_the_model_is(name: str, path: str, helm: Helm) -> None:
    assert helm.render(SETS[name]).environment["PTHSERVE_MODEL"] == path


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("claim", {"persistentVolumeClaim": {"claimName": "models", "readOnly": True}}),
        ("new claim", {"persistentVolumeClaim": {"claimName": "cats-pthserve-weights", "readOnly": True}}),
        ("configMap", {"configMap": {"name": "tiny"}}),
        ("download", {"emptyDir": {"sizeLimit": "1Gi"}}),
        (
            "image volume",
            {"image": {"reference": "registry.example/weights/cats:3", "pullPolicy": "IfNotPresent"}},
        ),
    ],
)
def test_weights_are_mounted_read_only(name: str, source: dict[str, Any], helm: Helm) -> None:
    rendered = helm.render(SETS[name])
    assert _volume(rendered.pod, "weights") == {"name": "weights", **source}
    assert _mounts(rendered.container)["/models"]["readOnly"]


@pytest.mark.parametrize("name", ["new claim", "download"])
def test_the_service_checks_the_pinned_digest(name: str, helm: Helm) -> None:
    assert helm.render(SETS[name]).environment["PTHSERVE_SHA256"] == SHA256


def test_a_new_claim_is_as_asked(helm: Helm) -> None:
    assert helm.render(SETS["new claim"]).one("PersistentVolumeClaim", "-weights")["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "fast",
        "resources": {"requests": {"storage": "5Gi"}},
    }


def test_a_download_is_checked_before_the_service_starts(helm: Helm) -> None:
    fetch = helm.render(SETS["download"]).init("fetch")
    assert fetch["args"] == [
        "fetch",
        "https://models.example/a/resnet50.pth?version=2#x",
        "--output=/models/resnet50.pth",
        f"--sha256={SHA256}",
    ]
    assert "readOnly" not in _mounts(fetch)["/models"]
    assert fetch["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_a_download_s_credentials_come_from_the_secret_alone(helm: Helm) -> None:
    rendered = helm.render(SETS["download"])
    credentials, proxy = rendered.init("fetch")["env"]
    assert credentials == {
        "name": "PTHSERVE_FETCH_AUTHORIZATION",
        "valueFrom": {"secretKeyRef": {"name": "models", "key": "authorization"}},
    }
    assert proxy["name"] == "HTTPS_PROXY"
    assert "PTHSERVE_FETCH_AUTHORIZATION" not in [one["name"] for one in rendered.container["env"]]


# The cache.


@pytest.mark.parametrize(
    ("name", "volume"),
    [
        ("defaults", {"emptyDir": {}}),
        ("cache", {"persistentVolumeClaim": {"claimName": "cats-pthserve-cache"}}),
        ("cache of a claim", {"persistentVolumeClaim": {"claimName": "caches"}}),
    ],
)
def test_the_cache_is_the_pod_s_own_or_a_claim(name: str, volume: dict[str, Any], helm: Helm) -> None:
    rendered = helm.render(SETS[name])
    assert _volume(rendered.pod, "cache") == {"name": "cache", **volume}
    assert not _mounts(rendered.container)["/var/cache/pthserve"].get("readOnly")


@pytest.mark.parametrize(
    ("name", "path", "image"),
    [
        ("store", "/models/cats", "full"),
        ("hub", "/models/vit-base", "full"),
        ("artefact", "/models/cats", "slim"),
        ("signed artefact", "/models/cats", "full"),
    ],
)
def test_an_address_is_fetched_before_the_service_starts(
    name: str, path: str, image: str, helm: Helm
) -> None:
    rendered = helm.render(SETS[name])
    fetch = rendered.init("fetch")
    assert fetch["args"][:3] == ["fetch", SETS[name]["weights"]["source"], f"--output={path}"]
    assert fetch["image"] == f"localhost/pthserve:0.1.0-{image}"
    assert rendered.environment["PTHSERVE_MODEL"] == path
    assert _volume(rendered.pod, "weights") == {"name": "weights", "emptyDir": {}}


def test_a_download_has_the_files_with_its_credentials(helm: Helm) -> None:
    fetch = helm.render(SETS["private registry"]).init("fetch")
    files = {one["value"].removesuffix("/ca.crt") for one in fetch["env"]}
    assert files == {"/run/registry", "/run/authority"}
    assert files < _mounts(fetch).keys()


def test_a_signed_download_is_verified_where_it_is_fetched(helm: Helm) -> None:
    rendered = helm.render(SETS["signed artefact"])
    fetch = rendered.init("fetch")
    assert "--require-signature=/run/pthserve/model.pub" in fetch["args"]
    assert _mounts(fetch)["/run/pthserve"] == {
        "name": "public-key",
        "mountPath": "/run/pthserve",
        "readOnly": True,
    }
    assert _volume(rendered.pod, "public-key")["configMap"] == {"name": "signer"}
    assert "PTHSERVE_REQUIRE_SIGNATURE" not in rendered.environment


def test_signed_weights_of_a_claim_are_verified_by_the_service(helm: Helm) -> None:
    rendered = helm.render(SETS["signed claim"])
    assert rendered.environment["PTHSERVE_REQUIRE_SIGNATURE"] == "/run/pthserve/team.pub"
    assert _mounts(rendered.container)["/run/pthserve"]["readOnly"]


# Packs.


def test_a_pack_is_built_by_the_full_image_and_served_by_the_slim_one(helm: Helm) -> None:
    rendered = helm.render(SETS["pack"])
    assert rendered.init("pack")["image"] == "localhost/pthserve:0.1.0-full"
    assert rendered.container["image"] == "localhost/pthserve:0.1.0-slim"


@pytest.mark.parametrize(("tag", "full"), [("slim", "full"), ("2-slim-arm64", "2-full-arm64"), ("2", "2")])
def test_a_given_tag_names_the_variant_that_packs(tag: str, full: str, helm: Helm) -> None:
    values = {**SETS["pack"], "image": {"variant": "slim", "tag": tag}}
    assert helm.render(values).init("pack")["image"] == f"localhost/pthserve:{full}"


def test_only_the_init_container_may_write_packs(helm: Helm) -> None:
    rendered = helm.render(SETS["pack"])
    writer, reader = _mounts(rendered.init("pack")), _mounts(rendered.container)
    assert not {"/packs", "/pack"} & {path for path, mount in writer.items() if mount.get("readOnly")}
    assert reader["/packs"]["readOnly"]
    assert reader["/pack"]["readOnly"]


def test_a_download_is_there_before_it_is_packed(helm: Helm) -> None:
    rendered = helm.render(SETS["pack of a download"])
    assert [container["name"] for container in rendered.pod["initContainers"]] == ["fetch", "pack"]
    assert {"name": "MODEL", "value": "/models/resnet50.pth"} in rendered.init("pack")["env"]
    assert _volume(rendered.pod, "packs")["persistentVolumeClaim"] == {"claimName": "packs"}


# Ports.


def test_ports_follow_the_settings(helm: Helm) -> None:
    rendered = helm.render(SETS["ports"])
    opened = {port["name"]: port["containerPort"] for port in rendered.container["ports"]}
    assert opened == {"http": 8080, "grpc": 8001, "metrics": 9090}
    served = {
        port["name"]: (port["port"], port["targetPort"]) for port in rendered.one("Service")["spec"]["ports"]
    }
    assert served == {"http": (80, "http"), "grpc": (8001, "grpc"), "metrics": (9090, "metrics")}


def test_the_service_finds_the_pods_and_not_the_test(helm: Helm) -> None:
    rendered = helm.render()
    selector = rendered.one("Service")["spec"]["selector"].items()
    assert selector <= rendered.one("Deployment")["spec"]["template"]["metadata"]["labels"].items()
    assert not selector <= rendered.one("Pod", "-test")["metadata"]["labels"].items()


# Life and death of a pod.


def test_probes_ask_the_service_s_own_routes(helm: Helm) -> None:
    container = helm.render().container
    assert container["startupProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}


def test_an_upgrade_takes_no_pod_away_before_another_is_ready(helm: Helm) -> None:
    strategy = helm.render().one("Deployment")["spec"]["strategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": "25%"}}


def test_a_drain_and_a_scale_down_stop_one_of_a_few_pods_and_a_tenth_of_many(helm: Helm) -> None:
    """Kubernetes rounds a share of a disruption budget up: of up to ten pods, a tenth is one."""
    rendered = helm.render({"autoscaling": {"enabled": True, "minReplicas": 2}})
    assert rendered.one("PodDisruptionBudget")["spec"]["maxUnavailable"] == "10%"
    down = rendered.one("HorizontalPodAutoscaler")["spec"]["behavior"]["scaleDown"]
    assert down["selectPolicy"] == "Max"
    assert {policy["type"]: policy["value"] for policy in down["policies"]} == {"Percent": 10, "Pods": 1}


def _unreachable(pod: Any) -> dict[str, int]:
    """How long the pod stays on a node that stopped responding, by the taint's key."""
    return {
        one["key"].removeprefix("node.kubernetes.io/"): one["tolerationSeconds"]
        for one in pod.get("tolerations", ())
        if one.get("effect") == "NoExecute" and "tolerationSeconds" in one
    }


def test_pods_of_a_node_that_stopped_responding_are_replaced_after_half_a_minute(helm: Helm) -> None:
    both = {"not-ready": 30, "unreachable": 30}
    assert _unreachable(helm.render().pod) == both
    assert _unreachable(helm.render({"gpu": {"enabled": True}, "image": {"variant": "cuda"}}).pod) == both
    assert _unreachable(helm.render({"unreachableSeconds": 90}).pod) == dict.fromkeys(both, 90)


@pytest.mark.parametrize(
    "toleration",
    [
        {"operator": "Exists"},
        {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"},
    ],
)
def test_tolerations_of_the_user_decide_how_long_a_pod_stays_on_such_a_node(
    helm: Helm, toleration: dict[str, str]
) -> None:
    """Of several that match, Kubernetes obeys the shortest."""
    assert helm.render({"tolerations": [toleration]}).pod["tolerations"] == [toleration]


def test_without_unreachable_seconds_kubernetes_default_holds(helm: Helm) -> None:
    assert "tolerations" not in helm.render({"unreachableSeconds": 0}).pod


def test_recreate_has_no_rolling_update(helm: Helm) -> None:
    assert helm.render(SETS["recreate"]).one("Deployment")["spec"]["strategy"] == {"type": "Recreate"}


def test_a_pod_sleeps_before_it_is_told_to_stop(helm: Helm) -> None:
    rendered = helm.render()
    assert rendered.container["lifecycle"] == {"preStop": {"sleep": {"seconds": 2}}}
    assert rendered.pod["terminationGracePeriodSeconds"] == 30


def test_no_sleep_no_hook(helm: Helm) -> None:
    assert "lifecycle" not in helm.render({"shutdown": {"preStopSeconds": 0}}).container


# Scaling.


@pytest.mark.parametrize(
    ("values", "there"),
    [
        ({}, False),
        ({"replicas": 2}, True),
        ({"replicas": 2, "podDisruptionBudget": {"enabled": False}}, False),
        ({"replicas": 3, "autoscaling": {"enabled": True}}, False),
        ({"autoscaling": {"enabled": True, "minReplicas": 2}}, True),
    ],
)
def test_a_disruption_budget_is_made_when_two_pods_always_run(
    values: dict[str, Any], there: bool, helm: Helm
) -> None:
    assert ("PodDisruptionBudget" in helm.render(values).kinds) is there


def test_an_autoscaler_is_not_contradicted(helm: Helm) -> None:
    assert "replicas" not in helm.render(SETS["cpu"]).one("Deployment")["spec"]
    assert helm.render({"replicas": 0}).one("Deployment")["spec"]["replicas"] == 0


def test_cpu_is_measured_in_the_serving_container(helm: Helm) -> None:
    (metric,) = helm.render(SETS["cpu"]).one("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["containerResource"] == {
        "name": "cpu",
        "container": "pthserve",
        "target": {"type": "Utilization", "averageUtilization": 70},
    }


@pytest.mark.parametrize(
    ("name", "metric", "target"),
    [("inflight", "pthserve_inflight_requests", "8000m"), ("saturation", "pthserve_saturation", "650m")],
)
def test_the_service_s_own_metric_is_held_at_its_target(
    name: str, metric: str, target: str, helm: Helm
) -> None:
    first, *_ = helm.render(SETS[name]).one("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert first["pods"] == {
        "metric": {"name": metric},
        "target": {"type": "AverageValue", "averageValue": target},
    }


def test_further_metrics_are_passed_through(helm: Helm) -> None:
    *_, last = helm.render(SETS["saturation"]).one("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert last["resource"]["name"] == "memory"


def test_pods_come_at_once_and_go_slowly(helm: Helm) -> None:
    behavior = helm.render(SETS["cpu"]).one("HorizontalPodAutoscaler")["spec"]["behavior"]
    assert behavior["scaleUp"]["stabilizationWindowSeconds"] == 0
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 300


def test_keda_takes_the_place_of_the_autoscaler(helm: Helm) -> None:
    rendered = helm.render(SETS["keda"])
    assert "HorizontalPodAutoscaler" not in rendered.kinds
    assert "ScaledObject" not in helm.render(SETS["cpu"]).kinds


def test_keda_does_not_take_silence_for_idleness(helm: Helm) -> None:
    spec = helm.render(SETS["keda"]).one("ScaledObject")["spec"]
    (trigger,) = spec["triggers"]
    assert trigger["metadata"]["ignoreNullValues"] == "false"
    assert trigger["metadata"]["threshold"] == "0.7"
    assert (
        trigger["metadata"]["query"]
        == 'sum(avg_over_time(pthserve_saturation{namespace="shop",release="cats"}[30s]))'
    )
    assert spec["fallback"] == {"failureThreshold": 3, "replicas": 3, "behavior": "currentReplicasIfHigher"}


def test_keda_on_cpu_has_no_fallback(helm: Helm) -> None:
    spec = helm.render(SETS["keda on cpu"]).one("ScaledObject")["spec"]
    assert "fallback" not in spec
    assert [trigger["type"] for trigger in spec["triggers"]] == ["cpu", "cron"]


# GPU.


def test_a_gpu_is_asked_for_and_used(helm: Helm) -> None:
    rendered = helm.render(SETS["gpu"])
    assert rendered.container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert rendered.environment["PTHSERVE_DEVICE"] == "cuda"
    assert rendered.pod["runtimeClassName"] == "nvidia"
    assert rendered.pod["nodeSelector"] == {"accelerator": "h100"}
    assert rendered.pod["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_without_a_gpu_there_is_no_trace_of_one(helm: Helm) -> None:
    assert "nvidia" not in helm.render().text


def test_a_given_device_beats_the_gpu_s(helm: Helm) -> None:
    values = {"gpu": {"enabled": True}, "settings": {"device": "auto"}}
    assert helm.render(values).environment["PTHSERVE_DEVICE"] == "auto"


# Who may talk to whom.


def test_everyone_may_call_and_a_pod_may_call_nobody(helm: Helm) -> None:
    spec = helm.render().one("NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["ingress"] == [{"ports": [{"port": "http"}]}]
    assert not spec["egress"]


def test_when_callers_are_named_the_test_is_one_of_them(helm: Helm) -> None:
    rendered = helm.render(SETS["callers"])
    api, metrics = rendered.one("NetworkPolicy")["spec"]["ingress"]
    named, test = api["from"]
    assert named == {"podSelector": {"matchLabels": {"role": "caller"}}}
    labels = rendered.one("Pod", "-test")["metadata"]["labels"]
    assert test["podSelector"]["matchLabels"].items() <= labels.items()
    assert metrics == {"ports": [{"port": "metrics"}], "from": [{"namespaceSelector": {}}]}


def test_keys_come_from_the_secret(helm: Helm) -> None:
    rendered = helm.render(SETS["keys"])
    assert rendered.environment["PTHSERVE_API_KEYS"] == "/run/secrets/pthserve/keys"
    for pod in rendered.pods:
        assert _volume(pod, "api-keys")["secret"] == {
            "secretName": "cats-keys",
            "items": [{"key": "keys", "path": "keys"}],
        }


# Seen.


def test_monitors_mark_what_they_scrape_with_the_release(helm: Helm) -> None:
    (service,) = helm.render(SETS["service monitor"]).one("ServiceMonitor")["spec"]["endpoints"]
    (pod,) = helm.render(SETS["pod monitor"]).one("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert service == pod
    assert service == {
        "port": "http",
        "path": "/metrics",
        "interval": "5s",
        "relabelings": [{"targetLabel": "release", "replacement": "cats"}],
    }


def test_metrics_on_a_port_of_their_own_are_scraped_there(helm: Helm) -> None:
    values = {"settings": {"metricsPort": 9090}, "monitoring": {"serviceMonitor": {"enabled": True}}}
    (endpoint,) = helm.render(values).one("ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["port"] == "metrics"


def test_a_monitor_selects_the_service(helm: Helm) -> None:
    rendered = helm.render(SETS["service monitor"])
    selector = rendered.one("ServiceMonitor")["spec"]["selector"]["matchLabels"].items()
    assert selector <= rendered.one("Service")["metadata"]["labels"].items()


def test_dashboards_are_found_by_the_sidecar(helm: Helm) -> None:
    rendered = helm.render(SETS["service monitor"])
    for name in ("service", "model"):
        metadata = rendered.one("ConfigMap", f"-dashboard-{name}")["metadata"]
        assert metadata["labels"]["grafana_dashboard"] == "1"
        assert metadata["annotations"] == {"grafana_folder": "Models"}


def test_labels_that_prometheus_selects_by_are_added(helm: Helm) -> None:
    rendered = helm.render(SETS["service monitor"])
    for kind in ("ServiceMonitor", "PrometheusRule"):
        assert rendered.one(kind)["metadata"]["labels"]["release"] == "stack"


# Names.


def test_a_release_named_for_the_chart_is_not_named_twice(helm: Helm) -> None:
    found = helm.run(
        "template", "pthserve", "charts/pthserve", "--kube-version", "1.37.2", "-s", "templates/service.yaml"
    )
    assert "\n  name: pthserve\n" in found.stdout


@pytest.mark.parametrize("name", ["x" * 53, "a-very-long-release-name-that-goes-on-and-on"])
def test_no_name_is_too_long(name: str, helm: Helm) -> None:
    values = {"monitoring": {"dashboards": {"enabled": True}}, "fullnameOverride": name}
    names = [document["metadata"]["name"] for document in helm.render(values).documents]
    assert max(map(len, names)) <= 63


def test_an_account_that_is_not_made_is_the_namespace_s_default(helm: Helm) -> None:
    rendered = helm.render(SETS["no account"])
    assert "ServiceAccount" not in rendered.kinds
    assert rendered.pod["serviceAccountName"] == "default"


def test_what_is_added_by_hand_arrives(helm: Helm) -> None:
    rendered = helm.render(SETS["extras"])
    metadata = rendered.one("Deployment")["spec"]["template"]["metadata"]
    assert metadata["labels"]["team"] == "cats"
    assert metadata["annotations"]["note"] == "x"
    assert rendered.pod["priorityClassName"] == "high"
    assert rendered.pod["affinity"] == {"nodeAffinity": {}}
    assert {"name": "TZ", "value": "UTC"} in rendered.container["env"]
    assert _mounts(rendered.container)["/more"]["name"] == "more"
    assert rendered.one("Service")["spec"]["type"] == "LoadBalancer"


def test_spread_constraints_count_this_release_s_pods(helm: Helm) -> None:
    rendered = helm.render()
    selector = rendered.one("Deployment")["spec"]["selector"]
    assert all(
        constraint["labelSelector"] == selector for constraint in rendered.pod["topologySpreadConstraints"]
    )


def test_an_ingress_and_a_route_lead_to_the_service(helm: Helm) -> None:
    (rule,) = helm.render(SETS["ingress"]).one("Ingress")["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert path["backend"]["service"] == {"name": "cats-pthserve", "port": {"name": "http"}}
    assert (path["path"], path["pathType"]) == ("/", "Prefix")
    (rule,) = helm.render(SETS["route"]).one("HTTPRoute")["spec"]["rules"]
    assert rule["backendRefs"] == [{"name": "cats-pthserve", "port": 80}]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/"}}]


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"settings": {"rootPath": "/cats"}}, "/cats"),
        ({"settings": {"rootPath": "/cats"}, "ingress": {"path": "/a"}, "httpRoute": {"path": "/a"}}, "/a"),
    ],
)
def test_an_ingress_and_a_route_may_have_a_path_of_their_own(
    helm: Helm, values: dict[str, dict[str, str]], path: str
) -> None:
    ingress = {**SETS["ingress"]["ingress"], **values.get("ingress", {})}
    (rule,) = helm.render(SETS["ingress"] | values | {"ingress": ingress}).one("Ingress")["spec"]["rules"]
    assert [found["path"] for found in rule["http"]["paths"]] == [path]
    route = {**SETS["route"]["httpRoute"], **values.get("httpRoute", {})}
    (rule,) = helm.render(SETS["route"] | values | {"httpRoute": route}).one("HTTPRoute")["spec"]["rules"]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": path}}]
