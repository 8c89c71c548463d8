"""Real programs do their work behind the walls: the acceptance test of the system call filter and of image `host`."""

import hashlib
import shutil
import textwrap

import pytest

from sandboxd.client import Client, Job

ROOMY = {"memory": "512Mi", "pids": 64, "disk": "256Mi", "wall_seconds": 60, "cpus": 2}


def succeed(client: Client, command: list[str], **options: object) -> str:
    job: Job = client.run(command, **{"limits": ROOMY, **options})
    assert job.state == "succeeded", (job.error, job.text, job.stderr.decode())
    return job.text


def python(client: Client, code: str) -> str:
    return succeed(client, ["python3", "-c", textwrap.dedent(code)])


def shell(client: Client, script: str, interpreter: str = "bash") -> str:
    return succeed(client, [interpreter, "-e", "-c", textwrap.dedent(script)])


def needs(program: str) -> pytest.MarkDecorator:
    """Other programs of the host than those that every test machine has."""
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"this host has no {program}")


# C

C_SOURCE = r"""
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static long total;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *add(void *number) {
    for (int i = 0; i < 1000; i++) {
        pthread_mutex_lock(&lock);
        total += (long)number;
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

int main(int count, char **words) {
    pthread_t threads[8];
    for (long i = 0; i < 8; i++)
        if (pthread_create(&threads[i], NULL, add, (void *)i)) return 1;
    for (int i = 0; i < 8; i++) pthread_join(threads[i], NULL);
    printf("%s %ld\n", words[1], total);
    return count == 2 ? 0 : 2;
}
"""


def test_a_c_program_is_compiled_and_run_with_its_threads(client: Client) -> None:
    script = "gcc -O2 -Wall -pthread -o sum -x c - && ./sum total"

    assert succeed(client, ["sh", "-c", script], stdin=C_SOURCE) == "total 28000\n"


def test_a_compiler_error_is_on_stderr_with_its_exit_code(client: Client) -> None:
    job = client.run(["gcc", "-x", "c", "-"], stdin="int main( {")

    assert (job.state, job.exit_code) == ("failed", 1)
    assert b"error:" in job.stderr


def test_a_static_program_without_a_loader_runs(client: Client) -> None:
    source = '#include <unistd.h>\nint main(void) { return write(1, "static\\n", 7) != 7; }'
    script = "gcc -static -o s -x c - && ./s"

    assert succeed(client, ["sh", "-c", script], stdin=source) == "static\n"


# Python


def test_python_threads_work(client: Client) -> None:
    code = """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(8) as pool:
            print(sum(pool.map(lambda n: n * n, range(1000))))
    """
    assert python(client, code) == "332833500\n"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_python_multiprocessing_works_by_every_start_method(client: Client, method: str) -> None:
    code = f"""
        cat >square.py <<'END'
        import multiprocessing

        def square(number):
            return number * number

        if __name__ == "__main__":
            multiprocessing.set_start_method("{method}")
            with multiprocessing.Pool(2) as pool:
                print(sum(pool.map(square, range(100))))
        END
        python3 square.py
    """
    assert shell(client, code) == "328350\n"


def test_python_subprocesses_and_pipes_work(client: Client) -> None:
    code = """
        import subprocess
        first = subprocess.Popen(["seq", "1000"], stdout=subprocess.PIPE)
        second = subprocess.Popen(["sort", "-rn"], stdin=first.stdout, stdout=subprocess.PIPE)
        first.stdout.close()
        third = subprocess.run(["head", "-1"], stdin=second.stdout, capture_output=True, text=True)
        print(third.stdout, end="")
        print(subprocess.run("exit 3", shell=True).returncode)
        print(subprocess.run(["cat"], input=b"x" * 2**20, capture_output=True).stdout.count(b"x"))
    """
    assert python(client, code) == "1000\n3\n1048576\n"


def test_asyncio_works(client: Client) -> None:
    code = """
        import asyncio, signal
        async def main():
            process = await asyncio.create_subprocess_exec("echo", "hi", stdout=asyncio.subprocess.PIPE)
            print((await process.communicate())[0])
            loop, got = asyncio.get_running_loop(), asyncio.Event()
            loop.add_signal_handler(signal.SIGUSR1, got.set)
            signal.raise_signal(signal.SIGUSR1)
            await asyncio.wait_for(got.wait(), 5)
            print(await asyncio.to_thread(sum, range(10)))
        asyncio.run(main())
    """
    assert python(client, code) == "b'hi\\n'\n45\n"


