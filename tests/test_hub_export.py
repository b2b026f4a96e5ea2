"""What is published of a model folder, and what never is: on real tiny folders, without a network."""

import json
import shutil

import pytest
from conftest import TRAVELLING, make_model, model_config
from test_evaluation import COLUMNS, LABELS, make_processor

import evaluation
from hub.export import export_model
from hub.leaks import SECRETS, is_local, refuse_leaks
from training.folder import save_model_folder

TRAINING = {
    "command": "python train.py --train_file rows.csv --output_dir outputs/animals",
    "arguments": {"train_file": "rows.csv", "seed": 0, "output_dir": "animals"},
    "base_models": {},
    "problem_type": "single_label_classification",
    "data": {"train": {"name": "rows.csv", "num_rows": 6}, "validation": {"name": "rows.csv", "num_rows": 6}},
    "num_processes": 1,
    "device": "cpu",
    "versions": {"torch": "2.13.0"},
}


def make_publishable(folder, table, seed=0):
    """A model folder as `train.py` leaves it, of a model that was never trained, with numbers measured on a table."""
    config = model_config(id2label=dict(enumerate(LABELS)), label2id={n: i for i, n in enumerate(LABELS)})
    model, processor = make_model(config, seed), make_processor()
    save_model_folder(folder, model, processor, training_config=TRAINING, metrics={})
    call = ["--data_file", str(table), *COLUMNS, "--label_column", "kind", "--device", "cpu"]
    assert evaluation.main([str(folder), *call, "--output_file", str(folder / "metrics.json")]) == 0
    return folder


@pytest.fixture
def source(published, tmp_path):
    return shutil.copytree(published, tmp_path / "animals")


@pytest.fixture
def target(tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    return folder


# -- what is published ------------------------------------------------------------------------------------------------


def test_a_folder_is_published_whole_with_card_and_pictures(source, target):
    assert export_model(source, target, repo_id="alice/animals") == []
    names = {path.name for path in target.iterdir()}
    assert names > {path.name for path in source.iterdir()} | {"README.md", "confusion_matrix.png", "reliability.png"}
    assert "alice/animals" in (target / "README.md").read_text()
    refuse_leaks(target)


def test_whoever_may_read_the_settings_may_read_the_weights(published):
    assert (published / "model.safetensors").stat().st_mode == (published / "config.json").stat().st_mode


def test_what_is_not_on_the_list_stays_here_and_is_named(source, target):
    for name in (".env", "token.txt", "log.csv", "notes.md", "evil.py"):
        (source / name).write_text("HF_TOKEN=hf_" + "a" * 34)
    (source / "checkpoint-1").mkdir()
    left_out = export_model(source, target, repo_id="alice/animals")
    assert left_out == sorted([".env", "token.txt", "log.csv", "notes.md", "evil.py", "checkpoint-1"])
    assert not {path.name for path in target.iterdir()} & set(left_out)


def test_a_licence_goes_into_the_files_that_the_card_is_made_from(source, target):
    export_model(source, target, repo_id="alice/animals", license="apache-2.0")
    assert json.loads((target / "training_config.json").read_text())["license"] == "apache-2.0"
    assert "license: apache-2.0" in (target / "README.md").read_text()
    assert "license" not in json.loads((source / "training_config.json").read_text())


def test_a_model_in_shards_is_published_with_all_of_them(source, target):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(source, trust_remote_code=True)
    (source / "model.safetensors").unlink()
    model.save_pretrained(source, max_shard_size="20KB")
    export_model(source, target, repo_id="alice/animals")
    shards = sorted(path.name for path in target.glob("model-*.safetensors"))
    assert len(shards) > 1 and (target / "model.safetensors.index.json").is_file()
    (source / shards[1]).unlink()
    with pytest.raises(FileNotFoundError, match=f"`{shards[1]}` is missing"):
        export_model(source, target, repo_id="alice/animals")


# -- a folder that is half there --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "training_config.json",
     "metrics.json", *TRAVELLING],
)  # fmt: skip
def test_a_file_that_is_missing_is_named(source, target, name):
    (source / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}`"):
        export_model(source, target, repo_id="alice/animals")


def test_no_folder_and_a_file_get_a_sentence(source, target):
    with pytest.raises(FileNotFoundError, match="does not exist: give a folder"):
        export_model(source / "nowhere", target, repo_id="alice/animals")
    with pytest.raises(FileNotFoundError, match="is a file: give a folder"):
        export_model(source / "config.json", target, repo_id="alice/animals")


def test_weights_that_were_cut_off_are_refused(source, target):
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match="is not whole or no safetensors file"):
        export_model(source, target, repo_id="alice/animals")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "optimizer.pt", "scaler.pkl"])
def test_a_pickle_beside_the_weights_is_refused(source, target, name):
    (source / name).write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=f"holds `{name}`: files of this kind can run code"):
        export_model(source, target, repo_id="alice/animals")
    assert not list(target.iterdir())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "bert"}, "holds a `bert` model: give an MMFusion model"),
        ({"auto_map": {"AutoConfig": "configuration_mmfusion.MMFusionConfig"}}, "does not say where `AutoModel`"),
        ({"custom_pipelines": {}}, "does not say where `custom_pipelines` is found"),
    ],
)
def test_a_config_that_nobody_could_load_from_is_refused(source, target, change, sentence):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=sentence):
        export_model(source, target, repo_id="alice/animals")


@pytest.mark.parametrize(("content", "sentence"), [("{", "is not valid JSON"), ("[]", "holds a list, not an object")])
def test_a_file_of_numbers_that_is_no_json_is_named(source, target, content, sentence):
    (source / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match=rf"metrics.json` {sentence}"):
        export_model(source, target, repo_id="alice/animals")


