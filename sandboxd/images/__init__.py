"""Root file systems by name: the machine's own (`host`), imported ones, and images of registries and archives.

Four packages have one side each and know nothing of what is done with it:

* `documents`: what images say of themselves and how they are called, read strictly.
* `store`: all that is kept below `DATA/images`, and what goes from there.
* `registries`: speaking to registries.
* `archives`: reading archives.

The modules here bring them together. From above, as imports point (the contracts in pyproject.toml are exact):

* For a service: `puller` (who asks for the same waits for the same pull), `details`.
* What is done with images: `pulling`, `loading` and `committing`, which end with `assembling`; `pushing`, `saving` and `history`, which begin with
  `contents` (an image as others have it); `transfers` tells how far layers are.
* The images there are: `catalogue` gives a job the trees of a name (`resolved`) and holds them; `new_names`: what one may be called.

An image's way: a manifest comes from a registry or an archive and is read; its layers go into the store as blobs, each becomes a tree
there, and the name is written last. From then on the catalogue resolves it for jobs.

Nothing here takes an archive apart: that is done in a sandbox, by `isolation.unpack` and `isolation.layers`.
"""
