"""A simulator of the whole: workers, their storage and its failures, one step at a time.

`python -m tests.simulator --help` runs it. The workers run the code of the extension, unchanged:
admission, lines, settlements, outages, the files of a host. So do the storages: the Lua scripts, in
process. What is replaced is what the operating system does: clocks, sleep, locks and threads
(`scheduler.py`), files that a killed process leaves (`files.py`), and the client of the storage
with the network behind it (`storage.py`). At each of these places a seed chooses what happens next.
"""
