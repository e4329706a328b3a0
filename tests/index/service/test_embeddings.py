"""`POST /v1/embeddings` with OpenAI's own client: the vectors that a search would use."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from braid.index.service.app import Limits, QueryInput, QueryVectors, Serving
from braid.index.service.requests import MAX_BATCH
from tests.index.conftest import MAX_BODY, Node, serving
from tests.index.oracle import DIM, SPACE, unit

PNG = b"\x89PNG a picture"
SOUND = b"RIFF a sound"
FILM = b"\x1aE\xdf\xa3 a film"
PICTURE = {
    "type": "image_url",
    "image_url": {"url": "data:image/png;base64," + base64.b64encode(PNG).decode()},
}
HEARD = {
    "type": "input_audio",
    "input_audio": {"data": base64.b64encode(SOUND).decode(), "format": "wav"},
}
FILMED = {
    "type": "video_url",
    "video_url": {"url": "data:video/webm;base64," + base64.b64encode(FILM).decode()},
}


def problem(answer: httpx.Response) -> dict[str, str]:
    error: dict[str, str] = answer.json()["error"]
    return error


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="not needed here", max_retries=0)


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
def test_openais_client_gets_the_vectors_of_a_search(
    node: Node, http: httpx.Client, encoding: Any
) -> None:
    more = {} if encoding is None else {"encoding_format": encoding}
    with client(node.url) as openai_client:
        answer = openai_client.embeddings.create(
            model="champion", input=["a red bird", "a planet"], **more
        )
    assert [one.index for one in answer.data] == [0, 1]
    assert answer.model == "m-query"
    for one, text in zip(answer.data, ["a red bird", "a planet"], strict=True):
        values = one.embedding
        if encoding == "base64":  # asked for, it is not decoded by the client
            values = np.frombuffer(base64.b64decode(str(values)), dtype="<f4").tolist()
        np.testing.assert_array_equal(
            np.asarray(values, dtype=np.float32), unit(text, None, None).astype(np.float32)
        )


def test_parts_are_files_of_each_modality_and_make_one_vector_together(
    node: Node, http: httpx.Client
) -> None:
    together = [{"type": "text", "text": "at night"}, PICTURE, HEARD, FILMED]
    given = [PICTURE, HEARD, FILMED, together, "words"]
    answer = http.post("/v1/embeddings", json={"model": "g0001", "input": given})
    assert answer.status_code == 200, answer.text
    assert node.asked == [
        QueryInput(image=PNG),
        QueryInput(audio=SOUND),
        QueryInput(video=FILM),
        QueryInput(text="at night", image=PNG, audio=SOUND, video=FILM),
        QueryInput(text="words"),
    ]
    vector = answer.json()["data"][3]["embedding"]
    np.testing.assert_allclose(vector, unit("at night", PNG, SOUND, FILM), atol=1e-6)
    assert answer.json()["space"] == SPACE


def test_one_text_is_one_input(node: Node, http: httpx.Client) -> None:
    answer = http.post("/v1/embeddings", json={"model": "m-query", "input": "a red bird"})
    assert len(answer.json()["data"]) == 1
    assert node.asked == [QueryInput(text="a red bird")]


def test_the_models_are_listed(node: Node) -> None:
    with client(node.url) as openai_client:
        assert [(one.id, one.owned_by) for one in openai_client.models.list()] == [
            ("m-query", "g0001")
        ]


@pytest.mark.parametrize(
    ("body", "status", "where", "reason"),
    [
        ({"model": "ada", "input": "x"}, 404, "model", "none of champion, g0001, m-query"),
        ({"model": "champion"}, 422, "input", "required"),
        ({"model": "champion", "input": []}, 422, "input", "at least 1"),
        ({"model": "champion", "input": ["x"] * 2049}, 422, "input", "at most 2048"),
        ({"model": "champion", "input": ""}, 422, "input", "at least 1"),
        ({"model": "champion", "input": ["x", ""]}, 422, "input[1]", "at least 1"),
        ({"model": "champion", "input": [1, 2]}, 422, "input[0]", "not token numbers"),
        ({"model": "champion", "input": ["x", [1, 2]]}, 422, "input[1]", "not token numbers"),
        ({"model": "champion", "input": [[]]}, 422, "input[0]", "at least 1"),
        ({"model": "champion", "input": [{"type": "video"}]}, 422, "input[0]", "video"),
        ({"model": "champion", "input": [[PICTURE, PICTURE]]}, 422, "input[0]", "two parts"),
        ({"model": "champion", "input": [[FILMED] * 5]}, 422, "input[0]", "at most 4"),
        (
            {
                "model": "champion",
                "input": [{"type": "video_url", "video_url": {"url": "https://example.org/a.mp4"}}],
            },
            422,
            "input[0].video_url.url",
            "data:video/...",
        ),
        ({"model": "champion", "input": "x", "dimensions": 7}, 422, "dimensions", "got 7"),
        ({"model": "champion", "input": "x", "encoding_format": "int8"}, 422, "encoding", "base64"),
        (
            {
                "model": "champion",
                "input": [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}],
            },
            422,
            "input[0].image_url.url",
            "links are not fetched",
        ),
        (
            {
                "model": "champion",
                "input": [{"type": "input_audio", "input_audio": {"data": "???"}}],
            },
            422,
            "input[0].input_audio.data",
            "base64",
        ),
        (
            {
                "model": "champion",
                "input": [
                    "x",
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
                ],
            },
            422,
            "input[1]",
            "image: does not decode",
        ),
    ],
)
def test_a_bad_request_names_its_field(
    node: Node, http: httpx.Client, body: Any, status: int, where: str, reason: str
) -> None:
    answer = http.post("/v1/embeddings", json=body)
    assert answer.status_code == status, answer.text
    error = problem(answer)
    assert error["field"].startswith(where)
    assert reason in error["reason"]


@dataclass
class Together(Node):
    """A node that embeds several inputs at once."""

    sizes: list[int] = field(default_factory=list)

    def serving(self, name: str | None) -> Serving:
        return Serving(
            generation="g0001", store=self.store, encode=self.encode, encode_many=self.many
        )

    async def many(self, queries: Sequence[QueryInput]) -> list[QueryVectors]:
        self.sizes.append(len(queries))
        return [await self.encode(query) for query in queries]


def test_many_inputs_share_batches_and_a_bad_one_is_named() -> None:
    node = Together()
    texts = [f"text {number}" for number in range(MAX_BATCH + 6)]
    bad = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    with serving(node) as (url, _), httpx.Client(base_url=url) as http:
        body: dict[str, Any] = {"model": "g0001", "input": texts}
        answers = http.post("/v1/embeddings", json=body).json()["data"]
        assert node.sizes == [MAX_BATCH, 6]
        np.testing.assert_allclose(answers[-1]["embedding"], unit(texts[-1], None, None), atol=1e-6)
        refused = http.post("/v1/embeddings", json=body | {"input": [*texts, bad]})
        assert problem(refused)["field"] == f"input[{len(texts)}]"


class Bare(Node):
    """A node without a model."""

    def serving(self, name: str | None) -> Serving:
        return Serving(generation="g0001", store=self.store)


def test_a_node_without_a_model_says_so() -> None:
    with serving(Bare()) as (url, _):
        answer = httpx.post(f"{url}/v1/embeddings", json={"model": "champion", "input": "x"})
        assert (answer.status_code, problem(answer)["field"]) == (501, "model")
        assert httpx.get(f"{url}/v1/models").json()["data"] == []


def test_the_rate_counts_inputs_and_the_answer_has_a_limit(node: Node) -> None:
    limits = Limits(body_bytes=MAX_BODY, rate_per_s=0.01, burst=10)
    with serving(node, limits=limits) as (url, _):
        body = {"model": "champion", "input": ["x"] * 10}
        assert httpx.post(f"{url}/v1/embeddings", json=body).status_code == 200
        assert httpx.post(f"{url}/v1/embeddings", json=body).status_code == 429
    limits = Limits(body_bytes=MAX_BODY, answer_bytes=DIM)
    with serving(node, limits=limits) as (url, _):
        answer = httpx.post(f"{url}/v1/embeddings", json={"model": "champion", "input": "x"})
        assert problem(answer)["field"] == "input"
