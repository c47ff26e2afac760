// Streams of events, read with fetch: an EventSource cannot send a token.

const TOKEN = "sse-gateway-token";
const RETRY_MS = 2000;
const FINAL = [400, 401, 403, 404, 405];

/** Return the headers of every request: who asks, if anybody said. */
function credentials(more = {}) {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

/** Return what a refusal says of itself. */
async function refusalOf(answer) {
  let told = {};
  try {
    told = await answer.json();
  } catch {
    // Not ours: a proxy's page.
  }
  const message = told.message || `the answer was ${answer.status}`;
  return { status: answer.status, code: told.error || "", message };
}

/** Yield the events of a body (WHATWG HTML §9.2.6); the gateway ends its lines with LF alone. */
async function* eventsOf(body, heard) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let event = { type: "message", data: [], id: "" };
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    heard();
    text += value;
    const lines = text.split("\n");
    text = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (event.data.length) yield { ...event, data: event.data.join("\n") };
        event = { type: "message", data: [], id: "" };
        continue;
      }
      const colon = line.indexOf(":");
      if (colon === 0) continue; // a heartbeat
      const field = colon < 0 ? line : line.slice(0, colon);
      const rest = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (field === "event") event.type = rest;
      else if (field === "data") event.data.push(rest);
      else if (field === "id") event.id = rest;
    }
  }
}

/**
 * Follow a stream until `stop`, over every loss of the connection.
 *
 * `on.open()`, `on.event(event)`, `on.lost(why)` before each new try, and `on.refused(refusal)`, after which
 * there is none. A stream that is silent for `silence` milliseconds is as good as lost.
 */
function follow(url, silence, on) {
  const stopped = new AbortController();

  async function once() {
    const attempt = new AbortController();
    const stop = () => attempt.abort();
    stopped.signal.addEventListener("abort", stop);
    let timer = setTimeout(stop, silence);
    const heard = () => {
      clearTimeout(timer);
      timer = setTimeout(stop, silence);
    };
    try {
      const answer = await fetch(url, { headers: credentials(), signal: attempt.signal, cache: "no-store" });
      if (!answer.ok) return await refusalOf(answer);
      on.open();
      for await (const event of eventsOf(answer.body, heard)) {
        if (!stopped.signal.aborted) on.event(event);
      }
      return { status: 0, message: "the gateway ended it" };
    } catch {
      return { status: 0, message: attempt.signal.aborted ? "the gateway is silent" : "the gateway cannot be reached" };
    } finally {
      clearTimeout(timer);
      stopped.signal.removeEventListener("abort", stop);
    }
  }

  (async () => {
    for (;;) {
      const why = await once();
      if (stopped.signal.aborted) return;
      if (FINAL.includes(why.status)) {
        on.refused(why);
        return;
      }
      on.lost(why.message);
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      if (stopped.signal.aborted) return;
    }
  })();
  return { stop: () => stopped.abort() };
}
