"""Mapping jobs to outcomes over processes and machines. What a job is, is its caller's business."""

from .fleet import Fleet, FleetLimits, JobFailed, Lost, in_process, take_results
from .ray_fleet import RayOptions, on_ray

__all__ = ["Fleet", "FleetLimits", "JobFailed", "Lost", "RayOptions", "in_process", "on_ray", "take_results"]
