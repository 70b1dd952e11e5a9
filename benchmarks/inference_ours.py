"""The engine as a side of benchmarks/inference.py."""

import sys

import torch

from inference_shape import CONTEXT, D_FF, D_HEAD, D_MODEL, HEADS, KV_HEADS, LAYERS, PROMPT, TOKENS, VOCAB, Watch, serve
from isoflop.architecture import Attention, Decoder, Layer, Mlp
from isoflop.engine.engine import Engine, Options
from isoflop.engine.request import Request
from isoflop.engine.sampling import Sampling
from isoflop.model import DecoderModel
from isoflop.model.quantized import Format, Integer, quantize_linears

FORMATS: dict[str, Format] = {
    "int4": Integer(bits=4, group=32),
    "int4 g128": Integer(bits=4, group=128),
    "int8": Integer(bits=8),
}


def build(kind: str) -> tuple[DecoderModel, float]:
    """The model and the bytes of its matrices."""
    layer = Layer(mixer=Attention(n_heads=HEADS, n_kv_heads=KV_HEADS, d_head=D_HEAD), feed_forward=Mlp(d_ff=D_FF))
    decoder = Decoder(
        vocab_size=VOCAB, d_model=D_MODEL, layers=(layer,) * LAYERS, max_context=CONTEXT, tie_embeddings=False
    )
    torch.manual_seed(0)
    model = DecoderModel(decoder).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0, 0.02) if parameter.dim() > 1 else parameter.fill_(1)
    if kind in FORMATS:
        quantize_linears(model, FORMATS[kind])
    elif kind == "bf16":  # matrices; what flows between them stays fp32
        for parameter in model.parameters():
            parameter.data = parameter.bfloat16() if parameter.dim() > 1 else parameter
    named = [*model.named_parameters(), *model.named_buffers()]
    skipped = "embedding", "ropes"
    return model, sum(tensor.nbytes for name, tensor in named if not name.startswith(skipped))


class Ours:
    def __init__(self, model: DecoderModel) -> None:
        self.engine = Engine(model, Options(reuse=False, most_running=8, dtype="fp32", memory=2**28))

    def decode(self, batch: int) -> float:
        """Seconds of TOKENS steps in which every sequence gains a token; the prompts' step is not among them."""
        for i in range(batch):
            prompt = tuple(range(100 + i, 100 + i + PROMPT))
            self.engine.submit(Request(str(i), prompt, self._greedy(TOKENS + 1)))
        self.engine.step()
        with Watch() as watch:
            for _ in range(TOKENS):
                assert len(self.engine.step()) == batch
        assert not self.engine.has_work
        return watch.seconds

    def prefill(self, n_tokens: int) -> float:
        self.engine.submit(Request("", tuple(range(100, 100 + n_tokens)), self._greedy(1)))
        with Watch() as watch:
            while self.engine.has_work:
                self.engine.step()
        return watch.seconds

    def _greedy(self, n_tokens: int) -> Sampling:
        return Sampling(temperature=0.0, max_tokens=n_tokens, ignore_eos=True)


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    model, nbytes = build(sys.argv[2])
    ours = Ours(model)
    serve(nbytes, ours.decode, ours.prefill)


if __name__ == "__main__":
    main()
