"""`POST /v1/embeddings` and `GET /v1/models`, as OpenAI's clients ask for them.

The fields are those of OpenAI's API reference, Embeddings. Beyond it, an input may be a content
part as in its chat messages (`text`, `image_url`, `input_audio`, and vLLM's `video_url`), or a list
of parts, which make one vector together.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import Response

from ...errors import BadQuery
from ...responses import EmbeddingsAnswer, ModelsAnswer
from ..bodies import checked, read_json
from ..dependencies import Limiters, QueryInput, QueryVectors, ServiceDeps, Serving
from ..openapi import EMBEDDINGS_BODY
from ..problems import problems
from ..requests import (
    MAX_BATCH,
    AudioPart,
    EmbeddingsBody,
    ImagePart,
    Part,
    Parts,
    TextPart,
    VideoPart,
    from_base64,
)
from ..searcher import to_json

CHAMPION = "champion"
DATA_URI = "data:"


def add_embeddings(app: FastAPI, deps: ServiceDeps, limiters: Limiters) -> None:
    """Add the two calls to the application."""

    @app.post(
        "/v1/embeddings",
        response_model=EmbeddingsAnswer,
        responses=problems(400, 404, 501, 503),
        openapi_extra={"requestBody": EMBEDDINGS_BODY},
        tags=["search"],
    )
    async def embeddings(request: Request) -> Response:
        """Vectors of texts and files of any modality, in the schema of OpenAI's API.

        They are those that a search for the same would use. Inputs of several requests and of
        searches share the encoder's batches.
        """
        body = await read_json(request, EmbeddingsBody)
        serving = _serving(deps, body.model)
        _check_dimensions(body, serving)
        request.state.charge(len(body.input) - 1)  # the middleware has charged 1
        inputs = await asyncio.to_thread(
            lambda: [_query(one, place) for place, one in enumerate(body.input)]
        )
        vectors: list[QueryVectors] = []
        for start in range(0, len(inputs), MAX_BATCH):  # searches come in between
            async with limiters.searching.slot():
                vectors += await _embed(serving, inputs[start : start + MAX_BATCH], start)
        answer = await asyncio.to_thread(_answer, vectors, body.encoding_format)
        if len(answer) > deps.limits.answer_bytes:
            raise BadQuery(
                "input",
                f"asks for an answer of {len(answer)} bytes, the limit is "
                f"{deps.limits.answer_bytes}; send fewer, or ask for base64",
            )
        return Response(answer, media_type="application/json")

    @app.get("/v1/models", response_model=ModelsAnswer, responses=problems(), tags=["node"])
    async def models() -> Any:
        """The models that embed, in the schema of OpenAI's API."""
        return {
            "object": "list",
            "data": [
                {
                    "id": one.model,
                    "object": "model",
                    "created": 0,
                    "owned_by": one.generation,
                }
                for one in _all(deps)
                if one.model is not None
            ],
        }


def _all(deps: ServiceDeps) -> list[Serving]:
    """The generations of the node, the serving one first."""
    first = deps.serving(None)
    names = [] if deps.generations is None else sorted(deps.generations())
    return [first, *(deps.serving(name) for name in names if name != first.generation)]


def _serving(deps: ServiceDeps, model: str) -> Serving:
    """The generation that a model embeds for. Raises BadQuery."""
    if model == CHAMPION:
        return deps.serving(None)
    known = _all(deps)
    for one in known:
        if model in (one.model, one.generation):
            return one
    names = ", ".join(
        sorted({name for one in known for name in (one.model, one.generation) if name})
    )
    raise BadQuery("model", f"{model[:60]!r} is none of {CHAMPION}, {names}", status=404)


def _check_dimensions(body: EmbeddingsBody, serving: Serving) -> None:
    if body.dimensions not in (None, serving.store.dim):
        raise BadQuery(
            "dimensions", f"the space has {serving.store.dim}, got {body.dimensions}: leave it out"
        )


def _query(given: Any, place: int) -> QueryInput:
    """One input as a query. Raises BadQuery that names its place."""
    where = f"input[{place}]"
    if isinstance(given, int) or (isinstance(given, list) and given and isinstance(given[0], int)):
        raise BadQuery(where, "must be text, not token numbers: each model has its own tokeniser")
    parts = _parts(given, where)
    text: str | None = None
    media: dict[str, Any] = {}
    types = [part.type for part in parts]
    for part in parts:
        if types.count(part.type) > 1:
            raise BadQuery(where, f"has two parts of type {part.type}, the limit is 1")
        if isinstance(part, TextPart):
            text = part.text
            continue
        name, data = _file(part, where)
        if not data:
            raise BadQuery(where, f"has an empty {part.type}")
        media[name] = data
    return QueryInput(text=text, **media)


def _file(part: ImagePart | AudioPart | VideoPart, where: str) -> tuple[str, bytes]:
    """The modality and the bytes of a part that is a file. Raises BadQuery."""
    if isinstance(part, ImagePart):
        return "image", _linked(part.image_url.url, f"{where}.image_url.url", "image")
    if isinstance(part, VideoPart):
        return "video", _linked(part.video_url.url, f"{where}.video_url.url", "video")
    return "audio", from_base64(f"{where}.input_audio.data", part.input_audio.data)


def _parts(given: Any, where: str) -> Sequence[Part]:
    if isinstance(given, str):
        given = {"type": "text", "text": given}
    try:
        return checked(Parts, {"parts": given if isinstance(given, list) else [given]}).parts
    except BadQuery as error:
        raise BadQuery(where, error.reason) from None


def _linked(url: str, field: str, name: str) -> bytes:
    """The bytes of a data URI. Raises BadQuery."""
    head, comma, data = url.partition(",")
    if not comma or not head.startswith(DATA_URI) or not head.endswith(";base64"):
        raise BadQuery(field, f"must be data:{name}/...;base64,...: links are not fetched here")
    return from_base64(field, data)


async def _embed(
    serving: Serving, inputs: Sequence[QueryInput], start: int
) -> Sequence[QueryVectors]:
    """The vectors of a batch. Raises BadQuery that names the input."""
    encode, many = serving.encode, serving.encode_many
    if encode is None:
        raise BadQuery("model", "this node has no model", status=501)
    if many is not None:
        try:
            return await many(inputs)
        except BadQuery:
            pass  # one input is bad: embed them singly to find it

    async def one(place: int, query: QueryInput) -> QueryVectors:
        try:
            return await encode(query)
        except BadQuery as error:
            raise BadQuery(
                f"input[{start + place}]", f"{error.field}: {error.reason}", status=error.status
            ) from None

    return [await one(place, query) for place, query in enumerate(inputs)]


def _answer(vectors: Sequence[QueryVectors], encoding: str) -> bytes:
    def written(vector: QueryVectors) -> list[float] | str:
        values_D = np.asarray(vector.fused, dtype="<f4")
        if encoding == "base64":
            return base64.b64encode(values_D.tobytes()).decode()
        return [float(value) for value in values_D]

    return to_json(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": written(vector)}
                for index, vector in enumerate(vectors)
            ],
            "model": vectors[0].model,
            "space": vectors[0].space,
            "usage": {"prompt_tokens": 0, "total_tokens": 0},
        }
    )
