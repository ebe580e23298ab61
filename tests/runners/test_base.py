"""The options of a training."""

from runners.config import TrainConfig


def test_the_dense_net_has_a_schedule_of_its_own():
    config = TrainConfig(
        epochs=5, learning_rate=0.01, schedule="cosine", warm_up_epochs=1, dense_epochs=9, dense_learning_rate=0.2,
        dense_schedule="steps", dense_milestones=(3, 6), dense_warm_up_epochs=2,
    )  # fmt: skip
    dense = config.for_dense()
    assert (dense.epochs, dense.learning_rate, dense.schedule) == (9, 0.2, "steps")
    assert (dense.milestones, dense.warm_up_epochs) == ((3, 6), 2)
    assert TrainConfig(schedule="cosine", warm_up_epochs=1).for_dense().schedule == "cosine"
    assert TrainConfig(schedule="cosine", warm_up_epochs=1).for_dense().warm_up_epochs == 0
