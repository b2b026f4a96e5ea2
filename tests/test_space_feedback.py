"""Feedback: what is stored, what is not, and that `train.py`'s reader takes it as it is. Real files, a local Hub."""

import csv
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from local_hub import online, running_hub
from PIL import Image

from cli.scored import csv_writer
from data.labels import LabelMap
from data.table import read_table
from decoding_mmfusion import decode_audio, decode_image
from space.errors import BadInput, Refusal
from space.feedback import FeedbackStore, Quota
from space.redaction import mask_text

LABELS = ["ant", "bee", "cat"]
RANKED = [{"label": "bee", "score": 0.5}, {"label": "ant", "score": 0.3}, {"label": "cat", "score": 0.2}]
SINGLE = {"labels": LABELS, "problem_type": "single_label_classification", "model": "me/animals", "revision": "1a2b"}
NAME = "alice/feedback"
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def store(tmp_path):
    return FeedbackStore(tmp_path / "feedback", **SINGLE)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with running_hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


def picture(size=(20, 16), **info):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    image.info.update(info)
    return image


def sound():
    return {"array": np.sin(np.arange(1600) / 9).astype(np.float32) / 2, "sampling_rate": 16_000}


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def cells(table, kind):
    return [table.cell(index, kind) for index in range(len(table))]


# -- what is stored ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["", "metadata.jsonl"])
def test_the_reader_of_train_takes_folder_and_file_as_they_are(store, source):
    sample = {"text": "ein kleines Tier 动物", "image": picture(), "audio": sound()}
    store.add(sample, RANKED, "right", consent=True, media_consent=True)
    store.add({"text": "a loud animal"}, RANKED, "wrong", "cat", consent=True)
    store.add({"image": picture()}, RANKED, "wrong", "ant", consent=True, media_consent=True)
    table = read_table(store.folder / source)
    labels = LabelMap.fit(table)
    assert (labels.names, labels.encode_table(table)) == (("ant", "bee", "cat"), [1, 2, 0])
    assert table.presence.tolist() == [[True, True, True], [True, False, False], [False, True, False]]
    assert cells(table, "text") == ["ein kleines Tier 动物", "a loud animal", None]
    assert np.array_equal(np.asarray(decode_image(table.media(0, "image"))), np.asarray(picture()))
    heard = decode_audio(table.media(0, "audio"), sampling_rate=16_000)
    assert np.abs(heard - sound()["array"]).max() < 1e-4


def test_a_row_says_which_model_answered_what_and_when(store):
    row = store.add({"text": "a"}, RANKED, "wrong", "cat", consent=True)
    assert row == lines(store.folder / "metadata.jsonl")[0]
    assert {name: row[name] for name in ("model", "revision", "verdict", "predicted", "score", "label")} == {
        "model": "me/animals", "revision": "1a2b", "verdict": "wrong", "predicted": "bee", "score": 0.5,
        "label": "cat",
    }  # fmt: skip
    assert row["created_at"].endswith("+00:00") and len(row["id"]) == 32


def test_a_verdict_that_nothing_can_be_learned_from_is_kept_beside_the_table(store):
    store.add({"text": "a"}, RANKED, "wrong", consent=True)  # the right label is not known
    store.add({"image": picture()}, RANKED, "right", consent=True)  # the picture may not be kept
    assert [row["verdict"] for row in lines(store.folder / "verdicts.jsonl")] == ["wrong", "right"]
    assert not (store.folder / "metadata.jsonl").exists() and not (store.folder / "image").exists()


@pytest.mark.parametrize(("keep_media", "media_consent"), [(False, True), (True, False)])
def test_media_are_kept_only_when_both_operator_and_visitor_agree(tmp_path, keep_media, media_consent):
    store = FeedbackStore(tmp_path / "f", **SINGLE, keep_media=keep_media)
    sample = {"text": "a", "image": picture(), "audio": sound()}
    row = store.add(sample, RANKED, "right", consent=True, media_consent=media_consent)
    assert not {"image", "audio"} & row.keys()
    assert not [path for path in store.folder.rglob("*") if path.suffix in (".png", ".flac")]


def test_nothing_is_stored_without_consent(store):
    for consent in (False, None, "no"):
        with pytest.raises(BadInput, match=r"`consent` is missing: feedback is stored only of those who agree"):
            store.add({"text": "a"}, RANKED, "right", consent=consent)
    assert not list(store.folder.glob("*.jsonl"))


