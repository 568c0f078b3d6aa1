"""Token ids in, token ids out: continuous batching over a block KV cache, without HTTP or text.

May import `artifact`.
"""
