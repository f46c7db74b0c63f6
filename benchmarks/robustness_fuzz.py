"""atheris, led by coverage, on what our own code reads: flatbuffer, MIL and weight files, strict parsing."""
