"""The manifests, rendered by a real kustomize and held against the schemas of Kubernetes and of custom resources."""

import copy
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from server import config
from server.skills.catalogue import Skills
from server.web.listeners import CLOSE_SECONDS
from server.web.signals import FORCE_SECONDS
from tests.conftest import ROOT
from tests.exams.hostile import nginx
from tests.server.web.access.test_guard import key_of
from tests.server.web.test_listeners import call
from tests.support.harness import Serve

FOLDER = ROOT / "deploy" / "kubernetes"
SCHEMAS = Path(__file__).parent / "schemas"
OVERLAYS = ("one", "many")
Manifest = dict[str, Any]
pytestmark = pytest.mark.skipif(shutil.which("kustomize") is None, reason="kustomize is not installed: tests/install")


def rendered(overlay: str) -> list[Manifest]:
    command = ["kustomize", "build", str(FOLDER / "overlays" / overlay)]
    return list(yaml.safe_load_all(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def the(manifests: list[Manifest], kind: str, name: str = "secateur") -> Manifest:
    [found] = [each for each in manifests if each["kind"] == kind and each["metadata"]["name"].startswith(name)]
    return found


def pod_of(manifests: list[Manifest]) -> Manifest:
    pod: Manifest = the(manifests, "StatefulSet")["spec"]["template"]["spec"]
    return pod


def container(pod: Manifest, name: str = "secateur") -> Manifest:
    [found] = [each for each in pod["containers"] if each["name"] == name]
    return dict(found)


def settings(manifests: list[Manifest], folder: Path) -> config.Config:
    """The server's settings, read as the server reads them; the URLs come from files that are made here."""
    [data] = [each["data"] for each in manifests if each["kind"] == "ConfigMap" and "server.toml" in each["data"]]
    for name, text in data.items():
        (folder / name).write_text(text.replace("/etc/secateur-keys", str(folder)))
    for name, url in (
        ("ledger", "postgresql://a@b/c"),
        ("registry", "postgresql://a@b/d"),
        ("rate_limits", "rediss://e"),
    ):
        (folder / name).write_text(url)
    return config.load(folder / "server.toml")


def strict(schema: Any) -> Any:
    """The schema with fields refused that it does not name, as an API server with strict validation does."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(value) for name, value in schema.items()}
    if isinstance(made.get("properties"), dict) and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if made.pop("x-kubernetes-int-or-string", False):
        made.pop("type", None)
    return made


def custom(manifest: Manifest) -> Any:
    """The schema of a custom resource, None for what Kubernetes has itself."""
    for path in SCHEMAS.glob("*.json"):
        found = json.loads(path.read_text())
        if (found["apiVersion"], found["kind"]) == (manifest["apiVersion"], manifest["kind"]):
            schema = strict(found["schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            return schema
    return None


def validate(manifest: Manifest, version: str) -> None:
    if schema := custom(manifest):
        jsonschema.Draft7Validator(schema).validate(manifest)
    else:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_every_object_is_valid(overlay: str, version: str) -> None:
    manifests = rendered(overlay)
    for manifest in manifests:
        validate(manifest, version)
    kinds = {each["kind"] for each in manifests}
    assert {"StatefulSet", "Service", "NetworkPolicy", "PodDisruptionBudget", "ConfigMap"} <= kinds
    more = {"InferencePool", "HTTPRoute", "HorizontalPodAutoscaler", "ServiceMonitor", "PersistentVolumeClaim"}
    assert kinds & more == (more if overlay == "many" else set())


def misspelt(manifest: Manifest) -> Iterator[Manifest]:
    """The object with each of its fields below `spec` misspelt in turn, and with another type."""
    for name in manifest.get("spec", {}):
        for change in ("name", "type"):
            wrong = copy.deepcopy(manifest)
            value = wrong["spec"].pop(name)
            wrong["spec"].update({name + "x": value} if change == "name" else {name: {"not": ["so"]}})
            yield wrong


def test_a_misspelt_field_is_found() -> None:
    """The schemas refuse what they should, or a valid manifest would prove nothing."""
    count = 0
    for manifest in rendered("many"):
        for wrong in misspelt(manifest):
            with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
                validate(wrong, "1.37")
            count += 1
    assert count > 40


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_named_exists(overlay: str) -> None:
    """Volumes, ports, config maps and selectors point at something in the same overlay."""
    manifests = rendered(overlay)
    pod, labels = pod_of(manifests), the(manifests, "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    claimed = {each["metadata"]["name"] for each in the(manifests, "StatefulSet")["spec"]["volumeClaimTemplates"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    mounted = {mount["name"] for each in pod["containers"] for mount in each["volumeMounts"]}
    assert mounted == set(volumes) | claimed
    maps = {each["metadata"]["name"] for each in manifests if each["kind"] == "ConfigMap"}
    assert {each["configMap"]["name"] for each in volumes.values() if "configMap" in each} == maps
    ports = {port["name"] for each in pod["containers"] for port in each["ports"]}
    for manifest in manifests:
        if manifest["kind"] == "Service":
            assert manifest["spec"]["selector"].items() <= labels.items()
            assert {port["targetPort"] for port in manifest["spec"]["ports"]} <= ports
    policy = the(manifests, "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == ports
    claims = {
        each["persistentVolumeClaim"]["claimName"] for each in volumes.values() if "persistentVolumeClaim" in each
    }
    assert claims == ({"registry"} if overlay == "many" else {"models"})


def test_the_pool_the_route_the_scaler_and_the_monitor_find_their_objects() -> None:
    manifests = rendered("many")
    labels = the(manifests, "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    pool = the(manifests, "InferencePool")["spec"]
    assert pool["selector"]["matchLabels"].items() <= labels.items()
    assert pool["targetPorts"] == [{"number": 8000}]
    first, rest = the(manifests, "HTTPRoute")["spec"]["rules"]
    assert first["backendRefs"][0]["name"] == the(manifests, "InferencePool")["metadata"]["name"]
    service = {each["metadata"]["name"]: each for each in manifests if each["kind"] == "Service"}
    assert service[rest["backendRefs"][0]["name"]]["spec"]["ports"][0]["port"] == rest["backendRefs"][0]["port"]
    scaled = the(manifests, "HorizontalPodAutoscaler")["spec"]
    assert scaled["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "secateur"}
    monitor = the(manifests, "ServiceMonitor")["spec"]
    chosen = [
        name
        for name, each in service.items()
        if monitor["selector"]["matchLabels"].items() <= each["metadata"]["labels"].items()
    ]
    assert chosen == ["secateur-admin"]
    assert monitor["endpoints"][0]["port"] in {port["name"] for port in service["secateur-admin"]["spec"]["ports"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_settings_are_read_and_the_probes_answer(overlay: str, serve: Serve, tmp_path: Path) -> None:
    manifests = rendered(overlay)
    read = settings(manifests, tmp_path)
    assert Skills(Skills.read(tmp_path / read.skills.name)).names == ("help",)
    pod = pod_of(manifests)
    server = container(pod)
    assert {port["name"]: port["containerPort"] for port in server["ports"]} == {
        "public": read.port,
        "admin": read.admin_port,
    }
    assert read.threads == int(server["resources"]["requests"]["cpu"])
    served = serve("ok", admin_keys=str(tmp_path / "admin.json"))
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["httpGet"]["port"] == "admin"
        assert call(served.admin, server[probe]["httpGet"]["path"]).status == 200
    mounts = {mount["mountPath"] for mount in server["volumeMounts"]}
    state = read.feedback_file if overlay == "many" else Path(read.ledger)
    assert {str(state.parent), str(read.skills.parent)} < mounts
    sleep = int(server["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= sleep + read.drain_seconds + 2 * CLOSE_SECONDS + FORCE_SECONDS


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed: tests/install")
def test_the_sidecar_gives_the_gauges_alone(serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The endpoint picker sends no key; nginx, with the template filled as its image fills it, adds one."""
    keys = tmp_path / "admin.json"
    key = key_of(keys, capsys, "--admin", "metrics")
    served = serve("ok", admin_keys=str(keys), metrics_compat="vllm")
    template = next(each["data"] for each in rendered("many") if "default.conf.template" in each.get("data", {}))
    port = nginx.free_port()
    text = template["default.conf.template"].replace("${METRICS_KEY}", key)
    text = text.replace("listen 9465", f"listen 127.0.0.1:{port}").replace(
        "127.0.0.1:9464", served.admin.split("//")[1]
    )
    assert call(served.admin, "/metrics").status == 401
    with nginx.running(text, port):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            found = answer.read().decode()
        for name in ("vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"):
            assert f"# TYPE {name} gauge" in found
        assert call(f"http://127.0.0.1:{port}", "/admin/usage").status == 404
