import "./page.js";
import { fetchEventSource } from "@microsoft/fetch-event-source";

import { fetching } from "./listening.js";

/** As the first example of its README: callbacks that only look on. */
export async function start({ url, token }, report) {
  await fetchEventSource(url, {
    fetch: token && fetching(token),
    onmessage: ({ event, data, id }) => report("event", { type: event || "message", data, id }),
    onerror: ({ message }) => report("error", { message }),
    onclose: () => report("error", { message: "the stream ended" }),
  });
  report("end");
}
