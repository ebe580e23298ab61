"""Pruning methods: one folder or file per method; `pruning.base.METHODS` names them, `common_steps` is shared."""
