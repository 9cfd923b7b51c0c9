"""The parts that all packages share: records, errors, random keys, the client axis, files."""
