"""What the suites share: raw requests to the server, cases, and how they are told. Standard library only."""

from __future__ import annotations

import http.client
import json
import os
import sys
import traceback
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["PIXEL_PNG", "Answer", "Case", "Endpoint", "run_case", "say", "tell"]

Json = Any
PIXEL_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
"""The smallest image, as base64."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What came of one case."""

    name: str
    problem: str | None
    """None: it passed."""
    explained: str | None = None
    """Why it cannot pass."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes
    is_cut: bool
    """The connection broke before the end of the body."""

    @property
    def json(self) -> Json:
        return json.loads(self.body)

    @property
    def events(self) -> list[Json]:
        """Data of a stream's events; `[DONE]` as it is."""
        lines = [line[6:] for line in self.body.decode().splitlines() if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """The server's root, and a key."""

    url: str
    key: str

    @staticmethod
    def from_environ() -> Endpoint:
        return Endpoint(url=os.environ["FUGU_URL"], key=os.environ["FUGU_API_KEY"])

    def post(self, path: str, body: Json) -> Answer:
        return self.request("POST", path, json.dumps(body).encode())

    def get(self, path: str) -> Answer:
        return self.request("GET", path, None)

    def request(self, method: str, path: str, data: bytes | None) -> Answer:
        parts = urllib.parse.urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        connection.request(method, path, data, headers)
        response = connection.getresponse()
        try:
            content, is_cut = response.read(), False
        except http.client.IncompleteRead as broken:
            content, is_cut = broken.partial, True
        connection.close()
        told = {name.lower(): value for name, value in response.getheaders()}
        return Answer(status=response.status, headers=told, body=content, is_cut=is_cut)


def say(text: str = "", **fields: Json) -> str:
    """A question that tells the oracle what to answer."""
    return f"Please. [[{json.dumps({'text': text, **fields})}]]"


def run_case(name: str, check: Callable[[], None], explained: str | None = None) -> Case:
    try:
        check()
    except Exception as error:  # noqa: BLE001  # the boundary: one case, whatever went wrong in it
        where = traceback.extract_tb(error.__traceback__)[-1]
        problem = f"{type(error).__name__}: {str(error) or where.line}"
        return Case(name=name, problem=" ".join(problem.split())[:600], explained=explained)
    return Case(name=name, problem=None)


def tell(cases: Sequence[Case]) -> None:
    """One JSON object for whoever started the suite."""
    json.dump([asdict(case) for case in cases], sys.stdout)
