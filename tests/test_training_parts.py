"""The parts of `training/` and of `train.py` by themselves: towers, optimiser, flags and the folder."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from conftest import audio_config, fresh, make_model, model_config, resnet_config, text_config, vit_config
from transformers import (
    BertModel,
    BertTokenizer,
    MPNetConfig,
    MPNetModel,
    ResNetModel,
    RobertaConfig,
    RobertaModel,
    ViTImageProcessorPil,
    ViTModel,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

import train
from cli.files import assembled
from training import loop, optimization
from training.arguments import parse_args
from training.start import NewModel
from training.towers import BASE, Towers, make_towers, start_as_filterbank, train_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
TEXTS = ["the cat sat on the mat", "a cat, a mat, and Ünïcödé", "not the cat but the dog"]
SIZES = {"vocab_size": 100, "image_size": 32, "sampling_rate": 8000, "max_text_length": 64, "max_audio_seconds": 2.0}


def args_of(*flags):
    return parse_args(["--train_file", "t.csv", "--output_dir", "new_model", *flags], "", "")


def towers_of(**names):
    """Towers by modality: a name, or None for a tiny one."""
    names = {modality: None if name is None else str(name) for modality, name in names.items()}
    return make_towers(tuple(names), names, texts=TEXTS, **SIZES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of towers: whole ones, bare ones (no preprocessor) and one of another kind."""
    root = tmp_path_factory.mktemp("towers")
    bert = BertModel(text_config(vocab_size=len(WORDS)))
    vit, wav2vec2 = ViTModel(vit_config()), Wav2Vec2Model(audio_config(feat_extract_norm="group"))
    for model, name in ((bert, "bert"), (vit, "vit"), (wav2vec2, "wav2vec2")):
        model.save_pretrained(root / name)
        model.save_pretrained(root / f"bare_{name}")
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(root / "bert")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(root / "vit")
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(root / "wav2vec2")
    sizes = {"decoder_layers": 1, "encoder_layers": 1, "decoder_ffn_dim": 8, "encoder_ffn_dim": 8, "d_model": 16}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_source_positions": 8}
    tokens = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    WhisperModel(WhisperConfig(**sizes, **tokens, max_target_positions=8)).save_pretrained(root / "whisper")
    WhisperFeatureExtractor().save_pretrained(root / "whisper")
    return root


# ---------------------------------------------------------------------------------------------------------------------
# Towers
# ---------------------------------------------------------------------------------------------------------------------


def test_a_vocabulary_is_the_same_every_time():
    """The library alone numbers letters, and so breaks ties between merges, in an order of chance."""
    first, *others = (train_tokenizer(TEXTS * 3, 60, 32).get_vocab() for _ in range(5))
    assert all(other == first for other in others)


def test_a_vocabulary_has_the_special_tokens_first_and_covers_the_text():
    tokenizer = train_tokenizer(TEXTS, 200, 32)
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.tokenize("The CAT") == ["the", "cat"]
    assert tokenizer.unk_token_id not in tokenizer(TEXTS[1])["input_ids"]
    assert tokenizer.unk_token_id in tokenizer("漢")["input_ids"]
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert tokenizer.model_max_length == 32 and tokenizer.all_special_ids == [1, 3, 0, 2, 4]


def test_tiny_towers_fit_what_prepares_their_inputs():
    towers = towers_of(text=None, image=None, audio=None)
    assert towers.pretrained == {} and towers.processor.modalities == ("text", "image", "audio")
    assert towers.encoders["text"].config.vocab_size == len(towers.processor.tokenizer)
    assert towers.processor.audio_sampling_rate == 8000
    assert towers.processor.image_processor.size == {"height": 32, "width": 32}
    assert towers.processor.feature_extractor.return_attention_mask is True
    assert (towers.processor.max_text_length, towers.processor.max_audio_seconds) == (64, 2.0)


