"""Who asks? Wire dialects <-> types, keys, streaming, the record over HTTP. Composed in `app.py`, run by `serve.py`."""

from .app import create_app
from .config import KeySpec, ServerConfig
from .serve import run_in_uvloop, serve

__all__ = ["KeySpec", "ServerConfig", "create_app", "run_in_uvloop", "serve"]
