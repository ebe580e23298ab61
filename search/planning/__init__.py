"""What a search is expected to take, estimated before it begins: time and epochs in `time`, bytes in `disk`."""

from search.planning.disk import DiskPart, forecast_disk
from search.planning.time import TimeForecast, forecast_time, plan

__all__ = ["DiskPart", "TimeForecast", "forecast_disk", "forecast_time", "plan"]
