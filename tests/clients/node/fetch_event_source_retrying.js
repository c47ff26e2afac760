import "./page.js";
import { fetchEventSource } from "@microsoft/fetch-event-source";

import { fetching } from "./listening.js";

class Fatal extends Error {}

/** As the second example of its README: `onclose` throws, so it comes back; a refusal is fatal. */
export async function start({ url, token }, report) {
  try {
    await fetchEventSource(url, {
      fetch: token && fetching(token),
      async onopen({ ok, status }) {
        if (ok) return report("open");
        throw status >= 400 && status < 500 && status !== 429 ? new Fatal(`status ${status}`) : new Error(`status ${status}`);
      },
      onmessage: ({ event, data, id }) => report("event", { type: event || "message", data, id }),
      onclose() {
        throw new Error("the stream ended");
      },
      onerror(error) {
        report("error", { message: error.message });
        if (error instanceof Fatal) throw error;
      },
    });
  } catch {
    report("end");
  }
}
