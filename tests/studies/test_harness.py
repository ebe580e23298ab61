import dataclasses
import json

import pytest
from studies import harness


@dataclasses.dataclass(frozen=True)
class Job:
    method: str
    seed: int


def refuse():
    pytest.fail("measured again")


def test_a_row_on_file_is_not_measured_again(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    assert harness.Rows(path, epochs=2).measured(Job("l2", 0), lambda: {"val": 0.5}) == {"val": 0.5}
    assert harness.Rows(path, epochs=2).measured(Job("l2", 0), refuse) == {"val": 0.5}


def test_a_row_belongs_to_its_recipe_and_its_job(tmp_path):
    rows = harness.Rows(tmp_path / "rows.jsonl", epochs=2)
    rows.add(Job("l2", 0), {"val": 0.5})
    assert rows.of(Job("l2", 1)) is None
    assert harness.Rows(rows.path, epochs=3).of(Job("l2", 0)) is None


def test_failed_and_torn_rows_are_missing(tmp_path):
    rows = harness.Rows(tmp_path / "rows.jsonl")
    rows.add(Job("l2", 0), {"error": "out of memory"})
    with rows.path.open("a") as file:
        file.write('{"key": {"method": "l2", "se')
    again = harness.Rows(rows.path)
    assert rows.of(Job("l2", 0)) is again.of(Job("l2", 0)) is None
    again.add(Job("l2", 0), {"val": 0.5})
    assert harness.Rows(rows.path).of(Job("l2", 0)) == {"val": 0.5}


def test_jobs_are_measured_in_processes(tmp_path, capsys):
    rows = harness.Rows(tmp_path / "rows.jsonl")
    rows.add(Job("l2", 0), {"method": "l2", "seed": 0})
    rows.complete([Job("l2", 0), Job("l1", 3)], dataclasses.asdict, processes=2)
    assert rows.of(Job("l1", 3)) == {"method": "l1", "seed": 3}
    assert len(rows.path.read_text().splitlines()) == 2
    assert json.loads(rows.path.read_text().splitlines()[1])["date"]
    assert capsys.readouterr().out.startswith("1 of 2 runs are on file\n")


def test_means_deviations_and_errors():
    # Of 1, 2, 3: mean 2, deviation 1, standard error 1 / sqrt(3).
    assert harness.spread([0.01, 0.02, 0.03], 1, 100) == "2.0 ± 1.0"
    assert harness.squared_error([1, 2, 3]) == pytest.approx(1 / 3)
    assert harness.lead([2, 4, 6], [1, 2, 3], 2) == "+2.00 ± 0.58"
    assert harness.lead([2], [1], 2) == "+1.00"
    assert (harness.mean_and_error([2]), harness.mean_and_error([1, 3])) == ("2.0", "2.0 ± 1.0")


def test_a_table_names_seeds_and_date(capsys):
    harness.print_table("Accuracy", ["method", "test"], [["l2", "50"]], range(3))
    title, empty, *lines = capsys.readouterr().out.strip().splitlines()
    assert title.startswith("Accuracy (seeds 0 to 2, 20")
    assert lines == ["| method | test |", "|---|---|", "| l2 | 50 |"]
