"""`reformer doctor`: what this installation would run on, how fast that is, and whether it computes what it should."""

import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from reformer_core import (
    Engine,
    MemoryPlan,
    ReformerModel,
    SamplingParams,
    embedded_model_path,
    load_config,
    load_model,
    load_tokenizer,
)
from reformer_core.errors import ReformerError
from reformer_core.placement import DTYPES, available_memory, choose_device, choose_dtype, product_dtype
from reformer_server.fitting import Fitting
from reformer_server.rates import copy_bytes_per_second, product_flops
from reformer_server.settings import Settings
from reformer_server.units import format_size
from reformer_server.version import VERSION

PACKAGES = ("torch", "grpcio", "protobuf")
TEXT = b"It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of"
LOGITS_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}  # of logits whose deviation is 5
ENGINE_BYTES = 512 * 2**20
DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    topic: str
    name: str
    value: str
    """For people."""
    ok: bool | None = None
    """Whether it is as it should be; None: nothing to judge."""


@click.command()
@click.argument("model", required=False)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda (or cuda:1 ...), or auto.")
@click.option("--dtype", default="auto", show_default=True, help="float32, bfloat16, float16, or auto.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON instead of a table.")
def doctor(model: str | None, device: str, dtype: str, as_json: bool) -> None:
    """Check this installation: device and number format, versions, speed, the memory plan of MODEL (a folder or hub id;
    default: the embedded model), and whether the embedded model computes what it should. Takes some seconds.

    The exit code is 1 if something is wrong.
    """
    findings = list(examine(model, device, dtype))
    wrong = [finding for finding in findings if finding.ok is False]
    if as_json:
        click.echo(json.dumps({"ok": not wrong, "findings": [asdict(finding) for finding in findings]}))
    else:
        Console().print(table(findings))
        click.echo(f"{len(wrong)} wrong: {', '.join(finding.name for finding in wrong)}" if wrong else "All is well.")
    if wrong:
        raise SystemExit(1)


def examine(model: str | None, device_name: str, dtype_name: str) -> Iterator[Finding]:
    """All findings, in the order of the report. What goes wrong is one of them, never an exception."""
    yield from versions()
    try:
        device = choose_device(device_name)
        dtype = choose_dtype(dtype_name, device)
    except ReformerError as error:
        yield Finding("placement", "device", str(error), ok=False)
        return
    yield from placement(device, dtype, asked=dtype_name != "auto")
    checks: tuple[tuple[str, str, Callable[[], Iterator[Finding]]], ...] = (
        ("speed", "rates", lambda: rates(device)),
        ("memory", "plan", lambda: memory(model, device, dtype)),
        ("embedded model", "computes", lambda: computes(device, dtype)),
    )
    for topic, name, check in checks:
        try:
            yield from check()
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is what the user wants to know
            yield Finding(topic, name, f"{type(error).__name__}: {error}", ok=False)
    yield from unchecked(device)


def versions() -> Iterator[Finding]:
    """Of all that takes part in computing and serving."""
    yield Finding("versions", "reformer-serve", VERSION)
    yield Finding("versions", "python", f"{platform.python_version()} on {platform.platform()}")
    for package in PACKAGES:
        yield Finding("versions", package, version(package))
    yield Finding("versions", "CUDA", torch.version.cuda or "torch was built without")
    if DRIVER.exists():
        yield Finding("versions", "GPU driver", DRIVER.read_text().splitlines()[0].removeprefix("NVRM version: "))


