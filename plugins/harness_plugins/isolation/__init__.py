"""Foreign programs in isolation: the pool of warm workers, and what they promise.

| file | what it is |
| --- | --- |
| confine.py | what a process does to confine itself, and what a machine must have for it |
| values.py | plain values over a socket, without pickle |
| heads.py | the code given before a function's body |
| children.py | what a confined process does: candidate, tests, program, command |
| processes.py | the end of all that a command started |
| servers.py | the processes that fork and watch them |
| worker.py | the worker: a broker and its two fork servers |
| pool.py | the harness's side: workers kept warm, a verdict for each job |
"""
