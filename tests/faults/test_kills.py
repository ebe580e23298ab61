"""Processes and servers of one real search are killed; `python tests/faults/kills.py` does so in many searches."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from postgres import missing

KILLS = Path(__file__).with_name("kills.py")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_search_on_a_cluster_survives_twenty_kills_and_loses_and_doubles_no_finished_trial() -> None:
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-W", "ignore", str(KILLS), "--twenty"]
    done = subprocess.run(command, env=others, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["wrong"] == []  # of all that `outcome` checks
    assert row["codes"][-1] == 0
    kills = [kill for kill in row["kills"] if "victim" in kill]
    victims = Counter(kill["victim"] for kill in kills)
    assert len(kills) >= (17 if missing() else 20)
    # A search may end before its kill, which then comes at the next start: as one of the driver, where no trial runs.
    assert {"driver", "worker"} < victims.keys()
    assert {"start", "trials", "final training"} <= {kill["phase"] for kill in kills}
