"""Servers on loopback that stand in for internet services: same paths, headers, paging, framing and errors.

What they serve is made from a seed, so that two runs get the same, and what they have served is kept for checking.
"""
