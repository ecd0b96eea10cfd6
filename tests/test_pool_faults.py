"""Foreign failures become `WorkerError`s: each of the right kind, bounded, and without keys."""

from __future__ import annotations

import inspect
import socket
import ssl
import zlib
from email.utils import formatdate
from time import time
from typing import Any

import aiohttp
import pytest
from aiohttp import client_exceptions, http_exceptions
from hypothesis import given
from hypothesis import strategies as st

from torafugu.errors import WorkerError
from torafugu.pool.faults import FOREIGN, error_of_answer, mapped, redact, retry_after_s

AIOHTTP = [
    kind
    for module in (client_exceptions, http_exceptions)
    for _, kind in inspect.getmembers(module, inspect.isclass)
    if issubclass(kind, Exception) and kind.__module__.startswith("aiohttp")
]


@pytest.mark.parametrize("kind", AIOHTTP, ids=lambda kind: kind.__name__)
def test_every_exception_of_the_http_library_is_mapped(kind: type[Exception]) -> None:
    """Whatever aiohttp's client raises is caught by FOREIGN and becomes a WorkerError."""
    assert issubclass(kind, FOREIGN)
    error = kind.__new__(kind)
    error.args = ("detail",)
    for name in ("message", "status", "_url", "_description", "request_info", "_conn_key", "_certificate_error"):
        try:
            setattr(error, name, "detail")
        except AttributeError:
            continue
    if isinstance(error, client_exceptions.ClientConnectorError):
        error.strerror = "detail"
    if isinstance(error, client_exceptions.ClientResponseError):
        error.request_info = aiohttp.RequestInfo(None, "POST", {}, None)  # type: ignore[arg-type]  # only printed
    assert mapped(error, worker="w").code in (
        "timeout_connect",
        "timeout_idle",
        "connect_failed",
        "malformed",
        "truncated",
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (aiohttp.ConnectionTimeoutError("slow"), "timeout_connect"),
        (aiohttp.SocketTimeoutError("slow"), "timeout_idle"),
        (aiohttp.ServerDisconnectedError(), "truncated"),
        (aiohttp.ClientPayloadError("cut"), "truncated"),
        (aiohttp.ClientOSError(104, "reset"), "truncated"),
        (aiohttp.InvalidURL("http://"), "connect_failed"),
        (ssl.SSLCertVerificationError("bad certificate"), "connect_failed"),
        (socket.gaierror(-2, "no such name"), "connect_failed"),
        (ConnectionRefusedError(111, "refused"), "connect_failed"),
        (ConnectionResetError(104, "reset"), "truncated"),
        (zlib.error("bad data"), "malformed"),
        (TimeoutError(), "timeout_idle"),
    ],
)
def test_the_kind_of_an_exception_decides_its_code(error: Exception, code: str) -> None:
    """A failure to connect costs nothing and is told from an answer that broke, whose cost is unknown."""
    assert mapped(error, worker="w").code == code


def answer(status: int | None, body: Any, **headers: str) -> WorkerError:
    return error_of_answer(
        body, worker="w", status=status, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )


