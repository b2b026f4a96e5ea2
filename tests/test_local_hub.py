"""The local Hub is what unmodified clients take it for: their own code runs against it, and against its failures.

Most checks use the client inside this process (`online`); the libraries that read `HF_ENDPOINT` once run in two more.
"""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, get_session
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from local_hub import online
from local_hub.samples import WEIGHTS, as_user, statuses

pytest_plugins = ["local_hub.fixtures"]


# -- repositories and commits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_repositories_of_all_kinds_are_made_once_renamed_and_deleted(hub, api, kind):
    sdk = {"space_sdk": "gradio"} if kind == "space" else {}
    url = api.create_repo("acme/thing", repo_type=kind, private=True, **sdk)
    assert url.repo_id == "acme/thing" and url.repo_type == kind
    made = hub.repository("acme/thing", kind)
    assert made.private and made.sdk == sdk.get("space_sdk")
    with pytest.raises(HfHubHTTPError, match="already created this"):
        api.create_repo("acme/thing", repo_type=kind, **sdk)
    assert api.create_repo("acme/thing", repo_type=kind, exist_ok=True, **sdk) == url
    api.update_repo_settings("acme/thing", repo_type=kind, private=False)
    assert not hub.repository("acme/thing", kind).private
    api.move_repo("acme/thing", "alice/thing", repo_type=kind)
    assert [info.id for info in getattr(api, f"list_{kind}s")(author="alice")] == ["alice/thing"]
    assert api.repo_exists("alice/thing", repo_type=kind) and not hub.exists("acme/thing", kind)
    api.delete_repo("alice/thing", repo_type=kind)
    assert not hub.exists("alice/thing", kind) and hub.head("alice/thing", kind) is None
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("alice/thing", repo_type=kind)


def test_a_pushed_folder_is_there_with_all_that_the_hub_knows_of_it(hub, api, folder, pushed):
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {**hub.files("alice/m"), ".gitattributes": 0} == {
        ".gitattributes": 0,
        **{path: len(content) for path, content in files.items()},
    }
    assert all(hub.read("alice/m", path) == content for path, content in files.items())
    assert hub.head("alice/m") == pushed
    assert [commit.title for commit in hub.commits("alice/m")][1] == "initial commit"
    info = api.model_info("alice/m", files_metadata=True)
    assert info.sha == pushed and info.pipeline_tag == "text-classification" and info.library_name == "transformers"
    assert info.card_data.license == "apache-2.0" and info.config["auto_map"]
    wanted = {"multimodal", "custom_code", "safetensors", "base_model:finetune:google-bert/bert-base-uncased"}
    assert wanted <= set(info.tags)
    large = {sibling.rfilename for sibling in info.siblings if sibling.lfs}
    assert large == {"model.safetensors"}
    assert api.model_info("alice/m", expand=["pipeline_tag"]).siblings is None


def test_pushing_the_same_again_makes_no_commit_and_sends_no_content(hub, api, folder, pushed):
    assert api.upload_folder(repo_id="alice/m", folder_path=folder).oid == pushed
    assert len(hub.commits("alice/m")) == 2 and len(statuses(hub, "PUT", "lfs-storage")) == 1


def test_a_commit_on_an_old_parent_is_refused(hub, api, pushed):
    later = api.upload_file(repo_id="alice/m", path_or_fileobj=b"1", path_in_repo="x", parent_commit=pushed)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        api.upload_file(repo_id="alice/m", path_or_fileobj=b"2", path_in_repo="x", parent_commit=pushed)
    assert hub.head("alice/m") == later.oid and hub.read("alice/m", "x") == b"1"


def test_files_are_copied_and_deleted_one_by_one_and_by_folder(hub, api, pushed):
    copies = [CommitOperationCopy("model.safetensors", "copy.safetensors"), CommitOperationCopy("config.json", "c/d")]
    api.create_commit("alice/m", copies, commit_message="copy")
    assert hub.read("alice/m", "copy.safetensors") == WEIGHTS and "c/d" in hub.files("alice/m")
    api.delete_file("config.json", "alice/m")
    api.delete_folder("sub", "alice/m")
    left = {"README.md", "model.safetensors", "copy.safetensors", "c/d"}
    assert set(hub.files("alice/m")) - {".gitattributes"} == left
    with pytest.raises(EntryNotFoundError, match="A file with this name doesn't exist"):
        api.delete_file("nothing.txt", "alice/m")
    assert "sub/a b.txt" in hub.files("alice/m", revision=pushed), "a commit never changes"