# -- secrets and paths ------------------------------------------------------------------------------------------------

FORMS = {
    "a Hugging Face token": "hf_" + "aB3" * 11,
    "a Hugging Face organisation token": "api_org_" + "aB3" * 11,
    "a private key": "-----BEGIN RSA PRIVATE KEY-----",
    "an AWS key": "AKIA" + "A1" * 8,
    "a GitHub token": "ghp_" + "a1" * 18,
    "a GitLab token": "glpat-" + "a1" * 10,
    "an OpenAI or Anthropic key": "sk-proj-" + "a1" * 20,
    "a Slack token": "xoxb-1234567890-abc",
    "a Google key": "AIza" + "a1b2c" * 7,
    "a Stripe key": "sk_live_" + "a1" * 12,
    "a JSON web token": ".".join(["eyJhbGciOiJIUzI1", "eyJzdWIiOiIxMjM0", "SflKxwRJSMeKKF2Q"]),
    "a password in a URL": "https://alice:hunter2@example.org/",
}


def test_every_kind_of_secret_has_an_example():
    assert FORMS.keys() == SECRETS.keys()


@pytest.mark.parametrize("file", ["config.json", "training_config.json", "README.md", "modeling_mmfusion.py"])
@pytest.mark.parametrize("kind", FORMS)
def test_a_secret_is_found_whatever_file_it_stands_in(target, file, kind):
    (target / file).write_text(json.dumps({"note": f"key={FORMS[kind]}"}))
    with pytest.raises(ValueError, match=f"`{file}` holds what looks like {kind} .*Nothing was pushed"):
        refuse_leaks(target)


def test_the_token_in_use_is_found_whatever_it_looks_like(target):
    (target / "README.md").write_text("push with correct-horse-battery")
    refuse_leaks(target)
    with pytest.raises(ValueError, match="looks like your own token"):
        refuse_leaks(target, secrets=("correct-horse-battery",))


@pytest.mark.parametrize("file", ["config.json", "training_config.json", "processor_config.json", "README.md"])
@pytest.mark.parametrize(
    "path", ["/home/alice/models/bert", "C:\\Users\\alice\\x", "~/models/bert", "file:///tmp/x/y"]
)
def test_a_local_path_is_found_in_settings_and_card(target, file, path):
    text = f"made with {path} in May" if file == "README.md" else json.dumps({"_name_or_path": [{"deep": path}]})
    (target / file).write_text(text)
    with pytest.raises(ValueError, match=f"`{file}` holds the local path"):
        refuse_leaks(target)


def test_a_local_path_in_a_command_is_found(target):
    (target / "training_config.json").write_text(json.dumps({"command": "python train.py --train_file /home/a/t.csv"}))
    with pytest.raises(ValueError, match=r"local path `/home/a/t\.csv`"):
        refuse_leaks(target)


@pytest.mark.parametrize(
    "word", ["/m/09x0r", "https://huggingface.co/a/b", "data/train.csv", "and/or", "/", "1/2", "a:b"]
)
def test_what_is_only_written_like_a_path_is_none(word, target):
    assert not is_local(word)
    (target / "README.md").write_text(f"see {word} there")
    (target / "config.json").write_text(json.dumps({"id2label": {"0": word}}))
    refuse_leaks(target)


def test_tokens_of_a_tokenizer_are_no_paths(target):
    (target / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"/home/x/y": 1}}}))
    refuse_leaks(target)
