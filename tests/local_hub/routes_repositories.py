"""Routes about whole repositories: create, delete, rename, settings, lists, what is known of one, and who asks."""

from fastapi import APIRouter, Request
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .accounts import Account, HubError, account_of, find, require_login, require_write, shelf_of
from .cards import card_data, check_card, library_of, read_json, tags_of
from .commits import git_attributes, space_card
from .routes_spaces import runtime
from .routing import REPOSITORY, Readable, Writable, is_true
from .storage import Commit, Repository, Shelf, StoredFile, lfs_pointer

router = APIRouter()


@router.get("/api/whoami-v2")
async def whoami(request: Request):
    return require_login(request).describe()


@router.post("/api/validate-yaml")
async def validate_yaml(request: Request):
    body = await request.json()
    errors, warnings = check_card(body["content"], body.get("repoType") or "model")
    answer = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    if errors:
        raise HubError(400, "Invalid metadata", **answer)
    return answer


def require_namespace(account: Account, kind: str, namespace: str) -> None:
    if account.role != "write":
        raise HubError(403, f"You don't have the rights to create a {kind} under this namespace with a read token")
    if not account.is_member(namespace):
        raise HubError(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')


def page_of(request: Request, repository: Repository) -> str:
    return f"{request.base_url}{repository.url_path}"


@router.post("/api/repos/create")
async def create(request: Request):
    account, body = require_login(request), await request.json()
    kind, namespace = body.get("type") or "model", body.get("organization") or account.name
    require_namespace(account, kind, namespace)
    repo_id = f"{namespace}/{body['name']}"
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(400, str(error)) from error
    known = shelf_of(request).get(kind, repo_id)
    if known is not None:
        raise HubError(409, f"You already created this {kind} repo", url=page_of(request, known), name=repo_id)
    repository = new_repository(shelf_of(request), kind, repo_id, body, account.name)
    return {"url": page_of(request, repository), "name": repo_id, "id": repo_id}


def new_repository(shelf: Shelf, kind: str, repo_id: str, body: dict, author: str) -> Repository:
    """A repository with the Hub's first commit in it: its list of large files and, in a Space, a card."""
    if kind == "space" and not body.get("sdk"):
        raise HubError(400, '"sdk" is required')
    private = is_true(body.get("private")) or body.get("visibility") == "private"
    repository = Repository(kind, repo_id, private=private, sdk=body.get("sdk"))
    tree = {".gitattributes": shelf.blobs.put(git_attributes(kind))}
    if kind == "space":
        tree["README.md"] = shelf.blobs.put(space_card(repo_id.split("/")[1], body["sdk"]))
        repository.hardware = body.get("hardware") or repository.hardware
        repository.sleep_time = body.get("sleepTimeSeconds")
        repository.secrets = {item["key"]: item["value"] for item in body.get("secrets") or []}
        repository.variables = {item["key"]: item["value"] for item in body.get("variables") or []}
    repository.move("main", repository.add_commit(tree, title="initial commit", author=author).sha)
    shelf.add(repository)
    return repository


@router.delete("/api/repos/delete")
async def delete(request: Request):
    account, body = require_login(request), await request.json()
    repo_id = f"{body.get('organization') or account.name}/{body['name']}"
    repository = find(request, body.get("type") or "model", repo_id)
    require_write(request, repository)
    shelf_of(request).remove(repository)
    return {}


@router.post("/api/repos/move")
async def rename(request: Request):
    account, body = require_login(request), await request.json()
    shelf, kind = shelf_of(request), body.get("type") or "model"
    repository = find(request, kind, body["fromRepo"])
    require_write(request, repository)
    require_namespace(account, kind, body["toRepo"].split("/")[0])
    if shelf.get(kind, body["toRepo"]):
        raise HubError(409, f"{body['toRepo']} exists already")
    shelf.remove(repository)
    repository.id = body["toRepo"]
    shelf.add(repository)
    return {}


@router.put(REPOSITORY + "/settings")
async def settings(request: Request, repository: Writable):
    body = await request.json()
    if "visibility" in body or "private" in body:
        repository.private = is_true(body.get("private")) or body.get("visibility") == "private"
    return {"private": repository.private}


@router.get(REPOSITORY + "/auth-check")
async def may_read(repository: Readable):
    return {}


@router.get(REPOSITORY + "/auth-check/write")
async def may_write(repository: Writable):
    return {}


def sibling(path: str, file: StoredFile, blobs: bool) -> dict:
    if not blobs:
        return {"rfilename": path}
    known = {"rfilename": path, "size": file.size, "blobId": file.blob_id}
    if file.is_lfs:
        pointer = len(lfs_pointer(file.sha256, file.size))
        known["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": pointer}
    return known


def describe(shelf: Shelf, repository: Repository, commit: Commit, *, blobs: bool = False) -> dict:
    """What the API tells about a repository at one commit."""
    card = card_data(shelf.blobs, commit)
    config = read_json(shelf.blobs, commit, "config.json") if repository.kind == "model" else {}
    known = {
        "_id": f"id-{repository.kind}-{repository.id}", "id": repository.id, "author": repository.owner,
        "sha": commit.sha, "lastModified": commit.date, "createdAt": repository.created, "private": repository.private,
        "gated": False, "disabled": False, "downloads": 0, "likes": 0, "cardData": card or None,
        "tags": tags_of(repository.kind, card, config, commit.tree),
        "siblings": [sibling(path, file, blobs) for path, file in sorted(commit.tree.items())],
        "usedStorage": sum(file.size for file in commit.tree.values()),
    }  # fmt: skip
    if repository.kind == "model":
        known |= describe_model(repository, card, config)
    if repository.kind == "space":
        subdomain = repository.id.replace("/", "-").lower()
        known |= {"sdk": card.get("sdk") or repository.sdk, "runtime": runtime(shelf, repository)}
        known |= {"subdomain": subdomain, "host": f"https://{subdomain}.hf.space", "models": card.get("models") or []}
    return known


def describe_model(repository: Repository, card: dict, config: dict) -> dict:
    known = {"modelId": repository.id, "spaces": [], "model-index": card.get("model-index")}
    known["pipeline_tag"] = card.get("pipeline_tag")
    known["library_name"] = library_of(card, config)
    if config:
        kept = ("architectures", "model_type", "auto_map")
        known["config"] = {key: config[key] for key in kept if key in config}
    return known


def answer_about(request: Request, repository: Repository, revision: str) -> dict:
    commit = commit_or_404(repository, revision)
    known = describe(shelf_of(request), repository, commit, blobs=is_true(request.query_params.get("blobs")))
    wanted = request.query_params.getlist("expand") + request.query_params.getlist("expand[]")
    return {key: value for key, value in known.items() if not wanted or key in {"_id", "id", *wanted}}


def commit_or_404(repository: Repository, revision: str) -> Commit:
    commit = repository.commit_at(revision)
    if commit is None:
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


@router.get(REPOSITORY)
async def info(request: Request, repository: Readable):
    return answer_about(request, repository, "main")


@router.get(REPOSITORY + "/revision/{revision:quoted}")
async def info_at(request: Request, repository: Readable):
    return answer_about(request, repository, request.path_params["revision"])


@router.get("/api/{kind:kind}")
async def listing(request: Request):
    """All repositories of a kind that the one who asks may see; filters by author, words and tags."""
    query, account = request.query_params, account_of(request)
    kind, shelf = request.path_params["kind"], shelf_of(request)
    wanted = {tag for value in query.getlist("filter") for tag in value.split(",")}
    found = []
    for repository in shelf.repositories.values():
        is_visible = not repository.private or (account and account.is_member(repository.owner))
        is_named = query.get("author") in (None, repository.owner) and query.get("search", "") in repository.id
        if repository.kind == kind and is_visible and is_named:
            known = describe(shelf, repository, commit_or_404(repository, "main"))
            if wanted <= set(known["tags"]):
                found.append(known if is_true(query.get("full")) else {**known, "siblings": None})
    return found[: int(query.get("limit", 1000))]
