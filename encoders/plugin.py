"""The public API for encoder plugins: the base classes, and the types and helpers they need.

    from braid.encoders.plugin import Features, TextEncoder, joined, masked_mean

A package registers a kind by an entry point of the group `braid.encoders`:
docs/how-to/encoder.md.
"""

from __future__ import annotations

from .backbones.audio import WaveEncoder as WaveEncoder
from .backbones.base import Array as Array
from .backbones.base import Encoder as Encoder
from .backbones.base import Features as Features
from .backbones.base import joined as joined
from .backbones.base import masked_mean as masked_mean
from .backbones.base import no_source as no_source
from .backbones.image import ImageEncoder as ImageEncoder
from .backbones.text import HashedWords as HashedWords
from .backbones.text import SubwordText as SubwordText
from .backbones.text import TextEncoder as TextEncoder
from .config import EncoderConfig as EncoderConfig
from .config import Limits as Limits
from .errors import BadInput as BadInput
from .errors import CheckpointError as CheckpointError
from .types import Cost as Cost
