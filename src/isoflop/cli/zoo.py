"""Published architectures with exact counts, beside what their publishers say.

isoflop zoo
isoflop zoo deepseek-v3
isoflop zoo --json

Counts follow from the configurations; a publisher's figure is shown as written, and where it is not the configuration's
own count under any convention, the zoo says so and why. Models of which sizes are only rumoured are listed as rumours,
without a count; those that the language cannot express say what is missing.
"""

import argparse

import msgspec

from isoflop.architecture import Decoder
from isoflop.architecture.find import did_you_mean, published_decoder
from isoflop.architecture.zoo import Entry, canonical, entries, figure
from isoflop.cli.layers import LayerGroup, kind_of, layer_groups, words
from isoflop.cli.tables import BYTES, COUNTS, new_table, scaled
from isoflop.cost import Cache, Parameters, cache, parameters

CACHE_DTYPE = "bf16"


class Row(msgspec.Struct, frozen=True):
    """A model of the list. Counts and bytes are exact, and none where there is no architecture; cache in bf16."""

    name: str
    kind: str
    status: str  # exact | not expressible | rumour
    total: int | None
    active: int | None
    kv_bytes_per_token: int | None
    state_bytes_per_sequence: int | None
    published_total: str | None
    published_active: str | None
    published_agrees: bool | None
    note: str


class Comparison(msgspec.Struct, frozen=True):
    """A publisher's figure beside the nearest exact count, and under which convention that is; `difference` is how far
    the figure lies above it, as a share; it agrees where it is that count rounded up or down at its last digit."""

    published: str
    exact: int
    convention: str
    difference: float
    agrees: bool


class Model(msgspec.Struct, frozen=True):
    """One model in full; cache at one token, in bf16."""

    name: str
    aliases: tuple[str, ...]
    kind: str
    source: str
    digest: str
    vocab_size: int
    d_model: int
    n_layers: int
    max_context: int
    tie_embeddings: bool
    params: Parameters
    cache: Cache
    layers: list[LayerGroup]
    published_total: Comparison | None
    published_active: Comparison | None
    why: str
    note: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="a published model (default: list them all)")
    parser.add_argument("--json", action="store_true", help="print the document instead of a table")


def run(args: argparse.Namespace) -> int:
    """List, or show one. Returns the exit code."""
    answer: Model | list[Row] = [row_of(name) for name in entries()] if args.name is None else model_of(args.name)
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())
    elif isinstance(answer, Model):
        _print_model(answer)
    else:
        _print_rows(answer)
    return 0


def row_of(name: str) -> Row:
    """One line of the list."""
    entry = entries()[name]
    decoder = None if entry.refused or entry.rumour else published_decoder(name)
    counts = None if decoder is None else parameters(decoder)
    kept = None if decoder is None else cache(decoder, 1, CACHE_DTYPE)
    compared = [c for c in _compared(entry, counts) if c is not None] if counts is not None else []
    return Row(
        name=name,
        kind=entry.kind if decoder is None else kind_of(decoder),
        status="rumour" if entry.rumour else "not expressible" if entry.refused else "exact",
        total=None if counts is None else counts.total,
        active=None if counts is None else counts.active,
        kv_bytes_per_token=None if kept is None else kept.bytes_per_token,
        state_bytes_per_sequence=None if kept is None else kept.state_bytes_per_sequence,
        published_total=entry.total,
        published_active=entry.active,
        published_agrees=all(c.agrees for c in compared) if compared else None,
        note=_note(entry),
    )


def model_of(name: str) -> Model:
    """One model in full. Raises ValueError for a name that the zoo does not know, or knows and cannot express."""
    own_name, decoder = canonical(name), published_decoder(name)
    if own_name is None or decoder is None:
        raise ValueError(f"'{name}' is not in the zoo{did_you_mean(name)}")
    return _model(own_name, entries()[own_name], decoder)


def _model(name: str, entry: Entry, decoder: Decoder) -> Model:
    counts = parameters(decoder)
    total, active = _compared(entry, counts)
    return Model(
        name=name,
        aliases=entry.aliases,
        kind=kind_of(decoder),
        source=entry.source,
        digest=decoder.digest,
        vocab_size=decoder.vocab_size,
        d_model=decoder.d_model,
        n_layers=decoder.n_layers,
        max_context=decoder.max_context,
        tie_embeddings=decoder.tie_embeddings,
        params=counts,
        cache=cache(decoder, 1, CACHE_DTYPE),
        layers=layer_groups(decoder),
        published_total=total,
        published_active=active,
        why=entry.why,
        note=entry.note,
    )


