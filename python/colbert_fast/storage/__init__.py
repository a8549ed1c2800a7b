"""What lies on disk: the manifest, the segment arrays, the document store, the atomic commit."""
