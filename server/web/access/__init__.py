"""Who may use the admin listener: programs by key, people by OpenID Connect."""
