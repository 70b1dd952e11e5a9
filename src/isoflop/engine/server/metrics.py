"""What Prometheus reads."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from isoflop.engine.server.runner import Runner

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Metrics:
    """Counters of the API's side; the engine's own numbers are read when they are asked for."""

    def __init__(self, runner: Runner) -> None:
        self._runner, self.registry = runner, CollectorRegistry()
        to = self.registry
        self.answers = Counter("isoflop_answers", "answers by path and status", ["path", "status"], registry=to)
        self.prompt_tokens = Counter("isoflop_prompt_tokens", "tokens of prompts", registry=to)
        self.cached_tokens = Counter("isoflop_cached_prompt_tokens", "of these, found in the cache", registry=to)
        self.output_tokens = Counter("isoflop_output_tokens", "tokens drawn", registry=to)
        drafts = (("drafted", "guesses judged by the model"), ("accepted", "of these, said"))
        self._drafts = {name: Counter(f"isoflop_{name}_tokens", told, registry=to) for name, told in drafts}
        self._told = dict.fromkeys(self._drafts, 0.0)
        self.finished = Counter("isoflop_choices", "choices by how they ended", ["finish"], registry=to)
        self.first_token = Histogram(
            "isoflop_first_token_seconds", "from request to first token", buckets=SECONDS, registry=to
        )
        self.request_s = Histogram("isoflop_request_seconds", "from request to end", buckets=SECONDS, registry=to)
        live = Gauge("isoflop_live_requests", "that wait or run", registry=to)
        live.set_function(lambda: runner.live)
        self._engine = Gauge("isoflop_engine", "the engine's own numbers", ["name"], registry=to)

    def text(self) -> bytes:
        """The exposition."""
        values = numbers(self._runner.stats)
        for name, value in values.items():
            self._engine.labels(name).set(value)
        for name, counter in self._drafts.items():
            value = values.get(name, 0.0)
            counter.inc(value - self._told[name])
            self._told[name] = value
        return generate_latest(self.registry)


class Clock:
    """Of one request."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._start, self._first = metrics, time.perf_counter(), True

    def token(self) -> None:
        """One more token came."""
        self._metrics.output_tokens.inc()
        if self._first:
            self._first = False
            self._metrics.first_token.observe(time.perf_counter() - self._start)

    def end(self) -> None:
        """The request is over."""
        self._metrics.request_s.observe(time.perf_counter() - self._start)


def numbers(stats: object) -> dict[str, float]:
    """The numbers among an object's fields."""
    import msgspec

    fields = msgspec.to_builtins(stats)
    return {name: float(value) for name, value in fields.items() if isinstance(value, int | float)}
