"""Configuration: what may be set (schema), how it is put together (compose), and what makes sense (validate)."""
