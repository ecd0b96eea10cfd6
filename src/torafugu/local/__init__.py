"""Models that run in this process: encoders with hidden states. No torch on the serving path."""

from .encoder import READINGS, MiniLM, Reading

__all__ = ["READINGS", "MiniLM", "Reading"]
