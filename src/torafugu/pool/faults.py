"""Which `WorkerError` a foreign failure is: an HTTP status, a provider's error object, an exception of aiohttp, the OS.

The one place where foreign errors become ours. Invariant: text that a provider wrote leaves here bounded and without
keys, and never for a refused key (401, 403): that text goes to the operator, as a note on the error.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
import zlib
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from urllib.parse import quote as percent_encode

import aiohttp
import msgspec
from aiohttp import client_exceptions as http_exceptions
from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError

from ..errors import WorkerCode, WorkerError
from ..types import Json

__all__ = ["BAD_JSON", "FOREIGN", "error_of_answer", "mapped", "redact", "retry_after_s"]

MAX_QUOTE_CHARS = 500
"""Of a provider's text, quoted in a message: enough for its own explanation, far below what would swell the record."""

_CODES: tuple[tuple[type[BaseException], WorkerCode], ...] = (
    # The first class that fits decides, so subclasses stand before their bases.
    (http_exceptions.ConnectionTimeoutError, "timeout_connect"),
    (http_exceptions.ServerTimeoutError, "timeout_idle"),
    (http_exceptions.ClientConnectorError, "connect_failed"),  # refused, DNS, TLS, certificates, proxies
    (http_exceptions.ServerFingerprintMismatch, "connect_failed"),
    (http_exceptions.ClientHttpProxyError, "connect_failed"),
    (ssl.SSLError, "connect_failed"),
    (socket.gaierror, "connect_failed"),
    (ConnectionRefusedError, "connect_failed"),
    (http_exceptions.InvalidURL, "connect_failed"),
    (http_exceptions.NonHttpUrlClientError, "connect_failed"),
    (http_exceptions.RedirectClientError, "connect_failed"),
    (http_exceptions.ClientResponseError, "malformed"),
    (http_exceptions.WSMessageTypeError, "malformed"),
    (HttpProcessingError, "malformed"),
    (zlib.error, "malformed"),
    (http_exceptions.ClientPayloadError, "truncated"),
    (http_exceptions.UploadAbortedError, "truncated"),
    (http_exceptions.ClientConnectionError, "truncated"),  # reset or closed after the request had left
    (http_exceptions.ClientError, "truncated"),
    (TimeoutError, "timeout_idle"),
    (OSError, "truncated"),
)
FOREIGN: tuple[type[BaseException], ...] = (
    aiohttp.ClientError,
    http_exceptions.WSMessageTypeError,
    HttpProcessingError,
    zlib.error,
    OSError,  # ssl.SSLError, socket.gaierror and TimeoutError are among them
)
"""What the HTTP library may let through, for `except FOREIGN`."""


BAD_JSON: tuple[type[Exception], ...] = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding hostile JSON raises; the last of deep nesting."""


def mapped(error: BaseException, *, worker: str, secrets: Iterable[str] = ()) -> WorkerError:
    """An exception of the HTTP library as ours. Raise it `from None`: aiohttp's own holds the request's headers."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), None)
    assert code is not None, f"{type(error).__name__} is not among FOREIGN"
    if isinstance(error.__cause__, ContentEncodingError):
        code = "malformed"  # not cut short: the bytes are not what Content-Encoding says
    detail = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return WorkerError(
        f"worker {worker!r}: {_WORDS[code]}: {type(error).__name__}: {redact(detail, secrets)}",
        worker=worker,
        code=code,
    )


_WORDS: Mapping[WorkerCode, str] = {
    "timeout_connect": "no connection in time",
    "timeout_idle": "nothing arrived in time",
    "connect_failed": "cannot connect",
    "malformed": "the answer is not understood",
    "truncated": "the connection broke before the answer was complete",
}

_STATUS: Mapping[int, WorkerCode] = {
    401: "auth",
    402: "unavailable",  # no credit: the operator's to mend, and nothing a retry helps
    403: "auth",
    408: "overloaded",
    429: "rate_limited",
    503: "overloaded",
    529: "overloaded",
}
# What providers write into an error's `code` or `type`. It is looked at before the status, because a stream's errors
# have none, and because some providers answer 400 or 429 for everything.
_WRITTEN: Mapping[str, WorkerCode] = {
    "context_length_exceeded": "context_overflow",
    "exceed_context_size_error": "context_overflow",
    "content_filter": "content_filter",
    "content_policy_violation": "content_filter",
    "insufficient_quota": "unavailable",
    "billing_error": "unavailable",
    "invalid_api_key": "auth",
    "authentication_error": "auth",
    "permission_error": "auth",
    "rate_limit_error": "rate_limited",
    "rate_limit_exceeded": "rate_limited",
    "overloaded_error": "overloaded",
    "server_is_overloaded": "overloaded",
    "api_error": "server_error",
    "server_error": "server_error",
    "timeout_error": "server_error",
    "invalid_request_error": "rejected",
    "not_found_error": "rejected",
    "request_too_large": "rejected",
}
_MAY_BE_OVERFLOW = frozenset({400, 413, 422})
_OVERFLOW = re.compile(
    r"context.?(length|window|limit|size)|prompt is too long|input is too long|too many (input )?tokens"
    r"|input token count|reduce the length of the (messages|prompt|input)|maximum.{0,40}tokens.{0,40}(exceed|request)"
    r"|maximum prompt length|tokens.{0,40}must be <=|longer than the (model|maximum)",
    re.IGNORECASE,
)
_FLAGGED = re.compile(r"flagged|moderation|content (policy|management)", re.IGNORECASE)
_BAD_KEY = re.compile(r"api key not valid|invalid api key|incorrect api key", re.IGNORECASE)  # Gemini says so with 400


