"""Routes of Spaces: their state, hardware, variables and secrets. None is run: the state follows from the files."""

from fastapi import APIRouter, Request
from huggingface_hub import SpaceHardware

from .accounts import HubError, shelf_of
from .cards import card_data
from .routing import SPACE, Readable, Writable
from .storage import Repository, Shelf, now

router = APIRouter()
DEFAULT_APP_FILES = {"docker": "Dockerfile", "static": "index.html"}


def stage(shelf: Shelf, repository: Repository) -> str:
    """The state that the Hub would show once it has built what is there."""
    commit = repository.commit_at("main")
    card = card_data(shelf.blobs, commit)
    if repository.is_paused:
        return "PAUSED"
    if not card.get("sdk"):
        return "CONFIG_ERROR"
    app_file = card.get("app_file") or DEFAULT_APP_FILES.get(card["sdk"], "app.py")
    return "RUNNING" if app_file in commit.tree else "NO_APP_FILE"


def runtime(shelf: Shelf, repository: Repository) -> dict:
    state = stage(shelf, repository)
    return {
        "stage": state, "storage": None, "gcTimeout": repository.sleep_time or 172800, "devMode": False,
        "hardware": {"current": repository.hardware if state == "RUNNING" else None, "requested": repository.hardware},
        "replicas": {"current": int(state == "RUNNING"), "requested": 1}, "sha": repository.branches["main"],
    }  # fmt: skip


@router.get(SPACE + "/runtime")
async def get_runtime(request: Request, repository: Readable):
    return runtime(shelf_of(request), repository)


@router.post(SPACE + "/hardware")
async def set_hardware(request: Request, repository: Writable):
    body = await request.json()
    if body.get("flavor") not in list(SpaceHardware):
        raise HubError(400, f"Invalid hardware: {body.get('flavor')!r}")
    repository.hardware = str(SpaceHardware(body["flavor"]).value)
    repository.sleep_time = body.get("sleepTimeSeconds", repository.sleep_time)
    return runtime(shelf_of(request), repository)


@router.post(SPACE + "/sleeptime")
async def set_sleep_time(request: Request, repository: Writable):
    repository.sleep_time = (await request.json())["seconds"]
    return runtime(shelf_of(request), repository)


@router.post(SPACE + "/pause")
async def pause(request: Request, repository: Writable):
    repository.is_paused = True
    return runtime(shelf_of(request), repository)


@router.post(SPACE + "/restart")
async def restart(request: Request, repository: Writable):
    repository.is_paused = False
    repository.num_restarts += 1
    return runtime(shelf_of(request), repository)


# -- variables, which anybody who may change the Space reads, and secrets, which nobody reads back --------------------


def values_of(repository: Repository, shelf: str) -> dict[str, str]:
    return repository.variables if shelf == "variables" else repository.secrets


def described(repository: Repository, shelf: str) -> dict:
    known = {}
    for key, value in values_of(repository, shelf).items():
        description, updated = repository.descriptions.get((shelf, key), (None, repository.created))
        known[key] = {"key": key, "description": description, "updatedAt": updated}
        known[key] |= {"value": value} if shelf == "variables" else {}
    return known


@router.get(SPACE + "/{shelf:settings}")
async def get_settings(request: Request, repository: Writable):
    return described(repository, request.path_params["shelf"])


@router.post(SPACE + "/{shelf:settings}")
async def add_setting(request: Request, repository: Writable):
    shelf, body = request.path_params["shelf"], await request.json()
    values_of(repository, shelf)[body["key"]] = body["value"]
    repository.descriptions[shelf, body["key"]] = (body.get("description"), now())
    return described(repository, shelf)


@router.delete(SPACE + "/{shelf:settings}")
async def delete_setting(request: Request, repository: Writable):
    shelf, body = request.path_params["shelf"], await request.json()
    values_of(repository, shelf).pop(body["key"], None)
    return described(repository, shelf)
