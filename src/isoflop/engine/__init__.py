"""Inference: caches, scheduler, sampling, the HTTP server."""
