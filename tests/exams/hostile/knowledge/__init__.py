"""Attacks on skills that answer from knowledge: hidden documents asked for, and documents that give orders."""
