"""Runs programs that nobody has read: what they may do is bounded, what they did comes back as bytes and a status.

`run` takes the first tier that works on this machine: bubblewrap (namespaces), else Landlock. Where neither does it
raises `SandboxUnavailable`; there is no tier that only pretends. Both put the same seccomp filter and rlimits on top.
Nothing here knows what a right answer is: graders compare outside (`grade/code.py`).
"""

from .limits import Limits, Ran, SandboxUnavailable
from .run import Probe, Sandbox, find_sandbox, probe_sandboxes, run

__all__ = ["Limits", "Probe", "Ran", "Sandbox", "SandboxUnavailable", "find_sandbox", "probe_sandboxes", "run"]
