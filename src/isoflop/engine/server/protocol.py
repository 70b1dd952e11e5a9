"""The bodies of requests and answers: OpenAI's, with our own fields at the end of each request.

Fields that OpenAI has and this server does not serve (`NotServed`) are refused by name, and never passed over; those
that change nothing here (`user`, `metadata`, `store`, ..) are taken.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from isoflop.engine.sampling import MOST_ALTERNATIVES
from isoflop.engine.text import LONGEST_STOP, MOST_STOPS

MOST_BIASES = 1024
MOST_CHOICES = 64
INT64 = 2**63

MOST_TOKENS = 1_000_000

Count = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
NotServed = Annotated[None, Field(description="not served: null, or left out")]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[list[Token], Field(min_length=1, fail_fast=True)]  # a million mistakes are not told one by one
StopString = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]


class Body(BaseModel):
    """No conversions between types, and no field that is not known."""

    model_config = ConfigDict(strict=True, extra="forbid")


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Body):
    """`strict` makes no difference: a schema is always obeyed."""

    name: str = "answer"
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Body):
    """JSON that obeys a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


def _alternatives(which: Callable[[Any], str | None], valid: str) -> Discriminator:
    """Of a union the one alternative that is meant, by which the value is then judged: all of them together would say
    what is wrong with each, and most of that misleads. `valid`: said where none is meant."""
    return Discriminator(which, custom_error_type="union", custom_error_message=valid)


# Names of alternatives are in pydantic's paths, and no fields of a client's.
TAGS = ("|string", "|strings", "|tokens", "|token lists", "|parts", "|text", "|json_object", "|json_schema")


def _meant_format(value: Any) -> str | None:
    """From JSON, or an object of ours."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"|{kind}" if kind in ("text", "json_object", "json_schema") else None


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("|text")]
    | Annotated[JsonObjectFormat, Tag("|json_object")]
    | Annotated[JsonSchemaFormat, Tag("|json_schema")],
    _alternatives(_meant_format, 'an object whose type is "text", "json_object" or "json_schema"'),
]


def _one_or(many: str) -> Callable[[Any], str | None]:
    return lambda value: "|string" if isinstance(value, str) else many if isinstance(value, list) else None


def _meant_prompt(value: Any) -> str | None:
    """By its first item, if it is a list."""
    if isinstance(value, str):
        return "|string"
    match value[0] if isinstance(value, list) and value else None:
        case str():
            return "|strings"
        case int() as item if not isinstance(item, bool):
            return "|tokens"
        case list():
            return "|token lists"
        case _:
            return None


BiasedToken = Annotated[str, Field(pattern="^(0|[1-9][0-9]{0,8})$", description="a token's number")]
Bias = Annotated[float, Field(ge=-100, le=100)]


StopWords = Annotated[
    Annotated[StopString, Tag("|string")]
    | Annotated[list[StopString], Field(max_length=MOST_STOPS, fail_fast=True), Tag("|strings")],
    _alternatives(_one_or("|strings"), "a string or a list of strings"),
]


class StreamOptions(Body):
    """`include_usage`: a last event with the usage."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Choices(Body):
    """What both kinds of requests may say of the choice of tokens."""

    model: str | None = Field(None, description="the served model's name, or nothing")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[BiasedToken, Bias] | None = Field(None, max_length=MOST_BIASES)
    seed: int | None = Field(None, ge=-INT64, lt=INT64)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    stop: StopWords | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = Field(None, description="changes nothing: prefixes are found by their contents")
    prompt_cache_retention: str | None = None
    service_tier: Literal["auto", "default"] | None = None

    top_k: int = Field(0, ge=0, le=1_000_000, description="ours: only the k likeliest tokens; 0 is all")
    min_p: float = Field(0.0, ge=0, le=1, description="ours: only tokens this times as likely as the likeliest")
    repetition_penalty: float = Field(1.0, gt=0, le=10, description="ours: of tokens in prompt or output")
    regex: str | None = Field(None, description="ours: an expression that the output matches")
    ignore_eos: bool = Field(False, description="ours: end tokens do not end the output")
    stop_token_ids: list[Token] = Field([], max_length=64, description="ours: further end tokens")
    include_stop_str_in_output: bool = Field(False, description="ours: the stop string is part of the text")


