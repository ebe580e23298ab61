"""`python -m search plan`: everything that a search would do, in full, as one page."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from search.planning.disk import forecast_disk
from search.planning.time import FRONT_SHARE, TimeForecast, forecast_epochs, forecast_time, plan
from search.problem import Setup, screened_at_once, sensing_images, study_settings
from search.reporting.catalogue import describe_methods, range_text, value_text
from search.reporting.plan_table import plan_facts
from search.reporting.screening import screening_plan
from search.reporting.wording import duration, percent, plural, scaled, titled_table
from search.schedulers.asha import expected
from search.searchers.candidate_space import CONTROL_METHOD, CandidateSpace, Planned
from search.searchers.initial_design import Starts
from search.searchers.samplers import STRUCTURED
from search.searchers.structure import SENSITIVITY, structure_of
from spaces.cost import Cost
from spaces.space import SearchSpace


def plan_page(setup: Setup) -> RenderableType:
    """Show the space, what is reachable in it, what keeps its width and why, methods, trials, time and disk."""
    candidates = CandidateSpace(study_settings(setup), setup.space, setup.budgets)
    time = forecast_time(setup)
    parts: Sequence[RenderableType] = (
        plan_facts(plan(setup, time)),
        _reach(setup.space),
        _groups(setup.space),
        _fixed(setup.space),
        _methods(setup, candidates),
        _trials(setup, candidates),
        *_sampling(setup),
        *(f"{text}." for text in Starts(candidates).left_out(setup.config.trials)),
        *_rungs(setup),
        *_screening(setup, candidates),
        _time(setup, time),
        *_too_short(setup, time),
        _disk(setup),
    )
    spaced = [each for part in parts for each in (part, "")]
    return Group(*spaced, "Nothing was started or written; leave out the word plan to search.")


def _reach(space: SearchSpace) -> Table:
    table = titled_table("What the widths can reach", "", ">FLOPs", ">of dense", ">params", ">of dense")
    dense = space.dense_cost
    rows = {"smallest": space.smallest_cost, "largest": space.cost(space.largest), "dense": dense}
    for name, cost in rows.items():
        table.add_row(name, *_shares(cost, dense))
    return table


def _shares(cost: Cost, dense: Cost) -> tuple[str, str, str, str]:
    shares = percent(cost.flops / dense.flops, 1), percent(cost.params / dense.params, 1)
    return scaled(cost.flops), shares[0], scaled(cost.params), shares[1]


def _groups(space: SearchSpace) -> Table:
    title = f"{plural(len(space.variable), 'group')} of channels may vary"
    table = titled_table(title, "group", ">width", ">floor", ">ceiling", ">divisor", ">choices", "layers")
    for group in space.variable:
        numbers = (group.width, group.lowest, group.ceiling, group.divisor, group.steps + 1)
        table.add_row(escape(group.name), *map(str, numbers), escape(", ".join(group.producers)))
    return table


def _fixed(space: SearchSpace) -> RenderableType:
    by_reason: dict[str, dict[str, int]] = defaultdict(dict)
    for layer in space.layers_fixed:
        by_reason[layer.reason][layer.name] = layer.width
    for group in space.groups:
        if group.fixed:
            by_reason[group.fixed] |= dict.fromkeys(group.producers, group.width)
    if not by_reason:
        return "No layer keeps its width for good."
    table = titled_table("What keeps its width, and why", "layer", ">width", "why")
    for reason, layers in by_reason.items():
        for name, width in layers.items():
            table.add_row(escape(name), str(width), escape(reason))
    return table


def _methods(setup: Setup, candidates: CandidateSpace) -> Table:
    title = "Methods and their settings: searched, fixed by --set, or left at the default"
    table = titled_table(title, "method", "widths", "setting", "", "value")
    known = describe_methods(tuple(dict.fromkeys((*candidates.methods, CONTROL_METHOD))))
    for name, method in known.items():
        of = name if name in candidates.methods else f"{name} (control arm only)"
        rows = list(_settings(name, method["settings"], setup.fixed, name in candidates.methods))
        for row in rows or [("none to set", "", "")]:
            table.add_row(of, method["widths"] if of else "", *map(escape, row))
            of = ""
    for each in candidates.training:
        log = ", log" if each.log else ""
        row = (each.name, "searched", f"{value_text(each.low)} to {value_text(each.high)}{log}")
        table.add_row("fine-tuning, not of the arm", "", *row)
    return table


def _settings(
    method: str, settings: Sequence[Mapping[str, Any]], fixed: Mapping[str, Mapping[str, Any]], varied: bool
) -> Iterator[tuple[str, str, str]]:
    """Yield (setting, what becomes of it, its value or range)."""
    for each in settings:
        given = fixed.get(method, {})
        if each["name"] in given:
            yield each["name"], "fixed", value_text(given[each["name"]])
        elif each["searched"] and varied:
            yield each["name"], "searched", range_text(each)
        else:
            yield each["name"], "default", value_text(each["default"])


def _trials(setup: Setup, candidates: CandidateSpace) -> Table:
    config = setup.config
    table = titled_table(f"Trials: {config.trials}", ">trials", "what", "method", "at most, of the budget")
    planned = Starts(candidates)
    baselines, starts = planned.baselines(config.trials), planned.warm_starts(config.trials)
    table.add_row(str(len(baselines)), "uniform widths, the control arm", CONTROL_METHOD, _fractions(baselines))
    for method in dict.fromkeys(each.method for each in starts):
        own = [each for each in starts if each.method == method]
        table.add_row(str(len(own)), "uniform widths to start from", method, _fractions(own))
    if rest := config.trials - len(baselines) - len(starts):
        spread = "all of it"
        if candidates.targets:
            spread = (
                f"{', '.join(percent(each, 1) for each in candidates.spread.by_fraction)}, the targets, in equal shares"
            )
        elif candidates.lowest_fraction < 1:
            spread = f"{percent(candidates.lowest_fraction, 1)} to 100%, even in log cost"
        table.add_row(str(rest), f"proposed by {config.sampler}", ", ".join(candidates.methods), spread)
    return table


def _rungs(setup: Setup) -> Iterator[Table]:
    """Tabulate how many trials are expected at each rung."""
    rungs, trials = setup.config.rung_epochs, setup.config.trials
    if not rungs:
        return
    counts = expected(rungs, trials, round(FRONT_SHARE * trials))
    whole = setup.config.train.epochs * trials
    title = f"Rungs: about {forecast_epochs(setup.config):.0f} epochs of training instead of {whole}"
    table = titled_table(title, ">epochs", ">trials, about", "what")
    what = "control arms, the first others, members of the front; of the rest the better half, from its weights"
    for epochs, count in zip(rungs, counts, strict=True):
        table.add_row(str(epochs), f"{count:.0f}", "every trial" if epochs == rungs[0] else what)
    yield table


def _screening(setup: Setup, candidates: CandidateSpace) -> Iterator[str]:
    data, config = setup.data, setup.config
    training, size = config.train.epochs * len(data.train), screened_at_once(setup)
    if text := screening_plan(size, candidates, config.trials, training, len(data.val)):
        yield text


def _sampling(setup: Setup) -> Iterator[str]:
    """Say in which coordinates the sampler works, and whether it starts from measured sensitivities."""
    if setup.config.sampler not in STRUCTURED:
        return
    images = sensing_images(setup)
    names = [*structure_of(setup.space).names, *([SENSITIVITY] if images else [])]
    named = f" ({', '.join(names)})" if names else ""
    yield f"Widths are proposed in {plural(len(names), 'structural coordinate')}{named}, then group by group."
    if images:
        yield f"Sensitivities are measured on {images} training images, unless they are cached, and give two starts."


def _fractions(planned: Sequence[Planned]) -> str:
    return ", ".join(percent(each.parameters["budget_fraction"], 1) for each in planned)


def _time(setup: Setup, time: TimeForecast) -> Table:
    table = titled_table("Time, estimated from timed steps on this machine", "", ">time")
    table.add_row("dense training" + ("" if time.dense else " (given or cached)"), duration(time.dense))
    table.add_row(f"trials, {setup.workers} at once", duration(time.trials))
    table.add_row("start, statistics, confirmation, report", duration(time.around))
    table.add_row("total", duration(time.total), style="bold")
    if limit := setup.config.time_limit:
        table.add_row("time limit", limit, style="bold")
    return table


def _too_short(setup: Setup, time: TimeForecast) -> Iterator[str]:
    limit = setup.config.time_limit
    if setup.config.time_limit_seconds < time.dense:
        yield f"The limit of {limit} will be over before the dense training is, without a front; give a longer one."


def _disk(setup: Setup) -> Table:
    parts = forecast_disk(setup)
    table = titled_table("Disk, estimated", "", ">bytes", "where")
    for part in parts:
        table.add_row(part.what, f"{'up to ' if part.extra else ''}{scaled(part.size, 'B')}", escape(part.place))
    sure, all_of_it = (sum(p.size for p in parts if not p.extra or extra) for extra in (False, True))
    most = f", up to {scaled(all_of_it, 'B')}" if all_of_it > sure else ""
    table.add_row("total", f"{scaled(sure, 'B')}{most}", "", style="bold")
    return table
