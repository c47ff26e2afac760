/** What @microsoft/fetch-event-source looks for in a page: one that is never hidden. */
globalThis.window = { fetch, setTimeout, clearTimeout };
globalThis.document = Object.assign(new EventTarget(), { hidden: false });
