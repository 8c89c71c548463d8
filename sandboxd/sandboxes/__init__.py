"""Sandboxes that live until they are told to end, and what is done in them.

`registry` makes and finds them and writes down their ends; `live` is one of them, `execs` a command in it, `terminals` such a command's
terminal, `files` what goes in and out.
"""
