"""The vector index: a store that is searchable while it is written, and the query service.

    from braid import Client
    with Client("http://127.0.0.1:8077") as client:
        hits = client.search(text="a red bird", k=5).hits

The import is cheap: a submodule is imported when one of its names is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
