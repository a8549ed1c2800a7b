"""From documents to the files of an index, and every change of them."""
