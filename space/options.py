"""The settings of the server. Every flag has an environment variable: a Space and a container are set by those.

`--max_batch_size` is `MMFUSION_MAX_BATCH_SIZE`, and so on; the flag goes before the variable. Host and port also have
the names that Gradio gave them. Tokens have no flag: a command line can be read by everybody on the machine.
"""

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass

from cli.arguments import DEVICES, number

MIB = 1024 * 1024
SWITCH = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


@dataclass(frozen=True)
class Options:
    """How the server runs; see `--help` for what each is."""

    model: str | None = None
    revision: str | None = None
    task: str | None = None
    device: str = "auto"
    host: str = "127.0.0.1"
    port: int = 7860
    max_batch_size: int = 16
    batch_window_ms: float = 5.0
    max_waiting: int = 128
    timeout_seconds: float = 30.0
    drain_seconds: float = 20.0
    max_body_mib: float = 16.0
    max_text_chars: int = 10_000
    max_audio_seconds: float = 300.0
    max_rows: int = 64
    max_table_rows: int = 1_000
    index: str | None = None
    index_media: str | None = None
    feedback_folder: str | None = None
    feedback_dataset: str | None = None
    feedback_media: bool = True
    mask_feedback: bool = False
    allow_origins: tuple[str, ...] = ()
    api_tokens: tuple[str, ...] = ()

    @property
    def max_body_bytes(self) -> int:
        return round(self.max_body_mib * MIB)


def parse_options(argv: list[str] | None = None, environment: Mapping[str, str] = os.environ) -> Options:
    """Read the settings from flags and environment; a wrong one ends the program with exit code 2."""
    parser = make_parser(environment)
    values = vars(parser.parse_args(argv))
    if values["feedback_dataset"] and not values["feedback_folder"]:
        parser.error("--feedback_dataset needs --feedback_folder, where feedback waits until it is committed")
    if values["index_media"] and not values["index"]:
        parser.error("--index_media needs --index, whose rows name the files")
    tokens = tuple(filter(None, map(str.strip, environment.get("MMFUSION_API_TOKENS", "").split(","))))
    origins = tuple(filter(None, map(str.strip, values.pop("allow_origins").split(","))))
    return Options(**values, allow_origins=origins, api_tokens=tokens)


def make_parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Serve a model: a page to try it, and an HTTP API (see /docs).",
        epilog="Every flag has an environment variable, MMFUSION_ and its name in capitals, which it goes before. "
        "MMFUSION_API_TOKENS, separated by commas, are tokens of which the API and the page then demand one.",
        allow_abbrev=False,
    )

    def add(flag: str, default, kind=str, *, also: str | None = None, **options) -> None:
        # argparse reads a default that is a string as it reads a flag, so a wrong variable is told like a wrong flag.
        names = [name for name in (f"MMFUSION_{flag.upper()}", also) if name and environment.get(name)]
        parser.add_argument(f"--{flag}", type=kind, default=environment[names[0]] if names else default, **options)

    def switch(flag: str, default: bool, **options) -> None:
        told = environment.get(f"MMFUSION_{flag.upper()}", "").lower() or ("yes" if default else "no")
        if told not in SWITCH:
            parser.error(f"MMFUSION_{flag.upper()} is {told!r}: allowed are {', '.join(SWITCH)}")
        parser.add_argument(f"--{flag}", action=argparse.BooleanOptionalAction, default=SWITCH[told], **options)

    on_space = "SPACE_ID" in environment
    add("model", None, help="folder that train.py wrote, or Hub id; the code in it is run; default: a small model, "
        "trained on the demo set at the first start")  # fmt: skip
    add("revision", None, help="commit, tag or branch on the Hub; default: the newest")
    add("task", None, help="of a model with several tasks the one to answer; default: the first")
    add("device", "auto", choices=DEVICES, help="where to run; default: auto, a GPU where there is one")
    add("host", "0.0.0.0" if on_space else "127.0.0.1", also="GRADIO_SERVER_NAME",
        help="address to listen at, 0.0.0.0 for all; default: 127.0.0.1, on a Space 0.0.0.0")  # fmt: skip
    add("port", 7860, number(int, 0, 65_536), also="GRADIO_SERVER_PORT", help="port, 0 for a free one; default: 7860")
    add("max_batch_size", 16, number(int, 1), help="samples in one call of the model, 1: no batching; default: 16")
    add("batch_window_ms", 5.0, number(float, 0, 1001), help="milliseconds for which a sample waits for others that "
        "are on their way; default: 5")  # fmt: skip
    add("max_waiting", 128, number(int, 1), help="samples that may wait or run; more get 429; default: 128")
    add("timeout_seconds", 30.0, number(float, 0.01), help="seconds until a call is given up; default: 30")
    add("drain_seconds", 20.0, number(float, 0), help="seconds that running calls get after SIGTERM; default: 20")
    add("max_body_mib", 16.0, number(float, 0.01), help="MiB of one request, files included; default: 16")
    add("max_text_chars", 10_000, number(int, 1), help="characters of one text; default: 10000")
    add("max_audio_seconds", 300.0, number(float, 0.025), help="seconds of one sound; default: 300")
    add("max_rows", 64, number(int, 1), help="samples of one batch request; default: 64")
    add("max_table_rows", 1_000, number(int, 1), help="rows of one table on the page; default: 1000")
    add("index", None, help="folder that `search.py build` wrote with the same model: page and /v1/search find its "
        "rows and give all their columns; default: none")  # fmt: skip
    add("index_media", None, help="folder that paths in these rows are relative to; the page shows its pictures and "
        "sounds small; default: none, names alone")  # fmt: skip
    add("feedback_folder", None, help="folder for what visitors say of the answers, which train.py reads; default: "
        "none, visitors are not asked")  # fmt: skip
    add("feedback_dataset", None, help="private data set on the Hub, owner/name, to which feedback is committed every "
        "few minutes; default: none")  # fmt: skip
    switch("feedback_media", True, help="whether pictures and sounds of those who agree are kept; default: yes")
    switch("mask_feedback", False, help="whether e-mail addresses, phone and card numbers in kept texts are masked; "
        "default: no")  # fmt: skip
    add("allow_origins", "", help="origins of other sites whose pages may call the API, separated by commas; "
        "default: none")  # fmt: skip
    return parser
