"""Documents to scores, one after the other, by the engine of the server. What can't be scored has an error instead."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reformer_core import Engine, MemoryPlan, Tokenizer
from reformer_core.errors import OutOfMemoryError, ReformerError, lacks_memory
from reformer_server.served_model import ServedModel
from reformer_server.status import row_of

COLUMNS = {
    "tokens": pa.int64(),
    "nats": pa.float64(),
    "bits_per_byte": pa.float64(),
    "perplexity": pa.float64(),
    "error": pa.string(),
}
LOGPROBS = {"logprobs": pa.large_list(pa.float32())}


@dataclass(frozen=True)
class Score:
    """A row of the result. What isn't known is None: all but `error` if there is one; a single token's perplexity."""

    tokens: int | None = None
    nats: float | None = None
    bits_per_byte: float | None = None
    perplexity: float | None = None
    error: str | None = None
    logprobs: npt.NDArray[np.float32] | None = None


class Scorer:
    """One engine and its tokenizer."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, *, with_logprobs: bool) -> None:
        self._engine, self._tokenizer, self._with_logprobs = engine, tokenizer, with_logprobs

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """Names and types of the result."""
        return result_columns(with_logprobs=self._with_logprobs)

    def table(self, documents: pa.Table, text_column: str) -> pa.Table:
        """All other columns of the documents, and their scores."""
        texts = documents.column(text_column)
        if pa.types.is_dictionary(texts.type):
            texts = texts.cast(texts.type.value_type)
        scores = [self.score(text.as_py()) for text in texts.cast(pa.large_binary())]  # bytes: it may be no UTF-8
        table = documents.drop_columns([text_column])
        for name, kind in self.columns.items():
            table = table.append_column(name, pa.array([getattr(score, name) for score in scores], kind))
        return table

    def score(self, text: bytes | None) -> Score:
        """One document's. Raises what is nobody's doing, such as a lost device."""
        if text is None:
            return Score(error="NO_TEXT: the document is null")
        try:
            ids = self._tokenizer.encode(text)
            logprobs = self._engine.score(ids)
        except Exception as error:
            if not isinstance(error, ReformerError) and not lacks_memory(error):
                raise
            row = row_of(error)
            return Score(error=f"{row.reason if row else type(error).__name__}: {error}")
        nats = -float(logprobs.double().nansum())
        # As `reformer score` has it: bytes of the text that the tokens stand for; of a picture, values.
        size = sum(map(len, self._tokenizer.decoder().spell(ids.tolist()))) or len(ids)
        return Score(
            tokens=len(ids),
            nats=nats,
            bits_per_byte=nats / math.log(2) / size,
            perplexity=math.exp(nats / (len(ids) - 1)) if len(ids) > 1 else None,
            logprobs=logprobs.numpy() if self._with_logprobs else None,
        )


def result_columns(*, with_logprobs: bool) -> dict[str, pa.DataType]:
    """Names and types of what is added to a document's own columns."""
    return COLUMNS | (LOGPROBS if with_logprobs else {})


def scoring_engine(model: ServedModel, memory_bytes: int) -> Engine:
    """An engine for the longest text that this memory is enough for, and no larger than that needs.

    Raises:
        OutOfMemoryError: it isn't enough for one token.
    """
    plan = MemoryPlan(model.model.config, model.model.dtype, 1, model.model.device)
    longest = plan.longest_text(memory_bytes, sessions=1)
    if longest == 0:
        raise OutOfMemoryError(plan.scoring_bytes(sessions=1), memory_bytes, fits_when_idle=False)
    needed = MemoryPlan(plan.config, plan.dtype, longest, plan.device).scoring_bytes(sessions=1)
    return Engine(model.model, memory_bytes=needed, max_running=1, max_text_tokens=longest)
