"""LlamaIndex's own query engine and index get nodes and vectors of a node."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.llms.mock import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import TextNode

from braid.index.client import Client
from braid.index.errors import BadQuery
from braid.integrations.llama_index import BraidEmbedding, BraidRetriever
from tests.index.conftest import Node
from tests.index.oracle import unit


def test_a_query_engine_gets_the_nodes_of_a_search(node: Node, client: Client) -> None:
    retriever = BraidRetriever(client, k=3, filter={"lang": "de"})
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
    answer = engine.query("a bird")
    hits = client.search(text="a bird", k=3, filter={"lang": "de"}).hits
    assert [one.node.node_id for one in answer.source_nodes] == [hit.id for hit in hits]
    for one, hit in zip(answer.source_nodes, hits, strict=True):
        assert one.score == hit.score
        assert one.node.get_content() == f"text of {hit.id}"
        assert one.node.metadata["lang"] == "de"
        assert one.node.metadata["predicted"] == {"kind": "frog"}


def test_it_works_from_asyncio(client: Client) -> None:
    retriever = BraidRetriever(client, k=2)
    asked = asyncio.run(retriever.aretrieve("a bird"))
    assert [one.node.node_id for one in asked] == [
        one.node.node_id for one in retriever.retrieve("a bird")
    ]


def test_an_index_of_llama_indexs_takes_the_embeddings(client: Client) -> None:
    embedding = BraidEmbedding(client)
    nodes = [TextNode(text=text) for text in ("a red bird", "a planet", "rain")]
    index = VectorStoreIndex(nodes, embed_model=embedding)
    (best,) = index.as_retriever(similarity_top_k=1).retrieve("a planet")
    assert best.node.get_content() == "a planet"
    vector = np.asarray(embedding.get_query_embedding("rain"), np.float32)
    np.testing.assert_array_equal(vector, unit("rain", None, None).astype(np.float32))
    assert asyncio.run(embedding.aget_query_embedding("rain")) == list(map(float, vector))


def test_a_refusal_is_the_clients_error(client: Client) -> None:
    with pytest.raises(BadQuery, match="k"):
        BraidRetriever(client, k=0).retrieve("a bird")
    with pytest.raises(BadQuery):
        BraidEmbedding(client, model="nothing").get_query_embedding("a bird")
