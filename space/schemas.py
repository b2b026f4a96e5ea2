"""The shapes of bodies and answers, for the OpenAPI page. Answers are made by `api.py`; a test holds them to this."""

from typing import Any

from pydantic import BaseModel, Field

from space.errors import CODES


class LabelScore(BaseModel):
    label: str
    score: float = Field(description="a probability; for a regression model the number itself")


class Prediction(BaseModel):
    predictions: list[LabelScore] = Field(description="best first")
    request_id: str


class Told(BaseModel):
    code: str = Field(description="stable: " + ", ".join(CODES))
    message: str
    request_id: str | None = Field(None, description="not inside a batch")


class Error(BaseModel):
    error: Told


class RowPrediction(BaseModel):
    predictions: list[LabelScore]


class Batch(BaseModel):
    results: list[RowPrediction | Error] = Field(description="one a sample, in order")
    request_id: str


class Embeddings(BaseModel):
    fused: list[float] = Field(description="of the whole sample")
    text: list[float] | None = None
    image: list[float] | None = None
    audio: list[float] | None = None


class Embedding(BaseModel):
    embeddings: Embeddings
    request_id: str


class Explanation(BaseModel):
    explanation: dict[str, Any]
    request_id: str


class FoundRow(BaseModel):
    rank: int = Field(description="from 1")
    score: float = Field(description="the cosine of both vectors, from -1 to 1")
    row: int = Field(description="number of the row in its file, from 1")
    file: str = Field(description="of the table, without its folder")
    cells: dict[str, Any] = Field(description="the table's own columns, but for pictures and sounds that lie in it")


class Found(BaseModel):
    results: list[FoundRow] = Field(description="best first; fewer where the index has fewer rows")
    model: str
    request_id: str


class Limits(BaseModel):
    max_body_bytes: int = Field(description="of one request, files included")
    max_text_chars: int
    max_text_tokens: int | None = Field(description="later ones are not read")
    max_audio_seconds: float = Field(description="longer sounds are refused")
    heard_audio_seconds: float | None = Field(description="what comes later is not heard")
    max_rows: int = Field(description="samples of a batch request")
    timeout_seconds: float


class IndexInfo(BaseModel):
    num_rows: int


class ModelInfo(BaseModel):
    id: str
    revision: str | None = Field(description="commit on the Hub; null for a local folder")
    modalities: list[str]
    task: str | None = Field(description="of a model with several tasks the one that is answered here; else null")
    tasks: list[str] = Field(description="all tasks of such a model; else empty")
    labels: list[str]
    problem_type: str
    thresholds: dict[str, float] | None = Field(
        description="of a multi-label model: the probability from which on each label is predicted; null: 0.5"
    )
    can_explain: bool
    index: IndexInfo | None = Field(description="what /v1/search looks in; null: there is none, and no such address")
    limits: Limits
    metrics: dict[str, Any] | None = Field(
        description="of each subset of the modalities, from the run that trained it"
    )


class Status(BaseModel):
    status: str


FILE = {
    "image": "a picture: PNG, JPEG, WebP, GIF, BMP, TIFF or PPM",
    "audio": "a sound: WAV, FLAC, OGG, MP3 or AIFF",
}


def sample_schema(kind: str) -> dict:
    """Give the schema of one sample as "json" (files in base64) or as "form"."""
    if kind == "form":
        file = {"type": "string", "format": "binary"}
        properties = {"text": {"type": "string"}, **{name: {**file, "description": FILE[name]} for name in FILE}}
    else:
        file = {"type": ["string", "null"], "contentEncoding": "base64"}
        properties = {"text": {"type": ["string", "null"]}}
        properties |= {
            name: {**file, "description": f"{FILE[name]}, in base64 or a base64 data: URI"} for name in FILE
        }
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "minProperties": 1,
        "description": "any subset, at least one; blanks and null count as none",
        "example": {"text": "not four but three"},
    }


def sample_body() -> dict:
    """Give what OpenAPI says of a body that is one sample, in either form."""
    content = {
        "multipart/form-data": {"schema": sample_schema("form")},
        "application/json": {"schema": sample_schema("json")},
    }
    return {"requestBody": {"required": True, "content": content}}


def samples_body(max_rows: int) -> dict:
    """Give what OpenAPI says of a body that is a list of samples."""
    schema = {"type": "array", "items": sample_schema("json"), "minItems": 1, "maxItems": max_rows}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def error_responses(*codes: str) -> dict[int | str, dict]:
    """Give what OpenAPI says of refusals: those of every route, and those named."""
    statuses: dict[int | str, list[str]] = {}
    for code in codes:
        statuses.setdefault(CODES[code][0], []).append(f"`{code}`: {CODES[code][1]}")
    return {status: {"model": Error, "description": "; ".join(told)} for status, told in statuses.items()}
