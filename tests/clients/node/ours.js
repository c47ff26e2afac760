import { connect } from "../../../client/client.js";

/** client/client.js: it hears events and gaps in place of the stream's own events. */
export const start = (job, report) => follow(job, report, {});

export function follow({ base, channels, token }, report, options) {
  const stream = connect(base, {
    channels,
    token: token && (() => token()),
    minDelay: 100,
    maxDelay: 1_000,
    ...options,
  });
  stream.on("*", (event) => report("event", { type: event.type, data: JSON.stringify(event), id: event.id }));
  stream.on("state", ({ state, reason }) => {
    if (state === "open") report("open");
    else if (state === "closed") report("end");
    else report("error", { message: reason });
  });
}
