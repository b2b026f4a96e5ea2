"""What the tests of the local Hub share; a test file takes it with `pytest_plugins = ["local_hub.fixtures"]`."""

import pytest

from .hub import online, running_hub
from .samples import CARD, WEIGHTS


@pytest.fixture(scope="module")
def shared_hub(tmp_path_factory):
    with running_hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def hub(shared_hub):
    """The Hub of this file, without repositories and without failures that are left over."""
    shared_hub.reset()
    return shared_hub


@pytest.fixture
def api(hub):
    with online(hub, "hf_alice_write") as client:
        yield client


@pytest.fixture
def no_waiting(monkeypatch):
    """Clients wait between attempts; the attempts are what is tested here."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    (path / "sub").mkdir(parents=True)
    (path / "README.md").write_text(CARD, encoding="utf-8")
    (path / "config.json").write_text('{"model_type": "x", "auto_map": {"AutoConfig": "a.B"}}')
    (path / "sub" / "a b.txt").write_text("ä")
    (path / "model.safetensors").write_bytes(WEIGHTS)
    return path


@pytest.fixture
def pushed(api, folder):
    """The sha of a pushed `alice/m`."""
    api.create_repo("alice/m")
    return api.upload_folder(repo_id="alice/m", folder_path=folder).oid
