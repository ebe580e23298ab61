import dataclasses
import json
import logging
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from configs.loading import load
from configs.schema import SAMPLERS, RunConfig
from pruning.base import METHODS
from pruning.settings import declared_settings
from runners.trial import TrialResult, TrialState
from search.callbacks import SearchCallback
from search.cli import main
from search.results.result import SearchResult
from search.schedulers.stopping import TimeLimitError
from spaces.budget import Budget
from spaces.errors import LostError, NoTrialError, SlimfrontError

Calls = list[RunConfig]


@pytest.fixture(autouse=True)
def _global_settings_restored() -> Iterator[None]:
    """The command line configures logging and warnings of its process, which here is the one of the tests."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with warnings.catch_warnings():
        yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, finished_search: SearchResult) -> Callable[..., Calls]:
    """Replace the search by one that notes its config and returns or raises what it is told to."""

    def install(outcome: Any = finished_search) -> Calls:
        calls: Calls = []

        def run(config: RunConfig, display: Any) -> Any:
            calls.append(config)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        fake = types.ModuleType("search.orchestrator")
        fake.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "search.orchestrator", fake)
        return calls

    return install


def test_flags_reach_the_search_and_success_is_zero(runs: Callable[..., Calls]) -> None:
    calls = runs()
    assert main(["--budget", "30%", "--trials", "3"]) == 0
    assert calls == [RunConfig(budget=("30%",), trials=3)]


def test_a_file_may_ask_for_the_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], finished_search: SearchResult, tmp_path: Path
) -> None:
    def run(_config: RunConfig, callbacks: Sequence[SearchCallback]) -> SearchResult:
        for callback in callbacks:
            callback.on_search_end(finished_search, Path("runs/one"), "")
        return finished_search

    monkeypatch.setattr("search.orchestrator.run", run)
    (tmp_path / "script.yaml").write_text("budget: 30%\njson: true\nquiet: true\n")
    assert main(["--config", str(tmp_path / "script.yaml")]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["chosen"], err) == ("1", "")
    assert main(["--config", str(tmp_path / "script.yaml"), "--json", "false"]) == 0
    assert capsys.readouterr().out.startswith(finished_search.baseline_comparison.statement[:30])


@pytest.mark.parametrize("flags", [["--json"], ["--json", "--quiet"], ["--quiet"]], ids=" ".join)
def test_standard_output_of_scripts_has_the_json_or_the_final_lines_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], finished_search: SearchResult, flags: list[str]
) -> None:
    def run(config: RunConfig, callbacks: Sequence[SearchCallback]) -> SearchResult:
        print("printed by a factory of the user")
        for callback in callbacks:
            callback.on_phase("searching")
            callback.on_search_end(finished_search, Path("runs/one"), "mlflow ui")
        return finished_search

    monkeypatch.setattr("search.orchestrator.run", run)
    assert main(["--budget", "30%", *flags]) == 0
    out, err = capsys.readouterr()
    assert ("searching" in err) == (flags == ["--json"])
    if "--json" in flags:
        shown, stored = json.loads(out), json.loads(finished_search.to_json())
        assert {key: shown[key] for key in ("chosen", "front", "targets", "paths", "seconds")} == {
            "chosen": "1", "front": ["3", "0", "1"], "targets": [], "paths": {"front": "front.csv"}, "seconds": 125.0,
        }  # fmt: skip
        assert all(shown[key] == stored[key] for key in shown if key not in ("folder", "networks"))
        assert shown["networks"]["1"]["cost"] == stored["results"][1]["cost"]
        assert set(shown["networks"]) == {"0", "1", "3"}
        assert "printed by a factory" in err
    else:
        assert "searching" not in out
        assert "FLOPs  " not in out  # the tables
        assert out.endswith(
            "Written to runs/one:\n  front  runs/one/front.csv\nMLflow: mlflow ui\nDone in 2 min 05 s.\n"
        )


def test_a_plan_has_neither_json_nor_final_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--budget", "30%", "--json"]) == 2
    assert capsys.readouterr().err == "error: plan takes no --json: it prints one page for a person; leave it out\n"


def test_an_interrupted_search_ends_with_130(runs: Callable[..., Calls], finished_search: SearchResult) -> None:
    runs(dataclasses.replace(finished_search, interrupted=True))
    assert main(["--budget", "30%"]) == 130


def test_a_search_of_which_nothing_finished_ends_with_3_and_the_commonest_reason(
    runs: Callable[..., Calls], finished_search: SearchResult, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = ["out of memory", "no CUDA", "out of memory"]
    failed = [
        TrialResult(result.trial, TrialState.FAILED, error=error)
        for result, error in zip(finished_search.results, errors, strict=False)
    ]
    runs(dataclasses.replace(finished_search, results=tuple(failed)))
    assert main(["--budget", "30%"]) == 3
    assert capsys.readouterr().err == "error: no trial finished; 2 of 3 trials failed with: out of memory\n"


def test_a_search_without_a_network_inside_the_budgets_ends_with_3(
    runs: Callable[..., Calls], finished_search: SearchResult, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(dataclasses.replace(finished_search, budgets=(Budget("flops", 1),)))
    assert main(["--budget", "30%"]) == 3
    assert capsys.readouterr().err.startswith("error: no network of a trial meets every budget")


@pytest.mark.parametrize(
    ("error", "code"),
    [(SlimfrontError("a"), 2), (OSError(13, "denied", "x"), 2), (NoTrialError("a"), 3), (TimeLimitError("a"), 3),
     (LostError("a"), 4)],
)  # fmt: skip
def test_every_kind_of_error_has_its_code(
    runs: Callable[..., Calls], capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    runs(error)
    assert main(["--budget", "30%"]) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_a_reader_that_ends_before_the_output_does_is_no_error() -> None:
    command = [sys.executable, "-m", "search", "methods", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate()
    assert (process.returncode, errors) == (141, b"")


def test_ctrl_c_without_a_result_ends_with_130(runs: Callable[..., Calls], capsys: pytest.CaptureFixture[str]) -> None:
    runs(KeyboardInterrupt())
    assert main(["--budget", "30%"]) == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "no budget given"),
        (["--budget", "banana"], "'banana'"),
        (["--budget", "-1gflops"], "'-1gflops'"),
        (["--budget", "8ms", "--budget", "9ms"], "budgets 8ms and 9ms both limit latency; keep the one that must hold"),
        (["--budget", "0ms"], "'0ms' must be a positive finite number"),
        (
            ["--budget", "50%", "--objective", "latency"],
            "--objective is 'latency' and must be one of accuracy,flops or",
        ),
        (["--budget", "50%", "--trials", "0"], "--trials is 0"),
        (["--budget", "50%", "--time-limit", "0"], "--time-limit is '0' and must be a time above 0"),
        (["--budget", "50%", "--time-limit", "-5m"], "--time-limit is '-5m' and must be a time above 0"),
        (["--budget", "50%", "--time-limit", "30"], "such as 90s, 30m, 1h30m or 2h"),
        (["--budget", "50%", "--confirm", "0"], "--confirm is 0 and must be at least 1"),
        (["--budget", "50%", "--epochs", "4", "--rungs", "1,8"], "a rung after 8 epochs, longer than the training"),
        (["--budget", "50%", "--epochs", "4", "--rungs", "2,1"], "--rungs is '2,1' and must be whole epochs"),
        (["--budget", "50%", "--screen", "0"], "--screen is '0' and must be a whole number from 1"),
        (["--budget", "50%", "--screen", "x"], "--screen is 'x' and must be a whole number from 1"),
        (["--budget", "50%", "--screen", "4", "--epochs", "0"], "raise --epochs or leave --screen out"),
        (["--budget", "50%", "--method", "dii"], "did you mean di?"),
        (["--budget", "50%", "--latency-engine", "tvm"], "--latency-engine is 'tvm'"),
        (["--budgett", "50%"], "did you mean --budget"),
        (["--config", "missing.yaml"], "or a preset: abfp-lenet5-mnist, "),
    ],
)
def test_wrong_input_is_one_line_on_standard_error_and_code_2(
    runs: Callable[..., Calls], capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    calls = runs()
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1
    assert not calls


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (SlimfrontError("a\nb"), "error: a b\n"),
        (
            PermissionError(13, "Permission denied", "/runs/x"),
            "error: cannot use '/runs/x': Permission denied; give this user the right to it, or name another place\n",
        ),
        (
            OSError(28, "No space left on device"),
            "error: cannot use the disk: No space left on device; make room there, or choose another place\n",
        ),
    ],
)
def test_errors_of_the_search_are_one_line(
    runs: Callable[..., Calls], capsys: pytest.CaptureFixture[str], error: Exception, line: str
) -> None:
    runs(error)
    assert main(["--budget", "50%"]) == 2
    assert capsys.readouterr().err == line


def test_debugging_shows_the_traceback(runs: Callable[..., Calls], monkeypatch: pytest.MonkeyPatch) -> None:
    runs(SlimfrontError("a"))
    with pytest.raises(SlimfrontError):
        main(["--budget", "50%", "--debug"])
    monkeypatch.setenv("SLIMFRONT_DEBUG", "1")
    with pytest.raises(SlimfrontError):
        main(["--budget", "50%"])


def test_a_fault_of_ours_is_not_hidden(runs: Callable[..., Calls]) -> None:
    runs(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["--budget", "50%"])


def test_the_printed_config_is_the_effective_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--config", "quick", "--trials", "3", "--print-config"]) == 0
    (tmp_path / "run.yaml").write_text(capsys.readouterr().out)
    assert load(str(tmp_path / "run.yaml")) == RunConfig(budget=("0.5gflops",), trials=3)


def test_help_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "python -m search --budget 0.5gflops" in capsys.readouterr().out


def test_the_names_of_samplers_are_those_that_the_study_has() -> None:
    from search.searchers import samplers

    assert set(SAMPLERS) == set(samplers.SAMPLERS)


def test_methods_are_listed_with_their_settings_and_presets_with_what_they_are(
    runs: Callable[..., Calls], capsys: pytest.CaptureFixture[str]
) -> None:
    calls = runs()
    assert main(["methods"]) == 0
    listed = capsys.readouterr().out
    for name in METHODS:
        assert listed.count(f"\n{name}") >= 1
    assert main(["methods", "csgd", "l2"]) == 0
    detail = capsys.readouterr().out
    for words in ("arXiv 1904.03837", "Every snapshot is a merged copy", "Widths: given.", "Needs: labelled training",
                  "0.0003 to 0.3, log", "kmeans, even, imbalanced"):  # fmt: skip
        assert words in detail
    assert "aofp" not in detail
    assert main(["presets"]) == 0
    assert "csgd-resnet56-cifar10" in capsys.readouterr().out
    assert main(["presets", "quick"]) == 0
    assert capsys.readouterr().out.startswith("# The quick start")
    assert not calls


def test_what_is_listed_reads_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json", "csgd"]) == 0
    (csgd,) = json.loads(capsys.readouterr().out).values()
    assert (csgd["paper"], csgd["widths"]) == ("Ding et al., Centripetal SGD, arXiv 1904.03837", "given")
    (deadline,) = [setting for setting in csgd["settings"] if setting["name"] == "deadline"]
    assert deadline == {
        "name": "deadline", "type": "number", "default": 0.5, "low": 0.05, "high": 0.95, "log": False, "choices": [],
        "searched": True, "help": deadline["help"],
    }  # fmt: skip
    assert main(["presets", "--json"]) == 0
    assert "kse-densenet40-cifar10" in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["methods", "cgsd"], "did you mean csgd?"),
        (["presets", "quik"], "did you mean quick?"),
        (["methods", "--yaml"], "unrecognized arguments: --yaml; see python -m search methods --help"),
    ],
)
def test_what_cannot_be_listed_is_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_and_setting_says_what_it_is(name: str) -> None:
    method = METHODS[name]
    assert method.__doc__
    assert method.needs
    assert method.takes_widths or method.finds_widths
    for setting in declared_settings(method):
        assert setting.help, f"{name}.{setting.name} has no help"
        assert not setting.help.endswith(".")


TINY = "--model tiny_nets:residual --data digits --image-size 8 --batch-size 32 --precision float32 --device cpu"
TINY += " --runner local"


def test_a_plan_tells_everything_and_leaves_nothing_behind(
    runs: Callable[..., Calls], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = runs()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLIMFRONT_CACHE", str(tmp_path / "cache"))
    flags = "--budget 50% --method l2,aofp --trials 12 --time-limit 30m --set aofp.scope=all --out one/run"
    assert main(["plan", *flags.split(), *TINY.split()]) == 0
    out = capsys.readouterr().out
    told = "smallest, largest, divisor, network output, a baseline, proposed by structured, dense training, "
    told += "checkpoints of the trials, dense weights, MLflow, one/run/trials, 30m"
    for words in told.split(", "):
        assert words in out
    assert "\nNothing was started or written" in out
    assert not calls
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "no budget given"),
        (["--budget", "50%", "--time-limit", "never"], "--time-limit is 'never'"),
        (["--budget", "1flops", *TINY.split()], "smallest network"),
        (["--budget", "50%", "--data", "cifar10", "--data-dir", "nowhere"], "cifar10 is not in nowhere and would have"),
        (["--budget", "50%", "--triels", "3"], "did you mean --trials"),
    ],
)
def test_a_plan_of_what_cannot_be_is_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    assert main(["plan", *argv]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


def test_a_plan_takes_the_flags_of_a_search(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--help"]) == 0
    assert "python -m search plan --budget" in capsys.readouterr().out
    assert main(["plan", "--config", "quick", "--print-config"]) == 0
    assert "0.5gflops" in capsys.readouterr().out


def test_neither_errors_nor_logs_show_a_password(
    runs: Callable[..., Calls], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    runs(SlimfrontError("nobody at postgresql://me:s3cr@host/db"))
    assert main(["--budget", "50%"]) == 2
    logging.getLogger("search").warning("no answer from %s", "http://me:s3cr@server")
    sys.excepthook(ValueError, ValueError("http://me:s3cr@server"), None)
    err = capsys.readouterr().err
    assert err == (
        "error: nobody at postgresql://me:***@host/db\n"
        "WARNING search: no answer from http://me:***@server\n"
        "ValueError: http://me:***@server\n"
    )
