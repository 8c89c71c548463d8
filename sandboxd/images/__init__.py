"""Root file systems by name: the machine's own (`host`), imported ones, and images of registries and archives.

From above, as imports point (the contract in pyproject.toml is exact):

* For a service: `puller` (who asks for the same waits for the same pull), `details`.
* What is done with images: `pulling`, `pushing`, `loading`, `saving`, `committing`, `history`; `contents` is one as others have it.
* The images there are: `catalogue` gives a job the trees of a name (`resolved`) and holds them; `pruning` takes away what nobody means.
* A registry's side: `registry` and `uploading` speak its protocol, `mirrors` stand before it; `transport` decides to whom, how often and
  how long (`terms`, `proxies`, `pacing`, `connection_faults`); `accesses` is what the settings say (`docker_config`, `credential_helpers`, `challenges`).
* An archive's side: `archive_opening` (`archive_members` of a tar, `archive_layouts` of a directory); `imported_archives` are one root file system.
* What images say, read strictly: `references`, `manifests`, `media_types`, `configuration`, `users`.
* The store, below `DATA/images`: `blobs` and their `indexing`, `trees` made of `layers` (`stacking`: whether each can have its own), `names`
  (`new_names`: what may become one), `packing` of new layers; `owners`, `locks`, `syncing` and `free_space` for all of them.

Nothing here takes an archive apart: that is done in a sandbox, by `isolation.unpack` and `isolation.layers`.
"""
