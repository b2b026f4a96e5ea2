"""The metric folders as Spaces: pushed as they are, loaded by name from a fresh cache, and their page asked."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import metadata_load
from local_hub import running_hub

ROOT = Path(__file__).parent.parent
FOLDERS = sorted(path for path in (ROOT / "metrics").glob("mmfusion_*") if path.is_dir())

PUSH_AND_LOAD = """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi
import evaluate

values = {}
for folder in map(Path, sys.argv[1:]):
    name = f"alice/{folder.name}"
    HfApi().create_repo(name, repo_type="space", space_sdk="gradio")
    HfApi().upload_folder(repo_id=name, folder_path=folder, repo_type="space", ignore_patterns=["__pycache__/*"])
    single = {"predictions": [[0.75, 0.25], [0.25, 0.75]], "references": [0, 0]}
    several = {"predictions": [[0.9, 0.6], [0.2, 0.7]], "references": [[1, 0], [0, 1]]}
    numbers = {"predictions": [0.0, 1.0], "references": [1.0, 3.0]}
    given = {"classification": single, "multilabel": several, "regression": numbers}[folder.name.split("_")[1]]
    values[folder.name] = evaluate.load(name).compute(**given)
print(json.dumps(values))
"""

ASK_THE_PAGE = """
import json, runpy
from gradio_client import Client
from huggingface_hub import snapshot_download

folder = snapshot_download("alice/mmfusion_classification", repo_type="space")
app = runpy.run_path(f"{folder}/app.py")
page = app["make_page"]()
_, url, _ = page.launch(prevent_thread_lock=True, quiet=True)
client = Client(url, verbose=False)
print(json.dumps(client.predict(*app["EXAMPLE"], api_name="/compute")))
try:
    client.predict("[[2.0, -1.0]]", "[0]", api_name="/compute")
except Exception as error:
    print(json.dumps(str(error)))
page.close()
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with running_hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


def run(code, hub, home, *args):
    environment = hub.environment(home, "hf_alice_write")
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=home, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("{", '"'))]


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory):
    """What each module answers that was pushed from its folder and loaded from the Hub, in a process of its own."""
    return run(PUSH_AND_LOAD, hub, tmp_path_factory.mktemp("pusher"), *FOLDERS)[-1]


def test_a_metric_folder_is_pushed_as_it_is_and_loads_by_name(pushed, hub):
    assert pushed == {
        "mmfusion_classification": {
            "accuracy": 0.5, "macro_f1": pytest.approx(1 / 3), "expected_calibration_error": 0.25,
        },
        "mmfusion_multilabel": {
            "micro_f1": pytest.approx(0.8), "macro_f1": pytest.approx(5 / 6), "mean_average_precision": 1.0,
        },
        "mmfusion_regression": {"mae": 1.5, "pearson_r": pytest.approx(1.0)},
    }  # fmt: skip
    for folder in FOLDERS:
        files = hub.files(f"alice/{folder.name}", "space")
        assert {"README.md", "app.py", "requirements.txt", f"{folder.name}.py"} <= files.keys()


def test_the_page_of_a_pushed_metric_answers_and_says_what_is_wrong(pushed, hub, tmp_path):
    values, refusal = run(ASK_THE_PAGE, hub, tmp_path)
    assert values == pushed["mmfusion_classification"]
    assert "`predictions[0]` is [2.0, -1.0]" in refusal


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_metric_space_is_built_with_the_versions_that_are_tested_here(folder):
    pins = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line)
    head = metadata_load(folder / "README.md")
    assert (head["sdk"], head["sdk_version"], head["app_file"]) == ("gradio", pins["gradio"], "app.py")
    assert {"evaluate", "metric"} <= set(head["tags"])
    for line in (folder / "requirements.txt").read_text().splitlines():
        name, version = line.split("==")
        assert pins[name] == version
