"""LoRA: towers that stand still but for small matrices, an adapter that `peft` reads, and the model that it makes."""

import csv
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import CONFIGS, audio_config, fresh, make_inputs, make_model, model_config
from local_hub import LocalHub
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from test_checkpoints import kill_and_go_on
from test_hub_round_trip import run as run_process
from test_train import towers  # noqa: F401
from transformers import AutoModelForSequenceClassification, WavLMConfig

import train
from configuration_mmfusion import FUSION_TYPES
from data import demo
from training import adapters
from training.loop import set_training_mode
from training.optimization import tower_learning_rate

ALL = ("text", "image", "audio")
STEPS = ["--num_train_epochs", 2, "--per_device_train_batch_size", 4, "--max_train_samples", 8]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def tables(work):
    """Flags for the digits of the demo, and for the same rows with two other labels."""
    folder = demo.make_demo(work / "data", num_rows=100)
    flags = {}
    for name in ("digits", "parity"):
        for part in ("train", "validation"):
            with (folder / f"{part}.csv").open(newline="") as file:
                rows = list(csv.DictReader(file))
            even = {"zero", "two", "four", "six", "eight"}
            if name == "parity":
                rows = [{**row, "label": "even" if row["label"] in even else "odd"} for row in rows]
            with (folder / f"{name}_{part}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0].keys())
                writer.writeheader()
                writer.writerows(rows)
        files = (folder / f"{name}_train.csv", folder / f"{name}_validation.csv")
        flags[name] = ["--train_file", files[0], "--validation_file", files[1], "--no-check_cells"]
    return flags


def run(folder, *flags):
    """Train into `folder`; the exit code."""
    fresh()
    # An adapter knows of no temperatures.
    return train.main([*map(str, flags), "--no-calibrate", "--output_dir", str(folder)])


@pytest.fixture(scope="module")
def base(work, tables):
    """A whole model with towers of every modality, the picture's a ResNet with batch norms."""
    sizes = ["--image_size", 16, "--fusion_hidden_size", 32, "--max_train_steps", 3, "--learning_rate", 0.01]
    assert run(work / "base", *tables["digits"], *sizes) == 0
    return work / "base"


@pytest.fixture(scope="module")
def tuned(work, tables, base):
    """That model with other labels: LoRA in one tower, the other two frozen."""
    frozen = ["--image_learning_rate", 0, "--audio_learning_rate", 0]
    lora = ["--lora", "text", "--text_learning_rate", 0.05]
    assert run(work / "tuned", *tables["parity"], *STEPS, "--model_name_or_path", base, *lora, *frozen) == 0
    return work / "tuned"


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def adapter_of(folder):
    return folder.with_name(f"{folder.name}-adapter")


def load(folder, **options):
    return AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, **options)


def answers(model):
    """Logits for made-up inputs of every modality, and of some."""
    inputs = make_inputs() | {"pixel_values": torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(3))}
    inputs["input_ids"] = inputs["input_ids"] % model.config.text_config.vocab_size
    with torch.no_grad():
        return model.eval()(**inputs).logits


def assert_adapter_says_what_the_folder_says(folder, base, num_labels):
    loaded = load(base, num_labels=num_labels, ignore_mismatched_sizes=True)
    merged, without = answers(load(folder)), answers(loaded)
    with_adapter = answers(PeftModel.from_pretrained(loaded, adapter_of(folder)))
    assert (with_adapter - merged).abs().max() < 1e-5 < 1e-3 < (without - merged).abs().max()


# ---------------------------------------------------------------------------------------------------------------------
# The weights
# ---------------------------------------------------------------------------------------------------------------------


def test_an_adapter_of_one_tower_changes_nothing_of_the_others(base, tuned):
    before, after = weights_of(base), weights_of(tuned)
    assert before.keys() == after.keys()
    changed = {
        name for name in before if before[name].shape != after[name].shape or (before[name] != after[name]).any()
    }
    in_towers = {name for name in changed if "_encoder." in name}
    assert in_towers and all(
        re.fullmatch(r"mmfusion\.text_encoder\..*\.(query|value)\.weight", name) for name in in_towers
    )
    assert {name.split(".")[1] for name in changed} >= {"fusion", "projectors", "text_encoder"}


