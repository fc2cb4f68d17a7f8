"""What fits in a server's memory, and what limits it: for `reformer plan` and `reformer doctor`."""

from dataclasses import dataclass

from reformer_core import MemoryPlan
from reformer_core.errors import OutOfMemoryError
from reformer_server.units import format_size


@dataclass(frozen=True)
class Fitting:
    """What a server with so much memory holds of documents of one length."""

    memory_bytes: int
    tokens: int
    """Length of the documents."""
    longest_tokens: int
    """Of the longest document that can be read at all; 0: not even one token."""
    longest_text_tokens: int
    """Of the longest text that can be scored, if `--max-text` keeps the workspace for it; 0: not even one token."""
    documents: int
    """How many of them it holds together, their tokens generated elsewhere."""
    sessions: int
    """How many generations run together: at most the setting, at most those that there are pages for beside one
    document."""
    limit: str
    """In plain words, what there would have to be more of."""

    @classmethod
    def of(cls, plan: MemoryPlan, memory_bytes: int, max_running: int) -> "Fitting":
        """For documents of the plan's length.

        Args:
            memory_bytes: for everything, the server's `--memory`.
            max_running: the server's `--max-running`.
        """
        longest = longest_within(plan, memory_bytes, max_running)
        pages_bytes = 0 if longest is None else memory_bytes - longest.fixed_bytes(max_running)
        documents = pages_bytes // plan.page_bytes if longest and longest.tokens >= plan.tokens else 0
        sessions = 0
        if longest is not None and documents:
            room = (pages_bytes - plan.page_bytes) // plan.tail_bytes if plan.tail_bytes else max_running
            sessions = min(max_running, room)
        limit = _limit(plan, longest, memory_bytes, max_running)
        longest_tokens = longest.tokens if longest else 0
        longest_text_tokens = plan.longest_text(memory_bytes, max_running)
        return cls(memory_bytes, plan.tokens, longest_tokens, longest_text_tokens, documents, sessions, limit)


def longest_within(plan: MemoryPlan, memory_bytes: int, max_running: int) -> MemoryPlan | None:
    """The plan for the longest document that such a server reads; None if it reads none."""
    try:
        return MemoryPlan.longest_within(memory_bytes, plan.config, plan.dtype, max_running, plan.device)
    except OutOfMemoryError:
        return None


def _limit(plan: MemoryPlan, longest: MemoryPlan | None, memory_bytes: int, max_running: int) -> str:
    if longest is None:
        needed = MemoryPlan(plan.config, plan.dtype, 1, plan.device).serving_bytes(max_running)
        return (
            f"weights, {max_running} sessions and the shortest document take {format_size(needed)}: "
            "give more memory, or lower --max-running"
        )
    if longest.tokens < plan.tokens:
        missing = plan.serving_bytes(max_running) - memory_bytes
        return f"{format_size(missing)} are missing; {longest.tokens:,} tokens would fit"
    parts = {
        "pages": memory_bytes - longest.fixed_bytes(max_running),
        "weights": longest.weights_bytes,
        "workspace, for reading documents": sum(longest.workspaces),
        "sessions and their step": max_running * longest.session_bytes + longest.step_bytes(max_running),
    }
    name, most = max(parts.items(), key=lambda part: part[1])
    share = f"most of the memory is for {name} ({format_size(most)})"
    if longest.tokens == plan.config.max_tokens:
        return f"no document can be longer than the model's {plan.config.max_tokens:,} positions; {share}"
    return f"{longest.tokens:,} tokens are the longest document that can be read; {share}"
