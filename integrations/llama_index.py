"""LlamaIndex: a retriever over an index node, and its embeddings (extra `llama-index`)."""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from pydantic import PrivateAttr

from braid.index.client import Client
from braid.index.responses import Hit

from .hits import metadata_of, vectors_of


class BraidRetriever(BaseRetriever):
    """Nodes of the records that a search by text finds, best first, with their scores.

    A node has the record's text, its id, and as metadata its meta with the fields of the hit
    (`labels`, `predicted`, ...). Errors are those of the client.

    Args:
        client: of the index node.
        k: how many nodes.
        query: further fields of the search, as `filter`, `vector` or `min_offsets`.
    """

    def __init__(self, client: Client, *, k: int = 10, **query: Any) -> None:
        self._client, self._k, self._query = client, k, query
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        fields = {**self._query, "text": query_bundle.query_str, "k": self._k}
        return [_node(hit) for hit in self._client.search(**fields).hits]


class BraidEmbedding(BaseEmbedding):
    """Vectors of texts by the model that serves: those that a search for the text would use.

    Args:
        client: of the index node.
        model: a version, a generation, or "champion".
    """

    _client: Client = PrivateAttr()

    def __init__(self, client: Client, *, model: str = "champion", **options: Any) -> None:
        super().__init__(model_name=model, **options)
        self._client = client

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return vectors_of(self._client.embed(texts, model=self.model_name))

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)


def _node(hit: Hit) -> NodeWithScore:
    node = TextNode(id_=hit.id, text=hit.text or "", metadata=metadata_of(hit))
    return NodeWithScore(node=node, score=hit.score)
