/** The client of sse-gateway; see docs/client.md. @module */

const SILENCE = 2.5; // heartbeats without a byte, after which a connection is dead
const HEALTHY = 10_000; // ms of a stream, after which failures count anew
const BEAT = 15_000; // ms between signs of life of a leader; the heartbeat until one is told
const KEPT = 1_000; // events that a tab keeps for tabs that missed some
const MARK = "sse-gateway ";

/** @type {import("./types.js").Connect} */
export const connect = (url, { share, lastEventId, signal, ...options }) => {
  const { channels, last, since, types, credentials, minDelay = 1_000, maxDelay = 30_000 } = options;
  const { transport = globalThis.ReadableStream ? "fetch" : "eventsource" } = options;
  if (!Array.isArray(channels) || !channels.length) throw new TypeError("channels is empty");
  if (share && (lastEventId ?? last ?? since) !== undefined)
    throw new TypeError("share excludes last, since, lastEventId");
  const handlers = { __proto__: null };
  const tell = (name, value) => {
    for (const handler of [...(handlers[name] ?? [])])
      try {
        handler(value);
      } catch (error) {
        fault(error);
      }
  };
  const hear = ({ change, id, event }) => {
    if (stream.state === "closed") return;
    stream.lastEventId = id ?? stream.lastEventId;
    if (change) {
      stream.state = change.state;
      stream.reason = change.reason;
      if (change.state === "closed") source.close(change.reason);
      tell("state", change);
    }
    if (!event) return;
    if (event.type === "stream.gap") tell("gap", event);
    else if (!["gap", "state", "*"].includes(event.channel)) tell(event.channel, event);
    tell("*", event);
  };
  const stream = {
    state: "connecting",
    lastEventId,
    on(name, handler) {
      const all = (handlers[name] ??= new Set());
      all.add(handler);
      return () => void all.delete(handler);
    },
    close(reason = "closed") {
      hear({ change: { state: "closed", reason } });
    },
    async *[Symbol.asyncIterator]() {
      let queue = [];
      let wake;
      const ends = [
        stream.on("state", () => wake?.()),
        stream.on("*", (event) => {
          if (queue.push(event) > 10_000) queue = gaps(channels, "slow_reader");
          wake?.();
        }),
      ];
      try {
        while (queue.length || stream.state !== "closed")
          if (queue.length) yield queue.shift();
          else await new Promise((resolve) => (wake = resolve));
      } finally {
        for (const end of ends) end();
      }
    },
  };
  const base = new URL(url, globalThis.document?.baseURI).href.replace(/\/+$/, "");
  const settings = { ...options, transport, minDelay, maxDelay, base, client: unique() };
  const name = MARK + JSON.stringify([base, [...channels].sort(), types, credentials, share]);
  const canShare = share && globalThis.navigator?.locks && globalThis.BroadcastChannel;
  const source = canShare ? shared(settings, name, hear) : link(settings, lastEventId, hear);
  signal?.addEventListener("abort", () => stream.close("aborted"));
  if (signal?.aborted) stream.close("aborted");
  return stream;
};

const valueOf = (token, refused) => (typeof token === "function" ? token(refused) : token);
const unique = () => `${Math.random()}`;
const ended = (signal) => new Promise((resolve) => signal.addEventListener("abort", resolve));
const gaps = (channels, reason, after = null) =>
  channels.map((channel) => ({ type: "stream.gap", channel, reason, after, oldest: null }));

const fault = (error) => setTimeout(() => { throw error; });

function watch(signal, { hold, soon, drop }) {
  const { document } = globalThis;
  const on = (target, name, call, ...given) => target?.addEventListener?.(name, () => call?.(...given), { signal });
  on(globalThis, "online", soon);
  on(globalThis, "offline", drop, "offline");
  on(document, "visibilitychange", () => document.hidden || soon?.());
  on(document, "freeze", hold, true);
  on(document, "resume", hold, false);
  on(document && globalThis, "pagehide", hold, true);
  on(document && globalThis, "pageshow", hold, false);
}

