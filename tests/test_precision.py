"""Number formats, the scaler of float16, accumulated steps, memory and compiled blocks: real runs, on the CPU."""

import json
import os
import re
import resource
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from conftest import fresh, make_inputs, make_model
from test_checkpoints import LATEST, ROOT, TEXT_ONLY, are_equal, end_at, lines_of, run, says, weights_of, write_table

from training import batch_size, loop, objective, optimization
from training.arguments import parse_args
from training.batch_size import sizes_of, telling_memory
from training.checkpoints import CheckpointFolder
from training.precision import compile_blocks, has_fused_kernel, has_room

UNIT = 8  # rows a step


@pytest.fixture
def texts(tmp_path):
    """Flags of a run on 21 rows of text of all lengths, eight a step: the third step of an epoch has five."""
    rows = [{"text": f"{('bad', 'good')[i % 2]} " * (1 + i), "label": ("bad", "good")[i % 2]} for i in range(21)]
    files = ["--train_file", write_table(tmp_path / "t.csv", rows)]
    files += [
        "--validation_file",
        write_table(tmp_path / "v.csv", [{**row, "text": row["text"] + "!"} for row in rows]),
    ]
    return [*files, *TEXT_ONLY, "--per_device_train_batch_size", UNIT, "--num_train_epochs", 3, "--logging_steps", 1,
            "--max_eval_samples", 4]  # fmt: skip


def args_of(*flags):
    return parse_args(["--train_file", "t.csv", "--output_dir", "new_model", *map(str, flags)], "", "")


def refused(capsys, *flags):
    """What argparse says about flags that do not go together."""
    with pytest.raises(SystemExit, match="2"):
        args_of(*flags)
    return capsys.readouterr().err


def training_of(folder):
    return json.loads((folder / "metrics.json").read_text())["training"]


def steps_of(folder):
    return [line for line in lines_of(folder / "log.jsonl") if "event" not in line]


# ---------------------------------------------------------------------------------------------------------------------
# float16 and its scaler
# ---------------------------------------------------------------------------------------------------------------------


def scale_by(monkeypatch, scale, **options):
    """Let float16 run on the CPU, which torch can and `accelerate` does not, with a real scaler; those made."""
    scalers = []

    class WithScaler(optimization.Accelerator):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.native_amp, self.scaler = True, torch.amp.GradScaler("cpu", init_scale=scale, **options)
            scalers.append(self.scaler)

    monkeypatch.setattr(optimization, "Accelerator", WithScaler)
    return scalers


HALF = ["--mixed_precision", "fp16"]


def test_float16_on_a_cpu_is_refused(texts, tmp_path, capsys):
    error = says(texts, tmp_path / "m", capsys, *HALF)
    assert re.search("--mixed_precision fp16 needs a GPU, and this is a CPU, .*float32: take bf16 or no", error)


@pytest.mark.parametrize("kernel", ["fused", pytest.param("plain", marks=pytest.mark.slow)])
def test_steps_whose_scale_was_too_high_are_left_out_and_are_no_faults(kernel, texts, tmp_path, monkeypatch):
    if kernel == "plain":
        monkeypatch.setattr(optimization, "has_fused_kernel", lambda *_: False)
    scalers, schedules = scale_by(monkeypatch, 2.0**19), []
    monkeypatch.setattr(loop, "learning_rates", lambda optimizer: schedules.append(optimizer.param_groups[0]["lr"]))
    monkeypatch.setattr(loop.Records, "step", lambda *_: None)
    assert run(texts, tmp_path / "m", *HALF, "--max_bad_steps", 1, "--lr_scheduler_type", "constant_with_warmup",
               "--warmup_ratio", 0.99) == 0  # fmt: skip
    training, rates = training_of(tmp_path / "m"), [0.0, *schedules]
    left_out = sum(first == second for first, second in pairwise(rates))
    assert 0 < training["num_overflows"] < 9 and training["num_skipped_steps"] == 0
    assert left_out == training["num_overflows"], "the schedule waits for them"
    assert scalers[0].get_scale() == 2.0 ** (19 - training["num_overflows"])
    assert all(weights.isfinite().all() for weights in weights_of(tmp_path / "m").values())


