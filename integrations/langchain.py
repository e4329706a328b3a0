"""LangChain: a retriever over an index node, and its embeddings (extra `langchain`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from pydantic import Field

from braid.index.client import AsyncClient, Client
from braid.index.responses import SearchAnswer

from .hits import metadata_of, vectors_of


class BraidRetriever(BaseRetriever):
    """Documents of the records that a search by text finds, best first.

    A document has the record's text, its id, and as metadata its meta with the fields of the hit
    (`score`, `labels`, `predicted`, ...). Errors are those of the client.

    Attributes:
        client: of the index node.
        async_client: for `ainvoke`; None: `client` on a thread.
        k: how many documents.
        query: further fields of the search, as `filter`, `vector` or `min_offsets`.
    """

    client: Client
    async_client: AsyncClient | None = None
    k: int = 10
    query: Mapping[str, Any] = Field(default_factory=dict)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        fields = {**self.query, "text": query, "k": self.k}
        return _documents(self.client.search(**fields))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun
    ) -> list[Document]:
        if self.async_client is None:
            documents: list[Document] = await super()._aget_relevant_documents(
                query, run_manager=run_manager
            )
            return documents
        fields = {**self.query, "text": query, "k": self.k}
        return _documents(await self.async_client.search(**fields))


class BraidEmbeddings(Embeddings):
    """Vectors of texts by the model that serves: those that a search for the text would use.

    Args:
        client: of the index node.
        model: a version, a generation, or "champion".
    """

    def __init__(self, client: Client, *, model: str = "champion") -> None:
        self._client, self._model = client, model

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return vectors_of(self._client.embed(texts, model=self._model)) if texts else []

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def _documents(answer: SearchAnswer) -> list[Document]:
    documents: list[Document] = [
        Document(id=hit.id, page_content=hit.text or "", metadata=metadata_of(hit))
        for hit in answer.hits
    ]
    return documents
