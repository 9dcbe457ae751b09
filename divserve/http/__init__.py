"""What both halves of the HTTP side, `divserve.api` and `divserve.edges`, stand on.

Neither half imports the other; `divserve.server` puts them together.

asgi     reading a body ahead of the route that it is for
errors   errors as OpenAI's JSON
fields   how much the fields of a body may ask, and how many rows they take
foreign  the errors of vLLM, FastAPI and Starlette
openai   vLLM's OpenAI classes; nothing else here imports vLLM
paths    the routes that are treated in a way of their own
scope    what one layer leaves in the ASGI scope for the layers inside of it
"""
