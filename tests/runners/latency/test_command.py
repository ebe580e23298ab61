"""Commands of the user's: what they are called with, what they may print, and what is said when they fail."""

import time
from pathlib import Path

import pytest

from runners.config import LatencyConfig
from runners.latency.command import CommandBench, Reply, command_line, parse_reply
from runners.latency.external import BenchError, Comparison
from spaces.errors import ConfigError


def bench(script: str, **settings: object) -> CommandBench:
    """Return a bench whose command is a shell script; its first argument is the file of a network."""
    quoted = script.replace("'", "'\\''")
    return CommandBench(LatencyConfig(command=f"sh -c '{quoted}' sh {{model}}", **settings), (3, 8, 8))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("3.5", Reply((3.5,))),
        ("3\n4\n5.5\n", Reply((3.0, 4.0, 5.5))),
        ("[3, 4]", Reply((3.0, 4.0))),
        ('{"ms": 3.1, "mj": 12}', Reply((3.1,), 12.0)),
        ('{\n "ms": [3, 4],\n "mj": null}', Reply((3.0, 4.0))),
    ],
)
def test_milliseconds_are_numbers_on_lines_or_json(text: str, reply: Reply) -> None:
    assert parse_reply(text) == reply


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "printed nothing; it must print milliseconds"),
        ("  \n", "printed nothing"),
        ("took 3 ms", "gave took 3 ms for milliseconds; it must give positive numbers, one a line, or JSON"),
        ("nan", "gave nan milliseconds; it must give positive numbers"),
        ('{"ms": NaN}', "gave nan milliseconds"),
        ("3\n-4", "gave -4 milliseconds"),
        ("0", "gave 0 milliseconds"),
        ("inf", "gave inf milliseconds"),
        ("[]", "printed an empty list"),
        ('{"time": 3}', 'printed JSON without "ms"'),
        ('{"ms": [[3]]}', r"gave \[3\] for milliseconds"),
        ('{"ms": true}', "gave True milliseconds"),
        ('{"ms": 3, "mj": -1}', "gave -1 millijoules"),
        ('{"ms": 3', 'gave {"ms": 3 for milliseconds'),
        ("x" * 10**6, r"gave x{300}\.\.\. for milliseconds; it must"),
    ],
)
def test_other_replies_are_named_in_one_line(text: str, message: str) -> None:
    with pytest.raises(BenchError, match=message) as error:
        parse_reply(text)
    assert "\n" not in str(error.value)


def test_names_in_braces_are_filled_without_a_shell_and_quoted_for_one() -> None:
    values = {"model": "a b;$(rm).onnx", "batch": "1"}
    config = LatencyConfig(command="ssh board './bench --batch {batch}' {model}")
    assert command_line(config, values) == ["ssh", "board", "./bench --batch 1", "a b;$(rm).onnx"]
    config = LatencyConfig(command="scp {model} board: && ssh board ./bench", shell=True)
    assert command_line(config, values) == "scp 'a b;$(rm).onnx' board: && ssh board ./bench"


@pytest.mark.parametrize("shell", [False, True])
def test_a_strange_path_reaches_the_command_as_one_word(shell: bool, tmp_path: Path) -> None:
    model = tmp_path / "a b;touch x$HOME'.onnx"
    model.write_text("12345")
    found = bench('wc -c < "$1"', shell=shell).call(model, 1)
    assert found == Reply((5.0,))


def test_network_and_dense_take_turns_and_energy_is_that_of_the_network(tmp_path: Path) -> None:
    small, dense, log = tmp_path / "small", tmp_path / "dense", tmp_path / "log"
    small.write_text('{"ms": [1, 2, 9], "mj": 7}')
    dense.write_text("4")
    found = bench(f'basename "$1" >> {log}; cat "$1"').compare(small, dense, 1, 3)
    assert found == Comparison(((0.002, 0.004),) * 3, 7.0)
    assert log.read_text().split() == ["small", "dense", "dense", "small", "small", "dense"]
    log.unlink()
    assert bench(f'basename "$1" >> {log}; cat "$1"').compare(dense, dense, 1, 2).rounds == ((0.004, 0.004),) * 2
    assert log.read_text().split() == ["dense", "dense"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo no board >&2; exit 3", "ended with exit code 3: no board"),
        ("exit 1", "ended with exit code 1: nothing on standard error"),
        ("head -c 10000000 /dev/zero", "printed over 1,048,576 bytes and was killed"),
        ("head -c 10000000 /dev/zero >&2; echo 5", ""),
    ],
)
def test_a_failure_is_one_line_with_the_end_of_standard_error(script: str, message: str, tmp_path: Path) -> None:
    if not message:  # a talkative command is no failure
        assert bench(script).call(tmp_path, 1) == Reply((5.0,))
        return
    with pytest.raises(BenchError, match=message):
        bench(script).call(tmp_path, 1)


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    began = time.monotonic()
    with pytest.raises(BenchError, match=r"did not end within 0.5 s \(--latency-timeout\) and was killed"):
        bench(f"(sleep 2; echo > {mark}) & sleep 60", timeout=0.5).call(tmp_path, 1)
    assert time.monotonic() - began < 30
    time.sleep(2.2)
    assert not mark.exists()


def test_a_command_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="'no-such-bench {model}' cannot be started: No such file"):
        CommandBench(LatencyConfig(command="no-such-bench {model}"), (3, 8, 8)).call(tmp_path, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"command": "bench"}, r"has no \{model\}"),
        ({"command": "bench '{model}"}, "is not quoted well: No closing quotation"),
        ({"command": "b {model}", "device": "cuda:0"}, "measures where it runs, and --latency-device is 'cuda:0'"),
        ({"command": "b {model}", "dtype": "float16"}, "a runtime of its own; leave out --latency-dtype"),
        ({"device": "http://a:1,cpu:1thread"}, "mixes agents with other devices"),
        ({"device": "http://a:1", "format": "pt2"}, "--latency-format is 'pt2', and an agent runs onnx"),
        ({"timeout": 0.0}, "--latency-timeout is 0.0 and must be a positive number"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LatencyConfig(**settings)  # type: ignore[arg-type]
