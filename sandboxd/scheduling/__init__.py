"""Which waiting job runs next, that nobody gets room twice, and writing down how each job ended.

`scheduler` takes jobs in and chooses; `rooms` knows who has room (`occupancy`), live sandboxes included; `working` has a chosen job
run and settled (`settlement`); `progress` tells how far jobs are, and those who wait for that (`watchers`); `job_files` removes what
jobs brought and left.
"""
