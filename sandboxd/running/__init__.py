"""Running one job: from what was asked for to what the record says.

`runner` takes a sandbox (`shapes`) and makes an `attempt` at the job in it; `commands` is one command's run, `stepping` that of
several, which `comparing` judges; `verdict` says what all that means.
"""
