"""infinity: one call of the engine with all texts, dynamic batching inside."""

import asyncio
import time

from infinity_emb import AsyncEmbeddingEngine, EngineArgs
from timing import given, report, texts

job = given()


async def main():
    engine = AsyncEmbeddingEngine.from_args(
        EngineArgs(model_name_or_path=job["model"], engine="torch", device="cpu", dtype="float32")
    )
    async with engine:
        await engine.embed(sentences=["warm", "up"])
        began = time.time()
        await engine.embed(sentences=texts(job))
        report(began)


if __name__ == "__main__":
    asyncio.run(main())
