"""Speaking to registries: documents and blobs come and go, as pieces of bytes that nobody has kept yet.

`accesses` makes of the settings (and `docker_config`) the `terms` on which each is spoken to. With those, `mirrors` opens what a reference
names: mirrors, then its `registry`; `uploading` is the one for who sends. Both get the right to it by `challenges` and `credentials`, perhaps by
asking `credential_helpers`, and put every request through `transport`, which decides to whom it goes, how often it is tried and how
long it may take (`look_ups`, `proxies`, `pacing`). What does not work is one of the `failures`; `connection_faults` says what to mend.
"""
