"""Trainings in processes of their own, without the seconds that importing takes in each: all are forks of one.

Run as a script it is that process. It reads one JSON object a line: `{"argv": […], "output": path, "max_bytes": n,
"env": {…}}` starts a training in that environment and is answered with its process id, `{"wait": pid}` with its exit
code, negative for a signal.
"""

import json
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


class Forks:
    """The process that trainings are forks of; use it as a context manager."""

    def __init__(self):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], cwd=ROOT, env={**env, "PYTHONPATH": str(ROOT)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, *error) -> None:
        self.process.stdin.close()
        self.process.wait(30)

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, argv, output: Path, max_bytes: int | None = None, **env: str) -> "Fork":
        pid = self.ask(argv=[str(word) for word in argv], output=str(output), max_bytes=max_bytes, env=env)
        return Fork(self, pid, output)

    def start_together(self, argv, output: Path, num_processes: int = 2, **env: str) -> list["Fork"]:
        """One training in several processes, in the environment that a launcher gives them."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        known = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true", **env}
        known |= {name: str(num_processes) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
        return [
            self.start(argv, output.with_name(f"{output.name}-{rank}"), **known, RANK=str(rank), LOCAL_RANK=str(rank))
            for rank in range(num_processes)
        ]

    def run(self, argv, output: Path, max_bytes: int | None = None) -> "Fork":
        fork = self.start(argv, output, max_bytes)
        fork.wait()
        return fork


class Fork:
    """One training."""

    def __init__(self, forks: Forks, pid: int, output: Path):
        self.forks, self.pid, self.output, self.code = forks, pid, output, None

    @property
    def said(self) -> str:
        return self.output.read_text(encoding="utf-8")

    def wait(self) -> int:
        self.code = self.forks.ask(wait=self.pid)
        return self.code

    def kill(self, signum: int) -> int:
        """Send a signal and wait for the end."""
        self.send(signum)
        return self.wait()

    def send(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def wait_for(self, folder: Path, pattern: str, seconds: float = 60) -> list[Path]:
        """Look as often as possible whether such a file or folder is there; it may be gone when this returns."""
        end = time.monotonic() + seconds
        while not (found := list(folder.glob(pattern))):
            assert time.monotonic() < end, f"no `{pattern}`:\n{self.said}"
            time.sleep(0.0005)
        return found


def serve() -> None:
    import datasets  # noqa: F401
    import evaluate  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.metrics  # noqa: F401

    import train
    from training import loop, optimization, publishing, resuming, rows, start, towers  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        elif (answer := os.fork()) == 0:
            become(train, **request)
        print(json.dumps(answer), flush=True)


def become(train, argv: list[str], output: str, max_bytes: int | None, env: dict[str, str]) -> None:
    """The rest of a fork's life."""
    os.environ.update(env)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor, target in ((os.open(os.devnull, os.O_RDONLY), 0), (file, 1), (file, 2)):
        os.dup2(descriptor, target)
    if max_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
    try:
        code = train.main(argv)
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    serve()