def said(message: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, **fields}}


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (429, said("slow down", type="rate_limit_error"), "rate_limited"),
        (429, said("no credit", code="insufficient_quota", type="insufficient_quota"), "unavailable"),
        (402, said("Insufficient Balance"), "unavailable"),
        (401, said("Incorrect API key provided"), "auth"),
        (403, said("not allowed"), "auth"),
        (400, [said("API key not valid. Please pass a valid API key.", code=400)], "auth"),
        (403, said("Your input was flagged", code=403), "content_filter"),
        (400, said("filtered", code="content_filter"), "content_filter"),
        (404, said("no such model", code="model_not_found"), "rejected"),
        (400, said("temperature must be at most 2"), "rejected"),
        (400, said("max_tokens is too large: 50000. This model supports at most 16384 tokens"), "rejected"),
        (422, {"detail": [{"loc": ["body"], "msg": "field required"}]}, "rejected"),
        (413, said("Request too large for model on tokens per minute", code="rate_limit_exceeded"), "rejected"),
        (500, "oops", "server_error"),
        (502, "<html>bad gateway</html>", "server_error"),
        (503, said("loading model"), "overloaded"),
        (529, said("Overloaded", type="overloaded_error"), "overloaded"),
        (307, "elsewhere", "rejected"),
        (None, said("Overloaded", type="overloaded_error"), "overloaded"),
        (None, said("Rate limit", code=429), "rate_limited"),
        (None, said("boom", code=502), "server_error"),
        (None, said("boom"), "server_error"),
        (None, {"error": "boom"}, "server_error"),
        # context overflow, as it is written by: OpenAI, vLLM, llama.cpp, Anthropic (two), Gemini, Mistral, xAI, TGI
        (400, said("too long", code="context_length_exceeded"), "context_overflow"),
        (400, {"object": "error", "message": "This model's maximum context length is 4096 tokens"}, "context_overflow"),
        (
            400,
            said("the request exceeds the available context size", type="exceed_context_size_error"),
            "context_overflow",
        ),
        (400, said("prompt is too long: 208310 tokens > 200000 maximum"), "context_overflow"),
        (400, said("input length and `max_tokens` exceed context limit"), "context_overflow"),
        (
            400,
            [said("The input token count (1200000) exceeds the maximum number of tokens allowed")],
            "context_overflow",
        ),
        (400, {"message": "too large for model with 32768 maximum context length", "code": "3051"}, "context_overflow"),
        (400, said("This model's maximum prompt length is 131072 but the request contains 537812"), "context_overflow"),
        (422, said("`inputs` tokens + `max_new_tokens` must be <= 8193"), "context_overflow"),
        (None, said("prompt is too long", type="invalid_request_error"), "context_overflow"),
    ],
)
def test_a_refusal_becomes_the_right_failure(status: int | None, body: Any, code: str) -> None:
    """Status and the provider's own words decide the code, for every shape in which providers write errors."""
    assert answer(status, body).code == code


def test_a_refused_key_is_explained_to_the_operator_only() -> None:
    """The provider's text on a refused key is a note on the error, not in the message that clients may see."""
    error = answer(401, said("Incorrect API key provided for org acme"))
    assert "acme" not in error.message
    assert any("acme" in note for note in error.__notes__)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "-3"}, 0.0),
        ({}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e999"}, None),
    ],
)
def test_a_retry_after_is_read_in_seconds(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds and milliseconds are understood; what is unreadable is unknown."""
    assert retry_after_s(headers) == seconds


def test_a_retry_after_may_be_a_date() -> None:
    """A date is the time until then."""
    seconds = retry_after_s({"retry-after": formatdate(time() + 30, usegmt=True)})
    assert seconds is not None
    assert 25 < seconds <= 30


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: sk-proj-AbCdEf0123456789.",
        "Authorization: Bearer AbCdEf0123456789",
        'headers {"x-api-key": "AbCdEf0123456789"}',
        "https://user:AbCdEf0123456789@host/v1",
        "key AIzaAbCdEf0123456789 is not valid",
        "gsk_AbCdEf0123456789",
        "the secret AbCdEf0123456789 itself",
    ],
)
def test_keys_are_taken_out(text: str) -> None:
    """What looks like a key, and the worker's own key whatever it looks like, is not quoted."""
    quoted = redact(text, secrets=["AbCdEf0123456789"] if "secret" in text else [])
    assert "AbCdEf0123456789" not in quoted
    assert "[key]" in quoted


@pytest.mark.parametrize(
    "text",
    [
        '{"error": "what is Ab/Cd+Ef0123456789',
        r'{"error": "what is Ab\/Cd+Ef0123456789"',
        "/v1?key=Ab%2FCd%2BEf0123456789",
        "cut short: Ab/Cd+Ef01234",
        r"cut short: Ab\/Cd+Ef01234",
    ],
)
def test_a_key_is_taken_out_however_it_is_written(text: str) -> None:
    """As JSON or a URL escapes it, and where the quoted sample ends in the middle of it."""
    quoted = redact(text, secrets=["Ab/Cd+Ef0123456789"])
    assert "Ef012" not in quoted
    assert quoted.count("[key]") == 1


@given(st.text(max_size=3000), st.text("abcXYZ019_-", min_size=4, max_size=40))
def test_quotes_are_bounded_single_lines_without_the_secret(text: str, secret: str) -> None:
    """Any text becomes one printable line of at most 2 KB that does not hold the secret."""
    quoted = redact(f"{text}{secret}{text}", secrets=[secret])
    assert len(quoted.encode()) <= 2048
    assert quoted.isprintable()
    assert secret not in quoted or secret in "[key]?…"


def test_ordinary_words_are_left_alone() -> None:
    """An explanation stays readable."""
    text = "organization acme: risk-assessment of 'max_completion_tokens' failed"
    assert redact(text) == text
