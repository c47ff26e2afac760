import { connect } from "../../../client/client.js";

/** client/client.js: it hears events and gaps in place of the stream's own events. */
export function start({ base, channels, token }, report) {
  const stream = connect(base, { channels, token: token && (() => token()), minDelay: 100, maxDelay: 1_000 });
  stream.on("*", (event) => report("event", { type: event.type, data: JSON.stringify(event), id: event.id }));
  stream.on("state", ({ state, reason }) => {
    if (state === "open") report("open");
    else if (state === "closed") report("end");
    else report("error", { message: reason });
  });
}
