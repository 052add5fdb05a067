"""Foreign programs in isolation: a pool of warm workers.

| file | what it is | | --- | --- | | confine.py | how a process confines itself, and what the
machine needs for it | | values.py | plain values over a socket, without pickle | | heads.py | the
code given before a function's body | | children.py | the work of a confined process: candidate,
tests, program, command | | processes.py | ends all processes that a command started | | servers.py
| the processes that fork and watch the confined ones | | worker.py | the worker: a broker and its
two fork servers | | pool.py | the harness's side: workers kept warm, a verdict for each job |
"""
