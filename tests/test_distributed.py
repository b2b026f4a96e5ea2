"""Two processes that train one model, against one process with batches of twice the size. All of them are real ones.

Dropout is off and no tower has batch norm: what is left has no excuse to differ.
"""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from conftest import audio_config, text_config, vit_config
from hub_here import datasets_online, push_tables, write_rows
from local_hub import running_hub
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import BatchSampler
from transformers import (
    BertModel,
    BertTokenizerFast,
    ViTImageProcessor,
    ViTModel,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    set_seed,
)

from cli.loading import load_model
from data import LabelMap, StreamedDataset, open_stream, read_table
from training.processes import check_processes, draw_apart, must_run_on_cpus, own_share
from training.sharding import divide, is_asked_for

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs" / "accelerate"
NUM_ROWS, BATCH = 34, 4  # two times four batches of four, and a last one of two: the second process has none of it
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "low", "high", "sound", "of", "the", "sea"]
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def png(level):
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (level, 255 - level, 90)).save(file, "png")
    return file.getvalue()


def wav(hertz, seconds):
    file = io.BytesIO()
    wave = np.sin(np.arange(int(4000 * seconds)) / 4000 * 2 * np.pi * hertz) * 0.4
    soundfile.write(file, wave, 4000, format="wav")
    return file.getvalue()


def side_of(position):
    """Which of two processes meets the row that stands there in the order of an epoch."""
    return position // BATCH % 2