def test_the_first_convolution_starts_as_a_filterbank_of_mel_spaced_bands():
    tower = Wav2Vec2Model(audio_config(conv_dim=[16, 10], conv_kernel=[200, 7]))
    start_as_filterbank(tower, 8000)
    spectrum = torch.fft.rfft(tower.feature_extractor.conv_layers[0].conv.weight[:, 0], n=8000).abs()
    peaks = spectrum.argmax(dim=1).view(-1, 2)  # Hz, for each pair of cosine and sine
    # A window of 25 ms, 40 Hz wide, pulls the two lowest pairs a little aside.
    assert (peaks[:, 0] - peaks[:, 1]).abs().max() <= 40
    assert (peaks[:, 0].diff() > 100).all() and 60 < peaks[0, 0] < 400 and 2500 < peaks[-1, 0] < 3920


def test_pretrained_and_tiny_towers_stand_side_by_side(folders):
    towers = towers_of(text=folders / "bert", image=None)
    assert towers.pretrained == {"text": str(folders / "bert")}
    expected = BertModel.from_pretrained(folders / "bert", add_pooling_layer=False).state_dict()
    state = towers.encoders["text"].state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert isinstance(towers.encoders["image"], ResNetModel)


def test_the_tower_decides_whether_sound_gets_a_mask_whatever_its_extractor_says(folders):
    assert towers_of(audio=folders / "wav2vec2").processor.feature_extractor.return_attention_mask is False


@pytest.mark.parametrize("kind", [(RobertaConfig, RobertaModel), (MPNetConfig, MPNetModel)])
def test_texts_are_cut_to_the_positions_that_the_tower_really_has(kind, tmp_path):
    """Of 34 positions these lose two to the padding."""
    config_class, model_class = kind
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = config_class(vocab_size=len(WORDS), max_position_embeddings=34, pad_token_id=1, **small)
    model_class(config).save_pretrained(tmp_path)
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(tmp_path)
    assert towers_of(text=tmp_path).processor.max_text_length == 32


WRONG_KINDS = [("text", "vit"), ("text", "wav2vec2"), ("text", "whisper"), ("image", "bert"), ("image", "wav2vec2"),
               ("audio", "bert"), ("audio", "vit")]  # fmt: skip
KIND_NAMES = {"text": "BERT-like", "image": "ViT-like or ResNet-like", "audio": "Wav2Vec2-like"}


@pytest.mark.parametrize(("modality", "name"), WRONG_KINDS)
def test_a_tower_of_another_kind_is_refused_by_its_flag(modality, name, folders):
    expected = f"--{modality}_model_name_or_path .*{name}: a `{name}` model cannot be the {modality} tower; give a "
    with pytest.raises(ValueError, match=expected + KIND_NAMES[modality]):
        towers_of(**{modality: folders / name})


def test_a_text_tower_without_a_tokenizer_is_refused(folders):
    with pytest.raises(ValueError, match=r"--text_model_name_or_path .*bare_bert: its tokenizer"):
        towers_of(text=folders / "bare_bert")


def test_what_prepares_inputs_is_made_from_the_configuration_where_that_says_enough(folders):
    towers = towers_of(image=folders / "bare_vit", audio=folders / "bare_wav2vec2")
    assert towers.processor.image_processor.size == {"height": 16, "width": 16}
    assert towers.processor.audio_sampling_rate == 16_000
    assert [note.split()[0] for note in towers.notes] == [f"--{m}_model_name_or_path" for m in ("image", "audio")]


