"""Jobs with `network: {"mode": "egress"}`: what they reach, what they do not, and what is written down of it."""

import contextlib
import json
import os
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from egress_service import OPENED, RATE_BYTES, TOOLS, Jobs, ServiceInWorld
from host_tests import host_required
from running_service import RunningService, data_directory
from waiting import wait_for
from world import (
    ABSTRACT_NAME,
    CLOSED,
    CLOSED6,
    HOST,
    HOST6,
    LOOPBACK_PORT,
    STREAM_PORT,
)

from sandboxd.client import Client, InvalidRequest, Job
from sandboxd.jobs import State

FAST_SECONDS = 2.0
"""Silence would take longer, and be told by another word."""
REFUSED = "ECONNREFUSED"


def reach_all(targets: list[tuple[str, int]], kind: str = "tcp") -> str:
    return f"print(json.dumps([reach(host, port, {kind!r}) for host, port in {targets!r}]))"


# What is open


@pytest.mark.parametrize("host", ["203.0.113.7", "2001:db8::7"])
@pytest.mark.parametrize("port", [80, 443])
def test_a_public_address_is_reached(jobs: Jobs, host: str, port: int) -> None:
    ((said, _),) = jobs.tell(reach_all([(host, port)]))

    assert said == f"hello from {host}"


@pytest.mark.parametrize("host", ["203.0.113.7", "2001:db8::7"])
def test_udp_comes_back(jobs: Jobs, host: str) -> None:
    ((said, _),) = jobs.tell(reach_all([(host, 443)], "udp"))

    assert said == "hello"


def test_what_the_operator_opens_of_a_closed_range_is_reached(jobs: Jobs) -> None:
    answers = jobs.tell(reach_all([("10.1.2.3", 443), ("fd00:ec2::254", 80), ("192.168.1.1", 80)]))

    assert [said for said, _ in answers] == [
        "hello from 10.1.2.3",
        "hello from fd00:ec2::254",
        "hello from 192.168.1.1",
    ]


def test_a_job_that_lists_what_it_needs_reaches_just_that(jobs: Jobs) -> None:
    targets = [("203.0.113.7", 443), ("203.0.113.7", 80), ("203.0.113.8", 443), ("10.1.2.3", 443)]

    answers = jobs.tell(reach_all(targets), allow=["203.0.113.7:443"])

    assert [said for said, _ in answers] == ["hello from 203.0.113.7", REFUSED, REFUSED, REFUSED]


def test_a_job_without_egress_reaches_nothing(client: Client) -> None:
    program = "import socket; socket.create_connection(('203.0.113.7', 80), 5)"

    job = client.run(["python3", "-c", program])

    assert b"Network is unreachable" in job.stderr


# What is closed


@pytest.mark.attack(22)
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_every_closed_range_is_refused_at_once(jobs: Jobs, kind: str) -> None:
    closed = [(host, 5432) for host in (*CLOSED, *CLOSED6) if host not in OPENED]

    answers = jobs.tell(reach_all(closed, kind))

    assert {said for said, _ in answers} <= {REFUSED, "EPERM", "EACCES"}
    assert max(seconds for _, seconds in answers) < FAST_SECONDS


@pytest.mark.attack(22)
@pytest.mark.parametrize(
    "host", ["127.0.0.1", "::1", "0.0.0.0", HOST, HOST6, "192.0.0.1", "::ffff:203.0.113.2"]
)
def test_what_listens_on_the_host_is_not_reached(jobs: Jobs, host: str) -> None:
    ((said, seconds),) = jobs.tell(reach_all([(host, LOOPBACK_PORT)]))

    assert said == REFUSED
    assert seconds < FAST_SECONDS


@pytest.mark.attack(22)
def test_abstract_sockets_of_the_host_are_not_reached(jobs: Jobs, world: int) -> None:
    unix = Path(f"/proc/{world}/net/unix").read_text()
    program = f"""
made = socket.socket(socket.AF_UNIX)
try:
    made.connect({ABSTRACT_NAME!r})
    print(json.dumps("reached"))
except OSError as error:
    print(json.dumps(errno.errorcode[error.errno]))
"""
    assert ABSTRACT_NAME.replace("\0", "@") in unix

    assert jobs.tell(program) == REFUSED


