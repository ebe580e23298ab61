import methods
from equal_training import BASELINE, Run, Study
from harness import Rows


def test_a_line_needs_all_seeds_and_its_lead_is_paired_by_seed(tmp_path, capsys):
    study = Study(None, Rows(tmp_path / "rows.jsonl"), range(2), (50.0, 8.0), 0, (), 1)
    found = {
        (BASELINE, 50.0): (0.9, 0.8), (BASELINE, 8.0): (0.6, 0.7),
        ("kse", 50.0): (0.9, 0.9), ("kse", 8.0): (0.8, 0.8),
        ("l1, uniform", 8.0): (0.5,),
    }  # fmt: skip
    for (name, target), tests in found.items():
        for seed, test in enumerate(tests):
            ratio = {"latency_ratio": 0.75} if name == "kse" else {}
            values = {"test": test, "val": test, "seconds": 3.0, **ratio}
            study.rows.add(Run("net/set", name, target, 2, 0.1, seed), values)
    methods.show(study, "net/set", 2, 0.1)
    *_, best, last = capsys.readouterr().out.strip().splitlines()
    # Differences by seed: 0 and 10 points at 50%, 20 and 10 at 8%.
    assert best == ("| kse | 90.0 ± 0.0 (+5.0 ± 5.0) | 80.0 ± 0.0 (+15.0 ± 5.0) | 90.0 / 80.0 | 3 / 3 | 0.75 / 0.75 |")
    assert last == f"| {BASELINE} | 85.0 ± 5.0 | 65.0 ± 5.0 | 85.0 / 65.0 | 3 / 3 |  |"