def test_a_stored_picture_has_no_exif_and_no_name_and_is_not_huge(store):
    exif = Image.Exif()
    exif[0x010E] = "at home"
    file = io.BytesIO()
    Image.new("RGB", (3000, 1500), "red").save(file, "PNG", exif=exif)
    given = Image.open(io.BytesIO(file.getvalue()))
    given.info["comment"] = "secret"
    row = store.add({"image": given}, RANKED, "right", consent=True, media_consent=True)
    path = store.folder / row["image"]
    stored = Image.open(path)
    assert stored.size == (1024, 512) and not stored.info and not stored.getexif()
    assert b"secret" not in path.read_bytes() and b"at home" not in path.read_bytes()
    assert row["image"] == f"image/{row['id']}.png"


@pytest.mark.parametrize(
    ("problem", "labels", "scores", "verdict", "right", "label", "expected"),
    [
        ("regression", ["age"], [3.5], "wrong", "4", 4.0, "regression"),
        ("regression", ["age"], [3.5], "right", None, 3.5, "regression"),
        ("regression", ["x", "y"], [1.5, 2.0], "wrong", [1, 2.5], [1.0, 2.5], "regression"),
        ("multi_label_classification", LABELS, [0.9, 0.1, 0.6], "right", None, ["ant", "cat"], "multi_label"),
        ("multi_label_classification", LABELS, [0.9, 0.1, 0.6], "wrong", ["bee"], ["bee"], "multi_label"),
        ("multi_label_classification", LABELS, [0.9, 0.1, 0.6], "wrong", [], [], "multi_label"),
    ],
)
def test_other_problem_types_are_read_back_too(tmp_path, problem, labels, scores, verdict, right, label, expected):
    store = FeedbackStore(tmp_path / "f", labels=labels, problem_type=problem, model="m")
    ranked = [{"label": name, "score": score} for name, score in zip(labels, scores, strict=True)][::-1]
    for _ in range(2):
        store.add({"text": "a"}, ranked, verdict, right, consent=True)
    table = read_table(store.folder)
    assert table.labels() == [label, label]
    fitted = LabelMap.from_config({"id2label": dict(enumerate(labels)), "problem_type": problem})
    assert expected in fitted.problem_type and len(fitted.encode_table(table)) == 2


@pytest.mark.parametrize(
    ("verdict", "right", "sentence"),
    [
        ("maybe", None, "`verdict` is 'maybe': allowed are right, wrong"),
        ("wrong", "dog", "`right_label` is 'dog', which is no label of the model"),
        ("wrong", "bee", "the very answer that is called wrong"),
        ("right", "cat", "differs from an answer that is called right"),
        ("wrong", ["ant", "cat"], "holds 2 labels: give one"),
        ("wrong", {"a": 1}, "no label of the model"),
    ],
)
def test_a_verdict_that_makes_no_sense_is_refused(store, verdict, right, sentence):
    with pytest.raises(BadInput, match=sentence):
        store.add({"text": "a"}, RANKED, verdict, right, consent=True)


@pytest.mark.parametrize(
    ("value", "sentence"), [("nan", "no finite number"), (True, "no finite"), ([1, 2], "1 number")]
)
def test_a_number_that_is_none_is_refused(tmp_path, value, sentence):
    store = FeedbackStore(tmp_path, labels=["age"], problem_type="regression", model="m")
    with pytest.raises(BadInput, match=sentence):
        store.add({"text": "a"}, [{"label": "age", "score": 1.0}], "wrong", value, consent=True)


@pytest.mark.parametrize("ranked", [[], RANKED[:2], [{"label": name, "score": float("nan")} for name in LABELS]])
def test_predictions_that_the_model_cannot_have_given_are_refused(store, ranked):
    with pytest.raises(BadInput, match="`predictions` must hold a finite score for each label"):
        store.add({"text": "a"}, ranked, "right", consent=True)


def test_a_folder_keeps_one_kind_of_problem(store):
    with pytest.raises(ValueError, match="holds feedback for single_label_classification, but the model does regress"):
        FeedbackStore(store.folder, labels=["age"], problem_type="regression", model="m")


def test_texts_are_stored_as_they_are_and_no_spreadsheet_runs_them(store, tmp_path):
    """JSON has no formulas; what is made of it as CSV goes through the writer that disarms them."""
    texts = ["=cmd|'/c calc'!A0", "two\nlines", "\ud800 half", "＝1+1"]
    for text in texts:
        store.add({"text": text}, RANKED, "right", consent=True)
    table = read_table(store.folder)
    assert cells(table, "text") == [texts[0], texts[1], "? half", texts[3]]
    with csv_writer(tmp_path / "a.csv") as write:
        write(table.source.select_columns(["text"]).with_format("arrow")[:])
    with (tmp_path / "a.csv").open(newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)] == [
            "'=cmd|'/c calc'!A0", "two\nlines", "? half", "'＝1+1"
        ]  # fmt: skip


