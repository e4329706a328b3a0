"""`braid produce`: files, tables and shards, here or in an object store, as records."""
