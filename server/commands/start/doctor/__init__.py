"""`secateur doctor`: what keeps a server from running well on this machine, and what to do about it."""
