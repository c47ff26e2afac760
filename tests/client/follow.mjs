// Runs clients, and prints what they tell as JSON lines: {client, event | change | asked | fault | ended}.
// What they are to do comes as JSON: {url, options, count, tokens, luck, closeAfter, iterate}.
import { connect } from "../../client/client.js";

const { url, options, count = 1, tokens, luck, closeAfter, iterate } = JSON.parse(process.argv[2]);
const say = (about) => process.stdout.write(`${JSON.stringify(about)}\n`);

// A fault of a page's handler, as its console would tell it.
process.on("uncaughtException", (error) => say({ fault: String(error) }));

// So that a delay is known: full jitter, but always the same part of its window.
if (luck !== undefined) Math.random = () => luck;

for (let client = 0; client < count; client++) {
  // The token of each answer to the question for one; the last one for all that follow. An {error} is thrown.
  const token = tokens && ((refused) => {
    const given = tokens.length > 1 ? tokens.shift() : tokens[0];
    say({ client, asked: refused ?? null });
    if (given?.error) throw new Error(given.error);
    return given;
  });
  const stream = connect(url, { ...options, ...(token && { token }) });
  stream.on("state", (change) => say({ client, change }));
  if (iterate)
    (async () => {
      for await (const event of stream) say({ client, event });
      say({ client, ended: stream.reason });
    })();
  else {
    let left = closeAfter;
    stream.on("*", (event) => {
      say({ client, event });
      if (--left === 0) stream.close();
    });
  }
  stream.on("broken", () => { throw new Error("of the page"); });
}