def test_what_the_matrices_stand_beside_is_not_touched_to_the_last_bit(base, tuned):
    """What LoRA learnt is all of the difference: the base weights, taken from the merged ones, are the old ones."""
    before, after, adapter = (
        weights_of(base),
        weights_of(tuned),
        load_file(adapter_of(tuned) / "adapter_model.safetensors"),
    )
    config = PeftConfig.from_pretrained(adapter_of(tuned))
    downs = [name for name in adapter if name.endswith(".lora_A.weight")]
    assert downs
    for down in downs:
        name = down.removeprefix("base_model.model.").replace("lora_A.", "")
        delta = adapter[down.replace("lora_A", "lora_B")] @ adapter[down] * (config.lora_alpha / config.r)
        assert delta.abs().max() > 1e-4 and torch.equal(before[name] + delta, after[name])


def test_the_adapter_holds_the_matrices_and_all_that_was_trained_and_no_tower(tuned):
    names = {
        name.removeprefix("base_model.model.") for name in load_file(adapter_of(tuned) / "adapter_model.safetensors")
    }
    assert all(".lora_" in name for name in names if "_encoder." in name)
    trained = {name for name in weights_of(tuned) if "_encoder." not in name}
    assert {name for name in names if "_encoder." not in name} == trained
    assert PeftConfig.from_pretrained(adapter_of(tuned)).modules_to_save == [
        "classifier", "mmfusion.fusion", *(f"mmfusion.projectors.{modality}" for modality in ALL),
    ]  # fmt: skip


def test_the_model_folder_is_a_plain_one(base, tuned):
    assert {path.name for path in tuned.iterdir()} == {path.name for path in base.iterdir()}
    arguments = json.loads((tuned / "training_config.json").read_text())["arguments"]
    assert arguments["lora"] == ["text"] and arguments["lora_rank"] == 8 and arguments["lora_alpha"] == 16


def test_nothing_in_the_adapter_tells_of_this_machine(work, tuned):
    for path in adapter_of(tuned).iterdir():
        assert str(work).encode() not in path.read_bytes(), path.name
    assert PeftConfig.from_pretrained(adapter_of(tuned)).base_model_name_or_path is None


# What a stranger does, with nothing of this repository at hand: the code of the card, and `load_adapter`.
STRANGER = """
import sys, torch
{code}
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification as Auto
loaded = Auto.from_pretrained(sys.argv[1], num_labels=2, ignore_mismatched_sizes=True, trust_remote_code=True)
loaded.load_adapter("tuned-adapter")
merged = Auto.from_pretrained("tuned", trust_remote_code=True)
with torch.no_grad():
    first, *others = [each.eval()(**load_file("inputs")).logits for each in (merged, model, loaded)]
print(*((first - other).abs().max().item() for other in others))
print(model.config.id2label)
"""


def ask(work, base, env=None):
    """Let a stranger load the adapter in `work` onto its base; largest differences to the merged model, and labels."""
    inputs = make_inputs()
    save_file({**inputs, "input_ids": inputs["input_ids"] % 16}, work / "inputs")
    code = re.search(r"```python\n(.*?)```", (work / "tuned-adapter/README.md").read_text(), re.S)[1]
    command = [sys.executable, "-P", "-c", STRANGER.format(code=code), base]
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    differences, labels = done.stdout.splitlines()[-2:]
    return [float(word) for word in differences.split()], labels


def test_the_code_in_the_card_gives_the_merged_model_in_a_process_of_its_own(work, tuned):
    """And so does `load_adapter` of transformers."""
    differences, labels = ask(work, "base")
    assert max(differences) < 1e-5 and labels == "{0: 'even', 1: 'odd'}"


