"""Routes that read files: trees, what is known of paths, and the files themselves, whole or in part."""

import hashlib
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse

from .accounts import HubError, shelf_of
from .routes_repositories import commit_or_404
from .routing import REPOSITORY, Readable, is_true
from .storage import Commit, Repository, StoredFile, lfs_pointer

router = APIRouter()
MAX_ENTRIES_A_PAGE = 1000


def paged(request: Request, entries: list, size: int = MAX_ENTRIES_A_PAGE) -> JSONResponse:
    """One page of a list; the address of the next one stands in `Link`."""
    start = int(request.query_params.get("cursor", 0))
    size = min(size, int(request.query_params.get("limit", size)))
    headers = {}
    if start + size < len(entries):
        query = urlencode({**request.query_params, "cursor": start + size})
        headers["Link"] = f'<{request.url.replace(query=query)}>; rel="next"'
    return JSONResponse(entries[start : start + size], headers=headers)


def last_commit(repository: Repository, commit: Commit, path: str) -> dict:
    """The commit that gave a file or a folder the content it has now."""
    content = below(commit, path)
    found = commit
    for older in repository.history(commit):
        if below(older, path) != content:
            break
        found = older
    return {"id": found.sha, "title": found.title, "date": found.date}


def below(commit: Commit, path: str) -> list[tuple[str, str]]:
    return [
        (name, file.sha256)
        for name, file in sorted(commit.tree.items())
        if name == path or name.startswith(f"{path}/")
    ]


def file_entry(path: str, file: StoredFile) -> dict:
    entry = {"type": "file", "oid": file.blob_id, "size": file.size, "path": path}
    if file.is_lfs:
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": len(lfs_pointer(file.sha256, file.size))}
    return entry


def folder_entry(commit: Commit, path: str) -> dict:
    oid = hashlib.sha1(repr(below(commit, path)).encode()).hexdigest()
    return {"type": "directory", "oid": oid, "size": 0, "path": path}


def folders_of(commit: Commit) -> set[str]:
    parts = [path.split("/")[:-1] for path in commit.tree]
    return {"/".join(names[:depth]) for names in parts for depth in range(1, len(names) + 1)}


def entry_at(commit: Commit, path: str) -> dict | None:
    if path in commit.tree:
        return file_entry(path, commit.tree[path])
    return folder_entry(commit, path) if path in folders_of(commit) else None


def expanded(repository: Repository, commit: Commit, entry: dict) -> dict:
    entry["lastCommit"] = last_commit(repository, commit, entry["path"])
    if entry["type"] == "file":
        scan = {"status": "safe", "message": None, "reportLink": None}
        entry["securityFileStatus"] = {"status": "safe", "avScan": scan, "pickleImportScan": None}
    return entry


@router.get(REPOSITORY + "/tree/{revision:quoted}")
async def tree(request: Request, repository: Readable):
    return tree_below(request, repository, "")


@router.get(REPOSITORY + "/tree/{revision:quoted}/{path:rest}")
async def subtree(request: Request, repository: Readable):
    return tree_below(request, repository, request.path_params["path"].strip("/"))


def tree_below(request: Request, repository: Repository, folder: str) -> JSONResponse:
    commit = commit_or_404(repository, request.path_params["revision"])
    if folder and folder not in folders_of(commit):
        raise HubError(404, f'{folder} does not exist on "{request.path_params["revision"]}"', "EntryNotFound")
    prefix = f"{folder}/" if folder else ""
    paths = sorted(path for path in {*commit.tree, *folders_of(commit)} if path.startswith(prefix) and path != folder)
    if not is_true(request.query_params.get("recursive")):
        paths = [path for path in paths if "/" not in path.removeprefix(prefix)]
    entries = [entry_at(commit, path) for path in paths]
    if is_true(request.query_params.get("expand")):
        return paged(request, [expanded(repository, commit, entry) for entry in entries], 50)
    return paged(request, entries)


@router.post(REPOSITORY + "/paths-info/{revision:quoted}")
async def paths_info(request: Request, repository: Readable):
    form = await request.form()
    commit = commit_or_404(repository, request.path_params["revision"])
    entries = [entry for path in form.getlist("paths") if (entry := entry_at(commit, str(path).strip("/")))]
    if is_true(form.get("expand")):
        return [expanded(repository, commit, entry) for entry in entries]
    return entries


async def resolve(request: Request, repository: Readable):
    """A file, by branch, tag, commit or pull request; `FileResponse` answers HEAD and parts of files."""
    revision, path = request.path_params["revision"], request.path_params["path"]
    commit = repository.commit_at(revision)
    if commit is None:
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    headers = {"X-Repo-Commit": commit.sha, "Access-Control-Allow-Origin": "*", "Vary": "Origin, Accept"}
    file = commit.tree.get(path)
    if file is None:
        return HubError(404, "Entry not found", "EntryNotFound").answer(headers)
    headers["ETag"] = f'"{file.etag}"'
    headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(path.split('/')[-1])}"
    if file.is_lfs:
        headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
    media_type = "application/octet-stream" if file.is_lfs else "text/plain; charset=utf-8"
    return FileResponse(shelf_of(request).blobs.path(file.sha256), headers=headers, media_type=media_type)


for prefix in ("/{kind:kind}", ""):
    for verb in ("resolve", "raw"):
        address = prefix + "/{owner}/{name}/" + verb + "/{revision:quoted}/{path:rest}"
        router.add_api_route(address, resolve, methods=["GET", "HEAD"], response_model=None)
