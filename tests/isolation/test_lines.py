"""The service's end of a stream that somebody is connected to."""

import asyncio
import fcntl
import os
import resource

from sandboxd.sandboxes.terminals import Line

HIGH = 1500
"""More than select(2) can take."""


def test_a_line_with_a_high_number_is_read_to_its_end() -> None:
    async def read() -> list[bytes]:
        reading, writing = os.pipe()
        line = Line(fcntl.fcntl(reading, fcntl.F_DUPFD_CLOEXEC, HIGH), in_threads=False)
        os.close(reading)
        os.write(writing, b"the rest")
        line.finish()
        pieces = [await line.read(), await line.read()]
        line.close()
        os.close(writing)
        return pieces

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, HIGH + 1), hard))
    try:
        assert asyncio.run(read()) == [b"the rest", b""]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