def test_large_contents_are_checked_before_they_are_taken(hub, api, pushed):
    batch = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": "0" * 64, "size": 3}]}
    login = {"Authorization": "Bearer hf_alice_write"}
    answer = get_session().post(f"{hub.url}/alice/m.git/info/lfs/objects/batch", json=batch, headers=login).json()
    address = answer["objects"][0]["actions"]["upload"]["href"]
    assert get_session().put(address, content=b"abc").status_code == 400
    assert get_session().put(address.replace("ticket=", "ticket=x"), content=b"abc").status_code == 403
    header = {"key": "header", "value": {"summary": "s"}}
    for path, oid, message in (("w.bin", "0" * 64, "does not exist"), ("../w", "", "does not exist")):
        line = {"key": "lfsFile", "value": {"path": path, "algo": "sha256", "oid": oid}}
        body = "\n".join(json.dumps(entry) for entry in (header, line))
        answer = get_session().post(f"{hub.url}/api/models/alice/m/commit/main", content=body, headers=login)
        assert answer.status_code == 400 and message in answer.text
    line = {"key": "file", "value": {"path": "a/../b", "content": "x", "encoding": "utf-8"}}
    body = "\n".join(json.dumps(entry) for entry in (header, line))
    answer = get_session().post(f"{hub.url}/api/models/alice/m/commit/main", content=body, headers=login)
    assert answer.status_code == 400 and "Invalid path" in answer.text
    assert hub.head("alice/m") == pushed and not list(hub.root.rglob("incoming-*"))


@pytest.mark.parametrize(
    ("kind", "card", "message"),
    [
        ("model", "---\na: [b\n---\n", "Invalid YAML"),
        ("model", "---\n- a\n---\n", "must be a mapping, it is a list"),
        ("model", "---\ntags: 3\n---\n", '"tags" must be an array of strings'),
        ("model", "---\nmodel-index: [{name: x, results: [{task: {}}]}]\n---\n", '"model-index" is malformed'),
        ("space", "---\nsdk: flask\n---\n", '"sdk" must be one of'),
        ("space", "---\nsdk: gradio\npython_version: 3.10\n---\n", '"python_version" must be a string'),
        ("space", "---\nsdk: gradio\ncolorFrom: mauve\n---\n", '"colorFrom" must be one of'),
        ("space", f"---\nsdk: gradio\nshort_description: {'x' * 61}\n---\n", "must not be longer than 60"),
    ],
)
def test_a_card_that_the_hub_would_refuse_is_refused(hub, api, kind, card, message):
    api.create_repo("alice/c", repo_type=kind, space_sdk="gradio" if kind == "space" else None)
    before = hub.head("alice/c", kind)
    with pytest.raises(ValueError, match=message):
        api.upload_file(repo_id="alice/c", repo_type=kind, path_or_fileobj=card.encode(), path_in_repo="README.md")
    assert hub.head("alice/c", kind) == before


# -- revisions, trees, files ------------------------------------------------------------------------------------------


def test_branches_tags_and_pull_requests_are_revisions(hub, api, pushed):
    api.create_tag("alice/m", tag="v1")
    api.create_branch("alice/m", branch="dev/x", revision="v1")
    api.upload_file(repo_id="alice/m", path_or_fileobj=b"dev", path_in_repo="x", revision="dev/x")
    proposal = api.upload_file(repo_id="alice/m", path_or_fileobj=b"pr", path_in_repo="x", create_pr=True)
    assert proposal.pr_revision == "refs/pr/1" and hub.head("alice/m", revision="refs/pr/1") == proposal.oid
    for revision, content in (("dev/x", b"dev"), ("refs/pr/1", b"pr"), (proposal.oid, b"pr")):
        path = api.hf_hub_download("alice/m", "x", revision=revision, cache_dir=hub.root / "cache")
        assert Path(path).read_bytes() == content
    assert "x" not in hub.files("alice/m") and hub.head("alice/m", revision="v1") == pushed
    refs = api.list_repo_refs("alice/m", include_pull_requests=True)
    assert [ref.name for ref in refs.branches] == ["main", "dev/x"]
    assert refs.tags[0].target_commit == pushed and refs.pull_requests[0].ref == "refs/pr/1"
    for again in (lambda: api.create_tag("alice/m", tag="v1"), lambda: api.create_branch("alice/m", branch="dev/x")):
        with pytest.raises(HfHubHTTPError, match="409"):
            again()
    api.delete_tag("alice/m", tag="v1")
    api.delete_branch("alice/m", branch="dev/x")
    assert hub.repository("alice/m").tags == {} and list(hub.repository("alice/m").branches) == ["main"]
    with pytest.raises(RevisionNotFoundError):
        api.model_info("alice/m", revision="v1")


