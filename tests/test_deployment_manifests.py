"""Manifests and the page about deploying agree with the app and its image: ports, paths, settings, times, commands."""

import functools
import importlib
import itertools
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from test_deployment import SETTINGS, image_environment, stages, values

from space.errors import CODES
from space.gate import OPEN_PATHS, ROUTES
from space.options import Options, make_parser, parse_options
from space.tasks import TASKS
from space.telemetry import Telemetry

ROOT = Path(__file__).parents[1]
BASE = ROOT / "deploy" / "base"
PAGE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
MARGIN_SECONDS = 5  # for a process to end, after the drain


@functools.cache
def manifests() -> dict[str, dict]:
    """Kind -> the manifest of that kind in `deploy/base`."""
    documents = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(BASE.glob("*.yaml"))]
    return {document["kind"]: document for document in documents}


def resources() -> dict[str, dict]:
    return {kind: document for kind, document in manifests().items() if kind != "Kustomization"}


def pod() -> dict:
    return manifests()["Deployment"]["spec"]["template"]["spec"]


def container() -> dict:
    (only,) = pod()["containers"]
    return only


def settings_file() -> dict[str, str]:
    lines = (BASE / "settings.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def options_of_pod() -> Options:
    return parse_options([], {**image_environment(), **settings_file()})


def rendered(folder: str) -> dict[str, dict]:
    """Kind -> manifest, as `kubectl apply -k` sends it."""
    if not shutil.which("kubectl"):
        pytest.skip("needs kubectl, to render a kustomization")
    done = subprocess.run(["kubectl", "kustomize", ROOT / "deploy" / folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {document["kind"]: document for document in yaml.safe_load_all(done.stdout)}


def validate(document: dict) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate (requirements-dev.txt)")
    kubernetes.validate(document, kubernetes.latest_version(), strict=True)


# -- manifests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(resources()))
def test_a_manifest_is_what_kubernetes_accepts(kind):
    validate(resources()[kind])


@pytest.mark.parametrize("folder", ["base", "baked"])
def test_a_kustomization_renders_to_what_kubernetes_accepts(folder):
    found = rendered(folder)
    assert set(found) == {*resources(), "ConfigMap"}
    for document in found.values():
        validate(document)


def test_the_kustomization_lists_every_file():
    listed = set(manifests()["Kustomization"]["resources"]) | {"kustomization.yaml", "settings.env"}
    assert listed == {path.name for path in BASE.iterdir()}


def test_everything_selects_the_pods_by_their_labels():
    found = resources()
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [found["Deployment"]["spec"]["selector"]["matchLabels"], found["Service"]["spec"]["selector"]]
    selectors += [found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]]
    selectors += [found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]]
    selectors += [spread["labelSelector"]["matchLabels"] for spread in pod()["topologySpreadConstraints"]]
    assert all(selector == labels for selector in selectors)
    assert (
        found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]
    )
    assert "replicas" not in found["Deployment"]["spec"]  # would undo the autoscaler at every rollout


def test_the_port_is_the_same_from_the_app_to_the_service():
    (port,) = container()["ports"]
    assert port["containerPort"] == options_of_pod().port == int(values("app", "EXPOSE")[0])
    assert [entry["targetPort"] for entry in resources()["Service"]["spec"]["ports"]] == [port["name"]]
    assert resources()["NetworkPolicy"]["spec"]["ingress"] == [{"ports": [{"port": port["name"]}]}]


