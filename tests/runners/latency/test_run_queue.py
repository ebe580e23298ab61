from runners.latency.run_queue import stalled_seconds


def test_waiting_for_a_core_is_counted_where_the_system_tells() -> None:
    first = stalled_seconds()
    assert 0 <= first <= stalled_seconds()
