"""What `sandboxd attack` tries against a deployment: harmless attempts at the walls, and what became of each.

`program` runs inside a sandbox and says what it saw, `burden` is judged by how its job ends; `catalogue` names the attempts and the walls that should
stop them; `plan` makes jobs and requests of them; `verdict` judges what came back; `conduct` carries all of it out over
any way to run a job. Nothing here knows whether that way is HTTP, this process or the service itself.
"""