# -- limits -----------------------------------------------------------------------------------------------------------


def test_a_row_that_is_too_large_is_refused(tmp_path):
    store = FeedbackStore(tmp_path, **SINGLE, quota=Quota(max_row_bytes=1_000))
    with pytest.raises(BadInput, match=r"has [\d,]+ bytes, the limit is 1,000: nothing was stored") as refused:
        store.add({"text": "a" * 1_000}, RANKED, "right", consent=True)
    assert refused.value.code == "body_too_large"
    with pytest.raises(BadInput, match="nothing was stored"):
        store.add({"image": picture((64, 64))}, RANKED, "right", consent=True, media_consent=True)
    assert not list(tmp_path.rglob("*.png")) and not list(tmp_path.glob("*.jsonl"))


def test_visitors_cannot_fill_the_disk_not_even_after_a_restart(tmp_path):
    quota = Quota(max_folder_bytes=20_000)

    def fill():
        store = FeedbackStore(tmp_path, **SINGLE, quota=quota)
        for count in range(100):
            try:
                store.add({"text": "a" * 500, "image": picture()}, RANKED, "right", consent=True, media_consent=True)
            except Refusal as refusal:
                return count, refusal
        return None

    count, refusal = fill()
    assert 5 < count < 25 and "no room for more feedback: nothing was stored" in refusal.message
    assert (refusal.code, refusal.status) == ("storage_full", 507)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 21_000
    assert fill()[0] <= 1
    assert len(read_table(tmp_path)) >= count


def test_a_full_disk_is_told_and_leaves_no_half_row(store, monkeypatch):
    store.add({"text": "a"}, RANKED, "right", consent=True)
    before = (store.folder / "metadata.jsonl").read_bytes()
    real = os.fsync

    def fails(number):
        real(number)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(Refusal, match=r"feedback cannot be stored now \(No space left on device\)") as refused:
        store.add({"text": "b", "image": picture()}, RANKED, "right", consent=True, media_consent=True)
    assert refused.value.code == "storage_full"
    assert (store.folder / "metadata.jsonl").read_bytes() == before and not list(store.folder.rglob("*.png"))


# -- threads, processes, kills ----------------------------------------------------------------------------------------


def add_many(folder, name, num_rows):
    store = FeedbackStore(folder, **SINGLE)
    for row in range(num_rows):
        store.add({"text": f"{name}-{row} " + "x" * 3000}, RANKED, "right", consent=True)


def test_threads_and_processes_do_not_write_into_each_others_rows(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=add_many, args=(tmp_path, f"p{i}", 15)) for i in range(2)]
    store = FeedbackStore(tmp_path, **SINGLE)

    def add(name):
        for row in range(15):
            store.add({"text": f"{name}-{row}"}, RANKED, "right", consent=True)

    threads = [threading.Thread(target=add, args=(f"t{i}",)) for i in range(4)]
    for worker in [*processes, *threads]:
        worker.start()
    for worker in [*processes, *threads]:
        worker.join()
    names = {text.split()[0] for text in cells(read_table(tmp_path), "text")}
    assert names == {f"{who}-{row}" for who in ("p0", "p1", "t0", "t1", "t2", "t3") for row in range(15)}


