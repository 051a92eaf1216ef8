import { chat } from "./api.js";

/** What the server is asked for the next answer of a conversation. */
export function body(conversation, model) {
  const { system, ...settings } = conversation.settings;
  const messages = history(conversation.messages);
  if (system) messages.unshift({ role: "system", content: system });
  const given = Object.entries(settings).filter(([, value]) => value !== null);
  return { model, messages, ...Object.fromEntries(given) };
}

/** Messages as the API takes them. An answer of which nothing came is left out. */
export function history(messages) {
  return messages.flatMap(({ role, content, reasoning, calls }) => {
    if (role === "user") return [{ role, content }];
    if (!content && !reasoning && !calls?.length) return [];
    return [{ role, content, ...(reasoning && { reasoning_content: reasoning }), ...(calls?.length && { tool_calls: calls }) }];
  });
}

/** Fills `message`, an answer, as it comes, calling `grown` after each piece.
 *
 * Throws what `chat` throws; what had come is in `message`, and `message.ended` says how it ended: "end", "length",
 * "stop" (by the reader) or "lost". */
export async function answer(request, message, signal, grown) {
  const asked = performance.now();
  let first = null;
  let last = null;
  message.ended = "lost";
  try {
    for await (const chunk of chat(request, signal)) {
      const [choice] = chunk.choices;
      if (choice && add(message, choice.delta)) {
        last = performance.now();
        first ??= last;
        grown();
      }
      if (choice?.finish_reason) message.ended = choice.finish_reason === "length" ? "length" : "end";
      if (chunk.usage) message.stats = measured(chunk.usage, asked, first, last);
    }
  } catch (error) {
    if (error.name === "AbortError") message.ended = "stop";
    throw error;
  }
}

/** Whether the piece has anything to show. */
function add(message, delta) {
  message.content += delta.content ?? "";
  if (delta.reasoning_content) message.reasoning = (message.reasoning ?? "") + delta.reasoning_content;
  for (const { index, id, type, function: part } of delta.tool_calls ?? []) {
    message.calls ??= [];
    const call = (message.calls[index] ??= { id, type: type ?? "function", function: { name: "", arguments: "" } });
    call.function.name += part.name ?? "";
    call.function.arguments += part.arguments ?? "";
  }
  return Boolean(delta.content || delta.reasoning_content || delta.tool_calls?.length);
}

/** Seconds to the first token, tokens a second after it, and tokens of the whole conversation. */
function measured(usage, asked, first, last) {
  const writing = (last - first) / 1000;
  return {
    first: first && (first - asked) / 1000,
    speed: usage.completion_tokens > 1 && writing > 0 ? (usage.completion_tokens - 1) / writing : null,
    total: usage.prompt_tokens + usage.completion_tokens,
  };
}
