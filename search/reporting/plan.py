"""What a search is about to do: a table before it starts, and the long page of `python -m search plan`."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Column, Table
from torch import nn

from configs.schema import LEVELS, RunConfig
from runners.evaluation.screening import screen_images
from runners.training.drop_path import has_drop_path
from search.environment import Environment, Plan
from search.planning import (
    TimeForecast,
    exempt_from_rungs,
    forecast_disk,
    forecast_epochs,
    forecast_time,
    plan,
    screenable_methods,
    screened_trials,
    screening_pool_size,
    starts_of,
)
from search.problem import BASELINE_METHODS, BASELINES, Problem
from search.reporting.catalogue import describe_methods, describe_setting, range_text, value_text
from search.reporting.statements import dense_statement
from search.reporting.wording import (
    ROWS_SHOWN,
    TextTable,
    counts,
    duration,
    in_bytes,
    milliseconds,
    percent,
    plural,
    scaled,
)
from search.schedulers.asha import expected
from search.searchers.candidate_space import STRUCTURED_SAMPLERS, CandidateSpace, InitialPoint
from search.searchers.initial_design import InitialDesign, sensing_images
from search.searchers.structure import SENSITIVITY, structure_of
from spaces.budget import Budget
from spaces.cost import Cost
from spaces.space import SearchSpace

LAYERS_SHOWN = 6  # of the layers that keep their width for one reason


def plan_table(plan: Plan) -> RenderableType:
    """Show a search in short: costs, budgets, what may vary and what may not, trials, workers, time, folder."""
    space = plan.environment.problem.space
    lines = []
    for reason, layers in _fixed_layers(space).items():
        names = list(layers)
        more = f" and {len(names) - LAYERS_SHOWN} more" if len(names) > LAYERS_SHOWN else ""
        lines.append(escape(f"keeps its width: {', '.join(names[:LAYERS_SHOWN])}{more} ({reason})"))
    return Group(_facts(plan), "", _varied_groups(space), *lines, "")


def plan_page(environment: Environment, candidates: CandidateSpace) -> RenderableType:
    """Show a search in full: also what is reachable, every layer, methods, trials, the parts of time and disk."""
    problem, time = environment.problem, forecast_time(environment, candidates)
    design = InitialDesign(candidates)
    parts: Sequence[RenderableType] = (
        _facts(plan(environment, candidates, forecast=time)),
        _reachable_costs(problem.space),
        _all_groups(problem.space),
        _all_fixed_layers(problem.space),
        _methods(candidates),
        _trials(candidates, design),
        *_sampling(environment),
        *(f"{text}." for text in design.left_out(problem.config.trials)),
        *_rungs(problem),
        *_screening(environment, candidates),
        *_time(environment, time),
        _disk(environment, candidates),
    )
    spaced = [renderable for part in parts for renderable in (part, "")]
    return Group(*spaced, "Nothing was started or written; leave out the word plan to search.")


def _facts(plan: Plan) -> Table:
    """Show the settings of a search that a user checks before it starts, one per line."""
    environment, problem = plan.environment, plan.environment.problem
    config, space, data = environment.config, problem.space, environment.data
    dense, least = space.dense_cost, space.smallest_cost
    trained_here = f"trained here for {plural(config.train.dense_epochs, 'epoch')} unless cached"
    weights = f"weights {config.weights}" if config.weights else trained_here
    facts = {
        "model": ", ".join(filter(None, (config.network, space.output, weights))),
        "images": f"{config.data.name}, {'x'.join(map(str, space.input_shape))}: "
        f"{len(data.train):,} train, {len(data.val):,} val, {len(data.test):,} test",
        "dense cost": counts(dense),
        "reachable": f"{counts(least)} ({percent(least.flops / dense.flops, 1)} of the dense FLOPs)",
        "budget": " and ".join(_budget(budget, dense) for budget in problem.budgets),
        "targets": "; ".join(_budget(target, dense) for target in problem.targets),
        "latency": _latency(problem, plan.dense_seconds),
        "methods": f"{', '.join(problem.methods)}; baselines {', '.join(f'{b.widths} {b.method}' for b in BASELINES)}",
        "settings": _settings(config),
        "trials": f"{config.trials}, sampler {config.sampler}, {plural(config.train.epochs, 'epoch')} each"
        + (f" but where searched ({config.search_training})" if config.search_training else "")
        + (f" at most, rungs after {', '.join(map(str, problem.rungs[:-1]))}" if problem.rungs else "")
        + (f"; then the front {config.confirm} times more" if config.confirm > 1 else ""),
        "training": _training(config),
        "drop-path": _drop_path(config, environment.net),
        "runner": f"{plural(environment.workers, 'worker')} with {plural(environment.threads, 'thread')} each, "
        f"training on {environment.device} in {environment.compute_format}",
        "time": ("unknown" if plan.seconds is None else f"about {duration(plan.seconds)}")
        + (f"; the limit is {config.time_limit}" if config.time_limit else ""),
        "folder": str(environment.folder),
    }
    table = Table.grid(Column(style="bold"), Column(overflow="fold"), padding=(0, 2))
    for name, text in facts.items():
        if text:
            table.add_row(name, escape(text))
    return table


def _drop_path(config: RunConfig, net: nn.Module) -> str:
    """Say what --drop-path does; nothing where it was not given."""
    rate = config.train.drop_path
    if rate and not has_drop_path(net):
        return f"none in spite of --drop-path {rate:g}: the network has no StochasticDepth or DropPath"
    return f"up to {rate:g}, rising with the depth" if rate else ""


def _training(config: RunConfig) -> str:
    """Say how the epochs of training are split."""
    parts = [] if config.weights else [f"{config.train.dense_epochs} of the dense net"]
    trials = round(forecast_epochs(config))
    parts.append(f"{trials} of the trials")
    places = len(config.target_budgets)
    final = config.final_training_in_all
    where = plural(places, "target") if places else f"up to {LEVELS} members of the front"
    parts.append(
        f"{final} of final training, a mean of {config.final_training} for {where}" if final else "none after them"
    )
    dense = 0 if config.weights else config.train.dense_epochs
    return f"{plural(dense + trials + final, 'epoch')}: {', '.join(parts)}"


def _settings(config: RunConfig) -> str:
    searched = f"searched of {', '.join(config.searched_settings)}" if config.searched_settings else "at their defaults"
    return searched + (f", fixed: {', '.join(config.set)}" if config.set else "")


def _budget(budget: Budget, dense: Cost) -> str:
    if budget.quantity == "latency" and budget.relative:
        return f"at most {percent(budget.limit, 1)} of the dense latency"
    if budget.quantity == "latency":
        return f"at most {budget.limit * 1e3:g} ms"
    units = {"flops": "FLOPs", "activations": "B of activations", "size": "B on disk"}
    share = budget.limit / getattr(dense, budget.quantity)
    amount = scaled(budget.limit, units.get(budget.quantity, budget.quantity))
    return f"at most {amount} ({percent(share, 1)} of dense)"


def _latency(problem: Problem, dense_seconds: float | None) -> str:
    """Say where latency is measured, when and what for; empty where it is not measured."""
    latency = problem.config.latency
    how = f"a file as {latency.format}" if latency.external else f"{latency.engine}, {latency.dtype}"
    place = f"{latency.place}, {how}"
    uses = ["the budget"] if any(budget.quantity == "latency" for budget in problem.budgets) else []
    uses += ["the axis of the front"] if problem.axis == "latency" else []
    if not uses:
        return f"of the front, measured at the end on {place}" if latency.measures else ""
    text = (
        f"measured on {place}, at batch {latency.batch[0]} for {' and '.join(uses)}; before any training the "
        "dense and the smallest network, and once up to 30 others for a model that proposes (about a minute; some "
        "minutes on onnxruntime or a board); networks while no trial runs"
    )
    if dense_seconds is None:
        return f"{text}. A budget under what the smallest network measures then ends the search"
    return f"{text}. The dense network takes {milliseconds(dense_seconds)} ms"


def _varied_groups(space: SearchSpace) -> TextTable:
    groups, rows = space.variable, []
    for group in groups[:ROWS_SHOWN]:
        numbers = (len(group.producers), group.width, group.lowest, group.ceiling, group.divisor)
        rows.append((group.name, *map(str, numbers)))
    if len(groups) > ROWS_SHOWN:
        rows.append((f"... and {len(groups) - ROWS_SHOWN} more", *[""] * 5))
    layers = plural(sum(len(group.producers) for group in groups), "layer")
    title = f"{plural(len(groups), 'group')} of channels may vary ({layers})"
    return TextTable(title, ("group", ">layers", ">width", ">from", ">to", ">in steps of"), rows)


def _all_groups(space: SearchSpace) -> TextTable:
    rows = []
    for group in space.variable:
        numbers = (group.width, group.lowest, group.ceiling, group.divisor, group.steps + 1)
        rows.append((group.name, *map(str, numbers), ", ".join(group.producers)))
    columns = ("group", ">width", ">floor", ">ceiling", ">divisor", ">choices", "layers")
    return TextTable(f"{plural(len(rows), 'group')} of channels may vary", columns, rows)


def _fixed_layers(space: SearchSpace) -> Mapping[str, Mapping[str, int]]:
    """Return reason -> layer -> width, of the layers that keep their width."""
    by_reason: dict[str, dict[str, int]] = defaultdict(dict)
    for layer in space.layers_fixed:
        by_reason[layer.reason][layer.name] = layer.width
    for group in space.groups:
        if group.fixed:
            by_reason[group.fixed] |= dict.fromkeys(group.producers, group.width)
    return by_reason


def _all_fixed_layers(space: SearchSpace) -> RenderableType:
    reasons = _fixed_layers(space).items()
    rows = [(name, str(width), reason) for reason, layers in reasons for name, width in layers.items()]
    table = TextTable("What keeps its width, and why", ("layer", ">width", "why"), rows)
    return table if rows else "No layer keeps its width for good."


def _reachable_costs(space: SearchSpace) -> TextTable:
    dense, rows = space.dense_cost, []
    costs = {"smallest": space.smallest_cost, "largest": space.cost(space.largest), "dense": dense}
    for name, cost in costs.items():
        flops, params = percent(cost.flops / dense.flops, 1), percent(cost.params / dense.params, 1)
        in_memory, on_disk = in_bytes(cost.activations), in_bytes(cost.size)
        rows.append((name, scaled(cost.flops), flops, scaled(cost.params), params, in_memory, on_disk))
    columns = ("", ">FLOPs", ">of dense", ">params", ">of dense", ">activations", ">on disk")
    return TextTable("What the widths can reach", columns, rows)


def _methods(candidates: CandidateSpace) -> TextTable:
    rows: list[tuple[str, ...]] = []
    for name, method in describe_methods(tuple(dict.fromkeys((*candidates.methods, *BASELINE_METHODS)))).items():
        fixed, searched = candidates.problem.fixed.get(name, {}), [s.name for s in candidates.searchable(name)]
        head = (name if name in candidates.methods else f"{name} (baseline only)", method["widths"])
        if not method["settings"]:
            rows.append((*head, "none to set", "", ""))
        for setting in method["settings"]:
            if setting["name"] in fixed:
                value = ("fixed", value_text(fixed[setting["name"]]))
            elif setting["name"] in searched:
                value = ("searched", range_text(setting))
            else:
                value = ("default", value_text(setting["default"]))
            rows.append((*head, setting["name"], *value))
            head = ("", "")
    for training in candidates.training:
        searched_range = range_text(describe_setting(training))
        rows.append(("fine-tuning, not of baselines", "", training.name, "searched", searched_range))
    title = "Methods and their settings: searched (--search-settings), fixed by --set, or left at the default"
    return TextTable(title, ("method", "widths", "setting", "", "value"), rows)


def _trials(candidates: CandidateSpace, design: InitialDesign) -> TextTable:
    problem, trials = candidates.problem, candidates.problem.config.trials
    points = design.points(trials)
    rows = []
    for kind in dict.fromkeys((point.baseline, point.method, point.allocation) for point in points):
        same = [point for point in points if (point.baseline, point.method, point.allocation) == kind]
        widths = f"{'uniform' if kind[2] == 'search' else 'own'} widths, {'a baseline' if kind[0] else 'to start from'}"
        rows.append((str(len(same)), widths, kind[1], _fractions(same)))
    if rest := trials - len(points):
        coverage = "all of it"
        if problem.targets:
            fractions = ", ".join(percent(fraction, 1) for fraction in candidates.cost_coverage.by_fraction)
            coverage = f"{fractions}, the targets, in equal shares"
        elif candidates.lowest_fraction < 1:
            coverage = f"{percent(candidates.lowest_fraction, 1)} to 100%, evenly in log cost"
        rows.append((str(rest), f"proposed by {problem.config.sampler}", ", ".join(candidates.methods), coverage))
    return TextTable(f"Trials: {trials}", (">trials", "what", "method", "at most, of the budget"), rows)


def _fractions(points: Sequence[InitialPoint]) -> str:
    return ", ".join(percent(point.parameters["budget_fraction"], 1) for point in points)


def _sampling(environment: Environment) -> Iterator[str]:
    """Say in which coordinates the sampler works, and whether it starts from measured sensitivities."""
    if environment.config.sampler not in STRUCTURED_SAMPLERS:
        return
    images = sensing_images(environment)
    names = [*structure_of(environment.problem.space).names, *([SENSITIVITY] if images else [])]
    named = f" ({', '.join(names)})" if names else ""
    yield f"Widths are proposed in {plural(len(names), 'structural coordinate')}{named}, then group by group."
    if images:
        yield f"Sensitivities are measured on {images} training images, unless they are cached, for initial trials."


def _rungs(problem: Problem) -> Iterator[TextTable]:
    """Tabulate how many trials are expected at each rung."""
    rungs, trials = problem.rungs, problem.config.trials
    if not rungs:
        return
    later = "baselines and the other exempt trials, and the better half of all others"
    reached = zip(rungs, expected(rungs, trials, exempt_from_rungs(problem.config)), strict=True)
    rows = [(str(epochs), f"{count:.0f}", "every trial" if epochs == rungs[0] else later) for epochs, count in reached]
    whole = problem.config.train.epochs * trials
    title = f"Rungs: about {forecast_epochs(problem.config):.0f} epochs of training instead of {whole}"
    yield TextTable(title, (">epochs", ">trials, about", "what"), rows)


def _screening(environment: Environment, candidates: CandidateSpace) -> Iterator[str]:
    """Say how many trials are winners of screening pools and what the screening costs, where there is any."""
    size, data, config = screening_pool_size(environment, candidates), environment.data, environment.config
    able = screenable_methods(candidates)
    if size > 1 and not able:
        yield f"Screening: none, because {', '.join(candidates.methods)} cannot be compared without training."
    elif size > 1:
        pools = screened_trials(candidates, config.trials)
        epochs = forecast_epochs(config) + config.final_training_in_all
        starts = starts_of(config)
        cost = starts * pools * size * screen_images(len(data.calibration)) / (epochs * len(data.train))
        places = "each from the dense network and from a trained one, " if starts > 1 else ""
        yield (
            f"Screening: about {pools:.0f} trials ({', '.join(able)}) are the best of {size} candidates each before "
            f"any training: {pools * size:.0f} candidates, {places}which take about {cost:.0%} of the time of the "
            "training."
        )


def _time(environment: Environment, time: TimeForecast) -> Iterator[RenderableType]:
    """Tabulate the parts of the time; warn of a dense training that is too short, or longer than the time limit."""
    limit = environment.config.time_limit
    rows = [
        ("dense training" + ("" if time.dense else " (given or cached)"), duration(time.dense)),
        (f"trials, {environment.workers} at once", duration(time.trials)),
        *([("final training", duration(time.final))] if time.final else []),
        ("start, statistics, confirmation, report", duration(time.around)),
        ("total", duration(time.total)),
    ]
    total = len(rows) - 1
    rows += [("time limit", limit)] if limit else []
    title = "Time, estimated from timed steps on this machine"
    yield TextTable(title, ("", ">time"), rows, styles=dict.fromkeys((total, total + 1), "bold"))
    if statement := dense_statement(environment.dense_curve):
        yield statement
    if environment.config.time_limit_seconds < time.dense:
        yield f"The limit of {limit} will be over before the dense training is, without a front; give a longer one."


def _disk(environment: Environment, candidates: CandidateSpace) -> TextTable:
    parts = forecast_disk(environment, candidates)
    rows = [(part.what, f"{'up to ' if part.extra else ''}{scaled(part.size, 'B')}", part.place) for part in parts]
    sure, most = sum(part.size for part in parts if not part.extra), sum(part.size for part in parts)
    rows.append(("total", scaled(sure, "B") + (f", up to {scaled(most, 'B')}" if most > sure else ""), ""))
    return TextTable("Disk, estimated", ("", ">bytes", "where"), rows, styles={len(parts): "bold"})
