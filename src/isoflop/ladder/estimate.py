"""How long a run will take, before it starts: closed forms over assumed rates, so that equal studies make equal plans.

The rates are those measured on one core of a server processor (docs/decisions.md, "How fast is a small model"); another
machine differs, so every printed time is an estimate within a factor of two until runs have been timed.
"""

from typing import TYPE_CHECKING

from isoflop.train.spec import TrainSpec

if TYPE_CHECKING:
    from isoflop.ladder.plan import Job
    from isoflop.ladder.study import Training

PEAK = 85e9  # FLOP/s of a large fp32 matrix product on one core
GPU_PEAK = 400e12  # FLOP/s in bf16; small models reach little of it
HALF_WIDTH = 100.0  # the d_model at which a run reaches half the peak
STEP_S, GPU_STEP_S = 1e-3, 5e-3  # a step costs this much however small the model
START_S = 5.0  # of the worker processes: importing torch
COMPILED_SPEEDUP = 1.3
COMPILE_S = 20.0  # one core, forward and backward of a few layers
EVALUATION_SHARE = 1 / 3  # an evaluated token costs a forward pass


def training_seconds(spec: TrainSpec, tokens: float, context: int, device: str = "cpu") -> float:
    """Seconds of training alone on one thread (or one GPU)."""
    work = spec.flops_per_token(context) * tokens
    peak = PEAK if device == "cpu" else GPU_PEAK
    width = spec.decoder.d_model
    efficiency = width / (width + HALF_WIDTH * (1 if device == "cpu" else 20))
    steps = tokens / (spec.recipe.batch * context)
    floor = steps * (STEP_S if device == "cpu" else GPU_STEP_S)
    return floor + work / (peak * efficiency) / (COMPILED_SPEEDUP if spec.compile else 1)


def job_tokens(spec: TrainSpec, training: "Training", lengths: list[int]) -> float:
    """Tokens of a trunk up to its last branch, every decay, and the evaluations at a third."""
    batch_tokens = spec.recipe.batch * training.context
    starts = [training.schedule.decay_start(steps) for steps in lengths]
    steps = max(starts) + sum(length - start for length, start in zip(lengths, starts, strict=True))
    return steps * batch_tokens + len(lengths) * training.eval_tokens * EVALUATION_SHARE


def compiling_pays(spec: TrainSpec, training: "Training", lengths: list[int], device: str) -> bool:
    """Whether the compiler saves more seconds than it costs on this job."""
    seconds = training_seconds(spec, job_tokens(spec, training, lengths), training.context, device)
    return seconds * (1 - 1 / COMPILED_SPEEDUP) > COMPILE_S


def job_seconds(job: "Job") -> float:
    """Seconds of a whole job on its own threads."""
    starts = [job.schedule.decay_start(run.steps) for run in job.runs]
    steps = max(starts) + sum(run.steps - start for run, start in zip(job.runs, starts, strict=True))
    tokens = steps * job.batch_tokens + len(job.runs) * job.eval_tokens * EVALUATION_SHARE
    speedup = 1 + 0.2 * (job.threads - 1)  # a small model gains little from a second thread
    seconds = training_seconds(job.spec, tokens, job.context, job.device) / speedup
    return seconds + (COMPILE_S if job.spec.compile else 0)
