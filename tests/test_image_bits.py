"""10 or 12 bits in pictures of 16: found on the training rows, one number for all pictures, kept with the model."""

import csv
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate import Accelerator
from conftest import fresh
from media_cells import image_bytes
from PIL import Image
from transformers import ViTImageProcessorPil, pipeline

import train
from data import Columns, FusionDataset, read_table
from decoding_mmfusion import decode_image
from processing_mmfusion import MMFusionProcessor
from training.image_bits import NUM_PICTURES, choose_image_bits, estimate_bits
from training.rows import TableRows


def grey(highest, seed=0):
    values = np.random.default_rng(seed).integers(0, highest + 1, (12, 12)).astype(np.uint16)
    values[0, 0] = highest
    return Image.fromarray(values)


def processor(**options):
    return MMFusionProcessor(image_processor=ViTImageProcessorPil(size={"height": 8, "width": 8}), **options)


def table_of(folder, pictures, name="table.csv"):
    with (folder / name).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label"])
        for number, picture in enumerate(pictures):
            if picture is not None:
                picture.save(folder / f"{name}{number}.png")
            writer.writerow(["" if picture is None else f"{name}{number}.png", "ab"[number % 2]])
    return str(folder / name)


def rows_of(folder, pictures):
    return TableRows(read_table(table_of(folder, pictures), columns=Columns(image="image", label="label")))


def choose(rows, made, given=None, model=None, teacher=None):
    args = SimpleNamespace(image_bits=given, model_name_or_path=model)
    return choose_image_bits(args, Accelerator(cpu=True), rows, made, teacher)


@pytest.mark.parametrize(("highest", "bits"), [
    (200, 8), (255, 8), (256, 10), (1023, 10), (1024, 12), (4095, 12), (4096, 14), (16_383, 14), (16_384, 16),
    (65_535, 16),
])  # fmt: skip
def test_the_brightest_pixel_of_all_decides(highest, bits):
    files = [image_bytes(grey(20)), image_bytes(grey(highest), "TIFF"), image_bytes(grey(3))]
    assert estimate_bits(files) == bits


def test_pictures_of_8_bits_are_not_opened_and_decide_nothing(monkeypatch):
    files = [image_bytes(Image.new(mode, (9, 9)), "PNG") for mode in ("L", "RGB", "P", "1", "RGBA")]
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("more than the header was read"))
    assert estimate_bits([*files, b"", b"garbage"]) is None


def test_the_number_is_set_once_and_told(tmp_path):
    rows, made = rows_of(tmp_path, [grey(300), None, grey(3000), Image.new("RGB", (9, 9))]), processor()
    told = choose(rows, made)
    assert made.image_bits == 12 and "12" in told and "--image_bits" in told
    assert choose(rows, made, given=14) and made.image_bits == 14


def test_a_table_without_such_pictures_is_as_before_and_nothing_is_said(tmp_path):
    made = processor()
    assert choose(rows_of(tmp_path, [Image.new("L", (9, 9)), None]), made) is None and made.image_bits == 16


def test_a_model_that_is_gone_on_from_keeps_its_bits_and_a_teacher_gives_its_own(tmp_path):
    rows, made = rows_of(tmp_path, [grey(900)] * 2), processor(image_bits=16)
    told = choose(rows, made, model="some/model")
    assert made.image_bits == 16 and "dark" in told and "--image_bits 10" in told
    choose(rows, made, teacher=SimpleNamespace(processor=processor(image_bits=12)))
    assert made.image_bits == 12
    assert choose(rows, made, given=8).startswith("note") and made.image_bits == 8


def test_of_a_large_table_only_some_rows_are_looked_at_from_its_beginning_to_its_end(tmp_path):
    rows = rows_of(tmp_path, [grey(9), None, *[grey(9)] * 10])
    assert len(list(rows.pictures(5))) == 5 and len(list(rows.pictures(NUM_PICTURES))) == 11
    names = [path.name for path in rows.pictures(3)]
    assert names[0] == "table.csv0.png" and names[-1] == "table.csv11.png"


def test_every_way_into_the_processor_scales_alike(tmp_path):
    made, image = processor(image_bits=12), grey(900)
    data = image_bytes(image)
    expected = np.asarray(decode_image(data, bits=12))
    assert np.array_equal(made.decode_image(data), expected)
    batches = [made(images=cell) for cell in (made.decode_image(data), image, np.asarray(image), [image])]
    assert all(np.array_equal(batch["pixel_values"], batches[0]["pixel_values"]) for batch in batches)
    rows = FusionDataset(rows_of(tmp_path, [image]).table, None, made)
    assert np.array_equal(rows[0]["image"], expected)


def test_the_bits_are_saved_with_the_processor_and_one_without_a_record_uses_all_16(tmp_path):
    processor(image_bits=10).save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    stored = json.loads(file.read_text())
    assert stored["image_bits"] == 10 and MMFusionProcessor.from_pretrained(tmp_path).image_bits == 10
    file.write_text(json.dumps({name: value for name, value in stored.items() if name != "image_bits"}))
    before = MMFusionProcessor.from_pretrained(tmp_path)
    assert before.image_bits == 16
    values = np.asarray(grey(900))
    assert np.array_equal(np.asarray(before.decode_image(grey(900)))[..., 0], np.rint(values * (255 / 65535)))


@pytest.mark.parametrize("bits", [0, 17, 10.5, "12", None])
def test_other_numbers_of_bits_are_refused(bits):
    with pytest.raises(ValueError, match="`image_bits`"):
        processor(image_bits=bits)


def lesions(folder, name, seed):
    rng, pictures = np.random.default_rng(seed), []
    for number in range(40):
        values = rng.integers(0, 300, (16, 16)).astype(np.uint16)
        values[4:12, 4:12] += np.uint16(500 * (number % 2))
        pictures.append(Image.fromarray(values))
    return table_of(folder, pictures, name)


def test_a_training_on_10_bits_learns_from_them_says_so_and_leaves_them_in_the_folder(tmp_path, capsys):
    fresh()
    files = [lesions(tmp_path, name, seed) for seed, name in enumerate(("train.csv", "validation.csv"))]
    flags = ["--train_file", files[0], "--validation_file", files[1], "--image_size", "16", "--num_train_epochs", "2",
             "--fusion_hidden_size", "32", "--output_dir", str(tmp_path / "model")]  # fmt: skip
    assert train.main(flags) == 0
    assert "use 10" in capsys.readouterr().out
    read = lambda name: json.loads((tmp_path / "model" / name).read_text())  # noqa: E731
    assert read("processor_config.json")["image_bits"] == 10 == read("training_config.json")["image_bits"]
    answers = pipeline("multimodal-classification", str(tmp_path / "model"), trust_remote_code=True)
    picture = Image.open(tmp_path / "train.csv1.png")
    file = io.BytesIO()
    picture.save(file, "TIFF")
    first, second = answers({"image": file.getvalue()}), answers({"image": picture})
    assert first == second and answers.processor.image_bits == 10
