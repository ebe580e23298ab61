from pruning.steps import counted, hearing_steps, steps_done


def test_a_listener_hears_of_every_step_inside_its_block_alone() -> None:
    heard: list[tuple[float, float]] = []
    with hearing_steps(lambda done, total: heard.append((done, total))):
        assert list(counted("ab")) == ["a", "b"]
        steps_done(0.5, 3)
    assert list(counted("ab")) == ["a", "b"]
    assert heard == [(1, 2), (2, 2), (0.5, 3)]


def test_blocks_nest() -> None:
    outer: list[float] = []
    inner: list[float] = []
    with hearing_steps(lambda done, _total: outer.append(done)):
        with hearing_steps(lambda done, _total: inner.append(done)):
            steps_done(1, 2)
        steps_done(2, 2)
    assert (outer, inner) == ([2], [1])
