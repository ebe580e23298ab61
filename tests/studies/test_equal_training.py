import equal_training
import pytest
import torch
from equal_training import BASELINE, OWN, RATES, SEARCH, Line, Study, best_peers, over_cells, table_of
from harness import Rows

TARGETS = (50.0, 3.0)


def line(name, per_seed, val=None):
    return Line(name, per_seed, val or per_seed, 8.0)


def test_a_table_has_the_best_line_first_and_leads_paired_by_seed():
    ours = line(SEARCH, [[0.9, 0.6], [0.8, 0.6]])
    arm = line(OWN, [[0.9, 0.4], [0.7, 0.5]], val=[[0.5, 0.5], [0.7, 0.5]])
    head, lines = table_of([arm, ours], ours, TARGETS)
    assert head == ["", "test at 50%", "test at 3%", "mean", "validation", "epochs"]
    assert lines == [
        [SEARCH, "85.0 ± 5.0", "60.0 ± 0.0", "72.5 ± 2.5", "85.0 / 60.0", "8"],
        # Differences by seed: 0 and 10 points at 50%, 20 and 10 at 3%, 10 and 10 on the mean.
        [OWN, "80.0 ± 10.0 (+5.0 ± 5.0)", "45.0 ± 5.0 (+15.0 ± 5.0)", "62.5 ± 2.5 (+10.0 ± 0.0)", "60.0 / 50.0", "8"],
    ]


def test_a_table_without_a_search_has_no_leads():
    _, lines = table_of([line(OWN, [[0.5, 0.25]])], None, TARGETS)
    assert lines == [[OWN, "50.0", "25.0", "37.5", "50.0 / 25.0", "8"]]


def test_leads_are_means_over_the_cells_that_have_both_lines():
    per_cell = {
        "a": [line(SEARCH, [[0.5, 0.5]]), line(OWN, [[0.25, 0.5]])],
        "b": [line(SEARCH, [[1.0, 1.0]]), line(OWN, [[0.75, 0.0]])],
        "without a search": [line(OWN, [[1.0, 1.0]])],
    }
    assert over_cells(per_cell, OWN, 0) == [0.25]
    assert over_cells(per_cell, OWN, 1) == [0.5]
    assert over_cells(per_cell, OWN, None) == [0.375]
    assert over_cells(per_cell, BASELINE, 0) is None


def test_validation_chooses_the_peers():
    names = list(equal_training.peers.TORCH_PRUNING)[:3]
    vals = (0.5, 0.9, 0.7)
    lines = [line(name, [[1 - val]], val=[[val]]) for name, val in zip(names, vals, strict=True)]
    lines += [line(OWN, [[1.0]]), line(equal_training.peers.FASTNAS, [[0.0]])]
    assert best_peers(lines, 2) == [names[1], names[2], equal_training.peers.FASTNAS]


@pytest.fixture
def study(tmp_path):
    """Return a study without setup, which can only read rows."""
    return Study(None, Rows(tmp_path / "rows.jsonl"), range(2), TARGETS, 8, ("--trials", "2"), 1)


def test_a_line_needs_all_of_its_runs(study):
    runs = [equal_training.Run("net/set", OWN, target, 4, 0.1, seed) for seed in (0, 1) for target in TARGETS]
    for index, run in enumerate(runs):
        assert study.line("net/set", OWN, 4, 0.1) is None
        study.rows.add(run, {"test": index / 8, "val": index / 4})
    assert study.line("net/set", OWN, 4, 0.1) == Line(
        OWN, [[0.0, 0.125], [0.25, 0.375]], [[0.0, 0.25], [0.5, 0.75]], 8.0
    )
    assert study.line("net/set", OWN, 2, 0.1) is None


def test_a_search_line_is_of_the_given_training(study):
    for seed, epochs in ((0, 7.0), (1, 8.0)):
        job = equal_training.Search("net/set", SEARCH, TARGETS, study.budget, 0.1, seed)
        study.rows.add(job, {"test": [0.5, 0.25], "val": [0.75, 0.5], "epochs": epochs, "minutes": 1.0})
    expected = Line(SEARCH, [[0.5, 0.25]] * 2, [[0.75, 0.5]] * 2, 7.5)
    assert study.search_line("net/set", SEARCH, 0.1) == expected
    assert study.search_line("net/set", "without screening", 0.1) is None


def test_validation_of_uniform_l2_chooses_the_learning_rate(study, capsys):
    for rate, val in zip(RATES, (0.25, 0.75, 0.5), strict=True):
        study.rows.add(equal_training.Run("net/set", BASELINE, 3.0, 4, rate, 0), {"val": val, "test": 1 - val})
    assert study.rate("net/set", 4) == RATES[1]
    assert "25.0 at 0.02, 75.0 at 0.05, 50.0 at 0.12" in capsys.readouterr().out


def test_the_late_gain_is_that_of_the_last_quarter():
    rows = [{"curve": [0.1, 0.2, 0.5, 0.6]}, {"curve": [0.0, 0.0, 0.0, 0.3]}, {"curve": []}]
    assert equal_training.late_gain(rows) == "+20.0 points"
    assert equal_training.late_gain([{"curve": []}]) == "not recorded"


def test_subsets_and_networks_have_names():
    import small_cells

    from runners.config import DataConfig

    data = small_cells.digits_100(DataConfig(name="small_cells:digits_100"), 3)
    assert len(data.train) + len(data.val) == 100
    assert small_cells.slim_vgg16_bn(10, (3, 32, 32)).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    with pytest.raises(AttributeError, match="no_set_100"):
        _ = small_cells.no_set_100
