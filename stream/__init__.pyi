from .kafka.producer import Producer as Producer
