"""How long a command in a sandbox takes, from the request to its answer: `python bench/exec_latency.py URL [COUNT]`."""

import sys
import time

import httpx2


def main(url: str, count: int) -> None:
    with httpx2.Client(base_url=url, timeout=60) as http:
        sandbox = http.post("/v1/sandboxes", json={}).json()
        path = f"/v1/sandboxes/{sandbox['id']}"
        seconds, setups = [], []
        for _ in range(count):
            began = time.perf_counter()
            ran = http.post(f"{path}/exec", json={"command": ["/bin/true"]}).json()
            seconds.append(time.perf_counter() - began)
            assert ran["state"] == "succeeded", ran
            setups.append(ran["usage"]["wall_seconds"])
        http.delete(path)
    for name, figures in (("request to answer", seconds), ("the command itself", setups)):
        figures.sort()
        p50, p90, p99 = (figures[int(len(figures) * part)] * 1e3 for part in (0.5, 0.9, 0.99))
        print(f"{name}: p50 {p50:.2f} ms, p90 {p90:.2f} ms, p99 {p99:.2f} ms ({count} commands)")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1000)