def test_a_gradient_that_is_not_finite_at_a_scale_of_one_is_a_fault(texts, tmp_path, capsys, monkeypatch):
    scalers, set_mode = scale_by(monkeypatch, 4.0), loop.set_training_mode

    def breaking(model):
        set_mode(model)
        model.classifier.weight.register_hook(lambda gradient: gradient * torch.nan)

    monkeypatch.setattr(loop, "set_training_mode", breaking)
    error = says(texts, tmp_path / "m", capsys, *HALF, "--max_bad_steps", 3)
    assert "the gradient was not finite in 3 steps on end: lower --learning_rate (0.001), or look for extreme" in error
    assert scalers[0].get_scale() == 2.0**-2, "two steps to come down to 1, and two of the bad ones"


def test_only_a_scale_that_can_be_lowered_is_to_blame():
    assert not has_room(None) and not has_room(torch.amp.GradScaler("cpu", init_scale=1.0))
    assert has_room(torch.amp.GradScaler("cpu", init_scale=2.0))


def test_a_float16_run_goes_on_with_the_scale_where_it_was(texts, tmp_path, monkeypatch):
    scale_by(monkeypatch, 2.0**18, growth_interval=2)
    assert run(texts, tmp_path / "whole", *HALF) == 0
    fresh()
    with monkeypatch.context() as patch:
        end_at(patch, 4)
        assert run(texts, tmp_path / "m", *HALF, "--checkpointing_steps", 9) == 143
    saved = CheckpointFolder(tmp_path / "m-checkpoints").newest()[0].state()["scaler"]
    assert saved["scale"] != 2.0**18 and saved["growth_interval"] == 2
    fresh()
    assert run(texts, tmp_path / "m", *HALF, "--checkpointing_steps", 9, *LATEST) == 0
    assert are_equal(weights_of(tmp_path / "m"), weights_of(tmp_path / "whole"))
    assert training_of(tmp_path / "m")["num_overflows"] == training_of(tmp_path / "whole")["num_overflows"] > 0


def test_bfloat16_computes_in_it_and_keeps_the_weights_in_float32(texts, tmp_path, monkeypatch):
    kinds, learn = set(), objective.Objective.learn

    def seen(self, model, batch, backward):
        with objective.hooked(model.classifier, lambda output: kinds.add(output.dtype)):
            return learn(self, model, batch, backward)

    monkeypatch.setattr(objective.Objective, "learn", seen)
    assert run(texts, tmp_path / "m", "--mixed_precision", "bf16", "--max_train_steps", 2) == 0
    assert kinds == {torch.bfloat16}
    assert {weights.dtype for weights in weights_of(tmp_path / "m").values()} == {torch.float32}


# ---------------------------------------------------------------------------------------------------------------------
# Accumulated steps
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "steps"), [(4, 2)])
def test_accumulated_steps_are_those_of_one_large_batch_the_short_last_one_too(
    size, steps, texts, tmp_path, monkeypatch
):
    """21 rows are 8, 8 and 5: of four rows a batch, the third step has one batch of four and one of a single row."""
    monkeypatch.setattr(loop, "set_training_mode", lambda model: model.eval())  # no dropout
    assert run(texts, tmp_path / "whole") == 0
    fresh()
    sizes = ["--per_device_train_batch_size", size, "--gradient_accumulation_steps", steps]
    assert run(texts, tmp_path / "m", *sizes) == 0
    pairs = list(zip(steps_of(tmp_path / "whole"), steps_of(tmp_path / "m"), strict=True))
    assert len(pairs) == 9
    for whole, accumulated in pairs:
        assert accumulated["gradient_norm"] == pytest.approx(whole["gradient_norm"], rel=1e-3), whole["step"]
        assert accumulated["learning_rates"] == whole["learning_rates"]


