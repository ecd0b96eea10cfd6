"""Documents in both wire dialects: Anthropic's `document`, OpenAI's `file`, and what is the same in both.

Text in any wrapping is text, which every worker reads. A PDF inside the message has a form in both dialects. All else
(files by id, documents by address, other types) has one only where it came from. Nothing here raises: what cannot be
read is left as it is, for workers of its own dialect.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass

from ..types import ImagePart, Json, OtherPart, Part, TextPart

__all__ = ["FILE_KINDS", "PDF", "Inline", "read_inline", "to_document", "to_file", "to_plain"]

PDF = "application/pdf"
FILE_KINDS = frozenset({"file", "input_file"})
"""OpenAI's, of chat completions and as some clients send them there out of the Responses API."""
_PDF_IN_BASE64 = "JVBERi0"  # `%PDF-`, for clients that send the bare data
_TEXTUAL = frozenset({"application/json", "application/xml", "application/yaml", "application/x-yaml"})
_NAMELESS = "document.pdf"  # OpenAI refuses a file without a name


@dataclass(frozen=True, slots=True, kw_only=True)
class Inline:
    """A document whose content is in the message."""

    media_type: str
    data: str
    """base64"""
    name: str | None = None
    context: str | None = None
    """What the client says about it."""

    @property
    def is_pdf(self) -> bool:
        return self.media_type == PDF


def read_inline(part: OtherPart) -> Inline | None:
    """None: its content is elsewhere, or it is of another kind."""
    if part.kind == "document":
        return _read_document(part.raw)
    return _read_file(_file_of(part)) if part.kind in FILE_KINDS else None


def to_plain(part: OtherPart) -> tuple[Part, ...] | None:
    """As text and images, if that is all it holds."""
    inline = read_inline(part)
    if inline is not None:
        text = _decode(inline)
        return None if text is None else (TextPart(text=_entitle(inline.name, inline.context, text)),)
    source = _object(part.raw, "source") if part.kind == "document" else {}
    title, context = _string(part.raw, "title"), _string(part.raw, "context")
    if source.get("type") == "text" and (text := _string(source, "data")) is not None:
        return (TextPart(text=_entitle(title, context, text)),)
    if source.get("type") != "content":
        return None
    content = source.get("content")
    if isinstance(content, str):
        return (TextPart(text=_entitle(title, context, content)),)
    parts = [_read_block(block) for block in content] if isinstance(content, list) else []
    known = [piece for piece in parts if piece is not None]
    if not known or len(known) < len(parts):
        return None
    head = _entitle(title, context)
    return (*((TextPart(text=head),) if head else ()), *known)


def to_file(part: OtherPart) -> list[Json] | None:
    """As parts of chat completions; None: there is no such form."""
    inline = read_inline(part)
    if inline is not None and inline.is_pdf:
        name = inline.name or _NAMELESS
        name = name if "." in name or part.kind in FILE_KINDS else f"{name}.pdf"
        file = {"filename": name, "file_data": f"data:{PDF};base64,{inline.data}"}
        context = [{"type": "text", "text": inline.context}] if inline.context else []
        return [*context, {"type": "file", "file": file}]
    if part.kind == "document":
        return None
    if part.kind == "input_file":
        return [{"type": "file", "file": {name: value for name, value in _file_of(part).items() if name != "type"}}]
    return [part.raw]


def to_document(part: OtherPart) -> Json | None:
    """As a block of Anthropic's; None: there is no such form."""
    if part.kind == "document":
        return part.raw
    inline = read_inline(part)
    if inline is None or not inline.is_pdf:
        return None
    title = {} if inline.name is None else {"title": inline.name}
    return {"type": "document", "source": {"type": "base64", "media_type": PDF, "data": inline.data}, **title}


def _read_document(raw: Json) -> Inline | None:
    source = _object(raw, "source")
    media_type, data = _string(source, "media_type"), _string(source, "data")
    if source.get("type") != "base64" or media_type is None or data is None:
        return None
    return Inline(media_type=media_type.lower(), data=data, name=_string(raw, "title"), context=_string(raw, "context"))


def _read_file(file: Mapping[str, Json]) -> Inline | None:
    written, name = _string(file, "file_data"), _string(file, "filename")
    if written is None:
        return None
    if written.startswith(_PDF_IN_BASE64):
        return Inline(media_type=PDF, data=written, name=name)
    scheme, _, rest = written.partition(":")
    head, comma, data = rest.partition(",")
    media_type, *others = [field.strip().lower() for field in head.split(";")]
    if scheme.lower() != "data" or not comma or not others or others[-1] != "base64":
        return None
    return Inline(media_type=media_type, data=data, name=name)


def _file_of(part: OtherPart) -> Mapping[str, Json]:
    """Where its fields stand."""
    if part.kind == "input_file":
        return part.raw if isinstance(part.raw, dict) else {}
    return _object(part.raw, "file")


def _read_block(block: Json) -> Part | None:
    if not isinstance(block, dict):
        return None
    if block.get("type") == "text":
        text = _string(block, "text")
        return None if text is None else TextPart(text=text)
    source = _object(block, "source") if block.get("type") == "image" else {}
    url, media_type, data = (_string(source, name) for name in ("url", "media_type", "data"))
    if source.get("type") == "base64" and media_type is not None and data is not None:
        return ImagePart(url=f"data:{media_type};base64,{data}")
    if source.get("type") == "url" and url is not None and url.lower().startswith("https://"):
        return ImagePart(url=url)  # no other schemes: whoever fetches it may reach more than the client may
    return None


def _decode(inline: Inline) -> str | None:
    """Its text; None when it is of another type, or not what it says."""
    media_type = inline.media_type
    if not (media_type.startswith("text/") or media_type in _TEXTUAL or media_type.endswith(("+json", "+xml"))):
        return None
    try:
        return base64.b64decode(inline.data, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


def _entitle(*texts: str | None) -> str:
    return "\n\n".join(text for text in texts if text)


def _object(value: Json, key: str) -> Mapping[str, Json]:
    inner = value.get(key) if isinstance(value, dict) else None
    return inner if isinstance(inner, dict) else {}


def _string(value: Json, key: str) -> str | None:
    inner = value.get(key) if isinstance(value, Mapping) else None
    return inner if isinstance(inner, str) else None