def test_sqlite_works_with_its_locks_and_its_write_ahead_log(client: Client) -> None:
    code = """
        import sqlite3, threading
        database = sqlite3.connect("/work/d.sqlite3")
        print(database.execute("PRAGMA journal_mode = WAL").fetchone())
        database.execute("CREATE TABLE numbers (n INTEGER)")
        def add():
            with sqlite3.connect("/work/d.sqlite3", timeout=30) as own:
                own.executemany("INSERT INTO numbers VALUES (?)", ((n,) for n in range(1000)))
        threads = [threading.Thread(target=add) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(database.execute("SELECT count(*), sum(n) FROM numbers").fetchone())
    """
    assert python(client, code) == "('wal',)\n(4000, 1998000)\n"


def test_a_tcp_server_and_its_client_meet_on_loopback(client: Client) -> None:
    code = """
        import socket, threading
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            server = socket.create_server((address, 0), family=family)
            def serve():
                connection, _ = server.accept()
                with connection:
                    connection.sendall(connection.recv(100).upper())
            thread = threading.Thread(target=serve)
            thread.start()
            with socket.create_connection(server.getsockname()[:2], timeout=10) as connection:
                connection.sendall(b"hello")
                print(connection.recv(100))
            thread.join()
        print(socket.gethostbyname("localhost"))
    """
    assert python(client, code) == "b'HELLO'\nb'HELLO'\n127.0.0.1\n"


def test_unix_sockets_carry_words_and_descriptors(client: Client) -> None:
    code = r"""
        import os, socket
        for name in ("/tmp/socket", "\0abstract"):
            server = socket.socket(socket.AF_UNIX)
            server.bind(name)
            server.listen()
            client = socket.socket(socket.AF_UNIX)
            client.connect(name)
            connection, _ = server.accept()
            reading, writing = os.pipe()
            socket.send_fds(client, [b"x"], [reading])
            _, (received,), _, _ = socket.recv_fds(connection, 10, 1)
            os.write(writing, b"through")
            print(os.read(received, 10))
    """
    assert python(client, code) == "b'through'\nb'through'\n"


def test_a_terminal_can_be_made_and_used_inside(client: Client) -> None:
    code = """
        import os, pty
        pid, terminal = pty.fork()
        if pid == 0:
            os.execlp("sh", "sh", "-c", "test -t 0 && tty && stty size && exit 4")
        shown = b""
        try:
            while piece := os.read(terminal, 1000):
                shown += piece
        except OSError:
            pass
        print(shown, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    assert python(client, code) == "b'/dev/pts/0\\r\\n0 0\\r\\n' 4\n"


@needs("script")
def test_script_records_a_session(client: Client) -> None:
    out = shell(client, "script -qec 'tty; echo in a terminal' /dev/null </dev/null")

    assert out.split() == ["/dev/pts/0", "in", "a", "terminal"]


# Shells

JOB_CONTROL = """
    set -m
    sleep 600 &
    first=$!
    (sleep 0.05; exit 3) &
    wait $! && exit 1
    echo waited: $?
    kill -s STOP $first
    kill -s CONT $first
    kill $first
    wait $first || echo killed: $?
    trap 'echo trapped' USR1
    kill -s USR1 $$
    (sleep 1; exit 5) &
    fg %% >/dev/null || echo fg: $?
    echo one two | while read -r a b; do echo "$b $a"; done
    trap 'echo bye' EXIT
