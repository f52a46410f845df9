"""Images of a site's files: listed, decoded by rules of their formats, and looked at before round 1."""
