"""The engine behind an HTTP API that clients of OpenAI's know: FastAPI and uvicorn, the extra `serve`."""