"""
JOB_CONTROL_OUTPUT = "waited: 3\nkilled: 143\ntrapped\nfg: 5\ntwo one\nbye\n"


@pytest.mark.parametrize("interpreter", ["bash", "dash"])
def test_a_shell_script_with_job_control_runs(client: Client, interpreter: str) -> None:
    if shutil.which(interpreter) is None:
        pytest.skip(f"this host has no {interpreter}")
    script = JOB_CONTROL
    if interpreter == "dash":  # without a terminal dash has no `set -m`
        script = "\n".join(line for line in script.splitlines() if "set -m" not in line)
        script = script.replace("fg %% >/dev/null || echo fg: $?", "wait $! || echo fg: $?")

    assert shell(client, script, interpreter) == JOB_CONTROL_OUTPUT


def test_bash_uses_process_substitution_here_documents_and_coprocesses(client: Client) -> None:
    script = """
        diff <(seq 3) <(seq 3) && echo same
        coproc cat
        echo through >&"${COPROC[1]}"
        read -r line <&"${COPROC[0]}"
        echo "$line"
        mkfifo pipe
        echo fifo >pipe &
        cat pipe
    """
    assert shell(client, script) == "same\nthrough\nfifo\n"


@needs("perl")
def test_perl_runs(client: Client) -> None:
    script = (
        'my %h; $h{$_ % 3}++ for 1..10; print join(\',\', map {"$_=$h{$_}"} sort keys %h), "\\n"'
    )

    assert succeed(client, ["perl", "-we", script]) == "0=3,1=4,2=3\n"


@needs("node")
def test_node_runs_with_its_workers_and_child_processes(client: Client) -> None:
    script = """
        const { Worker } = require('worker_threads');
        const { execFileSync } = require('child_process');
        const work = "require('worker_threads').parentPort.postMessage(6 * 7)";
        new Worker(work, { eval: true }).on('message', n => {
            console.log(n, execFileSync('echo', ['child']).toString().trim());
        });
        require('fs').promises.writeFile('f', 'x').then(() => {});
    """
    limits = {**ROOMY, "memory": "1Gi"}

    assert succeed(client, ["node", "-e", script], limits=limits) == "42 child\n"


# Tools


@needs("git")
def test_git_makes_a_repository_and_commits(client: Client) -> None:
    script = """
        git init --quiet -b main repository && cd repository
        git config user.name Sandbox && git config user.email sandbox@localhost
        echo one >file && git add file && git commit --quiet -m First
        git checkout --quiet -b other && echo two >file && git commit --quiet -am Second
        git checkout --quiet main && git merge --quiet other && git gc --quiet
        git log --format=%s && git fsck && cat file
    """
    assert shell(client, script) == "Second\nFirst\ntwo\n"


def test_tar_and_gzip_pack_and_unpack(client: Client) -> None:
    script = """
        mkdir -p in/a out && seq 1000 >in/a/numbers && ln -s numbers in/a/link && chmod 750 in/a
        tar -czf packed.tgz in && tar -xzf packed.tgz -C out
        diff -r in out/in && readlink out/in/a/link && stat -c %a out/in/a
        gzip -t packed.tgz && echo sound
    """
    assert shell(client, script) == "numbers\n750\nsound\n"


def test_hashes_are_those_of_the_world_outside(client: Client) -> None:
    content = b"the same everywhere" * 1000
    expected = hashlib.sha256(content).hexdigest()

    assert succeed(client, ["sha256sum"], stdin=content).split()[0] == expected


@needs("openssl")
def test_openssl_makes_keys_and_signs(client: Client) -> None:
    script = """
        openssl genpkey -algorithm ed25519 -out key && openssl pkey -in key -pubout -out public
        echo text >message && openssl pkeyutl -sign -inkey key -rawin -in message -out signature
        openssl pkeyutl -verify -pubin -inkey public -rawin -in message -sigfile signature
    """
    assert shell(client, script) == "Signature Verified Successfully\n"


def test_files_have_times_locks_and_links_as_usual(client: Client) -> None:
    code = """
        import fcntl, os, tempfile
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"x" * 10)
            file.flush()
            os.utime(file.name, (1, 2))
            print(os.stat(file.name).st_mtime)
            fcntl.flock(file, fcntl.LOCK_EX)
            fcntl.lockf(file, fcntl.LOCK_EX)
            os.link(file.name, file.name + "2")
            print(os.stat(file.name).st_nlink)
            os.rename(file.name + "2", "/work/moved")
            os.chmod("/work/moved", 0o640)
            print(oct(os.stat("/work/moved").st_mode), os.path.getsize("/work/moved"))
    """
    assert python(client, code) == "2.0\n2\n0o100640 10\n"


def test_a_job_knows_who_it_is(client: Client) -> None:
    script = "whoami; echo $HOME $USER; cd; pwd; hostname; nproc >/dev/null"

    assert shell(client, script) == "sandbox\n/home/sandbox sandbox\n/home/sandbox\nsandbox\n"


def test_a_broken_pipe_ends_a_program_as_everywhere(client: Client) -> None:
    """Python ignores SIGPIPE; what it starts must not."""
    out = shell(client, "set +e; yes | head -1; echo ${PIPESTATUS[0]}")

    assert out == "y\n141\n"
