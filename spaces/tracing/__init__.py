"""From a network and an example image to its search space; `trace` is what a reader looks at first."""

from spaces.tracing.recording import Recorder, record_forward
from spaces.tracing.tracer import trace

__all__ = ["Recorder", "record_forward", "trace"]
