"""One job in one process: train a trunk, branch each of its runs off, evaluate, and leave every result on disk.

<job>/job.json           what to do
<job>/checkpoint/        `trunk` (last point of the trunk) and `decay` (inside the run being finished)
<job>/runs/<run>.json    a finished run; written once, atomically, and believed from then on
<job>/models/<run>/      final weights of a held-out target, a checkpoint as weights/checkpoint.py has it
<job>/curve.csv          the learning curve up to the last checkpoint
"""

import math
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from isoflop.data.dataset import Dataset
from isoflop.data.stream import BatchStream, bits_per_byte, evaluation_batches, evaluation_bytes
from isoflop.ladder.curve import Curve
from isoflop.ladder.messages import Progress
from isoflop.ladder.plan import Job, PlannedRun
from isoflop.ladder.results import Result, read_result, write_result
from isoflop.train import checkpoint
from isoflop.train.trainer import Trainer
from isoflop.weights.checkpoint import save_model

MODELS = "models"
READS_PER_RUN = 200  # points of a learning curve
EVALUATION_BATCH = 32
BLOWN_UP = 10.0  # times the loss of guessing: no model that learns is ever there


class Diverged(Exception):
    """The loss is no number any more, or one that nothing was learned with."""


class Stopped(Exception):
    """Asked to stop; everything up to the last step is on disk."""


Tell = Callable[[Progress], None]
TellNote = Callable[[str], None]


