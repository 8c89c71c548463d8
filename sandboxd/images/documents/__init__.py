"""What images say of themselves and how they are called: bytes and text become values, and nothing else happens.

All of it is untrusted. `references` are names of images in registries; `manifests` (called by `media_types`) say what an image is made of, its
`configuration` how it is run, and its own account files who its `users` are. What is read was bounded by who brought it; what makes no
sense is refused here, before anybody acts on it.
"""
