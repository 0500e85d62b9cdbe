"""How fast requests are made: rlaif, a bare loop on the SDK, and other tools, against one local server.

    python -m benchmarks.generation install     # the other tools, each into an environment of its own
    python -m benchmarks.generation             # everything; or some of: zero, run, latency, limited, peers, memory

One server process (tests/servers/fault_server.py) answers everybody in a run. Each side is a process of its own that
works through the same prompts with the same number of requests at once; sides take turns, and every figure is the
median of the repeats with their range. Imports are not timed. CPU time is that of the side's process and its children,
never the server's.
"""
