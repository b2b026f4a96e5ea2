"""Where a command runs: caches, outputs and terminals that are not as they should be end nothing."""

import errno
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from test_evaluation import COLUMNS, make_folder, make_table
from transformers import dynamic_module_utils

import evaluation
import predict
import push_to_hub
import search
import train
import tune
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


# -- every command ----------------------------------------------------------------------------------------------------

LABELS = {0: "很好😀", 1: "Grüße", 2: "差"}


@pytest.fixture(scope="module")
def chinese(tmp_path_factory):
    """(A model folder and a table whose labels most terminals lack, an index of the table)."""
    folder = tmp_path_factory.mktemp("model") / "模型"
    make_folder(folder, id2label=LABELS, label2id={name: i for i, name in LABELS.items()})
    table = make_table(tmp_path_factory.mktemp("rows") / "数据", label=lambda row: LABELS[row % 3])
    index = tmp_path_factory.mktemp("indices") / "索引"
    assert search.main(["build", str(folder), *rows_of(table), "--index_dir", str(index)]) == 0
    return folder, table, index


def rows_of(table):
    return ["--data_file", str(table), *COLUMNS, "--device", "cpu"]


def words_of(chinese, output):
    """The words of each command that reads or writes something."""
    folder, table, index = chinese
    labelled = [*rows_of(table), "--label_column", "kind"]
    return {
        "predict": (predict.main, [str(folder), "--text", "好", "--device", "cpu"]),
        "predict a table": (predict.main, [str(folder), *rows_of(table), "--output_file", f"{output}.csv"]),
        "evaluate": (evaluation.main, [str(folder), *labelled, "--output_file", f"{output}.json"]),
        "build": (search.main, ["build", str(folder), *rows_of(table), "--index_dir", str(output)]),
        "query": (search.main, ["query", "--index_dir", str(index), "--text", "好", "--device", "cpu"]),
        "doctor": (doctor.main, [str(table), *COLUMNS, "--label_column", "kind"]),
        "doctor's page": (
            doctor.main,
            [str(table), *COLUMNS, "--label_column", "kind", "--output_file", f"{output}.html"],
        ),
        "push": (push_to_hub.main, ["--dataset", str(table), *COLUMNS, "--label_column", "kind", "a/b", "--dry_run"]),
    }


COMMANDS = list(words_of(("", Path(), ""), ""))
WRITING = ["predict a table", "evaluate", "build", "doctor's page"]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_prints_to_a_terminal_without_its_letters(name, encoding, chinese, tmp_path, monkeypatch):
    main, words = words_of(chinese, tmp_path / "出")[name]
    buffers = io.BytesIO(), io.BytesIO()
    for stream, buffer in zip(("stdout", "stderr"), buffers, strict=True):
        monkeypatch.setattr(sys, stream, io.TextIOWrapper(buffer, encoding=encoding))
    code = main(words)
    sys.stdout.flush(), sys.stderr.flush()
    assert code == 0, buffers[1].getvalue()[-2_000:]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_ends_well_when_nobody_reads_what_it_prints(name, chinese, tmp_path, monkeypatch):
    main, words = words_of(chinese, tmp_path / "out")[name]
    raw = Closed(errno.EPIPE, tmp_path / "closed")
    stream = io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(words) == 0
    monkeypatch.undo()
    raw.write = len
    stream.detach()


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_runs_in_a_folder_that_cannot_be_written_to(name, chinese, tmp_path, monkeypatch):
    main, words = words_of(chinese, tmp_path / "out")[name]
    monkeypatch.chdir("/proc")
    assert main(words) == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_that_needs_no_temporary_folder_runs_without_one(name, chinese, tmp_path, monkeypatch, capsys):
    main, words = words_of(chinese, tmp_path / "out")[name]
    monkeypatch.setattr(tempfile, "tempdir", f"{NOWHERE}/tmp")
    code = main(words)
    told = capsys.readouterr().err
    assert code == (1 if name == "push" else 0), told
    assert name != "push" or NOWHERE in told


