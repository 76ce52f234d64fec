"""Talk to a running `perilune serve` with the openai SDK: an answer, a stream, a tool call.

PERILUNE_API_KEY=plk_... python examples/chat_with_openai_sdk.py      (the project_key of HOME/keys.json)
"""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("PERILUNE_BASE_URL", "http://127.0.0.1:8642/v1"),
    api_key=os.environ["PERILUNE_API_KEY"],
)
model = client.models.list().data[0].id

answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hello"}])
print(f"{model}: {answer.choices[0].message.content}")

print("Streamed: ", end="")
for chunk in client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Hello again"}],
    stream=True,
    extra_body={"thinking": {"type": "disabled"}},
):
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
print()

weather = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
asked = client.chat.completions.create(
    model=model, messages=[{"role": "user", "content": "Is it raining in Riga?"}], tools=[weather]
)
for call in asked.choices[0].message.tool_calls or []:
    print(f"It wants to call {call.function.name}({call.function.arguments})")
client.close()
