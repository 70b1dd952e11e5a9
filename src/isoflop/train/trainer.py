"""One model in training: a step, an evaluation, its whole state in and out."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isoflop.model import DecoderModel
from isoflop.model.decoder import Losses
from isoflop.train import optimizer as optimizers
from isoflop.train.init import initialize
from isoflop.train.recipe import EarlyExit
from isoflop.train.spec import TrainSpec

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Trainer:
    """Holds the model, its optimizers and how far they are. Losses are nats per token."""

    def __init__(self, spec: TrainSpec, device: str) -> None:
        self.spec, self.device = spec, torch.device(device)
        self.model = DecoderModel(spec.decoder, DTYPES[spec.dtype]).to(self.device)
        initialize(self.model, spec.seed, spec.recipe)
        self.parameters = list(self.model.parameters())
        self.optimizers = optimizers.build(self.model, spec.optimizer, spec.recipe)
        loss = _loss_of(self.model, spec.early_exit)
        self.loss = _compiled(loss) if spec.compile else loss
        self.step = 0
        self.train_s = 0.0
        self._nats = torch.zeros((), device=self.device)
        self._load: list[Tensor] = []
        self._steps_since_read = 0

    def warm_up_compiler(self, inputs: np.ndarray, targets: np.ndarray) -> float:
        """Compile forward and backward before the clock of training starts; returns the seconds it took."""
        started = time.perf_counter()
        if self.spec.compile:
            self.loss(self._tensor(inputs), self._tensor(targets)).total.backward()
            self._zero_grad()
            # One shape, one dtype, one device from here on: checking so on every step costs a fiftieth of a small one.
            torch.compiler.set_stance("default", skip_guard_eval_unsafe=True)
        return time.perf_counter() - started

    def train_step(self, inputs: np.ndarray, targets: np.ndarray, lr_factor: float) -> None:
        """One update on a batch of int64 [B, T] inputs and targets."""
        started = time.perf_counter()
        losses = self.loss(self._tensor(inputs), self._tensor(targets))
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.spec.grad_clip)
        optimizers.set_lr_factor(self.optimizers, lr_factor)
        for optimizer in self.optimizers:
            optimizer.step()
        self._zero_grad()
        self.model.after_step(losses.router)
        self._nats += losses.nats.detach()
        self._load = [stats.load_E.detach() for stats in losses.router]
        self._steps_since_read += 1
        self.step += 1
        self.train_s += time.perf_counter() - started

    def read_loss(self) -> float:
        """Mean nats per token over the steps since the last reading; not finite once training has blown up."""
        mean = float(self._nats) / max(1, self._steps_since_read)
        self._nats.zero_()
        self._steps_since_read = 0
        return mean

    def router_load(self) -> list[list[float]]:
        """For each sparse layer, the share of the last batch's rows that each expert got."""
        return [load.tolist() for load in self._load]

    def evaluate(self, batches: Any) -> float:
        """Mean nats per token over (inputs, targets) batches."""
        return self._mean(batches, lambda losses: losses.nats)

    def evaluate_exit(self, batches: Any) -> float | None:
        """The same of the early exit that is trained; None where there is none."""
        early = self.spec.early_exit
        return None if early is None else self._mean(batches, lambda losses: losses.exit_nats, early.after)

    def _mean(self, batches: Any, nats: Callable[[Losses], Any], exit_after: int | None = None) -> float:
        total, tokens = 0.0, 0
        for inputs, targets in batches:
            with torch.no_grad():
                losses = self.model.loss(self._tensor(inputs), self._tensor(targets), exit_after)
            total += float(nats(losses)) * inputs.size
            tokens += inputs.size
        return total / tokens

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Copies of every tensor that training depends on, and the counters beside them."""
        tensors = {f"model.{name}": value.clone() for name, value in self.model.state_dict().items()}
        for i, optimizer in enumerate(self.optimizers):
            for index, slots in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{i}.{index}.{key}": value.clone() for key, value in slots.items()}
        tensors["nats"] = self._nats.clone()
        return tensors, {"step": self.step, "train_s": self.train_s, "since_read": self._steps_since_read}

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Go back to a state. Raises KeyError or RuntimeError where it is not this model's."""
        with torch.no_grad():
            for name, value in self.model.state_dict().items():  # parameters, and the experts' selection bias
                value.copy_(tensors[f"model.{name}"])
            self._nats.copy_(tensors["nats"])
        for i, optimizer in enumerate(self.optimizers):
            slots: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"optimizer.{i}."):
                    _, _, index, slot = key.split(".")
                    slots.setdefault(int(index), {})[slot] = value.clone()
            optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
        self.step, self.train_s, self._steps_since_read = meta["step"], meta["train_s"], meta["since_read"]

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def _zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def _loss_of(model: DecoderModel, early_exit: EarlyExit | None) -> Callable[[Tensor, Tensor], Losses]:
    """What is minimised: the model's own loss, and a share of an early exit's."""
    if early_exit is None:
        return model.loss

    def loss(inputs_BT: Tensor, targets_BT: Tensor) -> Losses:
        losses = model.loss(inputs_BT, targets_BT, early_exit.after)
        assert losses.exit_nats is not None
        return losses._replace(total=losses.total + early_exit.weight * losses.exit_nats)

    return loss


def _compiled(loss: Callable[[Tensor, Tensor], Losses]) -> Any:
    """A model's loss, compiled for the one shape that will come. What was compiled for earlier models of this process
    is forgotten: torch falls back to eager, silently, after eight shapes of one function."""
    torch.compiler.set_stance("default")
    torch._dynamo.reset()
    return torch.compile(loss, dynamic=False)


def make_deterministic(device: str) -> None:
    """Equal runs end in equal bits on a CPU, whatever the threads: without this, compiled code on several threads adds
    the gradients of a table in the order in which they come. On a GPU torch refuses operators we need, so it is off."""
    torch.use_deterministic_algorithms(device == "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False  # it would write NaN into every buffer first
