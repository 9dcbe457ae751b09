"""How frameworks ask it, with divserve's modules for them and without."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.client.asking import ASK, BODY, FINAL, KEY, TEXT, TOKENS, Told


def anywhere(answer: Any) -> dict[str, Any] | None:
    """An account of no steps, if something of one is to be found in an answer."""
    return {"applied_steps": 0} if "trace" in str(answer) else None


def langchain(url: str, model: str) -> Told:
    from langchain_openai import ChatOpenAI

    from divserve.client.langchain import ChatDivserve

    fields: Any = {
        "model": model, "base_url": url, "api_key": KEY, "temperature": 0, "max_tokens": TOKENS,
        "extra_body": BODY,
    }  # fmt: skip
    chat, own = ChatDivserve(**fields), ChatOpenAI(**fields)

    async def asynchronous() -> tuple[Any, Any]:
        return await chat.ainvoke(TEXT), added([chunk async for chunk in chat.astream(TEXT)])

    def added(chunks: Any) -> Any:
        first, *others = chunks
        return sum(others, first)

    whole, streamed = asyncio.run(asynchronous())
    # With a format LangChain asks through other helpers of the openai client.
    formatted = chat.bind(response_format={"type": "text"})
    answers = {
        "invoke": chat.invoke(TEXT),
        "stream": added(chat.stream(TEXT)),
        "ainvoke": whole,
        "astream": streamed,
        "invoke, response_format": formatted.invoke(TEXT),
        "stream, response_format": added(formatted.stream(TEXT)),
    }
    found: Told = {
        name: (answer.content, answer.response_metadata.get("decoding"))
        for name, answer in answers.items()
    }
    for name, answer in {
        "ChatOpenAI": own.invoke(TEXT),
        "its stream": added(own.stream(TEXT)),
    }.items():
        found[name] = (answer.content, anywhere(answer.model_dump()))
    return found


def pydantic_ai(url: str, model: str) -> Told:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    from divserve.client.pydantic_ai import DivserveModel

    provider = OpenAIProvider(base_url=url, api_key=KEY)
    settings: Any = {"temperature": 0, "max_tokens": TOKENS, "extra_body": BODY}
    agent = Agent(DivserveModel(model, provider=provider), model_settings=settings)
    other = Agent(OpenAIChatModel(model, provider=provider), model_settings=settings)

    async def all_of_them() -> Told:
        whole = await agent.run(TEXT)
        async with agent.run_stream(TEXT) as stream:
            text = await stream.get_output()
        answers = {"run": (whole.output, whole), "run_stream": (text, stream)}
        found: Told = {
            name: (said, (run.all_messages()[-1].provider_details or {}).get("decoding"))
            for name, (said, run) in answers.items()
        }
        own = await other.run(TEXT)
        found["OpenAIChatModel"] = (own.output, anywhere(own.all_messages()[-1]))
        return found

    return asyncio.run(all_of_them())


def llama_index(url: str, model: str) -> Told:
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    from divserve.client.llama_index import account, collected

    llm = OpenAILike(
        model=model, api_base=url, api_key=KEY, is_chat_model=True, temperature=0,
        max_tokens=TOKENS, additional_kwargs={"extra_body": BODY},
    )  # fmt: skip
    asked = [ChatMessage(role="user", content=TEXT)]
    whole = llm.chat(asked)
    streamed = collected(llm.stream_chat(asked))
    return {
        "chat": (whole.message.content, account(whole)),
        "stream_chat": (streamed.texts[0], streamed.accounts[0]),
    }


def litellm(url: str, model: str) -> Told:
    import litellm as package

    from divserve.client.litellm import account, watch

    fields: Any = {
        "model": f"openai/{model}", "api_base": url, "api_key": KEY, "messages": ASK,
        "temperature": 0, "max_tokens": TOKENS, "extra_body": BODY,
    }  # fmt: skip
    whole = package.completion(**fields)
    found: Told = {"completion": (whole.choices[0].message.content, account(whole))}

    stream = package.completion(**fields, stream=True)
    watched = watch(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    found["completion, stream"] = (text, watched.result().accounts[0])

    async def asynchronous() -> tuple[Any, Any]:
        stream = await package.acompletion(**fields, stream=True)
        watched = watch(stream)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        return text, watched.result().accounts[0]

    found["acompletion, stream"] = asyncio.run(asynchronous())
    for name, body in {"chunks alone": BODY, "chunks alone, final": FINAL}.items():
        stream = package.completion(**{**fields, "extra_body": body}, stream=True)
        chunks = [chunk.model_dump() for chunk in stream]
        kept = [x["choices"][0].get("decoding") or {} for x in chunks]
        text = "".join(x["choices"][0]["delta"]["content"] or "" for x in chunks)
        found[name] = (text, {"trace": [entry for x in kept for entry in x.get("trace", ())]})
    return found


def dspy(url: str, model: str) -> Told:
    import dspy as package

    from divserve.client.litellm import account

    lm = package.LM(
        f"openai/{model}", api_base=url, api_key=KEY, temperature=0, max_tokens=TOKENS,
        cache=False, extra_body=BODY,
    )  # fmt: skip
    (text, *_) = lm(TEXT)
    return {"LM": (text, account(lm.history[-1]["response"]))}
