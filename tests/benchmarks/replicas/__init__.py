"""Replicas behind a balancer: a run of three on this machine, and a discrete simulation of it and of twenty."""