/** One connection after the other. `hear` gets `{change}` and `{prev, id, event}`. */
function link(settings, id, hear) {
  const { base, channels, credentials, last, maxDelay, minDelay, since, token, transport, types } = settings;
  let cut = new AbortController();
  const over = new AbortController();
  let end, why; // of all, and of the last connection
  let floor = 0; // ms that the gateway wants us to wait; then, until when
  let due = 0, failures = 0, heard = 0, opened = 0, retry = 0;
  let held = false;
  let heartbeat = BEAT;
  let connection, dog, timer, wake;

  const tell = (state, reason, delay) => hear({ change: { state, reason, delay } });

  const drop = (reason) => {
    why ??= reason;
    cut.abort();
  };

  const close = (reason) => {
    end ??= reason;
    drop(reason);
    wake?.();
  };

  // In the back/forward cache there must be no connection.
  const hold = (isHeld) => {
    if (held === isHeld) return;
    held = isHeld;
    drop("paused");
    wake?.();
  };

  const arm = (time) => {
    clearTimeout(timer);
    due = time;
    timer = setTimeout(wake, Math.min(due - Date.now(), 1e9)); // 2 ** 31 is 0
  };

  const soon = () => {
    const now = Date.now();
    const time = Math.max(now, floor) + Math.random() * minDelay;
    if (time < due) arm(time);
    // The machine slept, and the watchdog with it.
    else if (!due && now - heard > SILENCE * heartbeat) drop("silence");
  };

  const alive = () => {
    heard = Date.now();
    clearTimeout(dog);
    dog = setTimeout(drop, SILENCE * heartbeat, "silence");
  };

  const address = (path, more) => {
    const query = new URLSearchParams(channels.map((name) => ["channel", name]));
    const { client } = settings;
    for (const [name, value] of Object.entries({ client, last, since, types, ...more }))
      if (value !== undefined) query.set(name, value);
    return `${base}/${path}?${query}`;
  };

  const isGood = async (answer) => {
    const { status, headers } = answer;
    if (status === 201 || (status === 200 && /^text\/event-stream/i.test(headers.get("Content-Type")))) return true;
    const told = await answer.json().catch(() => 0);
    why ??= status === 200 ? "bad_answer" : status === 204 ? "no_content" : told.error ?? `status ${status}`;
    // What can never work ends it; what may pass does not.
    if (status === 204 || (status >= 400 && status < 500 && ![408, 425, 429].includes(status))) end ??= why;
    floor = 1_000 * headers.get("Retry-After") || 0;
  };

  const take = ({ event, data, id: given, retry: wait = 0 }) => {
    let told;
    try {
      told = JSON.parse(data);
    } catch {
      return fault(new SyntaxError(`event ${given} is no JSON`));
    }
    if (event === "stream.heartbeat") {
      // A simple request, so that no preflight is needed.
      if (told.nonce) fetch(`${base}/streams/${connection}/ack`, { method: "POST", body: told.nonce }).catch(() => 0);
    } else if (event === "stream.close") {
      floor = wait;
      if (told.reconnect === false) end ??= told.reason;
      drop(told.reason);
    } else {
      const prev = id;
      id = given ?? id;
      if (event === "stream.gap") told.type = event;
      hear({ prev, id: given, event: event === "stream.open" ? undefined : told });
      if (event !== "stream.open") return;
      ({ connection, heartbeat = BEAT } = told);
      retry = wait;
      opened = Date.now();
      tell("open");
    }
  };

  const viaFetch = async (ask, signal) => {
    const headers = { Accept: "text/event-stream" };
    if (id) headers["Last-Event-ID"] = id;
    const get = (given) => {
      if (given) headers.Authorization = `Bearer ${given}`;
      return fetch(address("events", { format: "envelope" }), { headers, credentials, signal, cache: "no-store" });
    };
    const given = await ask();
    let answer = await get(given);
    if (answer.status === 401 && typeof token === "function") answer = await get(await ask(given));
    if (!(await isGood(answer))) return;
    const reader = answer.body.getReader();
    const parse = parser((block) => signal.aborted || take(block));
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      alive();
      parse(value);
    }
  };

  const viaEventSource = async (ask, signal) => {
    const given = await ask();
    let ticket;
    if (given) {
      const headers = { Authorization: `Bearer ${given}` };
      const answer = await fetch(address("tickets"), { method: "POST", headers, credentials, signal });
      if (!(await isGood(answer))) return;
      ({ ticket } = await answer.json());
    }
    const url = address("events", { format: "message", heartbeat: "event", ticket, lastEventId: id });
    const source = new EventSource(url, { withCredentials: credentials === "include" });
    for (const event of ["message", "stream.open", "stream.gap", "stream.close", "stream.heartbeat"])
      source.addEventListener(event, ({ data, lastEventId }) => {
        alive();
        take({ event, data, id: lastEventId || undefined, retry: 3_000 }); // it does not tell
      });
    source.onerror = () => drop("network");
    await ended(signal);
    source.close();
  };

  const attempt = async () => {
    const { signal } = (cut = new AbortController());
    let blame;
    const ask = async (refused) => {
      blame = "token";
      const given = await valueOf(token, refused);
      blame = "network";
      signal.throwIfAborted();
      return given;
    };
    why = undefined;
    opened = floor = 0;
    tell("connecting");
    alive();
    const done = (transport === "fetch" ? viaFetch : viaEventSource)(ask, signal);
    await Promise.race([done, ended(signal)]).catch(() => 0);
    drop(blame);
    clearTimeout(dog);
  };

  const rest = async () => {
    const now = Date.now();
    if (opened && now - opened >= HEALTHY) failures = 0;
    // Full jitter: a thousand clients that lost one gateway come back evenly spread.
    const shortest = Math.max(minDelay, floor ? 1 : retry, 1);
    const isOffline = globalThis.navigator?.onLine === false;
    const window = Math.min(maxDelay, shortest * 2 ** Math.min(failures++, 30));
    const delay = floor + (isOffline ? maxDelay : Math.random() * window);
    floor += now;
    const rested = new Promise((resolve) => (wake = resolve));
    if (held) tell("paused");
    else {
      arm(now + delay);
      tell(isOffline ? "offline" : "waiting", why, Math.round(delay));
    }
    await rested;
    clearTimeout(timer);
    due = 0;
  };

  const run = async () => {
    await null; // so that handlers are there
    while (!end) {
      if (!held) await attempt();
      if (!end) await rest();
    }
    over.abort();
    tell("closed", end);
  };

  watch(over.signal, { hold, soon, drop });
  run();
  return { close };
}

