"""Root file systems by name: the host image and imported ones."""
