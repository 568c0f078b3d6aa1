"""The transport: deadlines for slow peers, CORS, error bodies, request bodies, server-sent events and traces."""