@pytest.mark.attack(22)
def test_what_the_operator_denies_is_refused_though_it_is_public(jobs: Jobs) -> None:
    ((said, seconds),) = jobs.tell(reach_all([("198.51.100.7", 80)]))

    assert said == REFUSED
    assert seconds < FAST_SECONDS


@pytest.mark.attack(22)
@pytest.mark.parametrize("user", ["0:0", "1000:1000"])
def test_a_job_cannot_configure_its_network(jobs: Jobs, user: str) -> None:
    program = """
import fcntl, os, struct, subprocess
tried = {}
def attempt(name, action):
    try:
        action()
        tried[name] = "done"
    except OSError as error:
        tried[name] = errno.errorcode[error.errno]
def send(protocol, kind):
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    made.send(struct.pack("=IHHII", 16 + 4, kind, 0x5, 1, 0) + bytes(4))
    error = struct.unpack_from("=i", made.recv(4096), 16)[0]
    if error:
        raise OSError(-error, "")
def down():
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    fcntl.ioctl(made, 0x8914, struct.pack("16sh22x", b"egress0", 0))
attempt("interface down", down)
attempt("netfilter", lambda: send(12, 0x0a02))
attempt("delete route", lambda: send(0, 25))
attempt("raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 6))
attempt("packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt("forwarding", lambda: open("/proc/sys/net/ipv4/ip_forward", "w"))
attempt("low port", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).bind(("127.0.0.1", 53)))
attempt("mark", lambda: socket.socket().setsockopt(socket.SOL_SOCKET, 36, 1))
print(json.dumps(tried))
"""
    tried = jobs.tell(program, user=user)

    assert set(tried.values()) <= {"EPERM", "EACCES", "EROFS", "EAFNOSUPPORT"}, tried


# Names


def test_names_work(jobs: Jobs) -> None:
    program = """
with socket.create_connection(("allowed.test", 80), 5) as made:
    print(json.dumps([resolve("allowed.test"), made.recv(100).decode()]))
"""
    addresses, said = jobs.tell(program)

    assert addresses == ["2001:db8::7", "203.0.113.7"]
    assert said.startswith("hello from ")


def test_a_job_that_lists_names_reaches_these_and_no_other(jobs: Jobs) -> None:
    program = """
before = reach("203.0.113.7", 443)[0]
found = resolve("allowed.test")
print(json.dumps([before, found, reach("203.0.113.7", 443)[0], reach("203.0.113.7", 80)[0],
    reach("2001:db8::7", 443)[0], resolve("other.test"), reach("203.0.113.8", 443)[0], resolve("one.below.test")]))
"""
    seen = jobs.tell(program, allow=["allowed.test:443", "*.below.test"])

    before, found, reached, other_port, reached6, other_name, other_address, below = seen
    assert before == REFUSED, "open before anybody asked for the name"
    assert found == ["2001:db8::7", "203.0.113.7"]
    assert (reached, reached6) == ("hello from 203.0.113.7", "hello from 2001:db8::7")
    assert other_port == REFUSED
    assert other_name == socket.EAI_NONAME
    assert other_address == REFUSED
    assert below == ["203.0.113.8"]


@pytest.mark.attack(22)
@pytest.mark.parametrize(
    "allow", [None, ["*.test", "public"], ["inside.test", "loopback.test", "host.test"]]
)
@pytest.mark.parametrize("name", ["loopback.test", "host.test"])
def test_a_name_that_points_to_the_inside_is_not_told(
    jobs: Jobs, name: str, allow: list[str] | None
) -> None:
    assert jobs.tell(f"print(json.dumps(resolve({name!r})))", allow=allow) == socket.EAI_NONAME


@pytest.mark.attack(22)
def test_of_an_answer_only_the_outside_is_told_and_opened(jobs: Jobs) -> None:
    program = """
print(json.dumps([resolve("mixed.test"), reach("203.0.113.7", 80)[0], reach("10.1.2.3", 80)[0]]))
"""
    assert jobs.tell(program, allow=["mixed.test:80"]) == [
        ["203.0.113.7"],
        "hello from 203.0.113.7",
        REFUSED,
    ]


