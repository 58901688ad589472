"""The files of deploy/, checked without a cluster, a container engine or systemd as process 1."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pluralllm.common.errors.tree import leaves
from pluralllm.common.process.exits import REPLACED, exit_code_of
from pluralllm.server.process import open_files
from pluralllm.server.process.config import ServerConfig

pytestmark = pytest.mark.seconds

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = ("pluralllm-server.service", "pluralllm-client@.service")
MANIFESTS = ("coordinator", "client", "overlays/coordinator-postgresql-s3", "overlays/client-gpu")
MAX_EXPOSURE = 20  # on systemd-analyze's scale of 0 to 100; below 20 it calls a unit "OK"


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_no_fault_in_a_unit_and_little_that_it_may_touch(tmp_path: Path, name: str) -> None:
    binaries = Path(sys.executable).parent
    unit = tmp_path / name.replace("@.", "@group.")
    unit.write_text((DEPLOY / "systemd" / name).read_text().replace("/opt/pluralllm/bin", str(binaries)))
    verified = run("systemd-analyze", "verify", str(unit))
    assert (verified.returncode, verified.stderr) == (0, "")
    exposed = run("systemd-analyze", "security", "--offline=yes", f"--threshold={MAX_EXPOSURE}", str(unit))
    assert exposed.returncode == 0, exposed.stdout[-300:]


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_waits_to_be_told_and_starts_a_command_there_is(name: str) -> None:
    text = (DEPLOY / "systemd" / name).read_text()
    assert "Type=notify\n" in text
    assert "WatchdogSec=" in text
    (command,) = re.findall(r"^ExecStart=/opt/pluralllm/bin/(.+) --config ", text, re.MULTILINE)
    module, verb = command.split()
    assert run(sys.executable, "-m", module.replace("-", "."), verb, "--help").returncode == 0


@pytest.mark.parametrize("name", UNITS)
def test_a_reload_of_a_unit_opens_the_log_file_anew_in_a_folder_that_is_the_units(name: str) -> None:
    unit = (DEPLOY / "systemd" / name).read_text()
    assert "ExecReload=/bin/kill -HUP $MAINPID\n" in unit
    assert "LogsDirectory=pluralllm\n" in unit
    example = (DEPLOY / "examples" / ("coordinator.toml" if "server" in name else "client.toml")).read_text()
    assert 'log_file = "/var/log/pluralllm/' in example


def test_a_daemon_whose_identity_another_one_uses_is_not_started_again() -> None:
    unit = (DEPLOY / "systemd" / "pluralllm-client@.service").read_text()
    assert re.findall(r"^RestartPreventExitStatus=(.*)$", unit, re.MULTILINE) == [str(REPLACED)]
    assert [leaf.__name__ for leaf in leaves().values() if exit_code_of(leaf) == REPLACED] == ["SessionReplaced"]


def test_the_coordinator_may_open_as_many_files_as_it_sets_itself_in_a_unit_and_in_a_container() -> None:
    unit = (DEPLOY / "systemd" / "pluralllm-server.service").read_text()
    assert re.findall(r"^LimitNOFILE=(\d+)$", unit, re.MULTILINE) == [str(open_files.TARGET)]
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert services["coordinator"]["ulimits"] == {"nofile": open_files.TARGET}
    assert open_files.ceilings(open_files.TARGET, ServerConfig().max_connections).main == ServerConfig().max_connections


def built(folder: str) -> list[Any]:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here, which makes one manifest of an overlay")
    done = run("kubectl", "kustomize", str(DEPLOY / "kubernetes" / folder))
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("folder", MANIFESTS)
def test_a_manifest_has_probes_resources_and_no_right_it_does_not_need(folder: str) -> None:
    found = built(folder)
    assert {"Namespace", "StatefulSet", "NetworkPolicy"} <= {each["kind"] for each in found}
    (workload,) = [each for each in found if each["kind"] == "StatefulSet"]
    pod = workload["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert "memory" in container["resources"]["limits"]
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}


def test_overlays_add_a_gpu_and_the_stores() -> None:
    def container(folder: str) -> Any:
        (workload,) = [each for each in built(folder) if each["kind"] == "StatefulSet"]
        return workload["spec"]["template"]["spec"]["containers"][0]

    assert container("overlays/client-gpu")["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container("overlays/coordinator-postgresql-s3")["envFrom"] == [{"secretRef": {"name": "coordinator-stores"}}]


@pytest.mark.parametrize("name", ["server", "client"])
def test_an_image_runs_as_nobody_and_asks_its_own_command_for_its_health(name: str) -> None:
    text = (DEPLOY / "docker" / f"{name}.Dockerfile").read_text()
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == 2 * ["${BASE}"]
    before, _, _ = text.partition("FROM ")
    assert "ARG BASE=python:3.11-slim-bookworm@${PYTHON_DIGEST}\n" in before, "another base is asked for by its name"
    assert "ARG PYTHON_DIGEST\n" in text, "a default would be a digest that grows old unnoticed"
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert f'CMD ["pluralllm-{name}", "healthy"]' in text
    sources = re.findall(r"^COPY (?!--from)(\S+)", text, re.MULTILINE)
    assert sources == ["deploy/locks", "common", name], "an image holds nothing of the other side or of research"
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source.removeprefix('./')}\n" in (ROOT / ".dockerignore").read_text()
    if name == "server":
        assert "torch" not in text.partition("\n")[2]


def test_compose_has_all_parts_and_hardens_ours() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert {
        "coordinator",
        "database",
        "objects",
        "prometheus",
        "grafana",
        *(f"client-{letter}" for letter in "abcde"),
    } <= services.keys()
    for name, service in services.items():
        if name.startswith(("coordinator", "client")):
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name
        else:
            assert re.search(r":[^@]+@\$\{\w+_DIGEST:\?", service["image"]), f"{name} has no version or no digest"
    example = (DEPLOY / "compose.env.example").read_text()
    for variable in set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text())):
        assert f"{variable}=" in example


def test_a_client_in_compose_reaches_the_coordinator_and_nothing_outside() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    internal = {name for name, network in compose["networks"].items() if network.get("internal")}
    services = compose["services"]
    for name in (*(f"client-{letter}" for letter in "abcde"), "database", "objects", "bucket"):
        assert set(services[name]["networks"]) <= internal, name
    assert set(services["client-a"]["networks"]) & set(services["coordinator"]["networks"])
    stores = set(services["database"]["networks"])
    assert not stores & set(services["client-a"]["networks"]), "a client must not reach the coordinator's stores"
    assert stores < set(services["coordinator"]["networks"])


def egress(folder: str) -> list[Any]:
    (policy,) = [document for document in built(folder) if document["kind"] == "NetworkPolicy"]
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    return list(policy["spec"]["egress"])


def ports(rules: list[Any]) -> set[tuple[int, str]]:
    return {(port["port"], port.get("protocol", "TCP")) for rule in rules for port in rule["ports"]}


DNS = {(53, "UDP"), (53, "TCP")}


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [
        ("coordinator", set()),
        ("overlays/coordinator-postgresql-s3", {(5432, "TCP"), (443, "TCP"), (9000, "TCP"), *DNS}),
        ("client", {(7443, "TCP"), (7444, "TCP"), *DNS}),
        ("overlays/client-gpu", {(7443, "TCP"), (7444, "TCP"), *DNS}),
    ],
)
def test_a_pod_connects_only_to_the_ports_that_it_needs(folder: str, allowed: set[tuple[int, str]]) -> None:
    rules = egress(folder)
    assert ports(rules) == allowed
    for rule in rules:
        assert rule["to"], "a rule without addresses allows every address"
        is_dns = ports([rule]) == DNS
        for peer in rule["to"]:
            if is_dns:
                assert peer["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}
            else:
                metadata_service = {"0.0.0.0/0": "169.254.0.0/16", "::/0": "fd00:ec2::254/128"}
                assert metadata_service[peer["ipBlock"]["cidr"]] in peer["ipBlock"]["except"]


def test_the_policy_of_a_client_holds_for_every_pod_of_its_namespace() -> None:
    (policy,) = [document for document in built("client") if document["kind"] == "NetworkPolicy"]
    assert policy["spec"]["podSelector"] == {}


def test_prometheus_scrapes_what_there_is_and_its_alerts_ask_for_metrics_that_exist() -> None:
    reference = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    documented = set(re.findall(r"^\| `(pluralllm_\w+)`", reference, re.MULTILINE))
    alerts = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"][0]["rules"]
    asked = {name for alert in alerts for name in re.findall(r"pluralllm_\w+", alert["expr"])}
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in asked} <= documented
    jobs = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())["scrape_configs"]
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    targets = [target for job in jobs for config in job["static_configs"] for target in config["targets"]]
    assert {target.partition(":")[0] for target in targets} <= services.keys()
    assert 'job="pluralllm-coordinator"' in alerts[0]["expr"]
    assert "pluralllm-coordinator" in {job["job_name"] for job in jobs}
