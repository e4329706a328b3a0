"""Bytewax: topic to topic, batches of 32 encoded by sentence-transformers."""

import json
import time
from datetime import timedelta

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSinkMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow
from bytewax.testing import run_main
from timing import given, report, sentence_transformer

job = given()
model = sentence_transformer(job)
began = []


def embedded(keyed):
    began.append(time.time())
    messages = keyed[1]
    vectors = model.encode([json.loads(one.value)["text"] for one in messages])
    return [
        KafkaSinkMessage(one.key, json.dumps({"vector": vector.tolist()}).encode())
        for one, vector in zip(messages, vectors, strict=True)
    ]


flow = Dataflow("peer")
messages = kop.input("in", flow, brokers=[job["bootstrap"]], topics=[job["topic"]], tail=False).oks
batches = op.collect(
    "batch", op.key_on("one", messages, lambda _: "all"), timedelta(seconds=0.1), max_size=32
)
kop.output(
    "out", op.flat_map("encode", batches, embedded), brokers=[job["bootstrap"]], topic=job["output"]
)
run_main(flow)
report(began[0])
