"""stream: records flow from Kafka through the model to vectors and predictions.

from braid import Producer

async with Producer() as producer:
    await producer.send(id="bird-1", text="a red bird")
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
