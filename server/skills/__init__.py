"""A skill and who may use it: prompt, limits, origins, API keys and verified visitors.

May import `engine`, `storage`, `text`.
"""
