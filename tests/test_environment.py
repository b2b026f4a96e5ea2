"""Where a command runs: caches, outputs and terminals that are not as they should be end nothing."""

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import predict
import train
from cli.arguments import exit_code
from cli.environment import WRITTEN, is_writable, provide_caches, require_writable
from data import demo, doctor
from data.terminal import LastingStream, lasting_output

ROOT = Path(__file__).parent.parent
NOWHERE = "/dev/null/home"  # not to be written to, by root neither
VARIABLES = (*WRITTEN, "HF_HOME", "HF_HUB_CACHE", "MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HOME")


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Sets the variables that say where caches are, and forgets all others; what a command sets goes with the test."""
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"], "HOME": str(tmp_path)})

    def set_to(**variables):
        os.environ |= {name: value.format(tmp=tmp_path) for name, value in variables.items()}
        return os.environ

    return set_to


# -- caches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "moved"),
    [
        ({}, set()),
        ({"HOME": NOWHERE}, {*WRITTEN, "HF_HUB_CACHE", "MPLCONFIGDIR"}),
        ({"HOME": NOWHERE, "HF_HOME": "{tmp}"}, {"MPLCONFIGDIR"}),
        ({"HOME": NOWHERE, "XDG_CACHE_HOME": "{tmp}/cache"}, {"MPLCONFIGDIR"}),
        ({"HOME": NOWHERE, "XDG_CACHE_HOME": "{tmp}", "XDG_CONFIG_HOME": "{tmp}"}, set()),
        ({"HF_HOME": NOWHERE}, {*WRITTEN, "HF_HUB_CACHE"}),
        ({"HF_HOME": "/proc/nothing"}, {*WRITTEN, "HF_HUB_CACHE"}),
        ({"HF_HOME": NOWHERE, "HF_HUB_CACHE": "{tmp}"}, {*WRITTEN}),
        ({"HF_MODULES_CACHE": NOWHERE}, {"HF_MODULES_CACHE"}),
        ({"HF_DATASETS_CACHE": NOWHERE}, {"HF_DATASETS_CACHE"}),
        ({"HF_EVALUATE_CACHE": NOWHERE, "HF_METRICS_CACHE": NOWHERE}, {"HF_EVALUATE_CACHE", "HF_METRICS_CACHE"}),
        ({"MPLCONFIGDIR": NOWHERE}, {"MPLCONFIGDIR"}),
        ({"HF_HOME": "~nobody-of-this-name/cache"}, {*WRITTEN, "HF_HUB_CACHE"}),
    ],
    ids=lambda value: str(sorted(value)),
)
def test_caches_that_cannot_be_written_to_are_moved_and_no_others(environment, variables, moved, capsys):
    before = dict(environment(**variables))
    provide_caches()
    assert {name for name in VARIABLES if os.environ.get(name) != before.get(name)} == moved
    assert all(is_writable(Path(os.environ[name])) for name in moved)
    assert ("HF_HOME" in capsys.readouterr().err) is ("HF_MODULES_CACHE" in moved)


def test_what_was_downloaded_is_read_where_nothing_can_be_written(environment, tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir()
    monkeypatch.setattr("cli.environment.is_writable", lambda folder: tmp_path not in folder.parents)
    environment(HF_HOME="{tmp}")
    provide_caches()
    assert "HF_HUB_CACHE" not in os.environ and "HF_MODULES_CACHE" in os.environ


def test_without_a_temporary_folder_the_variables_to_set_are_named(environment, monkeypatch, capsys):
    def no_space(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    environment(HOME=NOWHERE)
    monkeypatch.setattr("cli.environment.tempfile.mkdtemp", no_space)
    assert exit_code(lambda: pytest.fail("started")) == 1
    assert all(name in capsys.readouterr().err for name in ("HF_HOME",))


def test_a_prediction_works_for_a_user_without_a_home_on_a_terminal_without_letters(published):
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment |= {
        "HOME": NOWHERE,
        "PYTHONIOENCODING": "ascii",
        "PYTHONUTF8": "0",
        "LC_ALL": "C",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, ROOT / "predict.py", published, "--text", "你好 😀"],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) and "HF_HOME" in done.stderr


# -- outputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["/dev/null/x/y", "/proc/nothing/model", "/dev/null/model"])
def test_a_place_that_cannot_be_written_to_is_named_before_any_row_is_read(place, capsys):
    try:
        code = train.main(["--train_file", "none.csv", "--output_dir", place])
    except SystemExit as usage:
        code = usage.code
    assert code in (1, 2)
    assert "--output_dir" in (told := capsys.readouterr().err) and place in told
    assert predict.main(["none", "--data_file", "none.csv", "--output_file", f"{place}.csv"]) == 1
    assert "--output_file" in (told := capsys.readouterr().err) and place in told


def test_asking_whether_a_place_can_be_written_to_makes_nothing(tmp_path):
    require_writable(tmp_path / "a" / "b" / "model", "--output_dir")
    assert not list(tmp_path.iterdir())


# -- terminals --------------------------------------------------------------------------------------------------------


class Closed(io.RawIOBase):
    """A file whose reader has gone."""

    def __init__(self, number: int, path: Path):
        self.number, self.file = number, path.open("wb")

    def writable(self):
        return True

    def fileno(self):
        return self.file.fileno()

    def write(self, _):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO])
@pytest.mark.parametrize("buffered", [True, False])
def test_a_reader_that_goes_away_ends_nothing(number, buffered, monkeypatch, tmp_path):
    raw = Closed(number, tmp_path / "out")
    stream = io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", write_through=not buffered)
    monkeypatch.setattr(sys, "stdout", stream)
    done = []

    def command():
        for line in range(3):
            print("x" * 9_000, line, flush=True)
        done.append(True)

    assert exit_code(command) == 0 and done
    assert sys.stdout is stream
    monkeypatch.undo()
    raw.write = len
    stream.detach()


def test_a_full_disk_is_still_told(tmp_path):
    raw = Closed(errno.ENOSPC, tmp_path / "out")
    stream = io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", write_through=True)
    with pytest.raises(OSError, match="No space"):
        LastingStream(stream).write("x" * 9_000)
        LastingStream(stream).flush()
    raw.write = len
    stream.detach()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8", "cp437"])
@pytest.mark.parametrize("text", ["你好", "😀", "Grüße", "\ud83d", "€"])
def test_letters_that_a_terminal_lacks_are_escaped(encoding, text, monkeypatch):
    buffer = io.BytesIO()
    errors = "surrogatepass" if encoding == "utf-8" else "strict"
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding=encoding, errors=errors))
    with lasting_output():
        print(text)
    assert buffer.getvalue().decode(encoding, errors).strip() in (
        text,
        text.encode("ascii", "backslashreplace").decode(),
    )


@pytest.mark.parametrize(
    "command",
    [lambda table: demo.main([str(table.with_name("数据")), "--num_rows", "100"]), lambda t: doctor.main([str(t)])],
    ids=["demo", "doctor"],
)
def test_the_commands_about_data_print_to_any_terminal(command, tmp_path, monkeypatch):
    table = tmp_path / "表.csv"
    table.write_text("text,label\n" + "".join(f"好 {i},是\n坏 {i},否\n" for i in range(9)), "utf-8")
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert command(table) == 0
    assert buffer.getvalue()


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_process_without_the_stream_runs(stream, monkeypatch):
    """As under pythonw or some supervisors."""
    monkeypatch.setattr(sys, stream, None)
    assert exit_code(lambda: print("unheard")) == 0
