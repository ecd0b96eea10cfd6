"""Mapping jobs to outcomes over processes and machines. Nothing here yet: training runs in one process."""
