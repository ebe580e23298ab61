import pytest
from tiny_training import tiny_net, train

from runners.training.run import TrainingError


def test_a_learning_rate_of_zero_is_refused():
    with pytest.raises(TrainingError, match="learning_rate is 0"):
        train(tiny_net(), rate=0)
