"""Measuring decoders: independent reader, object accuracy, KID-Lite0, the decoding benchmark, contact sheets."""
