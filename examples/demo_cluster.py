"""Three replicas behind Envoy, and what clients notice when one is killed, and when all are restarted.

`make demo-cluster` runs this file. The clients use the public SDK, and know nothing but Envoy's address.
"""

import argparse
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from examples.cluster import Cluster, running
from examples.envoy import wait_until
from examples.replica import Replica
from reformer_client import Client, ReformerError, RetryPolicy, UnavailableError

NOVEL = Path(__file__).with_name("emma.txt")
DOCUMENT_BYTES = 2000
PROMPT, TOKENS = "\n\nMr. Knightley", 8
CLIENTS = 3
PATIENT = RetryPolicy(max_attempts=8)
console = Console(highlight=False)

Answers = dict[str, str]
"""By document: what the model says after it, which is the same whichever replica is asked."""


@dataclass
class Seen:
    """What clients have seen that ask about all documents, again and again."""

    calls: int = 0
    cut: int = 0
    """Answers that ended after their first token; the client asked again."""
    failed: list[str] = field(default_factory=list)
    longest_seconds: float = 0.0


def story(cluster: Cluster, documents: int) -> bool:
    """The demo; returns whether all went well."""
    with Client(cluster.address, retry=PATIENT) as client:
        replicas = ", ".join(f"{replica.name} on port {replica.server.port}" for replica in cluster.replicas)
        say("Serving", f"{replicas}; Envoy on {cluster.envoy.port}, the only one that clients know")
        ids = upload(client, documents)
        before = places(cluster, client, ids)
        say(
            "Uploaded",
            f"{documents} pieces of {NOVEL.name}. Each is in one replica's memory, and all are in the store:",
        )
        show(before)
        answers = {document_id: answer(client, document_id) for document_id in ids}
        say(
            "Asked", f"about each of them; the answers are the measure of what follows. {CLIENTS} clients go on asking."
        )
        went_well = kill_one(cluster, client, before, answers)
        went_well &= restart_all(cluster, answers)
        at_home = sum(place == before[document_id] for document_id, place in places(cluster, client, ids).items())
        say("At last", f"{at_home} of {documents} documents are where they were")
    return went_well


def upload(client: Client, documents: int) -> list[str]:
    """Pieces of the novel; returns their ids as soon as the store has all."""
    novel = NOVEL.read_bytes()
    ids = [f"emma-{number:02}" for number in range(documents)]
    with console.status("uploading"):
        for number, document_id in enumerate(ids):
            piece = novel[number * DOCUMENT_BYTES : (number + 1) * DOCUMENT_BYTES]
            client.documents.create(piece, document_id=document_id)
        wait_until(lambda: all(client.documents.get(document_id).stored for document_id in ids), "they aren't stored")
    return ids


def answer(client: Client, document_id: str) -> str:
    """A few greedy tokens."""
    document = client.documents.get(document_id)
    return document.generate(PROMPT, max_tokens=TOKENS, temperature=0.0).text()


def kill_one(cluster: Cluster, client: Client, before: dict[str, str], answers: Answers) -> bool:
    """SIGKILL for the replica with the first document; then it comes back."""
    victim = cluster[before[next(iter(answers))]]
    others = {replica.name for replica in cluster.replicas if replica is not victim}
    restored_before = restored_tokens(cluster, others)
    with load(cluster, answers) as seen:
        time.sleep(1)
        victim.kill()
        say("Killed", f"{victim.name}, by SIGKILL, while it was working")
        cluster.wait_until_healthy(others)
        time.sleep(3)
    tell(cluster, seen)
    after = places(cluster, client, list(answers))
    moved = [document_id for document_id in answers if after[document_id] != before[document_id]]
    others_moved = sum(before[document_id] != victim.name for document_id in moved)
    whose = "those that it held, and no other" if not others_moved else f"{others_moved} of them needlessly"
    say("Moved", f"{len(moved)} of {len(answers)} documents, {len(moved) / len(answers):.0%}: {whose}")
    show(after)
    tokens = restored_tokens(cluster, others) - restored_before
    say("Restored", f"{tokens:,.0f} tokens from the store, none of them read again; no document was lost")
    with console.status(f"starting {victim.name}"):
        victim.start()
        cluster.wait_until_healthy()
    say("Started", f"{victim.name}: its documents are its own again")
    return not seen.failed


def restart_all(cluster: Cluster, answers: Answers) -> bool:
    """SIGTERM, drain, start: one after the other, while clients go on."""
    with load(cluster, answers) as seen:
        for replica in cluster.replicas:
            with console.status(f"restarting {replica.name}"):
                seconds, exit_code = restart(replica)
                cluster.wait_until_healthy()
            say("Restarted", f"{replica.name}: drained in {seconds:.1f} s, exit code {exit_code}")
    tell(cluster, seen)
    return not seen.failed


