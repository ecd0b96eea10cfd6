"""Which encoder a trained policy reads with, as a configuration says it and as the policy's card keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..config import read_table
from ..errors import ConfigError
from .encoder import MiniLM, Reading
from .huggingface import HuggingFaceConfig, HuggingFaceEncoder
from .minilm_numpy import PAPER_LAYERS, SvfMiniLM

__all__ = ["EncoderConfig", "open_encoder", "read_encoder_config"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """Which encoder reads the transcript; it stands on the head's card."""

    kind: Literal["minilm", "minilm-svf", "huggingface"] = "minilm-svf"
    reading: Reading = "mean"
    """Of the MiniLMs; a Hugging Face model has its own."""
    layers: tuple[int, ...] = PAPER_LAYERS
    """Of minilm-svf: whose matrices are scaled."""
    huggingface: HuggingFaceConfig | None = None

    def __post_init__(self) -> None:
        if (self.kind == "huggingface") != (self.huggingface is not None):
            raise ConfigError(f"kind {self.kind!r}: expected a table huggingface for 'huggingface', and for no other")


def open_encoder(config: EncoderConfig) -> MiniLM | SvfMiniLM | HuggingFaceEncoder:
    """Raises ModelError, ConfigError: it cannot be had."""
    if config.huggingface is not None:
        return HuggingFaceEncoder(config.huggingface)
    if config.kind == "minilm-svf":
        return SvfMiniLM(reading=config.reading, layers=config.layers)
    return MiniLM(reading=config.reading)


def read_encoder_config(rules: Mapping[str, Any], *, where: str) -> EncoderConfig:
    """Of a card's rules; without an `encoder` there, the plain MiniLM.

    Raises:
        ConfigError: it is malformed.
    """
    if "encoder" not in rules:
        return EncoderConfig(kind="minilm")
    return read_table(EncoderConfig, _without_none(rules["encoder"]), where=f"{where}: encoder")


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    """A card is JSON, which writes None for what a configuration leaves out."""
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if value is not None
    }