def test_a_kill_costs_at_most_the_row_that_is_being_written(tmp_path):
    script = (
        "from space.feedback import FeedbackStore\n"
        f"store = FeedbackStore({str(tmp_path)!r}, **{SINGLE!r})\n"
        "while True:\n"
        f"    print(store.add({{'text': 'x' * 20000}}, {RANKED!r}, 'right', consent=True)['id'], flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    told = [process.stdout.readline().strip() for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    told += process.stdout.read().split()
    process.wait()
    assert len(told) >= 20
    store = FeedbackStore(tmp_path, **SINGLE)
    store.add({"text": "after"}, RANKED, "right", consent=True)
    ids = [row["id"] for row in lines(tmp_path / "metadata.jsonl")]
    assert set(told) <= set(ids) and len(ids) <= len(told) + 2 and len(read_table(tmp_path)) == len(ids)


@pytest.mark.parametrize("torn", ['{"id": "1", "text": "ha', "x" * 2_500_000])
def test_half_a_row_is_cut_off_before_the_next_one(store, torn):
    store.add({"text": "a"}, RANKED, "right", consent=True)
    with (store.folder / "metadata.jsonl").open("a") as file:
        file.write(torn)
    store.add({"text": "b"}, RANKED, "right", consent=True)
    assert cells(read_table(store.folder), "text") == ["a", "b"]
    with (store.folder / "metadata.jsonl").open("a") as file:
        file.write(torn)
    FeedbackStore(store.folder, **SINGLE)  # a start is enough
    assert len(read_table(store.folder)) == 2


# -- on the Hub -------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_hub(hub):
    hub.reset()
    with online(hub, "hf_alice_write"):
        yield hub


def stored_on(hub):
    found = sorted(path for path in hub.files(NAME, "dataset") if path.startswith("data/"))
    return [row for path in found for row in pq.read_table(io.BytesIO(hub.read(NAME, path, "dataset"))).to_pylist()]


def make_store(folder, **options):
    return FeedbackStore(
        folder, **SINGLE, hub_dataset=NAME, token="hf_alice_write", every_minutes=60, **options
    )  # fmt: skip


def test_the_rest_is_pushed_when_the_server_stops_and_the_data_set_is_private(tmp_path, on_hub):
    store = make_store(tmp_path)
    store.add({"text": "a", "image": picture()}, RANKED, "wrong", "cat", consent=True, media_consent=True)
    store.add({"text": "b"}, RANKED, "wrong", consent=True)
    store.close()
    assert on_hub.repository(NAME, "dataset").private
    (row,) = stored_on(on_hub)
    assert (row["text"], row["label"], row["audio"]) == ("a", "cat", None)
    assert np.array_equal(np.asarray(decode_image(row["image"]["bytes"])), np.asarray(picture()))
    (verdicts,) = [path for path in on_hub.files(NAME, "dataset") if path.startswith("verdicts/")]
    assert json.loads(on_hub.read(NAME, verdicts, "dataset"))["text"] == "b"
    assert b"path: data/*.parquet" in on_hub.read(NAME, "README.md", "dataset")


def test_a_new_disk_adds_to_what_the_old_one_pushed_and_nothing_comes_twice(tmp_path, on_hub):
    for disk in ("one", "two"):
        store = make_store(tmp_path / disk)
        store.add({"text": disk}, RANKED, "right", consent=True)
        store.close()
    store = make_store(tmp_path / "two")  # a restart on the same disk, with nothing new
    store.close()
    assert sorted(row["text"] for row in stored_on(on_hub)) == ["one", "two"]


def test_a_push_that_fails_is_made_up_for(tmp_path, on_hub, caplog):
    on_hub.fail("POST", "/commit/", status=500, times=50)
    store = make_store(tmp_path)
    store.add({"text": "a"}, RANKED, "right", consent=True)
    store.close()
    assert "the last feedback did not reach alice/feedback" in caplog.text
    on_hub.clear_failures()
    store = make_store(tmp_path)
    store.close()
    assert [row["text"] for row in stored_on(on_hub)] == ["a"]


def test_a_commit_whose_answer_was_lost_is_not_there_twice(tmp_path, on_hub):
    store = make_store(tmp_path)
    store.add({"text": "a"}, RANKED, "right", consent=True)
    store._copy.trigger().result()
    (tmp_path / "pushed.json").unlink()  # as if it had been killed before it knew
    store.add({"text": "b"}, RANKED, "right", consent=True)
    store.close()
    assert [row["text"] for row in stored_on(on_hub)] == ["a", "b"]


def test_rows_are_pushed_in_the_background(tmp_path, on_hub):
    store = FeedbackStore(tmp_path, **SINGLE, hub_dataset=NAME, token="hf_alice_write", every_minutes=0.005)
    try:
        store.add({"text": "a"}, RANKED, "right", consent=True)
        end = time.monotonic() + 10
        while not any(path.startswith("data/") for path in on_hub.files(NAME, "dataset")):
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        store.close()
    assert [row["text"] for row in stored_on(on_hub)] == ["a"]


def test_the_reader_of_train_takes_the_data_set_of_the_hub(tmp_path, on_hub, hub):
    store = make_store(tmp_path / "store")
    sample = {"text": "a", "image": picture(), "audio": sound()}
    store.add(sample, RANKED, "wrong", "cat", consent=True, media_consent=True)
    store.add({"text": "b"}, RANKED, "right", consent=True)
    store.close()
    script = (
        "from data.table import read_table\nfrom data.labels import LabelMap\n"
        f"table = read_table('{NAME}')\nlabels = LabelMap.fit(table)\n"
        "print(table.presence.tolist(), labels.encode_table(table), labels.names, len(table.media(0, 'audio')) > 99)"
    )
    environment = hub.environment(tmp_path / "home", "hf_alice_write")
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=ROOT,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == (
        "[[True, True, True], [True, False, False]] [1, 0] ('bee', 'cat') True"
    ), done.stderr  # fmt: skip


def test_a_public_data_set_and_one_that_is_not_ours_are_refused_at_the_start(tmp_path, on_hub):
    from huggingface_hub import HfApi

    HfApi(token="hf_alice_write").create_repo(NAME, repo_type="dataset", private=False)
    with pytest.raises(ValueError, match="`alice/feedback` is public, and visitors' feedback would be"):
        make_store(tmp_path)
    make_store(tmp_path, allow_public=True).close()
    with pytest.raises(OSError, match=r"feedback cannot go to the data set `alice/feedback` \("):
        FeedbackStore(tmp_path, **SINGLE, hub_dataset=NAME, token="hf_bob_read")


# -- masking ----------------------------------------------------------------------------------------------------------


def test_stored_texts_are_masked_when_asked_for(tmp_path):
    store = FeedbackStore(tmp_path, **SINGLE, mask_text=True)
    store.add({"text": "write to me@example.com in 2024"}, RANKED, "right", consent=True)
    assert cells(read_table(tmp_path), "text") == ["write to [email] in 2024"]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to anna.b+x@mail.example.co.uk now", "write to [email] now"),
        ("邮箱zhang_3@example.com谢谢", "邮箱[email]谢谢"),
        ("müller@exämple.de, a＠b.com", "[email], [email]"),
        ("4111 1111 1111 1111", "[card]"),
        ("my card is 4111-1111-1111-1111, exp 12/27", "my card is [card], exp 12/27"),
        ("4111 1111 1111 1111 123", "[card] 123"),
        ("5500005555555559 or 3782 822463 10005.", "[card] or [card]."),
        ("call +49 30 1234567", "call [phone]"),
        ("call +1 (212) 555-0187 today", "call [phone] today"),
        ("0044 20 7946 0958 or +44 (0)20 7946 0958", "[phone] or [phone]"),
        ("(212) 555-0187, 212-555-0187 and 1.212.555.0187", "[phone], [phone] and [phone]"),
        ("020 7946 0958, 07911 123456", "[phone], [phone]"),
        ("030/1234567 oder 0151-23456789", "[phone] oder [phone]"),
        ("06 12 34 56 78 ou 01.02.20.30.40", "[phone] ou [phone]"),
        ("我的电话是13812345678。", "我的电话是[phone]。"),
        ("138-1234-5678, 010-12345678, +86 138 1234 5678", "[phone], [phone], [phone]"),
        ("１３８１２３４５６７８", "[phone]"),
        ("090-1234-5678", "[phone]"),
        ("98765 43210 or 9876543210 or +91 98765 43210", "[phone] or [phone] or [phone]"),
        ("(11) 91234-5678", "[phone]"),
    ],
)
def test_addresses_and_numbers_of_people_are_masked(text, masked):
    assert mask_text(text) == masked
    assert mask_text(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "in 1999 and 2019-2020, or 2001/2002", "2021 2022 2023 2024", "(2020) was bad, (12) apples",
        "it costs $1,299.99 or 1 000 000 yen, 1.000.000,00 €", "1,234,567,890",
        "on 2024-01-15, 12.05.2023, 01.02.2023, 02-03-2021 and 09/11/2001", "01.02.2023 04.05.2024",
        "at 10:30, 08:15:00", "2024-01-15 10:30:45", "version 1.2.3.4, IP 192.168.1.100",
        "ISBN 978-3-16-148410-0", "pi is 3.14159265358979", "0.123456789 or 0,123456789", "order 20240115001",
        "1234 5678 9012 3456", "between 100 and 200 of 300 birds", "room 007, page 12 of 350",
        "a 5000 x 3000 picture with 15000000 pixels", "-12.5 to +35.2 degrees", "+5 points, +100 %",
        "52.520008, 13.404954", "seven two one 7 2 1", "scores 3:2, 4-1", "a@b", "@someone said hi", "#1234567890",
        "５００＋",
    ],
)  # fmt: skip
def test_years_prices_dates_and_plain_numbers_stay(text):
    assert mask_text(text) == text


@pytest.mark.parametrize("piece", ["0", "1 ", "(", "a@", "+1.", "a.a", "4111 ", "0/", "@a."])
def test_no_text_takes_long_to_mask(piece):
    start = time.perf_counter()
    mask_text(piece * 10_000)
    assert time.perf_counter() - start < 2
