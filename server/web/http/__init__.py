"""HTTP below the endpoints: connection deadlines, middleware, errors, request bodies, server-sent events, traces."""
