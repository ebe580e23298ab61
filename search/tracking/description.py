"""What the parent run says of a search: its name, its dataset, the machine, the versions and the command."""

import dataclasses
import json
import platform
from pathlib import PurePath
from typing import Any

from configs.loading import command_line
from configs.passwords import masked_settings
from configs.schema import RunConfig
from runners.data.loading import ImageData
from search.environment import installed_versions

DIGEST_LENGTH = 36  # MLflow takes no longer one
KIND_TAG, MODEL_TRAINING = "mlflow.experimentKind", "custom_model_development"  # tag by which the UI picks its view


def run_name(config: RunConfig) -> str:
    """Name a search as the user does, or by network, images and budgets, such as "resnet20 cluttered_digits 30%"."""
    return config.run_name or " ".join([config.network, data_name(config), *(config.budget or (config.targets,))])


def data_name(config: RunConfig) -> str:
    """Name the images; those of a folder by its last part."""
    return PurePath(config.data.name.removeprefix("imagefolder:")).name


def context_tags(config: RunConfig) -> dict[str, str]:
    """Return the tags of user, source and commit that MLflow gives a run, and those of host, versions and command."""
    from mlflow.tracking.context.registry import resolve_tags

    versions = {f"version.{package}": version for package, version in installed_versions().items()}
    own = {
        "host": platform.node(),
        "platform": platform.platform(),
        "command": command_line(masked_settings(dataclasses.asdict(config))),
    }
    return {**resolve_tags(), **own, **versions}


def dataset(data: ImageData, config: RunConfig) -> dict[str, str]:
    """Describe the images of a search: name, digest, shapes, and how many there are to train, choose and test by."""

    def tensor(dtype: str, *shape: int) -> str:
        spec = {"dtype": dtype, "shape": [-1, *shape]}
        return json.dumps([{"type": "tensor", "tensor-spec": spec}])

    shapes = {"features": tensor("float32", *data.input_shape), "targets": tensor("int64")}
    counts: dict[str, Any] = {"train": len(data.train), "val": len(data.val), "test": len(data.test)}
    return {
        "name": data.name,
        "digest": data.fingerprint[:DIGEST_LENGTH],
        "source_type": "local",
        "source": json.dumps({"uri": config.data.data_dir or data.name}),
        "schema": json.dumps({"mlflow_tensorspec": shapes}),
        "profile": json.dumps({**counts, "classes": data.num_classes}),
    }
