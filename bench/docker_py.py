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
        client.containers.run(image, [command], remove=True, network_mode="none")

    run()
    for _ in range(int(runs)):
        time.sleep(PAUSE_SECONDS)
        began = time.perf_counter()
        run()
        print(time.perf_counter() - began)


if __name__ == "__main__":
    main(*sys.argv[1:])
