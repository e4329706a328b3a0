from .client import AsyncClient as AsyncClient
from .client import Client as Client
from .client import Retry as Retry
from .errors import BadQuery as BadQuery
from .errors import BraidIndexError as BraidIndexError
from .errors import ServiceError as ServiceError
