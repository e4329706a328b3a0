"""The store on Milvus: rows, filters, collections."""
