"""What is saved is whole, whichever way it is saved: a user without this repository loads it anywhere.

Unusual: one process loads a folder and a model of the Hub as such a user does, with remote code, and saves it in every
way; another, with empty caches and no network, answers from each of the folders after they were moved.
"""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import TRAVELLING, make_model, model_config
from local_hub import LocalHub
from test_evaluation import make_processor
from transformers import AutoConfig

from configuration_mmfusion import MMFusionConfig
from modeling_mmfusion import MMFusionForSequenceClassification
from saving_mmfusion import AUTO_MAP, CUSTOM_PIPELINES

LABELS = {0: "ant", 1: "bee", 2: "cat"}
SAVER = """
    import sys
    from accelerate import Accelerator
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoProcessor
    from transformers import Trainer, TrainingArguments, pipeline

    source, out = sys.argv[1:]
    keys = {"trust_remote_code": True}

    def load(name=source):
        model = AutoModelForSequenceClassification.from_pretrained(name, **keys)
        return model, AutoProcessor.from_pretrained(name, **keys)

    model, processor = load()
    model.save_pretrained(f"{out}/save_pretrained"), processor.save_pretrained(f"{out}/save_pretrained")
    again, it = load(f"{out}/save_pretrained")
    it.save_pretrained(f"{out}/saved_again"), again.save_pretrained(f"{out}/saved_again", max_shard_size="50KB")
    pipeline(model=source, **keys).save_pretrained(f"{out}/pipeline")
    rows = [dict(processor(text=["a red animal", "small"][i % 2]), labels=i % 3) for i in range(4)]
    rows = [{name: value[0] if name != "labels" else value for name, value in row.items()} for row in rows]
    arguments = TrainingArguments(
        f"{out}/trainer", max_steps=1, save_steps=1, report_to="none", use_cpu=True, per_device_train_batch_size=1
    )
    trainer = Trainer(model, arguments, train_dataset=rows, processing_class=processor)
    trainer.train(), trainer.save_model()
    model, processor = load()
    lora = get_peft_model(model, LoraConfig(target_modules=r".*text_encoder.*query"))
    lora.merge_and_unload().save_pretrained(f"{out}/merged"), processor.save_pretrained(f"{out}/merged")
    model, _ = load()
    Accelerator(cpu=True).prepare(model).save_pretrained(f"{out}/accelerate")
    processor.save_pretrained(f"{out}/accelerate")
    AutoModel.from_pretrained(source, **keys).save_pretrained(f"{out}/only_base")
    AutoConfig.from_pretrained(source, **keys).save_pretrained(f"{out}/only_config")
    AutoProcessor.from_pretrained(source, **keys).save_pretrained(f"{out}/only_processor")
"""
PUSHER = """
    import sys
    from transformers import AutoModelForSequenceClassification, AutoProcessor, pipeline

    source, out = sys.argv[1:]
    keys = {"trust_remote_code": True}
    model = AutoModelForSequenceClassification.from_pretrained(source, **keys)
    model.push_to_hub("alice/parts"), AutoProcessor.from_pretrained(source, **keys).push_to_hub("alice/parts")
    pipeline(model=source, **keys).push_to_hub("alice/pipe")
    pipeline(model=source, **keys).save_pretrained(f"{out}/pushed_pipe", push_to_hub=True, repo_id="alice/saved")
    for name in ("parts", "pipe", "saved"):
        pipeline(model=f"alice/{name}", **keys).save_pretrained(f"{out}/of_hub_{name}")
    model = AutoModelForSequenceClassification.from_pretrained("alice/parts", **keys)
    model.save_pretrained(f"{out}/of_hub_alone")
    AutoProcessor.from_pretrained("alice/parts", **keys).save_pretrained(f"{out}/of_hub_alone")
"""
ASK = """
    import json, sys
    from pathlib import Path
    from transformers import AutoModel, pipeline

    answers = {}
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        if not folder.name.startswith("only"):
            answers[folder.name] = pipeline(model=str(folder), trust_remote_code=True)({"text": "a red animal"})
    AutoModel.from_pretrained(sys.argv[1] + "/only_base", trust_remote_code=True)
    Path("answers.json").write_text(json.dumps(answers))
"""
SAVED = ("save_pretrained", "saved_again", "pipeline", "trainer", "merged", "accelerate")
PUSHED = ("pushed_pipe", "of_hub_parts", "of_hub_pipe", "of_hub_saved", "of_hub_alone")


