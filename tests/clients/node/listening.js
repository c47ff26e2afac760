/** Report what anything with the interface of EventSource tells: its listeners are called by event type. */
export function listen(source, types, report) {
  source.onopen = () => report("open");
  source.onerror = (event) => {
    report("error", { message: event.message ?? event.error?.message, status: event.code ?? event.status });
    if (source.readyState === 2) report("end");
  };
  for (const type of types)
    source.addEventListener(type, ({ data, lastEventId }) => report("event", { type, data, id: lastEventId }));
}

/** Return a `fetch` that sends the token as it is when the request is made. */
export const fetching = (token) => (url, init) =>
  fetch(url, { ...init, headers: { ...init.headers, Authorization: `Bearer ${token()}` } });