def test_a_stranger_proposes_and_the_owner_merges(hub, api, pushed):
    bob = as_user(hub, "hf_bob_write")
    operations = [CommitOperationAdd("b.bin", b"\0bob")]
    proposal = bob.create_commit("alice/m", operations, commit_message="From bob", create_pr=True)
    bob.upload_file(repo_id="alice/m", path_or_fileobj=b"2", path_in_repo="b.txt", revision=proposal.pr_revision)
    details = api.get_discussion_details("alice/m", 1)
    assert details.author == "bob" and details.conflicting_files == [] and len(details.events) == 2
    api.upload_file(repo_id="alice/m", path_or_fileobj=b"main", path_in_repo="main.txt")
    with pytest.raises(HfHubHTTPError, match="403"):
        bob.merge_pull_request("alice/m", 1)
    api.merge_pull_request("alice/m", 1)
    assert {"b.bin", "b.txt", "main.txt"} <= set(hub.files("alice/m"))
    assert [one.status for one in api.get_repo_discussions("alice/m")] == ["merged"]


def test_trees_tell_files_folders_and_who_changed_them_last(hub, api, pushed):
    later = api.upload_file(repo_id="alice/m", path_or_fileobj=b"{}", path_in_repo="config.json").oid
    top = {entry.path: entry for entry in api.list_repo_tree("alice/m", expand=True)}
    assert set(top) == {".gitattributes", "README.md", "config.json", "model.safetensors", "sub"}
    assert top["config.json"].last_commit.oid == later and top["sub"].last_commit.oid == pushed
    assert "sub/a b.txt" in {entry.path for entry in api.list_repo_tree("alice/m", recursive=True)}
    assert [entry.path for entry in api.list_repo_tree("alice/m", "sub")] == ["sub/a b.txt"]
    assert {entry.path for entry in api.get_paths_info("alice/m", ["sub", "README.md", "no"])} == {"sub", "README.md"}
    assert [commit.commit_id for commit in api.list_repo_commits("alice/m")][:2] == [later, pushed]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("alice/m", "nowhere"))


def test_long_lists_come_in_pages(hub, api):
    api.create_repo("alice/many")
    for number in range(60):
        repository = hub.repository("alice/many")
        added = repository.add_commit({}, title=str(number), author="alice", parent=hub.head("alice/many"))
        repository.move("main", added.sha)
    assert len(api.list_repo_commits("alice/many")) == 61
    assert statuses(hub, "GET", "/commits/main") == [200, 200]


def test_a_file_has_the_headers_of_the_hub_and_comes_in_parts(hub, pushed):
    with online(hub):
        address = f"{hub.url}/alice/m/resolve/refs/pr/../{pushed}/model.safetensors".replace("refs/pr/../", "")
        head = get_session().head(address)
        assert head.headers["X-Repo-Commit"] == pushed and head.headers["X-Linked-Size"] == str(len(WEIGHTS))
        assert head.headers["ETag"] == head.headers["X-Linked-Etag"] and head.headers["Content-Length"] == "200000"
        part = get_session().get(address, headers={"Range": "bytes=10-19"})
        assert part.status_code == 206 and part.content == WEIGHTS[10:20]
        assert part.headers["Content-Range"] == "bytes 10-19/200000"
        assert get_session().get(address, headers={"Range": "bytes=-5"}).content == WEIGHTS[-5:]
        assert get_session().get(address, headers={"Range": "bytes=200000-"}).status_code == 416
        for path, code in (("main/no.txt", "EntryNotFound"), ("v9/config.json", "RevisionNotFound")):
            answer = get_session().head(f"{hub.url}/alice/m/resolve/{path}")
            assert answer.status_code == 404 and answer.headers["X-Error-Code"] == code


def test_what_the_hub_does_not_know_is_not_found(hub, api, pushed):
    login = {"Authorization": "Bearer hf_alice_write"}
    for path in ("/api/models/alice/m/xet-write-token/main", "/api/datasets/alice/m/parquet", "/croissant", "/info"):
        assert get_session().get(hub.url + path, headers=login).status_code == 404
    for missing in ("gpt2", "alice/nothing"):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info(missing)


