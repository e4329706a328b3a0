from .encoders.embedder import Embedder as Embedder
from .encoders.presets import preset as preset
from .encoders.training.loop import train as train
from .encoders.types import Sample as Sample
from .index.client import AsyncClient as AsyncClient
from .index.client import Client as Client
from .stream.kafka.producer import Producer as Producer
