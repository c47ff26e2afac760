import { createEventSource } from "eventsource-client";

import { fetching } from "./listening.js";

/** As its README says: one callback for events of all types. */
export function start({ url, token }, report) {
  createEventSource({
    url,
    fetch: token && fetching(token),
    onMessage: ({ data, event, id }) => report("event", { type: event ?? "message", data, id }),
    onConnect: () => report("open"),
    onDisconnect: () => report("error", { message: "the stream ended" }),
    onScheduleReconnect: ({ delay }) => report("error", { message: `again in ${delay} ms` }),
  });
}