def run(code, *arguments, cwd, env):
    command = [sys.executable, "-P", "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("saving")


@pytest.fixture(scope="module")
def source(work):
    """A folder that the classes of this repository wrote, which no Auto class loaded."""
    folder, label2id = work / "source", {name: number for number, name in LABELS.items()}
    make_model(model_config(id2label=LABELS, label2id=label2id)).save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(source, work):
    """Where every way of saving wrote to; the source is gone by then."""
    with LocalHub(work / "hub") as hub:
        hub.add_user("alice", write_token="hf_alice_write", read_token="hf_alice_read")
        env = hub.environment(work / "home", "hf_alice_write") | {"OMP_NUM_THREADS": "1"}
        run(SAVER, source, work / "out", cwd=work, env=env)
        run(PUSHER, source, work / "out", cwd=work, env=env)
        (work / "pushed.json").write_text(json.dumps({n: [*hub.files(f"alice/{n}")] for n in ("parts", "pipe")}))
    shutil.copytree(source, work / "out" / "source")
    return (work / "out").rename(work / "moved")


@pytest.fixture(scope="module")
def answers(folders, work):
    """What a user of another machine is answered: empty caches, no network, another directory."""
    away = work / "away"
    away.mkdir()
    with LocalHub(work / "other") as hub:
        env = hub.environment(work / "other-home", offline=True) | {"OMP_NUM_THREADS": "1"}
    run(ASK, folders, cwd=away, env=env)
    return json.loads((away / "answers.json").read_text())


@pytest.mark.parametrize("way", [*SAVED, *PUSHED])
def test_every_way_of_saving_gives_a_folder_that_the_pipeline_loads_elsewhere(way, answers):
    before, after = ({entry["label"]: entry["score"] for entry in answers[name]} for name in ("source", way))
    if way != "trainer":  # which took a step
        assert after == pytest.approx(before, abs=1e-6)
    assert after.keys() == set(LABELS.values())


def test_a_checkpoint_of_the_trainer_is_whole(folders):
    assert {path.name for path in (folders / "trainer" / "checkpoint-1").glob("*.py")} == set(TRAVELLING)


@pytest.mark.parametrize("way", ["source", *SAVED, *PUSHED, "only_base", "only_config", "only_processor"])
def test_what_is_named_is_there(way, folders):
    folder = folders / way
    assert {path.name for path in folder.glob("*_mmfusion.py")} == set(TRAVELLING)
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        if (folder / name).exists():
            assert set(references(json.loads((folder / name).read_text()))) <= known(), name


def known():
    return {*AUTO_MAP.values(), *(task["impl"] for task in CUSTOM_PIPELINES.values())}


def references(settings):
    """Every class that a file names, at any depth."""
    for key, value in settings.items():
        if key == "auto_map":
            yield from value.values()
        elif key == "impl":
            yield value
        elif isinstance(value, dict):
            yield from references(value)


def test_a_model_without_a_head_names_no_pipeline(folders):
    config = json.loads((folders / "only_base" / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP and not config.get("custom_pipelines")


def test_the_processor_has_one_file_besides_the_tokenizer_s(folders):
    for way in ("source", *SAVED, *PUSHED):
        assert not list((folders / way).glob("preprocessor_config.json")), way


def test_all_files_are_pushed(folders, work):
    for files in json.loads((work / "pushed.json").read_text()).values():
        assert {*TRAVELLING, "config.json", "model.safetensors", "processor_config.json"} <= set(files)


def test_saving_again_changes_no_file(folders):
    for name in (*TRAVELLING, "config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (folders / "saved_again" / name).read_bytes() == (folders / "save_pretrained" / name).read_bytes(), name


def test_files_of_the_user_stay(source, tmp_path):
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    for name in ("notes.py", "README.md", "my_model.py"):
        (tmp_path / name).write_text("mine")
    MMFusionForSequenceClassification.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert all((tmp_path / name).read_text() == "mine" for name in ("notes.py", "README.md", "my_model.py"))


def test_names_of_classes_that_a_user_derived_stay(tmp_path):
    auto_map = {"AutoModel": "alice/other--modeling_mmfusion.MMFusionModel", "AutoModelForAudioXVector": "mine.Mine"}
    config = model_config(auto_map=auto_map, custom_pipelines={"my-task": {"impl": "mine.Pipe", "pt": []}})
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["auto_map"] == {**AUTO_MAP, "AutoModelForAudioXVector": "mine.Mine"}
    assert set(saved["custom_pipelines"]) == {"my-task", *CUSTOM_PIPELINES}


def test_a_derived_class_is_saved_without_code_of_its_own(tmp_path):
    class Derived(MMFusionForSequenceClassification):
        pass

    Derived(model_config()).save_pretrained(tmp_path)
    assert {path.name for path in Path(tmp_path).glob("*.py")} == set(TRAVELLING)
    config = AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)
    assert config.auto_map == AUTO_MAP and MMFusionConfig.model_type == config.model_type
