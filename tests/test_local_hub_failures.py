"""What the local Hub does wrong on request, as the clients of this process see it; the cuts are real ones."""

import os
from pathlib import Path

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from local_hub.samples import WEIGHTS, statuses

pytest_plugins = ["local_hub.fixtures"]
CUT = (httpx2.NetworkError, httpx2.RemoteProtocolError)


@pytest.mark.parametrize("status", [401, 403, 404, 409, 429, 500])
def test_a_failure_is_answered_as_often_as_it_was_ordered(hub, api, pushed, status):
    hub.fail("POST", r"/api/models/alice/m/commit/main$", status=status, times=1, after=1, message="as ordered")
    api.upload_file(repo_id="alice/m", path_or_fileobj=b"1", path_in_repo="x")
    with pytest.raises(HfHubHTTPError, match="as ordered") as caught:
        api.upload_file(repo_id="alice/m", path_or_fileobj=b"2", path_in_repo="x")
    assert caught.value.response.status_code == status
    assert caught.value.response.headers.get("Retry-After") == ("1" if status == 429 else None)
    assert hub.read("alice/m", "x") == b"1"
    api.upload_file(repo_id="alice/m", path_or_fileobj=b"3", path_in_repo="x")
    assert statuses(hub, "POST", "/commit/main")[1:] == [200, status, 200]


def test_a_failure_has_the_code_and_the_headers_that_were_ordered(hub, api, pushed):
    hub.fail("GET", "/api/models/alice/m", status=404, error_code="RepoNotFound", headers={"X-Request-Id": "r1"})
    with pytest.raises(RepositoryNotFoundError, match="r1"):
        api.model_info("alice/m")
    hub.fail("GET", "/api/models/alice/m", times=5)
    hub.clear_failures()
    assert api.model_info("alice/m").sha == pushed


def test_a_client_that_is_asked_to_wait_comes_back(hub, api, pushed, no_waiting):
    hub.fail("POST", "/preupload/", status=429, headers={"Retry-After": "7"}, times=2)
    api.upload_file(repo_id="alice/m", path_or_fileobj=b"1", path_in_repo="x")
    assert statuses(hub, "POST", "/preupload/")[-3:] == [429, 429, 200]


def test_an_upload_that_is_cut_once_is_repeated_by_the_client(hub, api, pushed, no_waiting):
    hub.fail("PUT", "lfs-storage", cut_after_bytes=100_000)
    content = os.urandom(3_000_000)
    api.upload_file(repo_id="alice/m", path_or_fileobj=content, path_in_repo="big.bin")
    assert statuses(hub, "PUT", "lfs-storage")[-2:] == [None, 200] and hub.read("alice/m", "big.bin") == content


def test_an_upload_that_is_cut_for_good_leaves_the_revision_before_whole(hub, api, folder, pushed, no_waiting):
    (folder / "model.safetensors").write_bytes(os.urandom(3_000_000))
    (folder / "config.json").write_text('{"new": true}')
    hub.fail("PUT", "lfs-storage", cut_after_bytes=100_000, times=99)
    with pytest.raises(RuntimeError, match=r"Error while uploading 'model.safetensors'") as caught:
        api.upload_folder(repo_id="alice/m", folder_path=folder)
    assert isinstance(caught.value.__cause__, CUT)
    assert hub.head("alice/m") == pushed and hub.read("alice/m", "model.safetensors") == WEIGHTS
    assert not list(hub.root.rglob("incoming-*"))
    hub.clear_failures()
    again = api.upload_folder(repo_id="alice/m", folder_path=folder).oid
    assert hub.head("alice/m") == again and hub.files("alice/m")["model.safetensors"] == 3_000_000


@pytest.mark.parametrize("cut", [{"cut_after_bytes": 0}, {"cut_after_bytes": 20}, {"cut_after_bytes": 10**9}])
def test_a_commit_that_is_cut_has_not_happened(hub, api, pushed, cut):
    hub.fail("POST", "/commit/main", **cut)
    with pytest.raises(CUT):
        api.upload_file(repo_id="alice/m", path_or_fileobj=b"x" * 500, path_in_repo="x")
    assert hub.head("alice/m") == pushed and statuses(hub, "POST", "/commit/main") == [200, None]


def test_a_commit_whose_answer_is_lost_has_happened_and_is_not_made_twice(hub, api, pushed):
    hub.fail("POST", "/commit/main", cut_answer=True)
    with pytest.raises(CUT):
        api.upload_file(repo_id="alice/m", path_or_fileobj=b"1", path_in_repo="x")
    done = hub.head("alice/m")
    assert done != pushed and hub.read("alice/m", "x") == b"1"
    assert api.upload_file(repo_id="alice/m", path_or_fileobj=b"1", path_in_repo="x").oid == done
    assert statuses(hub, "POST", "/commit/main") == [200, None]


def test_requests_without_a_body_are_cut_before_they_are_carried_out(hub, api):
    api.create_repo("alice/s", repo_type="space", space_sdk="gradio")
    hub.fail("POST", "/restart", cut_after_bytes=0)
    with pytest.raises(CUT):
        api.restart_space("alice/s")
    assert hub.repository("alice/s", "space").num_restarts == 0
    hub.fail("POST", "/restart", cut_answer=True)
    with pytest.raises(CUT):
        api.restart_space("alice/s")
    assert hub.repository("alice/s", "space").num_restarts == 1


# The client writes in steps of 10 MiB: what arrived of a step that is cut is lost to it.
STEP = 10 * 1024 * 1024


@pytest.fixture
def large(hub, api):
    """Content of `large.bin` in `alice/large`: one step and a half."""
    content = os.urandom(STEP + STEP // 2)
    api.create_repo("alice/large")
    api.upload_file(repo_id="alice/large", path_or_fileobj=content, path_in_repo="large.bin")
    hub.fail("GET", "large.bin", cut_after_bytes=STEP + 70_001)
    return content


def test_a_download_that_is_cut_is_resumed_by_the_client_with_a_range(hub, api, large, tmp_path, no_waiting):
    path = Path(api.snapshot_download("alice/large", cache_dir=tmp_path))
    assert (path / "large.bin").read_bytes() == large
    assert statuses(hub, "GET", "large.bin") == [None, 206]


def test_a_download_that_is_cut_for_good_leaves_no_file_and_starts_anew_later(hub, api, large, tmp_path, no_waiting):
    hub.fail("GET", "large.bin", status=500)
    with pytest.raises(HfHubHTTPError, match="500"):
        api.hf_hub_download("alice/large", "large.bin", cache_dir=tmp_path)
    assert not list(tmp_path.rglob("large.bin"))
    path = api.hf_hub_download("alice/large", "large.bin", cache_dir=tmp_path)
    assert Path(path).read_bytes() == large
    assert statuses(hub, "GET", "large.bin") == [None, 500, 200]