def error_of_answer(
    body: Json,
    *,
    worker: str,
    status: int | None,
    headers: Mapping[str, str] | None = None,
    secrets: Iterable[str] = (),
) -> WorkerError:
    """A provider's refusal as ours. `body` is its JSON, or its text where it is none; no `status` inside a stream."""
    written, text = _written(body)
    status = status or _status_written(written)
    code = _code(status, written, text)
    quote = redact(text, secrets)
    where = f"worker {worker!r}: " + (f"status {status}" if status else "error in its stream")
    if code == "auth":
        error = WorkerError(f"{where}: the provider refuses the key", worker=worker, code=code)
        error.add_note(f"provider: {quote}")
        return error
    return WorkerError(
        f"{where}: {quote or 'no explanation'}",
        worker=worker,
        code=code,
        retry_after_s=retry_after_s(headers) if headers else None,
    )


def _written(body: Json) -> tuple[tuple[str, ...], str]:
    """(codes and types, the explanation), from any of the shapes that providers use."""
    if isinstance(body, list) and body:  # Gemini wraps its error in a list
        body = body[0]
    if not isinstance(body, dict):
        return (), body if isinstance(body, str) else ""
    inner = body.get("error")
    fields = inner if isinstance(inner, dict) else body
    codes = tuple(str(fields[name]) for name in ("code", "type") if fields.get(name) is not None)
    text = inner if isinstance(inner, str) else fields.get("message") or fields.get("detail") or ""
    return codes, text if isinstance(text, str) else str(text)


def _status_written(written: tuple[str, ...]) -> int | None:
    """OpenRouter and vLLM write the HTTP status as the error's code, also inside a stream or a 200."""
    return next((int(code) for code in written if len(code) == 3 and code.isdecimal() and code >= "400"), None)


def _code(status: int | None, written: tuple[str, ...], text: str) -> WorkerCode:
    named: list[WorkerCode] = [_WRITTEN[name] for name in written if name in _WRITTEN]
    may_be_overflow = status in _MAY_BE_OVERFLOW or (status is None and "rejected" in named)
    if "context_overflow" in named or (may_be_overflow and _OVERFLOW.search(text)):
        return "context_overflow"
    if status == 403 and _FLAGGED.search(text):
        return "content_filter"
    if status == 400 and _BAD_KEY.search(text):
        return "auth"
    if status is None:
        return named[0] if named else "server_error"
    if status == 429 and "unavailable" in named:
        return "unavailable"  # no credit left: waiting would not help
    if status == 400 and named:  # some answer 400 to everything
        return next((code for code in named if code != "rejected"), "rejected")
    return _code_of_status(status)


def _code_of_status(status: int) -> WorkerCode:
    if status in _STATUS:
        return _STATUS[status]
    return "server_error" if status >= 500 else "rejected"


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that a provider asks us to wait; None when it does not say, or says it unreadably."""
    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1e3
        elif "retry-after" not in headers:
            return None
        elif headers["retry-after"].strip()[:1].isalpha():  # Wed, 21 Oct 2026 07:28:00 GMT
            seconds = parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time()
        else:
            seconds = float(headers["retry-after"])
    except (ValueError, OverflowError):
        return None
    return max(0.0, seconds) if seconds < float("inf") else None  # also refuses NaN


_SECRETS = re.compile(
    r"(?i:\bbearer\s+\S+|\b(?:authorization|x-api-key|api[-_ ]?key)\b[\"']?\s*[:=]\s*[\"']?(?:bearer\s+)?\S+)"
    r"|\b(?:(?:sk|pk|rk|gsk|xai|r8|hf|ghp|csk)[-_]|AIza|AKIA)[A-Za-z0-9*_-]{8,}"
    r"|(?<=://)[^/@\s]+@"
)


_TELLING_CHARS = 8
"""Fewer characters of a key tell nothing: they are the provider's prefix, or happen to stand there."""


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` in one line, bounded, without `secrets` and without what looks like a key."""
    text = text[: 64 * 1024]
    for secret in secrets:
        text = _without(secret, text)
    text = _SECRETS.sub("[key]", text)
    text = " ".join(text.split())
    text = "".join(char if char.isprintable() else "?" for char in text[: MAX_QUOTE_CHARS + 1])
    return text if len(text) <= MAX_QUOTE_CHARS else text[: MAX_QUOTE_CHARS - 1] + "…"


def _without(secret: str, text: str) -> str:
    """Also as JSON and URLs may write it, and where the sample that was quoted ends within it."""
    for written in dict.fromkeys((secret, secret.replace("/", "\\/"), percent_encode(secret, safe=""))):
        text = text.replace(written, "[key]")
        for length in range(len(written) - 1, _TELLING_CHARS - 1, -1):
            if text.endswith(written[:length]):
                text = text[:-length] + "[key]"
                break
    return text