def placement(device: torch.device, dtype: torch.dtype, *, asked: bool) -> Iterator[Finding]:
    """Device and number format, and why."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name = f"{properties.name}, {format_size(properties.total_memory)}"
        why = "the fastest of a GPU's that loses little"
    else:
        capabilities = torch.cpu.get_capabilities()
        cores = f"{capabilities.get('num_physical_cores', '?')} cores, {torch.get_num_threads()} threads of torch"
        found = [key for key in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "bf16") if capabilities.get(key)]
        name = f"{capabilities.get('cpu_name', platform.processor())}: {cores}; {', '.join(found) or 'no vectors'}"
        native = product_dtype(torch.bfloat16, device) is torch.bfloat16
        why = "this CPU multiplies it natively" if native else "this CPU doesn't multiply bfloat16 natively"
    yield Finding("placement", "device", f"{device} ({name})")
    computed = product_dtype(dtype, device)
    how = "" if computed is dtype else f"; products are computed in {_name(computed)}"
    yield Finding("placement", "dtype", f"{_name(dtype)} ({'asked for' if asked else why}{how})")


def rates(device: torch.device) -> Iterator[Finding]:
    """Of products in each format, and of copies."""
    for name, dtype in DTYPES.items():
        computed = product_dtype(dtype, device)
        note = "" if computed is dtype else f", so that {_name(computed)} is multiplied instead"
        yield Finding("speed", f"products in {name}", f"{product_flops(dtype, device) / 1e9:,.0f} GFLOP/s{note}")
    host = torch.device("cpu")
    ways = {"copies in memory": (device, device)}
    if device.type == "cuda":
        ways |= {"copies to the device": (host, device), "copies from the device": (device, host)}
    for name, way in ways.items():
        yield Finding("speed", name, f"{copy_bytes_per_second(*way) / 2**30:,.1f} GiB/s")


def memory(model: str | None, device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
    """What the model takes at its full length, and what of it fits into what a server takes by default."""
    config = load_config(model or embedded_model_path())
    plan = MemoryPlan(config, dtype, config.max_tokens, device)
    parts = {"weights": plan.weights_bytes, "document": plan.document_bytes, "workspace": plan.workspace_bytes}
    listed = ", ".join(f"{name} {format_size(size)}" for name, size in parts.items())
    yield Finding("memory", f"plan for {plan.tokens:,} tokens", f"{format_size(plan.total_bytes)}: {listed}")
    free = available_memory(device)
    yield Finding("memory", "free", format_size(free))
    fitting = Fitting.of(plan, free // 2, Settings().max_running)
    yield Finding("memory", "longest document in half of it", f"{fitting.longest_tokens:,} tokens")
    yield Finding("memory", "limit", fitting.limit, ok=fitting.longest_tokens > 0)


def computes(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
    """The embedded model, as it would be served, against the same in float32 on the CPU."""
    tokenizer = load_tokenizer(embedded_model_path())
    token_ids = torch.as_tensor(tokenizer.encode(TEXT))
    reference, served = (load_model(embedded_model_path(), *how) for how in (("cpu", "float32"), (device, dtype)))
    with torch.inference_mode():
        logits = served(token_ids).cpu()
        difference = float((logits - reference(token_ids)).abs().max())
    near = difference <= LOGITS_TOLERANCE[dtype]
    yield Finding("embedded model", "logits", f"differ by at most {difference:.2g} from float32's on the CPU", ok=near)
    expected, generated = _next_token(reference, token_ids), _next_token(served, token_ids)
    said = f"{generated}; in float32 on the CPU {expected}"
    yield Finding("embedded model", "next token", said, ok=generated == expected)


def unchecked(device: torch.device) -> Iterator[Finding]:
    """What this run says nothing about."""
    if device.type == "cpu":
        found = torch.cuda.is_available()
        yield Finding("not checked", "GPU", "there is one; try --device cuda" if found else "there is none here")
    yield Finding("not checked", "MODEL", "only its memory was planned: its weights were not loaded")
    yield Finding("not checked", "network", "no port was opened, and no client connected")


def table(findings: list[Finding]) -> Table:
    """The report for people."""
    rows, before = Table("", "", "", show_header=False), None
    marks = {True: "[green]ok[/green] ", False: "[red]wrong[/red] ", None: ""}
    for finding in findings:
        if before not in (None, finding.topic):
            rows.add_section()
        topic = finding.topic if finding.topic != before else ""
        rows.add_row(topic, finding.name, marks[finding.ok] + escape(finding.value))
        before = finding.topic
    return rows


def _next_token(model: ReformerModel, token_ids: torch.Tensor) -> int:
    """What an engine generates after these tokens."""
    engine = Engine(model, memory_bytes=ENGINE_BYTES, max_running=1)
    (token,) = engine.generate(None, token_ids, SamplingParams(max_tokens=1, temperature=0.0))
    return token.id


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