VARIANTS = {
    "all towers": ["--lora", "text,image,audio"],
    "convolutions, whose norms keep their statistics": ["--lora", "image", "--audio_learning_rate", 0],
    "half precision and less memory": [
        "--lora", "text,audio", "--mixed_precision", "bf16", "--activation_checkpointing",
    ],
    "named layers": ["--lora", "text,audio", "--lora_target_modules", "dense,q_proj,word_embeddings"],
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_base_and_adapter_say_what_the_merged_model_says(variant, tables, base, tmp_path):
    """Those towers that have no LoRA and are not frozen are trained, and come with the adapter."""
    rates = ["--lora_dropout", 0.2, *(word for m in ALL for word in (f"--{m}_learning_rate", 0.01))]
    flags = [*rates, *VARIANTS[variant], "--model_name_or_path", base]
    assert run(tmp_path / "m", *tables["parity"], *STEPS, *flags) == 0
    assert_adapter_says_what_the_folder_says(tmp_path / "m", base, 2)
    if variant.startswith(("all", "convolutions")):
        before, after = weights_of(base), weights_of(tmp_path / "m")
        kept = [name for name in before if "running_" in name or "num_batches" in name]
        assert kept and all(torch.equal(before[name], after[name]) for name in kept)


def test_of_a_new_model_the_base_is_saved_too(tables, towers, tmp_path, capsys):  # noqa: F811
    names = [("text", "bert"), ("image", "resnet")]
    flags = [word for modality, name in names for word in (f"--{modality}_model_name_or_path", towers / name)]
    flags += ["--lora", "text", "--lora_target_modules", "all-linear", "--fusion_hidden_size", 32]
    assert run(tmp_path / "m", *tables["parity"], *STEPS, *flags, "--text_learning_rate", 0.02) == 0
    assert f'"{tmp_path}/m-base", trust_remote_code=True' in capsys.readouterr().out
    assert_adapter_says_what_the_folder_says(tmp_path / "m", tmp_path / "m-base", 2)
    tower, pretrained = weights_of(tmp_path / "m-base"), load_file(towers / "bert/model.safetensors")
    assert all(torch.equal(pretrained[name], tower[f"mmfusion.text_encoder.{name}"]) for name in pretrained
               if "pooler" not in name)  # fmt: skip


def test_the_output_says_how_much_of_a_tower_is_trained(tables, base, tmp_path, capsys):
    flags = ["--model_name_or_path", base, "--lora", "text", "--audio_learning_rate", 0, "--max_train_steps", 1]
    assert run(tmp_path / "m", *tables["parity"], *flags) == 0
    said = capsys.readouterr().out
    assert re.search(r"text +\d\.\d\d M parameters  BertModel, .*base, 0\.\d\d M trainable\n", said)
    assert re.search(r"image .*ResNetModel, .*base\n", said) and re.search(r"audio .*base, frozen\n", said)
    assert re.search(r"the adapter \(\d\.\d\d M parameters\) is in .*/m-adapter; load it with\n  base = Auto", said)


# ---------------------------------------------------------------------------------------------------------------------
# Interrupted
# ---------------------------------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_ends_with_the_same_weights_and_the_same_adapter(tables, base, tmp_path):
    flags = [*tables["parity"], *STEPS, "--model_name_or_path", base, "--lora", "text,image,audio"]
    assert run(tmp_path / "whole", *flags, "--checkpointing_steps", 1) == 0
    checkpoint = tmp_path / "whole-checkpoints" / "step-00000002"
    assert run(tmp_path / "cut", *flags, "--resume_from_checkpoint", checkpoint) == 0
    for file in ("{}/model.safetensors", "{}-adapter/adapter_model.safetensors"):
        whole, cut = (load_file(tmp_path / file.format(name)) for name in ("whole", "cut"))
        assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)


def test_another_rank_is_another_run(tables, base, tmp_path, capsys):
    flags = [*tables["parity"], *STEPS, "--model_name_or_path", base, "--lora", "text", "--max_train_steps", 1]
    assert run(tmp_path / "m", *flags, "--checkpointing_steps", 1) == 0
    again = ["--resume_from_checkpoint", tmp_path / "m-checkpoints", "--lora_rank", 4]
    assert run(tmp_path / "n", *flags, *again) == 1
    assert "--lora_rank was 8 and is 4" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_weights(forks, tables, base, tmp_path):
    flags = [*tables["parity"], *STEPS, "--num_train_epochs", 6, "--model_name_or_path", base, "--lora", "text,image"]
    fork = forks.run([*flags, "--output_dir", tmp_path / "whole"], tmp_path / "said")
    assert fork.code == 0, fork.said
    cut = kill_and_go_on(forks, flags, tmp_path, 4, "--checkpointing_steps", 1)
    whole = weights_of(tmp_path / "whole")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)


# ---------------------------------------------------------------------------------------------------------------------
# Which layers
# ---------------------------------------------------------------------------------------------------------------------


def with_lora(config=None, lora=ALL, asked=None):
    model = make_model(config)
    args = SimpleNamespace(
        lora=lora, lora_rank=4, lora_alpha=8.0, lora_dropout=0.0, lora_target_modules=asked, model_name_or_path=None,
        model_revision=None,
    )  # fmt: skip
    adapters.add_lora(args, model, SimpleNamespace(encoders=dict.fromkeys(ALL), pretrained=dict.fromkeys(ALL, "x")))
    return model


