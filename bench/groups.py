"""Every row of the table: which take turns, how often, and what they are to come to."""

import operator

import commands
import footprint
import peers
import rates
import scaling
import transfers
from figures import Comparison, at_least, at_most
from rows import Group, Row

RATIO = "x"
ratio = operator.truediv


def difference(one: float, other: float) -> float:
    return one - other


ONE_COMMAND = Group(
    "one command at a time",
    (
        Row("floor", "the C floor: all namespaces, overlay, filter", peers.c_floor),
        Row("bwrap", "bwrap --unshare-all --ro-bind / / true", peers.bwrap),
        Row("parked", "sandboxd, parked sandbox, HTTP, durable", commands.parked, tail=at_most(3)),
        Row("cold", "sandboxd, no sandbox of this shape there", commands.cold, tail=at_most(3)),
        Row("files", "sandboxd, ten files in, one out", commands.with_files),
        Row("pulled", "sandboxd, a pulled image of three layers", commands.pulled),
        Row("exec", "sandboxd, in a live sandbox", commands.in_live_sandbox, target=at_most(2)),
        Row(
            "exec in a row",
            "the same without a pause",
            commands.in_live_sandbox_in_a_row,
            target=at_most(2),
        ),
        Row("bare print", "python3 -c 'print(1)' by itself", peers.bare(commands.PRINT)),
        Row("print", "sandboxd, python3 -c 'print(1)'", commands.print_one),
        Row("run", "sandboxd run, without a service", commands.by_command_line, runs=2),
        Row("runc", "runc run", peers.runc, runs=3),
        Row("podman", "podman run", peers.podman_run, runs=2),
        Row("docker-py podman", "docker-py on podman's service", peers.docker_py_on_podman, runs=2),
        Row("docker-py dockerd", "docker-py on dockerd", peers.docker_py_on_dockerd, runs=2),
    ),
    blocks=30,
    comparisons=(
        Comparison("parked to bwrap", RATIO, "parked", "bwrap", ratio, at_most(1)),
        Comparison("parked to floor", RATIO, "parked", "floor", ratio, at_most(2.5)),
        Comparison("cold to bwrap", RATIO, "cold", "bwrap", ratio, at_most(2)),
        Comparison("podman to parked", RATIO, "podman", "parked", ratio, at_least(25)),
        Comparison(
            "docker-py podman to parked", RATIO, "docker-py podman", "parked", ratio, at_least(60)
        ),
        Comparison(
            "docker-py dockerd to parked", RATIO, "docker-py dockerd", "parked", ratio, at_least(30)
        ),
        Comparison("runc to parked", RATIO, "runc", "parked", ratio),
        Comparison("print more than bare", "ms", "print", "bare print", difference, at_most(4)),
    ),
)
EIGHT_CLIENTS = Group(
    "eight clients at once, on the same processors",
    (
        Row("floor rate", "C floors, eight at once", rates.floor_rate, "runs/s", runs=800),
        Row("job rate", "sandboxd, eight clients", rates.job_rate, "jobs/s", 400, at_least(400)),
    ),
    blocks=10,
    comparisons=(
        Comparison(
            "job rate to floor rate", RATIO, "job rate", "floor rate", ratio, at_least(0.55)
        ),
    ),
)
ACCEPTS = Group(
    "requests that are answered at once",
    (
        Row("echo", "a bare Starlette, the same body", rates.echo_rate, "1/s", 5000),
        Row("accepts", "sandboxd, async, durable", rates.accept_rate, "1/s", 3000, at_least(3000)),
    ),
    blocks=10,
    comparisons=(Comparison("accepts to echo", RATIO, "accepts", "echo", ratio, at_least(0.3)),),
)
BYTES = Group(
    "bytes",
    (
        Row("log", "a log of 200 MB, followed", transfers.log_stream, "MB/s", 1, at_least(200)),
        Row("file in", "100 MB into a job", transfers.file_in, "MB/s", 1, at_least(400)),
        Row("file out", "100 MB that a job left", transfers.file_out, "MB/s", 1, at_least(400)),
    ),
    blocks=10,
)
FOOTPRINT = Group(
    "memory and starts",
    (
        Row(
            "parked memory",
            "a parked sandbox's own",
            footprint.parked_sandbox,
            "MiB",
            1,
            at_most(3),
        ),
        Row("launcher memory", "the launcher's own", footprint.launcher, "MiB", 1),
        Row(
            "idle memory",
            "the service before its first job",
            footprint.service_idle,
            "MiB",
            1,
            at_most(90),
        ),
        Row(
            "busy memory",
            "the service after 1,000 more jobs",
            footprint.service_after_jobs,
            "MiB",
            1000,
        ),
        Row("version", "sandboxd --version", footprint.version, "ms", 5, at_most(120)),
        Row(
            "ready",
            "sandboxd serve until /readyz says yes",
            footprint.serve_ready,
            "s",
            1,
            at_most(1.5),
        ),
    ),
    blocks=3,
)
RUNTIMES = Group(
    "one command by an OCI runtime, parked",
    (
        Row("by native", "sandboxd's own way", commands.parked),
        *(
            Row(f"by {name}", f"sandboxd, runtime {name}", commands.by_runtime(name), runs=3)
            for name in ("runc", "crun")
        ),
    ),
    blocks=20,
    comparisons=tuple(
        Comparison(f"by {name} to native", RATIO, f"by {name}", "by native", ratio)
        for name in ("runc", "crun")
    ),
    extra=True,
)
QUEUED = Group(
    "jobs that waited, of four slots",
    tuple(
        Row(f"queued {depth}", f"{depth:,} waiting", scaling.queued(depth), "jobs/s", 1)
        for depth in (10, 100, 1000, 10_000)
    ),
    blocks=3,
    extra=True,
)
WAITING = tuple(
    Group(
        f"beside {depth:,} that wait",
        (
            Row(f"accept beside {depth}", "durable", scaling.accepting(depth)),
            Row(f"memory beside {depth}", "its own", scaling.remembering(depth), "MiB", 1),
        ),
        blocks=10,
        extra=True,
    )
    for depth in (10, 10_000)
)
RUNNING = tuple(
    Group(
        f"one command beside {count} that sleep",
        (Row(f"beside {count}", "sandboxd, parked", scaling.running(count)),),
        blocks=10,
        extra=True,
    )
    for count in (1, 10, 50, 200)
)
"""Each a group of its own: jobs of another row would be beside it, too."""
ASLEEP = Group(
    "live sandboxes that do nothing",
    (
        Row(
            "500 asleep",
            "what each takes of 500; then all answer",
            scaling.asleep(500),
            "MiB",
            1,
            at_most(3),
        ),
    ),
    blocks=1,
    extra=True,
)
MANY_JOBS = Group(
    "the service after many jobs",
    (
        Row(
            "grown",
            "its memory after --jobs of them, to before the first",
            footprint.service_grown,
            RATIO,
            20_000,
            at_most(1.1),
        ),
    ),
    blocks=1,
    extra=True,
)
GROUPS = (
    ONE_COMMAND,
    EIGHT_CLIENTS,
    ACCEPTS,
    BYTES,
    FOOTPRINT,
    RUNTIMES,
    QUEUED,
    *WAITING,
    *RUNNING,
    ASLEEP,
    MANY_JOBS,
)
