"""What both halves of the HTTP side, `divserve.api` and `divserve.edges`, have in common.

Neither half imports the other; `divserve.server` puts them together.

asgi     reads a body before its route does
bodies   bodies on which a validator fails
errors   errors as OpenAI's JSON
fields   the limits on the fields of a body, and how many rows they take
items    the limits on how many things a body holds
foreign  the errors of vLLM, FastAPI and Starlette
log_text what clients wrote, in logs
openai   vLLM's OpenAI classes; nothing else here imports vLLM
paths    the routes that are treated specially
scope    what one layer leaves in the ASGI scope for the layers inside it
"""
