"""Forward and backward passes block by block, and the statistics that they observe.

May import `model`.
"""
