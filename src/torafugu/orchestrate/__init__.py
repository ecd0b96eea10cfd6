"""What is called next? The one loop, the policies that decide, and the run they decide about."""

from .budget import Budget
from .encoder import Encoder, Encoding
from .loop import Caller, Origin, orchestrate
from .policy import Direct, Policy
from .run import NO_RECORD, Recorder, Run, create_run_id

__all__ = [
    "NO_RECORD",
    "Budget",
    "Caller",
    "Direct",
    "Encoder",
    "Encoding",
    "Origin",
    "Policy",
    "Recorder",
    "Run",
    "create_run_id",
    "orchestrate",
]
