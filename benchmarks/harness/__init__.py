"""What benchmarks are made of: federations, fake clients, tasks without work, tables and the document."""
