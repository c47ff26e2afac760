import { EventSource } from "eventsource";

import { follow } from "./ours.js";

globalThis.EventSource = EventSource;

/** client/client.js where `fetch` cannot stream: over an EventSource, with a ticket in place of the token. */
export const start = (job, report) => follow(job, report, { transport: "eventsource" });
