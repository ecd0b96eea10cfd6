"""How is one worker called? The seam `Backend`, the dialects behind it, and the `Pool` that limits, retries and prices.

Importing this loads neither an HTTP library nor a price list: `open_pool` does, for pools that need them.
"""

from .backend import Backend, Completion, Delta, OnDelta, Query
from .open import open_pool
from .pool import Member, Pool
from .prices import Price, resolve_price
from .scripted import Failing, Scripted
from .spec import Limits, PoolSpec, Prices, Tags, Timeouts, WorkerSpec, read_pool

__all__ = [
    "Backend",
    "Completion",
    "Delta",
    "Failing",
    "Limits",
    "Member",
    "OnDelta",
    "Pool",
    "PoolSpec",
    "Price",
    "Prices",
    "Query",
    "Scripted",
    "Tags",
    "Timeouts",
    "WorkerSpec",
    "open_pool",
    "read_pool",
    "resolve_price",
]
