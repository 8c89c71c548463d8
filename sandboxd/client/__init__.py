"""The Python client, for threads (`Client`) and for asyncio (`AsyncClient`).

    from sandboxd.client import Client

    with Client("http://127.0.0.1:8080") as client:
        job = client.run(["python3", "-c", "print(6 * 7)"], limits={"memory": "128Mi"})
        print(job.state, job.exit_code, job.text)

Both do the same in the same words. Requests that are safe to repeat are repeated a few times when the connection
breaks or the service says that it cannot just now; every job is handed in under a key of its own, so that it runs
once whatever happens on the way.
"""

from sandboxd.client.connections import AsyncClient as AsyncClient
from sandboxd.client.connections import Client as Client
from sandboxd.client.sandbox_types import ExecResult as ExecResult
from sandboxd.client.sandbox_types import FileEntry as FileEntry
from sandboxd.client.sandbox_types import SandboxRecord as SandboxRecord
from sandboxd.client.sandboxes import AsyncSandbox as AsyncSandbox
from sandboxd.client.sandboxes import Sandbox as Sandbox
from sandboxd.client.types import Artifact as Artifact
from sandboxd.client.types import ClientError as ClientError
from sandboxd.client.types import Conflict as Conflict
from sandboxd.client.types import ConnectionFailed as ConnectionFailed
from sandboxd.client.types import Event as Event
from sandboxd.client.types import Fault as Fault
from sandboxd.client.types import HistoryStep as HistoryStep
from sandboxd.client.types import Image as Image
from sandboxd.client.types import ImageDetail as ImageDetail
from sandboxd.client.types import IncompleteFile as IncompleteFile
from sandboxd.client.types import InvalidRequest as InvalidRequest
from sandboxd.client.types import Job as Job
from sandboxd.client.types import JobPage as JobPage
from sandboxd.client.types import Key as Key
from sandboxd.client.types import KeyRefused as KeyRefused
from sandboxd.client.types import LayerProgress as LayerProgress
from sandboxd.client.types import LogChunk as LogChunk
from sandboxd.client.types import NewKey as NewKey
from sandboxd.client.types import NotFound as NotFound
from sandboxd.client.types import NotTheService as NotTheService
from sandboxd.client.types import Problem as Problem
from sandboxd.client.types import Pruned as Pruned
from sandboxd.client.types import Pushed as Pushed
from sandboxd.client.types import RequestRefused as RequestRefused
from sandboxd.client.types import Run as Run
from sandboxd.client.types import Sample as Sample
from sandboxd.client.types import ServiceFault as ServiceFault
from sandboxd.client.types import Step as Step
from sandboxd.client.types import Unavailable as Unavailable
from sandboxd.client.types import WaitTimedOut as WaitTimedOut
from sandboxd.jobs import Changes as Changes
from sandboxd.jobs import State as State
from sandboxd.jobs import Stream as Stream
