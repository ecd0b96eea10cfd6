"""The one place that turns errors into statuses: an error's owner decides, its code refines.

Dialects shape what is told. Every 429 and 503 carries Retry-After, because some clients give up at once without it.
Faults of our own and of our credentials are named but not described: their text belongs to the operator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

from ..errors import FuguError, PlanError, RequestError, StoreError, WorkerError

__all__ = ["BudgetEndedError", "HttpError", "OverloadedError", "create_error", "error_to_http"]

_STORE_RETRY_S = 5.0
# (status, code on the wire); codes that clients act upon are spelt as OpenAI spells them.
_BY_WORKER_CODE: dict[str, tuple[int, str]] = {
    "rate_limited": (429, "rate_limit_exceeded"),
    "overloaded": (503, "overloaded"),
    "unavailable": (503, "unavailable"),
    "timeout_connect": (504, "timeout_connect"),
    "timeout_first_token": (504, "timeout_first_token"),
    "timeout_idle": (504, "timeout_idle"),
    "timeout_total": (504, "timeout_total"),
    "context_overflow": (400, "context_length_exceeded"),
    "rejected": (400, "rejected"),
    "content_filter": (400, "content_filter"),
    "auth": (502, "worker_auth"),
    "server_error": (502, "server_error"),
    "connect_failed": (502, "connect_failed"),
    "truncated": (502, "truncated"),
    "malformed": (502, "malformed"),
    "too_large": (502, "too_large"),
    "empty": (502, "empty"),
}
_TYPE_BY_STATUS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class OverloadedError(FuguError):
    """This server takes no work now: too much in flight, or it is stopping."""

    default_code = "overloaded"


class BudgetEndedError(FuguError):
    """The run's budget ended before any worker replied, so there is nothing to answer with."""

    default_code = "budget_exhausted"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpError:
    """An error as it goes out."""

    status: int
    headers: list[tuple[bytes, bytes]]
    code: str
    message: str
    param: str | None = None

    @property
    def body(self) -> bytes:
        """OpenAI's error object; the same bytes serve as the error frame of a stream of chat completions."""
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _TYPE_BY_STATUS.get(self.status, default)
        error = {"message": self.message, "type": kind, "code": self.code, "param": self.param}
        return msgspec.json.encode({"error": error})


def error_to_http(error: FuguError, *, run_id: str | None = None) -> HttpError:
    """Whose fault it is decides the status; see `torafugu.errors`."""
    named = f" (run {run_id})" if run_id else ""
    if isinstance(error, RequestError):
        return create_error(error.status, error.code, error.message, param=error.param)
    if isinstance(error, WorkerError):
        return _worker_error_to_http(error)
    if isinstance(error, PlanError):
        return create_error(502, error.code, f"{error.message}{named}", is_final=True)
    if isinstance(error, StoreError):
        message = f"the record cannot be written, so work is refused{named}: try again later"
        return create_error(503, error.code, message, retry_after_s=_STORE_RETRY_S)
    if isinstance(error, OverloadedError):
        return create_error(503, error.code, error.message, retry_after_s=1.0)
    if isinstance(error, BudgetEndedError):
        return create_error(504, error.code, f"{error.message}{named}", is_final=True)
    return create_error(500, "internal_error", f"a fault of this server{named}: its log has the trace")


def create_error(
    status: int,
    code: str,
    message: str,
    *,
    param: str | None = None,
    retry_after_s: float | None = None,
    is_final: bool = False,
) -> HttpError:
    """`is_final` tells the clients that look for it (OpenAI's SDKs) not to repeat the request."""
    headers = [(b"content-type", b"application/json")]
    if retry_after_s is not None:
        seconds = max(1, math.ceil(retry_after_s)) if math.isfinite(retry_after_s) else 60
        headers.append((b"retry-after", str(seconds).encode()))
    if is_final:
        headers.append((b"x-should-retry", b"false"))
    return HttpError(status=status, headers=headers, code=code, message=message, param=param)


def _worker_error_to_http(error: WorkerError) -> HttpError:
    status, code = _BY_WORKER_CODE[error.code]
    if error.code == "auth":
        message = f"worker {error.worker!r} refused this server's credentials: its operator has to look"
        return create_error(status, code, message, is_final=True)
    retry_after_s = (error.retry_after_s or 1.0) if status in (429, 503) else None
    return create_error(status, code, error.message, retry_after_s=retry_after_s)
