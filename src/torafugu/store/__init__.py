"""What happened? Every run, its events and its money, in one SQLite file that survives the death of its writer."""

from .reader import RunReader, open_reader
from .rows import RunRow, Status, StoredRun, StoreTotals, WorkerHistory
from .sqlite import RunStore, open_store
from .writer import RunRecorder, StoreOptions

__all__ = [
    "RunReader",
    "RunRecorder",
    "RunRow",
    "RunStore",
    "Status",
    "StoreOptions",
    "StoreTotals",
    "StoredRun",
    "WorkerHistory",
    "open_reader",
    "open_store",
]