def test_a_name_leads_into_a_closed_range_where_the_operator_opened_it(jobs: Jobs) -> None:
    program = """
print(json.dumps([resolve("inside.test", socket.AF_INET), reach("10.1.2.3", 443)[0], reach("10.1.2.3", 80)[0]]))
"""
    assert jobs.tell(program, allow=["inside.test"]) == [
        ["10.1.2.3"],
        "hello from 10.1.2.3",
        REFUSED,
    ]


@pytest.mark.attack(22)
def test_the_name_server_of_the_host_is_not_asked_for_names_that_are_not_allowed(
    jobs: Jobs,
) -> None:
    job = jobs.run(
        "print(json.dumps([resolve('secret.leaks.test'), reach('203.0.113.53', 53, 'udp')[0]]))",
        allow=["allowed.test"],
    )

    assert json.loads(job.text) == [socket.EAI_NONAME, "EPERM"]
    assert {(each.host, each.protocol, each.port) for each in job.denied} == {
        ("secret.leaks.test", "dns", 53),
        ("203.0.113.53", "udp", 53),
    }


@pytest.mark.attack(60)
def test_nonsense_at_the_resolver_harms_nobody(jobs: Jobs) -> None:
    program = """
import os
made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
made.connect(("127.0.0.1", 53))
for size in (0, 1, 11, 12, 13, 40, 511, 512, 513, 9000):
    made.send(os.urandom(size))
made.send(b"ab\\x01\\0\\0\\1\\0\\0\\0\\0\\0\\0\\xc0\\x0c\\0\\1\\0\\1")
made.send(b"ab\\x01\\0\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff" + bytes(400))
print(json.dumps(resolve("allowed.test", socket.AF_INET)))
"""
    assert jobs.tell(program) == ["203.0.113.7"]


# What is counted and bounded


def test_bytes_are_counted(jobs: Jobs) -> None:
    size = 3 * 2**20
    program = f"""
made = socket.create_connection(("203.0.113.7", {STREAM_PORT}))
made.send(b"{size}")
while made.recv(65536):
    pass
"""
    job = jobs.run(program)

    assert job.exit_code == 0, job.stderr
    assert size <= job.usage.net_rx_bytes < 1.2 * size
    assert 0 < job.usage.net_tx_bytes < size / 4


def test_the_rate_is_bounded(jobs: Jobs) -> None:
    size = 3 * RATE_BYTES
    program = f"""
made = socket.create_connection(("203.0.113.7", {STREAM_PORT}))
made.send(b"{size}")
began, got = time.monotonic(), 0
while piece := made.recv(65536):
    got += len(piece)
print(json.dumps([got, time.monotonic() - began]))
"""
    got, seconds = jobs.tell(program)

    assert got == size
    # What may come in one burst, a second's worth, comes on top. What is over is dropped, and pasta takes its time to send again.
    assert 0.1 * RATE_BYTES < (got - RATE_BYTES) / seconds < 1.1 * RATE_BYTES


FETCH = f"""
def fetch(size):
    with socket.create_connection(("203.0.113.7", {STREAM_PORT})) as made:
        made.send(b"%d" % size)
        while made.recv(65536):
            pass
"""


def test_a_job_that_wants_to_move_more_than_it_may_ends(jobs: Jobs) -> None:
    most = 2**20

    job = jobs.run(f"{FETCH}fetch({4 * most}); time.sleep(60)", limits={"network_bytes": most})

    assert (job.state, job.reason) == ("network_limit", "network_bytes")
    assert job.exit.stopped_by == "network_bytes"
    assert "more than 1 MB over the network" in job.error.message
    assert job.enforcement["limits"]["network_bytes"] == "nftables"
    # The kernel tells of it: nobody had to look, and the job did not go on for its wall time.
    assert job.usage.wall_seconds < 10