@pytest.mark.parametrize("place", [f"{NOWHERE}/page", "/proc/page"])
@pytest.mark.parametrize("flag", ["--output_file", "--json"])
def test_the_doctor_looks_only_where_it_can_write_its_findings(flag, place, chinese, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "read_splits", lambda args: pytest.fail("looked"))
    assert doctor.main([str(chinese[1]), flag, place]) == 1
    assert place in capsys.readouterr().err


def in_a_fork(call, prepare) -> tuple[int, str]:
    """The exit code of a call in a process of its own, and what it printed."""
    receiver, sender = os.pipe()
    if (child := os.fork()) == 0:
        code = 255
        try:
            os.dup2(sender, 2)
            sys.stdout = sys.stderr = os.fdopen(sender, "w", encoding="utf-8")
            prepare()
            code = call()
            sys.stderr.flush()
        finally:
            os._exit(code)
    os.close(sender)
    with open(receiver, encoding="utf-8") as file:
        told = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told


@pytest.mark.parametrize("name", WRITING)
def test_a_full_disk_is_told_in_a_sentence_and_leaves_nothing_broken(name, chinese, tmp_path):
    main, words = words_of(chinese, tmp_path / "out")[name]
    limit = 100  # bytes a file
    code, told = in_a_fork(lambda: main(words), lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert code == 1 and "error: " in told and "Traceback" not in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["predict a table", "evaluate", "build"])
def test_under_a_strict_umask_what_is_written_is_the_owners_alone(name, chinese, tmp_path):
    main, words = words_of(chinese, tmp_path / "out")[name]
    assert in_a_fork(lambda: main(words), lambda: os.umask(0o077))[0] == 0
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written and {path.stat().st_mode & 0o777 for path in written} == {0o600}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("name", ["predict", "predict a table", "evaluate", "doctor"])
def test_a_user_without_a_name_reads_what_others_wrote(name, chinese):
    """Media, table and model can be read and not be written to; the output folder is the user's own."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        os.chmod(place, 0o755)
        folder, table, _ = chinese
        theirs = Path(shutil.copytree(folder, f"{place}/model")), Path(shutil.copytree(table.parent, f"{place}/rows"))
        for path in theirs[0].iterdir():
            path.chmod(0o644)  # safetensors writes weights for their owner alone; `train.py` gives them to all readers
        output = Path(place, "own")
        output.mkdir()
        os.chown(output, 12345, 12345)
        main, words = words_of((theirs[0], theirs[1] / table.name, ""), output / "out")[name]
        assert main(words) == 0  # imports everything, as the files of the environment may be root's
        for path in output.iterdir():
            path.unlink()

        def become_another():
            os.setgroups([])
            os.setgid(12345)
            os.setuid(12345)
            os.environ["HOME"] = "/"
            dynamic_module_utils.HF_MODULES_CACHE = str(output / "modules")  # else read from the environment

        code, told = in_a_fork(lambda: main(words), become_another)
        assert code == 0, told


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (train.main, ["--train_file", "a.csv", "--output_dir", "mod\udce8le"]),
        (train.main, ["--train_file", "\udce6.csv", "--output_dir", "model"]),
        (predict.main, ["model", "--text", "\udce5\udca5\udcbd"]),
        (predict.main, ["mod\udce8le", "--text", "good"]),
        (evaluation.main, ["model", "--data_file", "\udce6.csv"]),
        (search.main, ["query", "--index_dir", "\udce6", "--text", "good"]),
        (push_to_hub.main, ["mod\udce8le", "a/b", "--dry_run"]),
        (tune.main, ["--study_dir", "\udce6", "--space", "learning_rate=loguniform(1e-4,3e-3)", "--",
                     "--train_file", "a.csv"]),
    ],
)  # fmt: skip
def test_words_that_the_locale_cannot_read_are_refused_with_the_variable_to_set(main, words, capsys):
    assert main(words) == 1
    assert "PYTHONUTF8" in capsys.readouterr().err
