"""Every block of `docs/your-own-loop.md` runs as it stands, in order, on a tiny model."""

import re
from pathlib import Path

import pytest
from conftest import make_model, model_config
from test_evaluation import make_processor
from transformers import AutoConfig, Trainer, TrainingArguments

PAGE = (Path(__file__).parents[1] / "docs" / "your-own-loop.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^## (.*?)$|```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What the blocks leave behind: their names, and the folder that they ran in."""
    folder, names, title = tmp_path_factory.mktemp("loop"), {"__name__": "page"}, ""
    fitted = {"temperatures": {"text": 2.0}, "id2label": {0: "ant", 1: "bee", 2: "cat"}}
    make_model(model_config(**fitted, label2id={"ant": 0, "bee": 1, "cat": 2})).save_pretrained(folder / "my-model")
    make_processor().save_pretrained(folder / "my-model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ACCELERATE_USE_CPU", "true")
        for heading, block in BLOCKS:
            title = heading or title
            if block:
                exec(compile(block, f"your-own-loop.md: {title}", "exec"), names)
    return names, folder


def test_the_page_has_a_block_for_each_way():
    titles = [heading for heading, _ in BLOCKS if heading]
    assert {"Trainer", "Accelerate", "PEFT", "Dataset.map", "Many rows through the pipeline"} <= set(titles)


@pytest.mark.parametrize("name", ["trained", "looped", "merged"])
def test_what_the_page_saves_is_a_whole_folder_for_the_new_labels(name, ran):
    _, folder = ran
    config = AutoConfig.from_pretrained(folder / name, trust_remote_code=True)
    assert config.id2label == {0: "calm", 1: "angry"} and config.temperatures is None
    assert (folder / name / "processor_config.json").exists() and (folder / name / "pipeline_mmfusion.py").exists()


def test_the_batches_of_the_page_hold_what_the_rows_have(ran):
    names, _ = ran
    batch = names["collate"]([names["data"][0], names["data"][1]])
    assert batch["modality_mask"].tolist() == [[1, 0, 1], [1, 1, 0]] and batch["labels"].tolist() == [1, 0]


def test_prepared_rows_have_the_same_columns_and_the_same_answer(ran):
    names, _ = ran
    collate, model = names["collate"], names["model"].eval()
    prepared, raw = (collate([names[kind][i] for i in range(4)]) for kind in ("prepared", "data"))
    assert (model(**prepared).logits - model(**raw).logits).abs().max() < 1e-5


def test_without_the_one_argument_the_collator_names_it(ran, tmp_path):
    names, _ = ran
    data = names["data"].rename_column("mood", "label")  # the one column that Trainer keeps
    collate = names["processor"].collator(names["model"].config, text="utterance", image="face", audio="speech")
    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        Trainer(names["model"], arguments, train_dataset=data, data_collator=collate).train()
