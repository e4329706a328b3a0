from .loop import train as train
from .splits import split as split
