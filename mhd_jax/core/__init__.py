"""What every room shares: records, errors, keys, the client axis, files."""
