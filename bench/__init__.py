"""Repeatable measurements, not tests: each module prints JSON; see README.md here."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the `fugu` command does, and before numpy is imported
