// Asks a server what OpenAI's client for JavaScript can ask, and prints what came as JSON:
// node ask.mjs FOLDER ADDRESS KEY MODEL ID,ID,… (where the client is installed; the tokens that end a text)
import { createRequire } from "node:module";

const [folder, address, apiKey, model, ends] = process.argv.slice(2);
const { default: OpenAI } = createRequire(`${folder}/`)("openai");
const client = new OpenAI({ baseURL: `${address}/v1`, apiKey, maxRetries: 0, timeout: 60_000 });
const messages = [{ role: "user", content: "the capital of Japan?" }];
const logit_bias = Object.fromEntries(ends.split(",").map((id) => [id, -100]));
const exact = { model, messages, temperature: 0, max_tokens: 12, logit_bias };
const schema = {
  type: "object",
  properties: { city: { enum: ["Paris", "Tokyo"] }, degrees: { enum: [10, 20] } },
  required: ["city", "degrees"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "look_up", parameters: schema, strict: true } }];

const all = async (events) => {
  const found = [];
  for await (const event of events) found.push(event);
  return found;
};

const parts = {
  async models() {
    return { listed: (await all(client.models.list())).map(({ id }) => id), one: (await client.models.retrieve(model)).id };
  },

  async chat() {
    const { choices, usage } = await client.chat.completions.create({ ...exact, n: 2 });
    return { choices, usage };
  },

  async streaming() {
    const stream = await client.chat.completions.create({ ...exact, stream: true, stream_options: { include_usage: true } });
    const chunks = await all(stream);
    const helper = client.chat.completions.stream(exact);
    const seen = [];
    helper.on("content", (delta) => seen.push(delta));
    return { chunks, seen, final: await helper.finalChatCompletion() };
  },

  async leaving() {
    const stream = await client.chat.completions.create({ ...exact, max_tokens: 900, stream: true });
    let read = 0;
    for await (const _ of stream) if (++read === 3) break;
    return { read, aborted: stream.controller.signal.aborted };
  },

  async tools() {
    const options = { model, messages, tools, max_tokens: 300, parallel_tool_calls: false };
    const whole = await client.chat.completions.create({ ...options, tool_choice: "required" });
    const named = { type: "function", function: { name: "look_up" } };
    const streamed = client.chat.completions.stream({ ...options, tool_choice: named });
    return { whole: whole.choices[0], streamed: (await streamed.finalChatCompletion()).choices[0] };
  },

  async structured() {
    const form = { name: "weather", schema, strict: true };
    const options = { model, messages, max_tokens: 120, response_format: { type: "json_schema", json_schema: form } };
    const response = { model, input: "hello", max_output_tokens: 120, text: { format: { type: "json_schema", ...form } } };
    return {
      whole: (await client.chat.completions.create(options)).choices[0].message.content,
      streamed: await client.chat.completions.stream(options).finalContent(),
      response: (await client.responses.create(response)).output_text,
    };
  },

  async responses() {
    const options = { model, input: "hello", max_output_tokens: 16, temperature: 0 };
    const first = await client.responses.create(options);
    const second = await client.responses.create({ ...options, input: "again", previous_response_id: first.id });
    const stream = client.responses.stream(options);
    const events = await all(stream);
    return { first, second, events, final: await stream.finalResponse() };
  },

  async embeddings() {
    return (await client.embeddings.create({ model, input: ["the capital of France", "Tokyo"] })).data;
  },

  async errors() {
    const wrong = (changes) => () => client.chat.completions.create({ ...exact, ...changes });
    const asked = {
      model: wrong({ model: "another" }),
      field: wrong({ colour: 1 }),
      type: wrong({ max_tokens: "many" }),
      long: wrong({ messages: [{ role: "user", content: "the ".repeat(5000) }] }),
      streamed: wrong({ model: "another", stream: true }),
      key: () => client.withOptions({ apiKey: "another" }).models.list(),
      response: () => client.responses.retrieve("resp_none"),
    };
    const found = {};
    for (const [name, ask] of Object.entries(asked)) {
      found[name] = await ask().then(
        () => null,
        (error) => ({ kind: error.constructor.name, status: error.status, code: error.code, param: error.param, body: error.error }),
      );
    }
    return found;
  },
};

const found = {};
for (const [name, ask] of Object.entries(parts)) found[name] = await ask();
console.log(JSON.stringify(found));
