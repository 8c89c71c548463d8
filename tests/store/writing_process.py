"""A process of its own that submits jobs and says which are accepted, until it is killed.

python writing_process.py DATABASE [FILE_SIZE_LIMIT]
"""

import asyncio
import resource
import sys
from pathlib import Path

from store_examples import a_job, opened

from sandboxd.errors import Unavailable


async def main(path: Path, limit_bytes: int | None) -> None:
    async with opened(path) as store:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))

        async def submit_for_ever() -> None:
            while True:
                submitted = await store.submit(a_job(stdin=b"x" * 100), claim_owner="me")
                print(submitted.job.id, flush=True)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(20):
                    group.create_task(submit_for_ever())
        except* Unavailable as errors:
            print("unavailable", *{error.code for error in errors.exceptions}, flush=True)  # type: ignore[attr-defined]
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print((await store.submit(a_job())).job.id, flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else None))