def _compared(entry: Entry, counts: Parameters) -> tuple[Comparison | None, Comparison | None]:
    """The figures for total and active parameters against the counts that they may mean."""
    return (
        None if entry.total is None else _nearest(entry.total, counts, ("total",)),
        None if entry.active is None else _nearest(entry.active, counts, ("active", "active_no_input_embedding")),
    )


def _nearest(text: str, counts: Parameters, conventions: tuple[str, ...]) -> Comparison:
    published = figure(text)
    convention = min(conventions, key=lambda c: abs(getattr(counts, c) - published.value))
    exact = getattr(counts, convention)
    return Comparison(text, exact, convention, published.value / exact - 1, published.agrees(exact))


def _note(entry: Entry) -> str:
    if entry.rumour:
        return f"rumour: {entry.source}"
    if entry.refused:
        return f"not expressible: {entry.refused}"
    return "; ".join(part for part in (entry.why and f"published figure differs: {entry.why}", entry.note) if part)


def _print_rows(rows: list[Row]) -> None:
    from rich.console import Console

    table = new_table("model", "total", "active", "KV/token", "published", "kind")
    table.padding = 0  # all six columns fit into a terminal of 80
    for column in table.columns:
        column.no_wrap = True
    for row in rows:
        total, active = ("-" if count is None else scaled(count, COUNTS, 3) for count in (row.total, row.active))
        kept = "-" if row.kv_bytes_per_token is None else scaled(row.kv_bytes_per_token, BYTES, 3)
        table.add_row(row.name, total, active, kept, _said(row), row.kind)
    console = Console(highlight=False, markup=False)
    console.print(table)
    for row in rows:
        if row.note:
            console.print(f"{row.name}: {row.note}", soft_wrap=True)
    exact = sum(row.status == "exact" for row in rows)
    console.print(
        f"\n{exact} models with exact counts, {len(rows) - exact} without; KV are keys and values in {CACHE_DTYPE}."
        "\n!= a published figure that is not the configuration's; ? a rumour. isoflop zoo NAME tells all of one.",
        soft_wrap=True,
    )


def _said(row: Row) -> str:
    figures = " / ".join(text for text in (row.published_total, row.published_active) if text)
    mark = {True: "", False: "!= ", None: ""}[row.published_agrees]
    return mark + figures + ("?" if row.status == "rumour" else "")


def _print_model(model: Model) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    shape = f"{model.kind}; {model.n_layers} layers, d_model {model.d_model}, vocabulary {model.vocab_size}"
    tied = "tied" if model.tie_embeddings else "untied"
    console.print(f"{model.name}: {shape} ({tied} tables), at most {model.max_context} tokens", soft_wrap=True)
    if model.aliases:
        console.print(f"also known as {', '.join(model.aliases)}", soft_wrap=True)
    table = new_table("parameters", "exact count", "")
    for name in Parameters.__struct_fields__:
        count = getattr(model.params, name)
        table.add_row(name, f"{count:,}", scaled(count, COUNTS))
    console.print(table)
    for line in _published_lines(model) + _cache_lines(model) + _layer_lines(model):
        console.print(line, soft_wrap=True)


def _published_lines(model: Model) -> list[str]:
    """What the publisher says, and how it lies to the exact counts."""
    lines = []
    for what, found in (("total", model.published_total), ("active", model.published_active)):
        if found is not None:
            verdict = "agrees with" if found.agrees else f"differs by {found.difference:+.2%} from"
            lines.append(f"published {what}: {found.published} ({model.source}) {verdict} {found.convention}")
    lines += [f"why: {model.why}"] if model.why else []
    return lines + ([f"note: {model.note}"] if model.note else [])


def _cache_lines(model: Model) -> list[str]:
    kept, states = model.cache.bytes_per_token, model.cache.state_bytes_per_sequence
    line = f"cache in {CACHE_DTYPE}: {kept:,} bytes a token"
    return [line + (f", and {states:,} bytes of states a sequence" if states else "")]


def _layer_lines(model: Model) -> list[str]:
    lines = []
    for group in model.layers:
        parallel = " in parallel" if "parallel" in group.layer else ""
        lines += [
            f"{group.count} layers ({group.places}){parallel}",
            f"    mixer: {words(group.layer['mixer'])}",
            f"    feed-forward: {words(group.layer['feed_forward'])}",
        ]
    return lines
