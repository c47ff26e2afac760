/**
 * A `SharedWorker` that leads in place of a tab: it outlives any of them. It runs this same module.
 * @module
 */

/** @import { Settings, WorkerRequest, WorkerSettings } from "./internals.js" */

/** With the version of `TabMessage`: tabs with another one, of an older page, share among themselves. */
const NAME_PREFIX = "sse-gateway 2 ";

/** Milliseconds that a worker has to start before the tabs go on without it. */
const MAX_START_TIME = 2_000;

/**
 * Return the name of a shared stream: of its lock, its broadcast channel and its worker.
 *
 * The token is not part of it: it may be a function, and changes.
 * @param {Settings} settings
 * @param {string | boolean} share
 */
export const shareName = ({ base, channels, types, credentials }, share) =>
  NAME_PREFIX + JSON.stringify([base, [...channels].sort(), types, credentials, share]);

/**
 * Start the worker, or join it.
 * @param {string} name
 * @param {WorkerSettings} request
 * @param {() => void} onReady called when the worker has asked for the lock, or if there is none; more than once
 */
export function startWorker(name, request, onReady) {
  // A worker has to be of the page's origin, and its file has to be this module: inside a bundle `import.meta.url` is
  // the bundle, which must not run as a worker, and in CommonJS it is undefined.
  const { origin, pathname } = new URL(import.meta.url ?? location.href);
  const isOwnFile = origin === globalThis.origin && /\/client(\.[0-9a-f]{12})?\.js$/.test(pathname);
  if (!globalThis.SharedWorker || !isOwnFile) return void onReady();
  const worker = new SharedWorker(import.meta.url, { type: "module", name });
  worker.onerror = worker.port.onmessage = onReady;
  // Structured clone rejects functions and proxies, which frameworks wrap arrays in.
  worker.port.postMessage(JSON.parse(JSON.stringify(request)));
  setTimeout(onReady, MAX_START_TIME);
  return worker;
}

/** Whether this module runs as such a worker. */
export const isTabWorker = () => "SharedWorkerGlobalScope" in globalThis && self.name.startsWith(NAME_PREFIX);

/**
 * Open a shared connection when the first tab joins, and again when a tab joins after all had left.
 * @param {(name: string, request: WorkerSettings) => { isClosed(): boolean, closeIfAlone(): void }} open
 */
export function serveTabs(open) {
  /** @type {ReturnType<typeof open> | undefined} */
  let shared;
  addEventListener("connect", (event) => {
    const [port] = /** @type {MessageEvent} */ (event).ports;
    if (!port) return;
    port.onmessage = (/** @type {MessageEvent<WorkerRequest>} */ { data }) => {
      if (data === "leave") return shared?.closeIfAlone();
      if (!shared || shared.isClosed()) shared = open(self.name, data);
      // The answer to a query comes after our own request for the lock has been queued: we are ahead of the tab.
      navigator.locks.query().then(() => port.postMessage("ready"));
    };
  });
}
