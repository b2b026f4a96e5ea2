"""A model folder goes to the Hub: exported, compared with its source, pushed in one commit, compared again there."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hub.push import Account, Pushed

SNIPPET = """load it with
  from transformers import AutoModelForSequenceClassification, AutoProcessor, pipeline

  name, revision = "{repo_id}", "{commit}"
  model = AutoModelForSequenceClassification.from_pretrained(name, revision=revision, trust_remote_code=True)
  processor = AutoProcessor.from_pretrained(name, revision=revision, trust_remote_code=True)
  classify = pipeline("{task}", model=name, revision=revision, trust_remote_code=True)"""


def publish_model(
    source: Path,
    repo_id: str,
    account: "Account | None",
    folder: Path,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    license: str | None = None,
    space_id: str | None = None,
) -> "Pushed | None":
    """Push a model folder and prove that what came out at the other end is the same model.

    Args:
        source: The folder that `train.py` wrote.
        repo_id: Where it goes.
        account: As `hub.push.sign_in` gave it; None shows what would be pushed and pushes nothing.
        folder: Where the export is put together; it is made.
        private, revision, create_pr, message: As for `hub.push.push_folder`.
        license: Identifier of the licence of the weights; None: what the training stated, if anything.
        space_id: The Space that shows it, for the card.

    Raises:
        FileNotFoundError, ValueError: The folder is not whole, must not be published, or a copy answers differently.
        OSError: The Hub refused or could not be reached.
    """
    from hub.export import OURS, export_model
    from hub.leaks import refuse_leaks
    from hub.push import listing, push_folder

    folder.mkdir()
    left_out = export_model(source, folder, repo_id=repo_id, license=license, space_id=space_id)
    refuse_leaks(folder, secrets=() if account is None else (account.token,))
    print(listing(folder, repo_id))
    if left_out:
        print(f"not published: {', '.join(left_out)}")
    if account is None:
        print(f"\n{(folder / 'README.md').read_text(encoding='utf-8')}")
        return None

    logits = _compare_copy(source, folder)
    pushed = push_folder(
        account,
        folder,
        repo_id,
        replaces=OURS,
        private=private,
        revision=revision,
        create_pr=create_pr,
        message=message or "Push an MMFusion model",
    )
    print(f"pushed: {pushed.pull_request or pushed.url}", flush=True)
    _compare_pushed(logits, pushed, account.token)
    print(_how_to_load(folder, pushed))
    return pushed


def _compare_copy(source: Path, folder: Path):
    """Load both in fresh processes, side by side, and give the logits that they agree on."""
    from hub.verify import logits_of, refuse_difference

    with ThreadPoolExecutor(2) as pool:
        expected, found = pool.map(logits_of, (str(source), str(folder)))
    refuse_difference(expected, found, f"the copy of `{source}` that was to be pushed")
    print("the export answers as its source does, in a fresh process", flush=True)
    return expected


def _compare_pushed(logits, pushed: "Pushed", token: str) -> None:
    from hub.verify import logits_of, refuse_difference

    found = logits_of(pushed.repo_id, revision=pushed.commit, token=token)
    refuse_difference(logits, found, f"`{pushed.repo_id}` at {pushed.commit}")
    print(f"`{pushed.repo_id}` at {pushed.commit} answers as its source does, in a fresh process with an empty cache")


def _how_to_load(folder: Path, pushed: "Pushed") -> str:
    from hub.export import read_json

    task = next(iter(read_json(folder, "config.json")["custom_pipelines"]))
    return SNIPPET.format(repo_id=pushed.repo_id, commit=pushed.commit, task=task)
