"""Torafugu: a self-hosted, learned LLM orchestrator. See ARCHITECTURE.md for the map."""

__version__ = "0.1.0"
