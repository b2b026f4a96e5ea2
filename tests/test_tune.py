"""The search: its space, whose turn it is, what is kept and drawn, and real trainings, pruned, killed and shared."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from PIL import Image

import tune
from cli.children import LEASH, last_words
from tuning import claims, keeping, pictures, report
from tuning.command import Training
from tuning.space import read_space
from tuning.study import Study, make_sampler, telling_faults

ROOT = Path(tune.__file__).parent
SPACE = ["learning_rate=loguniform(1e-4,3e-3)", "hidden_dropout_prob=uniform(0,0.5)"]
WORDS = ["--train_file", "my.csv", "--validation_file", "other.csv"]


# -- the space --------------------------------------------------------------------------------------------------------


def test_a_space_is_read_from_flags():
    space = read_space([*SPACE, "num_fusion_layers = int(1, 4)", "--fusion_hidden_size=categorical(64, 128)"])
    assert list(space) == ["learning_rate", "hidden_dropout_prob", "num_fusion_layers", "fusion_hidden_size"]
    assert str(space["learning_rate"]) == "loguniform(0.0001, 0.003)"
    assert space["learning_rate"].distribution() == optuna.distributions.FloatDistribution(1e-4, 3e-3, log=True)
    assert space["num_fusion_layers"].distribution() == optuna.distributions.IntDistribution(1, 4)
    assert space["fusion_hidden_size"].values == ("64", "128")


def test_a_space_is_read_from_a_file_whose_words_stay_as_they_are(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text("learning_rate: logint(1, 8)\nmixed_precision: [no, bf16]\nweight_decay: [1e-4, 0]\n")
    space = read_space([], file)
    assert {name: str(dimension) for name, dimension in space.items()} == {
        "learning_rate": "logint(1, 8)",
        "mixed_precision": "categorical(no, bf16)",
        "weight_decay": "categorical(1e-4, 0)",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate", r"--space learning_rate: write NAME=KIND\(…\), such as learning_rate=loguniform"),
        ("a=normal(0,1)", r"the space of `a` is `normal\(0,1\)`; it can be: uniform\(low,high\)"),
        ("a=0.3", "the space of `a` is `0.3`; it can be"),
        ("a=uniform(1)", r"uniform\(1\): write uniform\(low,high\) or"),
        ("a=uniform(x,1)", r"uniform\(x,1\): write .* with numbers"),
        ("a=int(1,2.5)", "with whole numbers"),
        ("a=uniform(0,inf)", r"write uniform\(low,high\)"),
        ("a=uniform(2,1)", "the first number is to be below the second"),
        ("a=loguniform(0,1)", "a logarithmic scale begins above 0"),
        ("a=loguniform(1,2,3)", r"write loguniform\(low,high\)$"),
        ("a=uniform(0,1,0.3)", "steps of 0.3 do not lead from 0.0 to 1.0"),
        ("a=categorical(64)", r"categorical\(64\): give two or more choices"),
        ("a=categorical(64,64)", "none of them twice"),
        ("a=categorical(64,)", "or empty"),
    ],
)
def test_a_space_that_cannot_be_read_is_refused_in_words(text, message):
    with pytest.raises(ValueError, match=message):
        read_space([text])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n", "lines such as `learning_rate: loguniform"),
        ("a: {uniform: [0, 1]}\n", "`a` is `{'uniform': .*}`; write an expression .* goes to train.py, after --"),
        ("a: [1\n", "no YAML that can be read"),
        ("learning_rate: [1, 2]\n", "the space has `learning_rate` twice"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_words(content, message, tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_space(SPACE, file)


def test_a_search_without_a_space_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is nothing to search: give --space"):
        read_space([])
    with pytest.raises(FileNotFoundError, match=r"--space_file .*none.yaml: there is no such file"):
        read_space([], tmp_path / "none.yaml")


def test_a_grid_has_every_value_and_no_rounding_errors():
    space = read_space(["a=uniform(0,0.3,0.1)", "b=int(2,8,3)", "c=categorical(x,y)"])
    assert [dimension.grid() for dimension in space.values()] == [[0.0, 0.1, 0.2, 0.3], [2, 5, 8], ["x", "y"]]
    with pytest.raises(ValueError, match=r"--sampler grid: `learning_rate` is loguniform.*: give a step"):
        read_space(SPACE)["learning_rate"].grid()


# -- the command ------------------------------------------------------------------------------------------------------


def training(folder, *words, space=SPACE):
    return Training([*WORDS, *words], read_space(list(space)), folder / "trials")


def test_a_training_gets_the_flags_the_sampled_values_and_a_place(tmp_path):
    made = training(tmp_path, space=["learning_rate=uniform(0,1)", "seed=int(0,3)"])
    words = made.arguments({"learning_rate": 0.25, "seed": 2}, made.output_dir(7))
    place = ["--output_dir", str(tmp_path / "trials/0007"), "--resume_from_checkpoint", "auto"]
    assert words == [*WORDS, "--learning_rate=0.25", "--seed=2", *place, "--checkpointing_steps", "epoch"]


def test_a_yes_or_no_flag_can_be_searched_and_ones_own_checkpoints_are_kept(tmp_path):
    made = training(tmp_path, "--checkpointing_steps", "5", space=["activation_checkpointing=categorical(yes,no)"])
    words = made.arguments({"activation_checkpointing": "no"}, made.output_dir(0))
    assert "--no-activation_checkpointing" in words and words.count("--checkpointing_steps") == 1


@pytest.mark.parametrize(
    ("space", "words", "message"),
    [
        (["learning_rat=uniform(0,1)"], [], "`learning_rat`, which is no flag of train.py: is `learning_rate` meant"),
        (["label_column=categorical(a,b)"], [], "`label_column` cannot be searched: it decides what the score"),
        (["output_dir=categorical(a,b)"], [], "--output_dir is set for each training by the search: leave it out"),
        (SPACE, ["--output_dir", "x"], "--output_dir is set for each training"),
        (SPACE, ["--resume_from_checkpoint=auto"], "--resume_from_checkpoint is set for each training"),
        (SPACE, ["--push_to_hub"], "--push_to_hub: a search pushes nothing"),
        (SPACE, ["--with_baselines"], "--with_baselines: a search compares trainings with each other"),
        (SPACE, ["--learning_rate", "1"], "--learning_rate is in the space, and after --, too"),
        (["streaming=categorical(a,b)"], [], "the flag is yes or no"),
        (["learning_rate=uniform(-1,1)"], [], r"would refuse its flags: argument --learning_rate: -1.0 is"),
        (["num_fusion_layers=uniform(1,2)"], [], "would refuse its flags: .*invalid int value: '1.0'"),
        (["fusion_hidden_size=categorical(64,30)"], [], "would refuse fusion_hidden_size=30: .*a multiple of 4"),
        (SPACE, ["--no_such_flag"], "unrecognized arguments: --no_such_flag"),
    ],
)  # fmt: skip
def test_a_slip_is_told_before_anything_is_trained(space, words, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        training(tmp_path, *words, space=space)


def test_what_chooses_the_held_out_rows_is_searched_only_with_a_validation_file(tmp_path):
    with pytest.raises(ValueError, match=r"`seed` also decides which rows are held out.*give --validation_file"):
        Training(["--train_file", "my.csv"], read_space(["seed=int(0,3)"]), tmp_path)


def test_usage_errors_of_the_search_itself(capsys):
    for argv, message in (
        (["--pruner", "none", "--pruner_startup_trials", "2"], "--pruner_startup_trials belongs to --pruner median"),
        (["--learning_rate", "1"], "unrecognized arguments: --learning_rate 1"),
    ):
        with pytest.raises(SystemExit, match="2"):
            tune.parse_args(["--study_dir", "x", *argv])
        assert message in capsys.readouterr().err


# -- whose turn it is -------------------------------------------------------------------------------------------------


def open_study(folder, space=SPACE, sampler="random", **settings):
    read = read_space(list(space))
    with telling_faults(folder):
        return Study(folder, settings, read, lambda number: make_sampler(sampler, read, 0, number), None)


def test_processes_share_the_trials_and_each_is_run_once(tmp_path):
    first, second = open_study(tmp_path / "s"), open_study(tmp_path / "s")
    turns = [first.next(3), second.next(3), first.next(3)]
    assert [trial.number for trial, _ in turns] == [0, 1, 2] and second.next(3) is None
    assert len({trial.params["learning_rate"] for trial, _ in turns}) == 3
    for _, claim in turns:
        claim.release()


def test_a_trial_whose_processes_are_gone_goes_on_under_its_number_with_its_values(tmp_path):
    study = open_study(tmp_path / "s")
    trial, claim = study.next(2)
    trial.report(0.5, 1)
    claim.release()  # as the system does when a process is killed
    again, claim = open_study(tmp_path / "s").next(2)
    assert (again.number, again.params) == (trial.number, trial.params)
    assert study.trials[0].intermediate_values == {1: 0.5}
    study.put_back(again.number, claim)
    assert study.trials[0].state == TrialState.WAITING and study.next(2)[0].number == 0


def test_a_study_that_was_interrupted_samples_what_it_would_have_sampled(tmp_path):
    def sampled(folder, *interruptions):
        study, values = open_study(folder, sampler="tpe"), []
        for number in range(12):  # more than the ten by chance, with which TPE begins
            study = open_study(folder, sampler="tpe") if number in interruptions else study
            trial, claim = study.next(99)
            values.append(trial.params)
            study.study.tell(trial, trial.params["learning_rate"] - number / 1000)
            claim.release()
        return values

    assert sampled(tmp_path / "a") == sampled(tmp_path / "b", 3, 11)


def test_a_grid_is_tried_point_by_point(tmp_path):
    space = ["num_fusion_layers=int(1,2)", "fusion_hidden_size=categorical(8,16)"]
    study, seen = open_study(tmp_path / "s", space, "grid"), set()
    for _ in range(4):
        trial, claim = study.next(4)
        seen.add(tuple(trial.params.values()))
        study.study.tell(trial, 1.0)
        claim.release()
    assert len(seen) == 4
    args = tune.parse_args(["--study_dir", "x", "--sampler", "grid", "--num_trials", "99"])
    assert tune.count_trials(args, read_space(space)) == 4


def test_another_search_in_the_same_folder_is_refused_with_what_differs(tmp_path):
    known = {"the space of learning_rate": "uniform(0, 1)", "num_train_epochs": 3}
    open_study(tmp_path / "s", **known)
    with pytest.raises(ValueError, match=r"the space of learning_rate was uniform\(0, 1\) and is int\(1, 2\)\."):
        open_study(tmp_path / "s", **known | {"the space of learning_rate": "int(1, 2)"})
    with pytest.raises(ValueError, match=r"--num_train_epochs was 3 and is 4\. .*name another --study_dir"):
        open_study(tmp_path / "s", **known | {"num_train_epochs": 4})


def test_a_folder_that_is_no_study_and_a_broken_database_are_refused(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").write_text("mine")
    with pytest.raises(OSError, match="holds something that is no study"):
        open_study(tmp_path / "s")
    with pytest.raises(OSError, match=r"thesis\.tex is a file: name a folder"):
        open_study(tmp_path / "s" / "thesis.tex")
    (tmp_path / "s" / "study.db").write_bytes(b"not a database" * 100)
    with pytest.raises(OSError, match=r"study.db` cannot be read or written: file is not a database"):
        open_study(tmp_path / "s")


def test_a_claim_lives_as_long_as_its_last_heir(tmp_path):
    path = tmp_path / "claim"
    claim = claims.take(path)
    assert claims.take(path) is None and not claims.is_orphaned(path)
    heir = subprocess.Popen(["sleep", "60"], pass_fds=[claim.descriptor])
    claim.release()
    assert claims.take(path) is None
    path.write_text(path.read_text().replace(str(os.getpid()), str(2**22 + 1)))  # a process that cannot be
    assert claims.is_orphaned(path)
    heir.kill()
    heir.wait()
    assert not claims.is_orphaned(path)


# -- the end of a training --------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a process to its parent")
def test_a_training_ends_when_its_search_is_killed():
    parent = (
        f"import os, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, {str(LEASH)!r}, str(os.getpid()), '/bin/sleep', '60'])\n"
        f"print(child.pid, flush=True)\ntime.sleep(60)\n"
    )
    search = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    child = int(search.stdout.readline())
    wait_until(lambda: b"sleep" in Path(f"/proc/{child}/cmdline").read_bytes())
    search.kill()
    search.wait()
    wait_until(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text())


def wait_until(is_so, seconds=60):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_last_words_of_a_failure_are_its_error(tmp_path):
    output = tmp_path / "0000.txt"
    output.write_text("going on\nerror: `my.csv` is empty\n  5%|▌  | 1/20\rwarning: leaked\n", encoding="utf-8")
    assert last_words(output, 1) == "`my.csv` is empty"
    assert last_words(output, -signal.SIGKILL) == "killed by SIGKILL"
    output.write_text("")
    assert last_words(output, 3) == "exit code 3"


def test_failures_on_end_that_say_the_same_end_the_search(tmp_path):
    study, reasons = open_study(tmp_path / "s"), []

    def failed(reason):
        return create_trial(state=TrialState.FAIL, user_attrs={"reason": reason} if reason else {})

    for reason in ("a", "a", None, "a", "b", "b"):
        tune.refuse_to_fail_on(reasons, failed(reason), study)
    with pytest.raises(ValueError, match="3 trainings on end failed in the same way: b"):
        tune.refuse_to_fail_on(reasons, failed("b"), study)


# -- what is kept and said --------------------------------------------------------------------------------------------


def filled(folder, scores, metric="accuracy"):
    """A study with trials of these scores, each with a folder that says its number; None failed."""
    study = open_study(folder, [*SPACE, "fusion_hidden_size=categorical(64,128)"])
    distributions = {name: dimension.distribution() for name, dimension in study_space().items()}
    for number, score in enumerate(scores):
        params = {"learning_rate": 1e-4 * (1 + number), "hidden_dropout_prob": 0.02 * number}
        params["fusion_hidden_size"] = ("64", "128")[number % 2]
        add_trial(study, score, params, distributions, metric)
        for name in (f"{number:04d}", f"{number:04d}-checkpoints") if score is not None else ():
            (study.trials_folder / name).mkdir()
            (study.trials_folder / name / "number").write_text(str(number))
    return study


def study_space():
    return read_space([*SPACE, "fusion_hidden_size=categorical(64,128)"])


def add_trial(study, score, params, distributions, metric="accuracy"):
    known = {"validation": {metric: abs(score)}, "seconds": 90.0} if score is not None else {"reason": "no memory"}
    study.study.add_trial(
        create_trial(
            state=TrialState.FAIL if score is None else TrialState.COMPLETE,
            value=score,
            params=params,
            distributions=distributions,
            user_attrs=known,
            intermediate_values={} if score is None else {1: score - 0.1, 2: score},
        )
    )


def number_in(folder):
    return (folder / "number").read_text()


def test_the_best_model_stays_and_beaten_ones_go(tmp_path):
    study = filled(tmp_path / "s", [0.5, 0.8, None, 0.7])
    keeping.keep_the_best(study, keep_trials=2)
    assert number_in(study.folder / "best") == "1" == number_in(keeping.best_folder(study))
    kept = sorted(path.name for path in study.trials_folder.iterdir() if path.is_dir())
    assert kept == ["0001", "0003"]
    keeping.keep_the_best(study, keep_trials=0)
    assert not [path for path in study.trials_folder.iterdir() if path.is_dir()]
    assert number_in(study.folder / "best") == "1"


def test_of_equals_the_first_stays_and_a_better_one_replaces_it(tmp_path):
    study = filled(tmp_path / "s", [0.5, 0.5])
    keeping.keep_the_best(study, 0)
    assert number_in(study.folder / "best") == "0"
    params = dict(study.trials[0].params)
    add_trial(study, 0.9, params, study.trials[0].distributions)
    (study.trials_folder / "0002").mkdir()
    (study.trials_folder / "0002" / "number").write_text("2")
    keeping.keep_the_best(study, 0)
    assert number_in(study.folder / "best") == "2"


def test_the_table_and_the_summary_name_the_metric_and_the_command(tmp_path):
    study = filled(tmp_path / "s", [-3.5, -2.25, None], metric="mae")
    study.study.set_user_attr("settings", {"sampler": "tpe", "pruner": "none", "seed of the search": 0})
    made = Training(WORDS, study_space(), study.trials_folder)
    report.write_report(study, made, "python tune.py …")
    with (study.folder / "trials.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["state"], row["score"], row["mae"]) for row in rows[:2]] == [
        ("complete", "-3.5", "3.5"), ("complete", "-2.25", "2.25"),
    ]  # fmt: skip
    assert (rows[2]["state"], rows[2]["reason"], rows[1]["minutes"]) == ("failed", "no memory", "1.5")
    best = json.loads((study.folder / "study.json").read_text(encoding="utf-8"))["best"]
    assert best["trial"] == 1 and "--learning_rate=0.0002" in best["command"]
    table = report.format_best(study).splitlines()
    assert table[0].split()[:2] == ["trial", "MAE"] and table[1].split()[:2] == ["1", "2.25"]
    assert report.describe_trial(study.trials[2]).startswith("trial 2  failed: no memory")


def test_the_pictures_show_something_and_old_ones_go(tmp_path):
    study = filled(tmp_path / "s", [*(0.3 + 0.05 * number for number in range(8)), None])
    with telling_faults(study.folder):
        assert pictures.draw_pictures(study, study_space()) == ["history.png", "importances.png", "slices.png"]
    for name in ("history.png", "importances.png", "slices.png"):
        with Image.open(study.folder / name) as picture:
            colors = picture.convert("RGB").getcolors(maxcolors=1 << 20)
        assert picture.width > 600 and len(colors) > 20
    few = filled(tmp_path / "t", [-0.5, -0.6], "mae")
    (few.folder / "importances.png").write_text("old")
    assert pictures.draw_pictures(few, study_space()) == ["history.png", "slices.png"]
    assert not (few.folder / "importances.png").exists()


# -- real trainings ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Rows whose label a model that learns at all reads off their words."""
    folder = tmp_path_factory.mktemp("table")
    words = (("a fine day", "good"), ("a grim night", "bad"))
    for name, count in (("train", 32), ("validation", 8)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            rows.writerows((f"{words[i % 2][0]} {i}", words[i % 2][1]) for i in range(count))
    return folder


def search(table, folder, space, epochs, *options):
    words = ["--train_file", f"{table}/train.csv", "--validation_file", f"{table}/validation.csv"]
    sizes = ["--per_device_train_batch_size", 4, "--fusion_hidden_size", 16, "--num_fusion_layers", 1]
    own = ["--space", space, "--study_dir", folder, *options]
    return [str(word) for word in [*own, "--", *words, *sizes, "--num_train_epochs", epochs]]


def rows_of(folder):
    with (folder / "trials.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_search_prunes_what_does_not_learn_and_leaves_the_best_model(table, tmp_path, capsys):
    folder = tmp_path / "study"
    options = ["--sampler", "grid", "--seed", 0, "--pruner_startup_trials", 1]
    assert tune.main(search(table, folder, "learning_rate=categorical(0,3e-3)", 8, *options)) == 0
    said = capsys.readouterr().out
    rows = rows_of(folder)
    assert [(row["state"], row["learning_rate"]) for row in rows] == [("complete", "3e-3"), ("pruned", "0")], said
    assert int(rows[1]["epochs"]) < 8
    assert "trial 1  pruned, accuracy" in said and f"the best model, of trial 0, is in {folder}/best" in said
    assert {path.name for path in folder.iterdir()} >= {"study.db", "study.json", "history.png", "slices.png"}
    assert not [path for path in (folder / "trials").iterdir() if path.is_dir()]

    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder / "best", trust_remote_code=True)
    assert set(model.config.id2label.values()) == {"good", "bad"}
    assert tune.main(search(table, folder, "learning_rate=categorical(0,3e-3)", 8, *options)) == 0  # all is done


def start(argv):
    return subprocess.Popen(
        [sys.executable, ROOT / "tune.py", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_search_that_is_killed_goes_on_with_the_trial_where_it_was(signum, table, tmp_path):
    folder = tmp_path / "study"
    argv = search(table, folder, "learning_rate=loguniform(1e-4,1e-3)", 12, "--num_trials", 2, "--pruner", "none")
    running = start(argv)
    wait_until(lambda: len(list(folder.glob("trials/0000-checkpoints/step-*"))) >= 2, 120)
    running.send_signal(signum)
    said = running.communicate(timeout=120)[0]
    assert running.returncode == (-signum if signum == signal.SIGKILL else 128 + signum), said
    assert "the same command goes on with the study" in said or signum == signal.SIGKILL
    again = start(argv)
    said = again.communicate(timeout=300)[0]
    assert again.returncode == 0, said
    assert [row["state"] for row in rows_of(folder)] == ["complete", "complete"]
    assert [row["epochs"] for row in rows_of(folder)] == ["12", "12"]
    assert "going on from" in (folder / "trials" / "0000.txt").read_text(encoding="utf-8")
    assert (folder / "best" / "model.safetensors").exists()


@pytest.mark.slow
def test_two_searches_share_a_study_and_time_that_is_up_ends_one(table, tmp_path):
    folder = tmp_path / "study"
    argv = search(table, folder, "learning_rate=loguniform(1e-4,1e-3)", 2, "--num_trials", 4)
    pair = [start(argv), start(argv)]
    said = [process.communicate(timeout=400)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    assert all("trial " in text for text in said)
    states = [row["state"] for row in rows_of(folder)]
    assert len(states) == 4 and set(states) <= {"complete", "pruned"}
    more = search(table, folder, "learning_rate=loguniform(1e-4,1e-3)", 2, "--num_trials", 6, "--timeout", 2)
    last = start(more)
    text = last.communicate(timeout=200)[0]
    assert last.returncode == 0 and "2 of 6 trials are left: the same command goes on with them" in text


@pytest.mark.slow
def test_trainings_that_fail_alike_end_the_search_in_one_line(table, tmp_path):
    argv = search(table, tmp_path / "study", "learning_rate=loguniform(1e-4,1e-3)", 1)
    failing = start([*argv, "--label_column", "verdict"])
    said = failing.communicate(timeout=300)[0]
    assert failing.returncode == 1
    assert "error: 3 trainings on end failed in the same way: " in said.splitlines()[-1]
    assert "verdict" in said.splitlines()[-1]
