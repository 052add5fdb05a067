"""Progress on the console: a moving bar on a terminal, a plain line every few seconds otherwise."""

from __future__ import annotations

import os
import sys
import time

from harness import hookimpl

PLAIN_EVERY = 5.0  # seconds between plain lines


class Console:
    """Shows the phase, the step and a few of its metrics."""

    shown = ("loss", "reward", "kl", "accuracy")

    def __init__(self):
        self.progress = self.task = None
        self.phase, self.last = "", 0.0
        self.live = sys.stderr.isatty() and not os.environ.get("NO_COLOR")

    def step(self, phase, step, total, metrics):
        """Show one step."""
        told = "  ".join(f"{name} {metrics[name]:.3f}" for name in self.shown if name in metrics)
        if self.live:
            self._bar(phase, step, total, told)
        elif phase != self.phase or step == total or time.monotonic() - self.last > PLAIN_EVERY:
            print(f"{phase:>14} {step:>5}/{total}  {told}", file=sys.stderr, flush=True)
            self.last = time.monotonic()
        self.phase = phase
        if step == total:
            self.close()

    def _bar(self, phase, step, total, told):
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        if self.progress is None or phase != self.phase:
            self.close()
            columns = (
                TextColumn("{task.description:>14}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
            )
            self.progress = Progress(
                *columns, TimeRemainingColumn(), TextColumn("{task.fields[told]}")
            )
            self.progress.start()
            self.task = self.progress.add_task(phase, total=total, told="")
        self.progress.update(self.task, completed=step, told=told)

    def close(self):
        """End the bar of a phase, leaving it on the screen."""
        if self.progress is not None:
            self.progress.stop()
        self.progress = None


CONSOLE = Console()


@hookimpl
def run_started(spec, folder):
    start = "the model itself, without SFT" if spec.start == "model" else "the model after SFT"
    print(
        f"{spec.method} on {spec.suite_name}, seed {spec.seed}, start: {start} -> {folder}",
        file=sys.stderr,
        flush=True,
    )


@hookimpl
def step_logged(phase, step, total, metrics):
    CONSOLE.step(phase, step, total, metrics)


@hookimpl
def run_finished(result):
    CONSOLE.close()
    print(f"finished in {result['cost']['spent_seconds']:.0f} s", file=sys.stderr, flush=True)
