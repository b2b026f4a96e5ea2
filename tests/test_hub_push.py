"""Pushing to a Hub, as a user does it: real processes, real HTTP, a server that unmodified clients believe.

Every failure has to leave the repository as it was, say one sentence, and be mended by running the command again.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from local_hub import LocalHub
from test_evaluation import ROOT, make_table
from test_hub_export import make_publishable

NAME = "alice/animals"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        hub.add_user("alice", write_token="hf_alice_write", read_token="hf_alice_read", orgs=("acme",))
        hub.add_user("bob", write_token="hf_bob_write", read_token="hf_bob_read")
        yield hub


@pytest.fixture(autouse=True)
def no_failure_is_left(hub):
    yield
    hub.clear_failures()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def push(hub, home):
    """Run `push_to_hub.py`; give (exit code, what it printed, what it complained of)."""

    def run(*args, token="hf_alice_write", **environment):
        env = hub.environment(home, token) | environment
        command = [sys.executable, "push_to_hub.py", *map(str, args)]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
        return done.returncode, done.stdout, done.stderr

    return run


def refused(result, sentence):
    """Assert that a push ended with one line that says this, and with nothing like a traceback."""
    code, _, err = result
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(said) == 1 and re.search(sentence, said[0]), err
    assert "Traceback" not in err


# -- a push, from end to end ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pushed(hub, home, published):
    """The output of a push of model and Space that went well."""
    env = hub.environment(home, "hf_alice_write") | {"WEATHER_KEY": "s3cret"}
    command = [sys.executable, "push_to_hub.py", str(published), NAME, "--space", "alice/show"]
    command += ["--space_secret", "WEATHER_KEY", "--license", "apache-2.0"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model_is_pushed_in_one_commit(pushed, hub, published):
    commits = hub.commits(NAME)
    assert commits[0].title == "Push an MMFusion model" and len(commits) == 2
    files = hub.files(NAME)
    assert {path.name for path in published.iterdir()} < files.keys()
    assert {"README.md", "confusion_matrix.png", "reliability.png"} < files.keys()
    assert hub.read(NAME, "model.safetensors") == (published / "model.safetensors").read_bytes()


def test_what_was_pushed_is_proven_and_the_snippet_pins_the_commit(pushed, hub):
    sha = hub.head(NAME)
    assert "the export answers as its source does" in pushed
    assert f"`{NAME}` at {sha} answers as its source does" in pushed
    assert f'name, revision = "{NAME}", "{sha}"' in pushed
    assert 'pipeline("multimodal-classification", model=name, revision=revision, trust_remote_code=True)' in pushed


def test_a_space_holds_what_the_app_needs_and_shows_the_commit(pushed, hub):
    import yaml

    space = hub.repository("alice/show", "space")
    assert space.variables == {"MMFUSION_MODEL": NAME, "MMFUSION_REVISION": hub.head(NAME)}
    assert space.secrets == {"WEATHER_KEY": "s3cret"} and space.sdk == "gradio"
    files = hub.files("alice/show", "space")
    assert {"app.py", "requirements.txt", "README.md", "cli/loading.py"} < files.keys()
    rooms = {name.split("/")[0] for name in files if "/" in name}
    assert rooms == {"cli", "space", "data", "searching"}, "nothing of training, hub, metrics or the tests"
    assert all(name.endswith(".py") for name in files if name.startswith("data/"))
    settings = yaml.safe_load(hub.read("alice/show", "README.md", "space").decode().split("---")[1])
    pins = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line)
    assert settings["sdk"] == "gradio" and settings["sdk_version"] == pins["gradio"]
    assert settings["models"] == [NAME] and settings["python_version"] and settings["suggested_hardware"]
    assert not any(b"s3cret" in hub.read("alice/show", name, "space") for name in files)


def test_pushed_again_nothing_changes_and_no_commit_is_made(pushed, hub, push, published):
    before = hub.commits(NAME)
    code, out, err = push(published, NAME, "--license", "apache-2.0", "--space", "alice/show")
    assert code == 0 and hub.head(NAME) in out, err
    assert hub.commits(NAME) == before


def test_a_branch_and_a_pull_request_leave_main_as_it_is(pushed, hub, push, published, tmp_path):
    other = make_publishable(tmp_path / "other", make_table(tmp_path / "rows"), seed=1)
    before = hub.head(NAME)
    code, out, err = push(other, NAME, "--revision", "second")
    assert code == 0 and hub.head(NAME) == before != hub.head(NAME, revision="second"), err
    assert hub.head(NAME, revision="second") in out
    code, out, err = push(other, NAME, "--create_pr", "--commit_message", "Better weights")
    assert code == 0 and hub.head(NAME) == before and "/discussions/" in out, err
    assert hub.read(NAME, "model.safetensors", revision="refs/pr/1") == (other / "model.safetensors").read_bytes()


def test_a_private_model_gets_a_space_with_a_token(pushed, hub, push, published):
    code, out, err = push(published, "acme/private", "--private", "--space", "acme/private-show")
    assert code == 0 and hub.repository("acme/private").private and "--space_secret HF_TOKEN" in out, err
    code, out, err = push("acme/private", "--space", "acme/private-show", "--space_secret", "HF_TOKEN")
    assert code == 0 and hub.repository("acme/private-show", "space").secrets == {"HF_TOKEN": "hf_alice_write"}, err


# -- a dry run --------------------------------------------------------------------------------------------------------


def test_a_dry_run_needs_no_token_shows_files_and_card_and_sends_nothing(hub, push, published):
    before = len(hub.requests)
    code, out, err = push(published, "bob/animals", "--dry_run", "--space", "bob/show", token=None)
    assert code == 0 and len(hub.requests) == before, err
    size = (published / "model.safetensors").stat().st_size
    assert re.search(rf"{size:,} bytes  model\.safetensors", out)
    assert "pipeline_tag: text-classification" in out and "sdk: gradio" in out and " bytes  app.py" in out


# -- who may push -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "token", "sentence"),
    [
        (NAME, None, "there is no token to push with: run `hf auth login`"),
        (NAME, "hf_nobody", "the Hub answered 401 .*hf auth login"),
        (NAME, "hf_alice_read", "of `alice` may only read: make one with write rights"),
        ("bob/animals", "hf_alice_write", "`bob/animals` belongs to `bob`.*push to `alice/…` or `acme/…`"),
        ("animals", "hf_alice_write", "`NAME` is `animals`: give `owner/name`"),
        ("alice/a/b", "hf_alice_write", "`NAME` is `alice/a/b`: give `owner/name`"),
        ("alice/--x", "hf_alice_write", "`NAME` is `alice/--x`: give `owner/name`"),
    ],
)
def test_who_may_not_push_hears_it_before_any_work(hub, push, published, name, token, sentence):
    before = len(hub.requests)
    refused(push(published, name, token=token), sentence)
    assert {method for method, *_ in hub.requests[before:]} <= {"GET"}


def test_a_secret_that_the_environment_lacks_is_named(hub, push, published):
    refused(
        push(published, NAME, "--space", "alice/show", "--space_secret", "NOWHERE"), "environment has no `NOWHERE`"
    )


def test_a_model_that_is_not_on_the_hub_gets_no_space(hub, push):
    refused(push("alice/nowhere", "--space", "alice/show2"), "`alice/nowhere` cannot be shown: the Hub answered 404")
    assert not hub.exists("alice/show2", "space")


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("optimizer.bin", "x", "holds `optimizer.bin`: files of this kind can run code"),
        ("metrics.json", None, "is not whole: `metrics.json` is missing"),
        ("training_config.json", {"command": "train --key hf_" + "a" * 34}, "looks like a Hugging Face token"),
        ("training_config.json", {"command": "train /home/alice/t.csv"}, "holds the local path `/home/alice/t.csv`"),
        ("config.json", {"_name_or_path": "/home/alice/bert"}, "holds the local path `/home/alice/bert`"),
    ],
)
def test_what_must_not_be_published_is_not(hub, push, published, tmp_path, file, content, sentence):
    source = shutil.copytree(published, tmp_path / "animals")
    if content is None:
        (source / file).unlink()
    elif isinstance(content, dict):
        (source / file).write_text(json.dumps(json.loads((source / file).read_text()) | content))
    else:
        (source / file).write_text(content)
    refused(push(source, "alice/leaky"), sentence)
    assert not hub.exists("alice/leaky")


def test_a_model_that_does_not_load_is_not_pushed(hub, push, published, tmp_path):
    source = shutil.copytree(published, tmp_path / "animals")
    (source / "pipeline_mmfusion.py").write_text("import no_such_module_here\n")
    refused(push(source, "alice/broken"), "does not load in a fresh process: .*no_such_module_here")
    assert not hub.exists("alice/broken")


# -- a Hub that is busy, refuses, or goes away ------------------------------------------------------------------------
# The commit itself, on a folder of plain files: what is in it makes no difference here.

PLAIN = "alice/plain"
COMMIT = rf"/api/models/{PLAIN}/commit/"
SCRIPT = """
import sys
from pathlib import Path
from cli.arguments import exit_code
from hub.push import push_folder, sign_in

