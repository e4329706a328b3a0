"""encoders: records of text, pictures and sound become vectors in one space, and predictions.

    from braid import Embedder, Sample
    with Embedder.load("models/braid-0001") as embedder:
        embedding = embedder.embed([Sample(id="1", text="a red bird")])[0]

Importing this package is cheap: torch is imported when a name that needs it is first touched.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