/** WHATWG HTML 9.2.6; only whole blocks count. */
function parser(take) {
  const decoder = new TextDecoder();
  let rest = "";
  let block = {};
  return (bytes) => {
    // A CR may be half of a CRLF.
    const lines = (rest + decoder.decode(bytes, { stream: true })).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      const [, name, value] = /^([^:]*):? ?([^]*)$/.exec(line);
      if (!line) {
        if ("data" in block) take(block);
        block = {};
      } else if (name === "data") block.data = "data" in block ? `${block.data}\n${value}` : value;
      else if (name === "retry") block.retry = /^\d+$/.test(value) ? +value : block.retry;
      else if (!value.includes("\0")) block[name] = value;
    }
  };
}

/**
 * One link for all tabs, of the tab that holds a Web Lock; a BroadcastChannel goes to the others. Each event goes with
 * the id before it, so that who missed some asks. A leader that is frozen is robbed of the lock.
 */
function shared(settings, name, hear) {
  const { channels, isWorker, token } = settings;
  const { locks } = globalThis.navigator;
  const me = unique();
  const kept = new Map(); // the last events, by id
  const over = new AbortController();
  let here = new AbortController();
  let now = {};
  let id = settings.at;
  let answer, hasAsked, join, leading, place, posts, timer, worker;

  const tabs = `${name} tabs`;

  const post = (message) => posts?.postMessage(message);

  // Rob a leader that says nothing any more; timers of hidden tabs may run once a minute.
  const wait = (ms = (10 + Math.random()) * BEAT) => {
    clearTimeout(timer);
    timer = setTimeout(stand, ms, true);
  };

  const ask = () => {
    if (hasAsked || leading) return;
    hasAsked = true;
    post({ me, at: id });
    wait(5_000);
  };

  const soon = () => {
    hasAsked = false;
    if (posts) ask();
  };

  const leave = () => {
    clearTimeout(timer);
    here.abort();
    posts?.close();
    posts = hasAsked = join = undefined;
    worker?.port.postMessage(0);
  };

  const close = () => {
    over.abort();
    leave();
  };

  // The tabs hold this together; a worker gets it where there is none.
  const leaveIfAlone = () => locks.request(tabs, { signal: AbortSignal.timeout(1_000) }, close).catch(() => 0);

  const accept = (news) => {
    if (news.id && news.id !== news.prev) {
      id = news.id;
      kept.set(id, news);
      if (kept.size > KEPT) kept.delete(kept.keys().next().value);
    }
    now = news.change ?? now;
    hear(news);
    if (news.change?.state === "closed") close();
  };

  // Lead when the lock is free, until it leaves or is robbed.
  const stand = async (steal) => {
    here.abort();
    const { signal } = (here = new AbortController());
    if (!isWorker) locks.request(tabs, { mode: "shared", signal }, () => ended(signal)).catch(() => 0);
    const lead = async () => {
      clearTimeout(timer);
      const mine = link(settings, (id ??= place), (news) => {
        if (leading !== mine) return;
        if (news.change?.reason === "replaced") return stand(wait()); // robbed while frozen
        post({ ...news, at: id, client: settings.client });
        accept(news);
      });
      leading = mine;
      const beat = setInterval(() => {
        post({ change: now, at: id });
        if (isWorker) leaveIfAlone();
      }, BEAT);
      await ended(signal);
      clearInterval(beat);
      leading = undefined;
      mine.close("left");
    };
    await locks.request(name, steal ? { steal } : { signal }, () => signal.aborted || lead()).catch(
      ({ code }) => code === 20 || lead(), // robbed; or there are no locks here
    );
    if (!signal.aborted) stand(wait());
  };

  const help = (to, at) => {
    let lost = at && at !== id;
    for (const news of lost ? kept.values() : []) if (!(lost &&= news.prev !== at)) post({ ...news, to });
    post({ to, change: now, at: id, client: settings.client, lost });
  };

  // Give the worker a token; one tab will do.
  const lend = (refused) => {
    const give = async (lock) => {
      if (lock) post({ token: await valueOf(token, refused) });
      await new Promise((resolve) => setTimeout(resolve, 1_000)); // for slower tabs
    };
    locks.request(`${name} token ${refused}`, { ifAvailable: true }, give).catch(fault);
  };

  const receive = ({ data }) => {
    const { at, change } = data;
    if ("token" in data) return answer?.(data.token);
    if (data.wants) return lend(data.refused);
    if (data.me) return leading ? help(data.me, at) : post({ to: data.me, place: id });
    if (leading || (data.to ?? me) !== me) return;
    if ("place" in data) return void (place ??= data.place);
    wait();
    settings.client = data.client ?? settings.client;
    if (change) {
      hasAsked = false;
      if (at) id ?? kept.set((id = at), {});
      if (at !== id && !kept.has(at)) {
        if (!data.lost) return ask();
        for (const event of gaps(channels, "handover", id)) hear({ event });
        id = at;
      }
      if (change.state !== now.state || change.reason !== now.reason) accept({ change });
    } else if (!data.id || data.prev === (id ?? data.prev)) kept.has(data.id) ? (id = data.id) : accept(data);
    else if (!kept.has(data.id)) ask();
  };

  const start = () => {
    if (posts) return;
    posts = new BroadcastChannel(name);
    posts.onmessage = receive;
    join = () => {
      join = undefined;
      ask();
      stand();
    };
    // A worker outlives every tab. It must be this file, of the page's origin.
    const { origin, pathname } = new URL(import.meta.url ?? location);
    if (!globalThis.SharedWorker || origin !== globalThis.origin || !/\/client(\.[0-9a-f]{12})?\.js$/.test(pathname)) return join();
    worker = new SharedWorker(import.meta.url, { type: "module", name });
    worker.onerror = worker.port.onmessage = () => join?.();
    worker.port.postMessage({ ...JSON.parse(JSON.stringify(settings)), token: !!token, at: id });
    setTimeout(() => join?.(), 2_000);
  };

  const hold = (isHeld) => {
    if (!isHeld) return start();
    leave();
    accept({ change: { state: "paused" } });
  };

  // In a worker: the tabs have the token.
  if (token === true)
    settings.token = (refused) => {
      post({ wants: true, refused });
      return new Promise((resolve, reject) => {
        answer = resolve;
        setTimeout(reject, BEAT);
      });
    };
  watch(over.signal, { hold, soon });
  start();
  return { close, leaveIfAlone, over };
}

if (globalThis.SharedWorkerGlobalScope && name.startsWith(MARK)) {
  let share;
  addEventListener("connect", ({ ports: [port] }) => {
    port.onmessage = ({ data }) => {
      if (!data) return share?.leaveIfAlone();
      if (!share || share.over.signal.aborted) share = shared({ ...data, isWorker: true }, name, () => 0);
      navigator.locks.query().then(() => port.postMessage(0)); // we are first
    };
  });
}
