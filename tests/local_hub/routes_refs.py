"""Routes about revisions: branches, tags, histories, and pull requests with their merge."""

from fastapi import APIRouter, Request

from .accounts import HubError, require_write
from .routes_files import paged
from .routes_repositories import commit_or_404
from .routing import REPOSITORY, Readable, Writable, is_true
from .storage import Commit, PullRequest, Repository, StoredFile

router = APIRouter()


async def json_or_nothing(request: Request) -> dict:
    return await request.json() if await request.body() else {}


@router.get(REPOSITORY + "/refs")
async def refs(request: Request, repository: Readable):
    def listed(folder: str, names: dict[str, str]) -> list[dict]:
        return [{"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": sha} for name, sha in names.items()]

    known = {"branches": listed("heads", repository.branches), "tags": listed("tags", repository.tags), "converts": []}
    if is_true(request.query_params.get("include_prs")):
        heads = {str(num): pull_request.head for num, pull_request in repository.pull_requests.items()}
        known["pullRequests"] = listed("pr", heads)
    return known


@router.get(REPOSITORY + "/commits/{revision:quoted}")
async def commits(request: Request, repository: Readable):
    history = repository.history(commit_or_404(repository, request.path_params["revision"]))
    return paged(request, [describe_commit(commit) for commit in history], 50)


def describe_commit(commit: Commit) -> dict:
    return {
        "id": commit.sha, "title": commit.title, "message": commit.message, "date": commit.date,
        "authors": [{"user": commit.author, "avatar": ""}],
        "formatted": {"title": commit.title, "message": commit.message},
    }  # fmt: skip


@router.post(REPOSITORY + "/branch/{branch:quoted}")
async def create_branch(request: Request, repository: Writable):
    branch, body = request.path_params["branch"], await json_or_nothing(request)
    if branch in repository.branches:
        raise HubError(409, f"Reference already exists: refs/heads/{branch}")
    repository.branches[branch] = commit_or_404(repository, body.get("startingPoint") or "main").sha
    return {}


@router.delete(REPOSITORY + "/branch/{branch:quoted}")
async def delete_branch(request: Request, repository: Writable):
    branch = request.path_params["branch"]
    if branch == "main":
        raise HubError(403, "Cannot delete refs/heads/main")
    if repository.branches.pop(branch, None) is None:
        raise HubError(404, f"Reference does not exist: refs/heads/{branch}", "RevisionNotFound")
    return {}


@router.post(REPOSITORY + "/tag/{revision:quoted}")
async def create_tag(request: Request, repository: Writable):
    body = await request.json()
    commit = commit_or_404(repository, request.path_params["revision"])
    if body["tag"] in repository.tags:
        raise HubError(409, f"Tag reference exists already: {body['tag']}")
    repository.tags[body["tag"]] = commit.sha
    return {}


@router.delete(REPOSITORY + "/tag/{revision:quoted}")
async def delete_tag(request: Request, repository: Writable):
    tag = request.path_params["revision"]
    if repository.tags.pop(tag, None) is None:
        raise HubError(404, f"Reference does not exist: refs/tags/{tag}", "RevisionNotFound")
    return {}


# -- pull requests ----------------------------------------------------------------------------------------------------


def describe_pull_request(repository: Repository, pull_request: PullRequest) -> dict:
    return {
        "num": pull_request.num, "title": pull_request.title, "status": pull_request.status, "isPullRequest": True,
        "author": {"name": pull_request.author}, "createdAt": pull_request.created,
        "repo": {"name": repository.id, "type": repository.kind},
    }  # fmt: skip


def pull_request_or_404(request: Request, repository: Repository) -> PullRequest:
    num = request.path_params["num"]
    if num not in repository.pull_requests:
        raise HubError(404, f"No discussion {num} in {repository.id}", "EntryNotFound")
    return repository.pull_requests[num]


@router.get(REPOSITORY + "/discussions")
async def discussions(request: Request, repository: Readable):
    known = [describe_pull_request(repository, one) for one in repository.pull_requests.values()]
    return {"discussions": known, "count": len(known), "start": 0}


@router.post(REPOSITORY + "/discussions")
async def open_pull_request(request: Request, repository: Readable):
    account, body = require_write(request, repository, as_member=False), await request.json()
    if not body.get("pullRequest"):
        raise HubError(501, "This Hub knows pull requests but no other discussions")
    head = repository.branches["main"]
    pull_request = repository.open_pull_request(body["title"], account.name, head, status="draft")
    return describe_pull_request(repository, pull_request)


@router.get(REPOSITORY + "/discussions/{num:int}")
async def discussion(request: Request, repository: Readable):
    pull_request = pull_request_or_404(request, repository)
    commits = []
    for commit in repository.history(repository.commits[pull_request.head]):
        if commit.sha == pull_request.base:
            break
        commits.insert(0, commit)
    events = [
        {"id": commit.sha, "type": "commit", "createdAt": commit.date, "author": {"name": commit.author},
         "data": {"subject": commit.title, "oid": commit.sha}} for commit in commits
    ]  # fmt: skip
    changes = {"base": "refs/heads/main", "mergeCommitId": pull_request.merged_as}
    known = {"events": events, "changes": changes, "filesWithConflicts": conflicts(repository, pull_request)}
    return {**describe_pull_request(repository, pull_request), **known}


@router.post(REPOSITORY + "/discussions/{num:int}/status")
async def set_status(request: Request, repository: Writable):
    pull_request, body = pull_request_or_404(request, repository), await request.json()
    event = {"id": "status", "type": "status-change", "createdAt": pull_request.created}
    pull_request.status = body["status"]
    return {"newStatus": {**event, "author": {"name": pull_request.author}, "data": {"status": body["status"]}}}


def changed(repository: Repository, base: str, head: str) -> dict[str, StoredFile | None]:
    """Paths that differ between two commits, with what they became; None is gone."""
    old, new = repository.commits[base].tree, repository.commits[head].tree
    return {path: new.get(path) for path in {*old, *new} if old.get(path) != new.get(path)}


def conflicts(repository: Repository, pull_request: PullRequest) -> list[str]:
    proposed = changed(repository, pull_request.base, pull_request.head)
    done = changed(repository, pull_request.base, repository.branches["main"])
    return sorted(path for path in {*proposed} & {*done} if proposed[path] != done[path])


@router.post(REPOSITORY + "/discussions/{num:int}/merge")
async def merge(request: Request, repository: Writable):
    account, pull_request = require_write(request, repository), pull_request_or_404(request, repository)
    if pull_request.status in ("merged", "closed"):
        raise HubError(400, f"This pull request is {pull_request.status}")
    if conflicts(repository, pull_request):
        raise HubError(409, "Merge conflicts: " + ", ".join(conflicts(repository, pull_request)))
    main = repository.commit_at("main")
    merged = {**main.tree, **changed(repository, pull_request.base, pull_request.head)}
    tree = {path: file for path, file in merged.items() if file is not None}
    title = f"{pull_request.title} (#{pull_request.num})"
    commit = repository.add_commit(tree, title=title, author=account.name, parent=main.sha)
    repository.move("main", commit.sha)
    pull_request.status, pull_request.merged_as = "merged", commit.sha
    return {"success": True}
