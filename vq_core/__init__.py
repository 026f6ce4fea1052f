"""The self-contained core: specs, encoders, file format, pipeline. Knows no host."""
