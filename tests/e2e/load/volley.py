"""One of several client processes: waits for a line, then sends requests from eight threads at
once. Usage: python volley.py PORT PATH REQUESTS_PER_THREAD. Prints the number of answers by
status."""

import http.client
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

THREADS = 8


def ask(port: int, path: str, times: int) -> Counter[int]:
    statuses: Counter[int] = Counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for _ in range(times):
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        statuses[response.status] += 1
    connection.close()
    return statuses


def main(port: str, path: str, times: str) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        print("ready", flush=True)  # noqa: T201 - the parent reads it
        sys.stdin.readline()
        calls = [pool.submit(ask, int(port), path, int(times)) for _ in range(THREADS)]
        total = sum((call.result() for call in calls), Counter())
    for status, count in sorted(total.items()):
        print(status, count, flush=True)  # noqa: T201 - the parent reads it


if __name__ == "__main__":
    main(*sys.argv[1:])
