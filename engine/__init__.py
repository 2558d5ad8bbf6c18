"""The engine: models, KV cache, decoders. Import from its modules, or from `mulosd` itself."""