# ---------------------------------------------------------------------------------------------------------------------
# Finding the batch size
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def long_texts(tmp_path):
    """Flags of a run on 32 long texts, all in one batch."""
    rows = [{"text": f"{('bad', 'good')[i % 2]} word{i} " * 300, "label": ("bad", "good")[i % 2]} for i in range(32)]
    file = write_table(tmp_path / "long.csv", rows)
    files = ["--train_file", file, "--validation_file", file, "--max_eval_samples", 4]
    return [*files, *TEXT_ONLY, "--max_text_length", 512, "--per_device_train_batch_size", 32, "--num_train_epochs", 1]


def allowing(megabytes):
    """As `Trial.problem`, with so many megabytes more than are taken already."""
    problem = batch_size.Trial.problem

    def limited(self, *values, **options):
        taken = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (taken + megabytes * 2**20, resource.RLIM_INFINITY))
        try:
            return problem(self, *values, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    return limited


def in_a_fork(output, function, *values):
    """(Exit code, what it said on both streams)."""
    pid = os.fork()
    if pid == 0:
        with output.open("w") as file, redirect_stdout(file), redirect_stderr(file):
            code = function(*values)
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output.read_text()


def test_where_memory_is_out_the_batch_is_halved_and_the_run_is_one_of_that_size(long_texts, tmp_path, monkeypatch):
    flags = [*long_texts, "--checkpointing_steps", 1]
    with monkeypatch.context() as patch:
        patch.setattr(batch_size.Trial, "problem", allowing(megabytes=250))
        code, said = in_a_fork(tmp_path / "said", run, flags, tmp_path / "m", "--auto_find_batch_size")
    assert code == 0, said
    found = re.search(
        r"batches of 32 rows do not fit into memory \(.*DefaultCPUAllocator: can't allocate memory.*\): taken are "
        r"--per_device_train_batch_size (\d+) --gradient_accumulation_steps (\d+), with which a step is on 32 rows",
        said,
    )
    assert found is not None, said
    size, steps = map(int, found.groups())
    assert size * steps == 32 and 1 < size < 32
    recorded = json.loads((tmp_path / "m" / "training_config.json").read_text())["arguments"]
    assert (recorded["per_device_train_batch_size"], recorded["gradient_accumulation_steps"]) == (size, steps)
    sizes = ["--per_device_train_batch_size", size, "--gradient_accumulation_steps", steps]
    assert run(long_texts, tmp_path / "whole", *sizes) == 0
    assert are_equal(weights_of(tmp_path / "m"), weights_of(tmp_path / "whole"))


def test_a_run_that_goes_on_takes_the_size_that_was_found(texts, tmp_path, monkeypatch, capsys):
    flags = [*texts, "--auto_find_batch_size", "--checkpointing_steps", 9]
    with monkeypatch.context() as patch:
        too_large(patch, 4)
        end_at(patch, 4)
        assert run(flags, tmp_path / "m") == 143
    assert "taken are --per_device_train_batch_size 4 --gradient_accumulation_steps 2" in capsys.readouterr().out
    fresh()
    assert "--per_device_train_batch_size was 4 and is 6" in says(
        flags, tmp_path / "m", capsys, "--per_device_train_batch_size", 6, *LATEST
    )
    assert run(flags, tmp_path / "m", *LATEST) == 0, "not tried again"
    fresh()
    sizes = ["--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2]
    assert run(texts, tmp_path / "whole", *sizes) == 0
    assert are_equal(weights_of(tmp_path / "m"), weights_of(tmp_path / "whole"))


def too_large(monkeypatch, size):
    """Have every larger batch ask for more memory than there is; the sizes tried."""
    tried, train_twice = [], batch_size.Trial._train_twice

    def filled(self, rows, is_accumulated):
        tried.append(len(rows))
        train_twice(self, rows, is_accumulated)
        torch.empty(2**50 if len(rows) > size else 0)

    monkeypatch.setattr(batch_size.Trial, "_train_twice", filled)
    return tried


def test_a_size_that_fits_at_once_leaves_no_trace(texts, tmp_path, capsys):
    assert run(texts, tmp_path / "m", "--auto_find_batch_size") == 0
    assert "batches of 8 rows fit into memory\n" in capsys.readouterr().out
    fresh()
    assert run(texts, tmp_path / "whole") == 0
    assert are_equal(weights_of(tmp_path / "m"), weights_of(tmp_path / "whole"))


def test_when_not_even_one_row_fits_that_is_said(texts, tmp_path, monkeypatch, capsys):
    tried = too_large(monkeypatch, 0)
    error = says(texts, tmp_path / "m", capsys, "--auto_find_batch_size")
    assert tried == [8, 4, 2, 1]
    assert re.search(
        r"--auto_find_batch_size: not even one row fits into memory \(.*can't allocate memory.*\). Try --activation_",
        error,
    )


def test_the_longest_rows_are_tried(texts, tmp_path, monkeypatch):
    seen, train_twice = [], batch_size.Trial._train_twice
    monkeypatch.setattr(
        batch_size.Trial, "_train_twice", lambda *values: seen.append(values[1]) or train_twice(*values)
    )
    assert run(texts, tmp_path / "m", "--auto_find_batch_size", "--max_train_steps", 1) == 0
    assert seen == [list(range(20, 12, -1))]


def test_another_error_is_not_taken_for_a_lack_of_memory(texts, tmp_path, monkeypatch):
    def broken(*values):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(batch_size.Trial, "_train_twice", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run(texts, tmp_path / "m", "--auto_find_batch_size")


def test_sizes_are_halved_and_keep_the_rows_of_a_step():
    def sizes(size, steps):
        return sizes_of(args_of("--per_device_train_batch_size", size, "--gradient_accumulation_steps", steps))

    assert sizes(32, 1) == [32, 16, 8, 4, 2, 1] and sizes(1, 4) == [1]
    assert sizes(33, 1) == [33, 11, 3, 1] and sizes(10, 3) == [10, 5, 2, 1]


def test_a_model_that_is_divided_among_processes_is_not_tried(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    accelerator = SimpleNamespace(distributed_type=DistributedType.MULTI_CPU)
    with pytest.raises(ValueError, match="among them: give --per_device_train_batch_size"):
        batch_size.find_batch_size(args_of(), accelerator, None, None, None, None)


def test_a_lack_of_memory_in_the_training_says_what_helps():
    sentence = r"out of memory \(.*can't allocate.*\): lower --per_device_train_batch_size \(32\) and raise --grad"
    with pytest.raises(OSError, match=sentence), telling_memory(args_of()):
        torch.empty(2**50)
    with pytest.raises(RuntimeError, match="mat1 and mat2"), telling_memory(args_of()):
        torch.ones(2, 3) @ torch.ones(2, 3)


TWO = """
import os, sys, torch
from training import batch_size
import train

train_twice = batch_size.Trial._train_twice

def filled(self, rows, is_accumulated):
    train_twice(self, rows, is_accumulated)
    torch.empty(2**50 if os.environ["RANK"] == "1" and len(rows) > 4 else 0)

batch_size.Trial._train_twice = filled
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_two_processes_agree_when_one_of_them_has_no_room(texts, tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29633"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    command = [*launcher, tmp_path / "two.py", *texts, "--output_dir", tmp_path / "m", "--auto_find_batch_size"]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env={**env, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--per_device_train_batch_size 4 --gradient_accumulation_steps 2" in done.stdout
    assert "do not fit into memory (in another process)" in done.stdout


# ---------------------------------------------------------------------------------------------------------------------
# Optimizer, activation checkpointing
# ---------------------------------------------------------------------------------------------------------------------


def test_the_optimizer_is_fused_where_there_is_such_a_kernel():
    def of(dtype, device="cpu"):
        return has_fused_kernel([torch.nn.Parameter(torch.zeros(2, dtype=dtype))], torch.device(device))

    assert of(torch.float32) and of(torch.bfloat16)
    assert not of(torch.complex64) and not of(torch.float32, "meta")


def saved_bytes_and_gradients(model, inputs):
    """(Bytes kept for the backward pass, gradients) of one loss, with dropout."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.update({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()}) or x, lambda x: x
    ):
        torch.manual_seed(1)
        model(**inputs).loss.backward()
    return sum(kept.values()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_activation_checkpointing_saves_memory_and_changes_no_bit_of_the_gradient():
    inputs = {**make_inputs(), "labels": torch.tensor([0, 1, 2, 0, 1])}
    (plain, expected), model = saved_bytes_and_gradients(make_model().train(), inputs), make_model().train()
    model.activation_checkpointing_enable()
    saved, gradients = saved_bytes_and_gradients(model, inputs)
    assert are_equal(gradients, expected)
    assert saved < 0.7 * plain


# ---------------------------------------------------------------------------------------------------------------------
# torch.compile
# ---------------------------------------------------------------------------------------------------------------------


def test_a_compiled_run_ends_with_a_plain_folder_and_the_numbers_of_an_eager_one(texts, tmp_path):
    from transformers import AutoModelForSequenceClassification

    flags = [*texts, "--max_train_steps", 2]
    assert run(flags, tmp_path / "m", "--torch_compile", "--torch_compile_backend", "aot_eager", "--seed", 3) == 0
    assert not [name for name in weights_of(tmp_path / "m") if "_orig_mod" in name]
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "m", trust_remote_code=True)
    fresh()
    assert run(flags, tmp_path / "eager", "--seed", 3) == 0
    first, second = weights_of(tmp_path / "m"), weights_of(tmp_path / "eager")
    assert first.keys() == second.keys()
    assert steps_of(tmp_path / "m")[0]["loss"] == pytest.approx(steps_of(tmp_path / "eager")[0]["loss"], rel=0.05)


@pytest.mark.slow
def test_inductor_trains_compiles_few_graphs_and_goes_on(texts, tmp_path, monkeypatch):
    from torch._dynamo.utils import counters

    flags = [*texts, "--torch_compile", "--checkpointing_steps", 9]
    with monkeypatch.context() as patch:
        end_at(patch, 4)
        assert run(flags, tmp_path / "m") == 143
    fresh()
    assert run(flags, tmp_path / "m", *LATEST) == 0
    assert 0 < counters["stats"]["unique_graphs"] < 32


def test_compiling_without_a_compiler_is_refused():
    from torch._inductor import config

    sentence = r"--torch_compile needs a C\+\+ compiler \(g\+\+, .*look for what breaks with --torch_compile_backend"
    with config.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(ValueError, match=sentence):
        compile_blocks(args_of("--torch_compile"), make_model(), torch.device("cpu"))
    assert compile_blocks(args_of("--torch_compile", "--torch_compile_backend", "aot_eager"), make_model(), None) > 0


def test_a_gpu_needs_triton():
    with pytest.raises(ValueError, match="--torch_compile needs the package `triton`, which is not here"):
        compile_blocks(args_of("--torch_compile"), make_model(), torch.device("cuda"))


def test_flags_that_change_nothing_are_refused(capsys):
    assert "--torch_compile_mode belongs to --torch_compile: add it" in refused(
        capsys, "--torch_compile_mode", "default"
    )
    assert "--torch_compile_backend belongs to --torch_compile: add it" in refused(
        capsys, "--torch_compile_backend", "inductor"
    )
    flags = ["--torch_compile", "--torch_compile_backend", "aot_eager", "--torch_compile_mode", "max-autotune"]
    assert "--torch_compile_mode is for the backend inductor, not for aot_eager" in refused(capsys, *flags)
    with pytest.raises(SystemExit, match="2"):
        parse_args(["--dataset_name", "a/b", "--streaming", "--output_dir", "m", "--auto_find_batch_size"], "", "")
    assert "--auto_find_batch_size tries the longest rows first, and --streaming sees" in capsys.readouterr().err
