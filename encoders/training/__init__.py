"""Training a version: `train(samples, config, out=..., name=..., version=..., seed=...)`.

Importing this package is cheap: torch is imported when `train` is first touched.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
