"""integrations: braid in other libraries; each module needs the extra of its name.

from braid.integrations.langchain import BraidEmbeddings, BraidRetriever
from braid.integrations.llama_index import BraidEmbedding, BraidRetriever
"""
