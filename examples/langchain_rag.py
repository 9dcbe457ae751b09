"""LangChain: a chain whose model follows the document, and says by how much.

    python examples/langchain_rag.py

Needs divserve, langchain-openai, and a server (OPENAI_BASE_URL, by default 127.0.0.1:8000). The
document stands between markers in the prompt, so one `decoding` serves every call of the chain.
"""

from __future__ import annotations

import os

from langchain_core.prompts import ChatPromptTemplate

from divserve.client import decoding
from divserve.client.langchain import ChatDivserve

guide = {"between": ["<document>", "</document>"]}
model = ChatDivserve(
    model=os.environ.get("MODEL", "smollm2-135m-instruct"),
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
    temperature=0,
    max_tokens=32,
    stream_usage=True,
    extra_body=decoding("adacad", guide=guide),
)
prompt = ChatPromptTemplate([("user", "<document>{document}</document>\n\n{question}")])
chain = prompt | model
asked = {
    "document": "Since January, the Mona Lisa hangs in the Prado in Madrid.",
    "question": "In which museum does the Mona Lisa hang?",
}
answer = chain.invoke(asked)
print(answer.content, answer.response_metadata["decoding"], sep="\n")

whole = None
for chunk in chain.stream(asked):
    whole = chunk if whole is None else whole + chunk
    print(chunk.content, end="", flush=True)
print()
if whole is not None:
    print(whole.response_metadata["decoding"])
