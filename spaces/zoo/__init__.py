"""Networks at full width and their published weights, by name; `build` is what a reader looks at first."""

from spaces.zoo.models import build, default_input_shape, model_names, pretrained, published_file

__all__ = ["build", "default_input_shape", "model_names", "pretrained", "published_file"]