def test_not_a_byte_more_than_the_limit_goes_through(jobs: Jobs) -> None:
    """A packet inside is up to 64 KiB long, and one that is too much is dropped whole."""
    most = 3 * 2**20

    job = jobs.run(f"{FETCH}fetch({4 * most})", limits={"network_bytes": "3Mi"})

    moved = job.usage.net_rx_bytes + job.usage.net_tx_bytes
    assert most - 2**16 <= moved <= most


def test_what_a_job_sends_counts_as_well(jobs: Jobs) -> None:
    program = """
made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(200):
    made.sendto(bytes(1000), ("203.0.113.7", 443))
"""
    job = jobs.run(program, limits={"network_bytes": 100_000})

    assert (job.state, job.reason) == ("network_limit", "network_bytes")
    assert job.usage.net_tx_bytes > 0


def test_a_job_just_below_its_limit_is_not_stopped(jobs: Jobs) -> None:
    job = jobs.run(f"{FETCH}fetch({2**20})", limits={"network_bytes": int(1.2 * 2**20)})

    assert job.state == "succeeded", job.error


def test_steps_share_one_limit_of_the_network(jobs: Jobs) -> None:
    fetch = {"command": ["python3", "-c", f"{TOOLS}{FETCH}fetch({2**20})"]}

    job = jobs.client.run(
        steps=[fetch, fetch], network={"mode": "egress"}, limits={"network_bytes": "1500Ki"}
    )

    assert (job.state, job.reason) == ("network_limit", "network_bytes")
    assert [step.state for step in job.steps] == ["succeeded", "network_limit"]


def test_a_limit_of_nothing_lets_nothing_through(jobs: Jobs) -> None:
    job = jobs.run(reach_all([("203.0.113.7", 80)]), limits={"network_bytes": 0})

    assert job.state == "network_limit"
    assert (job.usage.net_rx_bytes, job.usage.net_tx_bytes) == (0, 0)


def test_more_than_the_operator_allows_of_the_network_is_refused(jobs: Jobs) -> None:
    with pytest.raises(InvalidRequest) as refused:
        jobs.run("", limits={"network_bytes": "2Ti"})

    assert {fault.pointer for fault in refused.value.faults} == {"/limits/network_bytes"}


def test_connections_end_while_the_rate_is_used_up(jobs: Jobs) -> None:
    """pasta never sends the end of a connection a second time: if it were lost, both sides would wait."""
    size = 3 * RATE_BYTES // 100
    program = f"""
from concurrent.futures import ThreadPoolExecutor
def fetch(_):
    with socket.create_connection(("203.0.113.7", {STREAM_PORT})) as made:
        made.send(b"{size}")
        got = 0
        while piece := made.recv(65536):
            got += len(piece)
        return got
with ThreadPoolExecutor(40) as threads:
    print(json.dumps(list(threads.map(fetch, range(100)))))
"""
    assert jobs.tell(program) == [size] * 100


@pytest.mark.attack(60)
def test_a_flood_of_connections_is_bounded(jobs: Jobs) -> None:
    program = """
begun = []
until = time.monotonic() + 2
while time.monotonic() < until:
    for _ in range(50):
        made = socket.socket()
        made.setblocking(False)
        made.connect_ex(("203.0.113.7", 80))
        begun.append(made)
        if len(begun) >= 900:
            begun.pop(0).close()
print(json.dumps(len(begun)))
"""
    job = jobs.run(program)

    # 200 at once, then 100 a second; nothing comes back but what answers these: 60 bytes for each SYN.
    assert job.exit_code == 0, job.stderr
    assert job.usage.net_rx_bytes / 60 < 3 * (200 + 3 * 100)


def test_what_was_refused_is_in_the_result(jobs: Jobs) -> None:
    job = jobs.run(reach_all([("10.1.2.3", 80), ("169.254.169.254", 80), ("fc00::7", 443)]))

    seen = Counter(
        {(each.kind, each.host, each.protocol, each.port): each.count for each in job.denied}
    )
    assert seen == {
        ("network", "10.1.2.3", "tcp", 80): 1,
        ("network", "169.254.169.254", "tcp", 80): 1,
        ("network", "fc00::7", "tcp", 443): 1,
    }


