"""The three dialects behind one seam: chat completions, responses, messages. Their formats are in a file each."""

from __future__ import annotations

from dataclasses import dataclass

from ..orchestrate import Run
from ..types import Reply
from . import messages, messages_answer, responses, responses_answer
from .auth import Client
from .chat import Chat, Chunks, parse_chat
from .chat import run_to_body as chat_to_body
from .dialect import Frames, Parsed
from .errors import HttpError
from .stored import StoredResponses

__all__ = ["ChatDialect", "MessagesDialect", "ResponsesDialect"]


@dataclass(frozen=True, slots=True)
class _ChatForm:
    chat: Chat

    def to_frames(self, *, run_id: str, created: int) -> Frames:
        return Chunks(
            run_id=run_id,
            created=created,
            model=self.chat.request.model,
            include_usage=self.chat.include_usage,
            toolbox=self.chat.toolbox,
        )

    def to_body(self, run: Run, reply: Reply, *, created: int, policy: str) -> bytes:
        return chat_to_body(run, reply, created=created, policy=policy, toolbox=self.chat.toolbox)


class ChatDialect:
    """POST /v1/chat/completions"""

    async def read(self, body: bytes, client: Client) -> Parsed:
        del client
        chat = parse_chat(body)
        return Parsed(request=chat.request, is_stream=chat.is_stream, form=_ChatForm(chat), session=chat.cache_key)

    def error_body(self, problem: HttpError, *, run_id: str | None) -> bytes:
        del run_id
        return problem.body


@dataclass(frozen=True, slots=True)
class _ResponsesForm:
    asked: responses.Responses

    def to_frames(self, *, run_id: str, created: int) -> Frames:
        return responses_answer.ResponsesEvents(self.asked, run_id=run_id, created=created)

    def to_body(self, run: Run, reply: Reply, *, created: int, policy: str) -> bytes:
        return responses_answer.run_to_body(run, reply, asked=self.asked, created=created, policy=policy)


class ResponsesDialect:
    """POST /v1/responses"""

    def __init__(self, stored: StoredResponses) -> None:
        self._stored = stored

    async def read(self, body: bytes, client: Client) -> Parsed:
        draft = responses.read_responses(body)
        earlier = await self._stored.find_items(draft.previous_response_id, client)
        referred = await self._stored.find_referred(draft.item_ids, client)
        asked = draft.parse(earlier=earlier, stored=referred)
        return Parsed(
            request=asked.request,
            is_stream=asked.is_stream,
            form=_ResponsesForm(asked),
            session=asked.cache_key,
            wire=self._stored.to_wire(asked) if asked.is_stored else None,
        )

    def error_body(self, problem: HttpError, *, run_id: str | None) -> bytes:
        del run_id
        return problem.body


@dataclass(frozen=True, slots=True)
class _MessagesForm:
    asked: messages.MessagesRequest

    def to_frames(self, *, run_id: str, created: int) -> Frames:
        del created  # this dialect tells no time
        return messages_answer.MessageEvents(run_id=run_id, asked=self.asked)

    def to_body(self, run: Run, reply: Reply, *, created: int, policy: str) -> bytes:
        del created
        return messages_answer.run_to_body(run, reply, asked=self.asked, policy=policy)


class MessagesDialect:
    """POST /v1/messages"""

    async def read(self, body: bytes, client: Client) -> Parsed:
        del client
        asked = messages.parse_messages(body)
        return Parsed(
            request=asked.request, is_stream=asked.is_stream, form=_MessagesForm(asked), session=asked.session
        )

    def error_body(self, problem: HttpError, *, run_id: str | None) -> bytes:
        return messages_answer.error_body(problem, request_id=run_id)
