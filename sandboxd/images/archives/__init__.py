"""Archives of images, read without extracting anything: what is in one is asked for by its name there.

`opening` opens a directory, a file or a pipe and gives either the `members` of a tar or the `layouts` of a directory, which are read alike.
`imported` is the other kind, whose content is one root file system: it is digested here, and unpacked elsewhere.
"""
