import { events } from "./sse.js";

const KEY = "inazuma.key";

/** The key is kept until the tab is closed. */
export const setKey = (key) => sessionStorage.setItem(KEY, key);

/** What went wrong: the HTTP status (0: no answer), the API's message and code, and seconds to wait if it told. */
export class ApiError extends Error {
  constructor(status, message, code = null, wait = 0) {
    super(message);
    Object.assign(this, { status, code, wait });
  }
}

/** The response to GET, or to POST where there is a body.
 *
 * Throws ApiError, or an AbortError when `signal` says so. */
export async function request(path, { body, signal } = {}) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers["Authorization"] = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  const wait = Number(response.headers.get("Retry-After")) || 0;
  throw new ApiError(response.status, error?.message ?? `The server answered ${response.status}.`, error?.code, wait);
}

/** The parsed answer to a request that is not streamed. */
export const json = async (path, options) => (await request(path, options)).json();

/** The chunks of a chat completion. */
export async function* chat(body, signal) {
  const options = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await request("/v1/chat/completions", { body: options, signal });
  const lost = new ApiError(0, "The connection was lost. What had come is kept.");
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(500, chunk.error.message, chunk.error.code);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
    throw lost;
  }
  throw lost;
}

/** The server's model, `{id, max_model_len}`; while it is loading, `tell` is called and the answer comes later. */
export async function model(tell, signal) {
  for (;;) {
    try {
      return (await json("/v1/models", { signal })).data[0];
    } catch (error) {
      if (error.status !== 503 || error.code !== "loading") throw error;
      tell();
      await sleep(error.wait || 1, signal);
    }
  }
}

/** Waits; throws an AbortError at once when `signal` says so. */
export function sleep(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
