// The openai package for Node against a server. Reads its inputs as JSON from stdin, prints what it saw as JSON.

const OpenAI = require("openai");

const WEATHER = {
  type: "function",
  function: {
    name: "weather",
    description: "The weather of a place.",
    parameters: { type: "object", properties: { place: { type: "string" } }, required: ["place"] },
  },
};
const FORECAST = {
  type: "json_schema",
  json_schema: {
    name: "forecast",
    schema: {
      type: "object",
      properties: {
        city: { type: "string", enum: ["Riga", "Oslo"] },
        sky: { type: "string", enum: ["clear", "grey"] },
      },
      required: ["city", "sky"],
      additionalProperties: false,
    },
  },
};
const OFF = { thinking: { type: "disabled" } };

const said = (content) => [{ role: "user", content }];
const plain = (call) => ({ id: call.id, name: call.function.name, arguments: JSON.parse(call.function.arguments) });
const counted = (usage) => ({
  prompt: usage.prompt_tokens,
  completion: usage.completion_tokens,
  cached: usage.prompt_tokens_details?.cached_tokens,
  reasoning: usage.completion_tokens_details?.reasoning_tokens,
});
const answered = ({ choices: [choice], usage }) => ({
  text: choice.message.content,
  thinking: choice.message.reasoning_content ?? null,
  finish: choice.finish_reason,
  usage: counted(usage),
});

function client(inputs, key = inputs.key) {
  return new OpenAI({ baseURL: inputs.url, apiKey: key, maxRetries: 0 });
}

async function streamed(ai, request) {
  const seen = { text: "", thinking: "", calls: [], pieces: 0, finish: null, usage: null };
  const stream = await ai.chat.completions.create({
    ...request,
    stream: true,
    stream_options: { include_usage: true },
  });
  for await (const chunk of stream) {
    seen.pieces += 1;
    if (chunk.usage) seen.usage = counted(chunk.usage);
    for (const { delta, finish_reason } of chunk.choices) {
      seen.text += delta.content ?? "";
      seen.thinking += delta.reasoning_content ?? "";
      seen.finish = finish_reason ?? seen.finish;
      for (const call of delta.tool_calls ?? []) {
        const known = (seen.calls[call.index] ??= { id: call.id, name: call.function.name, text: "" });
        known.text += call.function.arguments ?? "";
      }
    }
  }
  seen.calls = seen.calls.map(({ id, name, text }) => ({ id, name, arguments: JSON.parse(text) }));
  return seen;
}

async function failure(act) {
  try {
    await act();
  } catch (error) {
    return { kind: error.constructor.name, status: error.status ?? null, message: error.message };
  }
  return null;
}

const STEPS = {
  chat: async (ai, { model }) =>
    answered(await ai.chat.completions.create({ model, messages: said("Grüße, 月") })),
  stream: (ai, { model }) => streamed(ai, { model, messages: said("Grüße, 月") }),
  quiet: async (ai, { model }) =>
    answered(await ai.chat.completions.create({ model, messages: said("Hi"), ...OFF })),
  tools: async (ai, { model }) => {
    const messages = said("The weather in Riga and Oslo?");
    const first = await ai.chat.completions.create({ model, messages, tools: [WEATHER] });
    const calls = first.choices[0].message.tool_calls;
    const results = calls.map((call) => ({ role: "tool", tool_call_id: call.id, content: "dry" }));
    const history = [...messages, first.choices[0].message, ...results];
    const last = await ai.chat.completions.create({ model, messages: history, tools: [WEATHER] });
    return { ...answered(last), calls: calls.map(plain), finish: first.choices[0].finish_reason };
  },
  tools_streamed: (ai, { model }) =>
    streamed(ai, { model, messages: said("The weather in Riga and Oslo?"), tools: [WEATHER] }),
  structured: async (ai, { model }) => {
    const answer = await ai.chat.completions.parse({
      model, messages: said("A forecast."), response_format: FORECAST, ...OFF, max_tokens: 200, seed: 1,
    });
    return answer.choices[0].message.parsed ?? JSON.parse(answer.choices[0].message.content);
  },
  vision: async (ai, { model, image }) => {
    const parts = [{ type: "image_url", image_url: { url: image } }, { type: "text", text: "What is it?" }];
    return answered(await ai.chat.completions.create({ model, messages: said(parts), ...OFF, max_tokens: 8 }));
  },
  errors: async (ai, inputs) => {
    const ask = (content, model = inputs.model, by = ai) =>
      failure(() => by.chat.completions.create({ model, messages: said(content) }));
    return {
      bad_request: await failure(() => ai.chat.completions.create({ model: inputs.model, messages: [] })),
      wrong_key: await ask("Hi", inputs.model, client(inputs, "plk_wrong")),
      wrong_scope: await ask("Hi", inputs.model, client(inputs, inputs.admin_key)),
      unknown_model: await ask("Hi", "nobody"),
      busy: await ask("busy"),
      down: await ask("down"),
    };
  },
  abort: async (ai, { model }) => {
    const stream = await ai.chat.completions.create({ model, messages: said("endless"), stream: true });
    let pieces = 0;
    for await (const chunk of stream) {
      if (chunk.choices.length && ++pieces === 5) break;
    }
    return pieces;
  },
  given: async (ai, { requests }) => {
    const all = [];
    for (const request of requests) all.push(await streamed(ai, request));
    return all;
  },
};

async function main() {
  const inputs = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
  const seen = {};
  for (const step of inputs.steps) {
    try {
      seen[step] = await STEPS[step](client(inputs), inputs);
    } catch (error) {
      seen[step] = { failed: `${error.constructor.name}: ${error.message}` };
    }
  }
  console.log(JSON.stringify(seen));
}

main();