def test_the_record_says_what_bounded_the_network(jobs: Jobs) -> None:
    job = jobs.run("", allow=["allowed.test:443"])

    assert job.enforcement["walls"]["network"] == "egress"
    assert job.enforcement["network"] == {
        "allow": ["allowed.test:443"],
        "deny": ["198.51.100.0/24"],
        "rate_bytes": RATE_BYTES,
        "firewall": "nftables",
        "stack": "pasta",
    }


# The operator's bounds


@pytest.mark.parametrize(
    "entry",
    [
        "10.1.2.3:80",
        "10.0.0.0/8",
        "169.254.169.254",
        "198.51.100.7:80",
        "fd00:ec2::/64",
        "127.0.0.1:22",
    ],
)
def test_asking_for_more_than_the_operator_allows_is_refused(jobs: Jobs, entry: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        jobs.run("", allow=["public:443", entry])

    assert [fault.pointer for fault in refusal.value.problem.errors] == ["/network/allow/1"]


def test_a_job_may_demand_that_it_has_no_network(client: Client) -> None:
    require: dict[str, Any] = {"require": {"network": "none"}}

    assert client.run(["true"], **require).exit_code == 0
    with pytest.raises(InvalidRequest):
        client.run(["true"], network={"mode": "egress"}, **require)


# Lives


def pastas(service: ServiceInWorld) -> list[psutil.Process]:
    """By the name that comm(5) shows: pasta is the program passt under another name."""
    found = []
    for each in service.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            if each.name().startswith("passt"):
                found.append(each)
    return found


def test_nothing_is_left_of_a_job_with_egress(
    service: ServiceInWorld, jobs: Jobs, client: Client
) -> None:
    def run_some() -> int:
        """Returns the descriptors that the service has when the last sandbox is parked again."""
        for _ in range(3):
            jobs.tell(reach_all([("203.0.113.7", 80)]))
        wait_for(lambda: client.system()["capacity"]["parked"] == 8, "both shapes are parked")
        service.assert_nothing_left(client)
        return psutil.Process(service.process.pid).num_fds()

    before = run_some()

    assert run_some() <= before
    assert pastas(service) == []


def test_pasta_counts_as_the_jobs_and_ends_with_it(service: ServiceInWorld, client: Client) -> None:
    job = client.submit(["sleep", "60"], network={"mode": "egress"})
    pasta, *_ = wait_for(lambda: pastas(service), "pasta runs")
    wait_for(service.processes_of_jobs, "the command runs")

    cgroups = Path(f"/proc/{pasta.pid}/cgroup").read_text()
    client.cancel(job.id)
    client.wait(job.id)

    assert "sbx_" in cgroups
    assert not pasta.is_running()


def test_pasta_dies_with_a_service_that_is_killed(world: int) -> None:
    with data_directory() as data_dir:
        service = ServiceInWorld(data_dir, world, network_egress="on").start()
        try:
            with service.client() as client:
                client.submit(["sleep", "60"], network={"mode": "egress"})
                pasta, *_ = wait_for(lambda: pastas(service), "pasta runs")
        finally:
            service.kill()

    assert not pasta.is_running()


def test_a_job_whose_firewall_cannot_be_loaded_does_not_run(world: int, tmp_path: Path) -> None:
    (tmp_path / "nft").write_text("#!/bin/sh\necho no such rule >&2; exit 1\n")
    (tmp_path / "nft").chmod(0o755)

    job = run_with_tools_of(tmp_path, world)

    assert job.state is State.ERROR
    assert job.stdout == b""
    assert job.error is not None
    assert "nft: no such rule" in job.error.message


def test_a_job_whose_pasta_does_not_come_up_does_not_run(world: int, tmp_path: Path) -> None:
    (tmp_path / "pasta").write_text("#!/bin/sh\necho no interface >&2; exit 1\n")
    (tmp_path / "pasta").chmod(0o755)

    job = run_with_tools_of(tmp_path, world)

    assert job.state is State.ERROR
    assert job.stdout == b""
    assert job.error is not None
    assert "start pasta: no interface" in job.error.message


def run_with_tools_of(directory: Path, world: int) -> Job:
    """A job with egress, of a service that finds its programs in this directory first."""
    with data_directory() as data_dir:
        service = ServiceInWorld(
            data_dir, world, path=f"{directory}:{os.environ['PATH']}", network_egress="on"
        ).start()
        try:
            with service.client() as client:
                job = client.run(["echo", "ran"], network={"mode": "egress"})
                service.assert_nothing_left(client)
            service.stop()
        finally:
            if service.process.poll() is None:
                service.kill()
    return job


@pytest.mark.parametrize(
    ("network", "pointer"),
    [
        ({"mode": "none", "allow": ["public"]}, "/network/allow"),
        ({"mode": "egress", "allow": []}, "/network/allow"),
        ({"mode": "egress", "allow": ["public"] * 65}, "/network/allow"),
        ({"mode": "egress", "allow": ["public", "a b"]}, "/network/allow/1"),
        ({"mode": "egress", "allow": ["0.0.0.0/0"]}, "/network/allow/0"),
        ({"mode": "egress", "allow": [7]}, "/network/allow/0"),
        ({"mode": "host"}, "/network/mode"),
    ],
)
def test_a_network_that_cannot_be_is_refused(
    service: ServiceInWorld, network: dict[str, Any], pointer: str
) -> None:
    with service.http() as http:
        answer = http.post(
            "/v1/jobs", json={"image": "host", "command": ["true"], "network": network}
        )

    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]


