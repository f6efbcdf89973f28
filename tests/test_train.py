"""Training from the command line: what it prints, and that a signal ends it with a checkpoint."""

import re
import signal
import subprocess
import sys

from running import ROOT

from deepseek.checkpoints.saving import latest_checkpoint
from deepseek.train import report
from deepseek.training.config import TrainConfig
from deepseek.training.metrics import TrainStep


def test_a_step_is_printed_with_its_validation_samples_and_checkpoint(capsys):
    metrics = dict(loss=5.0, load_balancing_loss=0.25, lr=5e-3, grad_norm=1.0, tokens_per_second=50.0)
    step = TrainStep(step=2, tokens=256, load=[], max_violation=[], **metrics)
    report(TrainConfig(max_steps=3), step, [50.0, 50.0])  # one step of 128 tokens is left
    line = "Step 2 - Loss: 5.0000, Load Balancing Loss: 0.250000 | lr 5.00e-03, 50 tokens/s, 3 s left"
    assert capsys.readouterr().out.splitlines() == [line]
    step.validation = {"val_loss": 4.0, "val_bits_per_byte": 5.75}
    step.samples, step.checkpoint = [{"prompt": "Once", "text": "Once\nmore"}], "runs/a/step-000002"
    report(TrainConfig(max_steps=3), step, [50.0, 50.0])
    held_out = "  held out: 4.0000 nats per token, 5.7500 bits per byte"
    expected = [line, held_out, "  Sample 1: 'Once\\nmore'", "  saved runs/a/step-000002"]
    assert capsys.readouterr().out.splitlines() == expected


def test_the_command_prints_its_steps_and_a_signal_makes_it_save(stories, tmp_path):
    settings = "--preset tiny --max-seq-len 32 --batch-size 4 --max-steps 100000 --eval-every 0 --sample-every 0"
    command = [sys.executable, "-m", "deepseek.train", "--root", str(tmp_path), "--data", stories, *settings.split()]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        first = [running.stdout.readline() for _ in range(3)]
        running.send_signal(signal.SIGTERM)
        rest, errors = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 0, errors
    for number, line in enumerate(first, 1):
        losses = rf"Step {number} - Loss: \d+\.\d+, Load Balancing Loss: \d+\.\d+"
        assert re.match(rf"{losses} \| lr .*, \d+ tokens/s, \d+ .* left$", line)
    steps = re.findall(r"^Step (\d+) ", rest, re.M)
    last = int(steps[-1]) if steps else 3
    assert latest_checkpoint(tmp_path / "run").name == f"step-{last:06d}" and f"step-{last:06d}" in rest
