"""Repeatable measurements, not tests: each module prints JSON; see README.md here."""
