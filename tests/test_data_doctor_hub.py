"""The data doctor on a data set of the (local) Hub: all splits are looked at, from one commit."""

import json

from hub_here import datasets_online, push_tables, write_rows
from local_hub import running_hub

from data.doctor import main


def test_of_a_data_set_on_the_hub_all_splits_are_looked_at(tmp_path, capsys):
    train = write_rows(tmp_path / "t", 60)
    held = write_rows(tmp_path / "t", 12, first=57, name="validation")  # three rows of the training among them
    with running_hub(tmp_path / "hub") as hub, datasets_online(hub, tmp_path / "home") as api:
        push_tables(api, "alice/both", tmp_path / "both", train=train, validation=held)
        assert main(["alice/both", "--json", str(tmp_path / "found.json"), "--fail_on", "error"]) == 1
    assert capsys.readouterr().out.startswith("rows: train 60, validation 12\n")
    findings = json.loads((tmp_path / "found.json").read_text())["findings"]
    leak = next(finding for finding in findings if finding["code"] == "leak.row")
    assert leak["count"] == 3 and [example["row"] for example in leak["examples"]] == [1, 2, 3]