# -- rights -----------------------------------------------------------------------------------------------------------


def test_tokens_are_known_and_have_a_role(hub, api):
    assert api.whoami()["auth"]["accessToken"]["role"] == "write"
    assert [org["name"] for org in api.whoami()["orgs"]] == ["acme"]
    assert as_user(hub, "hf_alice_read").whoami()["auth"]["accessToken"]["role"] == "read"
    with pytest.raises(HfHubHTTPError, match="Invalid user token") as caught:
        as_user(hub, "hf_nobody").whoami()
    assert caught.value.response.status_code == 401


def test_only_members_with_a_write_token_change_a_repository(hub, api, pushed):
    for token, status in ((False, 401), ("hf_nobody", 401), ("hf_alice_read", 403), ("hf_bob_write", 403)):
        client = as_user(hub, token)
        for attempt in (
            lambda client=client: client.upload_file(repo_id="alice/m", path_or_fileobj=b"x", path_in_repo="x"),
            lambda client=client: client.create_tag("alice/m", tag="v1"),
            lambda client=client: client.delete_repo("alice/m"),
            lambda client=client: client.create_repo("alice/new"),
        ):
            with pytest.raises(HfHubHTTPError) as caught:
                attempt()
            assert caught.value.response.status_code == status, token
    assert hub.head("alice/m") == pushed and not hub.exists("alice/new")


def test_a_private_repository_is_not_there_for_strangers(hub, api, pushed):
    api.update_repo_settings("alice/m", private=True)
    for token, status in ((False, 401), ("hf_bob_write", 404)):
        with pytest.raises(RepositoryNotFoundError) as caught:
            as_user(hub, token).model_info("alice/m")
        assert caught.value.response.status_code == status
        assert caught.value.response.headers["X-Error-Code"] == "RepoNotFound"
        with pytest.raises(RepositoryNotFoundError):
            as_user(hub, token).upload_file(repo_id="alice/m", path_or_fileobj=b"x", path_in_repo="x")
    assert list(as_user(hub, "hf_bob_write").list_models(author="alice")) == []
    assert as_user(hub, "hf_alice_read").model_info("alice/m").private


# -- Spaces -----------------------------------------------------------------------------------------------------------


def test_a_space_has_state_hardware_variables_and_secrets(hub, api):
    secrets = [{"key": "A", "value": "hidden"}]
    api.create_repo("alice/s", repo_type="space", space_sdk="gradio", space_secrets=secrets)
    assert api.get_space_runtime("alice/s").stage == "NO_APP_FILE"
    api.upload_file(repo_id="alice/s", repo_type="space", path_or_fileobj=b"print()", path_in_repo="app.py")
    assert api.get_space_runtime("alice/s").stage == "RUNNING"
    assert api.request_space_hardware("alice/s", "t4-small", sleep_time=60).requested_hardware == "t4-small"
    assert api.pause_space("alice/s").stage == "PAUSED" and api.restart_space("alice/s").stage == "RUNNING"
    api.add_space_variable("alice/s", "MODEL", "alice/m", description="which")
    api.add_space_secret("alice/s", "B", "hidden too")
    assert api.get_space_variables("alice/s")["MODEL"].value == "alice/m"
    assert set(api.get_space_secrets("alice/s")) == {"A", "B"}
    space = hub.repository("alice/s", "space")
    assert space.variables == {"MODEL": "alice/m"} and space.secrets == {"A": "hidden", "B": "hidden too"}
    assert space.hardware == "t4-small" and space.num_restarts == 1 and space.sdk == "gradio"
    api.delete_space_variable("alice/s", "MODEL")
    api.delete_space_secret("alice/s", "A")
    assert space.variables == {} and set(space.secrets) == {"B"}
    assert api.space_info("alice/s").sdk == "gradio"
    with pytest.raises(HfHubHTTPError, match="Invalid hardware"):
        api.request_space_hardware("alice/s", "abacus")
    with pytest.raises(HfHubHTTPError, match="403"):
        as_user(hub, "hf_bob_write").get_space_variables("alice/s")


# -- other clients, in processes of their own -------------------------------------------------------------------------


