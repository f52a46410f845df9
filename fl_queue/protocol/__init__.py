"""The formats that two processes agree on: identifiers, headers, tensors, records, statements; each with its limits."""
