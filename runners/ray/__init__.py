"""Trials on Ray Tune, several at once on this machine or on a cluster; start with `RayRunner`."""

from runners.ray.runner import RayRunner

__all__ = ["RayRunner"]
