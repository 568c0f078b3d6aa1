"""llama.cpp's own HTTP server in the wheel xllamacpp: `... MODEL.gguf THREADS SLOTS CONTEXT`; prints where it listens.

Runs in that wheel's environment. The context is a slot's; all else is the server's default.
"""

import sys

import xllamacpp


def main() -> None:
    """Serve until standard input ends."""
    threads, slots, context = (int(argument) for argument in sys.argv[2:5])
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_parallel, params.n_ctx = slots, slots * context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.port = 0
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
