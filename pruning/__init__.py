"""Make narrow networks from a wide one: by a whole method of `METHODS`, or by single steps such as `slice_channels`.

The names below are imported when they are first used, so that `import pruning` stays light.
"""

from typing import TYPE_CHECKING

from spaces.lazy import attach

if TYPE_CHECKING:
    from pruning.allocation import allocate
    from pruning.base import (
        CRITERIA,
        METHODS,
        Context,
        Criterion,
        Goal,
        Method,
        PruningError,
        Snapshot,
        TrainingPlan,
        parse_methods,
    )
    from pruning.checkpoint import from_bytes, load, read_header, save, to_bytes
    from pruning.export import ExportError, export_network
    from pruning.formats import FORMATS, FormatError, write_network
    from pruning.rewriting.index_maps import Clusters
    from pruning.rewriting.surgery import merge_channels, slice_channels
    from pruning.selection import Selection, select_channels
    from pruning.settings import Setting, SettingError, declared_settings, setting

__all__ = [
    "CRITERIA",
    "Clusters",
    "Context",
    "Criterion",
    "ExportError",
    "FORMATS",
    "FormatError",
    "Goal",
    "METHODS",
    "Method",
    "PruningError",
    "Selection",
    "Setting",
    "SettingError",
    "Snapshot",
    "TrainingPlan",
    "allocate",
    "declared_settings",
    "export_network",
    "from_bytes",
    "load",
    "merge_channels",
    "parse_methods",
    "read_header",
    "save",
    "select_channels",
    "setting",
    "slice_channels",
    "to_bytes",
    "write_network",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "CRITERIA": "pruning.base",
        "Clusters": "pruning.rewriting.index_maps",
        "Context": "pruning.base",
        "Criterion": "pruning.base",
        "ExportError": "pruning.export",
        "FORMATS": "pruning.formats",
        "FormatError": "pruning.formats",
        "Goal": "pruning.base",
        "METHODS": "pruning.base",
        "Method": "pruning.base",
        "PruningError": "pruning.base",
        "Selection": "pruning.selection",
        "Setting": "pruning.settings",
        "SettingError": "pruning.settings",
        "Snapshot": "pruning.base",
        "TrainingPlan": "pruning.base",
        "allocate": "pruning.allocation",
        "declared_settings": "pruning.settings",
        "export_network": "pruning.export",
        "from_bytes": "pruning.checkpoint",
        "load": "pruning.checkpoint",
        "merge_channels": "pruning.rewriting.surgery",
        "parse_methods": "pruning.base",
        "read_header": "pruning.checkpoint",
        "save": "pruning.checkpoint",
        "select_channels": "pruning.selection",
        "setting": "pruning.settings",
        "slice_channels": "pruning.rewriting.surgery",
        "to_bytes": "pruning.checkpoint",
        "write_network": "pruning.formats",
    },
)