def ends(model, tower):
    """The last words of the names of the layers that have LoRA."""
    return {name.split(".")[-2] for name, _ in model.named_modules() if name.endswith(".lora_A") and tower in name}


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_matrix_learns_and_the_towers_beside_them_do_not(kind):
    model = with_lora(CONFIGS[kind]())
    set_training_mode(model)
    model(**make_inputs(), labels=torch.tensor([0, 1, 2, 0, 1])).loss.backward()
    for name, parameter in model.named_parameters():
        is_frozen = "_encoder." in name and ".lora_" not in name
        assert parameter.requires_grad != is_frozen and (parameter.grad is None) == is_frozen, name


@pytest.mark.parametrize(
    "settings", [*({"fusion_type": kind} for kind in FUSION_TYPES), {"balance": "unimodal"}], ids=str
)
def test_an_adapter_goes_with_every_fusion_and_head(settings, tmp_path):
    config, generator = model_config(**settings), torch.Generator().manual_seed(1)
    model = with_lora(config)
    with torch.no_grad():
        for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    learnt = answers(model)
    adapter = adapters.take_out(model)
    adapter.save(tmp_path / "adapter", "")
    adapter.merge()
    base = make_model(config)
    assert base.state_dict().keys() == model.state_dict().keys()
    assert (answers(model) - learnt).abs().max() < 1e-5 < 1e-3 < (answers(base) - learnt).abs().max()
    assert (answers(PeftModel.from_pretrained(base, tmp_path / "adapter")) - learnt).abs().max() < 1e-6


def test_by_default_peft_says_which_layers_else_all_linear_ones_or_all_convolutions():
    model = with_lora(CONFIGS["bert-resnet-layernorm"]())
    assert ends(model, "text_encoder") == {"query", "value"} and ends(model, "vision_encoder") == {"convolution"}
    linear = {"projection", "q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "output_dense"}
    assert ends(model, "audio_encoder") == linear


def test_layers_are_named_by_ends_of_names_and_by_expressions():
    assert ends(with_lora(lora=("text",), asked="output.dense, key"), "text_encoder") == {"dense", "key"}
    model = with_lora(lora=("text",), asked="layer.1.attention.self.query")
    names = [name for name, _ in model.named_modules() if name.endswith(".lora_A")]
    assert names == ["mmfusion.text_encoder.encoder.layer.1.attention.self.query.lora_A"], "no other number"
    model = with_lora(lora=("text",), asked=r"mmfusion\.text_encoder\.encoder\.layer\.0\..*\.(key|dense)")
    assert ends(model, "text_encoder") == {"key", "dense"} and ends(model, "_encoder") == {"key", "dense"}


def test_layers_that_a_tower_never_calls_get_none():
    """WavLM hands the weights of its attention to a function, which would not see LoRA's."""
    config = audio_config(WavLMConfig, do_stable_layer_norm=True)
    model = with_lora(model_config(audio_config=config), lora=("audio",))
    linear = {"projection", "intermediate_dense", "output_dense", "gru_rel_pos_linear"}
    assert ends(model, "audio_encoder") == linear
    model(**make_inputs(), labels=torch.tensor([0, 1, 2, 0, 1])).loss.backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if ".lora_" in name)
    with pytest.raises(ValueError, match=r"no layer `q_proj` in the audio tower"):
        with_lora(model_config(audio_config=config), lora=("audio",), asked="q_proj")


def test_the_sound_itself_gets_no_gradient():
    """Wav2Vec2 asks for it in training, and all of its convolutions would be gone back through for nothing."""
    model = with_lora(lora=("audio",))
    set_training_mode(model)
    assert not model.mmfusion.audio_encoder.feature_extractor(torch.randn(2, 400)).requires_grad


@pytest.mark.parametrize(
    ("asked", "lora", "message"),
    [
        ("query,qwery", ("text",), r"query,qwery: there is no layer `qwery` in the text tower .* into dense, key, "
         r"position_embeddings, query, token_type_embeddings, value, word_embeddings$"),
        ("query", ("text", "audio"), r"query: there is no layer of these names in the audio tower .* into conv, "),
        ("query,", ("text",), r"there is no layer `` in the text tower"),
        ("pos_conv_embed.conv", ("audio",), r"no layer `pos_conv_embed.conv` in the audio tower"),
        ("all-linear", ("image",), r"all-linear: there is no linear layer in the image tower .* into convolution$"),
        ("mmfusion.(", ("text",), r"mmfusion.\(: this is no regular expression \(.*\)"),
        ("mmfusion.*query", ("text", "image"), r"no layer of such a name in the image tower .* into convolution$"),
        ("mmfusion.text_encoder.*", ("text",), r"it also matches `mmfusion.text_encoder` \(BertModel\), and LoRA can"),
        ("mmfusion.*dense", ("text",), r"it also matches `mmfusion.audio_encoder\S*dense` \(Linear\), .* names, text"),
    ],
)  # fmt: skip
def test_layers_that_cannot_be_had_are_refused_with_those_that_can(asked, lora, message):
    with pytest.raises(ValueError, match=f"--lora_target_modules .*{message}"):
        with_lora(CONFIGS["bert-resnet-layernorm"](), lora=lora, asked=asked)