class JobRunner:
    """Trains one job to its end; every method leaves the folder in a state that a later process can go on from."""

    def __init__(
        self, job: Job, folder: Path, dataset: Dataset, tell: Tell, note: TellNote, stopping: Callable[[], bool]
    ) -> None:
        self.job, self.folder, self.dataset, self.tell, self.note, self.stopping = (
            job,
            folder,
            dataset,
            tell,
            note,
            stopping,
        )
        self.batch = job.spec.recipe.batch
        self.stream = BatchStream(dataset.train, job.context, job.spec.seed)
        self.stream.require(self.batch)
        self.checkpoints = folder / "checkpoint"
        self.curve = Curve(folder / "curve.csv", [run.run for run in job.runs])
        self.read_every = max(1, max(run.steps for run in job.runs) // READS_PER_RUN)
        self.branch_steps = {job.schedule.decay_start(run.steps) for run in job.runs}
        self.guessing = math.log(job.spec.decoder.vocab_size)
        self.saved_at = time.monotonic()

    def unfinished(self) -> list[PlannedRun]:
        return [run for run in self.job.runs if read_result(self.folder, run.run) is None]

    def run(self) -> None:
        """Finish every run of the job. Raises OSError (disk), Stopped."""
        todo = self.unfinished()
        if not todo:
            return
        self.trainer = Trainer(self.job.spec, self.job.device)
        self.trainer.warm_up_compiler(*self.stream.batch(0, self.batch))
        try:
            self._resume(todo[0])
            for run in todo:
                self._finish(run)
        except Diverged as error:
            self._give_up(str(error))

    def _resume(self, first: PlannedRun) -> None:
        """Go back to the trunk's last checkpoint, unless it lies beyond where the first unfinished run branches off."""
        found = self._load("trunk")
        if found and found[1]["step"] <= self.job.schedule.decay_start(first.steps):
            self.trainer.restore(*found)

    def _load(self, name: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        try:
            return checkpoint.load(self.checkpoints, name)
        except checkpoint.DamagedCheckpoint as damage:
            self.note(f"damaged checkpoint, its run is redone: {damage}")
            checkpoint.discard(self.checkpoints, name)
            return None

    def _finish(self, run: PlannedRun) -> None:
        schedule, trainer = self.job.schedule, self.trainer
        start = schedule.decay_start(run.steps)
        self._advance(start, run, "trunk", lambda step: schedule.trunk_factor(step, self.job.warmup_steps))
        branch = trainer.state()
        self._save("trunk", branch)
        inside = self._load("decay")
        if inside and inside[1].get("run") == run.run:
            trainer.restore(*inside)
        peak = schedule.trunk_factor(start, self.job.warmup_steps)
        try:
            self._advance(run.steps, run, "decay", lambda step: peak * schedule.decay_factor(step, run.steps))
            result = self._evaluate(run)
            if run.role == "target":
                self._keep(run)
            self._write(result)
        except Diverged as error:
            self._write(_diverged(run.run, str(error), trainer.train_s))
        trainer.restore(*branch)
        checkpoint.discard(self.checkpoints, "decay")

    def _advance(self, until: int, run: PlannedRun, phase: str, lr_factor: Callable[[int], float]) -> None:
        """Train to step `until`, reading the loss at fixed steps (so that a curve does not depend on interruptions)."""
        trainer = self.trainer
        read_at, read_s = trainer.step, trainer.train_s
        while trainer.step < until:
            inputs, targets = self.stream.batch(trainer.step * self.batch, self.batch)
            factor = lr_factor(trainer.step)
            trainer.train_step(inputs, targets, factor)
            if self._is_reading(phase, trainer.step) or trainer.step == until:
                rate = (trainer.step - read_at) * self.job.batch_tokens / max(trainer.train_s - read_s, 1e-9)
                self._read(run, phase, factor, rate)
                read_at, read_s = trainer.step, trainer.train_s
            stopping = self.stopping()
            if stopping or time.monotonic() - self.saved_at > self.job.checkpoint_s:
                self._save(phase, trainer.state(), run)
            if stopping:
                raise Stopped

    def _is_reading(self, phase: str, step: int) -> bool:
        """A trunk is read wherever a run leaves it, also when that run was finished before an interruption."""
        return step % self.read_every == 0 or (phase == "trunk" and step in self.branch_steps)

    def _read(self, run: PlannedRun, phase: str, factor: float, rate: float) -> None:
        trainer, tokens = self.trainer, self.trainer.step * self.job.batch_tokens
        loss = trainer.read_loss()
        if not loss < BLOWN_UP * self.guessing:
            raise Diverged(
                f"the loss was {loss:.4g} at step {trainer.step} of {run.steps}; guessing is {self.guessing:.4g}"
            )
        branch = run.run if phase == "decay" else ""
        self.curve.add(branch, phase, trainer.step, tokens, loss, factor * self.job.spec.recipe.lr, rate)
        self.tell(Progress(self.job.trunk, run.run, phase, tokens, loss, rate))

    def _evaluate(self, run: PlannedRun) -> Result:
        job, valid = self.job, self.dataset.valid
        judged = partial(evaluation_batches, valid, job.context, EVALUATION_BATCH, job.eval_tokens)
        nats = self.trainer.evaluate(judged())
        if not nats < self.guessing:
            raise Diverged(
                f"the validation loss was {nats:.4g} nats a token, no better than guessing ({self.guessing:.4g})"
            )
        n_bytes = evaluation_bytes(self.dataset.valid_bytes, job.context, job.eval_tokens)
        n_tokens = min(job.eval_tokens, len(valid) - 1) // job.context * job.context
        return Result(
            run=run.run,
            status="done",
            reason=None,
            loss_train=self.curve.last_loss(run.run),
            loss_valid=nats,
            bits_per_byte=bits_per_byte(nats * n_tokens, n_bytes),
            unique_tokens=self.stream.unique_tokens(run.steps * self.batch),
            wall_s=self.trainer.train_s,
            router_load=self.trainer.router_load(),
            loss_exit=self.trainer.evaluate_exit(judged()),
        )

    def _save(self, name: str, state: tuple[dict[str, Any], dict[str, Any]], run: PlannedRun | None = None) -> None:
        tensors, meta = state
        self.curve.write()
        checkpoint.save(self.checkpoints, name, tensors, meta | {"run": run.run if run else None})
        self.saved_at = time.monotonic()

    def _keep(self, run: PlannedRun) -> None:
        """Leave the final weights; before the result, so that a finished target has them."""
        folder = self.folder / MODELS / run.run
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed before it wrote the result
        tokenizer = self.dataset.tokenizer
        special = {"bos_token_id": tokenizer.begin, "eos_token_id": tokenizer.separator}
        origin = f"run {run.run}: {run.family}, d_model {run.d_model}, {run.tokens} tokens"
        early = self.job.spec.early_exit
        exit_after = None if early is None else early.after
        save_model(folder, self.trainer.model, origin, self.dataset.folder, special, exit_after)

    def _write(self, result: Result) -> None:
        self.curve.write()
        write_result(self.folder, result)

    def _give_up(self, reason: str) -> None:
        """The trunk itself diverged: so did every run that needed more of it."""
        for run in self.unfinished():
            self._write(_diverged(run.run, reason, self.trainer.train_s))


def _diverged(run: str, reason: str, wall_s: float) -> Result:
    return Result(run, "diverged", reason, None, None, None, 0, wall_s, [])
