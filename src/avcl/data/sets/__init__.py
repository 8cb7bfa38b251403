"""One file for each published data set: its facts, and a reader of exactly its official files (``SET``)."""