def test_a_tower_that_is_not_there_or_not_whole_is_refused(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"--image_model_name_or_path .*gone: there is no such folder"):
        towers_of(image=tmp_path / "gone")
    with pytest.raises(
        ValueError, match="--text_model_name_or_path nobody/nothing: its configuration could not be loaded"
    ):
        towers_of(text="nobody/nothing")
    for name, content in (("empty", {}), ("unknown", {"model_type": "wonder"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=f"_path .*{name}: its configuration could not be loaded"):
            towers_of(text=tmp_path / name)


def test_weights_that_are_missing_or_damaged_are_told_with_the_flag(folders, tmp_path):
    for path in (folders / "vit").iterdir():
        os.symlink(path, tmp_path / path.name)
    for content in (None, b"half a file"):
        (tmp_path / "model.safetensors").unlink()
        if content is not None:
            (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"--image_model_name_or_path .*: its weights could not be loaded \("):
            towers_of(image=tmp_path)
        (tmp_path / "model.safetensors").touch()


def test_a_tokenizer_of_another_tower_is_refused(folders, tmp_path):
    BertModel(text_config(vocab_size=20)).save_pretrained(tmp_path)
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="its tokenizer has 57 entries, the tower knows 20; give the tokenizer that bel"
    ):
        towers_of(text=tmp_path)


def test_the_base_preset_names_three_towers_and_none_leaves_one_out():
    assert {m: NewModel(args_of("--preset", "base")).tower_name(m) for m in BASE} == BASE
    assert not NewModel(args_of("--preset", "base", "--audio_model_name_or_path", "none")).reads("audio")
    assert NewModel(args_of()).reads("text")


# ---------------------------------------------------------------------------------------------------------------------
# Optimisation
# ---------------------------------------------------------------------------------------------------------------------


def resnet_model():
    return make_model(model_config(vision_config=resnet_config()))


def groups_of(model, *flags, pretrained=()):
    """Name of a parameter -> (learning rate, weight decay)."""
    towers = Towers(dict.fromkeys(("text", "image", "audio")), None, dict.fromkeys(pretrained, "somewhere"))
    optimizer = optimization.make_optimizer(args_of(*flags), model, towers)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(p)]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }


def test_every_parameter_is_optimised_once_and_no_norm_or_bias_decays():
    model = resnet_model()
    groups = groups_of(model, "--weight_decay", "0.3")
    assert sorted(groups) == sorted(name for name, _ in model.named_parameters())
    norms = ("norm.weight", "layernorm.weight", "LayerNorm.weight", "normalization.weight", "layer_norm.weight")
    spared = {name for name in groups if name.endswith((*norms, "bias", "_embedding", "masked_spec_embed"))}
    assert {name for name, (_, decay) in groups.items() if decay == 0} == spared
    assert {decay for _, decay in groups.values()} == {0, 0.3}


def test_each_tower_has_its_learning_rate_and_the_rest_the_common_one():
    flags = ["--learning_rate", "0.01", "--text_learning_rate", "0.002"]
    rates = {name: rate for name, (rate, _) in groups_of(resnet_model(), *flags, pretrained=("audio",)).items()}
    expected = {"text_encoder": 0.002, "vision_encoder": 0.01, "audio_encoder": 5e-5}
    for name, rate in rates.items():
        part = name.split(".")[1]
        assert rate == expected.get(part, 0.01), name
    assert {"fusion", "projectors", *expected} <= {name.split(".")[1] for name in rates}


def test_a_frozen_tower_is_not_optimised_and_stays_in_evaluation_mode():
    model = resnet_model()
    model.mmfusion.vision_encoder.requires_grad_(False)
    assert not [name for name in groups_of(model) if "vision_encoder" in name]
    loop.set_training_mode(model)
    assert model.training and model.mmfusion.text_encoder.training
    assert not any(module.training for module in model.mmfusion.vision_encoder.modules())


