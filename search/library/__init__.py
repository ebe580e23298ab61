"""Parts of a search for callers with a live network, and with a training loop of their own.

`prune` cuts a network once; `WidthTuner` proposes narrow networks and is told how good they became.
"""