def test_a_service_whose_operator_did_not_turn_egress_on_refuses_it(
    real_service: RunningService,
) -> None:
    with real_service.client() as client, pytest.raises(InvalidRequest) as refusal:
        client.run(["true"], network={"mode": "egress"})

    (fault,) = refusal.value.problem.errors
    assert (fault.pointer, "network.egress" in fault.detail) == ("/network/mode", True)


def test_a_job_of_an_oci_runtime_has_no_egress(client: Client) -> None:
    if not os.access("/usr/sbin/runc", os.X_OK):
        host_required("runc is not installed")

    with pytest.raises(InvalidRequest) as refusal:
        client.run(["true"], runtime="runc", network={"mode": "egress"})

    assert [fault.pointer for fault in refusal.value.problem.errors] == ["/network/mode"]


def test_the_command_line_asks_for_egress(service: ServiceInWorld) -> None:
    words = ["run", "--url", service.url, "--network", "egress", "--allow", "203.0.113.7:80"]
    program = f"{TOOLS}\nprint(reach('203.0.113.7', 80)[0], reach('203.0.113.8', 80)[0])"

    ran = service.command(*words, "--", "python3", "-c", program)

    assert ran.stdout == f"hello from 203.0.113.7 {REFUSED}\n", ran.stderr


def test_steps_share_one_way_out_and_its_count(service: ServiceInWorld) -> None:
    program = f"{TOOLS}\nprint(reach('203.0.113.7', 80)[0], reach('10.1.2.3', 80)[0])"
    request = {
        "image": "host",
        "network": {"mode": "egress"},
        "steps": [{"command": ["python3", "-c", program]} for _ in range(2)],
    }

    with service.http() as http:
        answer = http.post("/v1/jobs", json=request, headers={"Prefer": "wait=30"}, timeout=40)
    job = answer.json()

    assert [run["stdout"] for run in job["steps"]] == [f"hello from 203.0.113.7 {REFUSED}\n"] * 2
    assert [run["usage"]["net_rx_bytes"] for run in job["steps"]] == [None, None]
    assert job["usage"]["net_rx_bytes"] > 2 * len("hello from 203.0.113.7")
    assert [each["count"] for each in job["denied"]] == [2]


def test_jobs_at_the_same_time_have_ways_out_of_their_own(jobs: Jobs) -> None:
    def tell(address: str) -> list[str]:
        targets = [("203.0.113.7", 80), ("203.0.113.8", 80)]
        return [said for said, _ in jobs.tell(reach_all(targets), allow=[f"{address}:80"])]

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(tell, ["203.0.113.7", "203.0.113.8"] * 4))

    assert answers == [["hello from 203.0.113.7", REFUSED], [REFUSED, "hello from 203.0.113.8"]] * 4
