"""What the peers' scripts share. They run in an environment without braid, by their path.

A script gets one argument, a JSON object: `model`, a folder in the format of sentence-transformers;
`texts`, a JSON file with the list of texts; and for those that read Kafka `bootstrap`, `topic`,
`output` and `group`. It prints one line: the seconds from the first text that it encodes to the
last that is done.
"""

import json
import sys
import time
from pathlib import Path


def given():
    return json.loads(sys.argv[1])


def texts(job):
    return json.loads(Path(job["texts"]).read_text(encoding="utf-8"))


def sentence_transformer(job):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(job["model"], device="cpu")
    model.encode(["warm", "up"], show_progress_bar=False)
    return model


def report(began):
    print(json.dumps({"seconds": time.time() - began}), flush=True)
