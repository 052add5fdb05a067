"""Progress on the console: a moving bar on a terminal, a plain line every few seconds otherwise.

Training shows steps, metrics and the remaining time. Other activities (loading, evaluation,
writing) are shown once they have lasted a second or two.
"""

from __future__ import annotations

import os
import sys
import threading
import time

from harness import hookimpl
from harness.core.plain_text import visible

PLAIN_EVERY = 5.0  # seconds between plain lines of steps
QUIET_EVERY = 30.0  # seconds between plain lines of an activity that reports no steps
LIVE_AFTER, PLAIN_AFTER = 1.0, 2.0  # seconds before an activity is shown


def time_left(began, step, total, now):
    """Return `, about 40 s left` from the time of the steps so far; empty where it is unknown."""
    first, since = began
    if not first < step < total or now <= since:
        return ""
    left = (now - since) / (step - first) * (total - step)
    minutes = round(left / 60)
    return f"  about {left:.0f} s left" if left < 90 else f"  about {minutes} min left"


class Console:
    """Shows the phase, the step, a few of its metrics, and activities without metrics."""

    def __init__(self):
        self.bars = self.task = None
        self.phase, self.last = "", 0.0
        self.began = 0, 0.0  # first shown step of the phase, and its time
        self.activities = []  # open activities, the innermost last
        self.lock = threading.RLock()  # activities are shown by a timer
        self.live = sys.stderr.isatty() and not os.environ.get("NO_COLOR")

    # -- steps with metrics ------------------------------------------------------------------------

    def step(self, phase, step, total, metrics, shown):
        """Show one step, with the metrics named by `shown`."""
        values = "  ".join(
            f"{name.replace('_', ' ')} {metrics[name]:.3g}" for name in shown if name in metrics
        )
        with self.lock:
            now, new = time.monotonic(), phase != self.phase
            if new:
                self.phase, self.began = phase, (step, now)
            left = time_left(self.began, step, total, now)
            if self.live:
                self._bar(phase, step, total, values + left, new)
            elif new or step == total or now - self.last > PLAIN_EVERY:
                self._print(f"{phase:>14} {step:>5}/{total}  {values}{left}")
            if step == total:
                self.phase = ""
                self._close_bar()

    def _bar(self, phase, step, total, values, new):
        if new or self.task is None:
            self._close_bar()
            self.task = self._bars().add_task(phase, total=total, count="", values="")
        count = f"{step}/{total}"
        self.bars.update(self.task, completed=step, count=count, values=values)

    def _bars(self):
        """Return the display of bars; it is started when the first one is shown."""
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        if self.bars is None:
            columns = (
                TextColumn("{task.description:>14}"),
                BarColumn(),
                TextColumn("{task.fields[count]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[values]}"),
            )
            self.bars = Progress(*columns)
            self.bars.start()
        return self.bars

    def _close_bar(self):
        """Leave the bar of a phase on the screen as it is."""
        if self.bars is not None:
            self.bars.stop()
        self.bars = self.task = None

    # -- activities without metrics ----------------------------------------------------------------

    def activity(self, name, step, total, ended):
        """Show that an activity began, advanced or ended; without a name, that the run is over."""
        with self.lock:
            if not name:
                self.close()
            elif ended:
                self._end(name)
            elif step == 0 and total == 0:
                self.activities.append(Activity(name, self))
            elif self.activities:
                self.activities[-1].advance(step, total)

    def _end(self, name):
        while self.activities:
            last = self.activities.pop()
            last.end()
            if last.name == name:
                return

    def _print(self, line):
        print(visible(line), file=sys.stderr, flush=True)
        self.last = time.monotonic()

    def close(self):
        """End all that is shown."""
        with self.lock:
            while self.activities:
                self.activities.pop().end()
            self.phase = ""
            self._close_bar()


class Activity:
    """An activity on the console: shown by a timer, so that short ones leave no trace."""

    def __init__(self, name, console):
        self.name, self.console = name, console
        self.began, self.first = time.monotonic(), None
        self.step = self.total = 0
        self.task = None
        self.timer = None
        self._show_after(LIVE_AFTER if console.live else PLAIN_AFTER)

    def _show_after(self, seconds):
        self.timer = threading.Timer(seconds, self._show)
        self.timer.daemon = True
        self.timer.start()

    def _show(self):
        console = self.console
        with console.lock:
            if self.timer is None:
                return  # it ended before the timer fired
            if console.activities and console.activities[-1] is self:
                if console.live:
                    return self._show_live()
                self._show_plain()
            self._show_after(PLAIN_EVERY if self.total else QUIET_EVERY)

    def _show_live(self):
        self.task = self.console._bars().add_task(self.name, total=None, count="", values="")
        self._update_live()

    def _update_live(self):
        total = self.total or None  # None: a bar without a known total
        self.console.bars.update(
            self.task, completed=self.step, total=total, count=self._count(), values=self._left()
        )

    def _show_plain(self):
        elapsed = time.monotonic() - self.began
        steps = f" {self._count()}" if self.total else ""
        self.console._print(f"{self.name}{steps}  {elapsed:.0f} s{self._left()}")

    def _count(self):
        return f"{self.step}/{self.total}" if self.total else ""

    def _left(self):
        return time_left(self.first, self.step, self.total, time.monotonic()) if self.first else ""

    def advance(self, step, total):
        """Record the progress. A bar moves at once; a plain line waits for the timer."""
        self.first = self.first or (step, time.monotonic())
        self.step, self.total = step, total
        if self.task is not None and self.console.bars is not None:
            self._update_live()

    def end(self):
        """Remove the bar of the activity."""
        self.timer.cancel()
        self.timer = None
        console = self.console
        if self.task is not None and console.bars is not None:
            console.bars.remove_task(self.task)
            if console.task is None:
                console._close_bar()


CONSOLE = Console()


@hookimpl
def run_started(spec, folder, plan):
    start = "the model itself, without SFT" if spec.start == "model" else "the model after SFT"
    print(
        f"{spec.method} on {spec.suite_name}, seed {spec.seed}, start: {start} -> {folder}\n{plan}",
        file=sys.stderr,
        flush=True,
    )


@hookimpl
def step_logged(phase, step, total, metrics, shown):
    CONSOLE.step(phase, step, total, metrics, shown)


@hookimpl
def activity_changed(activity, step, total, ended):
    CONSOLE.activity(activity, step, total, ended)


@hookimpl
def run_finished(result):
    CONSOLE.close()
    print(f"finished in {result['cost']['spent_seconds']:.0f} s", file=sys.stderr, flush=True)
