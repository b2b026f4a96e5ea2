"""How many requests a second `app.py` answers, how long each waits, and what batching them brings.

    python benchmarks/serving.py outputs/demo
    python benchmarks/serving.py outputs/demo --num_clients 8 32 --num_memory_requests 20000

Starts real servers (one that batches, one that does not, one with a short queue) and asks them over HTTP for noise of
mixed subsets. Every answer is compared with the one that the same sample got alone, so a mix-up would end the run. The
servers take turns, round by round: a busy machine is busy for all. Clients run on the same machine and take their part
of it. At last, two servers are stopped and started anew in turn while clients ask, and no request may be cut off. The
last line of stdout is one JSON object.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for our own files, from whatever folder this is run

from benchmarks.timing import print_report  # noqa: E402
from cli.arguments import add_model_arguments, exit_code, number  # noqa: E402

MIB = 1024 * 1024
START_SECONDS = 300
MEMORY_CLIENTS = RESTART_CLIENTS = 32
STOP_SECONDS = 60
AVOIDED_SECONDS = 5  # what `Retry-After` says of a server that stops
TOLERANCE = 1e-4  # of a score: numbers in a batch differ from those alone in the last digits


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add_model_arguments(parser)
    count = number(int, 1)
    add = parser.add_argument
    add("--num_clients", type=count, nargs="+", default=[1, 8, 32, 128], help="at once; default: 1 8 32 128")
    add("--num_requests", type=count, default=400, help="of each round; default: 400")
    add("--num_rounds", type=count, default=3, help="rounds of each case; default: 3")
    add("--num_samples", type=count, default=56, help="distinct samples, of all subsets in turn; default: 56")
    add("--audio_seconds", type=number(float, 0.025), default=0.5, help="of every sound; default: 0.5")
    add("--num_memory_requests", type=number(int, 0), default=0, help="for the look at memory; default: 0, none")
    add("--num_restarts", type=number(int, 0), default=2, help="of a server under load; default: 2, 0: none")
    add("--seed", type=number(int, 0), default=0, help="of the noise; default: 0")
    add("--output_file", type=Path, help="also write the JSON object here; default: do not")
    return parser.parse_args(argv)


# -- servers ----------------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A running `app.py`."""

    address: str
    process: subprocess.Popen

    def rss_mib(self) -> float:
        import psutil

        return psutil.Process(self.process.pid).memory_info().rss / MIB

    def cpu_seconds(self) -> float:
        """Give the time that all its threads have had: other programs on the machine change it little."""
        import psutil

        return sum(psutil.Process(self.process.pid).cpu_times()[:2])


@contextlib.contextmanager
def serving(args: argparse.Namespace, *flags: str) -> Iterator[Server]:
    """Start `app.py` on a free port, and end it.

    Raises:
        ValueError: When it does not start.
    """
    model = os.path.abspath(args.model) if os.path.isdir(args.model) else args.model
    command = [sys.executable, "app.py", "--model", model, "--port", "0", "--device", args.device, *flags]
    command += ["--revision", args.revision] if args.revision else []
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(tempfile.NamedTemporaryFile("w+"))
        process = stack.enter_context(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log))
        stack.callback(process.terminate)
        yield Server(address_of(process, Path(log.name)), process)


def address_of(process: subprocess.Popen, log: Path) -> str:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        if found := re.search(r"serving at (http://\S+)", log.read_text()):
            return found[1]
        time.sleep(0.1)
    raise ValueError(f"`app.py` did not start: {log.read_text().strip()[-500:]}")


# -- requests ---------------------------------------------------------------------------------------------------------


def make_bodies(modalities: list[str], args: argparse.Namespace) -> list[bytes]:
    """Give bodies of distinct noise, of all subsets of the modalities in turn."""
    import itertools

    import numpy as np

    noise = np.random.default_rng(args.seed)
    subsets = [s for size in range(1, len(modalities) + 1) for s in itertools.combinations(modalities, size)]
    makers = {"text": make_text, "image": make_image, "audio": lambda noise: make_audio(noise, args.audio_seconds)}
    chosen = itertools.islice(itertools.cycle(subsets), args.num_samples)
    return [json.dumps({name: makers[name](noise) for name in subset}).encode() for subset in chosen]