def write_table(path, rows, sides):
    """Rows of the first process have text and picture, those of the second only sound."""
    table = {"text": [], "image": [], "audio": [], "label": []}
    for row, side in zip(rows, sides, strict=True):
        is_high = row % 2
        words = ["the", ["low", "high"][is_high], "sound", *["of", "the", "sea"][: row % 4]]
        table["text"].append(None if side else " ".join(words))
        table["image"].append(None if side or row % 3 else png(200 if is_high else 30))
        table["audio"].append(wav(300 + 600 * is_high, 0.1 + row % 5 / 20) if side else None)
        table["label"].append(["low", "high"][is_high])
    types = {"text": pa.string(), "image": pa.binary(), "audio": pa.binary(), "label": pa.string()}
    pq.write_table(pa.table(table, schema=pa.schema(types.items())), path)


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Of a run whose first epoch has nothing but one-sided batches."""
    folder = tmp_path_factory.mktemp("rows")
    order = list(SeedableRandomSampler(range(NUM_ROWS), data_seed=0))
    sides = [side_of(order.index(row)) for row in range(NUM_ROWS)]
    write_table(folder / "train.parquet", range(NUM_ROWS), sides)
    write_table(folder / "validation.parquet", range(11), [row % 2 for row in range(11)])

    set_seed(0)
    silent = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "feat_proj_dropout": 0.0}
    towers = {
        "text": (BertModel(text_config(**NO_DROPOUT), add_pooling_layer=False),
                 BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)})),
        "image": (ViTModel(vit_config(**NO_DROPOUT), add_pooling_layer=False),
                  ViTImageProcessor(size={"height": 16, "width": 16})),
        "audio": (Wav2Vec2Model(audio_config(**silent)), Wav2Vec2FeatureExtractor(sampling_rate=4000)),
    }  # fmt: skip
    argv = ["--train_file", folder / "train.parquet", "--validation_file", folder / "validation.parquet"]
    for modality, parts in towers.items():
        for part in parts:
            part.save_pretrained(folder / modality)
        argv += [f"--{modality}_model_name_or_path", folder / modality, f"--{modality}_learning_rate", 2e-4]
    argv += ["--hidden_dropout_prob", 0, "--modality_dropout", 0, "--mask_time_prob", 0, "--fusion_hidden_size", 32]
    argv += ["--learning_rate", 2e-4]
    return [*argv, "--num_train_epochs", 2, "--logging_steps", 1, "--per_device_eval_batch_size", 3]


def trained(forks, argv, folder, *more, num_processes=2, **env):
    """Train to the end, and what is left: the model folder."""
    argv = [*argv, "--output_dir", folder / "m", *more]
    if num_processes == 1:
        ranks = [forks.start([*argv, "--per_device_train_batch_size", 2 * BATCH], folder / "said")]
    else:
        ranks = forks.start_together([*argv, "--per_device_train_batch_size", BATCH], folder / "said", **env)
    codes = [rank.wait() for rank in ranks]
    assert codes == [0] * num_processes, "\n".join(rank.said[-3000:] for rank in ranks)
    return folder / "m"


@pytest.fixture(scope="module")
def alone(forks, flags, tmp_path_factory):
    return trained(forks, flags, tmp_path_factory.mktemp("alone"), num_processes=1)


@pytest.fixture(scope="module")
def together(forks, flags, tmp_path_factory):
    return trained(forks, flags, tmp_path_factory.mktemp("together"))


@pytest.fixture(scope="module")
def divided(forks, flags, tmp_path_factory):
    return trained(forks, flags, tmp_path_factory.mktemp("divided"), "--checkpointing_steps", 3, **FSDP)


def steps_of(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "event" not in line]


def difference(first, second):
    one, other = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


# ---------------------------------------------------------------------------------------------------------------------
# The same training
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["together", "divided"])
def test_one_sided_batches_give_the_losses_and_weights_of_one_process(alone, kind, request):
    folder = request.getfixturevalue(kind)
    ours, expected = steps_of(folder), steps_of(alone)
    assert len(ours) == len(expected) == 10
    assert all(set(step["padding"]) == {"text"} for step in ours[:5]), "the first process hears nothing in epoch 1"
    assert all(set(step["padding"]) == {"text", "audio"} for step in expected[:4])
    for name in ("loss", "gradient_norm"):
        assert [step[name] for step in ours] == pytest.approx([step[name] for step in expected], abs=1e-5)
    assert ours[-1]["learning_rates"] == pytest.approx(expected[-1]["learning_rates"])
    assert difference(folder, alone) < 1e-4, "Adam makes a whole step of a gradient that is all rounding"


@pytest.mark.parametrize("kind", ["together", "divided"])
def test_every_row_is_evaluated_once_and_the_results_are_those_of_one_process(alone, kind, request):
    ours, expected = metrics_of(request.getfixturevalue(kind)), metrics_of(alone)
    assert ours["num_rows"] == expected["num_rows"] == 11
    for subset, values in expected["metrics"].items():
        assert ours["metrics"][subset] == pytest.approx(values, abs=1e-5), subset
    epochs = [[epoch["train_loss"] for epoch in metrics["training"]["epochs"]] for metrics in (ours, expected)]
    assert epochs[0] == pytest.approx(epochs[1], abs=1.1e-4), "they are rounded to four digits"


@pytest.mark.slow
def test_a_divided_model_goes_on_from_a_checkpoint_bit_by_bit(forks, flags, divided, tmp_path):
    middle = divided.with_name("m-checkpoints") / "step-00000006"
    options = ["--checkpointing_steps", 3, "--resume_from_checkpoint", middle]
    assert difference(trained(forks, flags, tmp_path, *options, **FSDP), divided) == 0
    losses = [[step["loss"] for step in steps_of(folder)] for folder in (tmp_path / "m", divided)]
    assert losses[0] == losses[1][6:]


def test_the_folder_of_a_divided_model_is_as_any_other(alone, divided):
    ours, expected = ({path.name for path in folder.iterdir()} for folder in (divided, alone))
    assert ours == expected
    assert (divided / "modeling_mmfusion.py").read_bytes() == (alone / "modeling_mmfusion.py").read_bytes()
    ours, expected = (json.loads((folder / "config.json").read_text()) for folder in (divided, alone))
    assert ours.pop("temperatures") == pytest.approx(expected.pop("temperatures"), abs=1e-3)
    assert ours == expected
    load_model(str(divided), device="cpu")  # refuses weights that are missing or too many


# ---------------------------------------------------------------------------------------------------------------------
# Parts
# ---------------------------------------------------------------------------------------------------------------------


def process(index, num_processes=2, kind=DistributedType.MULTI_CPU, **parts):
    return SimpleNamespace(
        process_index=index, num_processes=num_processes, distributed_type=kind, device=torch.device("cpu"), **parts
    )


@pytest.mark.parametrize("num_processes", [2, 3])
@pytest.mark.parametrize("num_rows", [1, 2, 5, 11, 12, 13, 24])
def test_every_row_of_an_epoch_counts_once_in_the_mean_of_its_batch(num_rows, num_processes):
    dataset, size = list(range(num_rows)), 4
    plain = BatchSampler(dataset, size, drop_last=False)
    shards = [list(BatchSamplerShard(plain, num_processes, index)) for index in range(num_processes)]
    loader = SimpleNamespace(batch_sampler=BatchSamplerShard(plain, num_processes, 0), dataset=dataset)
    seen = []
    for number, batches in enumerate(zip(*shards, strict=True)):
        state = SimpleNamespace(end_of_dataloader=number == len(shards[0]) - 1)
        counts, total = torch.zeros(num_rows), 0
        for index, batch in enumerate(batches):
            part, weight, total = own_share(
                process(index, num_processes, gradient_state=state), loader, {"labels": torch.tensor(batch)}
            )
            counts[part["labels"]] += weight / len(part["labels"]) / num_processes  # as the mean over processes has it
        weighed = counts.nonzero().flatten().tolist()
        assert len(weighed) == total and counts[weighed].tolist() == pytest.approx([1 / total] * total)
        seen += weighed
    assert sorted(seen) == dataset


def test_processes_draw_numbers_of_their_own_and_the_first_is_left_alone():
    drawn = []
    for index in range(3):
        torch.manual_seed(0)
        draw_apart(process(index), seed=0)
        drawn.append(torch.rand(4).tolist())
    torch.manual_seed(0)
    assert drawn[0] == torch.rand(4).tolist()
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


def sharded(**options):
    state = SimpleNamespace(fsdp_plugin=FullyShardedDataParallelPlugin(**{"fsdp_version": 2, **options}))
    return process(0, kind=DistributedType.FSDP, state=state)


@pytest.mark.parametrize(
    ("accelerator", "message"),
    [
        (
            lambda: process(0, kind=DistributedType.DEEPSPEED),
            "`distributed_type: DEEPSPEED` of accelerate is not",
        ),
        (lambda: process(0, kind=DistributedType.MEGATRON_LM), "allowed are `NO`, `MULTI_GPU` or `MULTI_CPU`"),
        (lambda: sharded(fsdp_version=1), "`fsdp_version: 1` of accelerate is not supported"),
        (lambda: sharded(cpu_offload=True), "`fsdp_offload_params: true` is not supported"),
        (lambda: sharded(activation_checkpointing=True), "give --activation_checkpointing"),
    ],
)
def test_engines_that_are_not_known_here_are_refused(accelerator, message):
    with pytest.raises(ValueError, match=message):
        is_asked_for(accelerator())


def test_fsdp_is_taken_as_asked_on_gpus_and_on_cpus(monkeypatch):
    assert is_asked_for(sharded()) and not is_asked_for(process(0))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert is_asked_for(process(0)) and not is_asked_for(process(0, kind=DistributedType.NO))


def test_lora_and_a_divided_model_exclude_each_other():
    with pytest.raises(ValueError, match="--lora needs the whole model in each process"):
        divide(SimpleNamespace(lora=("text",)), sharded(), torch.nn.Linear(2, 2))


def test_processes_that_do_not_find_one_another_do_not_train_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert must_run_on_cpus() is not torch.accelerator.is_available()
    with pytest.raises(ValueError, match=r"2 processes were started .* set ACCELERATE_USE_CPU=true"):
        check_processes(process(0, num_processes=1, kind=DistributedType.NO))
    monkeypatch.delenv("WORLD_SIZE")
    assert not must_run_on_cpus()


@pytest.mark.parametrize("name", ["single_gpu", "multi_gpu_ddp", "fsdp2", "two_nodes", "cpu_two_processes"])
def test_sample_configurations_are_read_by_accelerate_and_say_when_to_use_them(name):
    file = CONFIGS / f"{name}.yaml"
    config = load_config_from_file(str(file))
    kind, num_machines = {"single_gpu": ("NO", 1), "fsdp2": ("FSDP", 1), "two_nodes": ("MULTI_GPU", 2)}.get(
        name, ("MULTI_GPU", 1)
    )
    assert (config.distributed_type.value, config.num_machines) == (kind, num_machines)
    assert config.use_cpu == (name == "cpu_two_processes") and config.mixed_precision == "no"
    text = file.read_text(encoding="utf-8")
    assert text.startswith("# ") and f"--config_file configs/accelerate/{name}.yaml" in text
    assert not re.search(r"[ \"'=](/|~|[A-Z]:\\)", text), "no path of a machine"


def test_every_sample_configuration_is_tested_and_explained():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {
        "single_gpu", "multi_gpu_ddp", "fsdp2", "two_nodes", "cpu_two_processes"
    }  # fmt: skip
    readme = (CONFIGS / "README.md").read_text(encoding="utf-8")
    assert all(path.name in readme for path in CONFIGS.glob("*.yaml"))


# ---------------------------------------------------------------------------------------------------------------------
# Streams
# ---------------------------------------------------------------------------------------------------------------------


def test_processes_share_a_stream_and_each_meets_its_rows_again_when_it_goes_on(tmp_path):
    num_rows = 20
    with running_hub(tmp_path / "hub") as hub, datasets_online(hub, tmp_path / "home") as api:
        table = write_rows(tmp_path / "t", num_rows)
        push_tables(api, "alice/rows", tmp_path / "rows", train=table)
        labels = LabelMap.fit(read_table(table))

        def streamed(index, epoch):
            modalities = ("text", "image", "audio")
            processor = SimpleNamespace(modalities=modalities, audio_sampling_rate=8000, max_audio_seconds=1.0)
            options = {"buffer_size": 6, "seed": 0, "on_bad_cell": "error", "num_rows": num_rows}
            rows = StreamedDataset(
                open_stream("alice/rows"), labels, processor, **options, process_index=index, num_processes=2
            )
            rows.set_epoch(epoch)
            return [row["text"] or row["image"].tobytes() for row in rows]

        epochs = [[streamed(index, epoch) for index in range(2)] for epoch in range(2)]
        for parts in epochs:
            assert len(set(parts[0]) | set(parts[1])) == num_rows and len(parts[0]) == len(parts[1]) == 10
        assert epochs[0] != epochs[1]
        assert [streamed(index, 1) for index in range(2)] == epochs[1], "read again up to where it was cut off"


# ---------------------------------------------------------------------------------------------------------------------
# Launchers
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        [
            "accelerate.commands.launch",
            "--config_file",
            CONFIGS / "cpu_two_processes.yaml",
            "--main_process_port",
            29622,
        ],
        ["torch.distributed.run", "--nproc_per_node", 2, "--master_port", 29623],
    ],
    ids=["accelerate", "torchrun"],
)
def test_launchers_start_the_same_training(launcher, flags, together, tmp_path):
    argv = [sys.executable, "-m", *launcher, "train.py", *flags, "--output_dir", tmp_path / "m"]
    argv += ["--per_device_train_batch_size", BATCH]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([str(word) for word in argv], cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert difference(tmp_path / "m", together) == 0
