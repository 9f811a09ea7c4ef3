"""Number of training steps, from the time that the user gives to the training."""

from config import Config
from planning.sizes import with_planned
from runtime.errors import UserError


def plan_steps(config: Config, seconds_per_step: float) -> Config:
    """The flags of a run that trains for `--minutes`, from the time of a step on all ranks.

    A typed --max_steps wins, and is then all that is kept.
    """
    if config.minutes is None:
        return config
    if "max_steps" in config.given:
        return config.replace(minutes=None)
    steps = max(1, int(60 * config.minutes / seconds_per_step))
    return with_planned(config, max_steps=steps, log_every=min(config.log_every, steps),
                        eval_every=-(-steps // 2), save_every=-(-steps // 4))


def longer_plan(run: Config, command_line: Config) -> dict[str, int | None]:
    """Changes of a resumed run by a longer --minutes: as many steps a minute as at first.

    A typed --max_steps ends the plan. Raises UserError if the run was not planned by minutes, or
    for fewer minutes than planned.
    """
    if "max_steps" in command_line.typed:
        return {"minutes": None}
    if "minutes" not in command_line.typed:
        return {}
    if run.minutes is None:
        raise UserError("--minutes was given, but this run was started with --max_steps "
                        f"{run.max_steps}; give a larger --max_steps.")
    if command_line.minutes < run.minutes:
        raise UserError(f"--minutes {command_line.minutes:g} was given, but this run was planned "
                        f"for {run.minutes:g}; only a larger number can be given.")
    return {"max_steps": round(run.max_steps * command_line.minutes / run.minutes)}