Prompt = Annotated[
    Annotated[str, Tag("|string")]
    | Annotated[list[str], Field(min_length=1, max_length=MOST_CHOICES, fail_fast=True), Tag("|strings")]
    | Annotated[Tokens, Tag("|tokens")]
    | Annotated[list[Tokens], Field(min_length=1, max_length=MOST_CHOICES, fail_fast=True), Tag("|token lists")],
    _alternatives(_meant_prompt, "a string, or a list of one or more strings, tokens (integers) or lists of tokens"),
]


class CompletionRequest(Choices):
    """POST /v1/completions."""

    prompt: Prompt
    max_tokens: int | None = Field(
        None, ge=0, le=MOST_TOKENS, description="16 where nothing is said; 0, nothing but the prompt, only with echo"
    )
    logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    best_of: int | None = Field(
        None, ge=1, le=MOST_CHOICES, description="of so many, the n of the highest mean log probability a token"
    )
    echo: bool | None = Field(None, description="the prompt is part of the text, and of the log probabilities")
    suffix: NotServed = None


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


Content = Annotated[
    Annotated[str, Tag("|string")] | Annotated[list[TextPart], Field(fail_fast=True), Tag("|parts")],
    _alternatives(_one_or("|parts"), 'a string or a list of parts {"type": "text", "text": ".."}'),
]


class ChatMessage(Body):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content
    name: str | None = Field(None, description="for the model's own chat template")
    refusal: NotServed = None
    audio: NotServed = None
    function_call: NotServed = None
    tool_calls: NotServed = None
    tool_call_id: NotServed = None

    def text(self) -> str:
        """Its parts joined."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Choices):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096, fail_fast=True)]
    max_tokens: Count | None = Field(None, description="the rest of the context where nothing is said")
    max_completion_tokens: Count | None = Field(None, description="the same by its newer name")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    tool_choice: Literal["none"] | None = None
    parallel_tool_calls: bool | None = Field(None, description="changes nothing: there are no tools")
    tools: NotServed = None
    functions: NotServed = None
    function_call: NotServed = None
    audio: NotServed = None
    moderation: NotServed = None
    prediction: NotServed = None
    prompt_cache_options: NotServed = None
    reasoning_effort: NotServed = None
    verbosity: NotServed = None
    web_search_options: NotServed = None


class TokenizeRequest(Body):
    """POST /tokenize."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool = Field(False, description="with what the tokenizer puts before a text")


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: Annotated[list[Token], Field(fail_fast=True)]


class Tokenized(BaseModel):
    """`max_model_len`: tokens of prompt and output together."""

    tokens: list[int]
    count: int
    max_model_len: int


class Detokenized(BaseModel):
    """The text of tokens."""

    prompt: str


class Usage(BaseModel):
    """Tokens. `cached`: those of the prompt whose keys, values or states were there already."""

    class Details(BaseModel):
        """Of the prompt's tokens."""

        cached_tokens: int

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: Details


class CompletionLogprobs(BaseModel):
    """A list each, an entry a token; null for the first of an echoed prompt, which follows nothing. The token itself is
    always among the top."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One text. `stop_reason`: the stop string that ended it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | None = None


class Completion(BaseModel):
    """The answer of /v1/completions, and each of its events."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TokenLogprob(BaseModel):
    """One token's; `bytes` since a token may be half a character."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(TokenLogprob):
    """That of the text, and the likeliest beside it."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """An entry a token."""

    content: list[ChosenLogprob]


class Answer(BaseModel):
    """The assistant's turn, or, in events, more of it."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: Answer
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | None = None


class ChatCompletion(BaseModel):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(BaseModel):
    """More of one answer."""

    index: int
    delta: Answer
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | None = None


class ChatChunk(BaseModel):
    """An event of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatDelta]
    usage: Usage | None = None


class Model(BaseModel):
    """The served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["isoflop"] = "isoflop"
    max_model_len: int


class Models(BaseModel):
    """All there are: one."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """`notices`: what the engine cannot do for this architecture."""

    status: Literal["ok"] = "ok"
    live: int
    notices: list[str]
