"""Training processes of a site: forked by a server that has torch imported, asked by a worker that has not."""
