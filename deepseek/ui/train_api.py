"""The named endpoints of training, for gradio_client and plain HTTP; the page itself does not use them."""

import gradio as gr

from deepseek.training import runs
from deepseek.training.config import TrainConfig
from deepseek.ui.components.run_view import run_choices
from deepseek.ui.components.train_form import free_name
from deepseek.ui.errors import user_error
from deepseek.ui.server import access_control
from deepseek.ui.tabs import train

DEFAULT = TrainConfig()


def status(name: str = "") -> dict:
    """How a run stands: {"name", "state" (running, paused, stopped, finished, failed or killed), "reason", "step", "steps",
    "checkpoint" (the newest one's path, or null), "metrics" (its last line), "validation" (its last one)}. Without a
    name: the run in progress, or the newest. A run that is not there is refused.
    """
    try:
        name = next((name for _, name in run_choices()), "") if name == "" else name
        run = runs.find(runs.ROOT, name)
        lines, _ = runs.metrics(run.folder)
    except (ValueError, TypeError) as error:
        raise user_error(error) from error
    return {
        **{field: getattr(run, field) for field in ("name", "state", "reason", "step", "steps")},
        "checkpoint": run.checkpoint and str(run.checkpoint),
        "metrics": next((line for line in reversed(lines) if "loss" in line), None),
        "validation": next((line for line in reversed(lines) if "val_loss" in line), None),
    }


def build() -> None:
    """Adds /train_start, /train_status and /train_stop to the page under construction."""

    def train_start(
        name: str = "",
        preset: str = "tiny",
        init_from: str = "",
        data: list[str] = DEFAULT.data,
        steps: int = 300,
        batch_size: int = DEFAULT.batch_size,
        context: int = DEFAULT.context,
        lr: float = DEFAULT.lr,
        balance_weight: float = DEFAULT.balance_weight,
        save_every: int = DEFAULT.save_every,
        seed: int = DEFAULT.seed,
        secret: str = "",
    ) -> dict:
        """Starts a run in the background and answers with its /train_status. The settings are those of TrainConfig; without
        a name the run gets a free one. On a public Space all but a small run needs the owner's `secret`.
        """
        given = {field: value for field, value in locals().items() if field != "secret"}
        try:
            config = TrainConfig(**{**given, "name": free_name() if name == "" else name, "root": runs.ROOT})
            access_control.check_access(config, secret)
        except (ValueError, TypeError) as error:
            raise user_error(error) from error
        return status(train.start_run(config).name)

    def train_stop(name: str = "", secret: str = "") -> dict:
        """Asks a run, or the one in progress, to commit what it has and to end; answers with its /train_status."""
        name = status(name)["name"]
        train.control_run("stop", name, secret)
        return status(name)

    gr.api(train_start, api_name="train_start")
    gr.api(status, api_name="train_status")
    gr.api(train_stop, api_name="train_stop")