def restart(replica: Replica) -> tuple[float, int]:
    """How long it took to end, and its exit code."""
    began = time.perf_counter()
    exit_code = replica.stop()
    seconds = time.perf_counter() - began
    replica.start()
    return seconds, exit_code


@contextmanager
def load(cluster: Cluster, answers: Answers) -> Iterator[Seen]:
    """Clients that ask about all documents, until the block ends."""
    seen, ended = Seen(), threading.Event()

    def ask(client: Client) -> None:
        while True:
            for document_id, expected in answers.items():
                if ended.is_set():
                    return
                began = time.perf_counter()
                try:
                    if answer_whatever_happens(client, document_id, seen) != expected:
                        seen.failed.append(f"{document_id}: another answer than before")
                except RuntimeError:
                    if ended.is_set():
                        return  # its client has been closed
                    raise
                except ReformerError as error:
                    seen.failed.append(f"{document_id}: {type(error).__name__}: {error}")
                seen.calls += 2
                seen.longest_seconds = max(seen.longest_seconds, time.perf_counter() - began)

    clients = [Client(cluster.address, retry=PATIENT, timeout=60) for _ in range(CLIENTS)]
    threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield seen
    except (KeyboardInterrupt, SystemExit):
        ended.set()
        for client in clients:
            client.close()  # which ends what they wait for
        raise
    finally:
        ended.set()
        for thread in threads:
            thread.join()
        for client in clients:
            client.close()


def answer_whatever_happens(client: Client, document_id: str, seen: Seen) -> str:
    """The SDK makes no call again that has given a token, since its user may have used it: this user hasn't."""
    try:
        return answer(client, document_id)
    except UnavailableError:
        seen.cut += 1
        return answer(client, document_id)


def places(cluster: Cluster, client: Client, ids: list[str]) -> dict[str, str]:
    """The replica that each document's calls go to, as Envoy's log has it."""
    for document_id in ids:
        client.documents.get(document_id)
    holders = cluster.holders()
    return {document_id: holders[document_id] for document_id in ids}


def restored_tokens(cluster: Cluster, names: set[str]) -> float:
    """Tokens of the documents that these replicas have got from the store, so far."""
    servers = [cluster[name].server for name in names]
    return sum(server.metric("reformer_prefill_tokens_total", source="restored") for server in servers)


def tell(cluster: Cluster, seen: Seen) -> None:
    """What a load has seen."""
    calls = cluster.envoy.calls()[-seen.calls :]
    by_envoy = sum(call.attempts - 1 for call in calls if call.attempts > 1)
    by_sdk = len(calls) - len({call.request_id for call in calls})
    failed = "[green]none failed[/green]" if not seen.failed else f"[red]{len(seen.failed)} failed[/red]"
    say("Seen", f"{seen.calls:,} calls, {failed}; the longest pair of them took {seen.longest_seconds:.2f} s.")
    say("", f"Tried again: {by_envoy} by Envoy, {by_sdk} by the SDK, {seen.cut} by the user after a first token")
    for failure in seen.failed[:5]:
        say("", failure)


def show(holders: dict[str, str]) -> None:
    """Which replica holds which documents."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name in sorted(set(holders.values())):
        held = [document_id for document_id, holder in holders.items() if holder == name]
        numbers = [document_id.removeprefix("emma-") for document_id in held]
        some = [*numbers[:12], "..."] if len(numbers) > 12 else numbers
        table.add_row(" " * 9, name, f"{len(held)}:", " ".join(some))
    console.print(table)


def say(what: str, how: str) -> None:
    """One step of the demo."""
    console.print(f"[bold]{what:<10}[/bold] {how}", soft_wrap=True)


def main() -> None:
    """The command line; errors take one line."""
    parser = argparse.ArgumentParser(description="Three replicas behind Envoy: one is killed, all are restarted.")
    parser.add_argument("--documents", type=int, default=48, help="how many are uploaded, at most 100; default: 48")
    parser.add_argument("--model", type=Path, help="another model's folder; without it, the embedded model")
    options = parser.parse_args()
    if not 1 <= options.documents <= 100:
        parser.error(f"--documents must be 1 to 100, but is {options.documents}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all the processes are stopped, too
    arguments: list[object] = ["--memory", "500MiB", "--max-running", 16]
    arguments += [] if options.model is None else ["--model", options.model]
    try:
        with tempfile.TemporaryDirectory() as folder, console.status("starting three servers and Envoy") as status:
            with running(Path(folder), *arguments) as cluster:
                status.stop()
                went_well = story(cluster, options.documents)
            say("Stopped", "all five processes")
    except (ReformerError, OSError, RuntimeError) as error:
        sys.exit(f"The demo failed: {type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0 if went_well else 1)


if __name__ == "__main__":
    main()