# ---------------------------------------------------------------------------------------------------------------------
# Flags
# ---------------------------------------------------------------------------------------------------------------------

FILES = ["--train_file", "train.csv"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora", "text,vision"], "`vision` is not one of text, image, audio"),
        (["--lora", ""], "`` is not one of text, image, audio"),
        (["--lora", "text", "--lora_rank", 0], "--lora_rank: 0 is not at least 1"),
        (["--lora", "text", "--lora_dropout", 1], "--lora_dropout: 1 is not in [0, 1)"),
        (["--lora_rank", 4], "--lora_rank belongs to --lora: name the towers"),
        (["--lora_target_modules", "query"], "--lora_target_modules belongs to --lora"),
        (["--lora", "text,image", "--image_learning_rate", 0],
         "--lora image trains in the image tower, and --image_learning_rate 0 freezes it: leave one of them out"),
    ],
)  # fmt: skip
def test_flags_that_do_not_fit_are_refused(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run(tmp_path / "m", *FILES, *flags)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_folders_beside_are_replaced_only_when_asked_for(tmp_path, capsys):
    flags = [*FILES, "--model_name_or_path", "x", "--lora", "text"]
    (tmp_path / "m-adapter").mkdir()
    with pytest.raises(SystemExit):
        run(tmp_path / "m", *flags, "--overwrite_output_dir")
    assert "m-adapter`, which --lora would replace, has no `adapter_config.json`" in capsys.readouterr().err
    (tmp_path / "m-adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(SystemExit):
        run(tmp_path / "m", *flags)
    assert "m-adapter` is there from an earlier run: name another --output_dir, or add" in capsys.readouterr().err
    assert run(tmp_path / "m", *flags, "--overwrite_output_dir") == 1, "there is no model x, which is said later"


def test_a_tower_that_is_not_there_or_knows_nothing_is_refused(tables, tmp_path, capsys):
    assert run(tmp_path / "n", *tables["parity"], "--audio_column", "none", "--lora", "audio") == 1
    assert "--lora audio: the model has no audio tower, it reads text, image" in capsys.readouterr().err
    assert run(tmp_path / "n", *tables["parity"], "--lora", "image") == 1
    assert "--lora image: the image tower starts from scratch, and LoRA keeps such" in capsys.readouterr().err


def test_a_tower_with_lora_has_a_learning_rate_of_its_own():
    args = SimpleNamespace(lora=("text",), text_learning_rate=None, audio_learning_rate=None, learning_rate=1e-3)
    pretrained = SimpleNamespace(pretrained={"text": "x", "audio": "y"})
    assert tower_learning_rate(args, "text", pretrained) == 2e-4
    assert tower_learning_rate(args, "audio", pretrained) == 5e-5
    args.text_learning_rate = 1e-5
    assert tower_learning_rate(args, "text", pretrained) == 1e-5


# ---------------------------------------------------------------------------------------------------------------------
# The Hub
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_adapter_goes_onto_the_pushed_base(tables, base, tmp_path_factory):
    work = tmp_path_factory.mktemp("hub")
    with LocalHub(work / "hub") as hub:
        hub.add_user("alice", write_token="hf_alice_write", read_token="hf_alice_read")
        env = hub.environment(work / "pusher", "hf_alice_write")
        run_process("push_to_hub.py", base, "alice/base", env=env)
        commit = hub.head("alice/base")
        tuning = [*tables["parity"], *STEPS, "--model_name_or_path", "alice/base", "--lora", "text,image,audio"]
        tuning += ["--no-calibrate"]  # an adapter knows of no temperatures
        run_process("train.py", *tuning, "--output_dir", work / "tuned", env=env)
        config = PeftConfig.from_pretrained(work / "tuned-adapter")
        assert (config.base_model_name_or_path, config.revision) == ("alice/base", commit)
        card = (work / "tuned-adapter/README.md").read_text()
        assert "base_model: alice/base" in card and "base_model:adapter:alice/base" in card
        differences, _ = ask(work, "alice/base", hub.environment(work / "stranger"))
        assert max(differences) < 1e-5
