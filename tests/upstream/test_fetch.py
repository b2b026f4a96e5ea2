"""The fetching itself: what it takes from an archive, and what it says when it cannot."""

import io
import tarfile
import unittest

import pytest

from .fetch import _unpack, fetch
from .skips import skips

PKG_INFO = b"Metadata-Version: 2.4\nName: transformers\nVersion: 9.8.7\n"
ROOT = "transformers-9.8.7"


def archive(folder, **members):
    """A source distribution with an honest PKG-INFO and the members given as name -> bytes or link target."""
    path = folder / f"{ROOT}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {f"{ROOT}/PKG-INFO": PKG_INFO, **members}.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def test_only_test_files_of_the_tests_folder_are_taken(tmp_path):
    members = {
        f"{ROOT}/tests/test_modeling_common.py": b"x = 1\n",
        f"{ROOT}/tests/test_link.py": "/etc/passwd",
        f"{ROOT}/tests/conftest.py": b"",
        f"{ROOT}/tests/deep/test_deep.py": b"",
        f"{ROOT}/tests/../../test_outside.py": b"",
        "/tmp/test_absolute.py": b"",
        f"{ROOT}/src/test_src.py": b"",
    }
    package = _unpack(archive(tmp_path, **members), "9.8.7", tmp_path / "unpacked") / "upstream_tests"
    assert sorted(path.name for path in package.iterdir()) == ["__init__.py", "test_modeling_common.py"]
    assert (package / "test_modeling_common.py").read_text() == "x = 1\n"


def test_an_archive_of_another_version_is_refused(tmp_path):
    path = archive(tmp_path, **{"transformers-1.2.3/PKG-INFO": PKG_INFO})
    with pytest.raises(RuntimeError, match=r"must be of transformers 1\.2\.3, its PKG-INFO says transformers 9\.8\.7"):
        _unpack(path, "1.2.3", tmp_path / "unpacked")


def test_an_archive_without_tests_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match=r"holds no `tests/test_\*\.py`"):
        _unpack(archive(tmp_path), "9.8.7", tmp_path / "unpacked")


def test_a_version_that_no_index_has_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(RuntimeError, match=r"`transformers==0\.0\.0.* could not be downloaded \(pip said: "):
        fetch("0.0.0", store=tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_there_already_is_not_downloaded_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "transformers-0.0.0").mkdir()
    assert fetch("0.0.0", store=tmp_path) == tmp_path / "transformers-0.0.0"


def test_a_skip_that_fits_no_test_is_an_error():
    with pytest.raises(LookupError, match="`TestCase` has no test `test_gone`"):
        skips({"test_gone": "…"})(unittest.TestCase)
