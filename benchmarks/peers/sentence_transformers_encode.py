"""sentence-transformers: one call of `encode` for all texts."""

import time

from timing import given, report, sentence_transformer, texts

job = given()
model, lines = sentence_transformer(job), texts(job)
began = time.time()
model.encode(lines, show_progress_bar=False)
report(began)
