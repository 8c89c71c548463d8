"""docker-py, in a process of its own, with the Python that Debian's python3-docker is for.

/usr/bin/python3 docker_py.py SOCKET run IMAGE COMMAND RUNS    prints the seconds of each run
/usr/bin/python3 docker_py.py SOCKET import IMAGE ARCHIVE
"""

import sys
import time

import docker

PAUSE_SECONDS = 0.02


def main(socket, action, image, *words):
    client = docker.DockerClient(base_url=f"unix://{socket}", timeout=60)
    if action == "import":
        client.api.import_image_from_file(words[0], repository=image)
        return
    command, runs = words

    def run():
        # What `containers.run` does, but with the log asked for at the end. That follows it from the start, and podman (4.3.1) never
        # ends the answer if the command ended between its two looks: whether it runs, and then for the event that it ended.
        container = client.containers.run(image, [command], detach=True, network_mode="none")
        if container.wait()["StatusCode"] != 0:
            raise SystemExit(f"{command} fails: {container.logs()}")
        container.logs(stderr=False)
        container.remove()

    run()
    for _ in range(int(runs)):
        time.sleep(PAUSE_SECONDS)
        began = time.perf_counter()
        run()
        print(time.perf_counter() - began)


if __name__ == "__main__":
    main(*sys.argv[1:])
