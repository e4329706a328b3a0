"""One generation on an index node: reader, store and the model that embeds queries."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from braid.encoders.embedder import MAX_QUERIES, Embedder
from braid.encoders.errors import BadInput
from braid.encoders.types import Model, Sample
from braid.index.batching import Batcher
from braid.index.errors import BadQuery
from braid.index.service.app import QueryInput, QueryVectors, Serving
from braid.index.service.recent_writes import RecentWrites

from .reader import Reader

LINGER_S = 0.02  # that a text waits for others at most, after a batch of several


class Generation:
    """One generation on this node: its reader, its store, and what embeds its queries.

    Args:
        arrivals: what the reader has applied last.
    """

    def __init__(
        self, name: str, model: Model, reader: Reader, recent_writes: RecentWrites
    ) -> None:
        self.name, self.reader, self.recent_writes = name, reader, recent_writes
        self.embedder = Embedder(model)
        self.stopping = asyncio.Event()
        # One batch, which all cores share: two at once would be half as large.
        self._texts = Batcher(self._encode_many, at_once=1, size=MAX_QUERIES, linger_s=LINGER_S)

    def serving(self) -> Serving:
        model = self.embedder.model
        return Serving(
            generation=self.name,
            store=self.reader.kept.store,
            encode=self._encode,
            encode_many=self._encode_many,
            model=model.name,
            modalities=model.modalities,
            recent_writes=self.recent_writes,
        )

    async def _encode(self, query: QueryInput) -> QueryVectors:
        if not query.media:
            return await self._texts(query)
        (vectors,) = await self._encode_many([query])  # its preparation would hold up the others
        return vectors

    async def _encode_many(self, queries: Sequence[QueryInput]) -> list[QueryVectors]:
        """Embed queries, which are treated as records with fewer modalities."""
        samples = [Sample(id="query", text=query.text, **query.media) for query in queries]
        try:
            query = await asyncio.to_thread(self.embedder.query, samples)
            model, embeddings = await asyncio.wrap_future(query)
        except BadInput as error:
            raise BadQuery(error.field, error.reason) from error
        return [
            QueryVectors(
                fused=embedding.fused, by=dict(embedding.by), space=model.space, model=model.name
            )
            for embedding in embeddings
        ]
