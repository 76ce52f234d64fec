"""Web search: one small interface, and what stands behind it.

provider.py   the interface, and results as the model is shown them
searxng.py    a SearXNG server, named by the operator
local.py      the index in HOME/search.db, asked
indexing.py   the same index, made from folders that the operator names
"""
