"""All that is kept of images, below `DATA/images`, by several processes at once.

What comes goes into `blobs`, by its digest; `layers` says which trees an image needs, and each blob is unpacked into one of the `trees`
(by `tree_sandboxes`; `stacking`: whether each layer can have its own); `names` is written last and means both. The other way round, `packing` makes a blob of
what a sandbox packs. `indexing` shows the blobs to other tools as an OCI layout, and `pruning` takes away what no name means.

Below all of them: `owners` (what one tenant alone may use), `locks`, `syncing` and `free_space`.
"""
