/** The data of each server-sent event in the body of a response, as they come. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      // An empty line ends the event; other lines are comments and fields that this API does not use.
      if (line === "" && data.length) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}
