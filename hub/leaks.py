"""What must not be published by mistake: a secret, or a path that tells of the machine a file was made on.

Secrets are found by their form alone (a prefix that an issuer gives to all of its tokens, or a key's header): entropy
would take half of a tokenizer for passwords.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# What it is -> its form. A token of the one who pushes is looked for in so many words, beside these.
SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{16,}",
    "a Hugging Face organisation token": r"\bapi_org_[A-Za-z0-9]{16,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "an AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,})",
    "a GitLab token": r"\bglpat-[A-Za-z0-9_-]{20}",
    "an OpenAI or Anthropic key": r"\bsk-(?:proj-|ant-)?[A-Za-z0-9_-]{32,}",
    "a Slack token": r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
    "a Google key": r"\bAIza[0-9A-Za-z_-]{35}",
    "a Stripe key": r"\b[rs]k_live_[0-9a-zA-Z]{24,}",
    "a JSON web token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
    "a password in a URL": r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"']+:[^\s/:@\"']+@",
}
# First folders of a path that tell whose machine it was, wherever they are looked at.
HOMES = frozenset(["home", "Users", "root", "mnt", "media", "tmp", "var", "private", "scratch", "content", "kaggle"])
# An absolute path inside of prose: it starts a word, and has at least two parts.
_PATH_IN_TEXT = re.compile(
    r"(?<![\w.:/<~-])/[\w.@-]+(?:/[\w.@-]+)+|\b[A-Za-z]:\\[^\s\"'`]+|~/[\w.@-]+|file:///[^\s\"'`]+"
)


def refuse_leaks(folder: Path, *, secrets: tuple[str, ...] = ()) -> None:
    """Look through every text file of a folder that is to be published.

    A tokenizer's own tokens may look like paths, so of JSON files only `config.json`, `training_config.json`,
    `processor_config.json`, `tokenizer_config.json` and `metrics.json` are searched for paths.

    Args:
        folder: What will be uploaded, file by file.
        secrets: Words that must not stand in any file, such as the token of the one who pushes.

    Raises:
        ValueError: Something was found; the message names the file, the kind and the first characters.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (text := _text(path)) is not None:
            name = path.relative_to(folder).as_posix()
            _refuse_secret(name, text, secrets)
            for leaked in local_paths(path, text):
                raise ValueError(
                    f"`{name}` holds the local path `{leaked}`, which tells of this machine: write a relative path or "
                    "a Hub id there, and push again. Nothing was pushed."
                )


def _text(path: Path) -> str | None:
    """The text of a file; None where it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def _refuse_secret(name: str, text: str, secrets: tuple[str, ...]) -> None:
    patterns = {**SECRETS, "your own token": "|".join(map(re.escape, filter(None, secrets))) or r"(?!)"}
    for kind, pattern in patterns.items():
        if found := re.search(pattern, text):
            raise ValueError(
                f"`{name}` holds what looks like {kind} (`{found[0][:8]}…`): remove it, withdraw it where it was "
                "issued, and push again. Nothing was pushed."
            )


def local_paths(path: Path, text: str) -> Iterator[str]:
    """Absolute paths of this or another machine in a JSON file of settings or in Markdown."""
    if path.name == "tokenizer.json" or path.suffix not in (".json", ".md"):
        return
    if path.suffix == ".md":
        yield from (found for found in _PATH_IN_TEXT.findall(text) if is_local(found))
        return
    for value in _strings(json.loads(text)):
        yield from (word for word in (value, *value.split()) if is_local(word))


def _strings(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(key)
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def is_local(word: str) -> bool:
    """Whether a word is an absolute path, and not merely written like one (as the label `/m/09x0r` is)."""
    word = word.strip("`'\",;()").removeprefix("file://")
    if word.startswith("~/") or re.match(r"[A-Za-z]:[\\/]|\\\\\w", word):
        return True
    parts = PurePosixPath(word).parts
    if len(parts) < 3 or parts[0] != "/" or "\n" in word:
        return False
    return parts[1] in HOMES or Path("/", parts[1]).is_dir()
