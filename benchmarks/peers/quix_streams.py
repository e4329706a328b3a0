"""Quix Streams: topic to topic, exactly once, each record encoded by sentence-transformers."""

import time

from quixstreams import Application
from timing import given, report, sentence_transformer, texts

job = given()
model = sentence_transformer(job)
began = []


def embedded(value):
    began.append(time.time())
    return {"vector": model.encode(value["text"], show_progress_bar=False).tolist()}


app = Application(
    broker_address=job["bootstrap"],
    consumer_group=job["group"],
    auto_offset_reset="earliest",
    processing_guarantee="exactly-once",
)
app.dataframe(app.topic(job["topic"], value_deserializer="json")).apply(embedded).to_topic(
    app.topic(job["output"], value_serializer="json")
)
app.run(count=len(texts(job)), timeout=600)
report(began[0])