def run(arguments, environment, **kwargs):
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120, **kwargs)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_environment_of_a_client_holds_nothing_of_this_test_run(hub, tmp_path):
    environment = hub.environment(tmp_path, token="hf_x")
    assert environment["HF_ENDPOINT"] == hub.url and environment["HF_TOKEN"] == "hf_x"
    assert environment["HF_HOME"] == str(tmp_path) and environment["HF_MODULES_CACHE"].startswith(str(tmp_path))
    assert "HF_HUB_OFFLINE" not in environment and "PATH" in environment
    assert "HF_TOKEN" not in hub.environment(tmp_path)
    assert hub.environment(tmp_path, offline=True)["HF_HUB_OFFLINE"] == "1"


def test_the_command_line_uploads_and_downloads(hub, folder, tmp_path):
    command = [sys.executable, "-m", "huggingface_hub.cli.hf"]
    environment = hub.environment(tmp_path / "home", token="hf_alice_write")
    run([*command, "upload", "alice/cli", str(folder), "."], environment)
    assert hub.read("alice/cli", "model.safetensors") == WEIGHTS
    stranger = hub.environment(tmp_path / "stranger")
    run([*command, "download", "alice/cli", "--local-dir", str(tmp_path / "there")], stranger)
    assert (tmp_path / "there" / "sub" / "a b.txt").read_bytes() == "ä".encode()


LIBRARIES = """
    import json, sys
    from pathlib import Path
    import datasets, evaluate
    from huggingface_hub import HfApi
    from transformers import AutoConfig

    folder, api = Path(sys.argv[1]), HfApi()
    features = datasets.Features({
        "text": datasets.Value("string"),
        "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
    })
    sounds = [{"bytes": b"\\0\\1", "path": "a.wav"}, None, {"bytes": b"", "path": None}]
    rows = {"text": ["a", None, "c"], "audio": sounds}
    table = datasets.Dataset.from_dict(rows, features=features)
    table.push_to_hub("alice/data", private=True)
    table.select([0]).push_to_hub("alice/data", config_name="small", split="test")
    there = datasets.load_dataset("alice/data", split="train")
    assert there.features == features and there[:] == table[:], there[:]
    small = datasets.load_dataset("alice/data", "small", split="test", revision=api.dataset_info("alice/data").sha)
    assert small[:] == table[:1]
    streamed = list(datasets.load_dataset("alice/data", "default", split="train", streaming=True))
    assert streamed == list(table), streamed
    assert sorted(datasets.get_dataset_config_names("alice/data")) == ["default", "small"]

    api.create_repo("alice/same", repo_type="space", space_sdk="gradio")
    api.upload_folder(repo_id="alice/same", repo_type="space", folder_path=folder, allow_patterns="same.py")
    metric = evaluate.load("alice/same")
    assert metric.compute(predictions=[1, 2], references=[1, 3]) == {"same": 0.5}

    api.create_repo("alice/bert")
    first = api.upload_folder(repo_id="alice/bert", folder_path=folder / "bert").oid
    changed = json.dumps({"model_type": "bert", "hidden_size": 99}).encode()
    api.upload_file(repo_id="alice/bert", path_or_fileobj=changed, path_in_repo="config.json")
    assert AutoConfig.from_pretrained("alice/bert", revision=first).hidden_size == 24
    assert AutoConfig.from_pretrained("alice/bert").hidden_size == 99
"""

METRIC = """
    import datasets
    import evaluate
    class Same(evaluate.Metric):
        def _info(self):
            features = datasets.Features({name: datasets.Value("int64") for name in ("predictions", "references")})
            return evaluate.MetricInfo(description="", citation="", features=features)
        def _compute(self, predictions, references):
            return {"same": sum(a == b for a, b in zip(predictions, references)) / len(predictions)}
"""


def test_datasets_evaluate_and_transformers_take_it_for_the_hub(hub, tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert", "hidden_size": 24}')
    (tmp_path / "same.py").write_text(textwrap.dedent(METRIC))
    environment = hub.environment(tmp_path / "home", token="hf_alice_write")
    run([sys.executable, "-c", textwrap.dedent(LIBRARIES), str(tmp_path)], environment, cwd=tmp_path)
    assert hub.repository("alice/data", "dataset").private
    assert {"data/train-00000-of-00001.parquet", "small/test-00000-of-00001.parquet"} <= set(
        hub.files("alice/data", "dataset")
    )
    # Offline afterwards, from what the first process has left in its home.
    offline = hub.environment(tmp_path / "home", offline=True)
    before = len(hub.requests)
    code = "import transformers; assert transformers.AutoConfig.from_pretrained('alice/bert').hidden_size == 99"
    run([sys.executable, "-c", code], offline)
    assert len(hub.requests) == before
