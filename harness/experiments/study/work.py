"""Carry out a study: expand it, run its cells, choose tuned settings, run those, and report the
end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...api.contracts import Launcher
from ...api.registry import Registry, load_file
from ...core.digests import digest_of
from ...core.errors import HarnessError
from ...core.fault_points import fault_point
from ...core.files import lock, make_folder, write_text
from ...core.global_state import put_back
from ...core.interrupts import asked_for
from ...core.jobs import INTERRUPTED, LOST, Job, environment_of, last_attempt
from ...core.lock_trial import require_locks
from ...core.options import build
from ...core.records import write_sealed
from ..trackers import Tracking
from .cells import Cell, distinct, expand, ground_of, in_order
from .file import Study
from .state import CELLS, DONE, FAILED, LEFT, TUNING, State, cells_json, state_of, study_folder
from .tune import Choice, choose, searches, tune_json, tuned

QUIET_ENDS = {2, 3}  # exit codes of a run that was refused: it left no record


@dataclass(frozen=True)
class Plan:
    """The known cells of a study and the results of its trials so far."""

    cells: list[Cell]
    choices: list[Choice]

    @property
    def waiting(self) -> list[Choice]:
        """The searches whose runs on the test split are not known yet."""
        return [choice for choice in self.choices if choice.open]


def load_plugins(study: Study, registry: Registry) -> None:
    """Load the plugin files of a study."""
    for path in study.plugins:
        if str(Path(path).resolve()) not in registry.files:
            load_file(registry, path)


def launcher_of(
    study: Study, registry: Registry, name: str | None, settings: dict[str, str]
) -> Launcher:
    """Return the launcher: that of the study, or another one; `settings` replace those of the
    study.
    """
    chosen = name or study.launcher
    own = study.launcher_options if chosen == study.launcher else {}
    launcher: Launcher = build(
        registry.get("launchers", chosen), {**own, **settings}, f"launcher {chosen}"
    )
    return launcher


def plan(study: Study, registry: Registry, results: Path) -> Plan:
    """Return the cells: untuned settings, trials, and the chosen settings once the trials have
    ended.
    """
    cells, choices = expand(study, registry), []
    if study.tune is not None:
        tune = study.tune
        choices = [choose(search, tune, results) for search in searches(study, tune, registry)]
        trials = [cell for choice in choices for cell in choice.search.cells]
        chosen = [cell for choice in choices for cell in tuned(study, registry, choice)]
        cells = trials + _both(cells, chosen)  # first the jobs that others wait for
    return Plan(in_order(distinct(cells)), choices)


class Work:
    """Carries a study out, and calls `watch` with each event."""

    def __init__(
        self,
        study: Study,
        registry: Registry,
        results: Path,
        launcher: Launcher,
        retry: bool,
        watch: Watch,
        tracking: Tracking | None = None,
    ) -> None:
        self.study, self.registry, self.results, self.launcher = study, registry, results, launcher
        self.retry, self.watch = retry, watch
        self.folder = study_folder(results, study.name)
        # by fingerprint: the states of cells that ended in this process
        self.ended: dict[str, State] = {}
        self.unmade: dict[Job, str] = {}  # failed jobs of shared stages, with the reason
        self.locks_tried = False
        self.tracking = () if tracking is None else tracking.arguments()
        self.environment = environment_of(study.environment, str(study.path))

    def carry_out(self) -> bool:
        """Run what is left; return whether everything that can be run is done."""
        logs = make_folder(self.folder / "logs").parent
        with lock(self.folder, f"The study {self.study.name}", wait=False):
            write_text(logs / "study.toml", self.study.text)
            planned = self._round()
            while not planned.waiting and self._todo(planned):  # the settings chosen by the trials
                planned = self._round()
            states = [self.state(cell) for cell in planned.cells]
        self.watch.summary(planned, states)
        return not planned.waiting and all(s.status not in (FAILED, LEFT) for s in states)

    def state(self, cell: Cell) -> State:
        """Return the state of a cell; without a record, that of its process."""
        stored = state_of(cell, self.results)
        return self.ended.get(cell.fingerprint, stored) if stored.status == LEFT else stored

    def log(self, cell: Cell) -> Path:
        """Return the log file of a cell."""
        return (
            self.folder / "logs" / f"{cell.spec.method}-seed{cell.spec.seed}-{cell.fingerprint}.log"
        )

    def _round(self) -> Plan:
        """Carry out the remaining cells; return the next plan."""
        planned = self._planned()
        todo = self._todo(planned)
        if todo and not self.locks_tried:
            require_locks(self.folder, self.launcher.elsewhere)
            self.locks_tried = True
        jobs = self._jobs(planned.cells, todo)
        self.watch.begin(planned, [self.state(c) for c in planned.cells], len(todo))
        if self.launcher.stages_first and any(c.resources.gpus is None for c in todo):
            self.watch.note("no GPU is requested: [resources] gpus is not set (0: CPUs are meant)")
        try:
            with put_back(f"The launcher {self.launcher.name}"):
                self.launcher.run(
                    list(jobs),
                    lambda job: self._start(job, jobs[job]),
                    lambda job, code: self._end(job, jobs[job], code),
                )
        except HarnessError:
            raise
        except BaseException as error:  # a launcher may come from a third party
            if asked_for(error):
                raise
            failure = f"The launcher {self.launcher.name} failed: {type(error).__name__}: {error}."
            raise HarnessError(f"{failure} Run the same command again to go on.") from error
        finally:
            self.watch.end()
        for cell in todo:  # the launcher may have reported nothing; the job is not started twice
            self.ended.setdefault(cell.fingerprint, state_of(cell, self.results))
        return self._planned()

    def _planned(self) -> Plan:
        planned = plan(self.study, self.registry, self.results)
        write_sealed(self.folder / CELLS, cells_json(planned.cells))
        if self.study.tune is not None:
            write_sealed(
                self.folder / TUNING,
                tune_json(self.study.tune, planned.choices, planned.cells),
            )
        return planned

    def _todo(self, planned: Plan) -> list[Cell]:
        """Return the cells to run: unfinished ones that were not tried here, and failed ones on
        request.
        """
        wanted = (LEFT, FAILED) if self.retry else (LEFT,)
        return [
            c
            for c in planned.cells
            if c.fingerprint not in self.ended and state_of(c, self.results).status in wanted
        ]

    def _jobs(self, cells: Sequence[Cell], todo: Sequence[Cell]) -> dict[Job, Cell | None]:
        """Return the jobs to run, each with its cell; jobs of shared stages have none. Stages get a
        job of their own where several runs wait for them and no run that made them has finished.
        """
        trained = {ground_of(c) for c in cells if self.state(c).status == DONE}
        by_ground: dict[str, list[Cell]] = {}
        for cell in todo:
            by_ground.setdefault(ground_of(cell), []).append(cell)
        first = {
            ground: self._stages_job(ground, group[0])
            for ground, group in by_ground.items()
            if self.launcher.stages_first and len(group) > 1 and ground not in trained
        }
        jobs: dict[Job, Cell | None] = dict.fromkeys(first.values())
        for cell in todo:
            ground = ground_of(cell)
            jobs[self._job(cell, (first[ground],) if ground in first else ())] = cell
        return jobs

    def _job(self, cell: Cell, after: tuple[Job, ...] = ()) -> Job:
        return Job(
            cell.name,
            (*cell.arguments, "--results", str(self.results.resolve()), *self.tracking),
            self.log(cell).resolve(),
            cell.spec.execution.threads,
            cell.resources,
            cell.fingerprint,
            after,
            self.environment,
        )

    def _stages_job(self, ground: str, cell: Cell) -> Job:
        """Return the job for the shared stages of a cell and of similar cells."""
        key = f"stages-{digest_of([ground, cell.spec.code])[:12]}"
        job = self._job(cell)
        return replace(
            job,
            name=f"shared stages of {cell.spec.suite_name}",
            arguments=(*job.arguments, "--only-stages"),
            log=job.log.with_name(f"{key}.log"),
            key=key,
        )

    def _start(self, job: Job, cell: Cell | None) -> None:
        fault_point("study.job")
        if cell is None:
            self.watch.note(f"begin  {job.name}")
        else:
            self.watch.started(cell)

    def _end(self, job: Job, cell: Cell | None, code: int) -> None:
        fault_point("study.ended")
        if cell is None:
            self._end_stages(job, code)
            return
        state = state_of(cell, self.results)
        if state.status == LEFT:
            state = self._blocked(job) or _without_record(cell, code, last_line(job.log))
        self.ended[cell.fingerprint] = state
        self.watch.ended(cell, state, self.log(cell))

    def _end_stages(self, job: Job, code: int) -> None:
        """Record how the job of shared stages ended."""
        if code == 0:
            self.watch.note(f"done   {job.name}")
            return
        self.unmade[job] = last_line(job.log) or f"ended with status {code}"
        self.watch.note(f"failed {job.name}: {self.unmade[job]} See {job.log}.")

    def _blocked(self, job: Job) -> State | None:
        """Return the state of a run that did not start because its shared stages failed."""
        why = [self.unmade[other] for other in job.after if other in self.unmade]
        reason = "its shared stages were not made"
        return State(FAILED, "error", f"{reason}: {why[0]}") if why else None


class Watch:
    """Receives the events of a study; this one ignores them."""

    def begin(self, planned: Plan, states: Sequence[State], jobs: int) -> None:
        """Receive the number of jobs that are about to start."""

    def note(self, text: str) -> None:
        """Receive a message about no single cell, such as one on shared stages."""

    def started(self, cell: Cell) -> None:
        """Receive the start of a cell."""

    def ended(self, cell: Cell, state: State, log: Path) -> None:
        """Receive the end of a cell."""

    def end(self) -> None:
        """Receive that no job is running any more."""

    def summary(self, planned: Plan, states: Sequence[State]) -> None:
        """Receive the end of the study, or the point where only failures are left."""


def _both(defaults: list[Cell], tuned_cells: list[Cell]) -> list[Cell]:
    """Return the runs with untuned and with chosen settings; labels differ where an entry has both.
    If one entry's chosen settings are another's untuned ones, `distinct` keeps the other's label.
    """
    chosen = {(c.fingerprint, c.entry): c.label for c in tuned_cells}
    return [
        *(replace(c, label=chosen.get((c.fingerprint, c.entry), c.label)) for c in defaults),
        *tuned_cells,
    ]


def _without_record(cell: Cell, code: int, message: str) -> State:
    """Return the state of a run that ended without a result and without a recorded failure."""
    if code == LOST:
        return State(
            FAILED,
            "lost",
            "it left no exit status: its machine was lost, or its job was cancelled. Run the study"
            " again: the run goes on.",
        )
    if code < 0:
        more = ": the system's memory may have run out" if code == -9 else ""
        return State(
            FAILED,
            "killed",
            f"ended by signal {-code}{more}. Run the study again: the run goes on.",
        )
    if code in QUIET_ENDS:
        return State(FAILED, "refused", message)
    if code == 0:
        return State(
            FAILED,
            "no result",
            f"left no result in {cell.spec.folder} and no failure: a plugin ended the process, code"
            " or files changed while the study ran, or the launcher works in other folders.",
        )
    return State(
        FAILED,
        "killed" if code in INTERRUPTED else "error",
        message or f"ended with exit code {code}",
    )


def last_line(log: Path) -> str:
    """Return the last line of a job's log, which holds the reason why a run ended. After torchrun's
    report of a failed process, it is the harness's last message.
    """
    lines = last_attempt(log)
    own_lines = [line for line in lines if line.startswith("harness: ")]
    if own_lines and any("ChildFailedError" in line for line in lines):
        lines = own_lines
    return lines[-1].removeprefix("harness: ") if lines else ""


def notes(states: Sequence[State]) -> str:
    """Return `12 done, 1 failed (1 diverged), 3 left, 2 refused`."""
    count = {
        status: sum(s.status == status for s in states)
        for status in (DONE, FAILED, LEFT, "refused")
    }
    kinds = [s.kind for s in states if s.status == FAILED]
    classes = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
    counts = [
        f"{n} {status}" + (f" ({classes})" if status == FAILED else "")
        for status, n in count.items()
        if n
    ]
    return ", ".join(counts) or "nothing to run"