def make_text(noise) -> str:
    return " ".join("".join(chr(97 + c) for c in noise.integers(0, 26, 4)) for _ in range(8))


def make_image(noise) -> str:
    import numpy as np
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(noise.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def make_audio(noise, seconds: float) -> str:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, noise.normal(0, 0.1, round(16_000 * seconds)), 16_000, format="WAV")
    return base64.b64encode(file.getvalue()).decode()


@dataclass
class Round:
    """What came back in one round."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)
    num_wrong: int = 0

    @property
    def num_per_second(self) -> float:
        return len(self.latencies) / self.seconds


async def ask(server: Server, bodies: list[bytes], num_requests: int, num_clients: int, expected: list[dict]) -> Round:
    """Let clients ask, each one thing after the other, until all requests are answered."""
    result, numbers = Round(), iter(range(num_requests))

    async def one_client(client) -> None:
        for n in numbers:
            start = time.perf_counter()
            response = await client.post("/v1/predict", content=bodies[n % len(bodies)])
            result.latencies.append(time.perf_counter() - start)
            result.statuses[response.status_code] += 1
            if response.status_code == 200:
                result.num_wrong += not same(scores(response), expected[n % len(bodies)])

    async with contextlib.AsyncExitStack() as stack:
        # One connection each: the work of a shared pool grows with the square of its connections.
        clients = [await stack.enter_async_context(client_of(server)) for _ in range(num_clients)]
        start, cpu_start = time.perf_counter(), server.cpu_seconds()
        await asyncio.gather(*map(one_client, clients))
        result.seconds = time.perf_counter() - start
        result.cpu_seconds = server.cpu_seconds() - cpu_start
    return result


def scores(response) -> dict[str, float]:
    return {entry["label"]: entry["score"] for entry in response.json()["predictions"]}


def same(given: dict[str, float], expected: dict[str, float]) -> bool:
    return given.keys() == expected.keys() and all(abs(given[label] - expected[label]) < TOLERANCE for label in given)


def client_of(server: Server):
    import httpx

    return httpx.AsyncClient(
        base_url=server.address, timeout=120, headers={"Content-Type": "application/json"}, verify=False
    )


Rounds = dict[tuple[str, int], list[Round]]  # of (server, number of clients)


# -- measuring --------------------------------------------------------------------------------------------------------


async def expect(server: Server, bodies: list[bytes]) -> list[dict]:
    """Give the answer to every sample when it is asked alone."""
    async with client_of(server) as client:
        return [scores(await client.post("/v1/predict", content=body)) for body in bodies]


async def measure(servers: dict[str, Server], bodies: list[bytes], expected: list[dict], args) -> Rounds:
    """Give the rounds of each server and number of clients; servers take turns."""
    rounds: Rounds = {}
    for num_clients in args.num_clients:
        for _ in range(args.num_rounds):
            for name, server in servers.items():
                done = await ask(server, bodies, args.num_requests, num_clients, expected)
                check(done, name, num_clients)
                rounds.setdefault((name, num_clients), []).append(done)
    return rounds


def check(done: Round, name: str, num_clients: int) -> None:
    """Refuse to give numbers about answers that were wrong or missing."""
    if done.num_wrong or set(done.statuses) != {200}:
        raise ValueError(
            f"`{name}` with {num_clients} clients: {done.num_wrong} wrong answers, statuses {dict(done.statuses)}."
        )


def summary(name: str, num_clients: int, rounds: list[Round]) -> dict:
    import numpy as np

    latencies = [1000 * latency for done in rounds for latency in done.latencies]
    return {
        "server": name,
        "num_clients": num_clients,
        "requests_per_second": statistics.median(done.num_per_second for done in rounds),
        "server_cpu_ms_per_request": 1000 * sum(done.cpu_seconds for done in rounds) / len(latencies),
        **{f"p{p}_ms": float(np.percentile(latencies, p)) for p in (50, 95, 99)},
    }


async def overload(server: Server, bodies: list[bytes], expected: list[dict], args) -> dict:
    """Ask a server with a short queue from too many clients: who is answered is answered right, all others get 429."""
    done = await ask(server, bodies, 4 * args.num_requests, 64, expected)
    if done.num_wrong or set(done.statuses) - {200, 429}:
        raise ValueError(f"under overload: {done.num_wrong} wrong answers, statuses {dict(done.statuses)}.")
    return {"num_clients": 64, "answered": done.statuses[200], "shed_with_429": done.statuses[429], "wrong": 0}


async def memory(server: Server, bodies: list[bytes], expected: list[dict], num_requests: int) -> dict:
    """Give the memory of the server after a tenth of the requests, and after all."""
    check(await ask(server, bodies, num_requests // 10, MEMORY_CLIENTS, expected), "memory", MEMORY_CLIENTS)
    before = server.rss_mib()
    check(
        await ask(server, bodies, num_requests - num_requests // 10, MEMORY_CLIENTS, expected),
        "memory",
        MEMORY_CLIENTS,
    )
    return {"num_requests": num_requests, "rss_mib_after_a_tenth": before, "rss_mib_after_all": server.rss_mib()}


# -- restarts ---------------------------------------------------------------------------------------------------------


@dataclass
class Fleet:
    """Servers that stand in for one another, as behind a proxy: one that refuses is left alone for a while."""

    servers: list[Server]
    told: Counter = field(default_factory=Counter)
    in_flight: Counter = field(default_factory=Counter)
    avoided_until: dict[str, float] = field(default_factory=dict)
    is_over: bool = False

    def choose(self, count: int) -> Server | None:
        now = time.monotonic()
        there = [server for server in self.servers if self.avoided_until.get(server.address, 0) < now]
        return there[count % len(there)] if there else None


async def restart(args: argparse.Namespace, bodies: list[bytes], expected: list[dict]) -> dict:
    """Stop and start servers in turn, while clients ask whichever of them is there.

    Raises:
        ValueError: When a request was cut off or answered wrong, or a server did not end with 0.
    """
    with contextlib.ExitStack() as stack:
        fleet = Fleet([stack.enter_context(serving(args)) for _ in range(2)])
        clients = [asyncio.create_task(ask_fleet(fleet, bodies, expected, first)) for first in range(RESTART_CLIENTS)]
        in_flight, exit_codes = [], []
        for number_of in range(args.num_restarts):
            await asyncio.sleep(1)
            old = fleet.servers[number_of % 2]
            while not fleet.in_flight[old.address]:
                await asyncio.sleep(0.001)
            in_flight.append(fleet.in_flight[old.address])
            old.process.terminate()
            exit_codes.append(await asyncio.to_thread(old.process.wait, STOP_SECONDS))
            fleet.servers[number_of % 2] = await asyncio.to_thread(stack.enter_context, serving(args))
        fleet.is_over = True
        await asyncio.gather(*clients)
    if any(exit_codes) or set(fleet.told) - {"answered", "refused", "nobody_there"}:
        raise ValueError(f"at restarts: {dict(fleet.told)}, exit codes {exit_codes}.")
    return {"in_flight_at_sigterm": in_flight, "cut_off": 0, "wrong": 0, **fleet.told}


async def ask_fleet(fleet: Fleet, bodies: list[bytes], expected: list[dict], first: int) -> None:
    """Ask until it is over; who is refused, or finds nobody, goes to another server."""
    import itertools

    async with contextlib.AsyncExitStack() as stack:
        clients = {}
        for count in itertools.count(first):
            if fleet.is_over:
                return
            if (server := fleet.choose(count)) is None:
                await asyncio.sleep(0.1)
                continue
            if server.address not in clients:
                clients[server.address] = await stack.enter_async_context(client_of(server))
            fleet.in_flight[server.address] += 1
            number = count % len(bodies)
            told = await outcome(clients[server.address], bodies[number], expected[number])
            fleet.in_flight[server.address] -= 1
            fleet.told[told] += 1
            if told in ("refused", "nobody_there"):
                fleet.avoided_until[server.address] = time.monotonic() + AVOIDED_SECONDS


async def outcome(client, body: bytes, expected: dict) -> str:
    """Say in a word what became of one request."""
    import httpx

    try:
        response = await client.post("/v1/predict", content=body)
    except httpx.ConnectError:
        return "nobody_there"
    except httpx.TransportError as error:
        return f"cut off ({error!r})"
    if response.status_code == 503 and "Retry-After" in response.headers:
        return "refused"
    if response.status_code != 200:
        return f"status {response.status_code}"
    return "answered" if same(scores(response), expected) else "wrong"


# -- telling ----------------------------------------------------------------------------------------------------------


def ratios(rounds: Rounds) -> dict[str, dict[str, float]]:
    """Give, for each number of clients, batching against none: the median of rounds that ran one after the other."""
    told = {}
    for num_clients in sorted({num_clients for _, num_clients in rounds}):
        pairs = list(zip(rounds["batching", num_clients], rounds["one by one", num_clients], strict=True))
        told[str(num_clients)] = {
            "requests_per_second": statistics.median(
                one.num_per_second / other.num_per_second for one, other in pairs
            ),
            "p50_ms": statistics.median(median_of(one) / median_of(other) for one, other in pairs),
            "server_cpu": sum(one.cpu_seconds for one, _ in pairs) / sum(other.cpu_seconds for _, other in pairs),
        }
    return told


def median_of(done: Round) -> float:
    return statistics.median(done.latencies)


def print_table(results: list[dict]) -> None:
    columns = ("requests_per_second", "p50_ms", "p95_ms", "p99_ms", "server_cpu_ms_per_request")
    print(f"{'server':12} {'clients':>7} {'requests/s':>11} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8} {'CPU ms':>8}")
    for line in results:
        numbers = " ".join(f"{line[column]:>8.1f}" for column in columns)
        print(f"{line['server']:12} {line['num_clients']:>7} {'':>2} {numbers}")


def run(args: argparse.Namespace) -> None:
    """Start, ask, print."""
    import httpx

    room = str(2 * max(MEMORY_CLIENTS, *args.num_clients))
    with (
        serving(args, "--max_waiting", room) as batching,
        serving(args, "--max_waiting", room, "--max_batch_size", "1") as one_by_one,
        serving(args, "--max_waiting", "8") as short_queue,
    ):
        info = httpx.get(f"{batching.address}/v1/model").json()
        bodies = make_bodies(info["modalities"], args)
        expected = asyncio.run(expect(one_by_one, bodies))
        servers = {"batching": batching, "one by one": one_by_one}
        rounds = asyncio.run(measure(servers, bodies, expected, args))
        results = [summary(name, num_clients, done) for (name, num_clients), done in rounds.items()]
        report = {
            "model": args.model,
            "num_cpus": os.cpu_count(),
            "num_distinct_samples": len({json.dumps(answer) for answer in expected}),
            "results": results,
            "batching_to_one_by_one": ratios(rounds),
            "overload": asyncio.run(overload(short_queue, bodies, expected, args)),
        }
        if args.num_memory_requests:
            report["memory"] = asyncio.run(memory(batching, bodies, expected, args.num_memory_requests))
    if args.num_restarts:
        report["restart"] = asyncio.run(restart(args, bodies, expected))
    print_table(results)
    print_report(report, args)


def main(argv: list[str] | None = None) -> int:
    return exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