def push(folder, name, message, private):
    options = {"replaces": ["*.txt", "*.safetensors"], "message": message, "private": private == "private" or None}
    print(push_folder(sign_in([name]), Path(folder), name, **options).commit)

sys.exit(exit_code(push, *sys.argv[1:]))
"""


@pytest.fixture
def folder(tmp_path):
    """One file that goes with the commit and one that is uploaded before it, new in each test."""
    (tmp_path / "a.txt").write_text(str(tmp_path))
    (tmp_path / "b.safetensors").write_bytes(str(tmp_path).encode() * 10_000)
    return tmp_path


@pytest.fixture
def commit(hub, home):
    """Push a plain folder in a process of its own."""

    def run(folder, message="Push", private="", **environment):
        env = hub.environment(home, "hf_alice_write") | environment
        command = [sys.executable, "-c", SCRIPT, str(folder), PLAIN, message, private]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def before(hub, commit, tmp_path_factory):
    if not hub.exists(PLAIN):
        folder = tmp_path_factory.mktemp("first")
        (folder / "a.txt").write_text("first")
        assert commit(folder, "First")[0] == 0
    return hub.head(PLAIN)


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (401, "answered 401.*hf auth login"),
        (403, "answered 403.*write rights"),
        (404, "answered 404.*Check the name"),
        (409, "answered 409.*push again"),
        (412, "answered 412.*changed while"),
    ],
)
def test_a_commit_that_is_refused_leaves_the_revision_whole(hub, commit, folder, before, status, sentence):
    hub.fail("POST", COMMIT, status=status, times=10)
    refused(commit(folder), f"`{PLAIN}` cannot be pushed to: the Hub {sentence}.*what was there before is as it was")
    assert hub.head(PLAIN) == before


def test_a_busy_hub_is_tried_again_for_as_long_as_it_asks(hub, commit, folder, before):
    hub.fail("POST", r"/api/repos/create", status=429, headers={"Retry-After": "0"})
    hub.fail("POST", COMMIT, status=500)
    code, _, err = commit(folder)
    assert code == 0 and hub.head(PLAIN) != before, err
    assert "the Hub answered 429" in err and "trying again in 0 s" in err and "the Hub answered 500" in err


def test_a_hub_that_asks_for_an_hour_is_not_waited_for(hub, commit, folder, before):
    hub.fail("POST", COMMIT, status=429, times=10, headers={"Retry-After": "3600"})
    refused(commit(folder), "the Hub answered 429.*Push again later")
    assert hub.head(PLAIN) == before


def test_an_upload_that_is_cut_off_is_mended_by_running_again(hub, commit, folder, before):
    hub.fail("PUT", r".", times=1000, cut_after_bytes=1000)
    refused(commit(folder, "Third"), "the connection to the Hub failed")
    assert hub.head(PLAIN) == before
    hub.clear_failures()
    assert commit(folder, "Third")[0] == 0
    assert hub.commits(PLAIN)[0].title == "Third" and hub.commits(PLAIN)[0].parent == before
    assert hub.read(PLAIN, "b.safetensors") == (folder / "b.safetensors").read_bytes()


def test_an_answer_that_got_lost_does_not_make_a_second_commit(hub, commit, folder, before):
    hub.fail("POST", COMMIT, cut_answer=True)
    code, out, err = commit(folder, "Fourth")
    assert code == 0 and hub.head(PLAIN) in out, err
    assert [made.title for made in hub.commits(PLAIN)].count("Fourth") == 1
    assert hub.commits(PLAIN)[0].parent == before


def test_what_somebody_else_pushed_meanwhile_is_not_overwritten(hub, commit, folder, before, tmp_path_factory):
    theirs = tmp_path_factory.mktemp("theirs")
    (theirs / "a.txt").write_text("theirs")
    hub.fail("POST", COMMIT, status=503, times=1, headers={"Retry-After": "3"})
    seen = len(hub.requests)
    with ThreadPoolExecutor() as pool:
        ours = pool.submit(commit, folder, "Ours")
        while not any(status == 503 for *_, status in hub.requests[seen:]):
            time.sleep(0.05)
        assert commit(theirs, "Theirs")[0] == 0
        refused(ours.result(), "changed while this push was under way")
    assert hub.commits(PLAIN)[0].title == "Theirs"


def test_a_public_repository_does_not_become_private_unseen(hub, commit, folder, before):
    refused(commit(folder, private="private"), f"`{PLAIN}` is there already and public, but a private one was asked")
    assert hub.head(PLAIN) == before


def test_a_file_of_an_earlier_push_goes_and_a_file_of_the_user_stays(hub, commit, folder, before, tmp_path_factory):
    (folder / "c.md").write_text("mine")
    assert commit(folder)[0] == 0
    later = tmp_path_factory.mktemp("later")
    (later / "d.txt").write_text("new")
    assert commit(later)[0] == 0
    assert {"c.md", "d.txt"} <= hub.files(PLAIN).keys()
    assert not {"a.txt", "b.safetensors"} & hub.files(PLAIN).keys()


def test_a_hub_that_is_not_there_gets_a_sentence(hub, commit, folder):
    refused(commit(folder, HF_ENDPOINT="http://127.0.0.1:9"), "the connection to the Hub failed")
    refused(commit(folder, HF_HUB_OFFLINE="1"), "offline")
