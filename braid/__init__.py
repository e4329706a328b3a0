"""braid: streams of text, pictures and sound become one searchable space, and predictions.

    from braid import Client, Embedder, Producer

Importing this package is cheap: what a name needs is imported when it is first touched.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