def test_probes_ask_paths_that_need_no_token():
    paths = {name: container()[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    assert set(paths.values()) == set(OPEN_PATHS)


def test_a_pod_is_given_the_time_that_running_calls_may_take():
    options = options_of_pod()
    pause = float(container()["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert options.drain_seconds >= options.timeout_seconds
    assert pod()["terminationGracePeriodSeconds"] >= pause + options.drain_seconds + MARGIN_SECONDS


def test_a_service_of_this_name_does_not_set_a_setting():
    assert resources()["Service"]["metadata"]["name"] == "mmfusion"  # so it would be MMFUSION_PORT
    assert pod()["enableServiceLinks"] is False


def test_pods_have_no_rights_and_run_as_the_user_of_the_image():
    user, group = map(int, values("app", "USER")[0].split(":"))
    given = pod()["securityContext"]
    assert (given["runAsUser"], given["runAsGroup"], given["fsGroup"]) == (user, group, group)
    assert given["runAsNonRoot"] and given["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert pod()["automountServiceAccountToken"] is False


def test_whatever_the_image_writes_to_is_a_volume_of_limited_size():
    places = [mount["mountPath"] for mount in container()["volumeMounts"]]
    environment = image_environment()
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "MPLCONFIGDIR", "GRADIO_TEMP_DIR"):
        assert any(f"{environment[name]}/".startswith(f"{place}/") for place in places), name
    assert all(volume["emptyDir"]["sizeLimit"] for volume in pod()["volumes"])
    baked = image_environment(MODEL="user/name", REVISION="1a2b3c4")["HF_HUB_CACHE"]
    assert not any(f"{baked}/".startswith(f"{place}/") for place in places)  # a volume would hide the weights


def test_settings_and_secrets_are_known_to_the_app_and_no_secret_is_written_down():
    assert set(settings_file()) <= SETTINGS - {"MMFUSION_API_TOKENS"}
    assert {"MMFUSION_MODEL", "MMFUSION_REVISION"} <= set(settings_file())
    assert re.fullmatch("[0-9a-f]{40}", options_of_pod().revision)
    secret = [entry for entry in container()["env"] if "secretKeyRef" in entry["valueFrom"]]
    assert {entry["name"] for entry in secret} == {"HF_TOKEN", "MMFUSION_API_TOKENS"}
    assert all(entry["valueFrom"]["secretKeyRef"]["optional"] for entry in secret)
    assert "Secret" not in manifests()


def test_a_baked_image_names_its_model_itself_and_reaches_nothing():
    found = rendered("baked")
    model = {"MMFUSION_MODEL", "MMFUSION_REVISION"}
    assert found["ConfigMap"]["data"] == {k: v for k, v in settings_file().items() if k not in model}
    assert found["NetworkPolicy"]["spec"]["egress"] == []
    (only,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert {entry["name"] for entry in only["env"]} == {"OMP_NUM_THREADS", "MMFUSION_API_TOKENS"}


# -- the page ---------------------------------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def shell_lines() -> list[str]:
    return [re.sub(r"\s#.*", "", line).strip() for line in "".join(blocks("bash")).splitlines()]


def words_after(line: str, flag: str) -> list[str]:
    words = shlex.split(line)
    return [after for word, after in itertools.pairwise(words) if word == flag]


@pytest.mark.parametrize("command", [line for line in shell_lines() if line.startswith("python ")])
def test_a_command_of_the_page_has_flags_that_exist(command):
    script, *arguments = shlex.split(command)[1:]
    if script == "app.py":
        assert parse_options(arguments, {})
    else:
        assert importlib.import_module(script.removesuffix(".py").replace("/", ".")).parse_args(arguments)


def test_builds_and_runs_of_the_page_use_what_the_dockerfile_and_the_app_know():
    arguments = {value.split("=")[0] for stage in stages() for value in values(stage, "ARG")}
    options = options_of_pod()
    lines = [line for line in shell_lines() if line.startswith("docker ")]
    assert len(lines) >= 5
    for line in lines:
        assert {word.split("=")[0] for word in words_after(line, "--build-arg")} <= arguments
        assert {word.split("=")[0] for word in words_after(line, "-e")} <= SETTINGS | {"HF_TOKEN"}
        assert all((ROOT / name).is_file() for name in words_after(line, "--env-file"))
        assert all(word == f"127.0.0.1:7860:{options.port}" for word in words_after(line, "-p"))
        if line.startswith("docker run"):
            assert int(words_after(line, "--stop-timeout")[0]) >= options.drain_seconds + MARGIN_SECONDS
    for line in shell_lines():
        assert all((ROOT / folder / "kustomization.yaml").is_file() for folder in words_after(line, "-k"))


def settings_table() -> str:
    rows = [f"| `--{x.dest}` | `MMFUSION_{x.dest.upper()}` | {x.help} |" for x in make_parser({})._actions[1:]]
    return "\n".join(["| flag | variable | meaning |", "| --- | --- | --- |", *rows])


def test_the_table_of_settings_is_that_of_the_app():
    table = settings_table()
    assert table in PAGE, f"the table in docs/deployment.md has to be\n\n{table}"


def test_the_table_of_manifests_lists_them():
    table = PAGE[PAGE.index("| file | holds |") :].split("\n\n")[0]
    assert set(re.findall(r"`(\w+\.\w+)`", table)) == {path.name for path in BASE.iterdir()} - {"kustomization.yaml"}


def metrics_table() -> str:
    rows = []
    for metric in Telemetry().registry._collector_to_names:
        (family,) = metric.describe()
        labels = ", ".join(f"`{name}`" for name in metric._labelnames)
        name = family.name + ("_total" if family.type == "counter" else "")
        rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(["| metric | kind | labels | meaning |", "| --- | --- | --- | --- |", *rows])


def test_the_table_of_metrics_is_that_of_the_server():
    table = metrics_table()
    assert table in PAGE, f"the table in docs/deployment.md has to be\n\n{table}"


def exposed() -> set[str]:
    """Names of time series, of a server that has counted something everywhere."""
    telemetry = Telemetry()
    for metric in telemetry.registry._collector_to_names:
        child = metric.labels(*["x"] * len(metric._labelnames)) if metric._labelnames else metric
        (child.observe if hasattr(child, "observe") else child.inc)(1)
    return set(re.findall(r"^(\w+)", telemetry.exposition()[0].decode(), re.MULTILINE))


def test_alerts_and_scraping_ask_for_what_the_server_exposes():
    scraping, alerts = map(yaml.safe_load, blocks("yaml"))
    assert scraping["scrape_configs"][0]["static_configs"][0]["targets"] == [f"127.0.0.1:{Options().port}"]
    rules = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    assert len(rules) == 5
    asked = "\n".join(rules)
    assert set(re.findall(r"\bmmfusion_\w+", asked)) <= exposed()
    assert set(re.findall(r'code="(\w+)"', asked)) <= set(CODES)
    assert set(re.findall(r'route="([^"]+)"', asked)) <= set(ROUTES)
    assert set(re.findall(r'task="(\w+)"', asked)) <= set(TASKS)
    assert set(re.findall(r'job="(\w+)"', asked)) == {scraping["scrape_configs"][0]["job_name"]}


def test_the_proxy_lets_through_what_the_app_limits_itself():
    (proxy,) = blocks("nginx")
    options = Options()
    assert float(re.search(r"client_max_body_size (\d+)m;", proxy)[1]) > options.max_body_mib
    assert float(re.search(r"proxy_read_timeout (\d+)s;", proxy)[1]) > options.timeout_seconds
    assert f"server 127.0.0.1:{options.port};" in proxy


def test_variables_and_files_that_the_page_names_exist():
    assert set(re.findall(r"\bMMFUSION_[A-Z_]+", PAGE)) <= SETTINGS
    named = set(re.findall(r"\b(?:deploy|benchmarks|docs)/[\w./]*\w", PAGE))
    assert named and all((ROOT / name).exists() for name in named)