@pytest.mark.parametrize("num_processes", [1, 4])
def test_the_learning_rate_ends_with_the_run_on_any_number_of_processes(num_processes):
    """`accelerate` advances the schedule once for each process at every step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = optimization.make_scheduler(args_of("--warmup_ratio", "0.2"), optimizer, 10, num_processes)
    rates = []
    for _ in range(10):
        for _ in range(num_processes):
            optimizer.step()
            scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    assert rates[1] == 1.0 and rates == [0.5, *sorted(rates[1:], reverse=True)]
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_the_share_of_modalities_left_out_rises_from_the_first_step_on_and_then_stays():
    model, accelerator = resnet_model(), SimpleNamespace(unwrap_model=lambda model: model)
    args, shares = args_of("--modality_dropout", "0.4", "--modality_dropout_ramp", "0.5"), []
    for step in range(8):
        optimization.set_modality_dropout(args, accelerator, model, step, 8)
        shares.append(model.modality_dropout)
    assert shares == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4])


@pytest.mark.parametrize(("batches", "flags", "expected"), [
    (7, ["--num_train_epochs", "3", "--gradient_accumulation_steps", "2"], 12),
    (7, ["--num_train_epochs", "3", "--max_train_steps", "5"], 5),
    (7, ["--num_train_epochs", "3", "--max_train_steps", "50"], 21),
])  # fmt: skip
def test_the_number_of_steps_counts_accumulated_ones_and_the_limit(batches, flags, expected):
    assert optimization.number_of_steps(args_of(*flags), range(batches), SimpleNamespace(num_processes=1)) == expected
    assert (
        optimization.number_of_steps(
            args_of("--num_train_epochs", "1"), range(batches), SimpleNamespace(num_processes=2)
        )
        == 4
    )


def test_weights_are_kept_as_copies_on_the_cpu():
    fresh()
    model = torch.nn.Linear(2, 2)
    kept = loop.weights_on_cpu(Accelerator(cpu=True), model)
    before = kept["weight"].clone()
    with torch.no_grad():
        model.weight.add_(1)
    assert torch.equal(kept["weight"], before)


# ---------------------------------------------------------------------------------------------------------------------
# Flags and folder
# ---------------------------------------------------------------------------------------------------------------------


def test_every_flag_explains_itself_with_its_default(capsys):
    with pytest.raises(SystemExit) as stopped:
        args_of("--help")
    assert stopped.value.code == 0
    blocks = capsys.readouterr().out.split("\n  --")[1:]
    unexplained = [block.split()[0] for block in blocks if "default" not in block]
    assert unexplained == ["train_file", "output_dir"], "these two must be given"


def test_the_examples_of_the_help_are_valid_calls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the folders that they write may be here already
    for line in train.EXAMPLES.replace("\\\n", " ").splitlines():
        words = line.split()
        if words[:2] == ["python", "train.py"]:
            args = parse_args(words[: words.index("#")][2:] if "#" in words else words[2:], "", "")
            assert args.dataset_name == "owner/data" or args.train_file.endswith(".csv")


def test_a_folder_is_there_as_a_whole_or_not_at_all(tmp_path):
    with assembled(tmp_path / "a" / "model") as partial:
        (partial / "x").write_text("new")
        assert not (tmp_path / "a" / "model").exists()
    assert (tmp_path / "a" / "model" / "x").read_text() == "new"
    with pytest.raises(KeyboardInterrupt), assembled(tmp_path / "a" / "model") as partial:
        (partial / "x").write_text("newer")
        raise KeyboardInterrupt
    assert (tmp_path / "a" / "model" / "x").read_text() == "new"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["model"]


def test_a_replaced_folder_keeps_nothing_of_the_old_one(tmp_path):
    for name in ("old", "new"):
        with assembled(tmp_path / "model") as partial:
            (partial / name).touch()
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]


def test_what_a_killed_run_with_our_process_id_left_is_no_obstacle(tmp_path):
    """In a container the process id is often 1, at every start."""
    for what in ("partial", "replaced"):
        (tmp_path / f".model.{what}-{os.getpid()}").mkdir()
        (tmp_path / f".model.{what}-{os.getpid()}" / "left").touch()
    (tmp_path / "model").mkdir()
    with assembled(tmp_path / "model") as partial:
        (partial / "x").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "x"]


def test_a_link_goes_on_pointing_to_the_model(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "model")
    with assembled(tmp_path / "link") as partial:
        (partial / "x").touch()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "model" / "x").exists()


def test_the_old_folder_comes_back_when_the_new_one_cannot_be_moved(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    move = os.replace

    def failing(source: Path, target: Path):
        if ".partial" in source.name:
            raise OSError("the disk is gone")
        move(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="the disk is gone"), assembled(tmp_path / "model") as partial:
        (partial / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "old"]
