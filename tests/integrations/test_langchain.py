"""LangChain's own chains get documents and vectors of a node."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore

from braid.index.client import AsyncClient, Client
from braid.index.errors import BadQuery
from braid.integrations.langchain import BraidEmbeddings, BraidRetriever
from tests.index.conftest import IDS, Node
from tests.index.oracle import unit


def test_a_chain_gets_the_documents_of_a_search(node: Node, client: Client) -> None:
    retriever = BraidRetriever(client=client, k=len(IDS))
    chain = retriever | RunnableLambda(lambda documents: [one.id for one in documents])
    assert chain.invoke("a bird") == node.expected(unit("a bird", None, None), k=len(IDS))


def test_a_document_has_text_meta_and_the_fields_of_the_hit(node: Node, client: Client) -> None:
    german = {"lang": "de"}
    documents = BraidRetriever(client=client, k=3, query={"filter": german}).invoke("a bird")
    hits = client.search(text="a bird", k=3, filter=german).hits
    assert len(documents) == 3
    for document, hit in zip(documents, hits, strict=True):
        assert (document.id, document.page_content) == (hit.id, f"text of {hit.id}")
        metadata = document.metadata
        assert metadata["score"] == hit.score
        assert (metadata["lang"], metadata["number"]) == ("de", hit.meta["number"])
        assert (metadata["labels"], metadata["predicted"]) == ({"kind": "bird"}, {"kind": "frog"})


def test_a_record_without_text_is_a_document_without_content(client: Client) -> None:
    documents = BraidRetriever(client=client, k=len(IDS)).invoke("a bird")
    (empty,) = [one for one in documents if not one.page_content]
    assert empty.id == IDS[0]


@pytest.mark.parametrize("own", [True, False], ids=["its own client", "on a thread"])
def test_it_works_from_asyncio(node: Node, client: Client, own: bool) -> None:
    async def asked() -> list[Document]:
        async with AsyncClient(node.url) as async_client:
            given = {"async_client": async_client} if own else {}
            retriever = BraidRetriever(client=client, k=2, **given)
            documents: list[Document] = await retriever.ainvoke("a bird")
            return documents

    assert asyncio.run(asked()) == BraidRetriever(client=client, k=2).invoke("a bird")


def test_a_vector_store_of_langchains_takes_the_embeddings(client: Client) -> None:
    embeddings = BraidEmbeddings(client)
    texts = ["a red bird", "a planet", "rain"]
    store = InMemoryVectorStore.from_texts(texts, embeddings)
    (best,) = store.similarity_search("a planet", k=1)
    assert best.page_content == "a planet"
    vector = np.asarray(embeddings.embed_query("rain"), np.float32)
    np.testing.assert_array_equal(vector, unit("rain", None, None).astype(np.float32))
    assert embeddings.embed_documents([]) == []


def test_a_refusal_is_the_clients_error(client: Client) -> None:
    with pytest.raises(BadQuery, match="filter"):
        BraidRetriever(client=client, query={"filter": {"a": {"b": 1}}}).invoke("a bird")
    with pytest.raises(BadQuery):
        BraidEmbeddings(client, model="nothing").embed_query("a bird")
