"""Errors as users of the command see them."""

import math

from reformer_client import errors


def explain(error: errors.ReformerError, server: str) -> str:
    """What went wrong and what to do, in one line."""
    untold = [each for each in error.field_violations if each.description not in error.message]
    told = "; ".join(f"{each.field}: {each.description}" for each in untold)
    message = " ".join((f"{error.message} ({told})" if told else error.message).split())
    hint = _hint(error, server)
    return f"{message.rstrip('.')}. {hint}" if hint else message


def _hint(error: errors.ReformerError, server: str) -> str:
    match error:
        case errors.UnavailableError() if error.reason is None:  # else a server has said so
            return (
                f"Is a server running at {server}? `reformer serve` starts one, --server names another, "
                "--tls is for one that speaks TLS."
            )
        case errors.DeadlineExceededError():
            return "Allow more with --timeout SECONDS."
        case errors.NotFoundError():
            return "`reformer documents list` shows what is there."
        case errors.AlreadyExistsError():
            return "Choose another --id, or delete the document first."
        case errors.ResourceExhaustedError(metadata={"fits_when_idle": "False"}):
            return "That never fits this server: give it more --memory; `reformer plan` says how much."
        case errors.ResourceExhaustedError(retry_after_seconds=None):
            return "Delete documents that are not needed, or try again later."
        case errors.ResourceExhaustedError():
            return f"Try again in {math.ceil(error.retry_after_seconds or 0)} s."
        case errors.UnauthenticatedError():
            return "Pass a valid token: --token, or REFORMER_TOKEN in the environment."
        case errors.PermissionDeniedError():
            return "Pass a token with --token, or another certificate with --tls-cert and --tls-key."
        case errors.UnimplementedError():
            return f"Does a Reformer server of this version run at {server}?"
        case errors.InternalError() | errors.UnknownError():
            return f"The server's log says more about request {error.request_id or 'unknown'}."
        case _:
            return ""
