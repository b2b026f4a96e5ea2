"""Routes that change files: the question how each is to be uploaded, large contents, and the commit itself.

Bodies go to disk as they arrive, so that a large one costs no memory and one that breaks off leaves nothing behind.
"""

import re
import tempfile

from fastapi import APIRouter, Depends, Request

from .accounts import HubError, not_found, readable, require_write, shelf_of
from .commits import CommitBuilder, upload_modes
from .routes_repositories import commit_or_404, page_of
from .routing import REPOSITORY, Readable, is_true
from .storage import Repository

router = APIRouter()
SHA256 = re.compile(r"[0-9a-f]{64}")


def require_push(request: Request, repository: Repository) -> str:
    """The name of whoever may push to this revision, or propose to; a proposal is its author's to change."""
    is_proposal = is_true(request.query_params.get("create_pr"))
    account = require_write(request, repository, as_member=False)
    revision = request.path_params["revision"].removeprefix("refs/pr/")
    proposal = repository.pull_requests.get(int(revision)) if revision.isdigit() else None
    if not is_proposal and not (proposal and proposal.author == account.name):
        require_write(request, repository)
    return account.name


@router.post(REPOSITORY + "/preupload/{revision:quoted}")
async def preupload(request: Request, repository: Readable):
    require_push(request, repository)
    body = await request.json()
    commit = commit_or_404(repository, request.path_params["revision"])
    return {"files": upload_modes(shelf_of(request), commit, body["files"], body.get("gitIgnore")),
            "commitOid": commit.sha}  # fmt: skip


async def batch(request: Request, repository: Readable):
    """Where to put large contents; one that is there already gets no address, and the client skips it."""
    require_write(request, repository, as_member=False)
    body = await request.json()
    if body.get("operation") != "upload":
        raise HubError(400, f"The operation {body.get('operation')!r} is not supported")
    objects = [lfs_object(request, repository, item["oid"], item["size"]) for item in body["objects"]]
    return {"transfer": "basic", "objects": objects}


def lfs_object(request: Request, repository: Repository, oid: str, size: int) -> dict:
    known = {"oid": oid, "size": size}
    if not SHA256.fullmatch(oid):
        return {**known, "error": {"code": 422, "message": "The oid is no SHA-256"}}
    if oid in repository.lfs_objects:
        return known
    base, ticket = f"{request.base_url}{repository.url_path}", request.app.state.ticket
    upload = {"href": f"{request.base_url}lfs-storage/{repository.url_path}/{oid}?ticket={ticket}&size={size}"}
    return {**known, "authenticated": True,
            "actions": {"upload": upload, "verify": {"href": f"{base}.git/info/lfs/objects/verify"}}}  # fmt: skip


async def verify(request: Request, repository: Readable):
    body = await request.json()
    if body["oid"] not in repository.lfs_objects or shelf_of(request).blobs.size(body["oid"]) != body["size"]:
        raise HubError(404, f"The object {body['oid']} is not there in this size")
    return {}


async def put_object(request: Request):
    """Take one large content. The address is the permission, as with signed addresses of a storage service."""
    path, query = request.path_params, request.query_params
    repository = shelf_of(request).get(path.get("kind", "model"), f"{path['owner']}/{path['name']}")
    if repository is None or query.get("ticket") != request.app.state.ticket:
        raise HubError(403, "The address of this upload is not valid")
    with shelf_of(request).blobs.writer() as writer:
        async for chunk in request.stream():
            writer.write(chunk)
        if writer.hash.hexdigest() != path["oid"] or str(writer.size) != query.get("size"):
            raise HubError(400, f"The content of {path['oid']} arrived with another SHA-256 or size")
        repository.lfs_objects.add(writer.keep())
    return {}


@router.post(REPOSITORY + "/commit/{revision:quoted}")
async def commit(request: Request, repository: Readable):
    author = require_push(request, repository)
    revision = request.path_params["revision"]
    with tempfile.TemporaryFile(dir=shelf_of(request).blobs.folder) as lines:
        async for chunk in request.stream():
            lines.write(chunk)
        lines.seek(0)
        # From here to the end nothing waits, so that no other commit comes between the check and the move.
        is_proposal = is_true(request.query_params.get("create_pr"))
        base = commit_or_404(repository, revision)
        if not is_proposal and revision not in repository.branches and not revision.startswith("refs/"):
            raise HubError(400, f"{revision!r} is no branch")
        builder = CommitBuilder(shelf_of(request), repository, base)
        builder.apply(lines)
    title, message = builder.header["summary"], builder.header.get("description", "")
    added = repository.add_commit(builder.tree, title=title, message=message, author=author, parent=base.sha)
    page = page_of(request, repository)
    answer = {"success": True, "commitOid": added.sha, "commitUrl": f"{page}/commit/{added.sha}"}
    if is_proposal:
        num = repository.open_pull_request(title, author, added.sha).num
        return {**answer, "pullRequestUrl": f"{page}/discussions/{num}"}
    repository.move(revision, added.sha)
    return answer


@router.post(REPOSITORY + "/lfs-files/duplicate")
async def duplicate(request: Request, repository: Readable):
    """Let another repository have large contents of this one, without sending them again."""
    body = await request.json()
    target = shelf_of(request).get(body["target"]["type"], body["target"]["name"])
    if target is None:
        raise not_found(None)
    require_write(request, target)
    wanted = {file["sha256"] for file in body["files"]}
    target.lfs_objects |= wanted & repository.lfs_objects
    failed = [{"sha256": oid, "error": "not found"} for oid in wanted - repository.lfs_objects]
    return {"success": [{"sha256": oid} for oid in wanted & repository.lfs_objects], "failed": failed}


for prefix in ("/{kind:kind}", ""):
    lfs = prefix + "/{owner}/{name}.git/info/lfs/objects"
    router.add_api_route(f"{lfs}/batch", batch, methods=["POST"])
    router.add_api_route(f"{lfs}/verify", verify, methods=["POST"], dependencies=[Depends(readable)])
    router.add_api_route("/lfs-storage" + prefix + "/{owner}/{name}/{oid}", put_object, methods=["PUT"])
